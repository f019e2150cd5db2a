"""A tiny model with every kind of block, its values all different."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from fathom.checkpoint import weights
from fathom.checkpoint.quantise import quantise
from fathom.config.model import AttentionConfig, MambaConfig, MlpConfig, ModelConfig, MoEConfig
from fathom.model.nemotron import Nemotron


def _python(script: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def python():
    """(script, arguments) -> what a new Python prints while it runs the script."""
    return _python


@pytest.fixture(scope="session")
def tiny() -> ModelConfig:
    return ModelConfig(
        name="tiny",
        vocab=64,
        width=32,
        pattern="ME*-ME",
        mamba=MambaConfig(heads=4, head_width=16, state=8, groups=2, chunk=16),
        attention=AttentionConfig(heads=4, kv_heads=2, head_width=8),
        moe=MoEConfig(experts=4, chosen=2, expert_width=16, shared_width=24, latent=8, scale=5.0),
        mlp=MlpConfig(hidden=40),
        mtp="*E",
        context=128,
    )


def _scrambled(config: ModelConfig, dtype: torch.dtype, seed: int) -> Nemotron:
    model = Nemotron(config, dtype=dtype, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def scrambled():
    """(config, dtype, seed) -> a model whose every value is random."""
    return _scrambled


@pytest.fixture
def model(tiny) -> Nemotron:
    return _scrambled(tiny, torch.bfloat16, 0)


@pytest.fixture(scope="session")
def same():
    """(model, model) -> None; fails at the first tensor that differs in type or in a bit."""

    def check(one: Nemotron, other: Nemotron) -> None:
        ours, theirs = one.state_dict(), other.state_dict()
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name

    return check


@pytest.fixture(scope="session")
def blocky(tiny) -> ModelConfig:
    """The tiny model with rows that are whole blocks of NVFP4."""
    moe = {**tiny.moe.as_dict(), "latent": 32, "shared_width": 48, "expert_width": 80}
    return tiny.replace(vocab=72, moe=moe, mlp={"hidden": 48})


def _tensors(folder) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


@pytest.fixture(scope="session")
def tensors():
    """folder -> all tensors of its safetensors files."""
    return _tensors


@pytest.fixture(scope="session")
def identical():
    """(tensor, tensor) -> whether type, shape and every bit are the same."""

    def check(one: torch.Tensor, other: torch.Tensor) -> bool:
        same = one.dtype == other.dtype and one.shape == other.shape
        bits = (t.reshape(-1).view(torch.uint8) for t in (one, other))
        return same and torch.equal(*bits)

    return check


SUPER = {
    "blocks.*.mixer.experts.*": "nvfp4",
    "blocks.*.mixer.shared.*": "fp8",
    "blocks.1.mixer.shared.down": "nvfp4",
    "blocks.4.mixer.in_proj": "fp8",
    "blocks.1.mixer.latent_down": "fp8",
    "blocks.2.mixer.o_proj": "fp8",
}
"""A map that follows no rule, as Super's published one: shared experts, latents, Mamba matrices
and an output of attention differ from block to block."""


def _scaled(folder) -> None:
    """Give a quantised folder scales of activations, keys and values, each different."""
    stored = _tensors(folder)
    names = sorted(n.rpartition(".")[0] for n in stored if n.endswith(".weight_scale"))
    for index, module in enumerate(names):
        stored[f"{module}.input_scale"] = torch.tensor(0.01 + index / 64)
    stored["backbone.layers.2.mixer.k_proj.k_scale"] = torch.tensor(0.5)
    stored["backbone.layers.2.mixer.v_proj.v_scale"] = torch.tensor(1.75)
    save_file(stored, folder / "model.safetensors")
    # what is said about them is written as the scales are
    weights.save(weights.load(folder, packed=True), folder)


@pytest.fixture(params=["lightning", "super"])
def released(request, tmp_path, blocky, scrambled):
    """A folder laid out as a released checkpoint: Lightning's mixture, or Super's map."""
    plain = weights.save(scrambled(blocky, torch.bfloat16, 1), tmp_path / "source")
    if request.param == "lightning":
        return quantise(plain, tmp_path / "lightning", "lightning")
    folder = quantise(plain, tmp_path / "super", SUPER)
    _scaled(folder)
    return folder


@pytest.fixture
def quantised(tmp_path, scrambled):
    """(config, table) -> the folder of a random model, its matrices in the table's formats."""

    def make(config, table):
        plain = weights.save(scrambled(config, torch.bfloat16, 1), tmp_path / "unrounded")
        return quantise(plain, tmp_path / f"rounded{len(list(tmp_path.iterdir()))}", table)

    return make


@pytest.fixture(scope="session")
def edit():
    """(folder, change) -> None; `change` gets the tensors of a folder, which are written back."""

    def done(folder, change) -> None:
        stored = _tensors(folder)
        change(stored)
        for file in folder.glob("model*"):
            file.unlink()
        save_file(stored, folder / "model.safetensors")

    return done

"""A tiny model with every kind of block, its values all different."""

import os
import subprocess
import sys

import pytest
import torch

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

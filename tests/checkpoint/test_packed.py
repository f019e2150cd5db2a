"""Quantised checkpoints are read into packed storage and written again, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fathom.checkpoint import weights
from fathom.checkpoint.packed import held
from fathom.checkpoint.quantise import quantise
from fathom.errors import CheckpointError, ConfigError
from fathom.model.nemotron import Nemotron
from fathom.ops import nvfp4
from fathom.ops.layout import Layout

TABLES = {
    "lightning": "lightning",
    "all-nvfp4": {"*": "nvfp4"},
    "all-fp8": {"*": "fp8"},
    "one": {"blocks.2.mixer.o_proj": "fp8", "blocks.4.mixer.out_proj": "nvfp4"},
}


@pytest.fixture
def config(tiny):
    moe = {**tiny.moe.as_dict(), "latent": 32, "shared_width": 48, "expert_width": 80}
    return tiny.replace(vocab=72, moe=moe, mlp={"hidden": 48})


@pytest.fixture
def plain(tmp_path, config, scrambled):
    """A plain checkpoint's folder."""
    return weights.save(scrambled(config, torch.bfloat16, 1), tmp_path / "plain")


@pytest.fixture
def mixed(tmp_path, plain):
    """The same checkpoint in Lightning's formats."""
    return quantise(plain, tmp_path / "mixed", "lightning")


def tensors(folder) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def edited(folder, change):
    stored = tensors(folder)
    change(stored)
    save_file(stored, folder / "model.safetensors")
    return folder


def identical(one: torch.Tensor, other: torch.Tensor) -> bool:
    same = one.dtype == other.dtype and one.shape == other.shape
    return same and torch.equal(one.view(-1).view(torch.uint8), other.view(-1).view(torch.uint8))


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("shard_bytes", [2**40, 3000])
def test_what_is_loaded_and_saved_again_has_the_same_bits(tmp_path, plain, table, shard_bytes):
    one = quantise(plain, tmp_path / "one", TABLES[table], shard_bytes=shard_bytes)
    weights.save(weights.load(one), tmp_path / "two", shard_bytes=shard_bytes)
    before, after = tensors(one), tensors(tmp_path / "two")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert identical(tensor, after[name]), name
    for file in ("config.json", "hf_quant_config.json", "generation_config.json"):
        assert json.loads((one / file).read_text()) == json.loads(
            (tmp_path / "two" / file).read_text()
        ), file


def test_packed_matrices_hold_the_files_bytes(mixed):
    stored = tensors(mixed)
    model = weights.load(mixed)
    packed = held(model)
    values, _ = packed["blocks.0.mixer.in_proj.weight"].unpack()
    assert identical(values, stored["backbone.layers.0.mixer.in_proj.weight"])
    for expert in range(4):
        matrix = packed["blocks.1.mixer.experts.down"][expert]
        codes, scales = matrix.unpack()
        name = f"backbone.layers.1.mixer.experts.{expert}.down_proj.weight"
        assert identical(codes, stored[name])
        assert identical(scales, stored[f"{name}_scale"])
        assert torch.equal(matrix.scale, stored[f"{name}_scale_2"])
    values, _ = packed["blocks.2.mixer.q_proj.weight"].unpack()
    assert identical(values, stored["backbone.layers.2.mixer.q_proj.weight"])
    assert model.embedding.weight.dtype == torch.bfloat16
    assert not any(value.requires_grad for value in model.parameters())


def test_decoded_weights_are_what_codes_and_scales_mean(mixed):
    stored = tensors(mixed)
    model = weights.load(mixed, packed=False, dtype=torch.float32)
    assert not held(model)
    name = "backbone.layers.1.mixer.shared_experts.up_proj.weight"
    meant = nvfp4.dequantise(
        nvfp4.Quantised(stored[name], stored[f"{name}_scale"], stored[f"{name}_scale_2"])
    )
    assert torch.equal(model.blocks[1].mixer.shared.up.weight, meant)
    name = "backbone.layers.4.mixer.out_proj.weight"
    meant = nvfp4.dequantise_fp8(stored[name], stored[f"{name}_scale"])
    assert torch.equal(model.blocks[4].mixer.out_proj.weight, meant)


@pytest.mark.parametrize("kind", ["plain", "mixed"])
def test_a_packed_model_computes_what_its_decoded_weights_do(request, kind):
    folder = request.getfixturevalue(kind)
    packed = weights.load(folder, packed=True, dtype=torch.float32).eval()
    decoded = weights.load(folder, packed=False, dtype=torch.float32).eval()
    tokens, layout = torch.arange(24) % 64, Layout.of([17, 7])
    with torch.no_grad():
        ours = packed.logits(packed(tokens, layout))
        theirs = decoded.logits(decoded(tokens, layout))
    assert (ours - theirs).norm() / theirs.norm() < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tied", [False, True])
def test_a_plain_checkpoint_is_packed_as_it_is(tmp_path, config, scrambled, dtype, tied):
    model = scrambled(config.replace(tied=tied), dtype, 3)
    weights.save(model, tmp_path / "x")
    found = weights.load(tmp_path / "x", packed=True)
    ours = model.state_dict()
    packed = held(found)
    for name, tensor in ours.items():
        if name not in packed:
            assert torch.equal(found.state_dict()[name], tensor), name
        elif tensor.dim() == 2:
            assert torch.equal(packed[name].unpack()[0], tensor), name
        else:
            parts = [packed[name][expert].unpack()[0] for expert in range(len(tensor))]
            assert torch.equal(torch.stack(parts), tensor), name
    assert (found.packed_table is not None) == tied
    weights.save(found, tmp_path / "y")
    before, after = tensors(tmp_path / "x"), tensors(tmp_path / "y")
    assert before.keys() == after.keys()
    assert all(identical(before[name], after[name]) for name in before)
    assert not (tmp_path / "y" / "hf_quant_config.json").exists()


def test_fp16_weights_are_packed_exactly(tmp_path, config, scrambled):
    model = scrambled(config, torch.float16, 3)
    weights.save(model, tmp_path / "x")
    found = weights.load(tmp_path / "x", packed=True, dtype=torch.float32)
    values, _ = held(found)["head.weight"].unpack()
    assert torch.equal(values, model.head.weight.float())
    with pytest.raises(CheckpointError, match="bf16 or fp32"):
        weights.load(tmp_path / "x", packed=True, dtype=torch.float16)


def test_packed_weights_live_on_the_cpu(mixed):
    with pytest.raises(CheckpointError, match=r"live on the CPU.*packed=False"):
        weights.load(mixed, device="meta")
    assert weights.load(mixed, device="cpu", packed=False).embedding.weight.device.type == "cpu"


def test_a_packed_model_cannot_be_trained(mixed):
    with pytest.raises(ConfigError, match="packed=False"):
        print(weights.load(mixed).head_weight)


def test_scales_of_activations_keys_and_values_survive(tmp_path, mixed):
    scales = {
        "backbone.layers.0.mixer.in_proj.input_scale": torch.tensor(0.0125),
        "backbone.layers.2.mixer.k_proj.k_scale": torch.tensor([0.5]),
        "backbone.layers.2.mixer.v_proj.v_scale": torch.tensor(2.0),
        "lm_head.input_scale": torch.tensor(0.25),
    }
    edited(mixed, lambda stored: stored.update(scales))
    model = weights.load(mixed)
    assert model.calibration == {name: value.item() for name, value in scales.items()}
    weights.save(model, tmp_path / "again")
    after = tensors(tmp_path / "again")
    assert all(after[name].item() == value.item() for name, value in scales.items())
    told = json.loads((tmp_path / "again" / "hf_quant_config.json").read_text())["quantization"]
    assert told["kv_cache_quant_algo"] == "FP8"
    assert told["quantized_layers"]["lm_head"]["quant_algo"] == "NVFP4"
    assert weights.load(tmp_path / "again").calibration == model.calibration


def test_routers_that_are_wider_than_the_rest_stay_so(tmp_path, mixed):
    name = "backbone.layers.1.mixer.gate.weight"
    fine = torch.randn(4, 32)
    edited(mixed, lambda stored: stored.update({name: fine}))
    model = weights.load(mixed)
    assert torch.equal(model.routers()[0].weight, fine)
    assert model.embedding.weight.dtype == torch.bfloat16
    model(torch.arange(5), Layout.of([5]))
    weights.save(model, tmp_path / "again")
    assert identical(tensors(tmp_path / "again")[name], fine)


def test_config_json_alone_is_enough(mixed):
    (mixed / "hf_quant_config.json").unlink()
    assert held(weights.load(mixed))["head.weight"].format == "nvfp4"


def test_an_mtp_head_can_be_left_out_of_a_quantised_model(mixed, config):
    assert weights.load(mixed, mtp=False).mtp is None


def test_what_does_not_fit_is_told_with_what_was_wanted(mixed):
    def change(stored: dict) -> None:
        del stored["lm_head.weight_scale_2"]
        stored["lm_head.weight_scale"] = stored["lm_head.weight_scale"][:, :1].contiguous()
        stored["backbone.layers.0.mixer.in_proj.pre_quant_scale"] = torch.ones(1)
        stored["backbone.layers.4.mixer.in_proj.weight"] = torch.ones(164, 32)

    with pytest.raises(CheckpointError) as caught:
        weights.load(edited(mixed, change))
    said = str(caught.value)
    assert "1 tensors are missing: lm_head.weight_scale_2 []" in said
    assert "lm_head.weight_scale wanted [72, 2], got [72, 1]" in said
    assert "have no place: backbone.layers.0.mixer.in_proj.pre_quant_scale [1]" in said
    wanted = "in_proj.weight wanted torch.float8_e4m3fn, got torch.float32"
    assert f"backbone.layers.4.mixer.{wanted}" in said
    assert "follows from how the checkpoint says it was quantised" in said


def test_a_scale_may_have_one_dimension_or_none(mixed):
    name = "lm_head.weight_scale_2"
    edited(mixed, lambda stored: stored.update({name: stored[name].view(1)}))
    assert held(weights.load(mixed))["head.weight"].scale.shape == ()


def test_quantised_weights_that_nobody_explains_are_refused(mixed):
    (mixed / "hf_quant_config.json").unlink()
    told = json.loads((mixed / "config.json").read_text())
    del told["quantization_config"]
    (mixed / "config.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match="quantised weights"):
        weights.load(mixed)


def test_experts_of_one_layer_share_a_format_when_packed(mixed):
    name = "backbone.layers.1.mixer.experts.2.up_proj"
    quant = mixed / "hf_quant_config.json"
    told = json.loads(quant.read_text())
    del told["quantization"]["quantized_layers"][name]
    quant.write_text(json.dumps(told))

    def change(stored: dict) -> None:
        del stored[f"{name}.weight_scale"], stored[f"{name}.weight_scale_2"]
        stored[f"{name}.weight"] = torch.ones(80, 32, dtype=torch.bfloat16)

    edited(mixed, change)
    with pytest.raises(CheckpointError, match=r"share one format.*packed=False"):
        weights.load(mixed)
    assert weights.load(mixed, packed=False).blocks[1].mixer.experts.up[2].eq(1).all()


def test_saving_plain_weights_over_a_quantised_checkpoint_leaves_no_trace_of_it(
    tmp_path, mixed, config, scrambled, same
):
    model = scrambled(config, torch.bfloat16, 5)
    weights.save(model, mixed)
    assert not (mixed / "hf_quant_config.json").exists()
    same(model, weights.load(mixed))


MEMORY = """
import sys
import torch
from fathom.checkpoint import weights

def now(field):
    text = open("/proc/self/status").read()
    return int(text.split(field + ":")[1].split()[0]) * 1024

torch.ones(1000).bfloat16().float()
open("/proc/self/clear_refs", "w").write("5")
before = now("VmRSS")
model = weights.load(sys.argv[1], packed=True)
print(now("VmHWM") - before)
open("/proc/self/clear_refs", "w").write("5")
before = now("VmRSS")
weights.save(model, sys.argv[2])
print(now("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("table", [None, "lightning"])
def test_loading_and_saving_packed_weights_takes_little_more_memory_than_they_do(
    tmp_path, config, table, python
):
    moe = {**config.moe.as_dict(), "experts": 64, "expert_width": 768, "latent": 512}
    big = config.replace(width=1024, vocab=20_000, moe=moe, mlp={"hidden": 8192}, mtp="")
    model = Nemotron(big, dtype=torch.bfloat16, seed=None)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(0.25)
    folder = weights.save(model, tmp_path / "x")
    if table is not None:
        folder = quantise(folder, tmp_path / "y", table)
    size = (folder / "model.safetensors").stat().st_size
    assert size > 100e6
    loading, saving = map(int, python(MEMORY, folder, tmp_path / "z").split())
    assert 0.95 * size < loading < 1.15 * size
    assert saving < 40e6

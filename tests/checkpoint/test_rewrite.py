"""Dialects are changed without touching a code; decoded weights are what the codes mean."""

import json

import pytest
import torch

from fathom.checkpoint import weights
from fathom.checkpoint.expected import layout
from fathom.checkpoint.packed import held
from fathom.checkpoint.quantise import quantise
from fathom.checkpoint.rewrite import rewrite
from fathom.errors import CheckpointError, ConfigError
from fathom.model.nemotron import Nemotron
from fathom.ops.layout import Layout

THEIRS = {"weight_packed": "weight", "weight_global_scale": "weight_scale_2"}
SCALARS = ("weight_scale_2", "input_scale", "k_scale", "v_scale")


def test_codes_and_block_scales_keep_their_bytes(tmp_path, released, tensors, identical):
    rewrite(released, tmp_path / "ct", "compressed-tensors")
    before, after = tensors(released), tensors(tmp_path / "ct")
    for name, tensor in after.items():
        module, _, last = name.rpartition(".")
        if tensor.dim() == 3 and "conv1d" not in name:
            # plain experts, which transformers wants as one
            for expert, matrix in enumerate(tensor):
                assert identical(matrix, before.pop(f"{module}.{expert}.{last}.weight")), name
            continue
        if last in ("weight_global_scale", "input_global_scale"):
            own = {"weight": "weight_scale_2", "input": "input_scale"}[last.split("_")[0]]
            assert torch.equal(tensor, 1 / before.pop(f"{module}.{own}").view(1)), name
        else:
            own = before.pop(f"{module}.{THEIRS.get(last, last)}")
            assert identical(tensor.view(own.shape), own), name
    assert not before


def test_both_ways_give_what_was_there(tmp_path, released, tensors, identical):
    rewrite(released, tmp_path / "ct", "compressed-tensors", shard_bytes=3000)
    rewrite(tmp_path / "ct", tmp_path / "back", "modelopt")
    before, after = tensors(released), tensors(tmp_path / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if name.endswith(SCALARS):
            torch.testing.assert_close(after[name], tensor, rtol=2e-7, atol=0)
        else:
            assert identical(after[name], tensor), name
    for file in ("hf_quant_config.json", "config.json", "generation_config.json"):
        texts = [json.loads((f / file).read_text()) for f in (released, tmp_path / "back")]
        assert texts[0] == texts[1]


@pytest.mark.parametrize("to", ["modelopt", "compressed-tensors"])
def test_the_own_dialect_is_a_copy(tmp_path, released, tensors, identical, to):
    rewrite(released, tmp_path / "one", to)
    rewrite(tmp_path / "one", tmp_path / "two", to)
    before, after = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert before.keys() == after.keys()
    assert all(identical(before[name], after[name]) for name in before)


def test_a_model_is_the_same_in_either_dialect(tmp_path, released, identical):
    rewrite(released, tmp_path / "ct", "compressed-tensors")
    one, other = weights.load(released).eval(), weights.load(tmp_path / "ct").eval()
    assert one.calibration.keys() == other.calibration.keys()
    for name, value in one.calibration.items():
        assert other.calibration[name] == pytest.approx(value, rel=2e-7), name
    ours, theirs = held(one), held(other)
    assert ours.keys() == theirs.keys()
    for name, packed in ours.items():
        assert packed.format == theirs[name].format, name
    tokens, layout = torch.arange(24) % 64, Layout.of([17, 7])
    with torch.no_grad():
        logits = [model.logits(model(tokens, layout)).float() for model in (one, other)]
    assert (logits[0] - logits[1]).norm() < 1e-2 * logits[0].norm()


def test_a_whole_model_of_one_format_says_linear(tmp_path, blocky, scrambled, quantised):
    folder = quantised(blocky, {"*": "nvfp4"})
    rewrite(folder, tmp_path / "ct", "compressed-tensors")
    field = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]
    assert field["format"] == "nvfp4-pack-quantized"
    assert field["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert field["config_groups"]["group_0"]["input_activations"] is None
    assert not (tmp_path / "ct" / "hf_quant_config.json").exists()
    assert held(weights.load(tmp_path / "ct"))["mtp.eh_proj.weight"].format == "nvfp4"


def test_scales_of_a_cache_are_read_where_the_library_puts_them(tmp_path, quantised, blocky, edit):
    folder = quantised(blocky, {"blocks.2.mixer.k_proj": "nvfp4"})
    rewrite(folder, tmp_path / "ct", "compressed-tensors")
    name = "backbone.layers.2.mixer.k_scale"
    edit(tmp_path / "ct", lambda stored: stored.update({name: torch.tensor([0.5])}))
    found = weights.load(tmp_path / "ct").calibration
    assert found == {"backbone.layers.2.mixer.k_proj.k_scale": 0.5}


def test_scales_of_fp8_may_have_the_type_of_the_model(tmp_path, quantised, blocky, edit):
    folder = quantised(blocky, {"head": "fp8"})
    rewrite(folder, tmp_path / "ct", "compressed-tensors")
    scale = torch.tensor([0.0625], dtype=torch.bfloat16)
    edit(tmp_path / "ct", lambda stored: stored.update({"lm_head.weight_scale": scale}))
    assert held(weights.load(tmp_path / "ct"))["head.weight"].scale == 0.0625


@pytest.mark.parametrize("form", ["modelopt", "compressed-tensors"])
@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_decoded_weights_are_those_that_loading_gives(
    tmp_path, released, form, dtype, same, monkeypatch
):
    monkeypatch.setattr("fathom.checkpoint.pieces.PIECE", 1000)
    rewrite(released, tmp_path / "x", form)
    rewrite(tmp_path / "x", tmp_path / "plain", "bf16", dtype=dtype)
    assert not (tmp_path / "plain" / "hf_quant_config.json").exists()
    wanted = weights.load(tmp_path / "x", packed=False, dtype=dtype or torch.bfloat16)
    same(weights.load(tmp_path / "plain"), wanted)


def test_readers_that_lose_experts_are_named(tmp_path, quantised, blocky):
    experts = quantised(blocky, {"blocks.*.mixer.experts.*": "nvfp4", "head": "fp8"})
    (told,) = rewrite(experts, tmp_path / "a", "compressed-tensors")
    assert "transformers" in told
    assert "weight_global_scale" in told
    assert rewrite(experts, tmp_path / "b", "modelopt") == []
    linear = quantised(blocky, {"blocks.*.mixer.shared.*": "nvfp4"})
    assert rewrite(linear, tmp_path / "c", "compressed-tensors") == []


def test_plain_weights_have_no_dialect(tmp_path, blocky, scrambled):
    folder = weights.save(scrambled(blocky, torch.bfloat16, 1), tmp_path / "x")
    with pytest.raises(ConfigError, match=r"plain weights.*fathom quantise"):
        rewrite(folder, tmp_path / "y", "compressed-tensors")
    assert not (tmp_path / "y").exists()


def test_what_is_damaged_is_not_passed_on(tmp_path, quantised, blocky, edit):
    folder = quantised(blocky, {"head": "nvfp4"})

    def change(stored):
        stored["lm_head.weight_scale"].view(torch.uint8)[3, 1] = 0x7F

    edit(folder, change)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight_scale .*0x7F"):
        rewrite(folder, tmp_path / "y", "compressed-tensors")
    assert not (tmp_path / "y").exists()


def test_plain_experts_become_one_tensor_and_are_read_again(
    tmp_path, quantised, blocky, monkeypatch
):
    folder = quantised(blocky, {"head": "nvfp4"})
    monkeypatch.setattr("fathom.checkpoint.pieces.PIECE", 999 * 4)
    rewrite(folder, tmp_path / "ct", "compressed-tensors", dtype=torch.float32)
    one, other = weights.load(folder, packed=False), weights.load(tmp_path / "ct", packed=False)
    assert torch.equal(other.blocks[1].mixer.experts.up, one.blocks[1].mixer.experts.up.float())


@pytest.mark.oracle
@pytest.mark.parametrize("released", ["super"], indirect=True)
def test_compressed_tensors_decodes_every_export_as_we_do(tmp_path, released, tensors):
    from compressed_tensors.compressors import NVFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.utils.match import match_name

    rewrite(released, tmp_path / "ct", "compressed-tensors")
    stored = tensors(tmp_path / "ct")
    told = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]
    groups = QuantizationConfig.model_validate(told).config_groups.values()
    model = weights.load(tmp_path / "ct", packed=False, dtype=torch.float32)
    values = model.state_dict()
    found = 0
    for name, slot in layout(model.config).items():
        module = name.removesuffix(".weight")
        schemes = [g for g in groups if any(match_name(module, t) for t in g.targets)]
        if f"{module}.weight_packed" not in stored:
            continue
        (scheme,) = schemes
        own = {
            part.removeprefix(f"{module}."): tensor
            for part, tensor in stored.items()
            if part.startswith(f"{module}.")
        }
        ours, whole = slot.part(values[slot.name]), own["weight_global_scale"]
        theirs = NVFP4PackedCompressor.decompress(own, scheme)["weight"]
        # it rounds block scale / global scale to BF16, and the product once more
        torch.testing.assert_close(theirs.float(), ours, rtol=2**-7, atol=0)
        # without the global scale its BF16 is exact
        one = {**own, "weight_global_scale": torch.ones(1)}
        exact = NVFP4PackedCompressor.decompress(one, scheme)["weight"].float()
        assert torch.equal(exact * whole.reciprocal(), ours), name
        found += 1
    assert found == 2 * 2 * 4 + 1


def spread(model):
    """dt above transformers' clamp of its prefill, where the clamp does nothing."""
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("dt_bias"):
                value.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(7))
    return model


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("pattern", "table"),
    [
        # as Nemotron 3 Nano 4B: dense blocks, most matrices NVFP4, the head FP8
        ("M-M-MM-*-M-", {"blocks.*": "nvfp4", "head": "fp8", "blocks.4.mixer.in_proj": "fp8"}),
        ("M-M*-", {"*": "nvfp4"}),
        ("MEM*EME", {"blocks.*": "nvfp4", "blocks.*.mixer.experts.*": "plain", "head": "nvfp4"}),
    ],
)
def test_transformers_computes_what_we_do(tmp_path, blocky, pattern, table):
    from transformers import AutoModelForCausalLM

    config = blocky.replace(pattern=pattern, width=64, mtp="")
    plain = weights.save(spread(Nemotron(config, dtype=torch.bfloat16, seed=1)), tmp_path / "x")
    folder = quantise(plain, tmp_path / "q", table)
    assert rewrite(folder, tmp_path / "ct", "compressed-tensors") == []
    rewrite(folder, tmp_path / "bf16", "bf16")
    peer, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "ct", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not any(info.values())
    tokens = torch.arange(100) * 7 % config.vocab
    model = weights.load(tmp_path / "bf16", dtype=torch.float32).eval()
    with torch.no_grad():
        # its first pass decodes to BF16; the second in fp32, so that both choose the same experts
        peer.eval()(tokens[None])
        for value in peer.parameters():
            value.data = value.data.float()
        theirs = peer(tokens[None]).logits[0]
        ours = model.logits(model(tokens, Layout.of([100])))
    assert (theirs - ours).norm() < 2e-2 * ours.norm()


@pytest.mark.oracle
def test_transformers_still_forgets_the_scales_of_experts(tmp_path, blocky, quantised):
    """When this fails, the warning of `rewrite` and `docs/dialects.md` can go."""
    from transformers import AutoModelForCausalLM

    folder = quantised(blocky, {"blocks.*.mixer.experts.*": "nvfp4"})
    rewrite(folder, tmp_path / "ct", "compressed-tensors")
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "ct", dtype=torch.float32)
    theirs = peer.model.layers[1].mixer.experts.up_proj
    ours = weights.load(tmp_path / "ct", packed=False).blocks[1].mixer.experts.up
    assert theirs.abs().max() > 100 * ours.abs().max()


MEMORY = """
import sys
import torch
from fathom.checkpoint.gguf import write_gguf
from fathom.checkpoint.rewrite import rewrite

def now(field):
    text = open("/proc/self/status").read()
    return int(text.split(field + ":")[1].split()[0]) * 1024

import gguf
torch.ones(1000).bfloat16().float()
for to in ("compressed-tensors", "bf16", "gguf"):
    open("/proc/self/clear_refs", "w").write("5")
    before = now("VmRSS")
    if to == "gguf":
        write_gguf(sys.argv[1], sys.argv[2] + ".gguf")
    else:
        rewrite(sys.argv[1], sys.argv[2], to)
    print(now("VmHWM") - before)
"""


@pytest.mark.slow
def test_no_model_is_ever_held(tmp_path, blocky, python):
    moe = {**blocky.moe.as_dict(), "experts": 96, "expert_width": 768, "latent": 512}
    big = blocky.replace(width=1024, pattern="ME*M", vocab=20_000, moe=moe, mtp="")
    model = Nemotron(big, dtype=torch.bfloat16, seed=None)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(0.25)
    plain = weights.save(model, tmp_path / "x")
    folder = quantise(plain, tmp_path / "y", {"blocks.*": "nvfp4", "head": "fp8"})
    size = (folder / "model.safetensors").stat().st_size
    assert size > 100e6
    # a piece of rows, decoded, a few times over
    grown = list(map(int, python(MEMORY, folder, tmp_path / "z").split()))
    assert max(grown) < 90e6, grown

"""A quantised checkpoint holds what quantising its matrices one by one gives, and nothing more."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fathom.checkpoint import weights
from fathom.checkpoint.quantise import TABLES, quantise
from fathom.errors import CheckpointError, ConfigError, KernelError
from fathom.ops import nvfp4


@pytest.fixture
def config(tiny):
    moe = {**tiny.moe.as_dict(), "latent": 32, "shared_width": 48, "expert_width": 80}
    return tiny.replace(vocab=72, moe=moe, mlp={"hidden": 48})


@pytest.fixture
def folder(tmp_path, config, scrambled):
    class Text:
        stop_ids = frozenset({7})

        def save(self, place):
            (place / "tokenizer.json").write_text("{}")
            (place / "chat_template.jinja").write_text("x")

    return weights.save(scrambled(config, torch.float32, 1), tmp_path / "plain", Text())


def tensors(folder) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    alike = one.dtype == other.dtype and one.shape == other.shape
    return alike and torch.equal(
        one.reshape(-1).view(torch.uint8), other.view(-1).view(torch.uint8)
    )


def kind(name: str, table: str) -> str:
    """What a table of TABLES makes of an official module, said in other words than the table's."""
    if name.startswith("mtp.") or not name.startswith(("backbone.layers", "lm_head")):
        return "plain"
    if name == "lm_head" or ".experts." in name or ".shared_experts." in name:
        return "nvfp4"
    if name.endswith(("in_proj", "out_proj")):
        return "fp8" if table == "lightning" else "nvfp4"
    return "plain"


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("shard_bytes", [2**40, 1])
def test_every_matrix_is_what_the_specification_makes_of_it(tmp_path, folder, table, shard_bytes):
    before = tensors(folder)
    after = tensors(quantise(folder, tmp_path / "q", table, shard_bytes=shard_bytes))
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        which = kind(module, table)
        if which == "plain":
            assert same(after.pop(name), weight), name
        elif which == "fp8":
            values, scale = nvfp4.quantise_fp8(weight)
            assert same(after.pop(name), values), name
            assert same(after.pop(f"{name}_scale"), scale), name
        else:
            wanted = nvfp4.quantise(weight)
            assert same(after.pop(name), wanted.codes), name
            assert same(after.pop(f"{name}_scale"), wanted.scales), name
            assert same(after.pop(f"{name}_scale_2"), wanted.scale), name
    assert not after


def test_a_matrix_of_many_pieces_has_one_scale(tmp_path, folder, monkeypatch):
    whole = tensors(quantise(folder, tmp_path / "one", "lightning"))
    monkeypatch.setattr("fathom.checkpoint.packed.PIECE", 4096)
    monkeypatch.setattr("fathom.checkpoint.pieces.PIECE", 512)
    pieces = tensors(quantise(folder, tmp_path / "two", "lightning"))
    assert all(same(whole[name], pieces[name]) for name in whole)


def test_the_precision_map_is_written_as_lightnings_is(tmp_path, folder):
    target = quantise(folder, tmp_path / "q", "lightning")
    told = json.loads((target / "hf_quant_config.json").read_text())["quantization"]
    layers = told["quantized_layers"]
    assert told["quant_algo"] == "MIXED_PRECISION"
    assert layers["lm_head"] == {"quant_algo": "W4A16_NVFP4", "group_size": 16}
    assert layers["backbone.layers.0.mixer.in_proj"] == {"quant_algo": "FP8"}
    assert len(layers) == 1 + 2 * 2 * (4 + 1) + 2 * 2
    assert {"backbone.embeddings", "backbone.layers.0.mixer.conv1d", "mtp*"} < set(
        told["exclude_modules"]
    )
    assert "backbone.layers.1.mixer.gate" in told["exclude_modules"]
    field = json.loads((target / "config.json").read_text())["quantization_config"]
    assert field["quant_method"] == "modelopt"
    assert field["quantized_layers"] == layers


def test_one_format_alone_is_no_mixture(tmp_path, folder):
    target = quantise(folder, tmp_path / "q", "bench-nvfp4")
    told = json.loads((target / "hf_quant_config.json").read_text())["quantization"]
    assert told["quant_algo"] == "W4A16_NVFP4"
    assert "quantized_layers" not in told


def test_what_stays_plain_may_change_its_type_but_for_correction_biases(tmp_path, folder):
    after = tensors(quantise(folder, tmp_path / "q", "lightning", dtype=torch.bfloat16))
    assert after["backbone.embeddings.weight"].dtype == torch.bfloat16
    bias = "backbone.layers.1.mixer.gate.e_score_correction_bias"
    assert same(after[bias], tensors(folder)[bias])
    # matrices are rounded once, from the source's digits
    before = tensors(folder)["lm_head.weight"]
    assert same(after["lm_head.weight"], nvfp4.quantise(before).codes)


def test_tokenizer_template_and_stop_ids_come_along(tmp_path, folder):
    target = quantise(folder, tmp_path / "q", "lightning")
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (target / name).read_bytes() == (folder / name).read_bytes()


def test_the_last_pattern_that_matches_counts(tmp_path, folder):
    table = {"*": "nvfp4", "blocks.2.*": "plain", "blocks.2.mixer.o_proj": "fp8"}
    after = tensors(quantise(folder, tmp_path / "q", table))
    assert after["backbone.layers.2.mixer.q_proj.weight"].dtype == torch.float32
    assert after["backbone.layers.2.mixer.o_proj.weight"].dtype == torch.float8_e4m3fn
    assert after["mtp.layers.0.eh_proj.weight"].dtype == torch.uint8
    assert after["backbone.layers.1.mixer.gate.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("lightening", "no table 'lightening'; known are lightning"),
        ({"head": "int4"}, "format 'int4'"),
        ({"blocks.0.mixer.q_proj": "fp8"}, "matches no matrix"),
        ({"embedding": "nvfp4"}, "matches no matrix"),
    ],
)
def test_tables_that_make_no_sense_are_refused(tmp_path, folder, table, message):
    with pytest.raises(ConfigError, match=message):
        quantise(folder, tmp_path / "q", table)
    assert not (tmp_path / "q").exists()


def test_matrices_without_whole_blocks_are_refused_by_name(tmp_path, tiny, scrambled):
    folder = weights.save(scrambled(tiny, torch.bfloat16, 1), tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"layers\.1\.mixer\.experts\.0\.up_proj.*NVFP4"):
        quantise(folder, tmp_path / "q", "lightning")


def test_quantised_sources_and_weights_that_are_no_numbers_are_refused(
    tmp_path, folder, config, scrambled
):
    once = quantise(folder, tmp_path / "once", "lightning")
    with pytest.raises(CheckpointError, match="quantised weights"):
        quantise(once, tmp_path / "twice", "lightning")
    model = scrambled(config, torch.float32, 1)
    with torch.no_grad():
        model.head.weight[3, 4] = torch.nan
    weights.save(model, tmp_path / "nan")
    with pytest.raises(KernelError, match="not finite"):
        quantise(tmp_path / "nan", tmp_path / "q", "lightning")
    assert not (tmp_path / "q").exists()

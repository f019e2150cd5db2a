"""Quantising writes a checkpoint that is what its report says."""

import json

import pytest
import torch
from safetensors.torch import load_file

from fathom.checkpoint import weights
from fathom.checkpoint.rewrite import rewrite
from fathom.errors import ConfigError
from fathom.quantise.recipes import RECIPES
from fathom.quantise.run import quantise
from fathom.quantise.sensitivity import divergence, expected


def said(folder):
    return json.loads((folder / "hf_quant_config.json").read_text())["quantization"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_makes_a_checkpoint_that_loads(folder, tmp_path, texts, name):
    report = quantise(folder, tmp_path / "q", name, texts=texts)
    stored = load_file(tmp_path / "q" / "model.safetensors")
    model = weights.load(tmp_path / "q")
    rows = {row.matrix: row for row in report.rows}
    own = RECIPES[name]
    for module, one in said(tmp_path / "q").get("quantized_layers", {}).items():
        rowed = one["quant_algo"] != "W4A16_NVFP4"
        assert (f"{module}.input_scale" in stored) == rowed, module
    four = {n for n in rows if rows[n].kind == "nvfp4"}
    assert ("NVFP4" in json.dumps(said(tmp_path / "q"))) == bool(four)
    assert any(n.endswith(".k_scale") for n in stored) == own.cache
    assert model.calibration
    assert report.divergence > 0
    assert all((row.snr is None) == (row.kind == "plain") for row in report.rows)
    assert 15 < min(row.snr for row in report.rows if row.kind == "nvfp4") < 25 if four else True
    assert (tmp_path / "q" / "quantisation.png").stat().st_size > 1000
    told = json.loads((tmp_path / "q" / "quantisation.json").read_text())
    assert told["bits"] == report.bits
    assert len(told["rows"]) == len(report.rows)


def test_the_divergence_told_is_that_of_the_files(folder, tmp_path, texts):
    report = quantise(folder, tmp_path / "q", "nvfp4", texts=texts)
    plain = weights.load(folder).eval()
    after = weights.load(tmp_path / "q", packed=False).eval()
    assert divergence(expected(plain, texts), after, texts) == pytest.approx(report.divergence)
    better = quantise(folder, tmp_path / "b", "fp8", texts=texts)
    assert better.divergence < report.divergence
    assert better.bits > report.bits


def test_bits_are_those_of_the_file(folder, tmp_path, config):
    model = weights.load(folder).to(torch.bfloat16)
    weights.save(model, tmp_path / "p")
    report = quantise(tmp_path / "p", tmp_path / "q", "mixed")
    stored = load_file(tmp_path / "q" / "model.safetensors")
    size = sum(t.numel() * t.itemsize for t in stored.values())
    # scales of whole matrices and fp32 biases are not counted
    assert report.bits == pytest.approx(8 * size / config.parameters, rel=0.01)
    assert report.divergence is None


@pytest.mark.slow
def test_a_budget_is_kept_and_beats_four_bits_everywhere(folder, tmp_path, texts):
    narrow = quantise(folder, tmp_path / "n", "nvfp4", texts=texts, method="max")
    found = quantise(folder, tmp_path / "q", "mixed", texts=texts, bits=10.0, method="max")
    assert found.bits <= 10.0
    assert {row.kind for row in found.rows} >= {"nvfp4", "fp8"}
    assert found.divergence < narrow.divergence
    assert any(row.divergence is not None for row in found.rows)
    with pytest.raises(ConfigError, match="texts to measure"):
        quantise(folder, tmp_path / "x", "mixed", bits=10.0)
    with pytest.raises(ConfigError, match="too few"):
        quantise(folder, tmp_path / "x", "mixed", bits=2.0, texts=texts)
    assert not (tmp_path / "x").exists()


def test_queries_keys_and_values_have_one_scale(folder, tmp_path, texts):
    quantise(folder, tmp_path / "q", "nano-4b", texts=texts)
    stored = load_file(tmp_path / "q" / "model.safetensors")
    for last in ("weight_scale_2",):
        found = {stored[f"backbone.layers.4.mixer.{w}_proj.{last}"].item() for w in "qkv"}
        assert len(found) == 1


@pytest.mark.parametrize("method", ["mse", "4o6"])
def test_searched_scales_lose_less(folder, tmp_path, method):
    plain = quantise(folder, tmp_path / "a", "nvfp4", method="max")
    better = quantise(folder, tmp_path / "b", "nvfp4", method=method)
    for one, other in zip(plain.rows, better.rows, strict=True):
        if one.kind == "nvfp4":
            assert other.snr > one.snr, one.matrix


def test_what_is_written_has_every_dialect(folder, tmp_path, texts):
    quantise(folder, tmp_path / "q", "super-nvfp4", texts=texts)
    rewrite(tmp_path / "q", tmp_path / "ct", "compressed-tensors")
    told = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]
    for group in told["config_groups"].values():
        assert group["input_activations"] is not None
    assert weights.load(tmp_path / "ct").calibration

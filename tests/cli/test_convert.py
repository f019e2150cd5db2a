"""`fathom convert` writes the dialect that is asked for and says what its readers may do wrong."""

import json

import pytest
from safetensors import safe_open

from fathom.checkpoint import weights
from fathom.checkpoint.quantise import quantise
from fathom.cli import source


@pytest.fixture(scope="module")
def rounded(tiny_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert")
    plain = weights.save(source.open_model(tiny_run), folder / "a", source.open_text(tiny_run))
    return quantise(plain, folder / "b", {"blocks.*.mixer.experts.*": "nvfp4", "head": "fp8"})


def names(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def test_dialects_are_written_with_their_warnings(fathom, rounded, tmp_path):
    code, told, _ = fathom("convert", rounded, tmp_path / "ct", "--to", "compressed-tensors")
    assert code == 0
    assert "Warning" in told
    assert "transformers" in told
    assert "backbone.layers.1.mixer.experts.0.up_proj.weight_packed" in names(tmp_path / "ct")
    assert (tmp_path / "ct" / "tokenizer.json").exists()
    code, told, _ = fathom("convert", tmp_path / "ct", tmp_path / "mo", "--to", "modelopt")
    assert (code, "Warning" in told) == (0, False)
    assert (tmp_path / "mo" / "hf_quant_config.json").exists()
    code, told, _ = fathom("convert", tmp_path / "ct", tmp_path / "plain", "--to", "bf16")
    assert code == 0
    assert "quantization_config" not in json.loads((tmp_path / "plain/config.json").read_text())


def test_a_run_becomes_a_gguf_file_and_leaves_nothing_else(fathom, tiny_run, tmp_path):
    code, told, _ = fathom("convert", tiny_run, tmp_path / "x.gguf", "--to", "gguf", "--no-mtp")
    assert code == 0
    assert "x.gguf" in told
    assert [path.name for path in tmp_path.iterdir()] == ["x.gguf"]
    assert (tmp_path / "x.gguf").read_bytes()[:4] == b"GGUF"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--no-mtp",), "for --to gguf alone"),
        (("--to", "bf16", "--pre", "gpt-2"), "for --to gguf alone"),
        (("--to", "compressed-tensors"), "plain weights"),
        (("--to", "gptq"), "modelopt"),
    ],
)
def test_what_makes_no_sense_is_told(fathom, tiny_run, tmp_path, arguments, word):
    code, _, err = fathom("convert", tiny_run, tmp_path / "x", *arguments)
    assert code == 2
    assert word in err
    assert not list(tmp_path.iterdir())

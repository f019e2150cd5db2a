"""`fathom quantise` says what is lost, and with `--bits` chooses formats for itself."""

import json

import pytest

from fathom.checkpoint import weights


@pytest.fixture
def folder(fathom, tiny_run, tmp_path):
    assert fathom("convert", tiny_run, tmp_path / "hf")[0] == 0
    return tmp_path / "hf"


@pytest.fixture
def words_of(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("12+30=42, and so on. " * 20)
    return path


def test_a_checkpoint_is_rounded_and_told_about(fathom, folder, tmp_path):
    code, told, _ = fathom("quantise", folder, tmp_path / "q", "--format", "nvfp4")
    assert code == 0
    assert "blocks.1.mixer.experts.up" in told
    assert "bits a weight" in told
    assert "W4A16" in told
    assert weights.load(tmp_path / "q").calibration == {}
    rows = json.loads((tmp_path / "q" / "quantisation.json").read_text())["rows"]
    assert all(row["snr"] > 10 for row in rows if row["kind"] == "nvfp4")


def test_texts_bring_scales_and_a_budget_is_kept(fathom, folder, tmp_path, words_of):
    code, told, _ = fathom(
        *("quantise", folder, tmp_path / "q", "--bits", "13", "--calibrate", words_of),
        *("--tokens", "64", "--length", "40", "--rounding", "mse"),
    )
    assert code == 0
    assert "divergence" in told
    assert "W4A16" not in told
    report = json.loads((tmp_path / "q" / "quantisation.json").read_text())
    assert report["bits"] <= 13
    assert report["method"] == "mse"
    assert any(name.endswith(".k_scale") for name in weights.load(tmp_path / "q").calibration)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--bits", "5"), "--calibrate"),
        (("--format", "int4"), "nvfp4"),
        (("--calibrate", "nowhere.txt"), "nowhere"),
    ],
)
def test_what_makes_no_sense_is_told(fathom, folder, tmp_path, arguments, word):
    code, _, err = fathom("quantise", folder, tmp_path / "q", *arguments)
    assert code == 2
    assert word in err
    assert not (tmp_path / "q").exists()


def test_a_run_is_converted_first(fathom, tiny_run, tmp_path):
    code, _, err = fathom("quantise", tiny_run, tmp_path / "q")
    assert code == 2
    assert "fathom convert" in err

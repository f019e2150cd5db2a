"""A randomly filled checkpoint is a valid one, made without ever holding the model."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fathom.checkpoint import weights
from fathom.checkpoint.packed import held
from fathom.ops.layout import Layout

SCRIPT = Path(__file__).parents[1] / "bench" / "random_checkpoint.py"


def make(folder: Path, *arguments: str) -> Path:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "pocket", str(folder), *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "s per GB" in done.stderr
    return folder


@pytest.mark.slow
def test_a_random_checkpoint_in_lightnings_map_loads_and_computes(tmp_path):
    folder = make(tmp_path / "x", "--table", "lightning")
    model = weights.load(folder)
    packed = held(model)
    assert packed["head.weight"].format == "nvfp4"
    assert packed["blocks.0.mixer.in_proj.weight"].format == "fp8"
    assert packed["blocks.2.mixer.q_proj.weight"].format == "bf16"
    for name in ("head.weight", "blocks.0.mixer.in_proj.weight", "blocks.2.mixer.o_proj.weight"):
        assert math.isclose(packed[name].dense().std().item(), 0.02, rel_tol=0.05), name
    with torch.no_grad():
        hidden = model(torch.arange(9), Layout.of([9]))
    assert hidden.isfinite().all()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_fewer_layers_a_smaller_model(tmp_path):
    one = make(tmp_path / "one", "--layers", "2", "--seed", "3")
    two = make(tmp_path / "two", "--layers", "2", "--seed", "3")
    other = make(tmp_path / "other", "--layers", "2", "--seed", "4")
    data = [(folder / "model.safetensors").read_bytes() for folder in (one, two, other)]
    assert data[0] == data[1] != data[2]
    assert weights.load(one).config.pattern == "ME"
    assert not (one / "hf_quant_config.json").exists()
    assert json.loads((one / "config.json").read_text())["fathom"]["name"] == "pocket-2"

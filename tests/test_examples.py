"""The examples run as they stand, without arguments, and say what they promise; pages do too."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fathom.checkpoint.weights import save
from fathom.model.nemotron import Nemotron
from fathom.text import Text, Tokenizer

ROOT = Path(__file__).parent.parent
SAYS = {
    "01_train_on_your_data.py": ("held-out loss", "It says:"),
    "03_engine.py": (
        "24 answers",
        "with a budget: 4 tokens of thought, cut: True",
        "547 of 582 prompt tokens remembered",
        "by the schema: {'sum': 9",
        "cancelled, 0 tokens",
    ),
    "02_load_your_checkpoint.py": ("pocket: 1,476,196 parameters", "tokens, "),
}


def test_every_example_is_run():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == SAYS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", SAYS)
def test_an_example_runs_in_its_quick_mode(name, tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    for told in SAYS[name]:
        assert told in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", ["engine.md"])
def test_what_a_page_shows_in_python_runs(page, tmp_path):
    words = (ROOT / "docs" / page).read_text(encoding="utf-8")
    shown = re.findall(r"```python\n(.*?)```", words, re.DOTALL)
    assert shown
    text = Text(Tokenizer.train([], vocab=300, special_slots=32))
    save(Nemotron("pocket"), tmp_path / "runs" / "quickstart" / "model", text)
    for code in shown:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr

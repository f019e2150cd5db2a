"""Laws of studies/: what each can show in seconds."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_at_sixteen_thousand_tokens_the_walk_shows_what_it_shows_at_a_million(monkeypatch):
    place = ROOT / "studies" / "million" / "walk.py"
    spec = importlib.util.spec_from_file_location("walk", place)
    walk = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(__import__("sys").modules, "walk", walk)
    spec.loader.exec_module(walk)
    rows = walk.walk([1024, 16_384])
    assert [row.context for row in rows] == [1024, 16_384]
    assert len({row.mamba_bytes for row in rows}) == 1
    for row in rows:
        assert row.kv_bytes == pytest.approx(row.planned_bytes, rel=0.02)
    assert walk.table(rows).count("\n") == 3

"""Laws of fathom/cli/quickstart.py and of what it is made of."""

import io
import json

import pytest
import torch
from rich.console import Console

from fathom.checkpoint.weights import load
from fathom.cli import quickstart as made
from fathom.cli.accuracy import accuracy
from fathom.config.load import load_recipe
from fathom.model.sizes import POCKET, size
from fathom.problems import Problems
from fathom.train.loop import Outcome
from fathom.train.report import read


@pytest.fixture
def tour(recipe, untuned, tmp_path):
    """A tour through the tiny recipe."""
    console = Console(file=io.StringIO(), width=100)
    return made.Tour(load_recipe(recipe), tmp_path / "out", 2, console)


@pytest.mark.slow
def test_every_stage_leaves_what_it_measured(tour):
    page = tour.go()
    told = json.loads((tour.out / "report.json").read_text())
    assert [stage["name"] for stage in told["stages"]] == [
        "machine",
        "tokenizer",
        "training",
        "held-out loss and drafts",
        "held-out problems",
        "Hugging Face checkpoint",
        "three questions",
    ]
    right = next(s["accuracy"] for s in told["stages"] if s["accuracy"])
    assert right.keys() == {"add"}
    assert 0 <= right["add"] <= 1
    assert len(told["loss"]["training"]) == 3
    assert {"MTP depth 1", "MTP depth 2", "held out"} <= told["loss"].keys()
    assert len(told["load"]) == 2
    assert all(sum(row) / len(row) == pytest.approx(1) for row in told["load"])
    assert len(told["samples"]) == 3
    assert "<svg" in page.read_text()
    assert load(tour.out / "model").config.width == 32

    # A second time nothing is trained again, and the numbers are the same.
    again = made.Tour(tour.config, tour.out, 2, Console(file=io.StringIO()))
    assert again.go() == page
    steps = [e["step"] for e in read(tour.out / "metrics.jsonl") if e["kind"] == "step"]
    assert steps == [1, 2, 3]
    new = json.loads((tour.out / "report.json").read_text())
    assert new["samples"] == told["samples"]
    assert new["loss"] == told["loss"]
    training = [s["minutes"] for r in (told, new) for s in r["stages"] if s["name"] == "training"]
    assert training[1] >= training[0]


def test_an_interrupted_training_ends_the_tour_and_says_how_to_go_on(tour, monkeypatch):
    def interrupted(config, text, folder, console):
        return None, Outcome(step=7, finished=False, heldout=None, checkpoint=folder)

    monkeypatch.setattr(made, "learn", interrupted)
    assert tour.go() is None
    assert "goes on from there" in tour.console.file.getvalue()
    assert not (tour.out / "report.html").exists()


def test_the_recipe_trains_pocket_for_most_of_the_minutes():
    config = made.recipe(10, 3)
    assert size(config.model) == POCKET
    assert config.minutes == pytest.approx(8)
    assert config.seed == 3


def test_a_checkpoint_that_computes_otherwise_is_not_passed_over(tour, tiny_run, monkeypatch):
    from fathom.cli.source import open_model, open_text
    from fathom.errors import CheckpointError

    model, text = open_model(tiny_run), open_text(tiny_run)
    tour.convert(model, text)

    def damaged(folder):
        found = load(folder)
        with torch.no_grad():
            found.final_norm.weight[0] += 0.5
        return found

    monkeypatch.setattr(made.weights, "load", damaged)
    with pytest.raises(CheckpointError, match="other logits"):
        tour.convert(model, text)


def test_accuracy_counts_right_answers_of_held_out_problems(monkeypatch):
    asked = []

    class Said:
        def __init__(self, content):
            self.content = content

    def answers(model, text, questions, **options):
        asked.extend(questions)
        assert options["temperature"] == 0
        known = {p.question: p.answer for p in Problems(("add",), "heldout", 0).distinct(8)}
        return [Said(known[q] if i % 4 else "wrong") for i, q in enumerate(questions)]

    monkeypatch.setattr("fathom.cli.accuracy.generate", answers)
    model = type("Model", (), {"config": POCKET})()
    found = accuracy(model, None, ["add"], each=8, share=0.1, told=lambda done, all_: None)
    assert found == {"add": 0.75}
    assert asked == [p.question for p in Problems(("add",), "heldout", 0).distinct(8)]


def test_no_minutes_are_refused(fathom, tmp_path):
    code, _, err = fathom("quickstart", "--minutes", "0", "--out", tmp_path / "q")
    assert code == 2
    assert "--minutes" in err


def test_a_curve_is_drawn_through_means_and_ends_at_the_last_step(tmp_path):
    history = tmp_path / "metrics.jsonl"
    lines = [{"kind": "step", "step": step, "loss": float(step % 2)} for step in range(1, 251)]
    history.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = made.curves(history)["training"]
    assert len(curve) <= made.POINTS
    assert curve[-1][0] == 250
    assert sum(value for _, value in curve) / len(curve) == pytest.approx(0.5, abs=0.01)
    assert curve[0] == (3.0, pytest.approx(2 / 3))

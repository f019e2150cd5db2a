"""`fathom quickstart`: from nothing to a trained, tested, saved and talking Nemotron 3 in minutes.

Promise: nothing is downloaded and nothing is made up: every number of the report was measured in
this run. Interrupted, the same command goes on where it stopped; done, it measures again without
training again. What is trained is `quickstart.toml`, beside this file; the page is `report.py`.
"""

import copy
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from fathom import machine
from fathom.checkpoint import weights
from fathom.cli import report, voice
from fathom.cli.accuracy import MAX_TOKENS, accuracy
from fathom.cli.train import METRICS, begin, farewell, learn, tokenizer_of
from fathom.config import load as configs
from fathom.config.train import TrainConfig
from fathom.data.batch import Batch
from fathom.data.feed import heldout_batches
from fathom.errors import CheckpointError, ConfigError
from fathom.generation import generate
from fathom.model.nemotron import Nemotron
from fathom.ops.layout import Layout
from fathom.problems import OWN, Problems, score
from fathom.text import Text
from fathom.train import heldout
from fathom.train.report import read

TRAINING_SHARE = 0.8
"""Of the minutes; the rest is for tokenizer, tests and report."""
EACH = 40
"""Held-out problems of each kind that are answered."""
ASKED = ("add", "gcd", "sort")
"""Kinds of the three questions at the end."""
STAGES = "stages.json"
POINTS = 100
"""Most points of a curve in the report."""


def quickstart(
    minutes: Annotated[float, typer.Option(help="Minutes for all of it, about.")] = 8.0,
    out: Annotated[Path, typer.Option(help="The folder to write.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Where randomness starts.")] = 0,
    each: Annotated[int, typer.Option(help="Problems of each kind to be tested on.")] = EACH,
) -> None:
    """Train, test and talk to a small Nemotron 3 in minutes."""
    if not minutes > 0 or each < 1:
        raise ConfigError(f"--minutes and --each must be positive; got {minutes:g} and {each}.")
    console = Console()
    tour = Tour(recipe(minutes, seed), out, each, console)
    page = tour.go()
    if page is None:
        raise typer.Exit(130)
    console.print(f"\nThe report: {page}\nTalk with it: fathom chat {out}", highlight=False)


def recipe(minutes: float, seed: int) -> TrainConfig:
    """The recipe of the quickstart, which this package brings along."""
    with as_file(files("fathom.cli") / "quickstart.toml") as path:
        return configs.load_recipe(path, [f"minutes={minutes * TRAINING_SHARE}", f"seed={seed}"])


class Tour:
    """The stages of one quickstart, in order; each leaves what it found for the report."""

    def __init__(self, config: TrainConfig, out: Path, each: int, console: Console) -> None:
        """Prepare to work in `out`."""
        self.config, self.out, self.each, self.console = config, out, each, console
        self.minutes: dict[str, float] = {}
        self.facts: dict[str, str] = {}

    def go(self) -> Path | None:
        """Run every stage; return the report's page, or None if training was interrupted."""
        begin(self.out, None, self.console)
        self.minutes = _stages(self.out)
        with self.stage("machine"):
            self.describe()
        with self.stage("tokenizer"):
            text = tokenizer_of(self.config, self.out, None, self.console)
        with self.stage("training"):
            model, outcome = learn(self.config, text, self.out, self.console)
        self.say(farewell(outcome, self.out))
        if not outcome.finished:
            return None
        model.eval()
        with self.stage("held-out loss and drafts"):
            found, loads = self.judge(model, text)
        # answers come from the same weights laid out for generation
        served = copy.deepcopy(model).pack()
        with self.stage("held-out problems"):
            right = self.test(served, text)
        with self.stage("Hugging Face checkpoint"):
            self.convert(model, text)
        with self.stage("three questions"):
            samples = self.ask(served, text)
        self.facts["model"] = f"{model.config.name}, {model.config.parameters:,} parameters"
        self.facts["pattern"] = model.config.pattern + f", MTP {model.config.mtp}"
        self.facts["trained"] = f"{outcome.step} steps of {self.config.batch.tokens:,} tokens"
        self.facts["held-out loss"] = f"{found.loss:.4f} nats a token"
        return report.write(
            report.Report(
                facts=self.facts,
                stages=[
                    report.Stage(
                        name=name,
                        minutes=minutes,
                        accuracy=right if name == "held-out problems" else {},
                    )
                    for name, minutes in self.minutes.items()
                ],
                loss=curves(self.out / METRICS),
                acceptance=[share for share in found.acceptance if share is not None],
                load=loads,
                samples=samples,
            ),
            self.out,
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Announce a stage and keep how long it took, over all sittings."""
        self.console.print(f"\n[bold]{name}[/bold]")
        began = time.perf_counter()
        try:
            yield
        finally:
            spent = (time.perf_counter() - began) / 60
            self.minutes[name] = self.minutes.get(name, 0.0) + spent
            (self.out / STAGES).write_text(json.dumps(self.minutes), encoding="utf-8")

    def say(self, sentence: str) -> None:
        """Print a sentence."""
        self.console.print(sentence, highlight=False, soft_wrap=True)

    def describe(self) -> None:
        """Tune and measure the machine."""
        for sentence in machine.tune():
            self.say(f"· {sentence}")
        here, rates = machine.describe(), machine.measure()
        self.facts["machine"] = (
            f"{here.processor}, {here.usable:g} cores, {', '.join(here.features) or 'no features'}"
        )
        self.facts["rates"] = (
            f"fp32 {rates.fp32:.3g} GFLOP/s, bf16 {rates.bf16:.3g} GFLOP/s, "
            f"reading {rates.read:.3g} GB/s"
        )
        self.say(f"{self.facts['machine']}; {self.facts['rates']}")

    def judge(self, model: Nemotron, text: Text) -> tuple[heldout.HeldOut, list[list[float]]]:
        """Measure held-out loss, acceptance by depth, and the load of every expert."""
        by_source = heldout_batches(
            self.config.data, text, tokens=self.config.batch.at_once, seed=self.config.seed
        )
        batches: list[Batch] = [batch for found in by_source.values() for batch in found]
        depths = self.config.mtp.depths if model.config.mtp else 0
        loads = [torch.zeros_like(router.load_E) for router in model.routers()]
        parts = []
        for batch in batches:
            parts.append(heldout.evaluate(model, [batch], depths))
            for load_E, router in zip(loads, model.routers(), strict=True):
                load_E += router.load_E
        found = heldout.HeldOut.together(parts)
        told = ", ".join(f"{100 * share:.1f} %" for share in found.acceptance if share is not None)
        self.say(f"loss {found.loss:.4f} nats a token; drafts that agree, by depth: {told}")
        return found, [(load_E / load_E.double().mean()).tolist() for load_E in loads]

    def test(self, model: Nemotron, text: Text) -> dict[str, float]:
        """Answer held-out problems of every kind that was trained."""
        sources = [item for item in self.config.data.sources if item.kind == "problems"]
        kinds = [kind for item in sources for kind in item.kinds or OWN]
        with self.console.status("") as status:
            right = accuracy(
                model,
                text,
                kinds,
                each=self.each,
                share=self.config.data.split_fraction,
                told=lambda done, all_: status.update(f"{done} of {all_} answered"),
            )
        for kind, share in right.items():
            self.say(f"{kind:<12}{100 * share:4.0f} %")
        self.facts["held-out problems"] = (
            f"{100 * sum(right.values()) / len(right):.0f} % right over {len(right)} kinds"
        )
        return right

    def convert(self, model: Nemotron, text: Text) -> None:
        """Write the official layout, read it back and compare every logit."""
        folder = weights.save(model, self.out / "model", text)
        again, words = weights.load(folder).eval(), Text.load(folder)
        if not torch.equal(logits(model, text), logits(again, words)):
            raise CheckpointError(
                f"The model that was read back from {folder} gives other logits than the one that "
                f"was written there. Please report this with the output of `fathom doctor`."
            )
        self.say(f"{folder} gives the same logits, bit for bit.")

    def ask(self, model: Nemotron, text: Text) -> list[report.Sample]:
        """Ask three held-out questions with visible thinking."""
        samples = []
        for kind in ASKED:
            share = self.config.data.split_fraction
            problem = Problems((kind,), "heldout", 1, share)[0]
            self.say(f"\n> {problem.question}")
            events = generate(
                model, text, problem.question, max_tokens=MAX_TOKENS, temperature=0, stream=True
            )
            answer = voice.say(events, self.console)
            samples.append(
                report.Sample(
                    question=problem.question,
                    thinking=answer.reasoning,
                    content=answer.content,
                    answer=problem.answer,
                    right=score(problem, answer.content),
                )
            )
        return samples


@torch.inference_mode()
def logits(model: Nemotron, text: Text) -> torch.Tensor:
    """Logits [T, V] of a question that is always the same."""
    ids = text.prompt([{"role": "user", "content": "12 + 34 = ?"}])
    tokens_T = torch.tensor(ids, device=model.embedding.weight.device)
    return model.logits(model(tokens_T, Layout.of([len(ids)])))


def curves(metrics: Path) -> dict[str, list[tuple[float, float]]]:
    """The curves of a run's history: training, held out, and each depth of the MTP head.

    Single steps jump with what their batch holds, so a curve is drawn through `POINTS` means.
    """
    names = {"step": {"loss": "training"}, "heldout": {"loss": "held out"}}
    found: dict[str, list[tuple[float, float]]] = {"training": [], "held out": []}
    for event in read(metrics):
        kind = str(event["kind"])
        for key, value in event.items():
            name = names.get(kind, {}).get(key)
            if kind == "step" and key.startswith("mtp/"):
                name = f"MTP depth {key.removeprefix('mtp/')}"
            if name is not None and isinstance(value, int | float):
                found.setdefault(name, []).append((float(event["step"]), float(value)))
    return {name: _means(points) for name, points in found.items()}


def _means(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `POINTS` points: the last step and the mean value of as many runs of points."""
    size = math.ceil(len(points) / POINTS)
    runs = [points[begin : begin + size] for begin in range(0, len(points), size or 1)]
    return [(run[-1][0], sum(value for _, value in run) / len(run)) for run in runs]


def _stages(out: Path) -> dict[str, float]:
    """Minutes that earlier sittings spent on what need not be done again."""
    path = out / STAGES
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return {}
    return {name: told[name] for name in ("tokenizer", "training") if name in told}


__all__ = ["ASKED", "EACH", "Tour", "curves", "logits", "quickstart", "recipe"]

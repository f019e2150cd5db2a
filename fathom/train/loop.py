"""A training run from its first step, or from where it stopped, to its end.

Promise: whoever is stopped, by Ctrl-C, SIGTERM or a limit, can go on and gets the same losses; on
a CPU bit for bit. The clock is read for reports, and once to fix the length of a run that is given
in minutes; it never steers a step. One step is `train/step.py`, what a run is made of
`train/state.py`; who listens comes in from outside.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import final

import torch

from fathom.checkpoint.run import Run
from fathom.config.train import TrainConfig
from fathom.data.batch import Batch
from fathom.data.feed import Feed
from fathom.errors import ConfigError, TrainingError
from fathom.model.nemotron import Nemotron
from fathom.model.precision import Matrices
from fathom.ops.nvfp4 import Rounding
from fathom.train.heldout import HeldOut, evaluate
from fathom.train.interrupt import Interrupts
from fathom.train.objective import depths_of, loss, totals
from fathom.train.report import Kind, Metrics, Report, silence
from fathom.train.schedule import micro_batches, multiplier, steps_in_time
from fathom.train.state import State
from fathom.train.step import apply, gradients, health, prepare

TIMED_STEPS, TIMED_SHARE, KEPT_BACK = 5, 0.05, 0.02
"""A run on the clock is timed for this many steps and this share of its minutes at least; the last
share is kept back for saving."""


@dataclass(frozen=True)
class Outcome:
    """How a run, or a part of it, ended."""

    step: int
    """Steps that are complete."""
    finished: bool
    """False: it was interrupted, and goes on from its last checkpoint when started again."""
    heldout: HeldOut | None
    """The last held-out result, if there are held-out batches."""
    checkpoint: Path | None
    """The last checkpoint, if there is a place for checkpoints."""


def train(
    config: TrainConfig,
    *,
    model: Nemotron,
    feed: Feed,
    heldout: Mapping[str, Sequence[Batch]] | None = None,
    run: Run | None = None,
    report: Report = silence,
    teacher: Nemotron | None = None,
) -> Outcome:
    """Train `model` in place; go on from `run`'s last checkpoint if it has one.

    `heldout` gives fixed batches by source; the best checkpoint is the one with the lowest loss
    over all of them, or with a teacher the least divergence from it. `teacher` is the model that
    `config.distil` speaks of; it is never changed.

    Ctrl-C and SIGTERM save the last complete step and return an outcome that is not finished.

    Raises:
        TrainingError: `config.skip_limit` steps in a row had a loss or gradient that is no number.
        ConfigError: `config.distil` and `teacher` do not belong together.
        CheckpointError, DataError: the run was begun with another model, optimizer or other data.
    """
    _check(config, model, teacher)
    return _Loop(config, model, feed, heldout, run, report, teacher).run_all()


def _check(config: TrainConfig, model: Nemotron, teacher: Nemotron | None) -> None:
    """Refuse a teacher that nobody asked for, one that is missing, and one of other tokens."""
    if (config.distil is None) != (teacher is None):
        raise ConfigError(
            "A recipe with [distil] needs its teacher, and a teacher such a recipe; give `train` "
            "both or neither."
        )
    if teacher is not None and teacher.config.vocab != model.config.vocab:
        raise ConfigError(
            f"The teacher has {teacher.config.vocab} tokens, the student {model.config.vocab}; "
            f"take a teacher with the same tokenizer."
        )


@final
class _Loop:
    """One call of `train`."""

    def __init__(
        self,
        config: TrainConfig,
        model: Nemotron,
        feed: Feed,
        heldout: Mapping[str, Sequence[Batch]] | None,
        run: Run | None,
        report: Report,
        teacher: Nemotron | None,
    ) -> None:
        self.rounding = Rounding(config.seed)
        prepare(model, config, self.rounding)
        self.prepared = config.precision_at(0)
        self.config, self.model, self.run, self.report = config, model, run, report
        self.teacher = teacher
        self.device = model.embedding.weight.device
        self.heldout = {
            source: [on_device(batch, self.device) for batch in batches]
            for source, batches in (heldout or {}).items()
        }
        self.depths = depths_of(model, config)
        self.interrupts = Interrupts()
        self.state = State(config, model, feed)
        self.progress = self.state.progress
        self.judged: tuple[int, HeldOut] | None = None
        self.saved: tuple[int, Path] | None = None
        self.judging_seconds = 0.0
        self.timed: tuple[int, int, float] | None = None
        self.began, self.earlier = time.perf_counter(), 0.0

    def run_all(self) -> Outcome:
        """Resume, then step until the run is over or somebody interrupts it."""
        self.resume()
        with self.interrupts:
            try:
                if self.progress.step == 0:
                    self.judge()
                while self.progress.steps is None or self.progress.step < self.progress.steps:
                    self.step()
                    if self.progress.steps is None:
                        self.plan()
                    if self.due(self.config.evaluate_every):
                        self.judge()
                    if self.due(self.config.save_every) and not self.progress.skipped:
                        self.save()
                self.save()
                self.tell("finished", {"tokens": self.progress.tokens})
            except KeyboardInterrupt:
                self.interrupts.ignore()
                self.save()
        over = self.progress.steps is not None and self.progress.step >= self.progress.steps
        return Outcome(
            self.progress.step,
            over,
            self.judged[1] if self.judged else None,
            self.saved[1] if self.saved else None,
        )

    def resume(self) -> None:
        """Take up the last checkpoint, if there is one."""
        if self.run is None or not self.run.steps():
            self.tell("begun")
            return
        found = self.run.load("last")
        self.state.restore(found.tensors, found.facts)
        self.progress = self.state.progress
        self.earlier = self.progress.seconds
        self.saved = (found.step, found.path)
        self.tell("resumed", text=" ".join((str(found.path), *found.skipped)))

    def step(self) -> None:
        """Make one optimizer step and report it."""
        config, state, began = self.config, self.state, time.perf_counter()
        watched = self.round_anew()
        sizes = micro_batches(config.batch, self.progress.step)
        batches = [on_device(state.feed.next(tokens), self.device) for tokens in sizes]
        total = totals(batches, self.depths)
        objective = partial(loss, self.model, config=config, total=total, teacher=self.teacher)
        clip = config.optim.clip
        found = gradients(state.optimizer, batches, objective, clip, self.rounding)
        lost = health(self.model, self.rounding) if watched else {}
        scale = multiplier(config.schedule, self.progress.step, self.progress.steps)
        tokens = sum(batch.tokens for batch in batches)
        with self.interrupts.held():
            moved = apply(self.model, state.optimizer, found, config, scale)
            seconds = time.perf_counter() - began
            state.commit(tokens=tokens, seconds=seconds, moved=moved)
        values = {"lr": config.optim.lr * scale, "tokens": self.progress.tokens}
        values |= {"seconds": seconds, "tokens_per_second": tokens / seconds}
        self.tell("step" if moved else "skipped", values | found.values | lost)
        if self.progress.skipped >= config.skip_limit:
            good = self.saved[1] if self.saved else "none, nothing was saved yet"
            raise TrainingError(
                f"{self.progress.skipped} steps in a row, up to step {self.progress.step}, had a "
                f"loss or gradient that is not finite and were skipped. The last good checkpoint "
                f"is {good}. Go on from there with a lower optim.lr or other data."
            )

    def round_anew(self) -> bool:
        """Bring precision and random numbers to the step that begins; return whether to watch."""
        step, precision = self.progress.step, self.config.precision_at(self.progress.step)
        if precision != self.prepared:
            prepare(self.model, self.config, self.rounding, step)
            self.prepared = precision
        self.rounding.move(step, 0)
        watched = step % self.config.nvfp4.health_every == 0 and any(
            isinstance(part, Matrices) and part.quantisers for part in self.model.modules()
        )
        if watched:
            self.rounding.listen()
        return watched

    def plan(self) -> None:
        """Fix the length of a run on the clock, once enough of it was timed."""
        now = (self.progress.step, self.progress.tokens, self.progress.seconds)
        if self.timed is None:
            self.timed = now  # the first step warms up and is not counted
            return
        assert self.config.minutes is not None
        budget = 60 * self.config.minutes
        elapsed = self.earlier + time.perf_counter() - self.began
        steps, tokens, seconds = (b - a for a, b in zip(self.timed, now, strict=True))
        early = steps < TIMED_STEPS or elapsed < TIMED_SHARE * budget
        if early and elapsed < budget / 2:
            return
        self.progress.steps = steps_in_time(
            self.config.batch,
            self.progress.step,
            seconds=budget * (1 - KEPT_BACK) - elapsed - self.judging_seconds,
            per_token=seconds / tokens,
            per_step=self.judging_seconds / self.config.evaluate_every,
        )
        self.tell("planned", {"steps": self.progress.steps})

    def due(self, every: int) -> bool:
        """Whether something that is done every so many steps, and at the end, is due."""
        return self.progress.step % every == 0 or self.progress.step == self.progress.steps

    def judge(self) -> None:
        """Measure held-out loss and acceptance, if there are held-out batches."""
        if not self.heldout:
            return
        began = time.perf_counter()
        parts = {
            source: evaluate(self.model, batches, self.depths, self.teacher)
            for source, batches in self.heldout.items()
        }
        found = HeldOut.together(list(parts.values()))
        self.judging_seconds = time.perf_counter() - began
        self.judged = (self.progress.step, found)
        values = {"loss": found.loss, "seconds": self.judging_seconds}
        values |= {f"loss/{source}": part.loss for source, part in parts.items()}
        if found.divergence is not None:
            values["divergence"] = found.divergence
        for depth, share in enumerate(found.acceptance, 1):
            if share is not None:
                values[f"acceptance/{depth}"] = share
        self.tell("heldout", values)

    def save(self) -> None:
        """Save the last complete step, unless it is saved already or there is nowhere to."""
        step = self.progress.step
        if self.run is None or step == 0 or (self.saved and self.saved[0] == step):
            return
        score = self.judged[1].score if self.judged and self.judged[0] == step else None
        with self.interrupts.held():
            path = self.run.save(step, self.state.tensors(), self.state.facts(), score=score)
            self.saved = (step, path)
        self.tell("saved", text=str(path))

    def tell(self, kind: Kind, values: Mapping[str, float] | None = None, text: str = "") -> None:
        """Report an event."""
        self.report(Metrics(kind, self.progress.step, values or {}, text))


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with its tensors on `device`; the layout stays where it is."""
    return replace(
        batch,
        tokens_T=batch.tokens_T.to(device),
        targets_T=batch.targets_T.to(device),
        weights_T=batch.weights_T.to(device),
    )


__all__ = ["Outcome", "on_device", "train"]

"""`fathom generate --input`: a file of prompts, answered side by side by one engine.

Promise: the whole input is checked before anything runs; an answer is a line of the output as soon
as it ends, and what is there is never answered again. An answer depends on its line, the settings
and the model, neither on its neighbours nor on where a run was broken off. Ctrl-C is heeded between
two steps and loses nothing that has ended. The files are `jsonl.py`'s.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console

from fathom.cli import source
from fathom.cli.display import Pace
from fathom.cli.jsonl import Bad, Input, Line, Output
from fathom.cli.settings import Settings, compiled
from fathom.engine.engine import Engine
from fathom.engine.grammar import Compiled, Grammar
from fathom.engine.request import Event
from fathom.errors import DataError, FathomError
from fathom.generation import Answer, Scribe, group_size
from fathom.model.nemotron import Nemotron
from fathom.text import Text
from fathom.train.interrupt import Interrupts

AHEAD = 2
"""Requests that the engine is given, as a multiple of those it answers side by side."""
LOOK_SECONDS = 0.5
"""How often the rate is taken."""


class Sizes(NamedTuple):
    """How it is done; answers do not depend on it, but for the type."""

    sequences: int | None = None
    """Most prompts that are answered side by side; None: what a gibibyte of states allows."""
    context: int | None = None
    """Most tokens of a prompt and its answer; None: what the longest line needs."""
    drafts: int = 3
    """Most tokens drafted ahead."""
    dtype: torch.dtype | None = None
    """What the weights are widened to; None: as they are stored."""


@dataclass(frozen=True)
class Job:
    """What is asked for."""

    checkpoint: str
    input: Path
    output: Path
    settings: Settings
    grammar: Grammar | None = None
    errors: Literal["stop", "skip"] = "stop"
    """Whether a line that cannot be answered ends it all, or is a line of the output."""
    fresh: bool = False
    """Whether an output that is there is renamed, and all begins anew."""
    sizes: Sizes = field(default_factory=Sizes)

    def facts(self, fingerprint: str) -> dict[str, Any]:
        """What the answers depend on."""
        grammar = [self.grammar.kind, self.grammar.source] if self.grammar is not None else None
        folder = Path(self.checkpoint).expanduser()
        return {
            "input (SHA-256)": fingerprint,
            "checkpoint": str(folder.resolve()) if folder.is_dir() else self.checkpoint,
            "weights (names, sizes, times)": _weights(self.checkpoint),
            "dtype": str(self.sizes.dtype),
            "grammar": grammar,
            **self.settings.facts,
        }


@dataclass
class Progress:
    """How far a job is."""

    total: int
    """Lines of the input."""
    before: int = 0
    """Lines that were answered before."""
    done: int = 0
    """Lines that are answered, those counted."""
    bad: int = 0
    """Lines that got an error in the place of an answer, in this run."""
    tokens: int = 0
    """Tokens of answers, in this run."""
    rate: float = 0.0
    """Tokens a second, lately."""
    seconds: float = 0.0
    """How long this run has taken."""
    reused: float = 0.0
    """Share of the prompts' tokens that were remembered from others, in this run."""


class Needs(NamedTuple):
    """Tokens that lines need."""

    longest: int
    mean: int


def work(job: Job, console: Console, told: Callable[[Progress], None]) -> Progress:
    """Answer what is not answered yet; `told` hears how far it is, several times a second.

    Raises `DataError` for an input or an output that cannot be used, and KeyboardInterrupt where
    Ctrl-C broke it off.
    """
    given = Input.read(job.input)
    lines = given.lines
    _refuse(lines, job)
    text = source.open_text(job.checkpoint)
    with console.status("looking through the input"):
        needs = _look(lines, text, job)
    _refuse(lines, job)
    with Output(job.output, job.facts(given.fingerprint), fresh=job.fresh) as output:
        if output.renamed is not None:
            console.print(
                f"The old output is {output.renamed} now.", highlight=False, soft_wrap=True
            )
        if output.torn:
            console.print(
                f"The last line of {job.output} was torn: {output.torn} bytes were cut off.",
                highlight=False,
                soft_wrap=True,
            )
        todo = [index for index in lines if index not in output.done]
        progress = Progress(len(lines), len(lines) - len(todo), len(lines) - len(todo))
        if todo:
            model = source.open_model(job.checkpoint, dtype=job.sizes.dtype, packed=True)
            grammar = compiled(job.grammar, text, model)
            with _engine(model, job, needs, len(todo)) as engine:
                shift = Shift(engine, text, job, grammar, output, progress)
                shift.go(((index, lines[index]) for index in todo), told)
    return progress


class Shift:
    """One run of a job."""

    def __init__(
        self,
        engine: Engine,
        text: Text,
        job: Job,
        grammar: Compiled | None,
        output: Output,
        progress: Progress,
    ) -> None:
        self.engine, self.text, self.job, self.grammar = engine, text, job, grammar
        self.output, self.progress = output, progress
        self._live: dict[int, tuple[int, Line, Scribe]] = {}

    def go(
        self, waiting: Iterator[tuple[int, Line | Bad]], told: Callable[[Progress], None]
    ) -> None:
        """Answer the lines, a few more in the engine's hands than it answers side by side."""
        most = AHEAD * self.engine.config.sequences
        began = looked = time.monotonic()
        pace, more = Pace(), True
        try:
            with Interrupts() as interrupts:
                while more or self._live:
                    with interrupts.held():
                        while more and len(self._live) < most:
                            entry = next(waiting, None)
                            more = entry is not None
                            if entry is not None:
                                self._begin(*entry)
                        for event in self.engine.step():
                            self._hear(event)
                    now = time.monotonic()
                    if now - looked > LOOK_SECONDS:
                        looked = now
                        pace.add(self.progress.tokens, now)
                        each = pace.seconds_per_step()
                        self.progress.rate = 1 / each if each else 0.0
                        told(self.progress)
        finally:
            stats = self.engine.stats
            self.progress.reused = stats.reused_tokens / max(1, stats.prompt_tokens)
            self.progress.seconds = time.monotonic() - began
            told(self.progress)

    def _begin(self, index: int, line: Line | Bad) -> None:
        """Give a line to the engine."""
        if isinstance(line, Bad):
            self._fail(index, line)
            return
        settings = line.over(self.job.settings, index)
        try:
            request, scribe = settings.prepare(
                self.text, line.asks, tools=line.tools, grammar=self.grammar
            )
            number = self.engine.add(request)
        except FathomError as error:
            self._fail(index, Bad(line.id, str(error)))
        else:
            self._live[number] = index, line, scribe

    def _hear(self, event: Event) -> None:
        """Take in what the engine tells."""
        found = self._live.get(event.request)
        if found is None:
            return
        index, line, scribe = found
        self.progress.tokens += event.token is not None
        if event.error is not None:
            del self._live[event.request]
            self._fail(index, Bad(line.id, event.error))
            return
        scribe.hear(event)
        if event.stop_reason is not None:
            del self._live[event.request]
            self.output.add(record(index, line, scribe.answer()))
            self.progress.done += 1
        elif scribe.over:
            self.engine.cancel(event.request)

    def _fail(self, index: int, bad: Bad) -> None:
        """A line that has no answer."""
        if self.job.errors == "stop":
            raise DataError(
                f"Line {index + 1} of {self.job.input} cannot be answered: {bad.error} Mend it, or "
                f"give --errors skip."
            )
        self.output.add({"index": index, "id": bad.id, "error": bad.error})
        self.progress.done += 1
        self.progress.bad += 1


def record(index: int, line: Line, answer: Answer) -> dict[str, Any]:
    """One line of the output."""
    assert answer.usage is not None
    calls = [{"name": call.name, "arguments": call.arguments} for call in answer.tool_calls]
    return {
        "index": index,
        "id": line.id,
        "reasoning": answer.reasoning,
        "content": answer.content,
        "tool_calls": calls,
        "stop_reason": answer.stop_reason,
        "stop_string": answer.stop_string,
        "usage": answer.usage._asdict(),
        **({"meta": line.meta} if line.meta is not None else {}),
    }


def _look(lines: dict[int, Line | Bad], text: Text, job: Job) -> Needs:
    """Find out what every line needs; one that cannot be a prompt becomes a `Bad`."""
    needs = []
    for index, line in lines.items():
        if isinstance(line, Bad):
            continue
        try:
            settings = line.over(job.settings, index)
            request, _ = settings.prepare(text, line.asks, tools=line.tools)
            request.check(1 << 62, job.sizes.context)
        except FathomError as error:
            lines[index] = Bad(line.id, str(error).removesuffix("."))
        else:
            needs.append(len(request.ids) + request.max_tokens)
    return Needs(max(needs, default=16), sum(needs) // max(1, len(needs)))


def _refuse(lines: dict[int, Line | Bad], job: Job) -> None:
    """Raise `DataError` for the first line that cannot be answered, unless these are skipped."""
    bad = {index: line for index, line in lines.items() if isinstance(line, Bad)}
    if bad and job.errors == "stop":
        index, line = next(iter(bad.items()))
        more = f" {len(bad) - 1} more lines have faults." if len(bad) > 1 else ""
        raise DataError(
            f"Line {index + 1} of {job.input} cannot be answered: {line.error}.{more} Mend it, or "
            f"give --errors skip. Nothing was run."
        )


def _engine(model: Nemotron, job: Job, needs: Needs, count: int) -> Engine:
    """An engine with the room that these lines need."""
    sequences = min(job.sizes.sequences or group_size(model.config), count)
    context = max(16, job.sizes.context or needs.longest)
    return Engine(
        model,
        sequences=sequences,
        context=context,
        # Room for the longest line, and for as many usual ones as run and as are kept.
        kv_tokens=max(256, context + 256 + 2 * sequences * (needs.mean + 256)),
        drafts=job.sizes.drafts,
    )


def _weights(checkpoint: str) -> str | None:
    """What tells that the files of a local checkpoint have changed; None for a hub id."""
    folder = Path(checkpoint).expanduser()
    if not folder.is_dir():
        return None
    found = sorted(folder.rglob("*.safetensors"))
    told = [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in found]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


__all__ = ["Job", "Needs", "Progress", "Shift", "Sizes", "record", "work"]

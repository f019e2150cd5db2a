"""A training run as it goes, on a terminal or in a log.

Promise: it only listens; on a terminal one block is redrawn a few times a second, elsewhere a line
is printed every few seconds, so that logs stay short. The events are `train/report.py`'s.
"""

import itertools
import time
from types import TracebackType
from typing import Self, final

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from fathom.train.report import Metrics

BLOCKS = "▁▂▃▄▅▆▇█"
REDRAW_SECONDS = 0.25
LINE_SECONDS = 10.0


@final
class Display:
    """Shows one run; a `Report` to be given to `train`, and a context in which it may draw."""

    def __init__(self, console: Console, *, steps: int | None = None) -> None:
        """Draw on `console`; `steps` is the length of the run, None while it is not known."""
        self.console = console
        self.steps = steps
        self.live: Live | None = None
        self.values: dict[str, float] = {}
        self.heldout: dict[str, float] = {}
        self.losses: list[float] = []
        self.step = 0
        self.note = ""
        self._pace = Pace()
        self._drawn = 0.0

    def __enter__(self) -> Self:
        """Begin to draw, if the console can be redrawn."""
        if self.console.is_terminal:
            self.live = Live(
                self._block(), console=self.console, auto_refresh=False, transient=False
            )
            self.live.start(refresh=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen."""
        if self.live is not None:
            self.live.update(self._block(), refresh=True)
            self.live.stop()
            self.live = None

    def __call__(self, event: Metrics) -> None:
        """Take one event in and draw if it is time."""
        self.step = event.step
        if event.kind == "step":
            self.values = dict(event.values)
            self.losses.append(event.values["loss"])
            self._pace.add(event.step, time.monotonic())
        elif event.kind == "heldout":
            self.heldout = dict(event.values)
        elif event.kind == "planned":
            self.steps = int(event.values["steps"])
        elif event.kind == "resumed":
            self.note = f"goes on from step {event.step}"
        elif event.kind == "skipped":
            self.note = f"step {event.step} skipped: its loss or gradient was no number"
        elif event.kind == "finished":
            self.steps = event.step
        self._draw(urgent=event.kind not in ("step", "saved"))

    def left(self) -> float | None:
        """Seconds to the end at the present pace, once both are known."""
        rate = self._pace.seconds_per_step()
        return None if self.steps is None or rate is None else rate * (self.steps - self.step)

    def _draw(self, *, urgent: bool) -> None:
        """Redraw the block, or print a line."""
        now = time.monotonic()
        wait = REDRAW_SECONDS if self.live is not None else LINE_SECONDS
        if not urgent and now - self._drawn < wait:
            return
        self._drawn = now
        if self.live is not None:
            self.live.update(self._block(), refresh=True)
        else:
            self.console.print(self.line(), highlight=False, soft_wrap=True)

    def line(self) -> str:
        """The state in one line."""
        parts = [f"step {self.step}" + (f"/{self.steps}" if self.steps else "")]
        if self.values:
            parts.append(f"loss {self.values['loss']:.3f}")
            parts.append(f"{self.values['tokens_per_second']:,.0f} tokens/s")
        if self.heldout:
            parts.append(f"held-out {self.heldout['loss']:.3f}")
        left = self.left()
        if left is not None:
            parts.append(f"{clock(left)} left")
        return "  ".join([*parts, self.note]).rstrip()

    def _block(self) -> RenderableType:
        """The state as a block of a terminal."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", min_width=10)
        table.add_column()
        bar = ProgressBar(total=self.steps, completed=self.step, width=40, pulse=False)
        left = self.left()
        table.add_row("step", f"{self.step}{f' of {self.steps}' if self.steps else ''}")
        if self.steps:
            table.add_row("", bar)
            table.add_row("left", clock(left) if left is not None else "…")
        if self.values:
            table.add_row("loss", f"[bold]{self.values['loss']:.3f}[/bold]  {spark(self.losses)}")
            if "divergence" in self.values:
                table.add_row("from teacher", f"{self.values['divergence']:.4f} nats")
            mtp = numbered(self.values, "mtp/")
            if mtp:
                table.add_row("MTP losses", "  ".join(f"{value:.3f}" for value in mtp))
            loads = numbered(self.values, "maxvio/")
            if loads:
                table.add_row("busiest", f"{loads_bar(loads)}  {max(loads):.1f} times even load")
            table.add_row("tokens/s", f"{self.values['tokens_per_second']:,.0f}")
        if self.heldout:
            shares = numbered(self.heldout, "acceptance/")
            told = "  ".join(f"{100 * share:.0f} %" for share in shares)
            accepted = f"  drafts accepted {told}" if told else ""
            table.add_row("held out", f"{self.heldout['loss']:.3f}{accepted}")
            if "divergence" in self.heldout:
                apart = self.heldout["divergence"]
                table.add_row("", f"{apart:.4f} nats from the teacher")
        if self.note:
            table.add_row("", self.note)
        return table


class Pace:
    """How fast steps come lately."""

    def __init__(self, window: int = 20) -> None:
        """Look at the last `window` steps."""
        self.window = window
        self.marks: list[tuple[int, float]] = []

    def add(self, step: int, now: float) -> None:
        """Note that `step` was complete at `now` seconds."""
        self.marks = [*self.marks, (step, now)][-self.window :]

    def seconds_per_step(self) -> float | None:
        """Seconds a step takes; None before two were seen."""
        if len(self.marks) < 2 or self.marks[-1][0] <= self.marks[0][0]:
            return None
        return (self.marks[-1][1] - self.marks[0][1]) / (self.marks[-1][0] - self.marks[0][0])


def numbered(values: dict[str, float], prefix: str) -> list[float]:
    """The values called prefix0, prefix1... in order."""
    found = [
        (name.removeprefix(prefix), v) for name, v in values.items() if name.startswith(prefix)
    ]
    return [value for _, value in sorted((int(n), v) for n, v in found if n.isdigit())]


def spark(values: list[float], width: int = 32) -> str:
    """A row of at most `width` blocks that shows how values moved; each block is a mean."""
    finite = [value for value in values if value == value and abs(value) != float("inf")]
    if len(finite) < 2:
        return ""
    count = min(width, len(finite))
    edges = [len(finite) * i // count for i in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(edges)]
    low, high = min(means), max(means)
    span = high - low or 1.0
    return "".join(BLOCKS[round((mean - low) / span * (len(BLOCKS) - 1))] for mean in means)


def loads_bar(loads: list[float]) -> str:
    """One block a router: low where its busiest expert has an even load, full from 4 times that."""
    return "".join(BLOCKS[min(7, max(0, round((load - 1) / 3 * 7)))] for load in loads)


def clock(seconds: float) -> str:
    """Seconds as a clock shows them: 0:07, 12:30, 1:02:03."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


__all__ = ["Display", "Pace", "clock", "loads_bar", "numbered", "spark"]

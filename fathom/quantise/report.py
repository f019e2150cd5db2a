"""What quantising came to, matrix by matrix: as JSON, as rows of a table, as a picture.

Promise: nothing is drawn or summed that was not measured; a number that was not asked for is null.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fathom.checkpoint.atomic import write_text
from fathom.checkpoint.formats import Stored
from fathom.errors import MissingError
from fathom.quantise.recipes import Part

TABLE, PICTURE = "quantisation.json", "quantisation.png"
_COLOURS: dict[Stored, str] = {"nvfp4": "C1", "fp8": "C0", "plain": "C7"}


@dataclass(frozen=True)
class Row:
    """One matrix, or those of all experts of a layer."""

    matrix: str
    """Our name."""
    part: Part
    kind: Stored
    weights: int
    bytes: int
    """What the weights take in the file."""
    snr: float | None
    """Squares of the weights over squares of their errors, in decibels; None: nothing is lost."""
    divergence: float | None
    """In nats, when this matrix (queries, keys and values: all three) is rounded alone."""


@dataclass(frozen=True)
class Report:
    """A model's rows and its sums."""

    recipe: str
    method: str
    rows: tuple[Row, ...]
    parameters: int
    divergence: float | None
    """Of the whole model, in nats; None: there were no texts."""

    @property
    def bits(self) -> float:
        """Bits a weight, over all of the model; what is no matrix has 16."""
        inside = sum(row.weights for row in self.rows)
        total = 8 * sum(row.bytes for row in self.rows) + 16 * (self.parameters - inside)
        return total / self.parameters

    def write(self, folder: Path) -> None:
        """Write `quantisation.json` and `quantisation.png` into a folder."""
        told = {**asdict(self), "bits": self.bits}
        write_text(folder / TABLE, json.dumps(told, indent=1) + "\n")
        draw(self, folder / PICTURE)


def snr(signal: float, noise: float) -> float | None:
    """A ratio of sums of squares in decibels; None where nothing is lost."""
    return None if noise == 0 else 10 * math.log10(signal / noise) if signal else None


def cells(report: Report) -> list[tuple[str, ...]]:
    """The rows as words: matrix, format, MB, SNR, divergence."""
    found: list[tuple[str, ...]] = []
    for row in report.rows:
        lost = "" if row.snr is None else f"{row.snr:.1f}"
        kl = "" if row.divergence is None else f"{row.divergence:.2e}"
        kind = "bf16" if row.kind == "plain" else row.kind
        found.append((row.matrix, kind, f"{row.bytes / 1e6:,.3f}", lost, kl))
    return found


def draw(report: Report, path: Path) -> None:
    """Draw signal to noise, and divergence where it was measured, over the matrices.

    Raises `MissingError` if matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingError("Plots need the package matplotlib: pip install matplotlib.") from None
    measured = any(row.divergence is not None for row in report.rows)
    figure = Figure(figsize=(9, 6 if measured else 3.5), dpi=150, layout="constrained")
    panels = figure.subplots(1 + measured, 1, sharex=True, squeeze=False)[:, 0]
    _bars(panels[0], report.rows, [row.snr for row in report.rows])
    panels[0].set_ylabel("signal to noise, dB")
    if measured:
        _bars(panels[1], report.rows, [row.divergence or None for row in report.rows])
        panels[1].set_yscale("log")
        panels[1].set_ylabel("divergence alone, nats")
    panels[0].legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    panels[-1].set_xlabel("matrix, from the first block to the last")
    figure.savefig(path)


def _bars(axes, rows: Sequence[Row], values: Sequence[float | None]) -> None:  # type: ignore[no-untyped-def]
    """One bar a matrix, coloured by its format."""
    for kind, colour in _COLOURS.items():
        places = [i for i, row in enumerate(rows) if row.kind == kind and values[i] is not None]
        if places or kind != "plain":
            heights = [values[i] for i in places]
            axes.bar(places, heights, color=colour, label="bf16" if kind == "plain" else kind)
    axes.grid(alpha=0.3)


__all__ = ["PICTURE", "TABLE", "Report", "Row", "cells", "draw", "snr"]

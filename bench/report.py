"""How a benchmark's results are printed and written.

Promise: every file has the same form, `{"machine", "command", "rows"}`; figures are medians, a
ratio above one means that Fathom is better, and an absent figure is null, never left out.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fathom import machine


@dataclass(frozen=True)
class Row:
    """One piece of work, Fathom beside a peer and a bound."""

    work: str
    unit: str
    fathom: float | None
    peer: float | None
    peer_name: str | None
    ratio: float | None
    bound: float | None
    of_bound: float | None
    runs: int


def machine_facts() -> dict[str, Any]:
    """The machine, as every result file names it."""
    facts = machine.describe()
    return {
        "cpu": facts.processor,
        "features": list(facts.features),
        "cores": facts.cores,
        "threads": facts.threads,
        "torch": facts.torch,
    }


def _shown(value: float | None, digits: int | None = None) -> str:
    """A figure; without `digits` one with three digits or more."""
    if value is None:
        return "-"
    if digits is None:
        digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def print_rows(rows: Sequence[Row]) -> None:
    """Print rows as a table's lines."""
    for row in rows:
        print(
            f"{row.work:58} {_shown(row.fathom):>9} {row.unit}  {row.peer_name or '-'} "
            f"{_shown(row.peer)}  ratio {_shown(row.ratio, 2)}  bound {_shown(row.bound)}  "
            f"of bound {_shown(row.of_bound, 2)}  ({row.runs} runs)",
            flush=True,
        )


def write(path: Path, facts: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write the rows with the machine and the command that made them."""
    command = "python " + " ".join(sys.argv)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"machine": facts, "command": command, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(found, indent=1) + "\n")

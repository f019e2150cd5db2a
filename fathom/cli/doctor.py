"""`fathom doctor`: what this machine is, how fast it is, and which code will run on it.

Promise: rates are measured now, not looked up; of every operation it says which backend is chosen
and, in the backend's own words, why not the others.
"""

import json
import sys
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from fathom import __version__, machine
from fathom.machine import Machine, Rates
from fathom.ops import attend, conv, dispatch, draw, experts, linear, native, norm, nvfp4, ssd

OPERATIONS = (
    *(room.OPERATION for room in (ssd, conv, attend, experts, linear, norm, draw, nvfp4)),
    experts.ROUTE,
    linear.PACKED,
    experts.PACKED,
)
"""Every operation that has backends."""


@dataclass(frozen=True)
class Findings:
    """Everything that doctor prints."""

    version: str
    """Of Fathom."""
    machine: Machine
    """What the machine is."""
    rates: Rates
    """What it did when measured."""
    arithmetic: str
    """What products should run in, fp32 or bf16."""
    tuned: tuple[str, ...]
    """What was set on this machine."""
    tier: str | None
    """The tier of native kernels in use; None: there are none."""
    tiers: tuple[str, ...]
    """The tiers that were built and can run here."""
    backends: dict[str, dict[str, dict[str, str]]]
    """Use -> operation -> backend -> "chosen", "not needed", or why not."""
    lacks: tuple[str, ...]
    """What this machine cannot do, in sentences."""

    @property
    def reason(self) -> str:
        """Why this arithmetic."""
        ratio = self.rates.bf16 / self.rates.fp32
        return (
            f"bf16 products run at {self.rates.bf16:.3g} GFLOP/s, {ratio:.2g} times the "
            f"{self.rates.fp32:.3g} of fp32"
        )


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine can do and which code it will run."""
    found = examine()
    if as_json:
        print(json.dumps({**asdict(found), "reason": found.reason}, indent=2))
    else:
        show(found, Console())


def examine(seconds: float = 1.2) -> Findings:
    """Tune, describe and measure this machine; `seconds` of measuring."""
    tuned = machine.tune()
    here = machine.describe()
    rates = machine.measure(seconds)
    return Findings(
        version=__version__,
        machine=here,
        rates=rates,
        arithmetic=machine.fast_arithmetic(rates),
        tuned=tuple(tuned),
        tier=native.tier(),
        tiers=native.runnable(),
        backends=backends("cuda" if here.gpus else "cpu"),
        lacks=lacks(here, sys.platform),
    )


def backends(device: str) -> dict[str, dict[str, dict[str, str]]]:
    """What every operation runs on and why not otherwise, in training and in generation."""
    cases = {
        "training": dispatch.Case(device, torch.float32, True),
        "generation": dispatch.Case(device, torch.float32, False),
        "generation, bf16 weights": dispatch.Case(device, torch.bfloat16, False),
    }
    return {
        use: {operation.name: dict(operation.explain(case)) for operation in OPERATIONS}
        for use, case in cases.items()
    }


def lacks(here: Machine, platform: str) -> tuple[str, ...]:
    """What a machine cannot do; `platform` as in sys.platform."""
    found = []
    if platform != "linux":
        found.append(
            f"On {platform} memory free to use, the container's limits and the processor's "
            f"features are unknown, and freed memory is not kept: only Linux is tested."
        )
    elif "aarch64" in here.system:
        found.append(
            "On aarch64 the processor's name is unknown, and no kernel has been tuned for it: "
            "operations run on the portable ones."
        )
    if (reason := native.why_not(dispatch.Case("cpu", torch.float32, False))) is not None:
        found.append(f"No native kernels: {reason}.")
    if not here.gpus:
        found.append("No GPU that torch can use: everything runs on the processor.")
    if platform == "linux" and not here.features:
        found.append("The processor lists none of the features that fast kernels choose by.")
    return tuple(found)


def show(found: Findings, console: Console) -> None:
    """Print the findings for people."""
    here, rates = found.machine, found.rates
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim")
    facts.add_column()
    facts.add_row("fathom", f"{found.version}, Python {here.python}, torch {here.torch}")
    facts.add_row("system", here.system)
    facts.add_row("processor", f"{here.processor} ({', '.join(here.features) or 'no features'})")
    facts.add_row(
        "cores", f"{here.cores}, usable {here.usable:g}, torch computes with {here.threads} threads"
    )
    facts.add_row("memory", f"{_gigabytes(here.memory)}, free to use {_gigabytes(here.available)}")
    facts.add_row("GPUs", ", ".join(here.gpus) or "none")
    facts.add_row("products", f"fp32 {rates.fp32:.3g} GFLOP/s, bf16 {rates.bf16:.3g} GFLOP/s")
    facts.add_row("memory rate", f"reading {rates.read:.1f} GB/s, copying {rates.copy:.1f} GB/s")
    others = [name for name in found.tiers if name != found.tier]
    kernels = (
        f"{found.tier} (also here: {', '.join(others) or 'no other'})" if found.tier else "none"
    )
    facts.add_row("native kernels", kernels)
    facts.add_row("arithmetic", f"{found.arithmetic}: {found.reason}")
    console.print(facts)
    for use, operations in _alike(found.backends).items():
        _show_backends(use, operations, console)
    console.print()
    for sentence in (*found.tuned, *found.lacks):
        console.print(f"· {sentence}", highlight=False)


def _alike(backends: dict[str, Any]) -> dict[str, Any]:
    """The same choices with the names of uses that agree joined."""
    uses: dict[str, list[str]] = {}
    for use, operations in backends.items():
        uses.setdefault(json.dumps(operations), []).append(use)
    return {"; ".join(names): json.loads(operations) for operations, names in uses.items()}


def _show_backends(use: str, operations: dict[str, Any], console: Console) -> None:
    """Print one table of choices."""
    console.print(f"\n[bold]{use}[/bold]")
    table = Table(box=None, pad_edge=False)
    table.add_column("operation", style="dim")
    table.add_column("runs on")
    table.add_column("not on")
    for operation, answers in operations.items():
        chosen = [name for name, answer in answers.items() if answer == "chosen"]
        others = [f"{name}: {why}" for name, why in answers.items() if why != "chosen"]
        table.add_row(operation, ", ".join(chosen), "; ".join(others))
    console.print(table)


def _gigabytes(value: int | None) -> str:
    """Bytes in GiB, or "unknown"."""
    return machine.UNKNOWN if value is None else f"{value / 2**30:.1f} GiB"


__all__ = ["OPERATIONS", "Findings", "backends", "doctor", "examine", "lacks", "show"]

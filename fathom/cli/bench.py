"""`fathom bench`: how fast this machine runs a model, beside what it could do at most.

Promise: the model is served as `generate` and `chat` serve it; the bounds are measured in the same
minute (bytes at the reading rate, FLOP at the faster product rate). A size without a checkpoint
gets random weights. The comparison with other programs is `bench/` in the source tree.
"""

import json
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fathom import machine
from fathom.cli import source
from fathom.errors import ConfigError, RequestError
from fathom.machine import Rates
from fathom.model.nemotron import Nemotron
from fathom.model.precision import TABLES, lay
from fathom.model.sizes import SIZES, size
from fathom.model.timing import prefill_seconds, step_seconds, warm_step
from fathom.model.traffic import forward_flop, step_bytes
from fathom.ops import native


@dataclass(frozen=True)
class Pace:
    """One piece of work, measured."""

    work: str
    tokens_per_second: float
    """Median."""
    bound: float
    """Tokens a second that the machine's rates allow."""
    runs: int

    @property
    def share(self) -> float:
        """Of the bound."""
        return self.tokens_per_second / self.bound


def bench(
    model: Annotated[
        str, typer.Argument(help=f"A folder, a hub id, or a size ({', '.join(SIZES)}).")
    ],
    prefill: Annotated[str, typer.Option(help="Prompt lengths.")] = "128,512",
    sequences: Annotated[str, typer.Option(help="Sequences decoded side by side.")] = "1,4,16",
    context: Annotated[str, typer.Option(help="Tokens of context behind them.")] = "0",
    steps: Annotated[int, typer.Option(help="Decode steps of a run.")] = 30,
    runs: Annotated[int, typer.Option(help="Runs of each work; their median counts.")] = 3,
    precision: Annotated[str, typer.Option(help="stored, or w4a8: int8 rows on NVFP4.")] = "stored",
    dtype: Annotated[str, typer.Option(help="Random weights' type: bf16 or fp32.")] = "bf16",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure this machine's tokens a second for a model."""
    lengths, batches, pasts = (_numbers(*x) for x in _lists(prefill, sequences, context))
    if steps < 1 or runs < 1:
        raise RequestError(f"--steps and --runs must be 1 or more; got {steps} and {runs}.")
    machine.tune()
    served = _served(model, dtype)
    if precision != "stored":
        if precision not in TABLES:
            raise ConfigError(f"There is no precision {precision!r}; known are stored and w4a8.")
        lay(served, precision)
    rates = machine.measure()
    console = Console(stderr=True)
    found = []
    for length in lengths:
        with console.status(f"prefill {length}"):
            found.append(_prefill(served, length, runs, rates))
    for past in pasts:
        for batch in batches:
            with console.status(f"decode {batch} at {past}"):
                found.append(_decode(served, batch, past, steps, runs, rates))
    if as_json:
        facts = {"rates": asdict(rates), "tier": native.tier(), "precision": precision}
        rows = [{**asdict(pace), "of_bound": pace.share} for pace in found]
        print(json.dumps({"model": served.config.name, **facts, "rows": rows}, indent=2))
    else:
        _show(found, served, rates, Console())


def _lists(*options: str) -> list[tuple[str, str, int]]:
    """The options that are lists, with their names and least values."""
    names = ("--prefill", "--sequences", "--context")
    return list(zip(names, options, (1, 1, 0), strict=True))


def _numbers(name: str, text: str, least: int) -> list[int]:
    """The numbers of an option such as 1,4,16; an empty one has none."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdigit() and int(part) >= least for part in parts):
        raise RequestError(f"{name} takes numbers from {least} on, such as 1,4,16; got {text!r}.")
    return [int(part) for part in parts]


def _served(name: str, dtype: str) -> Nemotron:
    """The checkpoint, or the size with random weights, packed."""
    if name not in SIZES:
        return source.open_model(name, packed=True)
    kind, config = source.dtype_of(dtype) or torch.bfloat16, size(name)
    needed, free = config.parameters * kind.itemsize, machine.describe().available
    if free is not None and needed > 0.9 * free:
        raise RequestError(
            f"{name} with random {dtype} weights takes {needed / 2**30:.1f} GiB, "
            f"{free / 2**30:.1f} GiB are free. Take a smaller size or a quantised checkpoint."
        )
    return Nemotron(config, dtype=kind).eval().pack()


def _prefill(model: Nemotron, length: int, runs: int, rates: Rates) -> Pace:
    """Read a random prompt, the last row becomes logits."""
    ids_SN = _random(model, 1, length)
    seconds = _median(lambda: prefill_seconds(model, ids_SN), runs)
    bound = length * max(rates.fp32, rates.bf16) * 1e9 / forward_flop(model.config, 1, length, 1)
    return Pace(f"prefill {length}", length / seconds, bound, runs)


def _decode(model: Nemotron, batch: int, past: int, steps: int, runs: int, rates: Rates) -> Pace:
    """Steps behind a context of random states, keys and values."""
    step = warm_step(model, batch, past, (runs + 1) * steps)
    tokens = _random(model, steps, batch).tolist()
    seconds = _median(lambda: step_seconds(step, tokens), runs)
    bound = batch * rates.read * 1e9 / step_bytes(model, batch, past)
    return Pace(f"decode {batch} at {past}", batch * steps / seconds, bound, runs)


def _random(model: Nemotron, *shape: int) -> Tensor:
    """The same random tokens each time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, model.config.vocab, shape, generator=generator)


def _median(run: Callable[[], float], runs: int) -> float:
    """Median seconds of some runs; one before them warms up."""
    run()
    return statistics.median(run() for _ in range(runs))


def _show(found: list[Pace], model: Nemotron, rates: Rates, console: Console) -> None:
    """Print the figures for people."""
    table = Table(box=None, pad_edge=False)
    for column in ("work", "tokens/s", "bound", "of it"):
        table.add_column(column, justify="left" if column == "work" else "right")
    for pace in found:
        table.add_row(
            pace.work,
            f"{pace.tokens_per_second:,.1f}",
            f"{pace.bound:,.1f}",
            f"{100 * pace.share:.0f} %",
        )
    console.print(
        f"{model.config.name}, native tier {native.tier() or 'none'}; reading {rates.read:.1f} "
        f"GB/s, fp32 {rates.fp32:.0f} and bf16 {rates.bf16:.0f} GFLOP/s",
        highlight=False,
    )
    console.print(table)


__all__ = ["Pace", "bench"]

"""What training in four bits costs in loss: the same runs in BF16 and in NVFP4, side by side.

Promise: a run is `fathom train` with one recipe and a few overrides, so whoever reads the table can
make each line of it again; runs of one seed see the same batches in the same order, so what differs
is the arithmetic. A run that was stopped goes on; one that has ended is not made again. The gap is
that of the mean training loss over the last tenth of the steps, paired by seed, with the standard
error of its mean. Between seeds of few runs an error can be small by chance: it is printed beside
the spread of the losses themselves.

    python studies/nvfp4/gap.py train --out runs/nvfp4 --jobs 2
    python studies/nvfp4/gap.py table --out runs/nvfp4
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from fathom.config.load import load_recipe
from fathom.model.precision import share
from fathom.model.sizes import size
from fathom.train.report import read

HERE = Path(__file__).parent
LAST = 0.1
"""Share of the steps whose mean loss is compared."""

VARIANTS: Mapping[str, Sequence[str]] = {
    "bf16": ("precision=nano-bf16",),
    "nvfp4": (),
    "everything": ('precision={"*"="nvfp4"}',),
    "no transform": ("nvfp4.transform=false",),
    "no stochastic rounding": ("nvfp4.stochastic=false",),
    "no tiles": ("nvfp4.tiles=false",),
}
"""Overrides of the recipe, whose own precision is the family's in four bits."""


@dataclass(frozen=True)
class Gap:
    """One variant beside BF16."""

    variant: str
    seeds: int
    loss: float
    """Mean over the last tenth of the steps and the seeds, nats a token."""
    spread: float
    """Standard deviation of that between seeds."""
    gap: float
    """Mean over the seeds of loss / loss in BF16 - 1."""
    error: float
    """Standard error of that mean; not a number for one seed."""
    share: float
    """Of the model's linear multiplications, those whose three products are in NVFP4."""


def train(out: Path, recipe: Path, variants: Sequence[str], seeds: Sequence[int], jobs: int) -> int:
    """Make every run that has not ended, `jobs` at a time; how many failed."""
    environment = dict(os.environ)
    if jobs > 1:
        environment |= {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}

    def run(one: tuple[str, int]) -> int:
        variant, seed = one
        folder = place(out, recipe, variant, seed)
        if ended(folder):
            return 0
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-c", "from fathom.cli.main import run; run()", "train"]
        command += [str(recipe), *VARIANTS[variant], f"seed={seed}", "--out", str(folder)]
        with (folder.parent / f"{folder.name}.log").open("a") as log:
            code = subprocess.run(command, stdout=log, stderr=log, env=environment).returncode
        print(f"{folder.name}: {'ended' if code == 0 else f'stopped with {code}'}", flush=True)
        return code

    with ThreadPoolExecutor(jobs) as pool:
        codes = list(pool.map(run, [(v, s) for s in seeds for v in variants]))
    return sum(code != 0 for code in codes)


def place(out: Path, recipe: Path, variant: str, seed: int) -> Path:
    """The folder of one run."""
    return out / f"{recipe.stem}-{variant.replace(' ', '-')}-{seed}"


def history(folder: Path) -> list[dict[str, float]]:
    """The steps of a run, in order; none if it has not begun."""
    path = folder / "metrics.jsonl"
    return [event for event in read(path) if event["kind"] == "step"] if path.exists() else []


def ended(folder: Path) -> bool:
    """Whether a run has come to its end."""
    path = folder / "metrics.jsonl"
    return path.exists() and any(event["kind"] == "finished" for event in read(path))


def final_loss(folder: Path) -> float:
    """Mean next-token loss over the last tenth of a run's steps."""
    losses = [step["loss"] for step in history(folder)]
    return statistics.fmean(losses[-max(1, round(LAST * len(losses))) :])


def gaps(out: Path, recipe: Path) -> list[Gap]:
    """Every variant beside BF16, over the seeds that have ended in both."""
    config = load_recipe(recipe)
    shape = size(config.model) if isinstance(config.model, str) else config.model
    found = []
    for variant, overrides in VARIANTS.items():
        pairs = []
        for seed in range(100):
            mine, other = (place(out, recipe, name, seed) for name in (variant, "bf16"))
            if ended(mine) and ended(other):
                pairs.append((final_loss(mine), final_loss(other)))
        if not pairs:
            continue
        losses, relative = [a for a, _ in pairs], [a / b - 1 for a, b in pairs]
        several = len(pairs) > 1
        table = load_recipe(recipe, list(overrides)).precision
        found.append(
            Gap(
                variant,
                len(pairs),
                statistics.fmean(losses),
                statistics.stdev(losses) if several else math.nan,
                statistics.fmean(relative),
                statistics.stdev(relative) / math.sqrt(len(pairs)) if several else math.nan,
                share(shape, table),
            )
        )
    return found


def table(found: Sequence[Gap]) -> str:
    """The gaps in Markdown."""
    lines = [
        "| variant | seeds | loss, last tenth | between seeds | gap to BF16 | standard error "
        "| upper end, 95 % | multiplications in NVFP4 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.variant} | {one.seeds} | {one.loss:.4f} | {one.spread:.4f} | {one.gap:+.2%} "
        f"| {one.error:.2%} | {one.gap + _quantile(one.seeds) * one.error:+.2%} | {one.share:.0%} |"
        for one in found
    ]
    return "\n".join(lines)


def _quantile(seeds: int) -> float:
    """Student's t of 97.5 % for a mean of so many."""
    known = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36}
    return known.get(seeds, math.nan if seeds < 2 else 2.31)


def draw(out: Path, recipe: Path, picture: Path) -> None:
    """The losses of all runs, smoothed, and their distance from BF16 of the same seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, variant in enumerate(VARIANTS):
        for seed in range(100):
            mine, other = (history(place(out, recipe, v, seed)) for v in (variant, "bf16"))
            if not mine:
                continue
            steps, own = _smooth(mine)
            label = None if left.get_legend_handles_labels()[1].count(variant) else variant
            left.plot(steps, own, color=f"C{colour}", lw=0.8, label=label)
            if variant != "bf16" and other:
                theirs = _smooth(other)[1]
                apart = [100 * (a / b - 1) for a, b in zip(own, theirs, strict=False)]
                right.plot(steps[: len(apart)], apart, color=f"C{colour}", lw=0.8)
    left.set(xlabel="step", ylabel="loss, mean of 50 steps, nats a token", yscale="log")
    right.set(xlabel="step", ylabel="distance from BF16, same seed, %")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    left.legend()
    figure.savefig(picture)


def _smooth(
    steps: Sequence[Mapping[str, float]], width: int = 50
) -> tuple[list[float], list[float]]:
    """Steps, and the mean loss of the `width` steps up to each."""
    losses = [step["loss"] for step in steps]
    ends = range(width, len(losses) + 1, 5)
    return [steps[end - 1]["step"] for end in ends], [
        statistics.fmean(losses[end - width : end]) for end in ends
    ]


def main() -> None:
    """Train, or print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("train", "table"))
    parser.add_argument("--out", type=Path, default=Path("runs/nvfp4"))
    parser.add_argument("--recipe", type=Path, default=HERE / "pocket.toml")
    parser.add_argument("--variants", nargs="+", default=["bf16", "nvfp4"], choices=list(VARIANTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--json", type=Path, help="write the table's numbers here")
    parser.add_argument("--picture", type=Path, help="draw the losses here")
    options = parser.parse_args()
    if options.what == "train":
        options.out.mkdir(parents=True, exist_ok=True)
        raise SystemExit(
            train(options.out, options.recipe, options.variants, options.seeds, options.jobs)
        )
    found = gaps(options.out, options.recipe)
    print(table(found))
    if options.json is not None:
        rows = [one.__dict__ for one in found]
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    if options.picture is not None:
        draw(options.out, options.recipe, options.picture)


if __name__ == "__main__":
    main()

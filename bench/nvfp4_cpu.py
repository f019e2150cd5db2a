"""What training in four bits costs on a machine without four-bit products: A B A B on the CPU.

Promise: a turn is a process of its own that times forward, backward and the optimizer's step of one
precision on random tokens and weights. What NVFP4 is held against is the faster of fp32 and BF16 in
the same run, so a ratio of 0.63 means 1.6 times the step.

    python bench/nvfp4_cpu.py --json runs/bench/nvfp4.json
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from report import Row, machine_facts, print_rows, write
from torch.nn import functional as F
from workloads import WORKLOADS

from fathom import machine
from fathom.model.nemotron import Nemotron
from fathom.model.precision import lay, share
from fathom.ops.layout import Layout
from fathom.ops.nvfp4 import Rounding

WORKS = {
    "pocket-like, 8 x 256": ("pocket-like", 8, 256, 8),
    "tiny-31m, 1 x 2048": ("tiny-31m", 1, 2048, 3),
}
"""Work -> model, documents, their length, counted steps a turn."""

PLAIN = ("fp32", "bf16")
FOUR: dict[str, str | dict[str, str]] = {
    "super-nvfp4": "super-nvfp4",
    "every block": {"base": "super-nvfp4", "blocks.*": "nvfp4"},
    "every matrix": {"*": "nvfp4"},
}
"""Precisions that are timed; attention's matrices too in the last two."""


def worker(precision: str, name: str, documents: int, length: int, steps: int) -> None:
    """Warm up, time `steps` steps, print their seconds as JSON."""
    machine.tune()
    config, rounding = WORKLOADS[name], Rounding(0)
    model = Nemotron(config, seed=0)
    lay(model, FOUR.get(precision, precision), rounding)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    generator = torch.Generator().manual_seed(0)
    tokens_T = torch.randint(0, config.vocab, (documents * length,), generator=generator)
    layout = Layout.of([length] * documents)
    seconds = []
    for step in range(steps + 1):
        begin = time.perf_counter()
        rounding.move(step, 0)
        logits_TV = model.logits(model(tokens_T, layout))
        F.cross_entropy(logits_TV, tokens_T.roll(-1)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begin)
    print(json.dumps(seconds[1:]))


def turn(precision: str, case: tuple[str, int, int, int]) -> list[float]:
    """One process of one precision."""
    command = [sys.executable, __file__, "--worker", precision, *map(str, case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{precision} failed:\n{done.stderr[-2000:]}")
    found: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(work: str, turns: int) -> list[Row]:
    """All precisions by turns over one workload."""
    name, documents, length, _ = WORKS[work]
    times: dict[str, list[float]] = {precision: [] for precision in (*PLAIN, *FOUR)}
    for _ in range(turns):
        for precision, seconds in times.items():
            seconds += turn(precision, WORKS[work])
    speed = {p: documents * length / statistics.median(found) for p, found in times.items()}
    fast = max(PLAIN, key=lambda precision: speed[precision])
    return [
        Row(
            work=f"training step: {work}, {precision} "
            f"({share(WORKLOADS[name], table):.0%} of multiplications)",
            unit="tok/s",
            fathom=speed[precision],
            peer=speed[fast],
            peer_name=f"unrounded, {fast}",
            ratio=speed[precision] / speed[fast],
            bound=None,
            of_bound=None,
            runs=len(times[precision]),
        )
        for precision, table in FOUR.items()
    ]


def main() -> None:
    """Run every workload and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="workloads whose name holds this")
    parser.add_argument("--turns", type=int, default=3, help="processes of each precision")
    parser.add_argument("--json", type=Path, help="write the table here too")
    options = parser.parse_args()
    rows: list[Row] = []
    for work in WORKS:
        if options.only in work:
            found = compare(work, options.turns)
            print_rows(found)
            rows += found
    if options.json:
        write(options.json, machine_facts(), rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        precision, name, documents, length, steps = sys.argv[2:]
        worker(precision, name, int(documents), int(length), int(steps))
    else:
        main()

"""Each native operation on the CPU beside PyTorch's own backend of it and beside its bound.

Both run in this process, A B A B; a figure is the median of the turns. An operation is bound by
memory or by arithmetic, whichever takes longer at the rates measured in the same run: GB/s or
GFLOP/s are shown accordingly, the bound being the machine's. Operations without a native backend
show PyTorch's figures alone.

    python bench/cpu_ops.py --json runs/bench/cpu_ops.json
    python bench/cpu_ops.py --only "experts bench-1b" --turns 9
"""

import argparse
import statistics
import time
from pathlib import Path

import ceiling
import torch
from ceiling import Ceiling
from op_calls import Call
from op_cases import OpCase, cases
from report import Row, machine_facts, print_rows, write

from fathom import machine
from fathom.ops import native

SHORT = 0.05
"""Seconds that one turn lasts at least."""


def seconds(call: Call) -> float:
    """Seconds of one call, over as many as fill a turn."""
    count, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < SHORT:
        call()
        count += 1
    return spent / count


def measured(case: OpCase, rates: Ceiling, turns: int) -> Row:
    """A B A B over one case."""
    found: dict[str, list[float]] = {"ours": [], "theirs": []}
    with torch.inference_mode(not case.training):
        ours, theirs = case.make()
        for _ in range(turns + 1):
            for name, call in (("ours", ours), ("theirs", theirs)):
                if call is not None:
                    found[name].append(seconds(call))
    # The first turn warms up.
    middle = {name: statistics.median(runs[1:]) for name, runs in found.items() if runs}
    return row(case, rates, middle.get("ours"), middle.get("theirs"), turns)


def row(case: OpCase, rates: Ceiling, ours: float | None, theirs: float | None, turns: int) -> Row:
    """Seconds of a call as a row: GB/s where memory is the bound, else GFLOP/s."""
    flops = max(rates.float_flops, rates.int8_flops) if case.int8 else rates.float_flops
    by_memory = case.bytes / rates.read >= case.flop / flops
    amount, most = (case.bytes, rates.read) if by_memory else (case.flop, flops)
    rate = {name: amount / one / 1e9 if one else None for name, one in (("a", ours), ("b", theirs))}
    return Row(
        work=case.name,
        unit="GB/s" if by_memory else "GFLOP/s",
        fathom=rate["a"],
        peer=rate["b"],
        peer_name="PyTorch (eager backend)" if theirs else None,
        ratio=theirs / ours if ours and theirs else None,
        bound=most / 1e9,
        of_bound=amount / ours / most if ours else None,
        runs=turns,
    )


def main() -> None:
    """Measure the cases asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", default=[""], help="cases whose name holds one of these"
    )
    parser.add_argument("--turns", type=int, default=5, help="turns of each backend")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="write the table here too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine.tune()
    facts = machine_facts()
    facts["tier"] = native.tier()
    print("\n".join(f"# {name}: {value}" for name, value in facts.items()))
    rows = []
    for case in cases():
        if any(part in case.name for part in options.only):
            rows.append(measured(case, ceiling.measure(), options.turns))
            print_rows(rows[-1:])
    if options.json:
        write(options.json, facts, rows)


if __name__ == "__main__":
    main()

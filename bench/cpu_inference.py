"""Prefill and decode on the CPU: Fathom beside transformers and llama.cpp, A B A B.

Every turn is a process of its own; all engines hold the same weights, use the same number of
threads and get the same work. Ratios above one mean that Fathom is faster. A row's bound is what
the machine could do at most by what it did while this ran: bytes of a decode step over its read
bandwidth, FLOP of a prefill over its faster products (`bounds.py`). llama.cpp really reads contexts
of 8k and 32k, which takes minutes; choose works with --only and engines with --engines.

    python bench/models.py bench-1b runs/bench/bench-1b
    python bench/to_llama.py runs/bench/bench-1b --source LLAMA --build LLAMA/build \
        --formats bf16 q8_0 q4_0
    python bench/cpu_inference.py --models runs/bench --llama LLAMA/build --json runs/bench/cpu.json
    python bench/cpu_inference.py --only "pocket-like: decode 64" --engines Fathom F32 --turns 5
"""

import argparse
import importlib
import json
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path

import ceiling
import llama_worker
import torch
from inference_cases import CASES, Case, Contender, works
from inference_rows import Measured, context_rows, rows_of
from report import Row, machine_facts, print_rows, write
from workloads import WORKLOADS
from works import DEADLINE, Work, timed

from fathom.errors import FathomError


def worker(engine: str, folder: Path, what: str, work: Work, threads: int, repeats: int) -> None:
    """Load, warm up, run; print the seconds of each run as JSON, or why there are none."""
    torch.set_num_threads(threads)
    try:
        model = importlib.import_module(f"{engine}_worker").load(folder, what)
        print(json.dumps({"seconds": timed(model, work, repeats)}))
    except FathomError as error:
        print(json.dumps({"seconds": [], "absent": str(error)}))


def process(one: Contender, folder: Path, work: Work, options: argparse.Namespace) -> list[float]:
    """One process of Fathom or transformers; no seconds where it has no such arithmetic."""
    asked = [one.engine, str(folder), one.what, json.dumps(astuple(work))]
    counts = [str(options.threads), str(options.repeats)]
    command = [sys.executable, __file__, "--worker", *asked, *counts]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
    if done.returncode:
        raise SystemExit(f"{one.name} failed:\n{done.stderr[-2000:]}")
    found = json.loads(done.stdout.strip().splitlines()[-1])
    if "absent" in found:
        print(f"# {one.name}: {found['absent']}", file=sys.stderr)
    return [float(second) for second in found["seconds"]]


def turn(one: Contender, case: Case, work: Work, options: argparse.Namespace) -> list[float]:
    """One process of an engine; no seconds where its weights or programs are not there."""
    if one.engine != "llama":
        return process(one, options.models / case.folder, work, options)
    weights = options.models / one.what
    if options.llama is None or not weights.exists():
        print(f"# {one.name}: --llama is not given or {weights} is missing.", file=sys.stderr)
        return []
    return llama_worker.measure(options.llama, weights, work, options.threads, options.repeats)


def compare(case: Case, work: Work, options: argparse.Namespace) -> Measured:
    """A B C A B C over one work; the machine is measured after each turn."""
    seconds: dict[str, list[float]] = {}
    rates = []
    for _ in range(options.turns):
        for one in case.contenders:
            if any(part in one.name for part in options.engines):
                seconds.setdefault(one.name, []).extend(turn(one, case, work, options))
        rates.append(ceiling.measure())
    return Measured(work, seconds, ceiling.median(rates))


def measured(label: str, options: argparse.Namespace) -> list[Row]:
    """The rows of one case, printed as they come."""
    case = CASES[label]
    config = WORKLOADS[case.model]
    rows: list[Row] = []
    kept: list[Measured] = []
    for work in works(case.model):
        if chosen(options.only, label, work):
            kept.append(compare(case, work, options))
            found = rows_of(case, config, kept[-1])
            print_rows(found)
            rows += found
    found = context_rows(case, config, kept)
    print_rows(found)
    return rows + found


def chosen(only: list[str], label: str, work: Work) -> bool:
    """Whether a work was asked for."""
    return not only or any(part in f"{label}: {work.name}" for part in only)


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("runs/bench"), help="folders, GGUFs")
    parser.add_argument("--llama", type=Path, help="llama.cpp's build folder")
    parser.add_argument("--only", nargs="+", default=[], help="works whose name holds one of these")
    parser.add_argument("--engines", nargs="+", default=[""], help="the same for engines")
    parser.add_argument("--turns", type=int, default=3, help="processes of each engine")
    parser.add_argument("--repeats", type=int, default=3, help="runs in each process")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--list", action="store_true", help="print works and engines, and stop")
    parser.add_argument("--json", type=Path, help="write the table here too")
    options = parser.parse_args()
    if options.list:
        for label, case in CASES.items():
            print("\n".join(f"{label}: {work.name}" for work in works(case.model)))
            print("  " + "; ".join(one.name for one in case.contenders))
        return
    torch.set_num_threads(options.threads)
    facts = machine_facts()
    if options.llama:
        facts["llama.cpp"] = llama_worker.build_line(options.llama)
    print("\n".join(f"# {name}: {value}" for name, value in facts.items()))
    rows: list[Row] = []
    for label in CASES:
        rows += measured(label, options)
        if options.json:
            write(options.json, facts, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        engine, folder, what, work, threads, repeats = sys.argv[2:]
        asked = Work(*json.loads(work))
        worker(engine, Path(folder), what, asked, int(threads), int(repeats))
    else:
        main()

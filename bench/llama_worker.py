"""llama.cpp as a peer to be timed: its own benchmark programs, their JSON read.

Promise: nothing of llama.cpp is called but llama-bench (one sequence) and llama-batched-bench
(several), with its own defaults for everything but threads and work. Its random tokens are its own;
a context is really read by it, which takes long at 32k.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

from works import DEADLINE, Work


def command(build: Path, weights: Path, work: Work, threads: int, repeats: int) -> list[str]:
    """The command line that measures a work."""
    common = ["-m", str(weights), "-t", str(threads)]
    if work.batch == 1:
        program = str(build / "bin" / "llama-bench")
        if work.kind == "prefill":
            asked = ["-p", str(work.tokens), "-n", "0"]
        else:
            asked = ["-p", "0", "-n", str(work.steps), "-d", str(work.tokens)]
        return [program, *common, *asked, "-r", str(repeats), "-o", "jsonl"]
    program = str(build / "bin" / "llama-batched-bench")
    room = str(work.batch * (max(1, work.tokens) + max(1, work.steps)))
    asked = ["-npp", str(max(1, work.tokens)), "-ntg", str(max(1, work.steps))]
    levels = ",".join([str(work.batch)] * repeats)
    return [program, *common, *asked, "-npl", levels, "-c", room, "--output-format", "jsonl"]


def parse(output: str) -> list[dict[str, Any]]:
    """The JSON objects among a program's lines; other lines are its log."""
    lines = (line.strip() for line in output.splitlines())
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def seconds(rows: list[dict[str, Any]], work: Work) -> list[float]:
    """Seconds of each run in what a program printed; raises `ValueError` if there are none."""
    if work.batch > 1:
        key = "t_pp" if work.kind == "prefill" else "t_tg"
        found = [float(row[key]) for row in rows if row.get("pl") == work.batch]
    else:
        asked = (work.tokens, 0, 0) if work.kind == "prefill" else (0, work.steps, work.tokens)
        found = [
            sample / 1e9
            for row in rows
            if (row.get("n_prompt"), row.get("n_gen"), row.get("n_depth")) == asked
            for sample in row["samples_ns"]
        ]
    if not found:
        raise ValueError(f"llama.cpp's output holds no {work.name}.")
    return found


def measure(build: Path, weights: Path, work: Work, threads: int, repeats: int) -> list[float]:
    """Run the program in a process of its own; return the seconds of each run."""
    asked = command(build, weights, work, threads, repeats)
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=DEADLINE)
    if done.returncode:
        raise SystemExit(f"{' '.join(asked)} failed:\n{done.stderr[-2000:]}")
    return seconds(parse(done.stdout), work)


def build_line(build: Path) -> str:
    """What llama-bench says about its own build."""
    asked = [str(build / "bin" / "llama-bench"), "--version"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return " ".join(line.strip() for line in lines if line.strip()) or "unknown"

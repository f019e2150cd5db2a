"""Python's share of a decode step: the whole call beside the recorded calls alone.

The share is 1 - (time of a replay) / (time of a step as the engine asks for it). Both are timed
turn by turn on the same memory, and beside them the step without a recording; medians are printed,
and what each kernel takes of a replay.

    python bench/step_overhead.py pocket-like --sequences 1
    python bench/step_overhead.py runs/bench/bench-1b --steps 100
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from workloads import WORKLOADS

import fathom
from fathom import machine
from fathom.model.nemotron import Nemotron
from fathom.model.recorded import RecordedStep
from fathom.ops.layout import Layout


def model_of(name: str, dtype: torch.dtype) -> Nemotron:
    """The checkpoint in a folder, or a workload or size with random weights, packed."""
    if Path(name).is_dir():
        return fathom.load(Path(name)).eval().pack()
    return Nemotron(WORKLOADS.get(name, name), dtype=dtype).eval().pack()


def milliseconds(work: Callable[[], object], steps: int) -> float:
    """Mean time of one call."""
    begin = time.perf_counter()
    for _ in range(steps):
        work()
    return (time.perf_counter() - begin) / steps * 1e3


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder, a workload of bench/models.py, or a named size")
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--past", type=int, default=64, help="tokens before the first step")
    parser.add_argument("--steps", type=int, default=50, help="steps a turn")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--bf16", action="store_true", help="random weights in BF16")
    asked = parser.parse_args()
    machine.tune()
    model = model_of(asked.model, torch.bfloat16 if asked.bf16 else torch.float32)
    count = asked.sequences
    room = asked.past + asked.steps + 8
    memory = model.memory(count, room)
    step, tokens = RecordedStep(model, memory), list(range(1, count + 1))
    layout, tokens_S = Layout.of([1] * count), torch.tensor(tokens)

    @torch.inference_mode()
    def plain() -> None:
        model.logits(model(tokens_S, layout, memory))

    with torch.inference_mode():
        model(
            torch.ones(count * asked.past, dtype=torch.int64),
            Layout.of([asked.past] * count),
            memory,
        )
    for _ in range(3):
        step.step(tokens)
    if step.recording is None:
        raise SystemExit(f"The step is not recorded: {step.why_not}.")

    def replay() -> None:
        assert step.recording is not None
        step.recording.replay()
        memory.count(layout)

    def turn(work: Callable[[], object]) -> float:
        memory.seen = [asked.past] * count
        memory.past_S.fill_(asked.past)
        return milliseconds(work, asked.steps)

    works = {"plain": plain, "step": lambda: step.step(tokens), "replay": replay}
    turns = [[turn(work) for work in works.values()] for _ in range(asked.turns)]
    times = dict(zip(works, map(statistics.median, zip(*turns, strict=True)), strict=True))
    share = 1 - times["replay"] / times["step"]
    print(
        f"{asked.model}, {count} sequences: {step.recording.calls} native calls; replay "
        f"{times['replay']:.3f} ms, step {times['step']:.3f} ms, unrecorded "
        f"{times['plain']:.3f} ms; Python's share {100 * share:.1f} %"
    )
    memory.past_S.fill_(asked.past)
    spent: dict[str, float] = {}
    calls = step.recording.spent(asked.steps)
    for name, microseconds in calls:
        spent[name] = spent.get(name, 0.0) + microseconds
    for name, microseconds in sorted(spent.items(), key=lambda pair: -pair[1]):
        count = sum(other == name for other, _ in calls)
        print(f"  {name:20} {count:4} calls {microseconds:9.1f} us")


if __name__ == "__main__":
    main()

"""How long a model takes over prompts and decode steps, as it is served.

Promise: the same calls as those of `runner.py`, without drawing; what a context holds is random,
which changes no speed. Making and recording a step is not timed. What the seconds are held against
is `model/traffic.py`; who prints them are `fathom bench` and the benchmarks beside peers.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.model.memory import Memory
from fathom.model.nemotron import Nemotron
from fathom.model.recorded import RecordedStep
from fathom.ops.layout import Layout

PIECE = 2048
"""Prompt tokens that go through the model at once, as in the runner."""

WARM = 3
"""Steps before the clock starts: one as it is, one that is written down, one replayed."""


@torch.inference_mode()
def prefill_seconds(model: Nemotron, ids_SN: Tensor) -> float:
    """Read S prompts of N tokens (int64) piece by piece; the last row of each becomes logits."""
    S, N = ids_SN.shape
    begin = time.perf_counter()
    memory = model.memory(S, N)
    for piece in ids_SN.split(PIECE, dim=1):
        layout = Layout.of([piece.shape[1]] * S)
        hidden_TD = model(piece.flatten(), layout, memory)
    model.logits(hidden_TD[layout.last_S])
    return time.perf_counter() - begin


def warm_step(model: Nemotron, sequences: int, context: int, steps: int) -> RecordedStep:
    """The step of sequences behind a random context, ready to be replayed `steps` times."""
    memory = model.memory(sequences, context + steps + WARM)
    if context:
        pretend(memory, context)
    step = RecordedStep(model, memory)
    for _ in range(WARM):
        step.step([0] * sequences)
    return step


def step_seconds(step: RecordedStep, tokens: Sequence[Sequence[int]]) -> float:
    """Take one step for each row of tokens, one of every sequence."""
    begin = time.perf_counter()
    for row in tokens:
        step.step(row)
    return time.perf_counter() - begin


@torch.inference_mode()
def pretend(memory: Memory, context: int) -> None:
    """Let every sequence have seen `context` tokens of noise."""
    lengths = [context] * len(memory.seen)
    memory.make_room(lengths)
    for layer in memory.layers:
        for buffer in layer.buffers() if layer is not None else ():
            buffer.normal_()
    memory.advance(Layout.of(lengths))


__all__ = ["PIECE", "WARM", "prefill_seconds", "pretend", "step_seconds", "warm_step"]

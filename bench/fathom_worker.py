"""Fathom as an engine to be timed.

Promise: what it runs is what Fathom serves with; a context is filled with random keys, values and
states instead of being read, which costs nothing and changes no speed.
"""

import time
from pathlib import Path

import torch
from works import random_tokens

import fathom
from fathom import Memory, Nemotron, machine
from fathom.engine.recorded import RecordedStep
from fathom.errors import MissingError
from fathom.model.precision import lay

PIECE = 2048
"""Prompt tokens that go through the model at once, as in Fathom's own runner."""

PRECISIONS = ("fp32", "bf16", "nvfp4", "w4a8")
"""What a folder's own weights are served in."""

WARM = 3
"""Steps before the clock starts: one as it is, one that is written down, one replayed."""


class FathomEngine:
    """The model with memories made for each run."""

    def __init__(self, model: Nemotron) -> None:
        self.model = model

    @torch.inference_mode()
    def prefill(self, tokens: int, batch: int) -> float:
        """Read the prompts piece by piece, the last row of each becomes logits."""
        ids = random_tokens(self.model.config.vocab, batch, tokens)
        begin = time.perf_counter()
        memory = self._memory(batch, tokens)
        for piece in ids.split(PIECE, dim=1):
            layout = fathom.Layout.of([piece.shape[1]] * batch)
            hidden_TD = self.model(piece.flatten(), layout, memory)
        self.model.logits(hidden_TD[layout.last_S])
        return time.perf_counter() - begin

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Steps behind a context of random keys, values and states; recording them is not timed."""
        memory = self._memory(batch, context + steps + WARM)
        _fill(memory, context)
        ids = random_tokens(self.model.config.vocab, steps + WARM, batch).tolist()
        recorded = RecordedStep(self.model, memory)
        for tokens in ids[:WARM]:
            recorded.step(tokens)
        if recorded.why_not is not None:
            raise MissingError(f"Fathom did not record its step: {recorded.why_not}.")
        begin = time.perf_counter()
        for tokens in ids[WARM:]:
            recorded.step(tokens)
        return time.perf_counter() - begin

    def _memory(self, batch: int, capacity: int) -> Memory:
        """An empty memory of the model's type."""
        return Memory.empty(
            self.model.config,
            sequences=batch,
            capacity=capacity,
            dtype=self.model.embedding.weight.dtype,
        )


def load(folder: Path, precision: str) -> FathomEngine:
    """Load a folder packed, as it is stored; `w4a8` rounds rows to int8 where weights are NVFP4.

    Raises `FathomError` where Fathom cannot serve it in this precision.
    """
    machine.tune()
    if precision not in PRECISIONS:
        raise MissingError(f"This Fathom has no precision {precision!r}.")
    model = fathom.load(folder, packed=True)
    if precision == "w4a8":
        lay(model, "w4a8")
    return FathomEngine(model)


@torch.inference_mode()
def _fill(memory: Memory, context: int) -> None:
    """Pretend that every sequence has seen `context` tokens."""
    if not context:
        return
    memory.make_room([context] * len(memory.seen))
    for layer in memory.layers:
        if layer is not None:
            for buffer in layer.buffers():
                buffer.normal_()
    memory.advance(fathom.Layout.of([context] * len(memory.seen)))

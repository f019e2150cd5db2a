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
from fathom.errors import MissingError
from fathom.model.memory import AttentionMemory, MambaMemory
from fathom.model.precision import lay

PIECE = 2048
"""Prompt tokens that go through the model at once, as in Fathom's own runner."""

PRECISIONS = ("fp32", "bf16", "nvfp4", "w4a8")
"""A folder's own format, or int8 activations on NVFP4 weights."""


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

    @torch.inference_mode()
    def decode(self, batch: int, context: int, steps: int) -> float:
        """Steps behind a context of random keys, values and states."""
        memory = self._memory(batch, context + steps)
        _fill(memory, context)
        ids = random_tokens(self.model.config.vocab, steps, batch)
        layout = fathom.Layout.of([1] * batch)
        begin = time.perf_counter()
        for step_S in ids:
            self.model.logits(self.model(step_S, layout, memory))
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
    """Load a folder; raises `FathomError` where Fathom cannot serve it in this precision."""
    machine.tune()
    if precision not in PRECISIONS:
        raise MissingError(f"This Fathom has no precision {precision!r}.")
    model = fathom.load(folder, packed=True)
    if precision == "w4a8":
        lay(model, precision)
    return FathomEngine(model)


def _fill(memory: Memory, context: int) -> None:
    """Pretend that every sequence has seen `context` tokens."""
    for layer in memory.layers:
        if isinstance(layer, MambaMemory) and context:
            layer.tail_Skc.normal_()
            layer.state_SHPN.normal_()
        elif isinstance(layer, AttentionMemory) and context:
            layer.pages.keys.normal_()
            layer.pages.values.normal_()
    memory.seen = [context] * len(memory.seen)
    memory.past_S.fill_(context)

"""Fathom's engine to be timed: scheduling, drawing and events beside the model's steps.

Promise: the works are those of `fathom_worker.py`; prompts are really read, and what is timed of a
decode begins when every request has been read and its steps are replayed. Nothing is drafted or
kept, tokens are drawn greedily, no request ends before the clock stops.
"""

import time
from pathlib import Path

import fathom_worker
from works import random_tokens

from fathom import Nemotron
from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.engine.sampler import Sampling
from fathom.model.timing import PIECE, WARM


class ServedEngine:
    """The model behind an engine made for each run."""

    def __init__(self, model: Nemotron) -> None:
        self.model = model

    def prefill(self, tokens: int, batch: int) -> float:
        """Read the prompts and draw the first token of each."""
        engine = self._engine(batch, tokens, 1)
        for ids in random_tokens(self.model.config.vocab, batch, tokens).tolist():
            engine.add(Request(tuple(ids), 1, Sampling(0)))
        begin = time.perf_counter()
        while engine.unfinished:
            engine.step()
        return time.perf_counter() - begin

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Steps in which every request gets a token."""
        prompt = max(1, context)
        engine = self._engine(batch, prompt, steps + 2 * WARM)
        for ids in random_tokens(self.model.config.vocab, batch, prompt).tolist():
            engine.add(Request(tuple(ids), steps + 2 * WARM, Sampling(0)))
        while engine.stats.running < batch:
            engine.step()
        for _ in range(WARM):
            engine.step()
        begin = time.perf_counter()
        for _ in range(steps):
            engine.step()
        return time.perf_counter() - begin

    def _engine(self, batch: int, prompt: int, steps: int) -> Engine:
        # requests that were read early decode while the others are read
        reads = batch * -(-prompt // PIECE) + batch
        return Engine(
            self.model,
            sequences=batch,
            readers=batch,
            chunk=batch * PIECE,
            context=max(16, prompt + steps + reads),
            kv_tokens=max(256, batch * (prompt + steps + reads + 256)),
            prefix_bytes=0,
            drafts=0,
        )


def load(folder: Path, precision: str) -> ServedEngine:
    """Load a folder as `fathom_worker.load` does."""
    return ServedEngine(fathom_worker.load(folder, precision).model)

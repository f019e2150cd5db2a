"""Fathom as an engine to be timed.

Promise: what it runs is what Fathom serves with, timed by the library's own `model/timing.py`; a
context is filled with random keys, values and states instead of being read.
"""

from pathlib import Path

from works import random_tokens

import fathom
from fathom import Nemotron, machine
from fathom.errors import MissingError
from fathom.model.precision import lay
from fathom.model.timing import prefill_seconds, step_seconds, warm_step

PRECISIONS = ("fp32", "bf16", "nvfp4", "w4a8")
"""What a folder's own weights are served in."""


class FathomEngine:
    """The model with memories made for each run."""

    def __init__(self, model: Nemotron) -> None:
        self.model = model

    def prefill(self, tokens: int, batch: int) -> float:
        """Read the prompts piece by piece, the last row of each becomes logits."""
        return prefill_seconds(self.model, random_tokens(self.model.config.vocab, batch, tokens))

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Steps behind a context of random keys, values and states; recording them is not timed."""
        step = warm_step(self.model, batch, context, steps)
        if step.why_not is not None:
            raise MissingError(f"Fathom did not record its step: {step.why_not}.")
        return step_seconds(step, random_tokens(self.model.config.vocab, steps, batch).tolist())


def load(folder: Path, precision: str) -> FathomEngine:
    """Load a folder packed, as it is stored; `w4a8` rounds rows to int8 where weights are NVFP4.

    Raises `FathomError` where Fathom cannot serve it in this precision.
    """
    if precision not in PRECISIONS:
        raise MissingError(f"This Fathom has no precision {precision!r}.")
    machine.tune()
    model = fathom.load(folder, packed=True)
    if precision == "w4a8":
        lay(model, "w4a8")
    return FathomEngine(model)

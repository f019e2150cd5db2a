"""What is measured of an engine, and what an engine must offer to be measured.

Promise: every engine gets the same work: random tokens (drawn anew for each step, so that routing
is as spread as it can be), logits of the rows that a server would need, no sampling.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

DEADLINE = 3600.0
"""Seconds after which a process that measures is given up."""


@dataclass(frozen=True)
class Work:
    """A prefill of `tokens`, or `steps` decode steps behind `tokens` of context."""

    kind: Literal["prefill", "decode"]
    tokens: int
    """Tokens of the prompt, or of context before the first step."""
    batch: int = 1
    """Sequences side by side."""
    steps: int = 1
    """Decode steps timed in one go; one in a prefill."""

    @property
    def name(self) -> str:
        """As tables show it."""
        if self.kind == "prefill":
            return f"prefill {self.tokens}"
        return f"decode {self.batch} at {self.tokens}"

    @property
    def counted(self) -> int:
        """Tokens that one run computes."""
        return self.batch * (self.tokens if self.kind == "prefill" else self.steps)


class Engine(Protocol):
    """A loaded model that can be timed."""

    def prefill(self, tokens: int, batch: int) -> float:
        """Read `batch` prompts of `tokens` random tokens; return the seconds."""

    def decode(self, batch: int, context: int, steps: int) -> float:
        """Take `steps` decode steps behind `context` tokens; return their seconds together.

        What stands in the context may be random keys, values and states: no engine's speed
        depends on them.
        """


def run(engine: Engine, work: Work) -> float:
    """Seconds of one run of the work."""
    if work.kind == "prefill":
        return engine.prefill(work.tokens, work.batch)
    return engine.decode(work.batch, work.tokens, work.steps)


def timed(engine: Engine, work: Work, repeats: int) -> list[float]:
    """Seconds of `repeats` runs; one before them warms up and is not counted."""
    return [run(engine, work) for _ in range(repeats + 1)][1:]


def random_tokens(vocab: int, *shape: int, seed: int = 0) -> Tensor:
    """int64 tokens of a shape, the same ones for every engine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab, shape, generator=generator)

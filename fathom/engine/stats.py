"""What an engine has done so far, in numbers.

Promise: every number is counted where the thing happens and only grows; `Stats` is a copy that
stays as it is. Who shows them is `fathom chat` and whoever serves.
"""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Stats:
    """Counts since the engine was made; the last block is how things stand."""

    added: int = 0
    """Requests that were added."""
    ended: Counter[str] = field(default_factory=Counter)
    """Requests that ended, by reason."""
    steps: int = 0
    """Steps of the engine in which something was computed."""
    prompt_tokens: int = 0
    """Tokens of the prompts of requests that began to be read."""
    reused_tokens: int = 0
    """Of these, the ones that were remembered."""
    read_tokens: int = 0
    """Tokens that were read, again after an interruption too."""
    answered_tokens: int = 0
    """Tokens of answers."""
    hits: int = 0
    """Prompts of which some part was remembered."""
    misses: Counter[str] = field(default_factory=Counter)
    """Why prompts were not remembered whole, by reason, numbers left out."""
    drafted: list[int] = field(default_factory=list)
    """Drafts that were put to the test, by depth from 1."""
    accepted: list[int] = field(default_factory=list)
    """Of these, the ones that came true."""
    cut: int = 0
    """Thoughts that were ended by force."""
    preempted: int = 0
    """How often a request gave way to another."""
    evicted: int = 0
    """Kept prefixes that had to go."""
    model_seconds: float = 0.0
    """Seconds in calls of the model."""
    step_seconds: float = 0.0
    """Seconds in steps, all counted."""

    waiting: int = 0
    """Requests that wait."""
    reading: int = 0
    """Requests whose prompts are being read."""
    running: int = 0
    """Requests that are being answered."""
    pages: int = 0
    """Pages of keys and values there are."""
    free_pages: int = 0
    """Of these, the ones that nobody holds."""
    kept_prefixes: int = 0
    """Prefixes that are kept."""
    kept_bytes: int = 0
    """Bytes of their recurrent states."""

    @property
    def acceptance(self) -> list[float]:
        """Share of the drafts of each depth that came true, where earlier ones had."""
        return [a / d for a, d in zip(self.accepted, self.drafted, strict=True) if d]

    @property
    def overhead(self) -> float:
        """Share of the steps' time that was not the model's."""
        return 1 - self.model_seconds / self.step_seconds if self.step_seconds else 0.0


__all__ = ["Stats"]

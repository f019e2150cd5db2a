"""What comes of a line in a conversation, and what an answer took: counted, timed, in words.

Promise: tokens of thought are counted as the engine counts them, and every number is one that was
measured. Who talks is `talk.py`, who shows it `chat.py`.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

from fathom.engine.budget import Budget, Thoughts
from fathom.engine.request import Event as EngineEvent
from fathom.engine.request import Request
from fathom.engine.stats import Stats
from fathom.generation import Answer
from fathom.text import Event, Reasoning


@dataclass(frozen=True)
class Note:
    """Something that the program says."""

    text: str
    fault: bool = False


@dataclass(frozen=True)
class Reading:
    """The prompt is being read."""

    tokens: int
    """How many of its tokens are."""
    total: int
    """How many it has, those counted that need not be read."""


@dataclass(frozen=True)
class ThoughtOver:
    """A thought has ended."""

    tokens: int
    seconds: float


Piece = Event | Note | Reading | ThoughtOver


class Watch:
    """Counts and times one answer as it comes."""

    def __init__(self, request: Request) -> None:
        """Begin to count; the request is added now."""
        tags = request.budget
        self._thoughts = (
            Thoughts(Budget(tags.open_id, tags.close_id), request.ids) if tags is not None else None
        )
        self._began = time.perf_counter()
        self._first = self._last = self._opened = self._began
        self._told = 0
        self.tokens = 0
        """Tokens of the answer so far."""
        self.thinking = False
        """Whether the last piece was one of a thought."""
        self.by_hand = False
        """Whether the user has ended the thought."""

    def see(self, event: EngineEvent, pieces: list[Event]) -> Iterator[Piece]:
        """Take in an event; pass its pieces on, and the end of a thought between them."""
        if event.token is not None:
            self._last = time.perf_counter()
            self._first = self._first if self.tokens else self._last
            self.tokens += 1
            if self._thoughts is not None:
                self._thoughts.take(event.token.id)
        for piece in pieces:
            if self.thinking and not isinstance(piece, Reasoning):
                yield self.thought()
            if not self.thinking and isinstance(piece, Reasoning):
                self.thinking, self._opened = True, self._last
            yield piece

    def thought(self) -> ThoughtOver:
        """How long the thought that went on until now has taken."""
        self.thinking = False
        spent = self._thoughts.spent if self._thoughts is not None else self.tokens
        before, self._told = self._told, spent
        return ThoughtOver(spent - before, time.perf_counter() - self._opened)

    def summary(self, answer: Answer, room: str) -> str:
        """What the answer took, in one line; `room` is what it was limited by."""
        usage = answer.usage
        assert usage is not None
        spent = self._last - self._first
        parts = [f"{usage.answered} tokens"]
        if self.tokens > 1 and spent > 0:
            parts.append(f"{(self.tokens - 1) / spent:,.1f} tokens/s")
        parts.append(f"first after {self._first - self._began:.2f} s")
        parts.append(f"remembered {usage.reused:,} of {usage.prompt:,}")
        if usage.drafted:
            parts.append(f"drafts {usage.accepted / usage.drafted:.0%}")
        if usage.cut:
            parts.append("thought ended by you" if self.by_hand else "thought cut at the budget")
        if answer.stop_reason == "length":
            parts.append(f"cut at {room}")
        return " · ".join(parts)


def told(stats: Stats, why_not_recorded: str | None = None) -> list[str]:
    """What an engine has done, in lines."""
    ended = ", ".join(f"{count} {reason}" for reason, count in stats.ended.most_common())
    lines = [
        f"requests: {stats.added}" + (f" ({ended})" if ended else ""),
        f"prompt tokens: {stats.prompt_tokens:,}, remembered of them {stats.reused_tokens:,}",
        f"answer tokens: {stats.answered_tokens:,}; {stats.step_seconds:,.1f} s in all steps, "
        f"{stats.overhead:.0%} of it outside the model",
    ]
    lines += [f"not remembered, {n} ×: {why}" for why, n in stats.misses.most_common(4)]
    if stats.acceptance:
        shares = ", ".join(f"{share:.0%}" for share in stats.acceptance)
        lines.append(f"drafts accepted, by depth: {shares}")
    lines.append(f"thoughts ended by force: {stats.cut}")
    lines.append(
        f"kept: {stats.kept_prefixes} beginnings, {stats.kept_bytes / 1e6:,.1f} MB of states; "
        f"{stats.pages - stats.free_pages:,} of {stats.pages:,} pages of keys and values in use"
    )
    if why_not_recorded is not None:
        lines.append(f"steps run through Python: {why_not_recorded}")
    return lines


__all__ = ["Note", "Piece", "Reading", "ThoughtOver", "Watch", "told"]

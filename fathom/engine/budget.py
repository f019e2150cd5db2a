"""The thinking budget of one request: when a thought must end, and by which tokens.

Promise: all thoughts of an answer together have at most `tokens` + `grace` tokens; a thought that
may not go on is closed token by token, so that what follows is an answer; looking ahead on a copy
changes nothing here. The tags of this family are one token each, which makes counting exact however
many tokens a step brings.

    outside --<think>--> inside --spent--> grace --line end, or grace spent--> forced --</think>--
       ^                   |                 |                                                   |
       +-----</think>------+----</think>-----+---------------------------------------------------+

A thought that opens when the budget is spent already has no grace: it is closed at once. Who draws
the tokens, and puts the forced ones in their place, is the engine; which text is thought is
`text/stream.py`'s.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from fathom.errors import RequestError


@dataclass(frozen=True)
class Budget:
    """How long a request may think; raises `RequestError` where a value makes no sense."""

    open_id: int
    """The token `<think>`."""
    close_id: int
    """The token `</think>`."""
    tokens: int | None = None
    """Most tokens of thought, over all thoughts of the answer; None: no limit."""
    grace: int = 0
    """Further tokens within which the first line end ends the thought; then it is ended anyway."""
    newline_ids: frozenset[int] = frozenset()
    """Tokens that end a line."""
    message: tuple[int, ...] = ()
    """What is written before `</think>` where a thought is ended by force; it is not counted."""

    def __post_init__(self) -> None:
        for name in ("open_id", "close_id", "tokens", "grace"):
            value = getattr(self, name)
            if not _whole(value) and not (name == "tokens" and value is None):
                raise RequestError(f"{name} must be a whole number from 0; got {value!r}.")
        for name in ("newline_ids", "message"):
            for token in getattr(self, name):
                if not _whole(token):
                    raise RequestError(f"{name} must be token ids from 0; got {token!r} in it.")
        if self.open_id == self.close_id:
            raise RequestError(
                f"open_id and close_id are both {self.open_id}; a thought needs two tags."
            )
        tags = {self.open_id, self.close_id}.intersection(self.message)
        if tags:
            raise RequestError(
                f"The message that ends a thought holds the tag {min(tags)}; leave the tags out, "
                "the closing one is written behind it."
            )


class Thoughts:
    """Where one request is in its thoughts; knows the next token where that is not free."""

    def __init__(self, budget: Budget, prompt: Sequence[int]) -> None:
        """Begin inside a thought if the last tag of the prompt is `<think>`."""
        tags = (budget.open_id, budget.close_id)
        last = next((token for token in reversed(prompt) if token in tags), None)
        self.budget = budget
        self.inside = False
        """Whether the next token belongs to a thought, or to its forced ending."""
        self.spent = 0
        """Tokens of thought so far, without the tags around thoughts and forced messages."""
        self.cut = False
        """Whether a thought was ended by force."""
        # How many tokens of the forced ending have come; None: the thought is free.
        self._written: int | None = None
        if last == budget.open_id:
            self._begin()

    @property
    def forced(self) -> int | None:
        """The token that must come next; None: any may."""
        if self._written is None:
            return None
        message = self.budget.message
        written = self._written
        return message[written] if written < len(message) else self.budget.close_id

    def take(self, token: int) -> None:
        """Count the token that came, which is the forced one where one is forced."""
        if self._written is not None:
            assert token == self.forced, f"{self.forced} was forced, {token} came"
            self._written += 1
            if token == self.budget.close_id:
                self.inside, self.cut, self._written = False, True, None
        elif not self.inside:
            if token == self.budget.open_id:
                self._begin()
        elif token == self.budget.close_id:
            self.inside = False
        else:
            # A second <think> opens nothing, so it is a token like any other; uncounted, a model
            # that repeats it would think for ever.
            self.spent += 1
            if self._exhausted(token):
                self._written = 0

    def end(self) -> None:
        """End the thought that goes on now, whatever is left; outside of a thought do nothing."""
        if self.inside and self._written is None:
            self._written = 0

    def copy(self) -> Self:
        """Return the same state, to look ahead on."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def _begin(self) -> None:
        """A thought opens; it is closed at once if nothing is left."""
        self.inside = True
        if self.budget.tokens is not None and self.spent >= self.budget.tokens:
            self._written = 0

    def _exhausted(self, token: int) -> bool:
        """Whether the thought ends by force after `token`."""
        budget = self.budget
        if budget.tokens is None or self.spent < budget.tokens:
            return False
        return token in budget.newline_ids or self.spent >= budget.tokens + budget.grace


def _whole(value: object) -> bool:
    """Whether a value is a whole number from 0, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


__all__ = ["Budget", "Thoughts"]

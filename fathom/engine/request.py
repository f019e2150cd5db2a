"""What is asked of the engine and what it gives back, in token ids.

Promise: a `Request` is checked against the model's vocabulary before anything is computed; nothing
here knows text. Turning words into ids and back is `generation.py`'s.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from fathom.engine.budget import Budget
from fathom.engine.grammar import Compiled
from fathom.engine.sampler import Sampling
from fathom.errors import RequestError

StopReason = Literal["stop", "length", "cancelled", "deadline", "error"]
"""Why an answer ended: a stop token (or a finished grammar), `max_tokens`, `Engine.cancel`, its
deadline, or numbers that were none."""

ALTERNATIVES = 64
"""Most alternatives a token may be given with."""


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it."""

    ids: tuple[int, ...]
    """The prompt's tokens, one at least."""
    max_tokens: int = 256
    """Most tokens to add."""
    sampling: Sampling = field(default_factory=Sampling)
    """How each is drawn."""
    stop_ids: frozenset[int] = frozenset()
    """Tokens after which nothing follows; the one that came is part of the answer."""
    budget: Budget | None = None
    """How much may be thought, and which tokens open and close a thought."""
    grammar: Compiled | None = None
    """What the answer must look like; it holds after thinking."""
    logprobs: int = 0
    """Alternatives to tell of each token, the most probable first."""
    prompt_logprobs: int | None = None
    """Alternatives to tell of each of the prompt's tokens; None: the prompt is not scored."""
    priority: int = 0
    """Greater goes first, and takes the place of lesser ones that are being answered."""
    deadline: float | None = None
    """Seconds from `Engine.add` after which it ends as it is."""
    boundaries: tuple[int, ...] = ()
    """Places in the prompt up to which other prompts may be the same: where system prompt and tools
    end, where the last turns begin. What is remembered there is kept for them."""
    alone: bool = False
    """Whether nothing of other requests is reused for this one, and nothing of it kept."""

    def check(self, vocab: int, context: int | None = None) -> None:
        """Raise `RequestError` if a model with `vocab` tokens cannot serve this.

        `context` is the most tokens that prompt and answer may have together.
        """
        if not self.ids:
            raise RequestError("The prompt is empty; a model needs one token at least to go on.")
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens must be 1 or more; got {self.max_tokens}.")
        strange = [i for i in self.ids if not 0 <= i < vocab]
        if strange:
            raise RequestError(
                f"The prompt holds the token {strange[0]}, but the model knows tokens from 0 to "
                f"{vocab - 1}. Was it written by another model's tokenizer?"
            )
        for name, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if count is not None and not 0 <= count <= ALTERNATIVES:
                raise RequestError(f"{name} must be from 0 to {ALTERNATIVES}; got {count}.")
        if context is not None and len(self.ids) + self.max_tokens > context:
            raise RequestError(
                f"The prompt has {len(self.ids)} tokens and {self.max_tokens} may be added, but "
                f"the engine holds {context} together. Shorten one, or give the engine more "
                f"context."
            )
        if self.deadline is not None and not self.deadline > 0:
            raise RequestError(f"deadline must be over 0 seconds; got {self.deadline}.")
        unknown = [token for token, _ in self.sampling.bias if not 0 <= token < vocab]
        if unknown:
            raise RequestError(f"bias names the token {unknown[0]}, which the model does not know.")


class Alternative(NamedTuple):
    """A token that might have come, and its log-probability by the model."""

    id: int
    logp: float


class Token(NamedTuple):
    """One token of an answer, as it comes."""

    id: int
    """The token."""
    logp: float
    """Its log-probability by the model's own distribution."""
    sampler_logp: float
    """Its log-probability among what was drawn from (tempered, filtered, allowed)."""
    stop_reason: StopReason | None = None
    """Why it is the last; None: more will come."""
    alternatives: tuple[Alternative, ...] = ()
    """The most probable tokens at its place, as many as were asked for."""


class Usage(NamedTuple):
    """What one request took."""

    prompt: int
    """Tokens of its prompt."""
    reused: int
    """Of these, the ones that were remembered from earlier prompts."""
    miss: str | None
    """Why not more of the prompt was remembered, in words; None: nothing was missed."""
    answered: int
    """Tokens of its answer."""
    thought: int
    """Of these, tokens of thought, counted where the request says what a thought is."""
    cut: bool
    """Whether a thought was ended by force."""
    drafted: int
    """Tokens that were drafted for it."""
    accepted: int
    """Of these, the ones that became part of the answer."""


class Event(NamedTuple):
    """What a step of the engine has to say of one request."""

    request: int
    """The number that `Engine.add` gave."""
    token: Token | None
    """A token that came; None: it ended without one (cancelled, or its deadline)."""
    stop_reason: StopReason | None = None
    """Why it ended; None: more will come."""
    usage: Usage | None = None
    """What it took, where it ended."""
    error: str | None = None
    """What went wrong, where it ended for that."""
    prompt: tuple[Token, ...] = ()
    """With the first token: the prompt's from the second on, scored, if that was asked for."""


@dataclass(frozen=True)
class Completion:
    """A whole answer in tokens."""

    ids: tuple[int, ...]
    """Its tokens, a stop token counted."""
    logps: tuple[float, ...]
    """Log-probability of each by the model's own distribution."""
    sampler_logps: tuple[float, ...]
    """Log-probability of each among what was drawn from."""
    stop_reason: StopReason
    """Why it ended."""
    usage: Usage | None = None
    """What it took."""
    alternatives: tuple[tuple[Alternative, ...], ...] = ()
    """The most probable tokens at each place, where they were asked for."""
    prompt: tuple[Token, ...] = ()
    """The prompt's tokens from the second on with their log-probabilities, if asked for."""

    @classmethod
    def of(
        cls,
        tokens: list[Token],
        reason: StopReason,
        usage: Usage | None = None,
        prompt: tuple[Token, ...] = (),
    ) -> "Completion":
        """Gather the tokens of one answer."""
        return cls(
            ids=tuple(token.id for token in tokens),
            logps=tuple(token.logp for token in tokens),
            sampler_logps=tuple(token.sampler_logp for token in tokens),
            stop_reason=reason,
            usage=usage,
            alternatives=tuple(token.alternatives for token in tokens),
            prompt=prompt,
        )

    def tokens(self) -> Iterator[Token]:
        """The same as tokens, as a stream would have given them."""
        last = len(self.ids) - 1
        told = self.alternatives or ((),) * len(self.ids)
        rows = zip(self.ids, self.logps, self.sampler_logps, told, strict=True)
        for place, (token, logp, sampler_logp, others) in enumerate(rows):
            reason = self.stop_reason if place == last else None
            yield Token(token, logp, sampler_logp, reason, others)


__all__ = [
    "ALTERNATIVES",
    "Alternative",
    "Completion",
    "Event",
    "Request",
    "StopReason",
    "Token",
    "Usage",
]

"""One request while the engine has it: its tokens, its memory, and what the next token may be.

Promise: a token becomes part of an answer in `take` alone, in whatever way it was found, so budget,
grammar, penalties, stops and counts cannot disagree with one another. Where its memory lies is
`pages.py`'s, when it is its turn `scheduler.py`'s.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fathom.engine.budget import Thoughts
from fathom.engine.grammar import Matcher
from fathom.engine.pages import State
from fathom.engine.prefix import as_ids
from fathom.engine.request import Alternative, Request, StopReason, Token, Usage
from fathom.errors import RequestError


class Rule(NamedTuple):
    """What holds for the token of one place, beside the request's sampling."""

    allowed: Tensor | None
    """int32 bits [V / 32] of the tokens that may come; None: all."""
    counts: Mapping[int, int] | None
    """How often each token has been answered before it; None: no penalty asks."""


class Live:
    """A request that was added and has not ended."""

    def __init__(self, number: int, request: Request, vocab: int) -> None:
        self.number, self.request = number, request
        self.ids = list(request.ids)
        """The prompt's tokens and the answer's."""
        self.prompt = as_ids(request.ids)
        self.began = time.monotonic()
        self.state: State | None = None
        """What its Mamba layers remember, while it has no slot."""
        self.slot: int | None = None
        """Its row, while it is being answered."""
        self.pages: list[int] = []
        """Where its keys and values lie."""
        self.seen = 0
        """Tokens that its memory holds."""
        self.boundaries = sorted({n for n in request.boundaries if 0 < n < len(request.ids)})
        """Where reading stops to keep what is remembered, beside the prompt's end."""
        self.reused = 0
        self.miss: str | None = None
        self.drafts: list[int] = []
        """What the head thinks comes after the last token."""
        self.drafted = self.accepted = 0
        self.hidden_WD: Tensor | None = None
        """The last hidden states of its reading, for the MTP head."""
        self.head_seen: int | None = None
        """Tokens up to which the head has read; None: it has not begun."""
        self.head_past = 0
        """Tokens that the head remembers."""
        self.stays = 0
        """How often it was interrupted: what passed before is no beginning of what comes after."""
        self.tried, self.came = [0] * 8, [0] * 8
        """How often a draft of each depth was put to the test, and how often it came true."""
        self.scored: list[Token] = []
        """The prompt's tokens with their log-probabilities, if asked for."""
        self.stop_reason: StopReason | None = None
        self.fault: str | None = None
        """What went wrong with its grammar, in words; it ends for that."""
        self.thoughts = Thoughts(request.budget, request.ids) if request.budget else None
        self._matcher = request.grammar.matcher() if request.grammar is not None else None
        self._counts: Counter[int] | None = None if request.sampling.plain else Counter()
        # a set is made once, because a penalty asks for it at every token
        self.prompt_tokens = frozenset(request.ids if self._counts is not None else ())
        """Which tokens the prompt holds, where a penalty may ask."""
        self._words = -(-vocab // 32)

    @property
    def answered(self) -> int:
        """Tokens of the answer so far."""
        return len(self.ids) - len(self.prompt)

    @property
    def unread(self) -> int:
        """Tokens that must be read before the next can be drawn or fed."""
        return len(self.ids) - (1 if self.answered else 0) - self.seen

    @property
    def rank(self) -> tuple[int, int]:
        """Smaller goes first: greater priority, then earlier arrival."""
        return -self.request.priority, self.number

    def expired(self, now: float) -> bool:
        """Whether its deadline has passed."""
        return self.request.deadline is not None and now - self.began >= self.request.deadline

    def free(self, ahead: int) -> bool:
        """Whether sampling alone decides the next token, and `ahead` more after it."""
        if self._matcher is not None or self._counts is not None:
            return False
        thoughts = self.thoughts
        if thoughts is None:
            return True
        limit = thoughts.budget.tokens
        return thoughts.forced is None and (limit is None or thoughts.spent + ahead < limit)

    def rules(self, drafts: Sequence[int]) -> list[Rule]:
        """What holds for the next token, and for each one after it if the drafts come true.

        Where a draft may not come, the places behind it get the rule of its own place: they will
        never be used.
        """
        try:
            return self._rules(drafts)
        except RequestError as error:
            # a grammar came to a dead end, or to a limit
            self.fault = str(error)
            return [Rule(torch.zeros(self._words, dtype=torch.int32), None)] * (len(drafts) + 1)

    def _rules(self, drafts: Sequence[int]) -> list[Rule]:
        thoughts = self.thoughts.copy() if self.thoughts is not None else None
        counts, found, taken = self._counts, list[Rule](), 0
        for draft in (*drafts, None):
            forced = thoughts.forced if thoughts is not None else None
            matcher = None if thoughts is not None and thoughts.inside else self._matcher
            allowed = matcher.allowed() if matcher is not None else None
            if forced is not None:
                allowed = self._only(forced)
            found.append(Rule(allowed, counts))
            if draft is None or (forced is not None and draft != forced):
                break
            if matcher is not None:
                if draft in self.request.stop_ids or not matcher.take(draft):
                    break
                taken += 1
            if thoughts is not None:
                thoughts.take(draft)
            if counts is not None:
                counts = counts + Counter((draft,))
        if self._matcher is not None and taken:
            self._matcher.rollback(taken)
        return found + found[-1:] * (len(drafts) + 1 - len(found))

    def take(
        self,
        token: int,
        logp: float,
        sampler_logp: float,
        alternatives: tuple[Alternative, ...] = (),
    ) -> Token:
        """Add a token to the answer; say whether it is the last."""
        request, matcher = self.request, self._matcher
        self.ids.append(token)
        if self._counts is not None:
            self._counts[token] += 1
        thinking = self.thoughts is not None and self.thoughts.inside
        if self.thoughts is not None:
            self.thoughts.take(token)
        if token in request.stop_ids:
            self.stop_reason = "stop"
        elif matcher is not None and not thinking:
            self._follow(matcher, token)
        if self.stop_reason is None and self.answered >= request.max_tokens:
            self.stop_reason = "length"
        return Token(token, logp, sampler_logp, self.stop_reason, alternatives)

    def _follow(self, matcher: Matcher, token: int) -> None:
        """Let the grammar take a token in; the answer ends where nothing may follow."""
        try:
            matcher.take(token)
            if matcher.over and not self.request.stop_ids:
                self.stop_reason = "stop"
        except RequestError as error:
            self.fault, self.stop_reason = str(error), "error"

    def usage(self) -> Usage:
        """What it has taken so far."""
        thoughts = self.thoughts
        return Usage(
            prompt=len(self.prompt),
            reused=self.reused,
            miss=self.miss,
            answered=self.answered,
            thought=thoughts.spent if thoughts is not None else 0,
            cut=thoughts.cut if thoughts is not None else False,
            drafted=self.drafted,
            accepted=self.accepted,
        )

    def _only(self, token: int) -> Tensor:
        """Bits that allow one token."""
        allowed = torch.zeros(self._words, dtype=torch.int32)
        bit = 1 << token % 32
        allowed[token // 32] = bit - (1 << 32) if bit >= 1 << 31 else bit
        return allowed


__all__ = ["Live", "Rule"]

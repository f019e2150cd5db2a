"""Reads prompts piece by piece, and keeps what is remembered where it may serve again.

Promise: a step reads what the scheduler shares out, in one call of the model however many prompts
that are; at a boundary and at a prompt's end the state is kept in the prefix cache. Prompts that
are to be scored get the log-probability of each of their tokens.
"""

import torch
from torch import Tensor

from fathom.engine.live import Live
from fathom.engine.prefix import PrefixCache
from fathom.engine.request import Alternative, Token
from fathom.engine.runner import WINDOW, Runner
from fathom.engine.sampler import alternatives
from fathom.engine.scheduler import Scheduler

SCORED = 256
"""Prompt tokens whose logits are held at a time."""


class Reading:
    """The reading part of an engine's step."""

    def __init__(self, runner: Runner, scheduler: Scheduler, prefix: PrefixCache) -> None:
        self._runner, self._scheduler, self._prefix = runner, scheduler, prefix

    def step(self) -> tuple[int, list[Live], Tensor | None]:
        """Read on.

        Returns the number of tokens read, the requests of which everything is read, and the hidden
        states [S, D] after the prompts of those among them that have no answer yet.
        """
        ready = [live for live in self._scheduler.reading if not live.unread]
        shares = self._scheduler.shares()
        last: dict[int, Tensor] = {
            live.number: live.hidden_WD[-1] for live in ready if live.hidden_WD is not None
        }
        if shares:
            lives, counts = [live for live, _ in shares], [count for _, count in shares]
            hidden_TD, layout = self._runner.read(lives, counts)
            for live, start, count in zip(lives, layout.starts, counts, strict=True):
                rows_TD = hidden_TD[start : start + count]
                if live.request.prompt_logprobs is not None and not live.answered:
                    self._score(live, rows_TD)
                held = [live.hidden_WD] if live.hidden_WD is not None else []
                live.hidden_WD = torch.cat([*held, rows_TD[-WINDOW:]])[-WINDOW:].clone()
                last[live.number] = live.hidden_WD[-1]
                self._keep(live)
        finished = [*ready, *(live for live, _ in shares if not live.unread)]
        finished = [live for live in finished if live in self._scheduler.reading]
        rows = [last[live.number] for live in finished if not live.answered]
        return sum(count for _, count in shares), finished, torch.stack(rows) if rows else None

    def _keep(self, live: Live) -> None:
        """Keep what is remembered of a prompt, if this is a place for it."""
        here = live.seen in live.boundaries or live.seen == len(live.prompt)
        if live.request.alone or not here or not self._prefix.kept or live.state is None:
            return
        assert live.hidden_WD is not None
        ids = live.prompt[: live.seen]
        self._prefix.keep(ids, live.state, live.pages, live.hidden_WD[-1])

    def _score(self, live: Live, hidden_TD: Tensor) -> None:
        """Tell the log-probability of the tokens that follow these hidden states in the prompt."""
        begin = live.seen - len(hidden_TD)
        for place in range(0, len(hidden_TD), SCORED):
            rows_TD = hidden_TD[place : place + SCORED]
            following = live.ids[begin + place + 1 : begin + place + 1 + len(rows_TD)]
            following = following[: len(live.prompt) - (begin + place + 1)]
            if not following:
                return
            logits_TV = self._runner.logits(rows_TD[: len(following)])
            logp_TV = torch.log_softmax(logits_TV, -1)
            own = logp_TV[torch.arange(len(following)), torch.tensor(following)].tolist()
            for row, (token, logp) in enumerate(zip(following, own, strict=True)):
                told = alternatives(logits_TV[row], live.request.prompt_logprobs or 0)
                others = tuple(Alternative(*one) for one in told)
                live.scored.append(Token(token, logp, logp, None, others))


__all__ = ["Reading"]

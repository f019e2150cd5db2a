"""Draws the tokens of all rows of a step at once, each as if it were alone.

Promise: a row's token depends on its logits, its request's sampling and rules and its place in the
answer alone: never on the rows beside it, nor on whether the row was drafted. So what is drawn with
drafts is, token by token, what would have been drawn without, greedy or not. Where sampling alone
decides, the draw is part of the recorded step (`runner.py`); rows under rules are drawn again here.
Filters and the draw itself are `ops/draw`; penalties and random numbers `sampler.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.engine.live import Live, Rule
from fathom.engine.request import Alternative
from fathom.engine.sampler import adjusted, alternatives, uniform
from fathom.ops.draw import draw


class Parameters:
    """What rows are drawn with, in tensors that stay where they are."""

    def __init__(self, rows: int) -> None:
        wide = torch.float64
        self.temperature_R = torch.zeros(rows, dtype=wide)
        self.top_k_R = torch.zeros(rows, dtype=torch.int64)
        self.top_p_R = torch.ones(rows, dtype=wide)
        self.min_p_R = torch.zeros(rows, dtype=wide)
        self.point_R = torch.zeros(rows, dtype=wide)
        self._points = self.point_R.numpy()
        self._made_for: list[int] = []
        self._each = 0
        self._random = False

    def buffers(self) -> list[Tensor]:
        """All of it."""
        shares = [self.top_p_R, self.min_p_R, self.point_R]
        return [self.temperature_R, self.top_k_R, *shares]

    def set(self, lives: Sequence[Live], first: int = 0, each: int = 1) -> None:
        """Make them those of `each` rows a request, `first` places after its last token.

        What stays the same from step to step is written once.
        """
        made_for = [live.number for live in lives]
        if made_for != self._made_for or each != self._each:
            self._made_for, self._each = made_for, each
            found = [live.request.sampling for live in lives for _ in range(each)]
            count = len(found)
            self.temperature_R.numpy()[:count] = [one.temperature for one in found]
            self.top_k_R.numpy()[:count] = [one.top_k for one in found]
            self.top_p_R.numpy()[:count] = [one.top_p for one in found]
            self.min_p_R.numpy()[:count] = [one.min_p for one in found]
            self._random = any(one.temperature > 0 for one in found)
        if self._random:
            points, row = self._points, 0
            for live in lives:
                seed, place = live.request.sampling.seed, live.answered + first
                for ahead in range(each):
                    points[row] = uniform(seed, place + ahead)
                    row += 1

    def draw(self, logits_RV: Tensor, allowed_RM: Tensor | None = None) -> tuple[Tensor, ...]:
        """Ids, log-probabilities and log-probabilities among what was drawn from, [R] each."""
        rows = slice(0, len(logits_RV))
        return draw(
            logits_RV,
            self.temperature_R[rows],
            self.top_k_R[rows],
            self.top_p_R[rows],
            self.min_p_R[rows],
            self.point_R[rows],
            allowed_RM,
        )


class Drawn:
    """The tokens of a step's rows, as Python numbers."""

    __slots__ = ("alternatives", "ids", "logps", "sampler_logps")

    def __init__(self, ids_R: Tensor, logp_R: Tensor, sampler_logp_R: Tensor) -> None:
        self.ids: list[int] = ids_R.tolist()
        """The tokens; -1 where the logits hold no number to go by."""
        self.logps: list[float] = logp_R.tolist()
        """Log-probabilities by the model."""
        self.sampler_logps: list[float] = sampler_logp_R.tolist()
        """Log-probabilities among what was drawn from."""
        self.alternatives: dict[int, tuple[Alternative, ...]] = {}
        """By row, where they were asked for."""


def drawn_of(
    logits_RV: Tensor,
    drawn: tuple[Tensor, ...],
    parameters: Parameters,
    lives: Sequence[Live],
    *,
    first: int = 0,
    each: int = 1,
) -> Drawn:
    """The tokens of rows that sampling alone has drawn, after every rule has had its say.

    There are `each` rows a request: the places from `first` on after its last token. The place i
    after the last token is drawn as if the request's first i drafts had come.
    """
    ahead = first + each - 1
    strict = [at for at, live in enumerate(lives) if not live.free(ahead)]
    if strict:
        allowed_RM, source_RV = _under_rules(logits_RV, lives, strict, first, each)
        drawn = parameters.draw(source_RV, allowed_RM)
        if source_RV is not logits_RV:
            # the model's own log-probability, not that of the penalised logits
            own_RV = torch.log_softmax(logits_RV, -1)
            ids_R = drawn[0].clamp_min(0)
            drawn = drawn[0], own_RV.gather(1, ids_R[:, None])[:, 0], drawn[2]
    found = Drawn(*drawn)
    for at, live in enumerate(lives):
        if live.request.logprobs:
            for row in range(at * each, (at + 1) * each):
                told = alternatives(logits_RV[row], live.request.logprobs)
                found.alternatives[row] = tuple(Alternative(*one) for one in told)
    return found


def draw_now(logits_RV: Tensor, lives: Sequence[Live]) -> Drawn:
    """A token of each request from logits [S, V] that no recorded step made."""
    parameters = Parameters(len(lives))
    parameters.set(lives)
    return drawn_of(logits_RV, parameters.draw(logits_RV), parameters, lives)


def _under_rules(
    logits_RV: Tensor, lives: Sequence[Live], strict: Sequence[int], first: int, each: int
) -> tuple[Tensor | None, Tensor]:
    """Bits of what may come in each row, and logits after penalties."""
    allowed_RM: Tensor | None = None
    source_RV = logits_RV
    rows, vocab = logits_RV.shape
    for at in strict:
        live = lives[at]
        rules: list[Rule] = live.rules(live.drafts[: first + each - 1])
        for ahead, (allowed_M, counts) in enumerate(rules[first:]):
            row = at * each + ahead
            if allowed_M is not None:
                if allowed_RM is None:
                    allowed_RM = torch.full((rows, -(-vocab // 32)), -1, dtype=torch.int32)
                allowed_RM[row] = allowed_M
            if counts is not None:
                if source_RV is logits_RV:
                    source_RV = logits_RV.clone()
                sampling = live.request.sampling
                source_RV[row] = adjusted(logits_RV[row], sampling, live.prompt_tokens, counts)
    if allowed_RM is not None:
        allowed_RM = allowed_RM.to(logits_RV.device)
    return allowed_RM, source_RV


__all__ = ["Drawn", "Parameters", "draw_now", "drawn_of"]

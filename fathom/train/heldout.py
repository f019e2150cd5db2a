"""How good the model is on documents that it does not learn from.

Promise: the same batches every time, no gradient, no effect on the run. Acceptance is measured by
teacher forcing, one forward for all places; what drafting really saves is measured by the engine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.data.batch import Batch
from fathom.errors import DataError
from fathom.model.nemotron import Nemotron
from fathom.train.objective import CHUNK, Head, ahead


@dataclass(frozen=True)
class HeldOut:
    """Results over held-out batches."""

    summed: float
    """Sum of weight x cross-entropy of the next token, in nats."""
    weight: float
    """Weight of the targets."""
    asked: tuple[int, ...]
    """For each depth: places where all earlier guesses and the text itself agreed."""
    taken: tuple[int, ...]
    """Of those, places where the draft is again the backbone's own greedy token."""
    apart: float | None = None
    """Sum of weight x divergence from a teacher, in nats; None: there is none."""

    @property
    def loss(self) -> float:
        """Weighted mean cross-entropy of the next token, in nats."""
        return self.summed / self.weight

    @property
    def divergence(self) -> float | None:
        """Weighted mean divergence from the teacher, in nats; None: there is none."""
        return None if self.apart is None else self.apart / self.weight

    @property
    def score(self) -> float:
        """What is to be small: the divergence from the teacher, or without one the loss."""
        return self.loss if self.divergence is None else self.divergence

    @property
    def acceptance(self) -> tuple[float | None, ...]:
        """Share of drafts taken, given that all earlier ones were; None: no such place."""
        pairs = zip(self.taken, self.asked, strict=True)
        return tuple(taken / asked if asked else None for taken, asked in pairs)

    @classmethod
    def together(cls, parts: Sequence["HeldOut"]) -> "HeldOut":
        """Return the results of several sets of batches as those of one."""
        apart = [part.apart for part in parts if part.apart is not None]
        return cls(
            sum(part.summed for part in parts),
            sum(part.weight for part in parts),
            tuple(sum(asked) for asked in zip(*(part.asked for part in parts), strict=True)),
            tuple(sum(taken) for taken in zip(*(part.taken for part in parts), strict=True)),
            sum(apart) if apart else None,
        )


@torch.no_grad()
def evaluate(
    model: Nemotron, batches: Sequence[Batch], depths: int, teacher: Nemotron | None = None
) -> HeldOut:
    """Return held-out loss, the divergence from a teacher if one is given, and the MTP head's
    acceptance at each of `depths` depths.

    Raises:
        DataError: no batch, or only places of weight 0.
    """
    head = Head.of(model)
    guide = None if teacher is None else Head.of(teacher)
    summed, weight, apart = 0.0, 0.0, 0.0
    asked, taken = [0] * depths, [0] * depths
    for batch in batches:
        hidden_TD = model(batch.tokens_T, batch.layout)
        if teacher is None or guide is None:
            summed += float(head.weighted(hidden_TD, *ahead(batch, 0)))
        else:
            given_TD = teacher(batch.tokens_T, batch.layout)
            parts = head.divergence(hidden_TD, guide, given_TD, *ahead(batch, 0))
            apart, summed = apart + float(parts[0]), summed + float(parts[1])
        weight += float(batch.weights_T.double().sum())
        for depth, (places, agreed) in enumerate(agreement(model, hidden_TD, batch, depths)):
            asked[depth] += places
            taken[depth] += agreed
    if not weight:
        raise DataError(
            "The held-out documents hold no place with a weight; give documents with something "
            "to predict."
        )
    left = None if teacher is None else apart
    return HeldOut(summed, weight, tuple(asked), tuple(taken), left)


def agreement(
    model: Nemotron, hidden_TD: Tensor, batch: Batch, depths: int
) -> Iterator[tuple[int, int]]:
    """Yield for every depth at how many places it was asked, and at how many it agreed.

    At place t the backbone's own token is a_t. Depth k is asked where a_t .. a_t+k-1 are the
    text's tokens, all earlier drafts were too, and all k + 1 places have a weight and lie in one
    sequence: there a serving engine would have come to the same context.
    """
    greedy_T = _greedy(model, hidden_TD) if depths else batch.targets_T
    own = Batch(batch.tokens_T, greedy_T, batch.weights_T, batch.layout)
    alive_T = (greedy_T == batch.targets_T) & (batch.weights_T != 0)
    for depth in range(1, depths + 1):
        known_T, _ = ahead(batch, depth - 1)
        hidden_TD = model.draft(hidden_TD, known_T, batch.layout)
        draft_T = _greedy(model, hidden_TD)
        backbone_T, weights_T = ahead(own, depth)
        text_T, _ = ahead(batch, depth)
        asked_T = alive_T & (weights_T != 0)
        agreed_T = asked_T & (draft_T == backbone_T)
        yield int(asked_T.sum()), int(agreed_T.sum())
        alive_T = agreed_T & (draft_T == text_T)


def _greedy(model: Nemotron, hidden_TD: Tensor) -> Tensor:
    """The likeliest token of each row, int64 [T], a chunk of rows at a time."""
    return torch.cat([model.logits(rows).argmax(-1) for rows in torch.split(hidden_TD, CHUNK)])


__all__ = ["HeldOut", "agreement", "evaluate"]

"""What a run minimises: next-token cross-entropy, multi-token prediction, balance of the routers.

Promise: weights decide what is learned and nothing else does; sums are divided by the weight of
the whole step, so accumulating micro-batches equals one big batch; logits of all tokens never
exist at once. Which tokens and weights is `data/`'s matter; the router's balance loss itself is
the model's.

With the hidden state h_t (after the final norm) and targets y_t = token t + 1:
next token: CE(head h_t, y_t). Depth k of the MTP head: g_k,t = draft(g_k-1,t, y_t+k-1) with
g_0 = h, and CE(head g_k,t, y_t+k); places whose target lies past their sequence count nothing.
Total: next + factor * mean over depths + balance (Super technical report, sections 2.2 and 2.3:
factor 0.3 over 2 depths is 0.15 each).

With a teacher the first term is KL(teacher || student) of the next token's distributions, over all
of the vocabulary, and as much of the cross-entropy as is asked for (quantisation-aware
distillation, arXiv 2601.20088, where the student's weights are rounded).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fathom.config.train import TrainConfig
from fathom.data.batch import Batch
from fathom.model.latent_moe import Router
from fathom.model.nemotron import Nemotron
from fathom.ops.linear import Precision, linear
from fathom.ops.rows import pick

CHUNK = 512
"""Rows whose logits exist at once."""


@dataclass(frozen=True)
class Totals:
    """What one optimizer step divides its sums by."""

    weights: tuple[float, ...]
    """Weight of all next-token targets, then of the targets of each depth."""
    sequences: int
    """Sequences in all micro-batches, over which the balance loss is a mean."""


@dataclass(frozen=True)
class Losses:
    """The share of one micro-batch in the loss of its step; shares add up over micro-batches."""

    total: Tensor
    """Scalar with a graph: what backward starts from."""
    next: Tensor
    """Detached: weighted mean cross-entropy of the next token, in nats, minimised or not."""
    depths: tuple[Tensor, ...]
    """Detached: the same for every depth of the MTP head, before its factor."""
    balance: Tensor
    """Detached: sum of the routers' balance losses."""
    loads: tuple[Tensor, ...]
    """int64 [E] for each router, MTP's last and summed over depths."""
    teacher: Tensor | None = None
    """Detached: weighted mean divergence from the teacher, in nats; None: there is none."""


def totals(batches: Sequence[Batch], depths: int) -> Totals:
    """Return what the sums over `batches`, which make one optimizer step, are divided by."""
    weights = [
        sum(float(ahead(batch, depth)[1].double().sum()) for batch in batches)
        for depth in range(depths + 1)
    ]
    return Totals(tuple(weights), sum(batch.layout.sequences for batch in batches))


def depths_of(model: Nemotron, config: TrainConfig) -> int:
    """Return the depths at which this run trains the MTP head: none if the model has no head."""
    return config.mtp.depths if model.config.mtp and config.mtp.factor else 0


def ahead(batch: Batch, depth: int) -> tuple[Tensor, Tensor]:
    """Return targets and weights of the place `depth` further on within the same sequence.

    Past a sequence's end the target is the sequence's last and its weight is 0.
    """
    if depth == 0:
        return batch.targets_T, batch.weights_T
    layout, device = batch.layout, batch.tokens_T.device
    last_T = layout.last_S[layout.sequence_T].to(device)
    place_T = torch.arange(batch.tokens, device=device) + depth
    from_T = torch.minimum(place_T, last_T)
    weights_T = torch.where(place_T <= last_T, batch.weights_T[from_T], 0.0)
    return batch.targets_T[from_T], weights_T


def loss(
    model: Nemotron,
    batch: Batch,
    config: TrainConfig,
    total: Totals,
    teacher: Nemotron | None = None,
) -> Losses:
    """Run the model forward over one micro-batch and return its share of the step's loss.

    `teacher` is the model that `config.distil` speaks of, with the same vocabulary.
    """
    depths = depths_of(model, config)
    routers = model.routers()
    own = model.config.mtp.count("E")
    backbone, drafting = routers[: len(routers) - own], routers[len(routers) - own :]
    hidden_TD = model(batch.tokens_T, batch.layout)
    balance = _balance(backbone)
    loads = [router.load_E.clone() for router in routers]
    for load_E in loads[len(backbone) :]:
        load_E.zero_()
    head = Head.of(model)
    next_token, learned, apart = _next(head, hidden_TD, batch, config, total, teacher)
    parts = []
    with stopped(model.embedding.weight, config.mtp.detach):
        if config.mtp.detach:
            hidden_TD, head = hidden_TD.detach(), head.detach()
        for depth in range(1, depths + 1):
            known_T, _ = ahead(batch, depth - 1)
            hidden_TD = model.draft(hidden_TD, known_T, batch.layout)
            summed = head.weighted(hidden_TD, *ahead(batch, depth))
            parts.append(summed / (total.weights[depth] or 1.0))
            balance += [part / depths for part in _balance(drafting)]
            for load_E, router in zip(loads[len(backbone) :], drafting, strict=True):
                load_E += router.load_E
    share = batch.layout.sequences / total.sequences
    balanced = torch.stack(balance).sum() * share if balance else next_token.new_zeros(())
    result = learned + balanced
    if parts:
        result = result + config.mtp.factor * torch.stack(parts).mean()
    return Losses(
        total=result,
        next=next_token.detach(),
        depths=tuple(part.detach() for part in parts),
        balance=balanced.detach(),
        loads=tuple(loads),
        teacher=None if apart is None else apart.detach(),
    )


def _next(
    head: "Head",
    hidden_TD: Tensor,
    batch: Batch,
    config: TrainConfig,
    total: Totals,
    teacher: Nemotron | None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The next token's cross-entropy, what is minimised, and the divergence from a teacher."""
    whole = total.weights[0] or 1.0
    if teacher is None:
        next_token = head.weighted(hidden_TD, *ahead(batch, 0)) / whole
        return next_token, next_token, None
    assert config.distil is not None
    with torch.no_grad():
        given_TD = teacher(batch.tokens_T, batch.layout)
    apart, next_token = head.divergence(
        hidden_TD, Head.of(teacher), given_TD, batch.targets_T, batch.weights_T
    )
    apart, next_token = apart / whole, next_token / whole
    share = config.distil.data
    return next_token, apart + share * next_token if share else apart, apart


@dataclass(frozen=True)
class Head:
    """The matrix that turns hidden states into logits, and the precision laid over it."""

    weight_VD: Tensor
    precision: Precision = "stored"

    @classmethod
    def of(cls, model: Nemotron) -> "Head":
        """Return a model's head; a tied one is the embedding, as stored."""
        return cls(model.head_weight, "stored" if model.head is None else model.head.precision)

    def detach(self) -> "Head":
        """Return the same head without a gradient."""
        return Head(self.weight_VD.detach(), self.precision)

    def cross_entropy(self, hidden_TD: Tensor, targets_T: Tensor) -> Tensor:
        """Return the cross-entropy of each row, in nats, fp32 [T], a chunk of rows at a time."""
        if self._plain(hidden_TD):
            return self._fused(hidden_TD, targets_T, "none")
        parts = [
            checkpoint(self._rows, rows_TD, part_T, use_reentrant=False)
            for rows_TD, part_T in zip(
                torch.split(hidden_TD, CHUNK), torch.split(targets_T, CHUNK), strict=True
            )
        ]
        return torch.cat(parts)

    def weighted(self, hidden_TD: Tensor, targets_T: Tensor, weights_T: Tensor) -> Tensor:
        """Return the sum of weight x cross-entropy, fp32 scalar; weight 0 costs no work.

        Equal weights, the case of pretraining, need three products of the head's size; unequal
        ones need a fourth, because the logits are computed again in the backward pass.
        """
        rows = weights_T != 0
        if not bool(rows.all()):
            hidden_TD = pick(hidden_TD, rows.nonzero()[:, 0])
            targets_T, weights_T = targets_T[rows], weights_T[rows]
        if not len(weights_T):
            return hidden_TD.float().sum()
        if self._plain(hidden_TD) and bool((weights_T == weights_T[0]).all()):
            return self._fused(hidden_TD, targets_T, "sum") * weights_T[0]
        return (self.cross_entropy(hidden_TD, targets_T) * weights_T).sum()

    def divergence(
        self,
        hidden_TD: Tensor,
        teacher: "Head",
        given_TD: Tensor,
        targets_T: Tensor,
        weights_T: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Return sums of weight x KL(teacher || own) and of weight x cross-entropy, fp32 scalars.

        Both models' logits exist for a chunk of rows at a time and are computed again in the
        backward pass; weight 0 costs no work. Nothing is learned by the teacher's side.

        Args:
            hidden_TD: own hidden states.
            teacher: the teacher's head, of the same vocabulary.
            given_TD: the teacher's hidden states; their width may be another.
            targets_T: int64, what the cross-entropy is of.
            weights_T: fp32.
        """
        rows = weights_T != 0
        if not bool(rows.all()):
            hidden_TD = pick(hidden_TD, rows.nonzero()[:, 0])
            given_TD, targets_T, weights_T = given_TD[rows], targets_T[rows], weights_T[rows]
        if not len(weights_T):
            return hidden_TD.float().sum(), hidden_TD.float().sum()
        splits = (torch.split(part, CHUNK) for part in (hidden_TD, given_TD, targets_T))
        parts = [
            checkpoint(self._apart, rows_TD, teacher.detach(), part_TD, part_T, use_reentrant=False)
            for rows_TD, part_TD, part_T in zip(*splits, strict=True)
        ]
        apart_T, next_T = (torch.cat(found) for found in zip(*parts, strict=True))
        return (apart_T * weights_T).sum(), (next_T * weights_T).sum()

    def _apart(
        self, hidden_TD: Tensor, teacher: "Head", given_TD: Tensor, targets_T: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Divergence from the teacher and cross-entropy of each row."""
        q_TV = linear(hidden_TD, self.weight_VD, self.precision).float().log_softmax(-1)
        with torch.no_grad():
            logits_TV = linear(given_TD, teacher.weight_VD, teacher.precision).float()
            p_TV = logits_TV.log_softmax(-1)
        apart_T = F.kl_div(q_TV, p_TV, reduction="none", log_target=True).sum(-1)
        return apart_T, F.nll_loss(q_TV, targets_T, reduction="none")

    def _plain(self, hidden_TD: Tensor) -> bool:
        """Whether torch's fused operation computes exactly what is wanted: fp32 throughout."""
        return self.precision == "stored" and hidden_TD.dtype == torch.float32

    def _fused(self, hidden_TD: Tensor, targets_T: Tensor, reduction: str) -> Tensor:
        options = nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
        return F.linear_cross_entropy(
            hidden_TD, self.weight_VD, targets_T, reduction=reduction, options=options
        )

    def _rows(self, hidden_TD: Tensor, targets_T: Tensor) -> Tensor:
        logits_TV = linear(hidden_TD, self.weight_VD, self.precision).float()
        return F.cross_entropy(logits_TV, targets_T, reduction="none")


def token_logp(model: Nemotron, hidden_TD: Tensor, targets_T: Tensor) -> Tensor:
    """Return the log-probability of each target, fp32 [T], differentiable in hidden and head."""
    return -Head.of(model).cross_entropy(hidden_TD, targets_T)


def _balance(routers: Sequence[Router]) -> list[Tensor]:
    """The weighted balance losses of the last forward; none where the weight is 0."""
    return [router.balance_loss for router in routers if router.balance_loss is not None]


@contextmanager
def stopped(parameter: nn.Parameter, stop: bool) -> Iterator[None]:
    """Within this, let no gradient into `parameter` from what is computed, if `stop`."""
    wanted = parameter.requires_grad
    parameter.requires_grad_(wanted and not stop)
    try:
        yield
    finally:
        parameter.requires_grad_(wanted)


__all__ = [
    "CHUNK",
    "Head",
    "Losses",
    "Totals",
    "ahead",
    "depths_of",
    "loss",
    "stopped",
    "token_logp",
    "totals",
]

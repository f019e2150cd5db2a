"""One optimizer step: gradients of all micro-batches, then all changes at once.

Promise: `gradients` changes no weight, so it may be broken off anywhere; `apply` changes weights,
optimizer and router biases together. A loss or gradient that is not finite is never applied. What
is minimised comes in as a function of a batch, so that every kind of training shares this file.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.config.train import TrainConfig
from fathom.data.batch import Batch
from fathom.model.nemotron import Nemotron
from fathom.model.precision import Matrices, lay
from fathom.ops.nvfp4 import Recipe, Rounding
from fathom.train import balance
from fathom.train.objective import Losses
from fathom.train.optim import Optimizer


@dataclass(frozen=True)
class Gradients:
    """What the micro-batches of one step came to; the gradients themselves lie in the model."""

    total: float
    """What is minimised."""
    next: float
    """Cross-entropy of the next token, in nats."""
    depths: tuple[float, ...]
    """The same for each depth of the MTP head."""
    balance: float
    """Balance loss."""
    norm: float
    """Norm of all gradients together, before clipping."""
    loads: tuple[Tensor, ...]
    """int64 [E] for each router."""
    teacher: float | None = None
    """Divergence from the teacher, in nats, if there is one."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradients are numbers."""
        return math.isfinite(self.total) and math.isfinite(self.norm)

    @property
    def values(self) -> dict[str, float]:
        """The same as named numbers for a report."""
        values = {"loss": self.next, "total": self.total, "grad_norm": self.norm}
        if self.teacher is not None:
            values["divergence"] = self.teacher
        if self.loads:
            values["balance"] = self.balance
        values |= {f"mtp/{depth}": loss for depth, loss in enumerate(self.depths, 1)}
        return values | balance.metrics(self.loads)


def prepare(
    model: Nemotron, config: TrainConfig, rounding: Rounding | None = None, step: int = 0
) -> None:
    """Lay what a recipe says about precision (at `step`), memory and balance over a model.

    `rounding` holds the random numbers of training in NVFP4.
    """
    own = config.nvfp4
    recipe = Recipe(tiles=own.tiles, stochastic=own.stochastic, transform=own.transform)
    lay(model, config.precision_at(step), rounding, recipe)
    model.gradient_checkpointing = config.gradient_checkpointing
    for router in model.routers():
        router.balance_weight = config.balance.loss if config.balance.on else 0.0


def gradients(
    optimizer: Optimizer,
    batches: Sequence[Batch],
    objective: Callable[[Batch], Losses],
    clip: float,
    rounding: Rounding | None = None,
) -> Gradients:
    """Run forward and backward over the micro-batches of one step and clip the gradients.

    `objective` returns a micro-batch's share of the step's loss; `clip` 0 leaves gradients be;
    `rounding` stands at the step and is moved on through its micro-batches.
    """
    optimizer.zero()
    shares = []
    for micro, batch in enumerate(batches):
        if rounding is not None:
            rounding.move(rounding.step, micro)
        losses = objective(batch)
        losses.total.backward()
        shares.append(losses)
    apart = [float(share.teacher) for share in shares if share.teacher is not None]
    grads = [parameter.grad for parameter in optimizer.names if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    if clip:
        moved = [parameter for parameter in optimizer.names if parameter.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(moved, clip, norm)
    return Gradients(
        total=sum(float(share.total.detach()) for share in shares),
        next=sum(float(share.next) for share in shares),
        depths=tuple(
            sum(float(part) for part in parts)
            for parts in zip(*(share.depths for share in shares), strict=True)
        ),
        balance=sum(float(share.balance) for share in shares),
        norm=float(norm),
        loads=tuple(
            torch.stack(loads).sum(0)
            for loads in zip(*(share.loads for share in shares), strict=True)
        ),
        teacher=sum(apart) if apart else None,
    )


def health(model: Nemotron, rounding: Rounding) -> dict[str, float]:
    """What rounding lost in a step that was listened to, while its gradients still lie there.

    Shares of activations, gradients and weights that became zero, and of the weight gradients of
    matrices in four or eight bits that are exactly zero: of all, and of the worst matrix.
    """
    zeros = [
        (int((weight.grad == 0).sum()), weight.numel())
        for part in model.modules()
        if isinstance(part, Matrices) and part.quantisers is not None
        for weight in part.parameters(recurse=False)
        if weight.grad is not None
    ]
    found = {f"rounding/{name}": share for name, share in rounding.heard().items()}
    if zeros:
        found["rounding/zero_gradients"] = sum(z for z, _ in zeros) / sum(n for _, n in zeros)
        found["rounding/zero_gradients_worst"] = max(z / n for z, n in zeros)
    return found


def apply(
    model: Nemotron,
    optimizer: Optimizer,
    found: Gradients,
    config: TrainConfig,
    scale: float,
) -> bool:
    """Move weights (at `scale` times their peak rate) and router biases; return whether it did.

    Nothing moves if `found` is not finite.
    """
    if found.finite:
        optimizer.step(scale)
        if config.balance.on:
            for router, load_E in zip(model.routers(), found.loads, strict=True):
                balance.move(router.correction_bias, load_E, config.balance.bias_rate)
    optimizer.zero()
    return found.finite


__all__ = ["Gradients", "apply", "gradients", "health", "prepare"]

"""Routed experts as grouped products over tokens sorted by expert, backward by hand.

Promise: equal to `reference.py` up to fp32 rounding, values and gradients; no loop over tokens, no
scatter-add (a token's copies are found again by the inverse of the sort). Of the forward pass only
the inputs and the hidden layer are kept.
"""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fathom.ops.experts.reference import packed_experts, route
from fathom.ops.linear.eager import multiplies_bf16


def grouped(rows: Tensor, weight_Eab: Tensor, ends_E: Tensor) -> Tensor:
    """rows [R, a] times each expert's [a, b]; `ends_E` (int32) says where its rows end."""
    even = 16 // rows.element_size()
    if rows.shape[1] % even == 0 and weight_Eab.shape[2] % even == 0:
        return F.grouped_mm(rows, weight_Eab, offs=ends_E)
    # grouped_mm wants strides of 16 bytes; odd widths, which no official size has, go one by one
    out = rows.new_empty(rows.shape[0], weight_Eab.shape[2])
    begin = 0
    for expert, end in enumerate(ends_E.tolist()):
        torch.mm(rows[begin:end], weight_Eab[expert], out=out[begin:end])
        begin = end
    return out


def outer(left: Tensor, right: Tensor, ends_E: Tensor) -> Tensor:
    """left [R, a] and right [R, b] -> for each expert left' right over its rows, [E, a, b]."""
    if left.shape[1] % 4 == 0 and right.shape[1] % 4 == 0:
        return F.grouped_mm(left.T, right, offs=ends_E)
    begins = [0, *ends_E.tolist()]
    return torch.stack([left[a:b].T @ right[a:b] for a, b in itertools.pairwise(begins)])


def _narrow(rows: Tensor, weight_Eab: Tensor, ends_E: Tensor) -> Tensor:
    """`grouped` of rows rounded to BF16 and a BF16 weight; its sums, rounded to BF16, in fp32."""
    rows = rows.bfloat16()
    if multiplies_bf16(rows.device):
        return grouped(rows, weight_Eab, ends_E).float()
    return grouped(rows.float(), weight_Eab.float(), ends_E).bfloat16().float()


class Sorted:
    """Copies of the tokens, one per chosen expert, in the order of the experts."""

    def __init__(self, chosen_TK: Tensor, experts: int) -> None:
        flat = chosen_TK.reshape(-1)
        self.shape = chosen_TK.shape
        self.order_R = flat.argsort(stable=True)
        self.token_R = self.order_R // chosen_TK.shape[1]
        self.place_R = torch.empty_like(self.order_R)
        self.place_R[self.order_R] = torch.arange(flat.numel(), device=flat.device)
        counts_E = torch.bincount(flat, minlength=experts)
        self.ends_E = counts_E.cumsum(0).to(torch.int32)

    def sum_of_copies(self, rows: Tensor) -> Tensor:
        """rows [R, D] -> [T, D]."""
        return sum_of_copies(rows, self.place_R, self.shape)


def sum_of_copies(rows: Tensor, place_R: Tensor, shape: torch.Size) -> Tensor:
    """rows [R, D] at the places of all choices, [T, K] in `shape` -> [T, D]."""
    return rows.index_select(0, place_R).view(*shape, -1).sum(1)


class _Experts(torch.autograd.Function):
    """x [T, D], up [E, I, D], down [E, D, I], chosen [T, K], weights [T, K] -> [T, D]; fp32.

    The hidden layer is rounded to `kept`, as packed experts round it. `narrow`: the operands, sums
    and gradients of products are rounded to BF16, but the weights' gradients, which are fp32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        up: Tensor,
        down: Tensor,
        chosen: Tensor,
        weights: Tensor,
        kept: torch.dtype,
        narrow: bool,
    ) -> Tensor:
        """Sort, multiply, square, multiply, bring back."""
        rows = Sorted(chosen, up.shape[0])
        if narrow:
            x, up, down = x.bfloat16(), up.bfloat16(), down.bfloat16()
        product = _narrow if narrow else grouped
        hidden = product(x.index_select(0, rows.token_R), up.transpose(1, 2), rows.ends_E).relu_()
        weight_R = weights.reshape(-1).index_select(0, rows.order_R)
        squared = hidden.square().to(kept).float().mul_(weight_R[:, None])
        y = rows.sum_of_copies(product(squared, down.transpose(1, 2), rows.ends_E))
        ctx.rows, ctx.kept, ctx.narrow = rows, kept, narrow
        ctx.save_for_backward(x, up, down, weight_R, hidden)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, up, down and weights."""
        x, up, down, weight_R, hidden = ctx.saved_tensors
        rows: Sorted = ctx.rows
        dy_R = dy.index_select(0, rows.token_R)
        product = _narrow if ctx.narrow else grouped
        squared = hidden.square().to(ctx.kept).float()
        dsquared = product(dy_R, down, rows.ends_E)
        dweights = torch.linalg.vecdot(dsquared, squared).index_select(0, rows.place_R)
        squared.mul_(weight_R[:, None])
        dhidden = dsquared.mul_(hidden).mul_(weight_R.mul(2)[:, None])
        dx = rows.sum_of_copies(product(dhidden, up, rows.ends_E))
        if ctx.narrow:
            dy_R, squared, dhidden = (t.bfloat16().float() for t in (dy_R, squared, dhidden))
        ddown = outer(dy_R, squared, rows.ends_E)
        dup = outer(dhidden, x.index_select(0, rows.token_R).float(), rows.ends_E)
        return dx, dup, ddown, None, dweights.view(rows.shape), None, None


class _SquaredReLU(torch.autograd.Function):
    """relu(x)^2, keeping relu(x) alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Two passes."""
        r = x.relu()
        ctx.save_for_backward(r)
        return r.square()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        """2 r dy."""
        r: Tensor = ctx.saved_tensors[0]
        return (dy * r).mul_(2)


def squared_relu(x_TI: Tensor) -> Tensor:
    """See `fathom.ops.experts.squared_relu`."""
    return _SquaredReLU.apply(x_TI)  # type: ignore[no-any-return]


def experts(
    x_TD: Tensor,
    up_EID: Tensor,
    down_EDI: Tensor,
    chosen_TK: Tensor,
    weights_TK: Tensor,
    precision: str = "stored",
) -> Tensor:
    """See `fathom.ops.experts.experts`."""
    if chosen_TK.numel() < up_EID.shape[0] and not torch.is_grad_enabled():
        # fewer visits than experts: read only those that are visited
        names, chosen_TK = chosen_TK.unique(return_inverse=True)
        up_EID, down_EDI = up_EID.index_select(0, names), down_EDI.index_select(0, names)
    y: Tensor = _Experts.apply(
        x_TD.float(),
        up_EID.float(),
        down_EDI.float(),
        chosen_TK,
        weights_TK.float(),
        x_TD.dtype if x_TD.dtype == torch.bfloat16 else torch.float32,
        precision == "bf16",
    )
    return y.to(x_TD.dtype)


__all__ = [
    "Sorted",
    "experts",
    "grouped",
    "outer",
    "packed_experts",
    "route",
    "squared_relu",
    "sum_of_copies",
]

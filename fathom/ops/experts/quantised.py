"""Routed experts whose products have operands in four bits (NVFP4) or in eight (MXFP8).

Promise: as `ops/linear/quantised.py`, each expert's weights and rows with scales of their own. The
rows of an expert are filled up with zeros to whole blocks; taking them from the tokens is part of
rounding, which looks at every expert in one call.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.ops.experts.eager import Sorted, grouped, outer, sum_of_copies
from fathom.ops.linear.quantised import fast_type
from fathom.ops.nvfp4 import BLOCK, Groups, Quantiser, scaled


class _Padded:
    """Copies of the tokens in the order of the experts, each expert's in whole blocks."""

    def __init__(self, chosen_TK: Tensor, experts: int, block: int) -> None:
        rows = Sorted(chosen_TK, experts)
        self.shape = chosen_TK.shape
        ends_E = rows.ends_E.long()
        counts_E = ends_E.diff(prepend=ends_E.new_zeros(1))
        whole_E = (counts_E + block - 1) // block * block
        own_ends_E = whole_E.cumsum(0)
        shift_E = (own_ends_E - whole_E) - (ends_E - counts_E)
        place_R = torch.arange(rows.order_R.shape[0], device=ends_E.device)
        place_R = place_R + shift_E.repeat_interleave(counts_E)
        self.ends_E = own_ends_E.to(torch.int32)
        self.copy_R = torch.full((int(own_ends_E[-1]),), -1, device=ends_E.device)
        self.copy_R[place_R] = rows.order_R
        """Which of the T K choices stands here; -1: none."""
        source_R = torch.where(self.copy_R < 0, -1, self.copy_R // self.shape[1])
        self.place_R = place_R[rows.place_R]
        names = torch.arange(experts, dtype=torch.int32, device=ends_E.device)
        group_B = names.repeat_interleave(whole_E // BLOCK)
        self.taken, self.there = (Groups(s, group_B, experts) for s in (source_R, None))

    def of_choices(self, values_TK: Tensor) -> Tensor:
        """A value of each choice -> one of each row, zero where there is none."""
        values = torch.cat([values_TK.reshape(-1), values_TK.new_zeros(1)])
        return values[self.copy_R]

    def scaled(self, sums: Tensor, alpha_E: Tensor) -> Tensor:
        """The sums of grouped products, times each expert's alpha: fp32 [R, ..]."""
        return scaled(sums, alpha_E, torch.float32, self.taken.group_B)

    def sum_of_copies(self, rows: Tensor) -> Tensor:
        """rows [R, D] -> [T, D]."""
        return sum_of_copies(rows, self.place_R, self.shape)


class _Quantised(torch.autograd.Function):
    """x [T, D], up [E, I, D], down [E, D, I], chosen [T, K], weights [T, K] -> [T, D]; fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        up: Tensor,
        down: Tensor,
        chosen: Tensor,
        weights: Tensor,
        quantisers: tuple[Quantiser, Quantiser],
        trains: bool,
    ) -> Tensor:
        """Round, multiply, square and weigh, round, multiply, bring back."""
        by_up, by_down = quantisers
        dtype = fast_type(x.device)
        learns = [trains and needed for needed in ctx.needs_input_grad[1:3]]
        rows = _Padded(chosen, up.shape[0], by_up.recipe.block)
        made_up, made_down = by_up.weight(up, dtype), by_down.weight(down, dtype)
        given = by_up.activation(x, dtype, rows.taken, learns[0])
        assert given.rows is not None
        sums = grouped(given.rows, made_up.forward.transpose(1, 2), rows.ends_E)
        hidden = rows.scaled(sums, given.rows_scale * made_up.forward_scale).relu_()
        weight_R = rows.of_choices(weights)
        squared = hidden.square().mul_(weight_R[:, None])
        inner = by_down.activation(squared, dtype, rows.there, learns[1])
        assert inner.rows is not None
        sums = grouped(inner.rows, made_down.forward.transpose(1, 2), rows.ends_E)
        ctx.rows, ctx.quantisers, ctx.dtypes = rows, quantisers, (up.dtype, down.dtype)
        draws = trains and any(ctx.needs_input_grad)
        ctx.keys = [q.key() for q in quantisers] if draws else None
        ctx.save_for_backward(
            *(given.columns, given.columns_scale, made_up.backward, made_up.backward_scale),
            *(inner.columns, inner.columns_scale, made_down.backward, made_down.backward_scale),
            *(weight_R, hidden),
        )
        return rows.sum_of_copies(rows.scaled(sums, inner.rows_scale * made_down.forward_scale))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, up, down and weights."""
        x_C, x_scale, up, up_scale, s_C, s_scale, down, down_scale, weight_R, hidden = (
            ctx.saved_tensors
        )
        rows: _Padded = ctx.rows
        (by_up, by_down), (key_up, key_down) = ctx.quantisers, ctx.keys
        dup = ddown = None
        found = by_down.gradient(dy, down.dtype, key_down, rows.taken, s_C is not None)
        if s_C is not None:
            ddown = outer(found.columns, s_C, rows.ends_E)
            ddown = ddown.mul_((found.columns_scale * s_scale)[:, None, None]).to(ctx.dtypes[1])
        sums = grouped(found.rows, down, rows.ends_E)
        dhidden = rows.scaled(sums, found.rows_scale * down_scale).mul_(hidden)
        dweights = torch.linalg.vecdot(dhidden, hidden).index_select(0, rows.place_R)
        dhidden.mul_(weight_R.mul(2)[:, None])
        found = by_up.gradient(dhidden, up.dtype, key_up, rows.there, x_C is not None)
        if x_C is not None:
            dup = outer(found.columns, x_C, rows.ends_E)
            dup = dup.mul_((found.columns_scale * x_scale)[:, None, None]).to(ctx.dtypes[0])
        sums = grouped(found.rows, up, rows.ends_E)
        dx = rows.sum_of_copies(rows.scaled(sums, found.rows_scale * up_scale))
        return dx, dup, ddown, None, dweights.view(rows.shape), None, None


def quantised_experts(
    x_TD: Tensor,
    up_EID: Tensor,
    down_EDI: Tensor,
    chosen_TK: Tensor,
    weights_TK: Tensor,
    quantisers: tuple[Quantiser, Quantiser],
) -> Tensor:
    """See `fathom.ops.experts.quantised_experts`."""
    y: Tensor = _Quantised.apply(
        x_TD, up_EID, down_EDI, chosen_TK, weights_TK.float(), quantisers, torch.is_grad_enabled()
    )
    return y.to(x_TD.dtype)


__all__ = ["quantised_experts"]

"""y = x W' whose three products have operands in four bits (NVFP4) or in eight (MXFP8).

Promise: each product is an ordinary one of the decoded operands, in the arithmetic that the machine
does fast; the scales of whole matrices are multiplied into its result in fp32. Sums of y and dx are
rounded to BF16, those of dW are fp32. What is rounded how is `ops/nvfp4/training.py`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fathom.ops.linear.eager import multiplies_bf16
from fathom.ops.nvfp4.training import Quantiser, scaled


def fast_type(device: torch.device) -> torch.dtype:
    """The type in which this device multiplies decoded operands fastest; both hold them exactly."""
    return torch.bfloat16 if multiplies_bf16(device) else torch.float32


class _Quantised(torch.autograd.Function):
    """The product of x [T, I] and a weight [O, I]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, quantiser: Quantiser, trains: bool) -> Tensor:
        """Keep what dW and dx need: x by columns, and the weight's operand."""
        dtype, learns = fast_type(x.device), trains and ctx.needs_input_grad[1]
        made = quantiser.weight(weight, dtype)
        found = quantiser.activation(x, dtype, None, learns)
        assert found.rows is not None
        ctx.quantiser, ctx.dtypes = quantiser, (x.dtype, weight.dtype)
        ctx.key = quantiser.key() if trains and any(ctx.needs_input_grad) else None
        ctx.save_for_backward(
            found.columns, found.columns_scale, made.backward, made.backward_scale
        )
        sums = F.linear(found.rows, made.forward)
        return scaled(sums, found.rows_scale * made.forward_scale, x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Round dy twice: along its rows for dx, along tokens for dW."""
        columns, columns_scale, weight, weight_scale = ctx.saved_tensors
        learns, dx, dw = ctx.needs_input_grad[1], None, None
        found = ctx.quantiser.gradient(dy, weight.dtype, ctx.key, None, learns)
        assert found.rows is not None
        if ctx.needs_input_grad[0]:
            dx = scaled(found.rows @ weight, found.rows_scale * weight_scale, ctx.dtypes[0])
        if learns:
            assert found.columns is not None
            dw = (found.columns.T @ columns).mul_(found.columns_scale * columns_scale)
            dw = dw.to(ctx.dtypes[1])
        return dx, dw, None, None


def quantised_linear(x_TI: Tensor, weight_OI: Tensor, quantiser: Quantiser) -> Tensor:
    """See `fathom.ops.linear.quantised_linear`."""
    y: Tensor = _Quantised.apply(x_TI, weight_OI, quantiser, torch.is_grad_enabled())
    return y


__all__ = ["fast_type", "quantised_linear"]

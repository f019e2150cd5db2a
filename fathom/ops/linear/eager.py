"""Matrix products in the arithmetic that the machine does fast.

Promise: equal to `reference.py` up to the order of additions. BF16 operands are multiplied by BF16
instructions where the CPU (or GPU) has them; elsewhere they are widened to fp32, which holds them
exactly, because the libraries' emulation of BF16 is up to a hundred times slower.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fathom.ops.linear.packed import PANEL, Packed
from fathom.ops.linear.reference import rounded_rows

BLOCK = 1 << 22
"""Weights widened at a time where nothing keeps them: 16 MB, so that a large head needs no copy."""

_CPU_HAS_BF16 = any(
    torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16")
)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether BF16 products run at full speed on this device."""
    return device.type != "cpu" or _CPU_HAS_BF16


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x weight' for operands of one type, the result of that type."""
    if x.dtype == torch.float32 or multiplies_bf16(x.device):
        return F.linear(x, weight)
    rows = max(1, BLOCK // weight.shape[1])
    wide = x.float()
    return torch.cat([F.linear(wide, part.float()).to(x.dtype) for part in weight.split(rows)], -1)


class _Stored(torch.autograd.Function):
    """x weight' for narrow operands on a machine without instructions for them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Multiply in fp32, round once."""
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients in fp32, rounded to the operands' type."""
        x, weight = ctx.saved_tensors
        wide = dy.float()
        return (wide @ weight.float()).to(x.dtype), (wide.T @ x.float()).to(weight.dtype)


class _Bf16(torch.autograd.Function):
    """x weight' with both operands, the result and the incoming gradient rounded to BF16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        """Round, multiply, round."""
        narrow_x, narrow_weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(narrow_x, narrow_weight)
        return _product(narrow_x, narrow_weight).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        """The weight's gradient stays in fp32: sums over many tokens need the digits."""
        x, weight = ctx.saved_tensors
        narrow = dy.bfloat16()
        wide = narrow.float()
        fast = multiplies_bf16(dy.device)
        dx = (narrow @ weight).to(dy.dtype) if fast else wide @ weight.float()
        return dx, wide.T @ x.float()


def linear(x_TI: Tensor, weight_OI: Tensor, precision: str) -> Tensor:
    """See `fathom.ops.linear.linear`."""
    if precision == "bf16":
        return _Bf16.apply(x_TI, weight_OI)  # type: ignore[no-any-return]
    if x_TI.dtype == torch.float32 or multiplies_bf16(x_TI.device):
        return F.linear(x_TI, weight_OI)
    return _Stored.apply(x_TI, weight_OI)  # type: ignore[no-any-return]


def packed_linear(x_TI: Tensor, weight: Packed, int8: bool) -> Tensor:
    """See `fathom.ops.linear.packed_linear`; widens a block of rows at a time."""
    rows = max(PANEL, BLOCK // weight.columns // PANEL * PANEL)
    with torch.no_grad():
        wide = rounded_rows(x_TI.float()) if int8 else x_TI.float()
        parts = [
            wide @ weight.dense(first, min(rows, weight.rows - first)).T
            for first in range(0, weight.rows, rows)
        ]
        return torch.cat(parts, -1).to(x_TI.dtype)


__all__ = ["linear", "multiplies_bf16", "packed_linear"]

"""Matrix products of a named precision in plain PyTorch: the specification.

Promise: products accumulate in fp32 (or better). `stored` multiplies what is stored; `bf16` rounds
both operands, the result and the incoming gradient to BF16 first, masters and weight gradients
staying as wide as they are.
"""

import torch
from torch import Tensor

from fathom.errors import KernelError
from fathom.ops.linear.packed import Packed
from fathom.ops.wide import wide


class _Round(torch.autograd.Function):
    """Round to BF16 on the way forward, on the way back, or both."""

    @staticmethod
    def forward(ctx: object, x: Tensor, forward: bool, backward: bool) -> Tensor:
        """The value, rounded if asked."""
        ctx.backward = backward  # type: ignore[attr-defined]
        return x.bfloat16().to(x.dtype) if forward else x.clone()

    @staticmethod
    def backward(ctx: object, dy: Tensor) -> tuple[Tensor, None, None]:
        """The gradient, rounded if asked."""
        rounds = ctx.backward  # type: ignore[attr-defined]
        return dy.bfloat16().to(dy.dtype) if rounds else dy, None, None


def linear(x_TI: Tensor, weight_OI: Tensor, precision: str) -> Tensor:
    """See `fathom.ops.linear.linear`."""
    if precision == "stored":
        return (wide(x_TI) @ wide(weight_OI).T).to(x_TI.dtype)
    x, weight = _Round.apply(wide(x_TI), True, False), _Round.apply(wide(weight_OI), True, False)
    y: Tensor = _Round.apply(x @ weight.T, True, True)
    return y.to(x_TI.dtype)


def rounded_rows(x_TI: Tensor) -> Tensor:
    """Rows rounded to whole multiples of max |x| / 127, ties to even: what int8 keeps of them."""
    most = x_TI.abs().amax(-1, keepdim=True).float()
    inverse = torch.where(most > 0, 127.0 / most, 0.0)
    whole = (x_TI.float() * inverse).round()
    return whole.to(x_TI.dtype) * (most / 127.0).to(x_TI.dtype)


def packed_linear(x_TI: Tensor, weight: Packed, int8: bool) -> Tensor:
    """See `fathom.ops.linear.packed_linear`."""
    if x_TI.shape[1] != weight.columns:
        raise KernelError(
            f"packed_linear: x must have {weight.columns} columns; got {list(x_TI.shape)}."
        )
    with torch.no_grad():
        x = rounded_rows(wide(x_TI)) if int8 else wide(x_TI)
        return (x @ weight.dense().to(x.dtype).T).to(x_TI.dtype)


__all__ = ["linear", "packed_linear", "rounded_rows"]

"""The norms in native code: one or two passes over each row, backward too.

Promise: equal to `reference.py` up to fp32 rounding, values and gradients; a row's result does not
depend on the rows beside it, nor the weight's gradient on the number of threads. Nothing is kept
for the backward pass but the inputs. The kernels are `ops/native/norm`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.errors import KernelError
from fathom.ops import native
from fathom.ops.native.tensors import CODES, FLOATS, dense, differentiated, rows


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See `fathom.ops.norm.rms_norm`."""
    if differentiated(x_TD, weight_D):
        return _RmsNorm.apply(x_TD, weight_D, eps)  # type: ignore[no-any-return]
    return _rms_norm(x_TD, weight_D, eps)


def gated_norm(y_TD: Tensor, z_TD: Tensor, weight_D: Tensor, groups: int, eps: float) -> Tensor:
    """See `fathom.ops.norm.gated_norm`."""
    if differentiated(y_TD, z_TD, weight_D):
        return _GatedNorm.apply(  # type: ignore[no-any-return]
            y_TD, z_TD, weight_D, groups, eps
        )
    return _gated_norm(y_TD, z_TD, weight_D, groups, eps)


def _rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The forward pass."""
    T, D = x_TD.shape
    x, stride = rows("rms_norm: x", x_TD, (T, D), *FLOATS)
    weight = dense("rms_norm: weight", weight_D, (D,), *FLOATS)
    y_TD = torch.empty_like(x_TD, memory_format=torch.contiguous_format)
    native.kernels().rms_norm(
        x, stride, weight, y_TD.data_ptr(), T, D, eps, CODES[x_TD.dtype], CODES[weight_D.dtype]
    )
    return y_TD


def _gated_norm(y_TD: Tensor, z_TD: Tensor, weight_D: Tensor, groups: int, eps: float) -> Tensor:
    """The forward pass."""
    T, D = y_TD.shape
    if groups < 1 or D % groups:
        raise KernelError(f"gated_norm: groups must divide the {D} channels; got {groups}.")
    y, y_stride = rows("gated_norm: y", y_TD, (T, D), *FLOATS)
    z, z_stride = rows("gated_norm: z", z_TD, (T, D), *FLOATS)
    weight = dense("gated_norm: weight", weight_D, (D,), *FLOATS)
    out_TD = torch.empty_like(y_TD, memory_format=torch.contiguous_format)
    types = (CODES[y_TD.dtype], CODES[z_TD.dtype], CODES[weight_D.dtype])
    native.kernels().gated_norm(
        y, y_stride, z, z_stride, weight, out_TD.data_ptr(), T, D, groups, eps, *types
    )
    return out_TD


def _sums(T: int, D: int) -> tuple[Tensor, Tensor]:
    """Scratch for the sums over ranges of tokens, and the sum over all: fp32."""
    ranges = -(-T // native.kernels().NORM_RANGE)
    return torch.empty(ranges, D), torch.empty(D)


class _RmsNorm(torch.autograd.Function):
    """x [T, D], weight [D] -> [T, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """One pass; keep the inputs."""
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _rms_norm(x, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and weight."""
        x, weight = ctx.saved_tensors
        T, D = x.shape
        dy, dx = dy.contiguous(), torch.empty(T, D, dtype=x.dtype)
        partial, dweight = _sums(T, D)
        address, stride = rows("rms_norm: x", x, (T, D), *FLOATS)
        native.kernels().rms_norm_backward(
            dense("rms_norm: gradient", dy, (T, D), x.dtype),
            *(address, stride, weight.data_ptr(), dx.data_ptr()),
            *(partial.data_ptr(), dweight.data_ptr(), T, D, ctx.eps),
            *(CODES[x.dtype], CODES[weight.dtype]),
        )
        return dx, dweight.to(weight.dtype), None


class _GatedNorm(torch.autograd.Function):
    """y and z [T, D], weight [D] -> [T, D]; mean squares over groups of channels."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, weight: Tensor, groups: int, eps: float) -> Tensor:
        """One pass over each group; keep the inputs."""
        ctx.save_for_backward(y, z, weight)
        ctx.groups, ctx.eps = groups, eps
        return _gated_norm(y, z, weight, groups, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of y, z and weight."""
        y, z, weight = ctx.saved_tensors
        T, D = y.shape
        dout = dout.contiguous()
        dy, dz = torch.empty(T, D, dtype=y.dtype), torch.empty(T, D, dtype=z.dtype)
        partial, dweight = _sums(T, D)
        native.kernels().gated_norm_backward(
            dense("gated_norm: gradient", dout, (T, D), y.dtype),
            *rows("gated_norm: y", y, (T, D), *FLOATS),
            *rows("gated_norm: z", z, (T, D), *FLOATS),
            *(weight.data_ptr(), dy.data_ptr(), dz.data_ptr()),
            *(partial.data_ptr(), dweight.data_ptr(), T, D, ctx.groups, ctx.eps),
            *(CODES[y.dtype], CODES[z.dtype], CODES[weight.dtype]),
        )
        return dy, dz, dweight.to(weight.dtype), None, None


__all__ = ["gated_norm", "rms_norm"]

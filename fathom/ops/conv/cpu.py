"""The causal convolution in native code: one pass, whatever the sequences' lengths.

Promise: equal to `reference.py` up to fp32 rounding, values and gradients; a token's result depends
on the k tokens it hears alone, and no gradient on the number of threads. Nothing is kept for the
backward pass but the inputs. The kernels are `ops/native/conv`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.errors import KernelError
from fathom.ops import native
from fathom.ops.layout import Layout
from fathom.ops.native.tensors import CODES, FLOATS, dense, differentiated, rows


def causal_conv(
    x_Tc: Tensor, weight_ck: Tensor, bias_c: Tensor, layout: Layout, tail_Skc: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Convolve every sequence; see `fathom.ops.conv.causal_conv`."""
    bounds = layout.bounds
    if tail_Skc is not None:
        tail_Skc = tail_Skc.to(x_Tc.dtype).contiguous()
    if differentiated(x_Tc, weight_ck, bias_c, tail_Skc):
        return _Conv.apply(  # type: ignore[no-any-return]
            x_Tc, weight_ck, bias_c, tail_Skc, bounds
        )
    return _conv(x_Tc, weight_ck, bias_c, tail_Skc, bounds)


def step_(x_Sc: Tensor, weight_ck: Tensor, bias_c: Tensor, tail_Skc: Tensor) -> Tensor:
    """One token of every sequence in one call; see `fathom.ops.conv.step_`."""
    (S, c), k = x_Sc.shape, weight_ck.shape[1]
    inputs = _inputs(x_Sc, weight_ck, bias_c, S)
    tail = dense("conv: tail", tail_Skc, (S, k - 1, c), x_Sc.dtype)
    y_Sc = torch.empty(S, c, dtype=x_Sc.dtype)
    types = _types(x_Sc, weight_ck, bias_c)
    native.kernels().conv(*inputs, tail, 0, y_Sc.data_ptr(), tail, S, S, c, k, *types)
    return y_Sc


def keep_(tail_Skc: Tensor, x_Tc: Tensor, layout: Layout, counts_S: Tensor) -> None:
    """Tails moved on by each sequence's first inputs; see `fathom.ops.conv.keep_`."""
    (_, older, c), S = tail_Skc.shape, layout.sequences
    native.kernels().conv_keep(
        dense("conv.keep_: tail", tail_Skc, (S, older, c), x_Tc.dtype),
        *rows("conv.keep_: x", x_Tc, (layout.tokens, c), *FLOATS),
        layout.bounds.data_ptr(),
        dense("conv.keep_: counts", counts_S, (S,), torch.int32, torch.int64),
        counts_S.dtype == torch.int64,
        *(S, c, older + 1, CODES[x_Tc.dtype]),
    )


def _inputs(x_Tc: Tensor, weight_ck: Tensor, bias_c: Tensor, T: int) -> tuple[int, int, int, int]:
    """Addresses of x, weight and bias, and the distance of x's rows."""
    c, k = weight_ck.shape
    if k < 2:
        raise KernelError(f"conv: weight must have two taps or more; got {k}.")
    x, stride = rows("conv: x", x_Tc, (T, c), *FLOATS)
    weight = dense("conv: weight", weight_ck, (c, k), *FLOATS)
    return x, stride, weight, dense("conv: bias", bias_c, (c,), *FLOATS)


def _types(*tensors: Tensor) -> tuple[int, ...]:
    """The types of tensors as kernels know them."""
    return tuple(CODES[x.dtype] for x in tensors)


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor | None, bounds: Tensor
) -> tuple[Tensor, Tensor]:
    """The forward pass: outputs and the next tails."""
    (T, c), k, S = x.shape, weight.shape[1], bounds.shape[0] - 1
    inputs = _inputs(x, weight, bias, int(bounds[-1]))
    before = 0 if tail is None else dense("conv: tail", tail, (S, k - 1, c), x.dtype)
    y, after = torch.empty(T, c, dtype=x.dtype), torch.empty(S, k - 1, c, dtype=x.dtype)
    native.kernels().conv(
        *(*inputs, before, bounds.data_ptr(), y.data_ptr(), after.data_ptr()),
        *(S, T, c, k, *_types(x, weight, bias)),
    )
    return y, after


class _Conv(torch.autograd.Function):
    """x [T, c], weight [c, k], bias [c], tail [S, k - 1, c] or none -> outputs, next tails."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, tail: Tensor | None, bounds: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One pass; keep the inputs."""
        ctx.save_for_backward(x, weight, bias, tail, bounds)
        ctx.set_materialize_grads(False)
        return _conv(x, weight, bias, tail, bounds)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dafter: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and tail."""
        x, weight, bias, tail, bounds = ctx.saved_tensors
        (T, c), k, S = x.shape, weight.shape[1], bounds.shape[0] - 1
        dy = torch.zeros(T, c, dtype=x.dtype) if dy is None else dy.contiguous()
        dafter = None if dafter is None else dafter.contiguous()
        dx = torch.empty(T, c, dtype=x.dtype)
        dtail = None if tail is None else torch.empty_like(tail)
        partial = torch.empty(-(-T // native.kernels().CONV_RANGE), k + 1, c)
        dweight, dbias = torch.empty(c, k), torch.empty(c)
        native.kernels().conv_backward(
            dense("conv: gradient", dy, (T, c), x.dtype),
            _address(dafter),
            *_inputs(x, weight, bias, T),
            *(_address(tail), bounds.data_ptr(), dx.data_ptr(), _address(dtail)),
            *(partial.data_ptr(), dweight.data_ptr(), dbias.data_ptr()),
            *(S, T, c, k, *_types(x, weight, bias)),
        )
        return dx, dweight.to(weight.dtype), dbias.to(bias.dtype), dtail, None


def _address(x: Tensor | None) -> int:
    """Where a tensor's values begin; zero where there is none."""
    return 0 if x is None else x.data_ptr()


__all__ = ["causal_conv", "keep_", "step_"]

"""Weights rounded as files store them, in training: the rounded ones are seen, the masters learn.

Promise: what a product sees is, bit for bit, what a reader decodes of a file that was written of
the masters with every block's largest weight a 6; the masters get the rounded weights' gradient as
it is (the straight-through estimator), for no weight is clamped further than by a rounding of its
block's scale. Rows and gradients are left alone: rounding those too is `training.py`.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.ops.nvfp4.reference import (
    Quantised,
    dequantise,
    dequantise_fp8,
    encode,
    encode_fp8,
    largest,
    tensor_scale,
    tensor_scale_fp8,
)

Form = Literal["nvfp4", "fp8"]


class _StraightThrough(torch.autograd.Function):
    """Rounding whose derivative is taken to be one."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, amax: Tensor, form: Form) -> Tensor:
        """Encode and decode every matrix."""
        made = [
            _decoded(matrix, one, form)
            for matrix, one in zip(
                weight.reshape(-1, *weight.shape[-2:]), amax.reshape(-1), strict=True
            )
        ]
        return torch.stack(made).view(weight.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        """The gradient as it comes."""
        return dy, None, None


def _decoded(matrix: Tensor, amax: Tensor, form: Form) -> Tensor:
    """A matrix [O, I] after its way into a file and out again, of its own type."""
    if form == "fp8":
        scale = tensor_scale_fp8(amax)
        return dequantise_fp8(encode_fp8(matrix, scale), scale, matrix.dtype)
    return dequantise(Quantised(*encode(matrix, amax), tensor_scale(amax)), matrix.dtype)


def straight_through(
    weight: Float[Tensor, "*B O I"], form: Form, amax: Float[Tensor, "*B"] | None = None
) -> Float[Tensor, "*B O I"]:
    """Matrices as a file would have them, of their own type, with the gradient of the masters.

    Args:
        weight: [.., O, I]; every matrix has a scale of its own, a stack of experts E of them.
        form: NVFP4 (blocks of 16 along I), or FP8 with one scale a matrix.
        amax: the magnitudes, fp32, that the scales are made of, where matrices share one; None:
            the largest of each.

    Raises:
        KernelError: rows are not whole blocks (NVFP4), or a weight is not finite.
    """
    if amax is None:
        amax = largest(weight.detach())
    found: Tensor = _StraightThrough.apply(weight, amax, form)
    return found


__all__ = ["Form", "straight_through"]

"""Tensors handed to native kernels as addresses, after a look at what they are.

Promise: a kernel never sees a shape, a type or a stride that it does not expect; what is wrong is
said with the operation's and the argument's name. The caller holds the tensors while a call runs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.errors import KernelError

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float8_e4m3fn: 2}
"""The number by which a kernel knows a type (core/types.h)."""

FLOATS = (torch.float32, torch.bfloat16)
"""What activations may be."""


def dense(name: str, x: Tensor, shape: Sequence[int], *dtypes: torch.dtype) -> int:
    """The address of a contiguous tensor of this shape and of one of these types.

    Raises:
        KernelError: it is something else. `name` is "operation: argument".
    """
    if tuple(x.shape) != tuple(shape):
        raise KernelError(f"{name} must have the shape {list(shape)}; got {list(x.shape)}.")
    _check(name, x, dtypes)
    if not x.is_contiguous():
        raise KernelError(
            f"{name} must be contiguous; its strides are {list(x.stride())}. Call .contiguous()."
        )
    return x.data_ptr()


def rows(name: str, x: Tensor, shape: Sequence[int], *dtypes: torch.dtype) -> tuple[int, int]:
    """The address of a tensor whose rows are dense, and how many values apart they begin.

    The first axis may have any stride; the others are laid out as in a contiguous tensor.

    Raises:
        KernelError: it is something else.
    """
    if tuple(x.shape) != tuple(shape):
        raise KernelError(f"{name} must have the shape {list(shape)}; got {list(x.shape)}.")
    _check(name, x, dtypes)
    if x.is_contiguous():
        return x.data_ptr(), x.numel() // max(1, x.shape[0])
    if not x[0].is_contiguous():
        raise KernelError(
            f"{name} must have dense rows; its strides are {list(x.stride())}. Call .contiguous()."
        )
    return x.data_ptr(), x.stride(0)


def differentiated(*tensors: Tensor | None) -> bool:
    """Whether what is computed from these tensors needs a backward pass."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _check(name: str, x: Tensor, dtypes: Sequence[torch.dtype]) -> None:
    """Raise `KernelError` unless the tensor lies in memory and has one of the types."""
    if x.dtype not in dtypes:
        raise KernelError(
            f"{name} must be {' or '.join(str(d) for d in dtypes)}; got {x.dtype}. Convert it."
        )
    if x.device.type != "cpu":
        raise KernelError(f"{name} must be on the CPU; it is on {x.device}. Call .cpu().")


__all__ = ["CODES", "FLOATS", "dense", "differentiated", "rows"]

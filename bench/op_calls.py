"""Operations as calls that can be timed: native and PyTorch's own, with operands in turn.

Promise: nothing is computed here before it is called; where operands would fit a cache, several
copies take turns, so that memory is what is measured. A training call goes forward and backward.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fathom.ops import dispatch
from fathom.ops.linear.packed import Format, Packed, PackedStack

Call = Callable[[], object]
Calls = tuple[Call | None, Call | None]
"""Native and PyTorch's own; None where there is none."""

COLD = 256 * 2**20
"""Bytes of operands in turn, beyond what a cache holds."""


def in_turn(function: Callable[..., object], sets: Sequence[tuple[Any, ...]]) -> Call:
    """A call that takes the next set of arguments each time."""
    place = 0

    def call() -> object:
        nonlocal place
        place = (place + 1) % len(sets)
        return function(*sets[place])

    return call


def by_backend(
    operation: dispatch.Operation,
    function: str,
    sets: Sequence[tuple[Any, ...]],
    *,
    training: bool = False,
) -> Calls:
    """The native backend of an operation, where it takes the case, and the eager one."""
    tensor = next(one for one in sets[0] if isinstance(one, Tensor))
    found: dict[str, Call] = {}
    for backend in operation.backends:
        if backend.why_not(dispatch.Case.of(tensor)) is None:
            called = getattr(backend.module, function)
            found[backend.name] = in_turn(both_ways(called) if training else called, sets)
    return found.get("native"), found.get("eager")


def both_ways(function: Callable[..., object]) -> Callable[..., object]:
    """The function and its gradients for every float operand."""

    def call(*arguments: object) -> object:
        inputs = [a for a in arguments if isinstance(a, Tensor) and a.is_floating_point()]
        for one in inputs:
            one.requires_grad_()
        found = function(*arguments)
        result = found[0] if isinstance(found, tuple) else found
        assert isinstance(result, Tensor)
        return torch.autograd.grad(result, inputs, torch.ones_like(result), allow_unused=True)

    return call


def copies(size: float) -> int:
    """How many copies of operands of `size` bytes a cache does not hold."""
    return max(1, min(64, round(COLD / size)))


def randn(dtype: torch.dtype, *shape: int) -> Tensor:
    """Normal numbers of a type."""
    return torch.randn(shape, dtype=torch.float32).to(dtype)


def packed_matrix(form: Format, rows: int, columns: int) -> Packed:
    """A packed matrix of small numbers."""
    matrix = Packed.empty(form, rows, columns)
    _small(matrix.data, form)
    return matrix


def packed_stack(form: Format, count: int, rows: int, columns: int) -> PackedStack:
    """Packed matrices of small numbers."""
    stack = PackedStack.empty(form, count, rows, columns)
    _small(stack.data, form)
    return stack


def _small(data: Tensor, form: Format) -> None:
    """Fill packed bytes: every one below 0x3c is a small number whatever it stands for."""
    if form in ("fp32", "bf16"):
        data.view(torch.float32 if form == "fp32" else torch.bfloat16).normal_()
    else:
        data.random_(0, 256).bitwise_and_(0x3B)


def activations(form: Format) -> torch.dtype:
    """The type of activations beside weights of a format."""
    return torch.float32 if form == "fp32" else torch.bfloat16

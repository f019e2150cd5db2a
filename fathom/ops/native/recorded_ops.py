"""Native equivalents of the PyTorch operations that stand between native kernels in a decode step.

Promise: the same bits as PyTorch's (but for numbers below the normal range, which native code
counts as zero); what is not covered raises `Refused` with words. Kernels are `ops/native/step`;
`recorder.py` calls these in the place of what they stand for, with its arena as the first argument.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fathom.ops import native
from fathom.ops.native.arena import Arena
from fathom.ops.native.tensors import CODES, FLOATS


class Refused(Exception):
    """A step cannot be recorded; the words say why. Never leaves the arena."""


def _add(arena: Arena, x: Tensor, y: Any, *, alpha: int | float = 1) -> Tensor:
    """x + y of one shape and type."""
    x, y = _alike("add", arena, x, y, alpha)
    out = arena.empty(x.shape, x.dtype)
    native.kernels().add(x.data_ptr(), y.data_ptr(), out.data_ptr(), x.numel(), CODES[x.dtype])
    return out


def _add_(arena: Arena, x: Tensor, y: Any, *, alpha: int | float = 1) -> Tensor:
    """x += y: floats of one shape and type, or a whole number onto whole numbers."""
    _only_changing("add_", arena, x)
    if isinstance(y, int) and x.dtype in (torch.int32, torch.int64) and x.is_contiguous():
        native.kernels().count_up(x.data_ptr(), x.numel(), int(y * alpha), x.element_size())
        return x
    if not x.is_contiguous():
        raise Refused("add_ writes into values that are not contiguous")
    x, y = _alike("add_", arena, x, y, alpha)
    native.kernels().add(x.data_ptr(), y.data_ptr(), x.data_ptr(), x.numel(), CODES[x.dtype])
    return x


def _alike(name: str, arena: Arena, x: Tensor, y: Any, alpha: int | float) -> tuple[Tensor, Tensor]:
    """Both operands, contiguous; `Refused` unless they are of one shape and float type."""
    alike = isinstance(y, Tensor) and y.shape == x.shape and y.dtype == x.dtype
    if not alike or alpha != 1 or x.dtype not in FLOATS:
        told = f"{list(y.shape)} {y.dtype}" if isinstance(y, Tensor) else repr(y)
        raise Refused(
            f"{name} is recorded for two tensors of one shape and float type; "
            f"it met {list(x.shape)} {x.dtype} and {told}, times {alpha}"
        )
    return _dense(arena, x), _dense(arena, y)


def _embedding(
    arena: Arena, table: Tensor, index: Tensor, *rest: object, **names: object
) -> Tensor:
    """The rows of a table that an index names, in the index's shape."""
    return _gather(arena, table, index)


def _index_select(arena: Arena, x: Tensor, axis: int, index: Tensor) -> Tensor:
    """Rows along the first axis."""
    if axis % x.dim():
        raise Refused(f"index_select is recorded along the first axis, not along axis {axis}")
    return _gather(arena, x, index)


def _index(arena: Arena, x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """x[index], by one index of the first axis."""
    index = indices[0] if len(indices) == 1 else None
    if index is None or index.dtype not in (torch.int32, torch.int64):
        raise Refused("x[index] is recorded for one index of whole numbers on the first axis")
    if not arena.changes(index):
        # torch counts from the end where a number is negative
        index = torch.where(index < 0, index + x.shape[0], index)
    return _gather(arena, x, index)


def _gather(arena: Arena, table: Tensor, index: Tensor) -> Tensor:
    """Rows [*index.shape, ...] of a table whose rows are dense."""
    if not table[0].is_contiguous():
        table = _dense(arena, table)
    index = _dense(arena, index)
    out = arena.empty((*index.shape, *table.shape[1:]), table.dtype)
    cell = table.element_size()
    native.kernels().gather_rows(
        *(table.data_ptr(), table.stride(0) * cell, table.shape[0]),
        *(index.data_ptr(), index.element_size()),
        *(out.data_ptr(), index.numel(), table[0].numel() * cell),
    )
    return out


def _to_copy(
    arena: Arena, x: Tensor, *, dtype: torch.dtype | None = None, **names: object
) -> Tensor:
    """A copy in another type."""
    out = arena.empty(x.shape, dtype or x.dtype)
    return _write(out, x)


def _clone(arena: Arena, x: Tensor, **names: object) -> Tensor:
    """A contiguous copy."""
    return _write(arena.empty(x.shape, x.dtype), x)


def _copy_(arena: Arena, x: Tensor, y: Tensor, non_blocking: bool = False) -> Tensor:
    """y's values written into x."""
    _only_changing("copy_", arena, x)
    return _write(x, y.expand(x.shape))


def _cat(arena: Arena, parts: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors of one type laid one after the other along an axis."""
    shape = list(parts[0].shape)
    axis %= len(shape)
    shape[axis] = sum(part.shape[axis] for part in parts)
    out = arena.empty(shape, parts[0].dtype)
    begin = 0
    for part in parts:
        _write(out.narrow(axis, begin, part.shape[axis]), part)
        begin += part.shape[axis]
    return out


def _dense(arena: Arena, x: Tensor) -> Tensor:
    """The tensor itself if it is contiguous, or a copy that is."""
    return x if x.is_contiguous() else _clone(arena, x)


def _only_changing(name: str, arena: Arena, x: Tensor) -> None:
    """Raise `Refused` if an operation writes into what a replay takes for constant."""
    if not arena.changes(x):
        raise Refused(f"{name} writes into a tensor that was not named as changing")


def _write(to: Tensor, x: Tensor) -> Tensor:
    """Copy x into `to`, of the same shape, converting the type."""
    if not x.numel():
        return to
    axes = _axes(to.shape, x.stride(), to.stride())
    sizes, strides, to_strides = ([axis[i] for axis in axes] for i in range(3))
    places = (x.data_ptr(), to.data_ptr(), *sizes, *strides, *to_strides)
    if x.dtype == to.dtype:
        native.kernels().copy_cells(*places, x.element_size())
    elif x.dtype in FLOATS and to.dtype in FLOATS:
        native.kernels().convert_cells(*places, CODES[x.dtype])
    else:
        raise Refused(f"{x.dtype} is not converted to {to.dtype} natively")
    return to


def _axes(
    shape: Sequence[int], strides: Sequence[int], to_strides: Sequence[int]
) -> list[tuple[int, int, int]]:
    """Size and both strides of three axes, the innermost last; neighbours that fit are joined."""
    axes: list[tuple[int, int, int]] = []
    for size, stride, to_stride in zip(shape, strides, to_strides, strict=True):
        if size == 1:
            continue
        if axes and axes[-1][1:] == (stride * size, to_stride * size):
            axes[-1] = (axes[-1][0] * size, stride, to_stride)
        else:
            axes.append((size, stride, to_stride))
    if len(axes) > 3:
        raise Refused(f"a copy over {len(axes)} axes that cannot be joined is not recorded")
    if not axes:
        axes = [(1, 1, 1)]
    return [(1, 0, 0)] * (3 - len(axes)) + axes


_aten = torch.ops.aten
NATIVE: dict[Any, Callable[..., Tensor]] = {
    _aten.add: _add,
    _aten.add_: _add_,
    _aten.embedding: _embedding,
    _aten.index_select: _index_select,
    _aten.index: _index,
    _aten._to_copy: _to_copy,
    _aten.clone: _clone,
    _aten.copy_: _copy_,
    _aten.cat: _cat,
}
"""By operation: what is called in its place."""

__all__ = ["NATIVE", "Refused"]

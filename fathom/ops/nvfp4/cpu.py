"""The operands of four-bit training in native code.

Promise: bit for bit those of `operands.py`, on every tier and with any number of threads; numbers
below the normal range keep their digits, whatever the process has set. One call makes both copies:
a pass over the matrix for its largest magnitudes and one for its values. The kernels are
`ops/native/nvfp4`.
"""

import torch
from torch import Tensor

from fathom.ops import native
from fathom.ops.native.tensors import CODES, FLOATS, dense, rows
from fathom.ops.nvfp4.operands import MX_BLOCK, Copy, Groups, Operands, group_scale
from fathom.ops.nvfp4.philox import Key
from fathom.ops.nvfp4.reference import BLOCK

STOCHASTIC, TILES, TRANSFORM = 1, 2, 4
"""What a copy asks for, as bits (nvfp4.h)."""


def operands(
    x: Tensor,
    rows_copy: Copy | None,
    columns_copy: Copy | None,
    key: Key | None,
    groups: Groups | None,
) -> Operands:
    """See `fathom.ops.nvfp4.operands`."""
    (T, C), count = x.shape, groups.count if groups else 1
    R = _length(x, groups, BLOCK)
    by_rows = None
    if rows_copy is not None:
        by_rows = torch.empty(R if groups else T, C, dtype=rows_copy.dtype)
    by_columns = None
    if columns_copy is not None:
        by_columns = torch.empty(R, C, dtype=columns_copy.dtype)
    amax = torch.zeros(2, count)
    native.kernels().nvfp4_operands(
        *_given(x, groups, R),
        dense("nvfp4: group", groups.group_B, (R // BLOCK,), torch.int32) if groups else 0,
        count,
        *_place(by_rows),
        _wishes(rows_copy),
        *_place(by_columns),
        _wishes(columns_copy),
        *((key.seed & (1 << 64) - 1, key.step, key.place) if key else (0, 0, 0)),
        amax.data_ptr(),
    )
    scales = group_scale(amax)
    return Operands(by_rows, scales[0], by_columns, scales[1])


def mxfp8_operands(
    x: Tensor,
    rows_dtype: torch.dtype | None,
    columns_dtype: torch.dtype | None,
    groups: Groups | None,
) -> tuple[Tensor | None, Tensor | None]:
    """See `fathom.ops.nvfp4.mxfp8_operands`."""
    T, C = x.shape
    R = _length(x, groups, MX_BLOCK)
    by_rows = by_columns = None
    if rows_dtype is not None:
        by_rows = torch.empty(R if groups else T, C, dtype=rows_dtype)
    if columns_dtype is not None:
        by_columns = torch.empty(R, C, dtype=columns_dtype)
    native.kernels().mxfp8_operands(*_given(x, groups, R), *_place(by_rows), *_place(by_columns))
    return by_rows, by_columns


def scaled(
    sums: Tensor, alpha: Tensor, group_B: Tensor | None, block: int, dtype: torch.dtype
) -> Tensor:
    """See `fathom.ops.nvfp4.scaled`."""
    R, C = sums.shape
    y = torch.empty(R, C, dtype=dtype)
    native.kernels().nvfp4_scaled(
        dense("nvfp4: sums", sums, (R, C), *FLOATS),
        CODES[sums.dtype],
        dense("nvfp4: alpha", alpha, alpha.shape, torch.float32),
        0 if group_B is None else dense("nvfp4: group", group_B, group_B.shape, torch.int32),
        block,
        y.data_ptr(),
        CODES[dtype],
        R,
        C,
    )
    return y


def _length(x: Tensor, groups: Groups | None, block: int) -> int:
    """How many rows the copies have, whole blocks."""
    own = x if groups is None or groups.source_R is None else groups.source_R
    return -(-own.shape[0] // block) * block


def _given(x: Tensor, groups: Groups | None, R: int) -> tuple[int, ...]:
    """What the kernels are told of the matrix: address, stride, type, rows, shape."""
    T, C = x.shape
    address, stride = rows("nvfp4: x", x, (T, C), *FLOATS) if T else (x.data_ptr(), C)
    source = 0
    if groups is not None and groups.source_R is not None:
        source = dense("nvfp4: source", groups.source_R, (R,), torch.int64)
    return (address, stride, CODES[x.dtype], source, T, R, C)


def _place(copy: Tensor | None) -> tuple[int, int]:
    """Address and type of what is written; nothing is written to 0."""
    return (0, 0) if copy is None else (copy.data_ptr(), CODES[copy.dtype])


def _wishes(copy: Copy | None) -> int:
    """The options of a copy as bits."""
    if copy is None:
        return 0
    return STOCHASTIC * copy.stochastic | TILES * copy.tiles | TRANSFORM * copy.transform


__all__ = ["mxfp8_operands", "operands", "scaled"]

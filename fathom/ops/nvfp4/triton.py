"""The operands of four-bit training on a GPU, in Triton.

Promise: the steps of `operands.py` in their order, all in fp32, so the same bits. MXFP8's
operands and `scaled` are those of `operands.py` itself, which PyTorch runs on a GPU as they are.
Triton's interpreter runs these kernels, and its compiler takes them for NVIDIA's GPUs; no GPU has
run them yet.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fathom.ops.dispatch import Case
from fathom.ops.nvfp4.operands import Copy, Groups, Operands, group_scale, mxfp8_operands, scaled
from fathom.ops.nvfp4.philox import MASK, Key
from fathom.ops.nvfp4.reference import BLOCK, E2M1_MAX, encode_factor

INSTALLED = importlib.util.find_spec("triton") is not None
"""Whether the library triton is there; without it the kernels below stay plain text."""
if INSTALLED:
    import triton
    from triton import language as tl

WIDTH = 64
"""Columns that a program takes, of one block of 16 rows."""
EXACT = {"enable_fp_fusion": False}
"""How kernels are compiled: no product is fused with an addition."""


def why_not(case: Case) -> str | None:
    """What speaks against Triton in this case, in words."""
    if not INSTALLED:
        return "the library triton is not installed; pip install triton"
    if case.dtype not in (torch.float32, torch.bfloat16):
        return f"these kernels take fp32 and bf16, not {case.dtype}"
    if case.device != "cuda" and isinstance(_round, triton.JITFunction):
        return f"Triton runs on GPUs, the tensors are on {case.device}"
    return None


def operands(
    x: Tensor, rows: Copy | None, columns: Copy | None, key: Key | None, groups: Groups | None
) -> Operands:
    """See `fathom.ops.nvfp4.operands`."""
    count = groups.count if groups else 1
    by_rows, rows_scale = None, torch.ones(count, device=x.device)
    by_columns, columns_scale = None, torch.ones(count, device=x.device)
    if rows is not None:
        by_rows, rows_scale = _copy(x, rows, key, groups, False)
    if columns is not None:
        by_columns, columns_scale = _copy(x, columns, key, groups, True)
    return Operands(by_rows, rows_scale, by_columns, columns_scale)


def _copy(
    x: Tensor, copy: Copy, key: Key | None, groups: Groups | None, columns: bool
) -> tuple[Tensor, Tensor]:
    """One copy and its scales: a launch for the largest magnitudes, and one for the values."""
    (T, C), source = x.shape, groups.source_R if groups else None
    taken = T if source is None else source.shape[0]
    blocks = -(-taken // BLOCK)
    made = x.new_empty(blocks * BLOCK if groups or columns else T, C, dtype=copy.dtype)
    # the bits of floats without a sign are in the order of the floats, NaN above all
    bits = torch.zeros(groups.count if groups else 1, dtype=torch.int32, device=x.device)
    given = (x, *x.stride(), source, groups.group_B if groups else None, T, C)
    options = {"WIDTH": WIDTH, "TRANSFORM": copy.transform, "COLUMNS": columns, **EXACT}
    grid = (blocks, -(-C // WIDTH))
    launched = made.numel() > 0
    if launched:
        with torch.cuda.device_of(x):
            _measure[grid](*given, bits, **options)
    amax = bits.view(torch.float32)
    scale = group_scale(amax)
    if launched:
        lot = key if copy.stochastic else None
        draws = (0, 0, 0, 0)
        if lot is not None:
            draws = (lot.seed & MASK, lot.seed >> 32 & MASK, lot.step, lot.place | int(columns))
        factor = encode_factor(amax)
        with torch.cuda.device_of(x):
            _round[grid](
                *(*given, factor * (1 / E2M1_MAX), 1 / factor, made, made.shape[0]),
                *(_signed(word) for word in draws),
                **options,
                TILES=copy.tiles and not columns,
                LOT=lot is not None,
            )
    return made, scale


def _signed(word: int) -> int:
    """The int32 with the bits of a word, so that all words have one type."""
    return word - (word >> 31 << 32)


def _kernel(function: Callable[..., Any]) -> Any:
    """A function for Triton, without the checks that tests lay around functions."""
    plain = inspect.unwrap(function)
    # a compilation for each step would be the price of looking at these numbers
    words = {"left", "right", "step", "place"} & set(inspect.signature(plain).parameters)
    return triton.jit(plain, do_not_specialize=sorted(words)) if INSTALLED else plain


@_kernel
def _taken(
    x: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    source: tl.tensor,
    T: tl.tensor,
    C: tl.tensor,
    WIDTH: tl.constexpr,
) -> tl.tensor:
    """[16, WIDTH] of the rows that groups take, fp32; zeros where there is nothing."""
    row = tl.program_id(0) * 16 + tl.arange(0, 16)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    row = row.to(tl.int64)
    if source is not None:
        row = tl.load(source + row)
    there = ((row >= 0) & (row < T))[:, None] & (column < C)[None, :]
    place = row[:, None] * row_stride + column.to(tl.int64)[None, :] * column_stride
    return tl.load(x + place, mask=there, other=0.0)


@_kernel
def _transformed(x: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """hadamard.py's transform of blocks, fp32 [N, 16]; sums are of neighbours at 1, 2, 4 and 8."""
    place = tl.arange(0, 16)
    # signs of hadamard.py, a bit for each minus
    minus = (0b1101011111101000 >> place) & 1
    y = tl.where((minus == 1)[None, :], -x, x)
    for power in tl.static_range(4):
        pairs = tl.reshape(y, (N, 8 >> power, 2, 1 << power)).permute(0, 1, 3, 2)
        a, b = tl.split(pairs)
        y = tl.reshape(tl.join(a + b, a - b).permute(0, 1, 3, 2), (N, 16))
    return y * 0.25


@_kernel
def _bfloat16(x: tl.tensor) -> tl.tensor:
    """fp32 rounded to the nearest number of BF16, ties to even; Triton's interpreter cuts off."""
    bits = x.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    return tl.where(x == x, bits.to(tl.float32, bitcast=True), x)


@_kernel
def _blocks(
    tile: tl.tensor, WIDTH: tl.constexpr, TRANSFORM: tl.constexpr, COLUMNS: tl.constexpr
) -> tl.tensor:
    """[16, WIDTH] -> [WIDTH, 16] blocks in fp32, along columns or along rows."""
    if COLUMNS:
        found = tl.trans(tile).to(tl.float32)
        if TRANSFORM:
            found = _transformed(found, WIDTH)
            if tile.dtype == tl.bfloat16:
                found = _bfloat16(found)
    else:
        found = tl.reshape(tile, (WIDTH, 16)).to(tl.float32)
    return found


@_kernel
def _largest(bits: tl.tensor, N: tl.constexpr) -> tl.tensor:
    """The largest of each row, [N, 16] -> [N], by halves."""
    for power in tl.static_range(4):
        a, b = tl.split(tl.reshape(bits, (N, 8 >> power, 2)))
        bits = tl.maximum(a, b)
    return tl.reshape(bits, (N,))


@_kernel
def _measure(
    x: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    source: tl.tensor,
    group: tl.tensor,
    T: tl.tensor,
    C: tl.tensor,
    found: tl.tensor,
    WIDTH: tl.constexpr,
    TRANSFORM: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    """Raise `found`, int32 [G], to the bits of the largest magnitude of these 16 rows."""
    tile = _taken(x, row_stride, column_stride, source, T, C, WIDTH)
    blocks = _blocks(tile, WIDTH, TRANSFORM, COLUMNS)
    peaks = _largest(tl.abs(blocks).to(tl.int32, bitcast=True), WIDTH)
    own = 0
    if group is not None:
        own = tl.load(group + tl.program_id(0))
    few = _largest(tl.reshape(peaks, (WIDTH // 16, 16)), WIDTH // 16)
    one_place = own + tl.arange(0, WIDTH // 16) * 0
    tl.atomic_max(found + one_place, few)


@_kernel
def _e4m3(size: tl.tensor) -> tl.tensor:
    """The nearest number of E4M3, ties to even, for sizes from 0 to 448."""
    bits = size.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFFF + ((bits >> 20) & 1)) & -0x100000
    # below 2^-6 the steps are 2^-9, which is the last digit of 2^14
    return tl.where(size < 0.015625, (size + 16384.0) - 16384.0, bits.to(tl.float32, bitcast=True))


@_kernel
def _word(
    left: tl.tensor, right: tl.tensor, step: tl.tensor, place: tl.tensor, WIDTH: tl.constexpr
) -> tl.tensor:
    """philox.py's words, uint32 [16, WIDTH], of this program's elements."""
    fours = tl.program_id(0) * 4 + tl.arange(0, 4)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    nothing = tl.full((4, WIDTH), 0, tl.uint32)
    a = nothing + column.to(tl.uint32)[None, :]
    b = nothing + fours.to(tl.uint32)[:, None]
    c, d = nothing + step.to(tl.uint32), nothing + place.to(tl.uint32)
    left, right = nothing + left.to(tl.uint32), nothing + right.to(tl.uint32)
    first = tl.full((4, WIDTH), 0xD2511F53, tl.uint32)
    second = tl.full((4, WIDTH), 0xCD9E8D57, tl.uint32)
    left_bump = tl.full((4, WIDTH), 0x9E3779B9, tl.uint32)
    right_bump = tl.full((4, WIDTH), 0xBB67AE85, tl.uint32)
    for _ in tl.static_range(7):
        above, below = tl.umulhi(c, second) ^ b ^ left, c * second
        c, d = tl.umulhi(a, first) ^ d ^ right, a * first
        a, b = above, below
        left, right = left + left_bump, right + right_bump
    words = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(tl.reshape(words, (4, WIDTH, 4)).permute(0, 2, 1), (16, WIDTH))


@_kernel
def _e2m1(y: tl.tensor, word: tl.tensor, LOT: tl.constexpr) -> tl.tensor:
    """The number of E2M1 nearest to y, |y| <= 6, ties to even, or a neighbour at random."""
    size = tl.abs(y)
    step = tl.where(size < 2, 0.5, tl.where(size < 4, 1.0, 2.0))
    steps = size * tl.where(size < 2, 2.0, tl.where(size < 4, 1.0, 0.5))
    if LOT:
        below = tl.floor(steps)
        up = (word >> 8).to(tl.float32) < (steps - below) * 16777216.0
        whole = below + tl.where(up, 1.0, 0.0)
    else:
        # there are no digits after the point at 2^23
        whole = (steps + 8388608.0) - 8388608.0
    sign = y.to(tl.int32, bitcast=True) & -0x80000000
    return ((whole * step).to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)


@_kernel
def _round(
    x: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    source: tl.tensor,
    group: tl.tensor,
    T: tl.tensor,
    C: tl.tensor,
    sixth: tl.tensor,
    inverse: tl.tensor,
    made: tl.tensor,
    R: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    step: tl.tensor,
    place: tl.tensor,
    WIDTH: tl.constexpr,
    TRANSFORM: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
    LOT: tl.constexpr,
) -> None:
    """Write 16 rows of a copy; `sixth` holds S / 6 and `inverse` 1 / S of each group."""
    tile = _taken(x, row_stride, column_stride, source, T, C, WIDTH)
    blocks = _blocks(tile, WIDTH, TRANSFORM, COLUMNS)
    peaks = _largest(tl.abs(blocks).to(tl.int32, bitcast=True), WIDTH)
    if TILES:
        of_tiles = _largest(tl.trans(tl.reshape(peaks, (16, WIDTH // 16))), WIDTH // 16)
        peaks = tl.reshape(tl.broadcast_to(of_tiles[None, :], (16, WIDTH // 16)), (WIDTH,))
    own = 0
    if group is not None:
        own = tl.load(group + tl.program_id(0))
    size = peaks.to(tl.float32, bitcast=True) * tl.load(sixth + own)
    scale = _e4m3(tl.minimum(size, 448.0))
    one = tl.full((WIDTH,), 1.0, tl.float32)
    encode = tl.div_rn(one, scale * tl.load(inverse + own))
    encode = tl.minimum(encode, 3.4028234663852886e38)
    y = tl.minimum(tl.maximum(blocks * encode[:, None], -6.0), 6.0)
    word = tl.full((WIDTH, 16), 0, tl.uint32)
    if LOT:
        drawn = _word(left, right, step, place, WIDTH)
        word = tl.trans(drawn) if COLUMNS else tl.reshape(drawn, (WIDTH, 16))
    value = _e2m1(y, word, LOT) * scale[:, None]
    value = tl.trans(value) if COLUMNS else tl.reshape(value, (16, WIDTH))
    row = tl.program_id(0) * 16 + tl.arange(0, 16)
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    there = (row < R)[:, None] & (column < C)[None, :]
    at = row.to(tl.int64)[:, None] * C + column[None, :]
    tl.store(made + at, value.to(made.dtype.element_ty), mask=there)


__all__ = ["INSTALLED", "WIDTH", "mxfp8_operands", "operands", "scaled", "why_not"]

"""A matrix as operands of training's products, in plain PyTorch: the specification.

Promise: steps and their order are those of `README.md`, all in fp32. A copy holds e2m1 x block
scale (NVFP4) or e4m3 x power of two (MXFP8), exactly, in BF16 or fp32; NVFP4's scale of the whole
matrix stays apart, to be multiplied into the product. A matrix with a number that is not finite
has the scale NaN, and so has every product with it: whoever trains skips that step.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.ops.nvfp4.elements import nearest_e2m1, nearest_e4m3, stochastic_e2m1
from fathom.ops.nvfp4.hadamard import hadamard
from fathom.ops.nvfp4.philox import Key, words
from fathom.ops.nvfp4.reference import (
    BLOCK,
    E2M1_MAX,
    E4M3_MAX,
    FLOAT_MAX,
    encode_factor,
    tensor_scale,
)

MX_BLOCK = 32
"""Neighbours that share a power of two in MXFP8."""


@dataclass(frozen=True)
class Copy:
    """How one copy of a matrix is made."""

    dtype: torch.dtype
    """BF16 or fp32; both hold it exactly."""
    stochastic: bool = False
    """Whether it is rounded stochastically, else to nearest."""
    tiles: bool = False
    """Of rows: whether 16 rows share a block scale, which makes rows and columns one."""
    transform: bool = False
    """Of columns: whether the random Hadamard transform comes before."""


@dataclass(frozen=True)
class Groups:
    """Rows that are taken from a matrix and put together by groups, each of whole blocks."""

    source_R: Tensor | None
    """int64 [R]: which row stands here, -1 being zeros; None: the matrix's own rows in order."""
    group_B: Tensor
    """int32 [R / 16]: the group of 16 rows (MXFP8: still of 16)."""
    count: int
    """How many groups; each has a scale of its own."""


@dataclass(frozen=True)
class Operands:
    """The copies that were asked for; those that were not are None."""

    rows: Tensor | None
    """[R, C]: blocks lie along a row. Without groups, R is the number of the matrix's rows."""
    rows_scale: Tensor
    """fp32 [G]."""
    columns: Tensor | None
    """[R, C]: blocks lie along a column, whose end is filled up with zeros to a whole block."""
    columns_scale: Tensor
    """fp32 [G]."""


def operands(
    x: Tensor, rows: Copy | None, columns: Copy | None, key: Key | None, groups: Groups | None
) -> Operands:
    """See `fathom.ops.nvfp4.operands`."""
    padded, count = _taken(x, groups, BLOCK), groups.count if groups else 1
    blocks = padded.shape[0] // BLOCK
    group_B = torch.zeros(blocks, dtype=torch.int64, device=x.device)
    group_B = groups.group_B.long() if groups else group_B
    nothing = torch.ones(count, device=x.device)
    by_rows, rows_scale = None, nothing
    by_columns, columns_scale = None, nothing
    if rows is not None:
        inner = padded.unflatten(1, (-1, BLOCK))
        peaks = inner.abs().amax(-1)
        if rows.tiles:
            most = peaks.unflatten(0, (-1, BLOCK)).amax(1, keepdim=True)
            peaks = most.expand(-1, BLOCK, -1).flatten(0, 1)
        amax = _by_group(peaks, group_B, count)
        factor = encode_factor(amax)[group_B.repeat_interleave(BLOCK)]
        by_rows = _blocks(
            inner, peaks, factor[:, None], key if rows.stochastic else None, False
        ).flatten(1)
        by_rows = by_rows[: None if groups else x.shape[0], : x.shape[1]].to(rows.dtype)
        rows_scale = group_scale(amax)
    if columns is not None:
        inner = padded[:, : x.shape[1]].unflatten(0, (-1, BLOCK))
        if columns.transform:
            inner = hadamard(inner).to(x.dtype).float()
        peaks = inner.abs().amax(1)
        amax = _by_group(peaks, group_B, count)
        factor = encode_factor(amax)[group_B][:, None]
        own = key if columns.stochastic else None
        turned = _blocks(inner.transpose(1, 2), peaks, factor, own, True)
        by_columns = turned.transpose(1, 2).flatten(0, 1).to(columns.dtype)
        columns_scale = group_scale(amax)
    return Operands(by_rows, rows_scale, by_columns, columns_scale)


def _taken(x: Tensor, groups: Groups | None, block: int) -> Tensor:
    """The rows that groups take, fp32, filled up with zeros to whole blocks both ways."""
    x = x.float()
    if groups is not None and groups.source_R is not None:
        x = torch.cat([x, x.new_zeros(1, x.shape[1])])[groups.source_R]
    return torch.nn.functional.pad(x, (0, -x.shape[1] % block, 0, -x.shape[0] % block))


def _by_group(peaks: Tensor, group_B: Tensor, count: int) -> Tensor:
    """The largest of each group's magnitudes, [G]; 0 for a group without rows."""
    most_B = peaks.reshape(group_B.shape[0], -1).amax(1)
    return most_B.new_zeros(count).scatter_reduce(0, group_B, most_B, "amax")


def group_scale(amax: Tensor) -> Tensor:
    """A / 2688 for each group, NaN where A is not finite."""
    return torch.where(amax.isfinite(), tensor_scale(amax), torch.nan)


def _blocks(x: Tensor, peaks: Tensor, factor: Tensor, key: Key | None, columns: bool) -> Tensor:
    """Round blocks, x [a, b, 16] with their largest magnitudes [a, b]; factor S [a, 1]."""
    scale = nearest_e4m3((peaks * (factor * (1 / E2M1_MAX))).clamp(max=E4M3_MAX))
    encode = (1 / (scale * (1 / factor))).clamp(max=FLOAT_MAX)
    y = (x * encode[..., None]).clamp(-E2M1_MAX, E2M1_MAX)
    if key is None:
        return nearest_e2m1(y) * scale[..., None]
    if columns:
        word = words(key, True, (x.shape[0] * BLOCK, x.shape[1]))
        word = word.unflatten(0, (-1, BLOCK)).transpose(1, 2)
    else:
        word = words(key, False, (x.shape[0], x.shape[1] * BLOCK)).unflatten(1, (-1, BLOCK))
    return stochastic_e2m1(y, word.to(x.device)) * scale[..., None]


def mxfp8_operands(
    x: Tensor, rows: torch.dtype | None, columns: torch.dtype | None, groups: Groups | None
) -> tuple[Tensor | None, Tensor | None]:
    """See `fathom.ops.nvfp4.mxfp8_operands`."""
    padded = _taken(x, groups, MX_BLOCK)
    by_rows = by_columns = None
    if rows is not None:
        found = _rounded_mx(padded.unflatten(1, (-1, MX_BLOCK))).flatten(1)
        by_rows = found[: None if groups else x.shape[0], : x.shape[1]].to(rows)
    if columns is not None:
        inner = padded[:, : x.shape[1]].unflatten(0, (-1, MX_BLOCK))
        found = _rounded_mx(inner.transpose(1, 2)).transpose(1, 2)
        by_columns = found.flatten(0, 1).to(columns)
    return by_rows, by_columns


def scaled(
    sums: Tensor, alpha: Tensor, group_B: Tensor | None, block: int, dtype: torch.dtype
) -> Tensor:
    """See `fathom.ops.nvfp4.scaled`."""
    if group_B is not None:
        alpha = alpha[group_B.long()].repeat_interleave(block)[: sums.shape[0], None]
    return (sums.bfloat16().float() * alpha).to(dtype)


def exponents(peaks: Tensor) -> Tensor:
    """E8M0 bytes of blocks with these largest magnitudes: log2(peak / 448), rounded up, + 127.

    NVIDIA's conversion; a block of zeros has 0, which means 2^-127.
    """
    bits = (peaks * (1 / E4M3_MAX)).view(torch.int32)
    exponent, fraction = bits >> 23 & 255, bits & 0x7FFFFF
    up = torch.where(exponent == 0, fraction > 0x400000, fraction > 0)
    return (exponent + up.int()).clamp_max(254)


def _rounded_mx(blocks: Tensor) -> Tensor:
    """Round blocks [.., 32] to MXFP8 and back; NaN where a block is not finite."""
    peaks = blocks.abs().amax(-1, keepdim=True)
    exponent = exponents(peaks)
    one = torch.ones_like(peaks)
    y = (blocks * torch.ldexp(one, 127 - exponent)).clamp(-E4M3_MAX, E4M3_MAX)
    value = nearest_e4m3(y.abs()).copysign(y) * torch.ldexp(one, exponent - 127)
    return torch.where(peaks.isfinite(), value, torch.nan)


__all__ = [
    "MX_BLOCK",
    "Copy",
    "Groups",
    "Operands",
    "exponents",
    "group_scale",
    "mxfp8_operands",
    "operands",
    "scaled",
]

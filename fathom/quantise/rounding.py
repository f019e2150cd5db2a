"""How block scales of NVFP4 are found: from the largest weight, or by the least error.

Promise: whatever finds the scales, the file's codes and scales mean what they always mean, and a
matrix is rounded a few rows at a time.

`max`: the largest weight of a block becomes a 6 (`ops/nvfp4`). `4o6`: it becomes a 6 or a 4,
whichever errs less in squares; the matrix's scale leaves room for that, A / (6 · 256) instead of
A / (6 · 448) (`ops/nvfp4/four_over_six.py`, bit for bit). `mse`: of the E4M3 numbers from half to
almost twice that of `max` the one with the least squared error.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.checkpoint.quantise import LARGEST, Rounding
from fathom.ops.nvfp4 import BLOCK
from fathom.ops.nvfp4.elements import nearest_e2m1
from fathom.ops.nvfp4.four_over_six import BOUND
from fathom.ops.nvfp4.reference import E2M1_MAX, E4M3_MAX, FLOAT_MAX, PIECE, e2m1, whole_blocks
from fathom.quantise.recipes import Method

SWEEP = (0, *range(-1, -9, -1), *range(1, 8))
"""Steps of E4M3 numbers from that of `max`; eight are a factor of two. The first wins a tie."""
_LARGEST_BYTE = 0x7E

Candidates = Callable[[Tensor, Tensor], Iterator[Tensor]]
"""(largest weights of blocks, factor of the matrix) -> block scales to try, fp32."""


@dataclass(frozen=True)
class _Search:
    """Tries several block scales and keeps the one with the least squared error."""

    bound: float
    """The block scale of the block that holds the matrix's largest weight, if that becomes a 6."""
    candidates: Candidates

    def scale(self, amax: Tensor) -> Tensor:
        """The scale of a matrix with this largest magnitude, fp32 []."""
        factor, unit = self._factor(amax)
        return torch.where((amax == 0) | (factor == FLOAT_MAX), 1 / factor, unit)

    def _factor(self, amax: Tensor) -> tuple[Tensor, Tensor]:
        """What weights are multiplied with before their blocks' scales, and what undoes it."""
        most = amax.new_tensor(E2M1_MAX * self.bound)
        return torch.where(amax == 0, 1.0, (most / amax).clamp_max(FLOAT_MAX)), amax / most

    def encode(self, rows_RI: Tensor, amax: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [R, I / 2] and block scales [R, I / 16] of rows of a matrix."""
        whole_blocks(rows_RI.shape[-1])
        step = max(1, PIECE // rows_RI.shape[-1])
        found = [self._encode(part, amax) for part in rows_RI.float().split(step)]
        codes, scales = zip(*found, strict=True)
        return torch.cat(codes), torch.cat(scales)

    def _encode(self, rows_RI: Tensor, amax: Tensor) -> tuple[Tensor, Tensor]:
        factor, unit = self._factor(amax)
        blocks = rows_RI.unflatten(-1, (-1, BLOCK))
        peaks = blocks.abs().amax(-1)
        best = torch.full_like(peaks, torch.inf)
        scale, y = torch.zeros_like(peaks), torch.zeros_like(blocks)
        for tried in self.candidates(peaks, factor):
            encode = (1 / (tried * (1 / factor))).clamp(max=FLOAT_MAX)
            level = (blocks * encode[..., None]).clamp(-E2M1_MAX, E2M1_MAX)
            lost = _squares(nearest_e2m1(level) * tried[..., None] * unit - blocks)
            better = lost < best
            best = torch.where(better, lost, best)
            scale = torch.where(better, tried, scale)
            y = torch.where(better[..., None], level, y)
        pairs = e2m1(y).flatten(-2).unflatten(-1, (-1, 2))
        return pairs[..., 0] | pairs[..., 1] << 4, scale.to(torch.float8_e4m3fn)


def _squares(off: Tensor) -> Tensor:
    """The sum of a block's squares, from the first to the last, as four over six adds them."""
    off = off.square()
    total = torch.zeros_like(off[..., 0])
    for place in range(BLOCK):
        total = total + off[..., place]
    return total


def _e4m3(level: Tensor) -> Tensor:
    """The nearest number of E4M3, in fp32."""
    return level.clamp_max(E4M3_MAX).to(torch.float8_e4m3fn).float()


def _six_and_four(peaks: Tensor, factor: Tensor) -> Iterator[Tensor]:
    """The scales that make a block's largest weight a 6, or a 4."""
    level = peaks / peaks.new_tensor(E2M1_MAX) * factor
    yield _e4m3(level)
    yield _e4m3(level * 1.5)


def _around(peaks: Tensor, factor: Tensor) -> Iterator[Tensor]:
    """The scale of `max` and its neighbours; a block of zeros keeps the scale 0."""
    own = _e4m3(peaks * (factor * (1 / E2M1_MAX))).to(torch.float8_e4m3fn)
    byte = own.view(torch.uint8).int()
    for steps in SWEEP:
        moved = (byte + steps).clamp(1, _LARGEST_BYTE)
        moved = torch.where(peaks == 0, 0, moved).to(torch.uint8)
        yield moved.view(torch.float8_e4m3fn).float()


def _searching(bound: float, candidates: Candidates) -> Rounding:
    """A rounding by search."""
    search = _Search(bound, candidates)
    return Rounding(search.scale, search.encode)


METHODS: Mapping[Method, Rounding] = {
    "max": LARGEST,
    "mse": _searching(E4M3_MAX, _around),
    "4o6": _searching(BOUND, _six_and_four),
}
"""The roundings by name."""

__all__ = ["METHODS", "SWEEP"]

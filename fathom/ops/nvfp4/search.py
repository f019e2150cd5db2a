"""Block scales of NVFP4 by search: of several, each block takes the one that errs least.

Promise: a file reader needs no change, for codes, scales and the matrix's scale mean what they
always mean; among scales that err alike the first wins; a matrix is rounded a few rows at a time.
Which scales are tried is the caller's: `four_over_six.py`, and the sweep of `quantise/rounding.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fathom.ops.nvfp4.elements import nearest_e2m1
from fathom.ops.nvfp4.reference import (
    BLOCK,
    E2M1_MAX,
    FLOAT_MAX,
    PIECE,
    encode_factor,
    packed,
    tensor_scale,
    whole_blocks,
)

Candidates = Callable[[Tensor, Tensor], Iterator[Tensor]]
"""(largest magnitudes of blocks, factor of the matrix) -> block scales to try, fp32."""
Error = Literal["mse", "mae"]
"""Which sum over a block decides: of squares, or of magnitudes."""


@dataclass(frozen=True)
class Search:
    """Tries several block scales and keeps the one with the least error."""

    bound: float
    """The block scale of the block that holds the matrix's largest value, if that becomes a 6."""
    candidates: Candidates
    error: Error = "mse"

    def scale(self, amax: Tensor) -> Tensor:
        """The scale of a matrix with this largest magnitude, fp32 []."""
        return tensor_scale(amax, self.bound)

    def encode(self, rows_RI: Tensor, amax: Tensor) -> tuple[Tensor, Tensor]:
        """Codes [R, I / 2] and block scales [R, I / 16] of rows of a matrix.

        Raises:
            KernelError: the rows are not whole blocks of 16.
        """
        whole_blocks(rows_RI.shape[-1])
        step = max(1, PIECE // rows_RI.shape[-1])
        found = [self._encode(part, amax) for part in rows_RI.float().split(step)]
        codes, scales = zip(*found, strict=True)
        return torch.cat(codes), torch.cat(scales)

    def _encode(self, rows_RI: Tensor, amax: Tensor) -> tuple[Tensor, Tensor]:
        factor, unit = (
            encode_factor(amax, self.bound),
            amax / amax.new_tensor(E2M1_MAX * self.bound),
        )
        blocks = rows_RI.unflatten(-1, (-1, BLOCK))
        peaks = blocks.abs().amax(-1)
        best = scale = y = None
        for tried in self.candidates(peaks, factor):
            encode = (1 / (tried * (1 / factor))).clamp(max=FLOAT_MAX)
            level = (blocks * encode[..., None]).clamp(-E2M1_MAX, E2M1_MAX)
            lost = self._sum(nearest_e2m1(level) * tried[..., None] * unit - blocks)
            if best is None or scale is None or y is None:
                best, scale, y = lost, tried, level
                continue
            better = lost < best
            best, scale = torch.where(better, lost, best), torch.where(better, tried, scale)
            y = torch.where(better[..., None], level, y)
        assert scale is not None
        assert y is not None
        return packed(y), scale.to(torch.float8_e4m3fn)

    def _sum(self, off: Tensor) -> Tensor:
        """What each block errs, added up from the first to the last."""
        off = off.square() if self.error == "mse" else off.abs()
        total = torch.zeros_like(off[..., 0])
        for place in range(BLOCK):
            total = total + off[..., place]
        return total


__all__ = ["Candidates", "Error", "Search"]

"""How block scales of NVFP4 are found: from the largest weight, or by the least error.

Promise: whatever finds the scales, the file's codes and scales mean what they always mean, and a
matrix is rounded a few rows at a time. The search itself is `ops/nvfp4/search.py`.

`max`: the largest weight of a block becomes a 6 (`ops/nvfp4`). `4o6`: it becomes a 6 or a 4,
whichever errs less in squares; the matrix's scale leaves room for that, A / (6 · 256) instead of
A / (6 · 448) (`ops/nvfp4/four_over_six.py`). `mse`: of the E4M3 numbers from half to almost twice
that of `max` the one with the least squared error.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from fathom.checkpoint.quantise import LARGEST, Rounding
from fathom.ops.nvfp4.four_over_six import four_over_six
from fathom.ops.nvfp4.reference import E2M1_MAX, E4M3_MAX
from fathom.ops.nvfp4.search import Search
from fathom.quantise.recipes import Method

SWEEP = (0, *range(-1, -9, -1), *range(1, 8))
"""Steps of E4M3 numbers from that of `max`; eight are a factor of two. The first wins a tie."""
_LARGEST_BYTE = 0x7E


def _around(peaks: Tensor, factor: Tensor) -> Iterator[Tensor]:
    """The scale of `max` and its neighbours; a block of zeros keeps the scale 0."""
    own = (peaks * (factor * (1 / E2M1_MAX))).clamp_max(E4M3_MAX).to(torch.float8_e4m3fn)
    byte = own.view(torch.uint8).int()
    for steps in SWEEP:
        moved = (byte + steps).clamp(1, _LARGEST_BYTE)
        moved = torch.where(peaks == 0, 0, moved).to(torch.uint8)
        yield moved.view(torch.float8_e4m3fn).float()


def _searching(search: Search) -> Rounding:
    """A rounding by search."""
    return Rounding(search.scale, search.encode)


METHODS: Mapping[Method, Rounding] = {
    "max": LARGEST,
    "mse": _searching(Search(E4M3_MAX, _around)),
    "4o6": _searching(four_over_six()),
}
"""The roundings by name."""

__all__ = ["METHODS", "SWEEP"]

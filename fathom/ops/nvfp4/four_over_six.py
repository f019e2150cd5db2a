"""Four over six: each block chooses whether its largest value becomes a 6 or a 4.

Promise: a file reader needs no change, for codes, scales and the matrix's scale mean what they
always mean. Between 4 and 6 E2M1 has nothing, so blocks with much just below their largest value
lose less where that value becomes 4; the block scale is then 1.5 times larger, for which the bound
of scales is 256 here instead of 448. Source: Four Over Six (arXiv 2512.02010), in the order of
operations of NVIDIA's Transformer Engine.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from fathom.ops.nvfp4.elements import nearest_e2m1
from fathom.ops.nvfp4.reference import (
    BLOCK,
    E2M1_MAX,
    E4M3_MAX,
    FLOAT_MAX,
    Quantised,
    e2m1,
    largest,
    whole_blocks,
)

BOUND = 256.0
"""The largest block scale of a block whose largest value becomes 6."""


def quantise_four_over_six(
    weight: Float[Tensor, "O I"], error: Literal["mse", "mae"] = "mse"
) -> Quantised:
    """Round a matrix to NVFP4, every block to the better of two scales; a tie keeps the 6.

    Args:
        weight: [O, I] of any float type, I a multiple of 16.
        error: which sum over a block decides: of squares (`mse`) or of magnitudes (`mae`).

    Raises:
        KernelError: rows are not whole blocks of 16, or a value is not finite.
    """
    whole_blocks(weight.shape[-1])
    amax = largest(weight)
    most = amax.new_tensor(E2M1_MAX * BOUND)
    factor = torch.where(amax == 0, 1.0, (most / amax).clamp_max(FLOAT_MAX))
    blocks = weight.float().unflatten(-1, (-1, BLOCK))
    peaks = blocks.abs().amax(-1)
    level = peaks / amax.new_tensor(E2M1_MAX) * factor
    six, four = (_rounded(blocks, level * grow, factor) for grow in (1.0, 1.5))
    lost = [_error(blocks, y, scale, amax / most, error) for y, scale in (six, four)]
    chosen = lost[1] < lost[0]
    y = torch.where(chosen[..., None], four[0], six[0])
    scale = torch.where(chosen, four[1].float(), six[1].float()).to(torch.float8_e4m3fn)
    codes = e2m1(y).flatten(-2).unflatten(-1, (-1, 2))
    own = torch.where((amax == 0) | (factor == FLOAT_MAX), 1 / factor, amax / most)
    return Quantised(codes[..., 0] | codes[..., 1] << 4, scale, own)


def _rounded(blocks: Tensor, level: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Values in [-6, 6] before their rounding, and the block scales."""
    scale = level.clamp_max(E4M3_MAX).to(torch.float8_e4m3fn)
    encode = (1 / (scale.float() * (1 / factor))).clamp(max=FLOAT_MAX)
    return (blocks * encode[..., None]).clamp(-E2M1_MAX, E2M1_MAX), scale


def _error(blocks: Tensor, y: Tensor, scale: Tensor, unit: Tensor, error: str) -> Tensor:
    """How far the decoded values of each block are off, added up from the first to the last."""
    off = nearest_e2m1(y) * scale.float()[..., None] * unit - blocks
    off = off.square() if error == "mse" else off.abs()
    total = torch.zeros_like(off[..., 0])
    for place in range(BLOCK):
        total = total + off[..., place]
    return total


__all__ = ["BOUND", "quantise_four_over_six"]

"""The order in which tensor cores want block scales: tiles of 128 rows and 4 blocks.

Promise: a layout for a product alone, never for a file; what fills up the last tiles is zero. Of
experts each one's scales are laid on their own and put end to end.
"""

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.nn import functional as F

ROWS, COLUMNS = 128, 4


def swizzle(scales_Rc: Shaped[Tensor, "R c"]) -> Shaped[Tensor, " n"]:
    """Block scales [R, c], of one byte each, in the order of cuBLAS (SWIZZLE_32_4_4), flat.

    Scale (r, c) of C columns (filled up to a multiple of 4) goes to byte
    ((r div 128) (C / 4) + c div 4) 512 + (r mod 32) 16 + ((r mod 128) div 32) 4 + c mod 4.
    """
    rows, columns = scales_Rc.shape
    fill = (0, -columns % COLUMNS, 0, -rows % ROWS)
    padded = F.pad(scales_Rc.view(torch.uint8), fill)
    tiles = padded.view(-(-rows // ROWS), 4, 32, -(-columns // COLUMNS), COLUMNS)
    return tiles.permute(0, 3, 2, 1, 4).flatten().view(scales_Rc.dtype)


def unswizzle(flat_n: Shaped[Tensor, " n"], rows: int, columns: int) -> Shaped[Tensor, "R c"]:
    """The [rows, columns] scales that `swizzle` laid out."""
    tiles = flat_n.view(torch.uint8).view(-(-rows // ROWS), -(-columns // COLUMNS), 32, 4, COLUMNS)
    padded = tiles.permute(0, 3, 2, 1, 4).reshape(-(-rows // ROWS) * ROWS, -1)
    return padded[:rows, :columns].contiguous().view(flat_n.dtype)


__all__ = ["swizzle", "unswizzle"]

"""Four over six: each block chooses whether its largest value becomes a 6 or a 4.

Promise: the search of `search.py` over two scales. Between 4 and 6 E2M1 has nothing, so blocks with
much just below their largest value lose less where that value becomes 4; the block scale is then
1.5 times larger, for which the bound of scales is 256 here instead of 448. Source: Four Over Six
(arXiv 2512.02010), in the order of operations of NVIDIA's Transformer Engine.
"""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from fathom.ops.nvfp4.elements import nearest_e4m3
from fathom.ops.nvfp4.reference import E2M1_MAX, E4M3_MAX, Quantised, largest
from fathom.ops.nvfp4.search import Error, Search

BOUND = 256.0
"""The largest block scale of a block whose largest value becomes 6."""


def four_over_six(error: Error = "mse") -> Search:
    """The search over both scales; a tie keeps the 6."""
    return Search(BOUND, _six_and_four, error)


def quantise_four_over_six(weight: Float[Tensor, "O I"], error: Error = "mse") -> Quantised:
    """Round a matrix to NVFP4, every block to the better of two scales.

    Args:
        weight: [O, I] of any float type, I a multiple of 16.
        error: which sum over a block decides.

    Raises:
        KernelError: rows are not whole blocks of 16, or a value is not finite.
    """
    search, amax = four_over_six(error), largest(weight)
    return Quantised(*search.encode(weight, amax), search.scale(amax))


def _six_and_four(peaks: Tensor, factor: Tensor) -> Iterator[Tensor]:
    """The scales that make a block's largest value a 6, or a 4."""
    level = peaks / peaks.new_tensor(E2M1_MAX) * factor
    for grow in (1.0, 1.5):
        yield nearest_e4m3((level * grow).clamp_max(E4M3_MAX))


__all__ = ["BOUND", "four_over_six", "quantise_four_over_six"]

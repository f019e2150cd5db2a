"""How a number becomes one of E2M1 or of E4M3: the nearest, or a neighbour at random.

Promise: fp32 throughout, each step one rounding, so that native code gives the same bits. Codes,
scales and files are `reference.py`.
"""

import torch
from torch import Tensor


def steps_e2m1(size: Tensor) -> Tensor:
    """Distance of E2M1's numbers at sizes from 0 to 6: 1/2 below 2, 1 below 4, then 2."""
    return torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))


def nearest_e2m1(y: Tensor) -> Tensor:
    """The nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 with y's sign, ties to the even code; |y| <= 6."""
    size = y.abs()
    step = steps_e2m1(size)
    return ((size / step).round() * step).copysign(y)


def stochastic_e2m1(y: Tensor, word: Tensor) -> Tensor:
    """One of the two neighbours of y, |y| <= 6, the farther one as likely as y is near to it.

    `word` holds random integers from 0 to 2^32 - 1, of which the upper 24 bits are used: the mean
    is y up to 2^-24 of a step. A number that E2M1 has is never moved.
    """
    size = y.abs()
    step = steps_e2m1(size)
    below = (size / step).floor()
    up = (word >> 8).float() < (size / step - below) * 2.0**24
    return ((below + up) * step).copysign(y)


def nearest_e4m3(size: Tensor) -> Tensor:
    """The nearest number of E4M3, ties to even, for sizes from 0 to 448."""
    return size.to(torch.float8_e4m3fn).float()


__all__ = ["nearest_e2m1", "nearest_e4m3", "steps_e2m1", "stochastic_e2m1"]

"""Random words as a function of a key and a place: Philox 4x32 with seven rounds.

Promise: no state; the same key gives the same words on every machine, for any shape of the matrix
around an element and any number of threads. Source: Salmon et al., Parallel random numbers: as easy
as 1, 2, 3 (SC 2011).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.errors import KernelError

ROUNDS = 7
FACTORS = (0xD2511F53, 0xCD9E8D57)
BUMPS = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Key:
    """Whose random numbers: two keys that differ anywhere have unrelated ones."""

    seed: int
    """Of the run; 64 bits count."""
    step: int
    """Optimizer step, below 2^32."""
    micro: int
    """Micro-batch of the step, below 2^11."""
    matrix: int
    """Which weight of the model, below 2^20."""

    def __post_init__(self) -> None:
        """Refuse numbers that would run into one another."""
        if not (0 <= self.step < 1 << 32 and 0 <= self.micro < 1 << 11):
            raise KernelError(
                f"nvfp4: {self} lies outside of steps below 2^32 or parts below 2^11."
            )
        if not 0 <= self.matrix < 1 << 20:
            raise KernelError(f"nvfp4: {self} names a matrix that is not below 2^20.")

    @property
    def place(self) -> int:
        """Matrix and micro-batch in 32 bits; the lowest is left for rows (0) or columns (1)."""
        return self.matrix << 12 | self.micro << 1


def words(key: Key, columns: bool, shape: tuple[int, int]) -> Tensor:
    """A random word, int64 from 0 to 2^32 - 1, for each element of a matrix [R, C].

    The counter of element (r, c) is (c, r div 4, step, place), its word the one of number r mod 4.
    """
    rows, width = shape
    fours = -(-rows // 4)
    a = torch.arange(width).expand(fours, width)
    b = torch.arange(fours)[:, None].expand(fours, width)
    c, d = torch.full_like(a, key.step), torch.full_like(a, key.place | int(columns))
    left, right = key.seed & MASK, key.seed >> 32 & MASK
    for _ in range(ROUNDS):
        # products wrap around in int64, whose 64 bits are right all the same
        first, second = a * FACTORS[0], c * FACTORS[1]
        a, b, c, d = (
            (second >> 32 & MASK) ^ b ^ left,
            second & MASK,
            (first >> 32 & MASK) ^ d ^ right,
            first & MASK,
        )
        left, right = (left + BUMPS[0]) & MASK, (right + BUMPS[1]) & MASK
    return torch.stack([a, b, c, d], 1).flatten(0, 1)[:rows]


__all__ = ["Key", "words"]

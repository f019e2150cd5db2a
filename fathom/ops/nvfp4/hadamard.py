"""The random Hadamard transform of sixteen tokens: it spreads an outlier over its neighbours.

Promise: orthogonal up to rounding, so that it cancels in a product of two operands that both had
it. x' = x H with H = (1/4) diag(signs) x Sylvester's matrix of size 16; the signs are those that
NVIDIA's Transformer Engine fixes for all layers.
"""

import torch
from jaxtyping import Float
from torch import Tensor

SIGNS = (1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1)


def hadamard(x_BrC: Float[Tensor, "B 16 C"]) -> Float[Tensor, "B 16 C"]:
    """Transform groups of sixteen rows, fp32; the additions are those of the fast transform."""
    y = x_BrC.float() * torch.tensor(SIGNS, device=x_BrC.device)[:, None]
    for half in (1, 2, 4, 8):
        pairs = y.unflatten(1, (-1, 2, half))
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        y = torch.stack([a + b, a - b], 2).flatten(1, 3)
    return y * 0.25


__all__ = ["SIGNS", "hadamard"]

"""States kept in fp16: rounded to nearest once, by chance at every step.

Promise: where each step's update is far smaller than its state, rounding to nearest loses all of
it; rounding up or down with the probability of what is cut off keeps the mean exact. The random
number follows from the layer's seed, the token's position in its sequence and the state's own
place, so no bit depends on neighbours, threads, or whether a token was drafted. What fp16 can hold
stays; magnitudes beyond its greatest number, 65504, become that number; infinities become NaN.
This is the specification of `ops/native/ssd/rounding.h`, bit for bit.
Source: the hash is lowbias32 without its last shift (C. Wellons, "Prospecting for Hash Functions").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.errors import KernelError

HALF = torch.float16
"""What states may be kept in beside fp32."""

MOST, SMALLEST = 65504.0, 2.0**-14
"""fp16's greatest number, and the least of its normal range."""


@dataclass(frozen=True)
class Rounding:
    """What decides how new states are rounded to fp16."""

    past_S: Tensor
    """int32 [S]: tokens of each sequence before the call's first; read when the call runs."""
    seed: int
    """The layer's, from 0 to 2^32 - 1."""


def checked(rounding: Rounding | None) -> Rounding:
    """The rounding of states in fp16; `KernelError` if there is none."""
    if rounding is None:
        raise KernelError(
            "ssd: states in fp16 are rounded by chance, and no rounding was given. Give "
            "Rounding(past_S, seed), or states in fp32."
        )
    return rounding


def nearest(state_SHPN: Tensor, dtype: torch.dtype) -> Tensor:
    """States in a type, rounded to nearest; beyond the range of fp16 they become +-65504."""
    if state_SHPN.dtype == dtype:
        return state_SHPN
    most = torch.finfo(dtype).max
    return state_SHPN.clamp(-most, most).to(dtype)


def kept(
    state_SHPN: Tensor,
    dtype: torch.dtype,
    rounding: Rounding | None,
    own_S: Tensor | None = None,
    place: int = 0,
) -> Tensor:
    """New states as they are kept in `dtype`: in fp16 rounded by chance, else as they are.

    Args:
        state_SHPN: what a step computed.
        dtype: the type of the states it began with.
        rounding: needed for fp16.
        own_S: which of the rounding's sequences these are; None: all.
        place: how many of the call's tokens came before the step.
    """
    if dtype != HALF:
        return state_SHPN
    rounding = checked(rounding)
    past_S = rounding.past_S if own_S is None else rounding.past_S[own_S]
    state_SHPN = state_SHPN.float()
    size = state_SHPN.abs()
    # the power of two at or below it, times 2^-10: how far its neighbours in fp16 are apart
    normal = size.clamp(min=SMALLEST)
    gap = normal / torch.frexp(normal).mantissa * 2.0**-11
    chance = chances(rounding.seed, past_S + place, state_SHPN.shape[1:]) * 2.0**-13
    size = (((size + chance * gap) / gap).trunc() * gap).clamp(max=MOST)
    return torch.copysign(size, state_SHPN).to(HALF)


def chances(seed: int, position_S: Tensor, shape: Sequence[int]) -> Tensor:
    """13 random bits of each state, fp32 [S, H, P, N] of whole numbers from 0 to 8191.

    A hash of the row and one of the column are added, both made anew for every token: the numbers
    of any two states are independent.

    Args:
        seed: the layer's.
        position_S: the position of each sequence's token.
        shape: H, P and N.
    """
    (heads, width, count), device = shape, position_S.device
    rows_R = torch.arange(heads * width, device=device)
    columns_N = torch.arange(count, device=device)
    token_S = _mix(_mix(torch.tensor(seed, device=device)) + position_S.long())
    row_SR = _mix(token_S[:, None] + rows_R)
    column_SN = _mix(_mix(token_S + 0x9E3779B9)[:, None] + columns_N)
    bits = (row_SR[..., None] + column_SN[:, None]) >> 10 & 0x1FFF
    return bits.view(-1, heads, width, count).float()


def _mix(x: Tensor) -> Tensor:
    """A hash of 32 bits, in int64."""
    x = x & 0xFFFFFFFF
    x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
    return (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF


__all__ = ["Rounding", "chances", "checked", "kept", "nearest"]

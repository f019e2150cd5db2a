"""The causal convolution as a few multiply-adds on tiles that stay in cache, backward by hand.

Promise: equal to `reference.py` up to fp32 rounding, values and gradients. No mask is needed: a
tile never reaches over the beginning of its sequence, and short or continued sequences are kept
apart by laying their tails, or zeros, before each, so that the stream is one.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fathom.ops.layout import Layout
from fathom.ops.rows import pick, place

ROWS = 256
"""Tokens of one tile: a tile of the family's channels stays in a core's cache for all taps."""
SHORT = 128
"""Sequences shorter than this on average are laid into one stream: tiles would be too small."""

Tiles = list[tuple[int, int, int]]
"""(where the sequence begins, where the tile begins, where it ends)."""


def _tiles(starts: tuple[int, ...], lengths: tuple[int, ...]) -> Tiles:
    """Cut every sequence into tiles of at most `ROWS` tokens."""
    return [
        (start, first, min(first + ROWS, start + length))
        for start, length in zip(starts, lengths, strict=True)
        for first in range(start, start + length, ROWS)
    ]


class _Conv(torch.autograd.Function):
    """x [T, c], taps [k, c] (the last meets the present token), bias [c] -> silu(conv) [T, c]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taps: Tensor, bias: Tensor, tiles: Tiles) -> Tensor:
        """Convolve tile by tile; keep the sums before SiLU."""
        pre, y = x.new_empty(x.shape), x.new_empty(x.shape)
        for start, first, end in tiles:
            tile = pre[first:end]
            torch.addcmul(bias, x[first:end], taps[-1], out=tile)
            for back in range(1, min(taps.shape[0], end - start)):
                held = max(first - back, start)
                tile[held + back - first :].addcmul_(x[held : end - back], taps[-1 - back])
            torch.ops.aten.silu.out(tile, out=y[first:end])
        ctx.tiles = tiles
        ctx.save_for_backward(x, taps, pre)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, taps and bias."""
        x, taps, pre = ctx.saved_tensors
        dx = x.new_empty(x.shape)
        dtaps, dbias = torch.zeros_like(taps), taps.new_zeros(taps.shape[1])
        for start, first, end in ctx.tiles:
            dtile = torch.ops.aten.silu_backward(dy[first:end], pre[first:end])
            dbias += dtile.sum(0)
            dtaps[-1] += (dtile * x[first:end]).sum(0)
            torch.mul(dtile, taps[-1], out=dx[first:end])
            for back in range(1, min(taps.shape[0], end - start)):
                held = max(first - back, start)
                heard = dtile[held + back - first :]
                dtaps[-1 - back] += (heard * x[held : end - back]).sum(0)
                dx[held : end - back].addcmul_(heard, taps[-1 - back])
        return dx, dtaps, dbias, None


def causal_conv(
    x_Tc: Tensor, weight_ck: Tensor, bias_c: Tensor, layout: Layout, tail_Skc: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Convolve every sequence; see `fathom.ops.conv.causal_conv`."""
    taps, bias, older = weight_ck.float().T.contiguous(), bias_c.float(), weight_ck.shape[1] - 1
    tokens, sequences = layout.tokens, layout.sequences
    if tail_Skc is not None and tokens == sequences:
        return _steps(x_Tc, taps, bias, tail_Skc.to(x_Tc.dtype))
    if tail_Skc is None and tokens >= SHORT * sequences and min(layout.lengths) >= older:
        y: Tensor = _Conv.apply(x_Tc.float(), taps, bias, _tiles(layout.starts, layout.lengths))
        ends = [x_Tc[last + 1 - older : last + 1] for last in layout.last_S.tolist()]
        return y.to(x_Tc.dtype), torch.stack(ends)
    # the s-th sequence comes after s + 1 tails
    device = x_Tc.device
    own_T = (torch.arange(tokens) + (layout.sequence_T + 1) * older).to(device)
    whole = place(x_Tc.float(), own_T, tokens + sequences * older)
    last_Sk = own_T[layout.last_S.to(device)][:, None] - torch.arange(older - 1, -1, -1).to(device)
    if tail_Skc is not None:
        first_S = own_T[torch.tensor(layout.starts).to(device)]
        before_Sk = first_S[:, None] + torch.arange(-older, 0).to(device)
        whole = whole.index_copy(0, before_Sk.view(-1), tail_Skc.float().flatten(0, 1))
    y = pick(_Conv.apply(whole, taps, bias, _tiles((0,), (whole.shape[0],))), own_T)
    tails = whole.index_select(0, last_Sk.view(-1)).view(sequences, older, -1)
    return y.to(x_Tc.dtype), tails.to(x_Tc.dtype)


def _steps(x_Sc: Tensor, taps: Tensor, bias: Tensor, tail_Skc: Tensor) -> tuple[Tensor, Tensor]:
    """One token of every sequence."""
    window_Skc = torch.cat([tail_Skc, x_Sc[:, None]], 1)
    pre = torch.addcmul(bias, window_Skc[:, 0].float(), taps[0])
    for tap in range(1, taps.shape[0]):
        pre = torch.addcmul(pre, window_Skc[:, tap].float(), taps[tap])
    return F.silu(pre).to(x_Sc.dtype), window_Skc[:, 1:]


def step_(x_Sc: Tensor, weight_ck: Tensor, bias_c: Tensor, tail_Skc: Tensor) -> Tensor:
    """See `fathom.ops.conv.step_`."""
    taps = weight_ck.float().T.contiguous()
    y, tail = _steps(x_Sc, taps, bias_c.float(), tail_Skc.to(x_Sc.dtype))
    tail_Skc.copy_(tail)
    return y


def keep_(tail_Skc: Tensor, x_Tc: Tensor, layout: Layout, counts_S: Tensor) -> None:
    """See `fathom.ops.conv.keep_`; the host reads no value, so that it waits for no device."""
    sequences, older = tail_Skc.shape[:2]
    lengths_S, starts_S, first_S, back_k = (
        torch.tensor(numbers).to(x_Tc.device)
        for numbers in (layout.lengths, layout.starts, range(sequences), range(older))
    )
    place_Sk = counts_S.long().minimum(lengths_S)[:, None] + back_k - older
    old_Sk = place_Sk + (first_S * older + older)[:, None]
    new_Sk = place_Sk + (starts_S + sequences * older)[:, None]
    rows = torch.cat([tail_Skc.flatten(0, 1), x_Tc])
    row_Sk = torch.where(place_Sk < 0, old_Sk, new_Sk)
    tail_Skc.copy_(rows.index_select(0, row_Sk.view(-1)).view(tail_Skc.shape))


__all__ = ["causal_conv", "keep_", "step_"]

"""The scan as few large products, with its backward written by hand.

Promise: equal to `reference.py` up to fp32 rounding, values and gradients, in a fraction of its
passes over memory: the gradient of the log-decays is two row products instead of a pass over every
pair of tokens (see README.md), the products of a group's heads are one product, and only the
chunk's output and the states are kept for the backward pass.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fathom.ops.layout import Layout
from fathom.ops.ssd.chunks import Chunks, chunks, tile, to_grid, to_stream
from fathom.ops.ssd.reference import peek, replay, step, step_


def _pairs(cum_KHQ: Tensor) -> Tensor:
    """Decay [K, H, Q, Q] from token j to token i of a chunk; zero where j is later than i."""
    width = cum_KHQ.shape[-1]
    decay = cum_KHQ[..., :, None] - cum_KHQ[..., None, :]
    later = torch.full((width, width), float("-inf"), device=cum_KHQ.device).triu(1)
    return decay.add_(later).exp_()


def _by_head(x_KQHP: Tensor) -> Tensor:
    """Copy [K, Q, H, P] to [K x H, Q, P]."""
    K, Q, H, P = x_KQHP.shape
    return x_KQHP.transpose(1, 2).reshape(K * H, Q, P)


def _carry(
    added_KHPN: Tensor, whole_KH: Tensor, initial_SHPN: Tensor | None, cut: Chunks
) -> tuple[Tensor, Tensor]:
    """Walk the states from chunk to chunk, all sequences at once.

    Returns the state each chunk finds and, in the place of `added_KHPN`, the one it leaves.
    """
    found = torch.empty_like(added_KHPN)
    first = cut.ranks[0]
    if initial_SHPN is None:
        found[first] = 0.0
    else:
        found[first] = initial_SHPN.index_select(0, cut.order_S.to(initial_SHPN.device))
        added_KHPN[first].addcmul_(found[first], whole_KH[first, :, None, None])
    for own, before in zip(cut.ranks[1:], cut.before, strict=True):
        found[own] = added_KHPN[before]
        added_KHPN[own].addcmul_(found[own], whole_KH[own, :, None, None])
    return found, added_KHPN


def _grouped(heads_KQHP: Tensor, groups: int) -> list[Tensor]:
    """Views [K, Q, R x P] of the heads of each group."""
    K, Q, H, P = heads_KQHP.shape
    return list(heads_KQHP.view(K, Q, groups, H // groups * P).unbind(2))


class _Scan(torch.autograd.Function):
    """The scan on the grid; all tensors fp32."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        initial: Tensor | None,
        cut: Chunks,
    ) -> tuple[Tensor, Tensor]:
        """x [K,Q,H,P], dt [K,Q,H], A [H], B and C [K,Q,G,N] -> y [K,Q,H,P], final [S,H,P,N]."""
        K, Q, H, P = x.shape
        G, N = B.shape[2:]
        written = x * dt[..., None]
        cum = (dt * A).cumsum(1).transpose(1, 2).contiguous()
        # inside a chunk: one product per head
        pairs = _pairs(cum)
        CB = C.transpose(1, 2) @ B.permute(0, 2, 3, 1)
        pairs.view(K, G, H // G, Q, Q).mul_(CB[:, :, None])
        inside = torch.bmm(pairs.view(K * H, Q, Q), _by_head(written))
        # between chunks: one product per group
        to_end = (cum[..., -1:] - cum).exp_().transpose(1, 2)
        sent = _grouped(written * to_end[..., None], G)
        added = torch.stack([sent[g].transpose(1, 2).bmm(B[:, :, g]) for g in range(G)], 1).view(
            K, H, P, N
        )
        whole = cum[..., -1].exp()
        found, after = _carry(added, whole, initial, cut)
        y = torch.stack(
            [C[:, :, g].bmm(found.view(K, G, -1, N)[:, g].transpose(1, 2)) for g in range(G)], 2
        ).view(K, Q, H, P)
        y.mul_(cum.exp().transpose(1, 2)[..., None])
        y.add_(inside.view(K, H, Q, P).transpose(1, 2))
        ctx.cut, ctx.has_initial = cut, initial is not None
        ctx.save_for_backward(x, dt, A, B, C, cum, found, after, y)
        return y, after[cut.last_S.to(x.device)]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dfinal: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, dt, A, B, C and the initial state."""
        x, dt, A, B, C, cum, found, after, y = ctx.saved_tensors
        cut: Chunks = ctx.cut
        K, Q, H, P = x.shape
        G, N = B.shape[2:]
        R = H // G
        written = x * dt[..., None]
        from_start = cum.exp().transpose(1, 2)[..., None]
        to_end = (cum[..., -1:] - cum).exp().transpose(1, 2)[..., None]
        whole = cum[..., -1].exp()

        # 1. the gradient of every state, from the last chunk of a sequence to its first
        heard = _grouped(dy * from_start, G)
        dafter = torch.zeros_like(after)
        dafter[cut.last_S] = dfinal
        asked = torch.stack([heard[g].transpose(1, 2).bmm(C[:, :, g]) for g in range(G)], 1).view(
            K, H, P, N
        )
        for own, before in reversed(list(zip(cut.ranks[1:], cut.before, strict=True))):
            asked[own].addcmul_(dafter[own], whole[own, :, None, None])
            dafter[before] += asked[own]
        dwhole = torch.linalg.vecdot(dafter.flatten(2), after.flatten(2))
        dinitial = None
        if ctx.has_initial:
            first = cut.ranks[0]
            dinitial = torch.empty_like(dafter[first])
            dinitial[cut.order_S] = dafter[first] * whole[first, :, None, None] + asked[first]

        # 2. inside a chunk
        pairs = _pairs(cum)
        CB = C.transpose(1, 2) @ B.permute(0, 2, 3, 1)
        dy_heads, written_heads = _by_head(dy), _by_head(written)
        dCB = torch.bmm(dy_heads, written_heads.transpose(1, 2)).view(K, H, Q, Q).mul_(pairs)
        dCB = dCB.view(K, G, R, Q, Q).sum(2) if R > 1 else dCB
        pairs.view(K, G, R, Q, Q).mul_(CB[:, :, None])
        dwritten = torch.bmm(pairs.view(K * H, Q, Q).transpose(1, 2), dy_heads)
        dwritten = dwritten.view(K, H, Q, P).transpose(1, 2)
        dC = (dCB @ B.transpose(1, 2)).transpose(1, 2).contiguous()
        dB = (dCB.transpose(2, 3) @ C.transpose(1, 2)).transpose(1, 2).contiguous()

        # 3. between chunks, the heads of a group at once
        sent = _grouped(written * to_end, G)
        found_G, dafter_G = found.view(K, G, R * P, N), dafter.view(K, G, R * P, N)
        arrived = torch.empty_like(x)
        for g in range(G):
            dC[:, :, g] += heard[g].bmm(found_G[:, g])
            dB[:, :, g] += sent[g].bmm(dafter_G[:, g])
            arrived.view(K, Q, G, R * P)[:, :, g] = B[:, :, g].bmm(dafter_G[:, g].transpose(1, 2))
        dwritten = arrived.mul_(to_end).add_(dwritten)

        # 4. the log-decays: what was heard, less what was said, and the state's own share
        dcum = (dy * y).sum(-1) - (written * dwritten).sum(-1)
        dcum[:, -1] += dwhole
        da = dcum.flip(1).cumsum(1).flip(1)
        ddt = da * A + (dwritten * x).sum(-1)
        dA = (da * dt).sum((0, 1))
        dx = dwritten.mul_(dt[..., None])
        return dx, ddt, dA, dB, dC, dinitial, None


def scan(
    x_THP: Tensor,
    dt_TH: Tensor,
    A_H: Tensor,
    B_TGN: Tensor,
    C_TGN: Tensor,
    D_H: Tensor,
    layout: Layout,
    chunk: int,
    state_SHPN: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Run every sequence through the recurrence; see `fathom.ops.ssd.scan`."""
    cut = chunks(layout, tile(chunk))
    x_KQHP, dt_KQH, B_KQGN, C_KQGN = (
        to_grid(value.float(), cut) for value in (x_THP, dt_TH, B_TGN, C_TGN)
    )
    initial = None if state_SHPN is None else state_SHPN.float()
    y, final = _Scan.apply(x_KQHP, dt_KQH, A_H.float(), B_KQGN, C_KQGN, initial, cut)
    y_THP = torch.addcmul(to_stream(y, cut), D_H.float()[:, None], x_THP.float())
    return y_THP.to(x_THP.dtype), final


def step_sizes(dt_TH: Tensor, bias_H: Tensor) -> Tensor:
    """softplus(dt + bias) in fp32; see `fathom.ops.ssd.step_sizes`."""
    return F.softplus(dt_TH.float() + bias_H.float())


__all__ = ["peek", "replay", "scan", "step", "step_", "step_sizes"]

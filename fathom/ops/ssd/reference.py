"""The state-space scan of Mamba-2 in plain PyTorch: the specification of every other backend.

Promise: `scan` equals T calls of `step` up to rounding, for every sequence of the layout by
itself; state and log-decays are fp32 (or better) whatever the inputs are; no clamp on dt.
Source: Mamba-2 (arXiv 2405.21060), section 6 and listing 1.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.ops.layout import Layout
from fathom.ops.ssd.chunks import chunks, to_grid, to_stream
from fathom.ops.ssd.rounding import Rounding, kept
from fathom.ops.wide import wide


def _replaced(whole: Tensor, part: slice, value: Tensor) -> Tensor:
    """`whole` with `part` set to `value`, as a new tensor that gradients can follow."""
    return whole.slice_scatter(value, 0, part.start, part.stop, part.step or 1)


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
    cut = chunks(layout, chunk)
    heads_per_group = x_THP.shape[1] // B_TGN.shape[1]
    x_KQHP, dt_KQH = to_grid(wide(x_THP), cut), to_grid(wide(dt_TH), cut)
    B_KQHN = to_grid(wide(B_TGN), cut).repeat_interleave(heads_per_group, 2)
    C_KQHN = to_grid(wide(C_TGN), cut).repeat_interleave(heads_per_group, 2)
    written_KQHP = x_KQHP * dt_KQH[..., None]

    # 1. log-decays from each chunk's beginning, and between any two of its tokens (i after j)
    cum_KHQ = (dt_KQH * wide(A_H)).cumsum(1).transpose(1, 2)
    later = torch.ones(chunk, chunk, dtype=torch.bool, device=x_THP.device).tril()
    between_KHQQ = (cum_KHQ[..., :, None] - cum_KHQ[..., None, :]).masked_fill(
        ~later, float("-inf")
    )

    # 2. what tokens of the same chunk say to one another
    scores_KHQQ = torch.einsum("kihn,kjhn->khij", C_KQHN, B_KQHN) * between_KHQQ.exp()
    inside_KQHP = torch.einsum("khij,kjhp->kihp", scores_KHQQ, written_KQHP)

    # 3. what each chunk adds to the state, and the state that each chunk finds
    to_end_KHQ = (cum_KHQ[..., -1:] - cum_KHQ).exp()
    added_KHPN = torch.einsum("kqhp,khq,kqhn->khpn", written_KQHP, to_end_KHQ, B_KQHN)
    whole_KH = cum_KHQ[..., -1].exp()
    found_KHPN, after_KHPN = torch.zeros_like(added_KHPN), torch.zeros_like(added_KHPN)
    for rank, own in enumerate(cut.ranks):
        if rank > 0:
            found = after_KHPN[cut.before[rank - 1]].clone()
        elif state_SHPN is not None:
            found = wide(state_SHPN)[cut.order_S.to(x_THP.device)]
        else:
            found = torch.zeros_like(added_KHPN[own])
        after = found * whole_KH[own, :, None, None] + added_KHPN[own]
        found_KHPN = _replaced(found_KHPN, own, found)
        after_KHPN = _replaced(after_KHPN, own, after)

    # 4. what earlier chunks say, through that state; and the skip
    before_KQHP = torch.einsum("kqhn,khpn,khq->kqhp", C_KQHN, found_KHPN, cum_KHQ.exp())
    y_KQHP = inside_KQHP + before_KQHP + wide(D_H)[:, None] * x_KQHP
    return to_stream(y_KQHP, cut).to(x_THP.dtype), after_KHPN[cut.last_S.to(x_THP.device)]


def step(
    x_SHP: Tensor,
    dt_SH: Tensor,
    A_H: Tensor,
    B_SGN: Tensor,
    C_SGN: Tensor,
    D_H: Tensor,
    state_SHPN: Tensor,
) -> tuple[Tensor, Tensor]:
    """One token of every sequence; see `fathom.ops.ssd.step`."""
    heads_per_group = x_SHP.shape[1] // B_SGN.shape[1]
    x, dt = wide(x_SHP), wide(dt_SH)
    B_SHN = wide(B_SGN).repeat_interleave(heads_per_group, 1)
    C_SHN = wide(C_SGN).repeat_interleave(heads_per_group, 1)
    decay_SH = (dt * wide(A_H)).exp()
    written = (dt[..., None] * x)[..., None] * B_SHN[:, :, None, :]
    state = decay_SH[..., None, None] * wide(state_SHPN) + written
    y = (state * C_SHN[:, :, None, :]).sum(-1) + wide(D_H)[:, None] * x
    return y.to(x_SHP.dtype), state


def step_(
    x_SHP: Tensor,
    dt_SH: Tensor,
    A_H: Tensor,
    B_SGN: Tensor,
    C_SGN: Tensor,
    D_H: Tensor,
    state_SHPN: Tensor,
    rounding: Rounding | None = None,
) -> Tensor:
    """One token of every sequence, the state in place; see `fathom.ops.ssd.step_`."""
    y_SHP, after_SHPN = step(x_SHP, dt_SH, A_H, B_SGN, C_SGN, D_H, state_SHPN)
    state_SHPN.copy_(kept(after_SHPN, state_SHPN.dtype, rounding))
    return y_SHP


def _places(layout: Layout, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """For each place in a sequence: the sequences that reach it, and their tokens there."""
    for place in range(max(layout.lengths)):
        tokens = (layout.place_T == place).nonzero()[:, 0]
        yield layout.sequence_T[tokens].to(device), tokens.to(device)


def peek(
    x_THP: Tensor,
    dt_TH: Tensor,
    A_H: Tensor,
    B_TGN: Tensor,
    C_TGN: Tensor,
    D_H: Tensor,
    layout: Layout,
    state_SHPN: Tensor,
    rounding: Rounding | None = None,
) -> Tensor:
    """What steps would say, the states left alone; see `fathom.ops.ssd.peek`."""
    y_THP, now_SHPN = x_THP.new_empty(x_THP.shape), state_SHPN.clone()
    for place, (own, at) in enumerate(_places(layout, x_THP.device)):
        y_THP[at], after = step(x_THP[at], dt_TH[at], A_H, B_TGN[at], C_TGN[at], D_H, now_SHPN[own])
        now_SHPN[own] = kept(after, now_SHPN.dtype, rounding, own, place)
    return y_THP


def replay(
    state_SHPN: Tensor,
    x_THP: Tensor,
    dt_TH: Tensor,
    A_H: Tensor,
    B_TGN: Tensor,
    layout: Layout,
    counts_S: Tensor,
    rounding: Rounding | None = None,
) -> None:
    """Move states on by each sequence's first tokens; see `fathom.ops.ssd.replay`."""
    for place, (own, at) in enumerate(_places(layout, x_THP.device)):
        before = state_SHPN[own]
        # nothing is read out: B stands in the place of C
        _, after = step(x_THP[at], dt_TH[at], A_H, B_TGN[at], B_TGN[at], A_H, before)
        after = kept(after, before.dtype, rounding, own, place)
        stays = (counts_S[own] > place)[:, None, None, None]
        state_SHPN[own] = torch.where(stays, after.to(before.dtype), before)


def step_sizes(dt_TH: Tensor, bias_H: Tensor) -> Tensor:
    """softplus(dt + bias); see `fathom.ops.ssd.step_sizes`."""
    return F.softplus(wide(dt_TH) + wide(bias_H))


__all__ = ["peek", "replay", "scan", "step", "step_", "step_sizes"]

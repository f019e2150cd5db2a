"""Causal attention over ragged sequences through PyTorch's fused attention.

Promise: equal to `reference.py` up to rounding. Sequences of like length share one call: padding
goes to the right, where a causal query never looks, so it costs a little time and no mask.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.ops.attend.pages import Pages
from fathom.ops.layout import Layout

WASTE = 1.25
"""Sequences share a call while the padded work is at most this multiple of the real."""


def _causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[S, t, H, d] and [S, t, h, d] -> [S, t, H, d]."""
    return F.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True, enable_gqa=True
    ).transpose(1, 2)


def _buckets(lengths: tuple[int, ...]) -> list[list[int]]:
    """Sequences of like length, longest first."""
    buckets: list[list[int]] = []
    real = 0.0
    for sequence in sorted(range(len(lengths)), key=lambda s: -lengths[s]):
        work = float(lengths[sequence] ** 2)
        if buckets:
            padded = lengths[buckets[-1][0]] ** 2 * (len(buckets[-1]) + 1)
            if padded <= WASTE * (real + work):
                buckets[-1].append(sequence)
                real += work
                continue
        buckets.append([sequence])
        real = work
    return buckets


def _fresh(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Sequences that remember nothing."""
    if len(set(layout.lengths)) == 1:
        q, k, v = (x.view(layout.sequences, -1, *x.shape[1:]) for x in (q, k, v))
        return _causal(q, k, v).reshape(layout.tokens, *q.shape[2:])
    pieces = [x.split(layout.lengths) for x in (q, k, v)]
    outputs: list[Tensor] = [q] * layout.sequences
    for bucket in _buckets(layout.lengths):
        padded = [
            torch.nn.utils.rnn.pad_sequence([piece[s] for s in bucket], batch_first=True)
            for piece in pieces
        ]
        answer = _causal(padded[0], padded[1], padded[2])
        for row, sequence in enumerate(bucket):
            outputs[sequence] = answer[row, : layout.lengths[sequence]]
    return torch.cat(outputs)


def _continued(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One sequence, q [t, H, d] against all its keys [L, h, d], the last t of them its own."""
    fresh, whole = q.shape[0], k.shape[0]
    mask = None
    if fresh > 1:
        mask = torch.ones(fresh, whole, dtype=torch.bool, device=q.device).tril(whole - fresh)
    return F.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        k.transpose(0, 1)[None],
        v.transpose(0, 1)[None],
        attn_mask=mask,
        enable_gqa=True,
    )[0].transpose(0, 1)


@torch.no_grad()
def _remembering(
    q_THd: Tensor, k_Thd: Tensor, v_Thd: Tensor, layout: Layout, pages: Pages
) -> Tensor:
    """Sequences that continue what their pages hold."""
    pages.write(k_Thd, v_Thd, layout)
    outputs = []
    for sequence, q in enumerate(q_THd.split(layout.lengths)):
        past = int(pages.past_S[sequence])
        k, v = pages.read(sequence, past + q.shape[0])
        k, v = k.to(q.dtype), v.to(q.dtype)
        outputs.append(_continued(q, k, v) if past else _causal(q[None], k[None], v[None])[0])
    return torch.cat(outputs)


def attend(
    q_THd: Tensor, k_Thd: Tensor, v_Thd: Tensor, layout: Layout, pages: Pages | None
) -> Tensor:
    """See `fathom.ops.attend.attend`."""
    if pages is None:
        return _fresh(q_THd, k_Thd, v_Thd, layout)
    return _remembering(q_THd, k_Thd, v_Thd, layout, pages)


__all__ = ["attend"]

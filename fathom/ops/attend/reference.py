"""Causal attention over ragged sequences in plain PyTorch: the specification.

Promise: softmax(q k' / sqrt(d)) v in fp32 (or better), each sequence by itself; a query sees its
own token, the ones before it and what its pages hold. There are no positions in it.
"""

import torch
from torch import Tensor

from fathom.ops.attend.pages import Pages
from fathom.ops.layout import Layout
from fathom.ops.wide import wide


def attend(
    q_THd: Tensor,
    k_Thd: Tensor,
    v_Thd: Tensor,
    layout: Layout,
    pages: Pages | None,
) -> Tensor:
    """See `fathom.ops.attend.attend`."""
    if pages is not None:
        with torch.no_grad():
            pages.write(k_Thd, v_Thd, layout)
    shared = q_THd.shape[1] // k_Thd.shape[1]
    outputs = []
    pieces = zip(*(x.split(layout.lengths) for x in (q_THd, k_Thd, v_Thd)), strict=True)
    for sequence, (q, k, v) in enumerate(pieces):
        if pages is not None:
            k, v = pages.read(sequence, int(pages.past_S[sequence]) + q.shape[0])
        k_LHd = wide(k).repeat_interleave(shared, 1)
        v_LHd = wide(v).repeat_interleave(shared, 1)
        scores_HtL = torch.einsum("thd,lhd->htl", wide(q), k_LHd) / q.shape[-1] ** 0.5
        past = k.shape[0] - q.shape[0]
        future = torch.ones(q.shape[0], k.shape[0], dtype=torch.bool, device=q.device)
        weights = scores_HtL.masked_fill(future.triu(past + 1), float("-inf")).softmax(-1)
        outputs.append(torch.einsum("htl,lhd->thd", weights, v_LHd))
    return torch.cat(outputs).to(q_THd.dtype)


__all__ = ["attend"]

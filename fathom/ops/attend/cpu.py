"""Causal attention in native code: one call stores keys and values, one attends.

Promise: equal to `reference.py` up to fp32 rounding; where keys are bf16 or fp8, queries bf16 and
the tier multiplies bf16 pairs, weights are rounded to bf16 as well. A query's bits depend on itself
and its history alone: not on other sequences, on how the history came (cut anywhere, one token at a
time or all at once) or on threads. Fresh sequences are stored in pages of their own. The kernels
are `ops/native/attend`.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.errors import KernelError
from fathom.ops import native
from fathom.ops.attend.pages import PAGE, Pages
from fathom.ops.layout import Layout
from fathom.ops.native.tensors import CODES, FLOATS, differentiated, rows


def attend(
    q_THd: Tensor, k_Thd: Tensor, v_Thd: Tensor, layout: Layout, pages: Pages | None
) -> Tensor:
    """See `fathom.ops.attend.attend`."""
    inputs = (q_THd, k_Thd, v_Thd)
    if pages is None and differentiated(*inputs):
        if k_Thd.dtype != q_THd.dtype:
            raise KernelError(
                f"attend: k must be {q_THd.dtype} as q where gradients flow; got {k_Thd.dtype}. "
                "Convert it."
            )
        y_THd: Tensor = _Attend.apply(*inputs, layout)
        return y_THd
    return _forward(*inputs, layout, pages, keep=False)[0]


class _Attend(torch.autograd.Function):
    """Attention of fresh sequences that keeps what its gradients need."""

    @staticmethod
    def forward(ctx: Any, q_THd: Tensor, k_Thd: Tensor, v_Thd: Tensor, layout: Layout) -> Tensor:
        """See `fathom.ops.attend.attend`."""
        y_THd, lse_TH = _forward(q_THd, k_Thd, v_Thd, layout, None, keep=True)
        ctx.layout = layout
        ctx.save_for_backward(q_THd, k_Thd, v_Thd, y_THd, lse_TH)
        return y_THd

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_THd: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of queries, keys and values."""
        q_THd, k_Thd, v_Thd, y_THd, lse_TH = ctx.saved_tensors
        dq, dk, dv = _backward(q_THd, k_Thd, v_Thd, y_THd, lse_TH, dy_THd, ctx.layout)
        return dq, dk, dv, None


def _forward(
    q_THd: Tensor,
    k_Thd: Tensor,
    v_Thd: Tensor,
    layout: Layout,
    pages: Pages | None,
    keep: bool,
) -> tuple[Tensor, Tensor | None]:
    """Outputs, and if asked for the logarithms (to base 2) of each row's sum of weights [T, H]."""
    T, H, d = q_THd.shape
    h = k_Thd.shape[1]
    if h == 0 or H % h:
        raise KernelError(
            f"attend: q has {H} heads, which {h} key-value heads cannot share evenly. "
            "Give a multiple."
        )
    q, q_stride = rows("attend: q", q_THd, (layout.tokens, H, d), *FLOATS)
    if pages is None:
        pages = fresh_pages(k_Thd, layout, k_Thd.dtype)
    if (h, d) != (pages.heads, pages.width):
        raise KernelError(
            f"attend: pages of width {pages.width} cannot hold {h} keys of width {d} a token; "
            f"they have {pages.heads} heads."
        )
    write(k_Thd, v_Thd, layout, pages)
    y_THd = torch.empty(T, H, d, dtype=q_THd.dtype)
    lse_TH = torch.empty(T, H) if keep else None
    native.kernels().attend_forward(
        q,
        q_stride,
        CODES[q_THd.dtype],
        y_THd.data_ptr(),
        lse_TH.data_ptr() if lse_TH is not None else 0,
        *_addresses(pages),
        *_sequences(layout),
        T,
        H,
        *_sizes(pages),
    )
    return y_THd, lse_TH


def _backward(
    q_THd: Tensor,
    k_Thd: Tensor,
    v_Thd: Tensor,
    y_THd: Tensor,
    lse_TH: Tensor,
    dy_THd: Tensor,
    layout: Layout,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values from what the forward pass kept."""
    T, H, d = q_THd.shape
    q, q_stride = rows("attend: q", q_THd, (T, H, d), *FLOATS)
    # held by this name while the kernel runs
    dy_THd = dy_THd if dy_THd[0].is_contiguous() else dy_THd.contiguous()
    dy, dy_stride = rows("attend: gradient of y", dy_THd, (T, H, d), q_THd.dtype)
    keys = fresh_pages(k_Thd, layout, torch.float32, 64)
    values = fresh_pages(k_Thd, layout, torch.float32, 64)
    write(k_Thd, v_Thd, layout, keys)
    write(v_Thd, k_Thd, layout, values)
    dq_THd, dk_Thd, dv_Thd = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_THd, k_Thd, v_Thd)
    )
    delta_TH = torch.empty(T, H)
    native.kernels().attend_backward(
        q,
        q_stride,
        CODES[q_THd.dtype],
        y_THd.data_ptr(),
        dy,
        dy_stride,
        lse_TH.data_ptr(),
        delta_TH.data_ptr(),
        keys.keys.data_ptr(),
        values.keys.data_ptr(),
        values.values.data_ptr(),
        keys.table_SB.data_ptr(),
        keys.past_S.data_ptr(),
        *_sequences(layout),
        H,
        *_sizes(keys)[:5],
        dq_THd.data_ptr(),
        dk_Thd.data_ptr(),
        dv_Thd.data_ptr(),
    )
    return dq_THd, dk_Thd, dv_Thd


def fresh_pages(k_Thd: Tensor, layout: Layout, dtype: torch.dtype, tokens: int = PAGE) -> Pages:
    """Pages of their own for sequences that remember nothing."""
    counts = [-(-length // tokens) for length in layout.lengths]
    used = sum(counts)
    if len(set(counts)) == 1:
        table_SB = torch.arange(used, dtype=torch.int32).view(len(counts), -1)
    else:
        table_SB = torch.full((len(counts), max(counts)), -1, dtype=torch.int32)
        for row, pages in zip(table_SB, torch.arange(used).split(counts), strict=True):
            row[: len(pages)] = pages
    return Pages.empty(
        used,
        k_Thd.shape[1],
        k_Thd.shape[2],
        table_SB,
        torch.zeros(layout.sequences, dtype=torch.int32),
        tokens=tokens,
        dtype=dtype,
    )


def write(k_Thd: Tensor, v_Thd: Tensor, layout: Layout, pages: Pages) -> None:
    """Store keys and values in pages, as `Pages.write` does."""
    shape = (layout.tokens, pages.heads, pages.width)
    k, k_stride = rows("attend: k", k_Thd, shape, *FLOATS)
    v, v_stride = rows("attend: v", v_Thd, shape, k_Thd.dtype)
    if pages.past_S.shape[0] != layout.sequences or pages.past_S.device.type != "cpu":
        raise KernelError(
            f"attend: pages must hold {layout.sequences} sequences on the CPU, as the layout; they "
            f"hold {pages.past_S.shape[0]} on {pages.past_S.device}."
        )
    native.kernels().attend_append(
        k,
        k_stride,
        CODES[k_Thd.dtype],
        v,
        v_stride,
        *_addresses(pages),
        *_sequences(layout),
        layout.tokens,
        *_sizes(pages),
    )


def _addresses(pages: Pages) -> tuple[int, int, int, int, int]:
    """Where the pages, their type, their table and the lengths are."""
    return (
        pages.keys.data_ptr(),
        pages.values.data_ptr(),
        CODES[pages.keys.dtype],
        pages.table_SB.data_ptr(),
        pages.past_S.data_ptr(),
    )


def _sequences(layout: Layout) -> tuple[int, int, int]:
    """Where sequences begin: an address and 0, or none and the length that all have; S."""
    if len(set(layout.lengths)) == 1:
        return 0, layout.lengths[0], layout.sequences
    return layout.bounds.data_ptr(), 0, layout.sequences


def _sizes(pages: Pages) -> tuple[int, int, int, int, int, float, float]:
    """Heads, width, the table's row, a page's tokens, the number of pages, scales."""
    return (
        pages.heads,
        pages.width,
        pages.table_SB.shape[1],
        pages.tokens,
        pages.keys.shape[0],
        pages.k_scale,
        pages.v_scale,
    )


__all__ = ["attend", "fresh_pages", "write"]

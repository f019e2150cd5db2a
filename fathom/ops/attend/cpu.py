"""Causal attention in native code: one call stores keys and values, one attends.

Promise: equal to `reference.py` up to fp32 rounding; where keys are bf16 or fp8, queries bf16 and
the tier multiplies bf16 pairs, weights are rounded to bf16 as well. A query's bits depend on itself
and its history alone: not on other sequences, on how the history came (cut anywhere, one token at a
time or all at once) or on threads. Fresh sequences are stored in pages of their own. The kernels
are `ops/native/attend`.
"""

import torch
from torch import Tensor

from fathom.errors import KernelError
from fathom.ops import dispatch, native
from fathom.ops.attend.pages import Pages
from fathom.ops.layout import Layout
from fathom.ops.native.tensors import CODES, FLOATS, rows


def why_not(case: dispatch.Case) -> str | None:
    """What speaks against this backend in words; None: nothing."""
    if case.gradients:
        return "no backward pass yet"
    return native.why_not(case)


def attend(
    q_THd: Tensor, k_Thd: Tensor, v_Thd: Tensor, layout: Layout, pages: Pages | None
) -> Tensor:
    """See `fathom.ops.attend.attend`."""
    y_THd, _ = _forward(q_THd, k_Thd, v_Thd, layout, pages, keep=False)
    return y_THd


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


def fresh_pages(k_Thd: Tensor, layout: Layout, dtype: torch.dtype, tokens: int = 64) -> Pages:
    """Pages of their own for sequences that remember nothing."""
    counts = [-(-length // tokens) for length in layout.lengths]
    table_SB = torch.full((layout.sequences, max(counts)), -1, dtype=torch.int32)
    used = 0
    for row, count in zip(table_SB, counts, strict=True):
        row[:count] = torch.arange(used, used + count, dtype=torch.int32)
        used += count
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


__all__ = ["attend", "fresh_pages", "why_not", "write"]

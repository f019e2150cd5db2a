"""The scan in native code: a group's chunks one after the other, its states in cache.

Promise: equal to `reference.py` up to fp32 rounding, values and gradients. A sequence's results do
not depend on the sequences beside it nor on the number of threads. x, B and C are read where they
lie, rows any distance apart. Gradients of `step` go the way of `eager`. The kernels are
`ops/native/ssd`.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fathom.errors import KernelError
from fathom.ops import native
from fathom.ops.layout import Layout
from fathom.ops.native.tensors import CODES, FLOATS, dense, differentiated, rows
from fathom.ops.ssd import eager
from fathom.ops.ssd.chunks import pieces, tile
from fathom.ops.ssd.rounding import HALF, Rounding, checked

FP32 = torch.float32


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
    if state_SHPN is not None and state_SHPN.dtype == HALF:
        state_SHPN = state_SHPN.float()
    inputs = (x_THP, dt_TH, A_H.float(), B_TGN, C_TGN, D_H.float(), state_SHPN)
    if differentiated(*inputs):
        y_THP, final_SHPN = _Scan.apply(*inputs, layout, tile(chunk))
        return y_THP, final_SHPN
    y_THP, final_SHPN, _, _ = _forward(*inputs, layout, tile(chunk), keep=False)
    return y_THP, final_SHPN


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
    if differentiated(x_SHP, dt_SH, A_H, B_SGN, C_SGN, D_H, state_SHPN):
        return eager.step(x_SHP, dt_SH, A_H, B_SGN, C_SGN, D_H, state_SHPN)
    after_SHPN = torch.empty_like(state_SHPN)
    y_SHP = _step(x_SHP, dt_SH, A_H, B_SGN, C_SGN, D_H, state_SHPN, after_SHPN, None)
    return y_SHP, after_SHPN


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
    """One token of every sequence, the state in place: one native call."""
    if differentiated(x_SHP, dt_SH, A_H, B_SGN, C_SGN, D_H, state_SHPN):
        return eager.step_(x_SHP, dt_SH, A_H, B_SGN, C_SGN, D_H, state_SHPN, rounding)
    return _step(x_SHP, dt_SH, A_H, B_SGN, C_SGN, D_H, state_SHPN, state_SHPN, rounding)


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
    (_, H, P), (G, N), T, S = x_THP.shape, B_TGN.shape[1:], layout.tokens, layout.sequences
    y_THP = torch.empty(T, H, P, dtype=x_THP.dtype)
    native.kernels().ssd_peek(
        *_written("ssd.peek", x_THP, dt_TH, A_H, B_TGN, T),
        *_read("ssd.peek", C_TGN, D_H, (T, G, N), H),
        layout.bounds.data_ptr(),
        *_states("ssd.peek", state_SHPN, (S, H, P, N), rounding),
        y_THP.data_ptr(),
        *(S, H, P, G, N),
    )
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
    (_, H, P), (G, N), T, S = x_THP.shape, B_TGN.shape[1:], layout.tokens, layout.sequences
    native.kernels().ssd_replay(
        *_states("ssd.replay", state_SHPN, (S, H, P, N), rounding),
        *_written("ssd.replay", x_THP, dt_TH, A_H, B_TGN, T),
        layout.bounds.data_ptr(),
        dense("ssd.replay: counts", counts_S, (S,), torch.int32, torch.int64),
        counts_S.dtype == torch.int64,
        *(S, H, P, G, N),
    )


def step_sizes(dt_TH: Tensor, bias_H: Tensor) -> Tensor:
    """softplus(dt + bias) in fp32; see `fathom.ops.ssd.step_sizes`."""
    if differentiated(dt_TH, bias_H):
        steps_TH: Tensor = _StepSizes.apply(dt_TH, bias_H)
        return steps_TH
    return _step_sizes(dt_TH, bias_H)


def _check_groups(heads: int, groups: int) -> None:
    """Raise `KernelError` unless the heads fall into equal groups."""
    if heads % groups:
        raise KernelError(
            f"ssd: B's {groups} groups must divide x's {heads} heads. Repeat groups or pad heads."
        )


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def _cut(layout: Layout, width: int) -> tuple[Tensor, Tensor]:
    """int64 [K, 2]: first token and tokens of each chunk; [S + 1]: each sequence's first chunk."""
    cut = pieces(layout, width)
    counts = torch.tensor([0] + [len(own) for own in cut])
    return torch.tensor([piece for own in cut for piece in own]), counts.cumsum(0)


def _arguments(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, layout: Layout, width: int
) -> tuple[Any, Any]:
    """The kernel's ScanInputs and ScanSizes, after a look at every tensor."""
    (_, H, P), (G, N), T = x.shape, B.shape[1:], layout.tokens
    _check_groups(H, G)
    pieces_K2, firsts_S = _cut(layout, width)
    inputs = native.kernels().ScanInputs(
        *rows("ssd.scan: x", x, (T, H, P), *FLOATS),
        CODES[x.dtype],
        *rows("ssd.scan: dt", dt, (T, H), FP32),
        dense("ssd.scan: A", A, (H,), FP32),
        *rows("ssd.scan: B", B, (T, G, N), *FLOATS),
        CODES[B.dtype],
        *rows("ssd.scan: C", C, (T, G, N), *FLOATS),
        CODES[C.dtype],
        dense("ssd.scan: D", D, (H,), FP32),
    )
    sizes = native.kernels().ScanSizes(
        pieces_K2.data_ptr(),
        firsts_S.data_ptr(),
        layout.sequences,
        len(pieces_K2),
        H,
        P,
        G,
        N,
        width,
    )
    return inputs, sizes


def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial: Tensor | None,
    layout: Layout,
    width: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """y and final states; with `keep` also y without the skip and the states between chunks."""
    kernels = native.kernels()
    inputs, sizes = _arguments(x, dt, A, B, C, D, layout, width)
    (T, H, P), N, S = x.shape, B.shape[2], layout.sequences
    y = torch.empty(T, H, P, dtype=x.dtype)
    final = torch.empty(S, H, P, N)
    inner = states = None
    if keep:
        inner = torch.empty(T, H, P)
        kept = len(_cut(layout, width)[0]) + S
        states = torch.empty(kept, H, kernels.ssd_state_values(P, N))
    kernels.ssd_scan(
        inputs,
        sizes,
        0 if initial is None else dense("ssd.scan: state", initial, (S, H, P, N), FP32),
        y.data_ptr(),
        0 if inner is None else inner.data_ptr(),
        0 if states is None else states.data_ptr(),
        final.data_ptr(),
    )
    return y, final, inner, states


class _Scan(torch.autograd.Function):
    """The scan with its backward; what is kept are the inputs, y without the skip, and states."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        initial: Tensor | None,
        layout: Layout,
        width: int,
    ) -> tuple[Tensor, Tensor]:
        """As `scan`, with the tile's width in the place of the chunk's."""
        y, final, inner, states = _forward(x, dt, A, B, C, D, initial, layout, width, keep=True)
        ctx.layout, ctx.width, ctx.continues = layout, width, initial is not None
        ctx.save_for_backward(x, dt, A, B, C, D, inner, states)
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of x, dt, A, B, C, D and the initial states."""
        x, dt, A, B, C, D, inner, states = ctx.saved_tensors
        inputs, sizes = _arguments(x, dt, A, B, C, D, ctx.layout, ctx.width)
        (T, H, P), (G, N), S = x.shape, B.shape[1:], ctx.layout.sequences
        dy = torch.zeros(T, H, P, dtype=x.dtype) if dy is None else dy.contiguous()
        dfinal = None if dfinal is None else dfinal.contiguous()
        dx, ddt = torch.empty(T, H, P, dtype=x.dtype), torch.empty(T, H)
        dB, dC = torch.empty(T, G, N, dtype=B.dtype), torch.empty(T, G, N, dtype=C.dtype)
        dA, dD = torch.empty(H), torch.empty(H)
        dinitial = torch.empty(S, H, P, N) if ctx.needs_input_grad[6] else None
        native.kernels().ssd_scan_backward(
            inputs,
            sizes,
            dense("ssd.scan: dy", dy, (T, H, P), x.dtype),
            0 if dfinal is None else dense("ssd.scan: dfinal", dfinal, (S, H, P, N), FP32),
            inner.data_ptr(),
            states.data_ptr(),
            ctx.continues,
            dx.data_ptr(),
            ddt.data_ptr(),
            dA.data_ptr(),
            dB.data_ptr(),
            dC.data_ptr(),
            dD.data_ptr(),
            0 if dinitial is None else dinitial.data_ptr(),
        )
        return dx, ddt, dA, dB, dC, dD, dinitial, None, None


def _step(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    before: Tensor,
    after: Tensor,
    rounding: Rounding | None,
) -> Tensor:
    """y; the states `before` moved on by one token into `after`, which may be the same."""
    (S, H, P), (G, N) = x.shape, B.shape[1:]
    y = torch.empty(S, H, P, dtype=x.dtype)
    native.kernels().ssd_step(
        *_written("ssd.step", x, dt, A, B, S),
        *_read("ssd.step", C, D, (S, G, N), H),
        before.data_ptr(),
        *_states("ssd.step", after, (S, H, P, N), rounding),
        y.data_ptr(),
        *(S, H, P, G, N),
    )
    return y


def _written(
    name: str, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, tokens: int
) -> tuple[int, int, int, int, int, int, int, int, int]:
    """Addresses, distances of rows and types of what so many tokens write into states."""
    (_, H, P), (_, G, N) = x.shape, B.shape
    _check_groups(H, G)
    return (
        *rows(f"{name}: x", x, (tokens, H, P), *FLOATS),
        CODES[x.dtype],
        *rows(f"{name}: dt", dt, (tokens, H), FP32),
        dense(f"{name}: A", A, (H,), FP32),
        *rows(f"{name}: B", B, (tokens, G, N), *FLOATS),
        CODES[B.dtype],
    )


def _read(
    name: str, C: Tensor, D: Tensor, shape: tuple[int, int, int], heads: int
) -> tuple[int, int, int, int, int]:
    """The same of what reads states out, and of the skip."""
    return (
        *rows(f"{name}: C", C, shape, *FLOATS),
        CODES[C.dtype],
        dense(f"{name}: D", D, (heads,), *FLOATS),
        CODES[D.dtype],
    )


def _states(
    name: str, state: Tensor, shape: tuple[int, int, int, int], rounding: Rounding | None
) -> tuple[int, int, int]:
    """The address of states, and of the pasts that they are rounded by with the seed: 0 in fp32."""
    address = dense(f"{name}: state", state, shape, FP32, HALF)
    if state.dtype == FP32:
        return address, 0, 0
    past_S = checked(rounding).past_S
    return address, dense(f"{name}: past", past_S, shape[:1], torch.int32), checked(rounding).seed


def _step_sizes(dt: Tensor, bias: Tensor) -> Tensor:
    """softplus(dt + bias), fp32 [T, H]."""
    T, H = dt.shape
    steps = torch.empty(T, H)
    native.kernels().ssd_step_sizes(
        *rows("ssd.step_sizes: dt", dt, (T, H), *FLOATS),
        CODES[dt.dtype],
        dense("ssd.step_sizes: bias", bias, (H,), *FLOATS),
        CODES[bias.dtype],
        steps.data_ptr(),
        T,
        H,
    )
    return steps


class _StepSizes(torch.autograd.Function):
    """softplus(dt + bias) with its backward."""

    @staticmethod
    def forward(ctx: Any, dt: Tensor, bias: Tensor) -> Tensor:
        """Keep what went in."""
        ctx.save_for_backward(dt, bias)
        return _step_sizes(dt, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dsteps: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of dt and bias."""
        dt, bias = ctx.saved_tensors
        T, H = dt.shape
        dsteps = dsteps.contiguous()
        ddt, dbias = torch.empty(T, H, dtype=dt.dtype), torch.empty(H)
        native.kernels().ssd_step_sizes_backward(
            *rows("ssd.step_sizes: dt", dt, (T, H), *FLOATS),
            CODES[dt.dtype],
            dense("ssd.step_sizes: bias", bias, (H,), *FLOATS),
            CODES[bias.dtype],
            dense("ssd.step_sizes: dsteps", dsteps, (T, H), FP32),
            ddt.data_ptr(),
            dbias.data_ptr(),
            T,
            H,
        )
        return ddt, dbias.to(bias.dtype)


__all__ = ["peek", "replay", "scan", "step", "step_", "step_sizes"]

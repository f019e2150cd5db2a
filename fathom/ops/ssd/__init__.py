"""The state-space scan of Mamba-2: whole sequences at once (`scan`) or one token each (`step`).

Promise: `scan` over a sequence equals calling `step` for each of its tokens, up to rounding;
`step_` and `replay` change the states they are given and nothing else, `peek` changes none. The
projections, the convolution and the gate around it are `model/mamba.py`.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fathom.ops import dispatch, native
from fathom.ops.layout import Layout
from fathom.ops.ssd import cpu, eager, reference
from fathom.ops.ssd.rounding import Rounding, nearest

OPERATION = dispatch.in_torch("ssd", eager, reference, native.backend(cpu))
"""The backends of this operation."""


def scan(
    x_THP: Float[Tensor, "T H P"],
    dt_TH: Float[Tensor, "T H"],
    A_H: Float[Tensor, " H"],
    B_TGN: Float[Tensor, "T G N"],
    C_TGN: Float[Tensor, "T G N"],
    D_H: Float[Tensor, " H"],
    layout: Layout,
    chunk: int,
    state_SHPN: Float[Tensor, "S H P N"] | None = None,
) -> tuple[Float[Tensor, "T H P"], Float[Tensor, "S H P N"]]:
    """Run every sequence of the layout through its own recurrence.

    For each head: S_t = exp(dt_t A) S_(t-1) + dt_t x_t (x) B_t and y_t = S_t C_t + D x_t, with S
    from `state_SHPN` (None: zero). Head h reads group h // (H / G) of B and C.

    Args:
        x_THP: inputs of any float type; y has the same.
        dt_TH: step sizes after softplus, fp32.
        A_H: negative decay rates.
        B_TGN: what is written into the state.
        C_TGN: what is read out of it.
        D_H: the skip's factor.
        layout: where each sequence begins; its past places the chunk boundaries.
        chunk: tokens between chunk boundaries, counted from each sequence's first token.
        state_SHPN: states to begin with, fp32 or fp16.

    Returns:
        y and the fp32 states after each sequence's last token.

    Source: Mamba-2 (arXiv 2405.21060), section 6.
    """
    backend = OPERATION.choose(dispatch.Case.of(x_THP)).module
    result: tuple[Tensor, Tensor] = backend.scan(
        x_THP, dt_TH, A_H, B_TGN, C_TGN, D_H, layout, chunk, state_SHPN
    )
    return result


def step(
    x_SHP: Float[Tensor, "S H P"],
    dt_SH: Float[Tensor, "S H"],
    A_H: Float[Tensor, " H"],
    B_SGN: Float[Tensor, "S G N"],
    C_SGN: Float[Tensor, "S G N"],
    D_H: Float[Tensor, " H"],
    state_SHPN: Float[Tensor, "S H P N"],
) -> tuple[Float[Tensor, "S H P"], Float[Tensor, "S H P N"]]:
    """One token of every sequence: the recurrence of `scan`, once. Returns y and the new states."""
    backend = OPERATION.choose(dispatch.Case.of(x_SHP)).module
    result: tuple[Tensor, Tensor] = backend.step(x_SHP, dt_SH, A_H, B_SGN, C_SGN, D_H, state_SHPN)
    return result


def step_(
    x_SHP: Float[Tensor, "S H P"],
    dt_SH: Float[Tensor, "S H"],
    A_H: Float[Tensor, " H"],
    B_SGN: Float[Tensor, "S G N"],
    C_SGN: Float[Tensor, "S G N"],
    D_H: Float[Tensor, " H"],
    state_SHPN: Float[Tensor, "S H P N"],
    rounding: Rounding | None = None,
) -> Float[Tensor, "S H P"]:
    """`step`, with the new states written over the given ones. Returns y alone.

    States may be fp16: they are widened, and what they become is rounded by chance, as `rounding`
    says, after y was read. fp32 states need none.
    """
    backend = OPERATION.choose(dispatch.Case.of(x_SHP)).module
    y_SHP: Tensor = backend.step_(x_SHP, dt_SH, A_H, B_SGN, C_SGN, D_H, state_SHPN, rounding)
    return y_SHP


def peek(
    x_THP: Float[Tensor, "T H P"],
    dt_TH: Float[Tensor, "T H"],
    A_H: Float[Tensor, " H"],
    B_TGN: Float[Tensor, "T G N"],
    C_TGN: Float[Tensor, "T G N"],
    D_H: Float[Tensor, " H"],
    layout: Layout,
    state_SHPN: Float[Tensor, "S H P N"],
    rounding: Rounding | None = None,
) -> Float[Tensor, "T H P"]:
    """What `step_` would say for each sequence's tokens one after the other; no state changes.

    For the few tokens of a draft, which `replay` takes over once it is known how many stay. In
    native code y is that of the steps to the bit, their rounding of fp16 states between tokens
    included. No gradients flow.
    """
    with torch.no_grad():
        backend = OPERATION.choose(dispatch.Case.of(x_THP)).module
        y_THP: Tensor = backend.peek(
            x_THP, dt_TH, A_H, B_TGN, C_TGN, D_H, layout, state_SHPN, rounding
        )
    return y_THP


def replay(
    state_SHPN: Float[Tensor, "S H P N"],
    x_THP: Float[Tensor, "T H P"],
    dt_TH: Float[Tensor, "T H"],
    A_H: Float[Tensor, " H"],
    B_TGN: Float[Tensor, "T G N"],
    layout: Layout,
    counts_S: Int[Tensor, " S"],
    rounding: Rounding | None = None,
) -> None:
    """Move each sequence's state on by its first `counts_S[s]` tokens, in place.

    Equal to that many calls of `step_` for that sequence, in native code to the bit; no gradients
    flow. With the inputs of a draft kept, what is rejected is as if it had never been.

    Args:
        state_SHPN: fp32 or fp16 states, changed in place.
        x_THP: kept inputs.
        dt_TH: their step sizes, fp32.
        A_H: negative decay rates.
        B_TGN: what each wrote.
        layout: where each sequence's inputs begin.
        counts_S: int32 or int64, from 0 to the sequence's length; more counts as that. It is read
            when the call runs. No input past it changes anything.
        rounding: of fp16 states; its past is that before the first token of each sequence.
    """
    with torch.no_grad():
        backend = OPERATION.choose(dispatch.Case.of(x_THP)).module
        backend.replay(state_SHPN, x_THP, dt_TH, A_H, B_TGN, layout, counts_S, rounding)


def step_sizes(dt_TH: Float[Tensor, "T H"], bias_H: Float[Tensor, " H"]) -> Float[Tensor, "T H"]:
    """softplus(dt + bias) in fp32 whatever the types are: the scan's step sizes; no clamp."""
    backend = OPERATION.choose(dispatch.Case.of(dt_TH)).module
    steps_TH: Tensor = backend.step_sizes(dt_TH, bias_H)
    return steps_TH


__all__ = [
    "OPERATION",
    "Rounding",
    "nearest",
    "peek",
    "replay",
    "scan",
    "step",
    "step_",
    "step_sizes",
]

"""The causal depthwise convolution in front of the scan, with its SiLU.

Promise: the output at a token depends on it and the few tokens before it in its own sequence,
those of earlier calls included when their tail is given.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from fathom.ops import dispatch, native
from fathom.ops.conv import cpu, eager, reference
from fathom.ops.layout import Layout

OPERATION = dispatch.in_torch("conv", eager, reference, native.backend(cpu))
"""The backends of this operation."""


def causal_conv(
    x_Tc: Float[Tensor, "T c"],
    weight_ck: Float[Tensor, "c k"],
    bias_c: Float[Tensor, " c"],
    layout: Layout,
    tail_Skc: Float[Tensor, "S k_1 c"] | None = None,
) -> tuple[Float[Tensor, "T c"], Float[Tensor, "S k_1 c"]]:
    """silu(bias + sum_j weight[:, j] x_(t - k + 1 + j)) for every sequence of the layout.

    Args:
        x_Tc: inputs of any float type; computed in fp32.
        weight_ck: taps; the last multiplies the present token.
        bias_c: bias.
        layout: where each sequence begins.
        tail_Skc: the k - 1 inputs before each sequence's first token; None: zeros.

    Returns:
        The outputs, and the tails with which the sequences can be continued.
    """
    backend = OPERATION.choose(dispatch.Case.of(x_Tc)).module
    result: tuple[Tensor, Tensor] = backend.causal_conv(x_Tc, weight_ck, bias_c, layout, tail_Skc)
    return result


def step_(
    x_Sc: Float[Tensor, "S c"],
    weight_ck: Float[Tensor, "c k"],
    bias_c: Float[Tensor, " c"],
    tail_Skc: Float[Tensor, "S k_1 c"],
) -> Float[Tensor, "S c"]:
    """One token of every sequence; the tails, of x's type, are moved on in their own memory.

    The outputs are those of `causal_conv`; no gradient flows.
    """
    with torch.no_grad():
        backend = OPERATION.choose(dispatch.Case.of(x_Sc)).module
        y: Tensor = backend.step_(x_Sc, weight_ck, bias_c, tail_Skc)
    return y


def keep_(
    tail_Skc: Float[Tensor, "S k_1 c"],
    x_Tc: Float[Tensor, "T c"],
    layout: Layout,
    counts_S: Int[Tensor, " S"],
) -> None:
    """Move each tail on by the first `counts_S[s]` inputs of its sequence, in place.

    Afterwards it is the last k - 1 rows of the tail followed by those inputs: what as many calls of
    `step_` leave. No gradient flows.

    Args:
        tail_Skc: tails of x's type, changed in place.
        x_Tc: kept inputs.
        layout: where each sequence's inputs begin.
        counts_S: int32 or int64, from 0 to the sequence's length; more counts as that. It is read
            when the call runs.
    """
    with torch.no_grad():
        backend = OPERATION.choose(dispatch.Case.of(x_Tc)).module
        backend.keep_(tail_Skc, x_Tc, layout, counts_S)


__all__ = ["OPERATION", "causal_conv", "keep_", "step_"]

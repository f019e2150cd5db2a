"""The draw: one token of every row of logits, under its own temperature, filters and point.

Promise: a row's token depends on its logits, its parameters and its mask alone; for the same point
it is the same on every backend, up to rounding where a point or a filter's bound lies between two
tokens. Points, penalties and masks are made in `engine/`.
"""

import torch
from jaxtyping import Float32, Float64, Int32, Int64
from torch import Tensor

from fathom.ops import dispatch, native
from fathom.ops.draw import cpu, reference

OPERATION = dispatch.Operation(
    "draw",
    (
        native.backend(cpu),
        dispatch.Backend("reference", reference, dispatch.never_against),
    ),
)
"""The backends of this operation."""

# Made once: a draw of few logits would be mostly the making of its case.
_ON_CPU = dispatch.Case("cpu", torch.float32, gradients=False)


def draw(
    logits_SV: Float32[Tensor, "S V"],
    temperature_S: Float64[Tensor, " S"],
    top_k_S: Int64[Tensor, " S"],
    top_p_S: Float64[Tensor, " S"],
    min_p_S: Float64[Tensor, " S"],
    point_S: Float64[Tensor, " S"],
    allowed_SM: Int32[Tensor, "S M"] | None,
) -> tuple[Int64[Tensor, " S"], Float32[Tensor, " S"], Float32[Tensor, " S"]]:
    """Draw one token from each row of logits.

    Args:
        logits_SV: unnormalised log-probabilities; rows any distance apart.
        temperature_S: divides the logits, 0 or more; 0 takes the best token, the lowest id of
            equals, whatever the other parameters are.
        top_k_S: so many of the most probable tokens stay; 0: all.
        top_p_S: of these the fewest whose share reaches it stay, at least one; 1: all.
        min_p_S: of these stay all with at least this share of the best one's; 0: all.
        point_S: from 0 to below 1: where in the cumulative distribution of what stays the token
            lies. Tokens stand in the order of ids where no filter is set, else the best first and
            the lower id first of equals.
        allowed_SM: bits, M = ceil(V / 32): bit i of word w lets token 32 w + i be drawn. What is
            not allowed is removed before all else. None: every token may.

    Returns:
        Ids; their log-probabilities by the logits as given, masks, temperature and filters apart;
        and those among what was drawn from, 0 for temperature 0. Where no allowed logit is finite,
        or any logit is NaN or +inf, the id is -1 and the other two are NaN.

    Source: top_p: Holtzman et al. (arXiv 1904.09751); min_p: Nguyen et al. (arXiv 2407.01082).
    """
    case = _ON_CPU if logits_SV.is_cpu else dispatch.Case.of(logits_SV)
    backend = OPERATION.choose(case).module
    result: tuple[Tensor, Tensor, Tensor] = backend.draw(
        logits_SV, temperature_S, top_k_S, top_p_S, min_p_S, point_S, allowed_SM
    )
    return result


__all__ = ["OPERATION", "draw"]

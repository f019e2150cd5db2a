"""RMSNorm, and the gated norm over groups of channels that follows the scan.

Promise: fp32 inside whatever goes in; the weight multiplies there and the cast comes last; a weight
is used as it is (no one added).
"""

from jaxtyping import Float
from torch import Tensor

from fathom.ops import dispatch, native
from fathom.ops.norm import cpu, eager, reference

OPERATION = dispatch.in_torch("norm", eager, reference, native.backend(cpu))
"""The backends of this operation."""


def rms_norm(
    x_TD: Float[Tensor, "T D"], weight_D: Float[Tensor, " D"], eps: float
) -> Float[Tensor, "T D"]:
    """x / sqrt(mean(x^2) + eps) * weight, of x's type."""
    backend = OPERATION.choose(dispatch.Case.of(x_TD)).module
    result: Tensor = backend.rms_norm(x_TD, weight_D, eps)
    return result


def gated_norm(
    y_TD: Float[Tensor, "T D"],
    z_TD: Float[Tensor, "T D"],
    weight_D: Float[Tensor, " D"],
    groups: int,
    eps: float,
) -> Float[Tensor, "T D"]:
    """Gate first, g = y silu(z), then RMSNorm of g over each of `groups` runs of channels.

    Mamba-2's `norm_before_gate=False`; of y's type.
    """
    backend = OPERATION.choose(dispatch.Case.of(y_TD)).module
    result: Tensor = backend.gated_norm(y_TD, z_TD, weight_D, groups, eps)
    return result


__all__ = ["OPERATION", "gated_norm", "rms_norm"]

"""The norms in native code: one pass over each row.

Promise: equal to `reference.py` up to fp32 rounding; a row's result does not depend on the rows
beside it. The kernels are `ops/native/norm`.
"""

import torch
from torch import Tensor

from fathom.ops import dispatch, native
from fathom.ops.native.tensors import CODES, FLOATS, dense, rows
from fathom.ops.norm import eager


def why_not(case: dispatch.Case) -> str | None:
    """What speaks against this backend in words; None: nothing."""
    if case.gradients:
        return "no backward pass yet"
    return native.why_not(case)


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """See `fathom.ops.norm.rms_norm`."""
    T, D = x_TD.shape
    x, stride = rows("rms_norm: x", x_TD, (T, D), *FLOATS)
    weight = dense("rms_norm: weight", weight_D, (D,), *FLOATS)
    y_TD = torch.empty_like(x_TD, memory_format=torch.contiguous_format)
    native.kernels().rms_norm(
        x, stride, weight, y_TD.data_ptr(), T, D, eps, CODES[x_TD.dtype], CODES[weight_D.dtype]
    )
    return y_TD


gated_norm = eager.gated_norm

__all__ = ["gated_norm", "rms_norm", "why_not"]

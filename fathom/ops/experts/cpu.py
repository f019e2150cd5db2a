"""Routed experts with packed weights in native code, all visits in one call.

Promise: equal to `reference.py` up to the order of fp32 additions; no token is copied for an
expert, only visited experts are read, and a token's result is the same bits whoever else is
there. The hidden layer is rounded to x's type on every tier. The kernels are `ops/native/experts`.
"""

import torch
from torch import Tensor

from fathom.errors import KernelError
from fathom.ops import native
from fathom.ops.linear.packed import CODES, PackedStack
from fathom.ops.native.tensors import CODES as TYPES
from fathom.ops.native.tensors import FLOATS, dense, rows


def packed_experts(
    x_TD: Tensor,
    up: PackedStack,
    down: PackedStack,
    chosen_TK: Tensor,
    weights_TK: Tensor,
    int8: bool,
) -> Tensor:
    """See `fathom.ops.experts.packed_experts`."""
    (T, D), K = x_TD.shape, chosen_TK.shape[1]
    if (down.format, down.count, down.rows, down.columns) != (up.format, up.count, D, up.rows):
        raise KernelError(
            f"packed_experts: down must be {up.count} matrices [{D}, {up.rows}] of {up.format}; "
            f"got {down.count} [{down.rows}, {down.columns}] of {down.format}."
        )
    x, stride = rows("packed_experts: x", x_TD, (T, up.columns), *FLOATS)
    chosen = dense("packed_experts: chosen", chosen_TK, (T, K), torch.int64)
    weights = dense("packed_experts: weights", weights_TK, (T, K), torch.float32)
    y_TD = torch.empty(T, D, dtype=x_TD.dtype)
    native.kernels().experts(
        CODES[up.format],
        x,
        stride,
        dense("packed_experts: up.data", up.data, up.data.shape, torch.uint8),
        dense("packed_experts: up.scale", up.scale, (up.count,), torch.float32),
        dense("packed_experts: down.data", down.data, down.data.shape, torch.uint8),
        dense("packed_experts: down.scale", down.scale, (up.count,), torch.float32),
        chosen,
        weights,
        y_TD.data_ptr(),
        T,
        D,
        up.rows,
        up.count,
        K,
        TYPES[x_TD.dtype],
        int8,
    )
    return y_TD


__all__ = ["packed_experts"]

"""Products with packed weights in native code.

Promise: equal to `reference.py` up to the order of fp32 additions, and within one tier a row's
result is the same bits for any number of rows beside it. BF16 rows are multiplied by BF16
instructions where the tier has them, else in fp32; fp32 rows always in fp32. The kernels are
`ops/native/linear`.
"""

import torch
from torch import Tensor

from fathom.ops import native
from fathom.ops.linear.packed import CODES, Packed
from fathom.ops.native.tensors import CODES as TYPES
from fathom.ops.native.tensors import FLOATS, dense, rows


def packed_linear(x_TI: Tensor, weight: Packed, int8: bool) -> Tensor:
    """See `fathom.ops.linear.packed_linear`."""
    T = x_TI.shape[0]
    x, stride = rows("packed_linear: x", x_TI, (T, weight.columns), *FLOATS)
    data = dense("packed_linear: weight.data", weight.data, weight.data.shape, torch.uint8)
    scale = dense("packed_linear: weight.scale", weight.scale, (), torch.float32)
    y_TO = torch.empty(T, weight.rows, dtype=x_TI.dtype)
    native.kernels().linear(
        CODES[weight.format],
        x,
        stride,
        data,
        scale,
        y_TO.data_ptr(),
        T,
        weight.columns,
        weight.rows,
        TYPES[x_TI.dtype],
        int8,
    )
    return y_TO


__all__ = ["packed_linear"]

"""Four bits (NVFP4) and eight (FP8, MXFP8): weights encoded and decoded, training's operands.

Promise: rounding is in one order of operations, so the same matrix has the same bytes on every
machine; what is rounded stochastically is a function of a key and a place. Products with such
matrices are `ops/linear` and `ops/experts`; how files store them is `checkpoint/`.
"""

from fathom.ops.nvfp4.four_over_six import quantise_four_over_six
from fathom.ops.nvfp4.operands import MX_BLOCK, Copy, Groups, Operands
from fathom.ops.nvfp4.philox import Key
from fathom.ops.nvfp4.reference import (
    BLOCK,
    Quantised,
    dequantise,
    dequantise_fp8,
    encode,
    encode_fp8,
    largest,
    quantise,
    quantise_fp8,
    tensor_scale,
    tensor_scale_fp8,
)
from fathom.ops.nvfp4.straight_through import Form, straight_through
from fathom.ops.nvfp4.swizzle import swizzle, unswizzle
from fathom.ops.nvfp4.training import (
    OPERATION,
    Quantiser,
    Recipe,
    Rounding,
    Weight,
    mxfp8_operands,
    operands,
    scaled,
    weight_operands,
)

__all__ = [
    "BLOCK",
    "MX_BLOCK",
    "OPERATION",
    "Copy",
    "Form",
    "Groups",
    "Key",
    "Operands",
    "Quantised",
    "Quantiser",
    "Recipe",
    "Rounding",
    "Weight",
    "dequantise",
    "dequantise_fp8",
    "encode",
    "encode_fp8",
    "largest",
    "mxfp8_operands",
    "operands",
    "quantise",
    "quantise_four_over_six",
    "quantise_fp8",
    "scaled",
    "straight_through",
    "swizzle",
    "tensor_scale",
    "tensor_scale_fp8",
    "unswizzle",
    "weight_operands",
]

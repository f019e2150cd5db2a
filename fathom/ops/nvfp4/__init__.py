"""Weights in four bits (NVFP4) and in eight (FP8 with one scale), encoded and decoded.

Promise: rounding is to nearest and in one order of operations, so the same weight has the same
bytes on every machine. Products with such weights are `ops/linear` and `ops/experts`; how files
store them is `checkpoint/`.
"""

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

__all__ = [
    "BLOCK",
    "Quantised",
    "dequantise",
    "dequantise_fp8",
    "encode",
    "encode_fp8",
    "largest",
    "quantise",
    "quantise_fp8",
    "tensor_scale",
    "tensor_scale_fp8",
]

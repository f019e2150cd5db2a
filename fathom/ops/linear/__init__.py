"""Matrix products of a named precision.

Promise: how operands are rounded is named, and the same on every machine; how the product is
computed is whatever the machine does fast, which changes no digit but the order of additions.
"""

from collections.abc import Mapping
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from fathom.errors import KernelError
from fathom.ops import dispatch, native
from fathom.ops.linear import cpu, eager, quantised, reference
from fathom.ops.linear.eager import multiplies_bf16
from fathom.ops.linear.packed import Format, Packed, PackedStack
from fathom.ops.nvfp4 import Form, Quantiser, straight_through

Precision = Literal["stored", "bf16", "w4a8", "nvfp4", "mxfp8", "w4a16", "w8a16"]
"""`stored`: operands as they are. `bf16`: operands, result and gradient rounded to BF16.
`w4a8`: rows rounded to int8 (one scale a row) where weights are NVFP4, `stored` elsewhere.
`nvfp4`, `mxfp8`: training whose three products have operands in that format. `w4a16`, `w8a16`:
training whose weights alone are rounded, to NVFP4 and FP8 as files store them; else `stored`."""

WEIGHTS_ALONE: Mapping[Precision, Form] = {"w4a16": "nvfp4", "w8a16": "fp8"}
"""What weights are rounded to where nothing else is."""

OPERATION = dispatch.in_torch("linear", eager, reference)
"""The backends of products with plain weights."""

PACKED = dispatch.in_torch("packed_linear", eager, reference, native.backend(cpu))
"""The backends of products with packed weights."""


def linear(
    x_TI: Float[Tensor, "T I"], weight_OI: Float[Tensor, "O I"], precision: Precision = "stored"
) -> Float[Tensor, "T O"]:
    """x weight', of x's type, accumulated in fp32.

    Raises:
        KernelError: operands of different types, a precision of packed weights, or rows that are
            not whole blocks where weights are rounded to NVFP4.
    """
    if x_TI.dtype != weight_OI.dtype:
        raise KernelError(
            f"linear: x is {x_TI.dtype}, weight is {weight_OI.dtype}; convert the model with "
            f"model.to(dtype), or the input."
        )
    if precision == "w4a8":
        raise KernelError("linear: w4a8 needs packed NVFP4 weights; this matrix is plain.")
    if precision in ("nvfp4", "mxfp8"):
        raise KernelError(f"linear: {precision} needs a quantiser; call quantised_linear.")
    if precision in WEIGHTS_ALONE:
        weight_OI, precision = straight_through(weight_OI, WEIGHTS_ALONE[precision]), "stored"
    backend = OPERATION.choose(dispatch.Case.of(x_TI)).module
    result: Tensor = backend.linear(x_TI, weight_OI, precision)
    return result


def quantised_linear(
    x_TI: Float[Tensor, "T I"], weight_OI: Float[Tensor, "O I"], quantiser: Quantiser
) -> Float[Tensor, "T O"]:
    """x weight' of x's type, its operands and those of both gradients rounded by `quantiser`.

    T, I and O may be anything: blocks are filled up with zeros.

    Raises:
        KernelError: gradients are wanted, rounded stochastically, and nobody holds the random
            numbers.
    """
    return quantised.quantised_linear(x_TI, weight_OI, quantiser)


def rounds_rows(format: Format, precision: Precision) -> bool:
    """Whether a product of this precision rounds its rows to int8 with weights of this format."""
    return precision == "w4a8" and format == "nvfp4"


def packed_linear(
    x_TI: Float[Tensor, "T I"], weight: Packed, precision: Precision = "stored"
) -> Float[Tensor, "T O"]:
    """x weight' of x's type (fp32 or bf16), accumulated in fp32; nothing can be trained by it.

    Raises:
        KernelError: x has another width than the matrix, or another type.
    """
    backend = PACKED.choose(dispatch.Case.of(x_TI)).module
    result: Tensor = backend.packed_linear(x_TI, weight, rounds_rows(weight.format, precision))
    return result


__all__ = [
    "OPERATION",
    "PACKED",
    "WEIGHTS_ALONE",
    "Format",
    "Packed",
    "PackedStack",
    "Precision",
    "linear",
    "multiplies_bf16",
    "packed_linear",
    "quantised_linear",
    "rounds_rows",
]

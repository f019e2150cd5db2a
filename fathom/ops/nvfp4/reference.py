"""NVFP4 and FP8 weights in plain PyTorch: the specification.

Promise: every step is fp32 and in the order that `README.md` writes down, whatever the weight's
type; rows are encoded a few at a time, so a matrix needs little memory beside itself and its codes.
`encode` and `encode_fp8` take some rows of a matrix whose largest magnitude is known already, for
those who never hold all of it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float8e4m3fn, UInt8
from torch import Tensor

from fathom.errors import KernelError

BLOCK = 16
"""Neighbours in a row that share a block scale."""
E2M1_MAX, E4M3_MAX = 6.0, 448.0
FLOAT_MAX = torch.finfo(torch.float32).max
PIECE = 1 << 18
"""Values encoded at once: few enough to stay in a core's cache."""
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What codes 0 to 7 mean; codes 8 to 15 are the same, negative."""


@dataclass(frozen=True)
class Quantised:
    """Matrices in NVFP4: value = e2m1(code) x block scale x scale."""

    codes: Tensor
    """uint8 [.., O, I / 2]: two columns a byte, the even one in the low half."""
    scales: Tensor
    """float8_e4m3fn [.., O, I / 16]: one for 16 neighbours."""
    scale: Tensor
    """fp32 [..]: one for each matrix."""


def largest(weight: Float[Tensor, "*B O I"]) -> Float[Tensor, "*B"]:
    """Largest magnitude of each matrix, fp32.

    Raises:
        KernelError: a weight is not finite.
    """
    low, high = weight.amin((-2, -1)), weight.amax((-2, -1))
    found = torch.maximum(-low.float(), high.float())
    if not found.isfinite().all():
        raise KernelError(
            "nvfp4: the weight holds values that are not finite; they have no code. Is the "
            "checkpoint damaged, or did training diverge?"
        )
    return found


def encode_factor(amax: Float[Tensor, "*B"], bound: float = E4M3_MAX) -> Float[Tensor, "*B"]:
    """S of step 1 for fp32 magnitudes: 2688 / A, capped; 1 for a matrix of zeros.

    `bound` is the largest block scale of a block whose largest value becomes a 6.
    """
    # tensor by tensor: torch computes number / tensor as a product with a rounded reciprocal
    factor = torch.div(amax.new_tensor(E2M1_MAX * bound), amax).clamp_max(FLOAT_MAX)
    return torch.where(amax == 0, 1.0, factor)


def tensor_scale(amax: Float[Tensor, "*B"], bound: float = E4M3_MAX) -> Float[Tensor, "*B"]:
    """The fp32 scale of NVFP4 matrices with these largest magnitudes: A / 2688, and 1 for 0."""
    factor = encode_factor(amax, bound)
    exact = amax / amax.new_tensor(E2M1_MAX * bound)
    return torch.where((amax == 0) | (factor == FLOAT_MAX), 1 / factor, exact)


def tensor_scale_fp8(amax: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    """The fp32 scale of FP8 matrices with these largest magnitudes: A / 448, and 1 for 0."""
    scale = amax / amax.new_tensor(E4M3_MAX)
    return torch.where(scale == 0, 1.0, scale)


def e2m1(y: Tensor) -> Tensor:
    """Codes (uint8) of values in [-6, 6], to nearest, ties to the even code; -0 becomes 0.

    The grid has steps of 1/2 up to 2, of 1 up to 4, of 2 up to 6. Counted in its own steps each
    stretch is a rounding to whole numbers, and the right one gives the smallest code.
    """
    size = y.abs()
    code = (size * 2).round_()
    code = torch.minimum(code, size.round().add_(2))
    code = torch.minimum(code, size.mul_(0.5).round_().add_(4))
    return code.to(torch.uint8).add_((y < 0).to(torch.uint8), alpha=8)


def packed(y: Tensor) -> Tensor:
    """Codes of blocks [R, B, 16] of values in [-6, 6], two a byte: uint8 [R, 8 B]."""
    pairs: Tensor = e2m1(y).flatten(-2).unflatten(-1, (-1, 2))
    return pairs[..., 0] | (pairs[..., 1] << 4)


def whole_blocks(columns: int) -> None:
    """Raise `KernelError` unless a row is made of whole blocks."""
    if columns % BLOCK:
        raise KernelError(
            f"nvfp4: a row of {columns} weights is not made of whole blocks of {BLOCK}; keep this "
            f"matrix in another format."
        )


def encode(
    rows_RI: Float[Tensor, "R I"], amax: Float[Tensor, ""]
) -> tuple[UInt8[Tensor, "R I2"], Float8e4m3fn[Tensor, "R I16"]]:
    """NVFP4 codes and block scales of rows of a matrix whose largest magnitude is `amax`.

    Raises:
        KernelError: the rows are not whole blocks of 16.
    """
    rows, columns = rows_RI.shape
    whole_blocks(columns)
    factor = encode_factor(amax)
    codes = torch.empty(rows, columns // 2, dtype=torch.uint8, device=rows_RI.device)
    shape = (rows, columns // BLOCK)
    scales = torch.empty(shape, dtype=torch.float8_e4m3fn, device=rows_RI.device)
    step = max(1, PIECE // max(1, columns))
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        blocks = rows_RI[part].float().unflatten(-1, (shape[1], BLOCK))
        peaks = torch.maximum(blocks.amax(-1), -blocks.amin(-1))
        scales[part] = (peaks * (factor * (1 / E2M1_MAX))).clamp_(max=E4M3_MAX).to(scales.dtype)
        own = (1 / (scales[part].float() * (1 / factor))).clamp_(max=FLOAT_MAX)
        y = (blocks * own[..., None]).clamp_(-E2M1_MAX, E2M1_MAX)
        codes[part] = packed(y)
    return codes, scales


def encode_fp8(
    rows_RI: Float[Tensor, "R I"], scale: Float[Tensor, ""]
) -> Float8e4m3fn[Tensor, "R I"]:
    """FP8 values of rows of a matrix whose scale is `scale`."""
    values = torch.empty(rows_RI.shape, dtype=torch.float8_e4m3fn, device=rows_RI.device)
    step = max(1, PIECE // max(1, rows_RI.shape[-1]))
    for part, to in zip(rows_RI.split(step), values.split(step), strict=True):
        to.copy_((part.float() / scale).clamp_(-E4M3_MAX, E4M3_MAX))
    return values


def quantise(weight: Float[Tensor, "*B O I"]) -> Quantised:
    """Round matrices to NVFP4, each with its own scale. Source: arXiv 2509.25149, appendix B.

    Args:
        weight: [.., O, I] of any float type, I a multiple of 16; a stack of experts is
            [E, O, I].

    Raises:
        KernelError: rows are not whole blocks of 16, or a value is not finite.
    """
    amax = largest(weight)
    found = [
        encode(matrix, one)
        for matrix, one in zip(weight.reshape(-1, *weight.shape[-2:]), amax.view(-1), strict=True)
    ]
    codes, scales = (torch.stack(parts) for parts in zip(*found, strict=True))
    batch = weight.shape[:-2]
    return Quantised(
        codes.view(*batch, *codes.shape[-2:]),
        scales.view(*batch, *scales.shape[-2:]),
        tensor_scale(amax),
    )


def dequantise(quantised: Quantised, dtype: torch.dtype = torch.float32) -> Float[Tensor, "*B O I"]:
    """The matrices that codes and scales mean, [.., O, I]: fp32, rounded once to `dtype`."""
    table = torch.tensor([*VALUES, *(-value for value in VALUES)], device=quantised.codes.device)
    codes = torch.stack([quantised.codes & 15, quantised.codes >> 4], -1).flatten(-2)
    values: Tensor = table[codes.int()].unflatten(-1, (-1, BLOCK))
    values = (values * quantised.scales.float()[..., None]).flatten(-2)
    return (values * quantised.scale[..., None, None]).to(dtype)


def quantise_fp8(
    weight: Float[Tensor, "*B O I"],
) -> tuple[Float8e4m3fn[Tensor, "*B O I"], Float[Tensor, "*B"]]:
    """Round matrices to FP8: values, and the fp32 scale of each matrix that multiplies them.

    Raises:
        KernelError: a value is not finite.
    """
    scale = tensor_scale_fp8(largest(weight))
    parts = zip(weight.reshape(-1, *weight.shape[-2:]), scale.view(-1), strict=True)
    values = torch.stack([encode_fp8(matrix, one) for matrix, one in parts])
    return values.view(weight.shape), scale


def dequantise_fp8(
    values: Float8e4m3fn[Tensor, "*B O I"],
    scale: Float[Tensor, "*B"],
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "*B O I"]:
    """The matrices that FP8 values mean: fp32, rounded once to `dtype`."""
    return (values.float() * scale[..., None, None]).to(dtype)


__all__ = [
    "BLOCK",
    "Quantised",
    "dequantise",
    "dequantise_fp8",
    "e2m1",
    "encode",
    "encode_factor",
    "encode_fp8",
    "largest",
    "packed",
    "quantise",
    "quantise_fp8",
    "tensor_scale",
    "tensor_scale_fp8",
    "whole_blocks",
]

"""Codes and scales are those of other people's quantisers, where their rules are the same.

Promise: each known difference is named where it is allowed for. FP32 Gaussian numbers are the
common ground: torchao floors block scales at 2^-6 and ModelOpt at 2^-9, ModelOpt and
compressed-tensors divide by scales where NVIDIA's training multiplies by reciprocals, and a -0
has the code 0 here and 8 in others.
"""

import logging
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fathom.ops import nvfp4
from fathom.ops.nvfp4.elements import nearest_e2m1, nearest_e4m3
from fathom.ops.nvfp4.operands import exponents

pytestmark = pytest.mark.oracle


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """The libraries warn when they are imported: of extensions that want a GPU, of old names."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


def torchao(weight: torch.Tensor, scale: torch.Tensor):
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

    return NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=scale)


def unsigned_zeros(packed: torch.Tensor) -> torch.Tensor:
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2)
    return torch.where(codes == 8, 0, codes)


def gaussian(seed: int, power: int = 1) -> torch.Tensor:
    return torch.randn(256, 1024, generator=torch.Generator().manual_seed(seed)) ** power * 0.02


@pytest.mark.parametrize(
    ("dtype", "ties"),
    [
        (torch.float32, 0.0),
        # short digits fall on ties, which torchao's other order of roundings breaks otherwise
        (torch.bfloat16, 0.01),
    ],
)
@pytest.mark.parametrize("power", [1, 5])
def test_torchao_gives_the_same_codes_and_scales(dtype, ties, power):
    weight = gaussian(power, power).to(dtype)
    ours = nvfp4.quantise(weight)
    theirs = torchao(weight.float(), ours.scale)
    scales = theirs.scale.view(torch.uint8).reshape(ours.scales.shape)
    assert torch.equal(ours.scales.view(torch.uint8), scales)
    codes = theirs.qdata.view(torch.uint8)
    differ = unsigned_zeros(ours.codes) != unsigned_zeros(codes)
    assert differ.float().mean() <= ties
    back = theirs.dequantize(torch.float32)[~differ]
    assert torch.allclose(nvfp4.dequantise(ours)[~differ], back, rtol=1e-6, atol=0)


def test_modelopt_gives_the_same_codes_and_scales():
    from modelopt.torch.quantization.qtensor import NVFP4QTensor

    weight = gaussian(1)
    theirs, scales, scale = NVFP4QTensor.quantize(weight, 16)
    ours = nvfp4.quantise(weight)
    assert scale == ours.scale
    assert torch.equal(scales.view(torch.uint8), ours.scales.view(torch.uint8))
    differ = unsigned_zeros(ours.codes) != unsigned_zeros(theirs._quantized_data)
    # a division rounds otherwise than a product with a reciprocal, once in some ten thousand
    assert differ.float().mean() < 2e-4


def test_compressed_tensors_gives_the_same_codes_and_scales():
    from compressed_tensors.compressors import NVFP4PackedCompressor
    from compressed_tensors.quantization import QuantizationScheme, preset_name_to_scheme
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    weight = gaussian(2)
    scheme: QuantizationScheme = preset_name_to_scheme("NVFP4A16", ["Linear"])
    whole = generate_gparam(weight.amin(), weight.amax())
    blocks = weight.unflatten(1, (-1, 16))
    scales, zero = calculate_qparams(
        blocks.amin(-1), blocks.amax(-1), scheme.weights, global_scale=whole
    )
    state = {"weight": weight, "weight_scale": scales, "weight_global_scale": whole}
    state["weight_zero_point"] = zero
    theirs = NVFP4PackedCompressor.compress(state, scheme)
    ours = nvfp4.quantise(weight)
    assert torch.allclose(1 / whole, ours.scale, rtol=1e-6)
    assert torch.equal(theirs["weight_scale"].view(torch.uint8), ours.scales.view(torch.uint8))
    differ = unsigned_zeros(ours.codes) != unsigned_zeros(theirs["weight_packed"])
    assert differ.float().mean() < 2e-4


def test_elements_are_those_of_ml_dtypes():
    import ml_dtypes

    y = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 12 - 6
    y = torch.cat([y, torch.arange(-6, 6.25, 0.25)])
    wanted = y.numpy().astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert np.array_equal(nearest_e2m1(y).numpy(), wanted)
    # above 464 ml_dtypes has NaN, and we never come there
    size = torch.rand(100_000) ** 8 * 448
    size = torch.cat([size, torch.arange(0, 2**-5, 2**-11), torch.arange(0.0, 449)])
    size = size.clamp(max=448)
    wanted = size.numpy().astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert np.array_equal(nearest_e4m3(size).numpy(), wanted)


@pytest.mark.parametrize(("rows", "columns"), [(128, 4), (130, 7), (300, 12)])
def test_torchao_swizzles_scales_the_same_way(rows, columns):
    from torchao.prototype.mx_formats.utils import to_blocked

    scales = torch.randint(0, 127, (rows, columns), dtype=torch.uint8)
    assert torch.equal(nvfp4.swizzle(scales), to_blocked(scales).flatten())


@pytest.mark.parametrize("power", [1, 5])
def test_torchao_gives_the_same_mxfp8(power):
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import to_mx

    x = gaussian(3, power)
    scales, values = to_mx(x, torch.float8_e4m3fn, 32, ScaleCalculationMode.RCEIL)
    peaks = x.unflatten(1, (-1, 32)).abs().amax(-1)
    assert torch.equal(exponents(peaks).to(torch.uint8), scales.view(torch.uint8))
    back = values.float().unflatten(1, (-1, 32)) * torch.ldexp(
        torch.ones(()), scales.view(torch.uint8).int() - 127
    ).unsqueeze(-1)
    rows, _ = nvfp4.mxfp8_operands(x, torch.float32, None)
    assert torch.equal(rows, back.flatten(1))

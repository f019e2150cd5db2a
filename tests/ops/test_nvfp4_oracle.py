"""Codes and scales are those of torchao where its floor under block scales plays no part."""

import logging
import warnings

import pytest
import torch

from fathom.ops import nvfp4


def _torchao(weight: torch.Tensor, scale: torch.Tensor):
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor

            return NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=scale)
    finally:
        logging.disable(logging.NOTSET)


def _unsigned_zeros(packed: torch.Tensor) -> torch.Tensor:
    codes = torch.stack([packed & 15, packed >> 4], -1).flatten(-2)
    return torch.where(codes == 8, 0, codes)


@pytest.mark.oracle
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
    generator = torch.Generator().manual_seed(power)
    weight = (torch.randn(256, 1024, generator=generator) ** power * 0.02).to(dtype)
    ours = nvfp4.quantise(weight)
    theirs = _torchao(weight.float(), ours.scale)
    scales = theirs.scale.view(torch.uint8).reshape(ours.scales.shape)
    assert torch.equal(ours.scales.view(torch.uint8), scales)
    codes = theirs.qdata.view(torch.uint8)
    differ = _unsigned_zeros(ours.codes) != _unsigned_zeros(codes)
    assert differ.float().mean() <= ties
    back = theirs.dequantize(torch.float32)[~differ]
    assert torch.allclose(nvfp4.dequantise(ours)[~differ], back, rtol=1e-6, atol=0)

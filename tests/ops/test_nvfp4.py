"""NVFP4 and FP8 weights: golden bytes, ties, tiny and zero blocks, and what decoding gives back."""

import numpy
import pytest
import torch

from fathom.errors import KernelError
from fathom.ops import nvfp4
from fathom.ops.nvfp4.reference import PIECE, VALUES, e2m1, encode_factor

GOLDEN = [0, -0.0, 0.1, -0.1, 0.25, 0.26, 0.5, 0.75, 1, -1.25, 1.75, 2.5, -3.5, 5, -5.1, 6]


def codes_of(packed: torch.Tensor) -> torch.Tensor:
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)


def test_every_code_is_the_code_of_its_value():
    values = torch.tensor(VALUES)
    assert e2m1(values).tolist() == list(range(8))
    assert e2m1(-values).tolist() == [0, *range(9, 16)]


def test_ties_go_to_the_even_code():
    ties = {0.25: 0, 0.75: 1, 1.25: 1, 1.75: 2, 2.5: 2, 3.5: 4, 5.0: 4}
    given, wanted = torch.tensor(list(ties)), torch.tensor(list(ties.values())).float()
    assert torch.equal(torch.tensor(VALUES)[e2m1(given).int()], wanted)
    beside = torch.nextafter(given, torch.tensor(9.0)), torch.nextafter(given, torch.tensor(0.0))
    assert e2m1(beside[0]).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert e2m1(beside[1]).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_small_negatives_keep_their_sign_and_negative_zero_does_not():
    assert e2m1(torch.tensor([-0.1, -0.0, 0.0])).tolist() == [8, 0, 0]


@pytest.mark.parametrize(
    ("amax", "scale", "packed"),
    [
        (6.0, 126, "00 80 10 21 a2 44 6e 7f"),
        (8.0, 122, "00 80 11 21 b2 54 7e 7f"),
        (100.0, 93, "00 80 11 21 b2 54 7e 7f"),
        (1e5, 14, "00 80 10 11 a2 43 6d 7f"),
        (1e7, 0, "00 f7 77 77 f7 77 7f 7f"),
    ],
)
def test_golden_bytes(amax, scale, packed):
    codes, scales = nvfp4.encode(torch.tensor([GOLDEN]), torch.tensor(amax))
    assert scales.view(torch.uint8).item() == scale
    assert bytes(codes[0].tolist()).hex(" ") == packed


def test_factors_are_divided_once_in_fp32():
    peaks = torch.rand(10_000, generator=torch.Generator().manual_seed(3)) * 0.2 + 0.01
    exact = peaks.numpy()
    wanted = numpy.float32(2688) / exact
    assert (encode_factor(peaks).numpy() == wanted).all()
    alone = [encode_factor(peak).item() for peak in peaks[:100]]
    assert alone == wanted[:100].tolist()
    assert (nvfp4.tensor_scale(peaks).numpy() == exact / numpy.float32(2688)).all()
    assert (nvfp4.tensor_scale_fp8(peaks).numpy() == exact / numpy.float32(448)).all()


def test_the_low_half_of_a_byte_is_the_even_column():
    row = torch.tensor([[1.0, 2.0, 3.0, 4.0, 6.0, *[0.0] * 11]])
    assert nvfp4.quantise(row).codes[0, :2].tolist() == [0x42, 0x65]


def test_zeros_have_scale_one_block_scales_zero_and_codes_zero():
    found = nvfp4.quantise(torch.zeros(3, 32))
    assert found.scale == 1
    assert not found.codes.any()
    assert not found.scales.float().any()
    assert not nvfp4.dequantise(found).any()
    values, scale = nvfp4.quantise_fp8(torch.zeros(3, 32))
    assert scale == 1
    assert not nvfp4.dequantise_fp8(values, scale).any()


def test_blocks_of_zeros_and_blocks_too_small_for_their_scale_decode_to_zero():
    weight = torch.zeros(1, 64)
    weight[0, 0], weight[0, 16:32], weight[0, 32:48] = 1.0, 1e-7, 2.0**-20
    found = nvfp4.quantise(weight)
    back = nvfp4.dequantise(found)
    assert found.scales.view(torch.uint8)[0].tolist() == [126, 0, 0, 0]
    assert (codes_of(found.codes)[0, 16:48] == 7).all()
    assert torch.equal(back, torch.eye(1, 64))


@pytest.mark.parametrize("size", [1e-44, 1e-40, 1e-37, 1e-20, 1e20, 3e38])
def test_any_size_of_weights_keeps_its_digits(size):
    weight = torch.tensor([[1.0, -0.5, 0.25, *[0.0] * 13]]) * size
    found = nvfp4.quantise(weight)
    assert found.scale.isfinite()
    assert found.scale > 0
    # numbers below the smallest normal one have few digits, and nothing is lost beyond those
    assert torch.allclose(nvfp4.dequantise(found), weight, rtol=0.07, atol=1e-38)
    values, scale = nvfp4.quantise_fp8(weight)
    assert torch.allclose(nvfp4.dequantise_fp8(values, scale), weight, rtol=0.07, atol=1e-38)


def test_scales_never_become_nan():
    weight = torch.randn(64, 256) * torch.logspace(-12, 3, 64)[:, None]
    assert (nvfp4.quantise(weight).scales.view(torch.uint8) < 0x7F).all()
    values, _ = nvfp4.quantise_fp8(weight)
    assert (values.view(torch.uint8) & 0x7F < 0x7F).all()


def test_the_error_on_gaussian_weights_is_that_of_the_format():
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0)) * 0.02
    error = (nvfp4.dequantise(nvfp4.quantise(weight)) - weight).norm() / weight.norm()
    assert 0.094 < error < 0.0965
    values, scale = nvfp4.quantise_fp8(weight)
    error = (nvfp4.dequantise_fp8(values, scale) - weight).norm() / weight.norm()
    assert 0.025 < error < 0.028
    assert scale == weight.abs().max() / 448


def test_decoding_is_the_formula():
    weight = torch.randn(4, 48, generator=torch.Generator().manual_seed(1))
    found = nvfp4.quantise(weight)
    codes = codes_of(found.codes)
    for row in range(4):
        for column in range(48):
            code = int(codes[row, column])
            element = torch.tensor(VALUES[code & 7] * (-1 if code & 8 else 1))
            wanted = element * found.scales[row, column // 16].float() * found.scale
            assert nvfp4.dequantise(found)[row, column] == wanted


def test_what_was_decoded_is_encoded_to_the_same_bytes():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    once = nvfp4.dequantise(nvfp4.quantise(weight))
    again = nvfp4.dequantise(nvfp4.quantise(once))
    assert torch.equal(once, again)


def test_each_matrix_of_a_stack_is_quantised_as_if_alone():
    stack = torch.randn(3, 32, 64) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    whole = nvfp4.quantise(stack)
    values, scale = nvfp4.quantise_fp8(stack)
    for index, weight in enumerate(stack):
        alone = nvfp4.quantise(weight)
        assert torch.equal(whole.codes[index], alone.codes)
        assert torch.equal(whole.scales[index].float(), alone.scales.float())
        assert whole.scale[index] == alone.scale
        assert torch.equal(values[index].float(), nvfp4.quantise_fp8(weight)[0].float())
        assert scale[index] == nvfp4.quantise_fp8(weight)[1]
    assert torch.equal(nvfp4.dequantise(whole)[1], nvfp4.dequantise(nvfp4.quantise(stack[1])))


def test_rows_are_encoded_alike_alone_and_in_a_matrix_of_many_pieces():
    weight = torch.randn(3 * PIECE // 1024 + 5, 1024)
    amax = nvfp4.largest(weight)
    codes, scales = nvfp4.encode(weight, amax)
    for row in (0, PIECE // 1024, len(weight) - 1):
        own = nvfp4.encode(weight[row : row + 1], amax)
        assert torch.equal(codes[row : row + 1], own[0])
        assert torch.equal(scales[row : row + 1].float(), own[1].float())


def test_narrow_weights_are_encoded_as_their_exact_values():
    weight = torch.randn(16, 64).bfloat16()
    one, other = nvfp4.quantise(weight), nvfp4.quantise(weight.float())
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.scales.float(), other.scales.float())


def test_rows_that_are_no_whole_blocks_and_values_without_a_code_are_refused():
    with pytest.raises(KernelError, match="whole blocks of 16"):
        nvfp4.quantise(torch.ones(2, 24))
    for wrong in (torch.nan, torch.inf, -torch.inf):
        weight = torch.ones(2, 16)
        weight[1, 3] = wrong
        with pytest.raises(KernelError, match="not finite"):
            nvfp4.quantise(weight)
        with pytest.raises(KernelError, match="not finite"):
            nvfp4.quantise_fp8(weight)

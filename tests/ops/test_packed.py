"""Laws of packed weights: packing loses nothing, products agree, rows do not know one another.

Promise: every format, every runnable tier, fp32 and bf16 rows, awkward sizes.
"""

import pytest
import torch

from fathom.errors import KernelError
from fathom.ops import experts, linear, native
from fathom.ops.experts import reference as experts_reference
from fathom.ops.linear import Packed, PackedStack, reference
from fathom.ops.linear.packed import STORED

TIERS = native.runnable()
FORMATS = list(STORED)
ROWS = (1, 5, 16, 17, 64, 300)


def values(format, rows, columns, seed=0):
    """Random stored values of a format, and NVFP4's scales."""
    g = torch.Generator().manual_seed(seed)
    if format == "nvfp4":
        codes = torch.randint(0, 256, (rows, columns // 2), generator=g, dtype=torch.uint8)
        scales = torch.rand(rows, columns // 16, generator=g).mul(20).to(torch.float8_e4m3fn)
        # the smallest scales are subnormal
        scales[:, ::3] = torch.tensor(2.0**-9).to(torch.float8_e4m3fn)
        return codes, scales
    weight = torch.randn(rows, columns, generator=g)
    if format == "fp8":
        weight[::2] *= 2.0**-8
        weight[0, 0] = 448.0
    return weight.to(STORED[format]), None


def packed(format, rows, columns, seed=0):
    """A packed random matrix whose scale is not one."""
    found = Packed.empty(format, rows, columns)
    found.fill(0, *values(format, rows, columns, seed))
    found.scale.fill_(0.03)
    return found


@pytest.mark.parametrize("tier", [*TIERS, "none"])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (33, 48), (70, 176)])
def test_unpacking_gives_the_same_bits_back(monkeypatch, tier, format, rows, columns):
    monkeypatch.setenv("FATHOM_TIER", tier)
    wanted, scales = values(format, rows, columns)
    matrix = Packed.empty(format, rows, columns)
    matrix.fill(0, wanted, scales)
    got, got_scales = matrix.unpack()
    assert torch.equal(got.view(torch.uint8), wanted.view(torch.uint8))
    if scales is not None:
        assert torch.equal(got_scales.view(torch.uint8), scales.view(torch.uint8))
    monkeypatch.setenv("FATHOM_TIER", "none")
    again, _ = matrix.unpack()
    assert torch.equal(again.view(torch.uint8), wanted.view(torch.uint8))


@pytest.mark.parametrize("format", ["fp32", "bf16", "fp8"])
def test_widths_that_are_no_multiple_of_the_block_are_padded(format):
    wanted, _ = values(format, 45, 37)
    matrix = Packed.empty(format, 45, 37)
    matrix.fill(0, wanted[:32])
    matrix.fill(32, wanted[32:])
    assert torch.equal(matrix.unpack(32, 13)[0].view(torch.uint8), wanted[32:].view(torch.uint8))
    x = torch.randn(3, 37)
    want = reference.packed_linear(x.double(), matrix, False)
    torch.testing.assert_close(linear.packed_linear(x, matrix), want.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("rows", "columns"), [(1, 16), (33, 48), (96, 320), (70, 1008)])
def test_products_agree_with_the_reference(monkeypatch, tier, format, dtype, rows, columns):
    monkeypatch.setenv("FATHOM_TIER", tier)
    matrix = packed(format, rows, columns)
    g = torch.Generator().manual_seed(1)
    for T in (1, 2, 7, 40):
        x = torch.randn(T, columns, generator=g).to(dtype)
        want = reference.packed_linear(x.double(), matrix, False)
        got = linear.packed_linear(x, matrix).double()
        error = (got - want).norm() / want.norm()
        assert error < (1e-5 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_row_is_the_same_bits_for_any_number_of_rows(monkeypatch, tier, format, dtype):
    monkeypatch.setenv("FATHOM_TIER", tier)
    matrix = packed(format, 96, 208)
    x = torch.randn(300, 208, generator=torch.Generator().manual_seed(2)).to(dtype)
    whole = linear.packed_linear(x, matrix)
    for count in ROWS:
        assert torch.equal(linear.packed_linear(x[:count], matrix), whole[:count])
        assert torch.equal(linear.packed_linear(x[300 - count :], matrix), whole[300 - count :])


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_int8_rows_agree_with_the_reference_and_do_not_know_one_another(monkeypatch, tier, dtype):
    monkeypatch.setenv("FATHOM_TIER", tier)
    matrix = packed("nvfp4", 70, 208)
    x = torch.randn(300, 208, generator=torch.Generator().manual_seed(4)).to(dtype)
    x[5] = 0
    whole = linear.packed_linear(x, matrix, "w4a8")
    want = reference.packed_linear(x.double(), matrix, True)
    exact = reference.packed_linear(x.double(), matrix, False)
    error = (whole.double() - want).norm() / want.norm()
    assert error < (1e-5 if dtype == torch.float32 else 4e-3)
    assert (want - exact).norm() / exact.norm() > 2e-3
    for count in ROWS:
        assert torch.equal(linear.packed_linear(x[:count], matrix, "w4a8"), whole[:count])


@pytest.mark.parametrize("tier", TIERS)
def test_experts_with_int8_rows_agree_with_the_reference(monkeypatch, tier):
    monkeypatch.setenv("FATHOM_TIER", tier)
    up, down = stacks("nvfp4", 6, 96, 80)
    chosen, weights = visits(40, 6, 3)
    x = torch.randn(40, 96, generator=torch.Generator().manual_seed(6))
    want = experts_reference.packed_experts(x.double(), up, down, chosen, weights, True)
    got = experts.packed_experts(x, up, down, chosen, weights, "w4a8")
    # a hidden value on the edge of two whole numbers may fall to either side
    assert (got.double() - want).norm() / want.norm() < 1e-3
    part = experts.packed_experts(x[3:4], up, down, chosen[3:4], weights[3:4], "w4a8")
    assert torch.equal(part, got[3:4])


@pytest.mark.parametrize("threads", [1, 2, 5, 16])
def test_threads_change_nothing(threads):
    matrix = packed("nvfp4", 4096, 512)
    x = torch.randn(3, 512).bfloat16()
    before = torch.get_num_threads()
    want = linear.packed_linear(x, matrix)
    torch.set_num_threads(threads)
    got = linear.packed_linear(x, matrix)
    torch.set_num_threads(before)
    assert torch.equal(got, want)


def test_rows_may_lie_apart():
    matrix = packed("bf16", 64, 48)
    whole = torch.randn(9, 100).bfloat16()
    assert torch.equal(
        linear.packed_linear(whole[:, 20:68], matrix),
        linear.packed_linear(whole[:, 20:68].contiguous(), matrix),
    )


def stacks(format, E, D, hidden):
    """Packed experts."""
    up, down = PackedStack.empty(format, E, hidden, D), PackedStack.empty(format, E, D, hidden)
    for e in range(E):
        up[e].fill(0, *values(format, hidden, D, e))
        down[e].fill(0, *values(format, D, hidden, 100 + e))
    up.scale.copy_(torch.linspace(0.01, 0.02, E))
    down.scale.copy_(torch.linspace(0.02, 0.01, E))
    return up, down


def visits(T, E, K, seed=0):
    """Chosen experts and weights of T tokens."""
    g = torch.Generator().manual_seed(seed)
    chosen = torch.stack([torch.randperm(E, generator=g)[:K] for _ in range(T)])
    return chosen, torch.rand(T, K, generator=g)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_experts_agree_with_the_reference(monkeypatch, tier, format, dtype):
    monkeypatch.setenv("FATHOM_TIER", tier)
    up, down = stacks(format, 6, 96, 80)
    for T in (1, 3, 40):
        chosen, weights = visits(T, 6, 3)
        x = torch.randn(T, 96, generator=torch.Generator().manual_seed(T)).to(dtype)
        want = experts_reference.packed_experts(x.double(), up, down, chosen, weights, False)
        got = experts.packed_experts(x, up, down, chosen, weights).double()
        error = (got - want).norm() / want.norm()
        assert error < (1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("format", ["bf16", "nvfp4"])
def test_a_token_is_the_same_bits_whoever_else_is_there(monkeypatch, tier, format):
    monkeypatch.setenv("FATHOM_TIER", tier)
    up, down = stacks(format, 5, 64, 48)
    chosen, weights = visits(300, 5, 2)
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(3)).bfloat16()
    whole = experts.packed_experts(x, up, down, chosen, weights)
    for count in ROWS:
        part = slice(7, 7 + count)
        got = experts.packed_experts(x[part], up, down, chosen[part], weights[part])
        assert torch.equal(got, whole[part])


def test_what_does_not_fit_is_refused_by_name():
    matrix = packed("bf16", 64, 48)
    with pytest.raises(KernelError, match=r"packed_linear: x must have the shape \[2, 48\]"):
        linear.packed_linear(torch.zeros(2, 47), matrix)
    with pytest.raises(KernelError, match="not whole panels"):
        matrix.fill(16, torch.zeros(16, 48, dtype=torch.bfloat16))
    with pytest.raises(KernelError, match=r"is filled from torch\.bfloat16"):
        matrix.fill(0, torch.zeros(64, 48))
    with pytest.raises(KernelError, match="multiples of 16"):
        Packed.empty("nvfp4", 32, 40)
    up, _ = stacks("bf16", 2, 32, 48)
    with pytest.raises(KernelError, match="down must be 2 matrices"):
        experts.packed_experts(torch.zeros(1, 32), up, up, *visits(1, 2, 1))

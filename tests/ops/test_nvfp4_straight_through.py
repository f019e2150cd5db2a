"""Laws of weights that are rounded alone: a file's numbers are seen, the masters learn."""

import pytest
import torch

from fathom.errors import KernelError
from fathom.ops.linear import linear
from fathom.ops.nvfp4 import (
    dequantise,
    dequantise_fp8,
    largest,
    quantise,
    quantise_fp8,
    straight_through,
)


def decoded(weight: torch.Tensor, form: str) -> torch.Tensor:
    if form == "fp8":
        return dequantise_fp8(*quantise_fp8(weight))
    return dequantise(quantise(weight))


@pytest.fixture
def stack() -> torch.Tensor:
    """Three matrices of different sizes of numbers, one of them zeros."""
    torch.manual_seed(0)
    sizes = torch.tensor([1.0, 30.0, 0.0])
    return torch.randn(3, 24, 48) * sizes[:, None, None]


@pytest.mark.parametrize("form", ["nvfp4", "fp8"])
def test_what_is_seen_is_what_a_file_holds(stack, form):
    assert torch.equal(straight_through(stack, form), decoded(stack, form))
    assert torch.equal(straight_through(stack[0], form), decoded(stack[0], form))
    assert not torch.equal(straight_through(stack[0], form), stack[0])


@pytest.mark.parametrize("form", ["nvfp4", "fp8"])
def test_matrices_that_share_a_scale_are_rounded_as_one(stack, form):
    pair = stack[0], stack[1]
    amax = torch.stack([largest(one) for one in pair]).amax()
    found = [straight_through(one, form, amax) for one in pair]
    assert torch.equal(torch.cat(found), decoded(torch.cat(pair), form))
    assert not torch.equal(found[0], decoded(pair[0], form))


@pytest.mark.parametrize(("precision", "form"), [("w4a16", "nvfp4"), ("w8a16", "fp8")])
def test_masters_get_the_rounded_weights_gradient(stack, precision, form):
    x = torch.randn(7, 48, requires_grad=True)
    master = stack[1].clone().requires_grad_()
    rounded = decoded(stack[1], form).requires_grad_()
    y, plain = linear(x, master, precision), linear(x, rounded)
    assert torch.equal(y, plain)
    wanted = torch.autograd.grad(plain.square().sum(), (rounded, x))
    found = torch.autograd.grad(y.square().sum(), (master, x))
    for own, other in zip(found, wanted, strict=True):
        assert torch.equal(own, other)


def test_rows_of_no_whole_blocks_and_numbers_that_are_none_are_refused():
    with pytest.raises(KernelError, match="whole blocks"):
        straight_through(torch.ones(4, 20), "nvfp4")
    with pytest.raises(KernelError, match="not finite"):
        straight_through(torch.full((4, 16), torch.inf), "fp8")

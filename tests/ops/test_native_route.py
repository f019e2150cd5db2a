"""Laws of native routing: equal to the reference on every tier, a fixed order among equals."""

import pytest
import torch

from fathom.errors import KernelError
from fathom.ops import experts
from fathom.ops.dispatch import Case
from fathom.ops.experts import reference, routing_cpu

SIZES = [(1, 8, 16), (1, 300, 33), (2, 300, 8), (5, 7, 5), (33, 64, 17), (70, 520, 50)]
"""Tokens, width, experts."""


def case(tokens, width, number, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=g).to(dtype)
    weight = (torch.randn(number, width, generator=g) / width**0.5).to(dtype)
    return x, weight, torch.randn(number, generator=g) / 4


@pytest.mark.parametrize("chosen", [1, 3, 5])
@pytest.mark.parametrize(("tokens", "width", "number"), SIZES)
def test_it_is_the_reference(tier, assert_agrees, tokens, width, number, chosen):
    x, weight, correction = case(tokens, width, number)
    assert_agrees(
        lambda x, w: routing_cpu.route(x, w, correction, chosen, 2.5),
        lambda x, w: reference.route(x, w, correction, chosen, 2.5),
        [x, weight],
        1e-5,
    )


@pytest.mark.parametrize("output", [1, 2], ids=["weights", "scores"])
def test_either_output_may_be_differentiated_alone(tier, assert_agrees, output):
    x, weight, correction = case(9, 20, 12)
    assert_agrees(
        lambda x, w: routing_cpu.route(x, w, correction, 4, 2.5)[output],
        lambda x, w: reference.route(x, w, correction, 4, 2.5)[output],
        [x, weight],
        1e-5,
    )


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 9])
def test_bf16_inputs_are_routed_in_fp32(tier, tokens, weight_dtype):
    x, weight, correction = case(tokens, 100, 24)
    x, weight = x.bfloat16(), weight.to(weight_dtype)
    got = routing_cpu.route(x, weight, correction, 6, 2.5)
    want = reference.route(x, weight, correction, 6, 2.5)
    assert torch.equal(got[0], want[0])
    torch.testing.assert_close(got[1:], want[1:], rtol=1e-5, atol=1e-6)
    assert [t.dtype for t in got] == [torch.int64, torch.float32, torch.float32]


@pytest.mark.parametrize("number", [5, 16, 21, 64])
def test_among_equals_the_lower_index_comes_first(tier, number):
    correction = torch.zeros(number)
    correction[[number - 1, 2]] = 1.0
    chosen, weights, _ = routing_cpu.route(
        torch.zeros(3, 4), torch.zeros(number, 4), correction, 5, 1.0
    )
    assert chosen.tolist() == [[2, number - 1, 0, 1, 3]] * 3
    torch.testing.assert_close(weights, torch.full((3, 5), 0.2))


@pytest.mark.parametrize("odd", [float("nan"), float("-inf"), float("inf")])
def test_the_chosen_are_different_experts_whatever_the_numbers(tier, odd):
    correction = torch.zeros(20)
    correction[[3, 7, 19]] = odd
    x, weight, _ = case(4, 8, 20)
    chosen, _, _ = routing_cpu.route(x, weight, correction, 20, 1.0)
    assert torch.equal(chosen.sort(-1).values, torch.arange(20).expand(4, 20))
    chosen, _, _ = routing_cpu.route(x * odd, weight, correction, 20, 1.0)
    assert torch.equal(chosen.sort(-1).values, torch.arange(20).expand(4, 20))


def test_the_chosen_are_those_of_topk_in_its_order(tier):
    x, weight, correction = case(200, 64, 96)
    chosen, _, scores = routing_cpu.route(x, weight, correction, 22, 5.0)
    assert torch.equal(chosen, (scores + correction).topk(22).indices)


def test_the_number_of_threads_changes_no_bit(tier, assert_threads_agree):
    x, weight, correction = case(130, 500, 70)
    assert_threads_agree(lambda x, w: routing_cpu.route(x, w, correction, 6, 2.5), [x, weight])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_do_not_change_their_neighbours(tier, assert_rows_are_alone, dtype):
    x, weight, correction = case(300, 300, 37, dtype)
    assert_rows_are_alone(lambda x: routing_cpu.route(x, weight, correction, 6, 2.5), x)


def test_the_input_may_be_a_slice_of_wider_rows(tier):
    x, weight, correction = case(40, 90, 12)
    weight = weight[:, :33].contiguous()
    got = routing_cpu.route(x[:, 20:53], weight, correction, 3, 1.0)
    want = routing_cpu.route(x[:, 20:53].contiguous(), weight, correction, 3, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (64, 300)])
def test_squared_relu_is_the_reference(tier, assert_agrees, assert_threads_agree, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert_agrees(routing_cpu.squared_relu, reference.squared_relu, [x], 1e-6)
    half = x.bfloat16()
    assert torch.equal(routing_cpu.squared_relu(half), reference.squared_relu(half))
    assert_threads_agree(routing_cpu.squared_relu, [x])


def test_routing_is_an_operation_of_its_own(monkeypatch):
    case = Case("cpu", torch.float32, gradients=True)
    assert experts.ROUTE.choose(case).name == "native"
    monkeypatch.setenv("FATHOM_ROUTE", "reference")
    assert experts.ROUTE.choose(case).name == "reference"


def test_what_is_wrong_is_said_with_its_name():
    x, weight, correction = case(4, 6, 8)
    with pytest.raises(KernelError, match=r"route: weight must have the shape \[8, 6\]"):
        routing_cpu.route(x, weight[:, :5], correction, 2, 1.0)
    with pytest.raises(KernelError, match=r"route: correction must be torch.float32"):
        routing_cpu.route(x, weight, correction.bfloat16(), 2, 1.0)
    with pytest.raises(KernelError, match=r"route: x must be torch.float32 or torch.bfloat16"):
        routing_cpu.route(x.double(), weight, correction, 2, 1.0)
    with pytest.raises(KernelError, match=r"route: x must have dense rows"):
        routing_cpu.route(torch.zeros(6, 4).T, weight, correction, 2, 1.0)
    with pytest.raises(KernelError, match=r"route: chosen must lie between 1 and the 8 experts"):
        routing_cpu.route(x, weight, correction, 9, 1.0)
    with pytest.raises(KernelError, match=r"squared_relu: x must be contiguous"):
        routing_cpu.squared_relu(x.T)

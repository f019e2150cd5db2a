"""Laws of routing and experts: backends agree, the bias steers the choice and not the weights."""

import pytest
import torch

from fathom.ops import experts
from fathom.ops.experts import eager, reference
from fathom.ops.linear import PackedStack


def case(tokens, number=8, chosen=3, width=8, hidden=12):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, width, generator=g)
    up = torch.randn(number, hidden, width, generator=g)
    down = torch.randn(number, width, hidden, generator=g)
    picks = torch.rand(tokens, number, generator=g).topk(chosen).indices
    return x, up, down, picks, torch.rand(tokens, chosen, generator=g)


@pytest.mark.parametrize(("width", "hidden"), [(8, 12), (7, 5), (8, 5)])
@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 1000])
def test_backends_agree(assert_agrees, tokens, width, hidden):
    x, up, down, picks, weights = case(tokens, width=width, hidden=hidden)
    assert_agrees(
        lambda x, u, d, w: eager.experts(x, u, d, picks, w),
        lambda x, u, d, w: reference.experts(x, u, d, picks, w),
        [x, up, down, weights],
    )


@pytest.mark.parametrize("tokens", [1, 2, 64])
def test_reading_only_the_visited_experts_changes_nothing(tokens):
    x, up, down, picks, weights = case(tokens, number=16)
    with torch.inference_mode():
        few = eager.experts(x, up, down, picks, weights)
    # another order of sums: how much that is depends on the processor's own products
    whole = reference.experts(x, up, down, picks, weights)
    torch.testing.assert_close(few, whole, rtol=2e-5, atol=2e-5)


def test_squared_relu_backends_agree(assert_agrees):
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert_agrees(eager.squared_relu, reference.squared_relu, [x])


def test_an_expert_without_tokens_gets_a_gradient_of_zero():
    x, up, down, _, weights = case(5)
    picks = torch.tensor([[0, 1, 2]] * 5)
    up.requires_grad_()
    eager.experts(x, up, down, picks, weights).sum().backward()
    assert up.grad[3:].abs().max() == 0
    assert up.grad[:3].abs().min() >= 0
    assert up.grad[0].abs().max() > 0


def test_the_correction_bias_steers_the_choice_and_not_the_weights():
    g = torch.Generator().manual_seed(0)
    x, weight = torch.randn(20, 6, generator=g), torch.randn(5, 6, generator=g)
    bias = torch.tensor([0.0, 0.0, 0.0, 0.0, 10.0])
    chosen, weights, scores = experts.route(x, weight, bias, 2, 2.5)
    assert (chosen == 4).any(1).all()
    own = scores.gather(1, chosen)
    torch.testing.assert_close(weights, own / own.sum(-1, keepdim=True) * 2.5)
    torch.testing.assert_close(weights.sum(-1), torch.full((20,), 2.5))


def test_biases_near_57_still_tell_experts_apart():
    # Ultra's biases lie between 56.975 and 56.981; BF16 has steps of 0.25 there
    x, weight = torch.zeros(1, 4), torch.zeros(3, 4)
    bias = torch.tensor([56.975, 56.981, 56.978])
    chosen, _, _ = experts.route(x.bfloat16(), weight.bfloat16(), bias, 2, 1.0)
    assert chosen.tolist() == [[1, 2]]


@pytest.mark.parametrize(("width", "hidden"), [(64, 96), (7, 5)])
def test_in_bf16_precision_products_are_those_of_linear(assert_agrees, width, hidden):
    x, up, down, picks, weights = case(63, width=width, hidden=hidden)
    assert_agrees(
        lambda x, u, d, w: eager.experts(x, u, d, picks, w, "bf16"),
        lambda x, u, d, w: reference.experts(x, u, d, picks, w, "bf16"),
        (x, up, down, weights),
        tolerance=1e-2,
    )
    # two numbers that are one in BF16
    nudged = up * (1 + 2**-12)
    same = eager.experts(x, up.bfloat16().float(), down, picks, weights, "bf16")
    assert torch.equal(eager.experts(x, up, down, picks, weights, "bf16"), same)
    assert not torch.equal(
        eager.experts(x, nudged, down, picks, weights), eager.experts(x, up, down, picks, weights)
    )


def test_in_bf16_training_rounds_where_packed_experts_round():
    # what is left is the order of fp32 additions, which seldom shows in eight bits
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 64, generator=generator).bfloat16()
    up = (torch.randn(8, 96, 64, generator=generator) / 8).bfloat16()
    down = (torch.randn(8, 64, 96, generator=generator) / 8).bfloat16()
    chosen = torch.stack([torch.randperm(8, generator=generator)[:3] for _ in range(200)])
    weights = torch.rand(200, 3, generator=generator)
    trained = experts.experts(x, up, down, chosen, weights)
    served = experts.packed_experts(x, PackedStack.of(up), PackedStack.of(down), chosen, weights)
    assert (trained != served).float().mean() < 0.01

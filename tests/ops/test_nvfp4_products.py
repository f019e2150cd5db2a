"""Training's three products against compositions of the reference's pieces, spelt out."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fathom.errors import KernelError
from fathom.ops import experts, linear, nvfp4
from fathom.ops.nvfp4 import Copy, Key, Quantiser, Recipe, Rounding
from fathom.ops.nvfp4.training import OPERATION

REFERENCE = OPERATION.backends[-1].module
F32 = torch.float32
RECIPES = [
    Recipe(),
    Recipe(transform=False),
    Recipe(stochastic=False),
    Recipe(tiles=False),
    Recipe(transform=False, stochastic=False, tiles=False),
    Recipe("mxfp8"),
]


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = F32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def operand(x, recipe, *, columns=False, tiles=False, transform=False, key=None):
    """One operand in fp64 by the reference alone, and its scale."""
    if recipe.format == "mxfp8":
        rows, cols = REFERENCE.mxfp8_operands(x, F32, F32, None)
        return (cols if columns else rows).double(), torch.ones(1)
    copy = Copy(F32, key is not None, tiles=tiles, transform=transform)
    found = REFERENCE.operands(x, None if columns else copy, copy if columns else None, key, None)
    if columns:
        return found.columns.double(), found.columns_scale
    return found.rows.double(), found.rows_scale


def three_products(x, weight, dy, recipe, key):
    """y, dx and dW of a linear layer as the recipe's table has them, added up in fp64."""
    lot = key if recipe.format == "nvfp4" and recipe.stochastic else None
    turned = recipe.format == "nvfp4" and recipe.transform
    forward, forward_scale = operand(weight, recipe, tiles=recipe.tiles)
    backward, backward_scale = forward, forward_scale
    if not recipe.tiles or recipe.format == "mxfp8":
        backward, backward_scale = operand(weight, recipe, columns=True)
        backward = backward[: weight.shape[0]]
    given, scale = operand(x, recipe)
    y = (given @ forward.T).float().bfloat16().double() * scale * forward_scale
    given, scale = operand(dy, recipe, key=lot)
    dx = (given @ backward).float().bfloat16().double() * scale * backward_scale
    left, scale = operand(dy, recipe, columns=True, transform=turned, key=lot)
    right, right_scale = operand(x, recipe, columns=True, transform=turned)
    return y, dx, left.T @ right * scale * right_scale


def assert_near(got, wanted, tolerance):
    error = (got.double() - wanted).norm() / wanted.norm()
    assert error <= tolerance, f"off by {error:.1e}"


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize(("T", "columns", "rows"), [(1, 16, 16), (63, 48, 100), (100, 80, 33)])
def test_a_linear_layers_products_are_those_of_its_table(recipe, T, columns, rows):
    rounding = Rounding(11)
    rounding.move(5, 2)
    x, weight, dy = drawn(T, columns), drawn(rows, columns, seed=1), drawn(T, rows, seed=2)
    own = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = linear.quantised_linear(*own, Quantiser(recipe, rounding, 9))
    y.backward(dy)
    wanted = three_products(x, weight, dy, recipe, Key(11, 5, 2, 9))
    # another order of additions may round to the other neighbour in BF16
    for got, want, off in zip(
        (y, own[0].grad, own[1].grad), wanted, (1e-4, 1e-4, 1e-6), strict=True
    ):
        assert got.dtype == F32
        assert_near(got, want, off)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_experts_products_are_those_of_their_own_linear_layers(recipe):
    """Expert by expert, with its own scales; one expert is visited by nobody."""
    T, D, inner_width, E, K = 50, 32, 48, 5, 2
    x, dy = drawn(T, D), drawn(T, D, seed=4)
    up, down = drawn(E, inner_width, D, seed=1) / 6, drawn(E, D, inner_width, seed=2) / 7
    chosen = torch.stack(
        [torch.arange(T) % 4, (torch.arange(T) // 4 % 3 + 1 + torch.arange(T)) % 4], 1
    )
    weights = drawn(T, K, seed=3).abs() + 0.1
    recipe = replace(recipe, stochastic=False)
    own = [t.clone().requires_grad_() for t in (x, up, down, weights)]
    pair = Quantiser(recipe, None, 0), Quantiser(recipe, None, 1)
    y = experts.quantised_experts(own[0], own[1], own[2], chosen, own[3], pair)
    y.backward(dy)
    wanted_y, dx, dweights = (
        torch.zeros(T, D).double(),
        torch.zeros(T, D).double(),
        torch.zeros(T, K),
    )
    for e in range(E):
        token, place = (chosen == e).nonzero(as_tuple=True)
        if e == 4:
            assert not len(token)
            assert not own[1].grad[e].any()
            continue
        w = weights[token, place][:, None]
        # rows stand in the order of token and choice, as the layer's own do
        order = (token * K + place).argsort()
        token, place, w = token[order], place[order], w[order]
        reached, _, _ = three_products(
            x[token], up[e], drawn(len(token), inner_width), recipe, None
        )
        hidden = reached.float().relu()
        squared = hidden.square() * w
        said, dsquared, ddown = three_products(squared, down[e], dy[token], recipe, None)
        dhidden = (dsquared * 2 * w * hidden).float()
        _, dsent, dup = three_products(x[token], up[e], dhidden, recipe, None)
        wanted_y.index_add_(0, token, said)
        dx.index_add_(0, token, dsent)
        dweights[token, place] = (dsquared * hidden.square()).sum(-1).float()
        assert_near(own[2].grad[e], ddown, 0.01)
        assert_near(own[1].grad[e], dup, 0.01)
    # a sum that rounds to the other neighbour in BF16 may move a rounding of the next product
    assert_near(y.detach(), wanted_y, 0.005)
    assert_near(own[0].grad, dx, 0.01)
    assert_near(own[3].grad, dweights.double(), 0.005)


def test_gradients_of_bf16_models_have_their_type_and_are_near():
    x, weight = drawn(40, 64, dtype=torch.bfloat16), drawn(48, 64, seed=1, dtype=torch.bfloat16)
    own = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = linear.quantised_linear(*own, Quantiser(Recipe(), Rounding(0), 0))
    y.sum().backward()
    assert y.dtype == own[0].grad.dtype == own[1].grad.dtype == torch.bfloat16
    assert_near(y, x.double() @ weight.double().T, 0.2)


def test_the_same_moment_gives_the_same_gradients_and_another_one_others():
    x, weight, dy = drawn(64, 32), drawn(48, 32, seed=1), drawn(64, 48, seed=2)

    def gradients(seed, step, micro, matrix):
        rounding = Rounding(seed)
        rounding.move(step, micro)
        own = x.clone().requires_grad_(), weight.clone().requires_grad_()
        linear.quantised_linear(*own, Quantiser(Recipe(), rounding, matrix)).backward(dy)
        return torch.cat([own[0].grad.flatten(), own[1].grad.flatten()])

    moment = (0, 3, 1, 4)
    first = gradients(*moment)
    assert torch.equal(first, gradients(*moment))
    for place in range(4):
        other = [value + (index == place) for index, value in enumerate(moment)]
        assert not torch.equal(first, gradients(*other))


def test_the_key_is_that_of_the_forward_pass():
    """A backward pass that comes after the trainer has moved on repeats what was asked for."""
    x, weight, dy = drawn(64, 32), drawn(48, 32, seed=1), drawn(64, 48, seed=2)
    grads = []
    for later in (0, 8):
        rounding = Rounding(0)
        own = x.clone().requires_grad_(), weight.clone().requires_grad_()
        y = linear.quantised_linear(*own, Quantiser(Recipe(), rounding, 0))
        rounding.move(later, 0)
        y.backward(dy)
        grads.append(own[0].grad)
    assert torch.equal(*grads)


def test_gradients_are_right_in_the_mean():
    """The mean over many draws is what unrounded gradients and rounded weights give."""
    x, weight, dy = drawn(48, 32), drawn(32, 32, seed=1), drawn(48, 32, seed=2)
    rounding, times = Rounding(3), 300
    total = torch.zeros(48, 32)
    for step in range(times):
        rounding.move(step, 0)
        own = x.clone().requires_grad_()
        linear.quantised_linear(own, weight, Quantiser(Recipe(), rounding, 0)).backward(dy)
        total += own.grad
    rounded, scale = operand(weight, Recipe(), tiles=True)
    wanted = dy.double() @ rounded * scale
    assert_near(total / times, wanted, 0.03)


def test_without_anybody_who_draws_nothing_is_trained_by_lot():
    x, weight = drawn(4, 16), drawn(16, 16).requires_grad_()
    quantiser = Quantiser(Recipe(), None, 0)
    with pytest.raises(KernelError, match="nobody holds the random numbers"):
        linear.quantised_linear(x, weight, quantiser)
    with torch.no_grad():
        linear.quantised_linear(x, weight, quantiser)
    with pytest.raises(KernelError, match="needs a quantiser"):
        linear.linear(x, weight, "nvfp4")


def test_a_fused_optimizers_change_is_seen():
    """It leaves no trace in the weight's version."""
    weight, quantiser = torch.nn.Parameter(drawn(32, 32)), Quantiser(Recipe(), Rounding(0), 0)
    x = drawn(4, 32)
    first = linear.quantised_linear(x, weight, quantiser)
    first.sum().backward()
    torch.optim.AdamW([weight], lr=1.0, fused=True).step()
    assert not torch.equal(linear.quantised_linear(x, weight, quantiser), first)


@pytest.mark.parametrize("recipe", [Recipe(), Recipe(tiles=False), Recipe("mxfp8")], ids=str)
def test_a_stack_of_weights_is_rounded_as_each_alone(recipe):
    stack = drawn(3, 40, 48) * torch.tensor([1.0, 100.0, 0.01])[:, None, None]
    whole = nvfp4.weight_operands(stack, recipe, F32)
    for index, weight in enumerate(stack):
        alone = nvfp4.weight_operands(weight, recipe, F32)
        for name in ("forward", "backward", "forward_scale", "backward_scale"):
            assert torch.equal(
                getattr(whole, name)[index],
                getattr(alone, name).view_as(getattr(whole, name)[index]),
            )


def test_what_is_not_finite_spreads_and_raises_nothing():
    x, weight = drawn(20, 16), drawn(16, 16, seed=1).requires_grad_()
    x[3, 4] = torch.inf
    for recipe in RECIPES:
        y = linear.quantised_linear(x, weight, Quantiser(recipe, Rounding(0), 0))
        assert y[3].isnan().all()


def test_four_bits_lose_what_the_format_loses():
    x, weight = drawn(300, 256), drawn(200, 256, seed=1)
    exact = F.linear(x, weight)
    errors = {}
    for recipe in (Recipe(), Recipe("mxfp8")):
        y = linear.quantised_linear(x, weight, Quantiser(recipe, None, 0))
        errors[recipe.format] = float((y - exact).norm() / exact.norm())
    assert 0.13 < errors["nvfp4"] < 0.16
    assert 0.03 < errors["mxfp8"] < 0.045


def test_who_listens_hears_what_became_zero():
    rounding = Rounding(0)
    quantiser = Quantiser(Recipe(), rounding, 0)
    x, weight = drawn(32, 32), drawn(32, 32, seed=1).requires_grad_()
    x[0, 1] = 0.0
    rounding.listen()
    linear.quantised_linear(x, weight, quantiser).backward(drawn(32, 32, seed=2))
    heard = rounding.heard()
    assert set(heard) == {f"underflow/{role}" for role in ("activation", "weight", "gradient")}
    rows = nvfp4.operands(x, Copy(F32), None).rows
    assert heard["underflow/activation"] == pytest.approx(
        int((rows == 0).sum() - 1) / (32 * 32 - 1)
    )
    assert 0.05 < heard["underflow/weight"] < 0.15
    assert rounding.heard() == {}


def test_the_best_of_two_scales_loses_less_and_is_read_like_any_other():
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(0))

    def error(found):
        return float((nvfp4.dequantise(found) - weight).norm() / weight.norm())

    plain = error(nvfp4.quantise(weight))
    by_squares = error(nvfp4.quantise_four_over_six(weight, "mse"))
    by_sizes = error(nvfp4.quantise_four_over_six(weight, "mae"))
    assert 0.086 < by_squares < 0.0882
    assert by_squares < by_sizes < 0.0895 < plain
    found = nvfp4.quantise_four_over_six(weight)
    assert found.scale == weight.abs().max() / (6 * 256)
    assert found.scales.float().max() <= 448


def test_a_tie_of_both_scales_keeps_the_six():
    """A block of one number is exact either way: it must become a 6, and 256 its scale."""
    row = torch.zeros(1, 16)
    row[0, 3] = 6.0
    found = nvfp4.quantise_four_over_six(row)
    assert found.scales.float().item() == 256
    assert nvfp4.dequantise(found)[0, 3] == 6
    zeros = nvfp4.quantise_four_over_six(torch.zeros(2, 16))
    assert not nvfp4.dequantise(zeros).any()
    with pytest.raises(KernelError, match="whole blocks"):
        nvfp4.quantise_four_over_six(torch.ones(2, 24))


def test_every_shape_of_groups_of_tokens_is_taken():
    quantiser = (Quantiser(Recipe(), Rounding(0), 0), Quantiser(Recipe(), Rounding(0), 1))
    up, down = drawn(4, 24, 12, seed=1).requires_grad_(), drawn(4, 12, 24, seed=2).requires_grad_()
    for T, K in itertools.product((1, 15, 33), (1, 3)):
        x = drawn(T, 12).requires_grad_()
        chosen = torch.randint(0, 4, (T, K), generator=torch.Generator().manual_seed(T))
        y = experts.quantised_experts(x, up, down, chosen, torch.ones(T, K), quantiser)
        y.sum().backward()
        assert x.grad.isfinite().all()
        assert up.grad.isfinite().all()

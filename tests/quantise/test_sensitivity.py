"""Sensitivities are measured one part at a time, and formats are chosen within the budget."""

import itertools

import pytest
import torch

from fathom.errors import ConfigError
from fathom.model.nemotron import Nemotron
from fathom.quantise.rounding import METHODS
from fathom.quantise.sensitivity import (
    BITS,
    Unit,
    choose,
    divergence,
    expected,
    measure,
    parameters,
    rounded,
    units,
)


@pytest.fixture
def measured(model, texts):
    return measure(model, texts, METHODS["max"])


def test_measuring_leaves_the_model_as_it_was(model, texts):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measure(model, texts, METHODS["max"])
    assert all(torch.equal(before[n], value) for n, value in model.state_dict().items())


def test_four_bits_lose_more_than_eight_and_the_whole_more_than_most_parts(model, texts, measured):
    for unit in measured:
        assert 0 < unit.lost["fp8"] < unit.lost["nvfp4"], unit.matrices
    reference = expected(model, texts)
    assert divergence(reference, model, texts) == 0
    weights = parameters(model)
    with torch.no_grad():
        for unit in measured:
            own = [weights[name] for name in unit.matrices]
            for weight, value in zip(own, rounded(own, "nvfp4", METHODS["max"]), strict=True):
                weight.copy_(value)
    assert divergence(reference, model, texts) > max(u.lost["nvfp4"] for u in measured)


def test_a_measurement_is_that_of_the_part_alone(model, texts, measured):
    (unit,) = [u for u in measured if u.matrices == ("blocks.1.mixer.experts.down",)]
    reference = expected(model, texts)
    weight = parameters(model)["blocks.1.mixer.experts.down"]
    with torch.no_grad():
        weight.copy_(rounded([weight], "nvfp4", METHODS["max"])[0])
    assert divergence(reference, model, texts) == pytest.approx(unit.lost["nvfp4"], rel=1e-4)


def test_queries_keys_and_values_are_one_part_and_share_a_scale(model):
    names = units(list(parameters(model)))
    assert tuple(f"blocks.4.mixer.{w}_proj" for w in "qkv") in names
    assert not any(name.startswith("mtp.") for group in names for name in group)
    small, large = torch.full((2, 16), 0.01), torch.full((2, 16), 100.0)
    alone = rounded([small], "fp8", METHODS["max"])[0]
    together = rounded([small, large], "fp8", METHODS["max"])[0]
    torch.testing.assert_close(alone, small, rtol=1e-6, atol=0)
    assert not torch.allclose(together, small, rtol=1e-3)


def made(*lost, weights=100):
    return [
        Unit((f"m{i}",), weights, {"plain": 0.0, "fp8": fp8, "nvfp4": four})
        for i, (fp8, four) in enumerate(lost)
    ]


def spent(found, kinds):
    return sum(u.cost(kinds[u.matrices[0]]) for u in found)


def test_what_minds_most_keeps_most_bits():
    found = made((0.1, 5.0), (0.01, 0.02), (0.2, 0.3))
    assert choose(found, 16, 300) == {"m0": "plain", "m1": "plain", "m2": "plain"}
    assert choose(found, 4.5, 300) == dict.fromkeys(("m0", "m1", "m2"), "nvfp4")
    kinds = choose(found, (8 + 4.5 + 4.5) / 3, 300)
    assert kinds == {"m0": "fp8", "m1": "nvfp4", "m2": "nvfp4"}


@pytest.mark.parametrize("seed", range(6))
def test_choices_are_within_the_budget_and_near_the_best(seed):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(5, 2, generator=generator).tolist()
    found = made(*[(fp8 * 0.1, fp8 * 0.1 + four) for fp8, four in draws])
    budget = 9.0
    kinds = choose(found, budget, 500)
    assert spent(found, kinds) <= budget * 500
    lost = sum(u.lost[kinds[u.matrices[0]]] for u in found)
    best = min(
        sum(u.lost[k] for u, k in zip(found, pick, strict=True))
        for pick in itertools.product(BITS, repeat=5)
        if sum(u.cost(k) for u, k in zip(found, pick, strict=True)) <= budget * 500
    )
    worst_step = max(u.lost["nvfp4"] for u in found)
    assert best <= lost <= best + worst_step


def test_weights_of_no_part_count_sixteen_bits():
    found = made((0.1, 1.0))
    with pytest.raises(ConfigError, match=r"4\.5 bits a weight are too few.* 10\.250"):
        choose(found, 4.5, 200)
    assert choose(found, 10.25, 200) == {"m0": "nvfp4"}


def test_rows_that_are_no_blocks_are_never_four_bits(config, texts):
    odd = config.replace(mlp={"hidden": 40})
    found = measure(Nemotron(odd, seed=1).eval(), texts, METHODS["max"])
    (unit,) = [u for u in found if u.matrices == ("blocks.2.mixer.down",)]
    assert set(unit.lost) == {"plain", "fp8"}


def test_packed_models_are_refused(model):
    with pytest.raises(ConfigError, match="packed=False"):
        parameters(model.pack())

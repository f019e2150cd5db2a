"""Laws of fathom/engine/sampler.py."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.engine.sampler import Sampling, adjusted, alternatives, uniform
from fathom.errors import RequestError
from fathom.ops.draw import draw

LOGITS = torch.tensor([0.0, 2.0, 1.0, -1.0, 1.5, -3.0, 0.5, 1.9])


class Drawn(NamedTuple):
    id: int
    logp: float
    sampler_logp: float


def sample(logits, sampling, place, allowed=None):
    """One token, as the engine draws it."""
    found = _rows(logits, sampling, [uniform(sampling.seed, place)], allowed)
    return Drawn(*(one.item() for one in found))


def survivors(logits, sampling):
    """Every token that some point draws, in their order, and its share."""
    ids, _, sampler_logp = _rows(logits, sampling, torch.linspace(0, 1, 2001)[:-1].tolist())
    order = list(dict.fromkeys(ids.tolist()))
    share = {int(i): float(logp.exp()) for i, logp in zip(ids, sampler_logp, strict=True)}
    return torch.tensor(order), torch.tensor([share[i] for i in order], dtype=torch.float64)


def _rows(logits, sampling, points, allowed=None):
    count, wide = len(points), torch.float64
    return draw(
        logits.expand(count, -1).contiguous(),
        torch.full((count,), sampling.temperature, dtype=wide),
        torch.full((count,), sampling.top_k),
        torch.full((count,), sampling.top_p, dtype=wide),
        torch.full((count,), sampling.min_p, dtype=wide),
        torch.tensor(points, dtype=wide),
        None if allowed is None else allowed.expand(count, -1).contiguous(),
    )


def _counts(sampling, draws=4000):
    counts = torch.zeros(len(LOGITS))
    for place in range(draws):
        counts[sample(LOGITS, sampling, place).id] += 1
    return counts


def _chi_square(counts, share):
    expected = share * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_tempered_distribution(temperature):
    counts = _counts(Sampling(temperature=temperature, seed=7))
    share = torch.softmax(LOGITS / temperature, 0)
    # 7 degrees of freedom: 24.3 is passed once in a thousand; the seed is fixed.
    assert _chi_square(counts, share) < 24.3


def test_a_wrong_distribution_would_be_noticed():
    counts = _counts(Sampling(temperature=1.0, seed=7))
    assert _chi_square(counts, torch.softmax(LOGITS / 1.2, 0)) > 24.3


def test_temperature_zero_takes_the_best_and_the_lower_of_equals():
    drawn = sample(torch.tensor([1.0, 3.0, 3.0, 0.0]), Sampling(temperature=0), 5)
    assert drawn.id == 1
    assert drawn.sampler_logp == 0.0
    assert drawn.logp == pytest.approx(float(torch.log_softmax(torch.tensor([1.0, 3, 3, 0]), 0)[1]))


@pytest.mark.parametrize("sampling", [Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(min_p=1.0)])
def test_the_tightest_filter_is_greedy(sampling):
    for place in range(50):
        drawn = sample(LOGITS, sampling, place)
        assert drawn.id == 1
        assert drawn.sampler_logp == 0.0


def test_top_k_keeps_the_k_best():
    ids, share = survivors(LOGITS, Sampling(top_k=3))
    assert ids.tolist() == [1, 7, 4]
    assert float(share.sum()) == pytest.approx(1)


def test_top_p_keeps_the_fewest_that_reach_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert survivors(logits, Sampling(top_p=0.79))[0].tolist() == [0, 1]
    assert survivors(logits, Sampling(top_p=0.81))[0].tolist() == [0, 1, 2]
    # After top_k 2 the shares are 5/8 and 3/8: the first alone reaches 0.6.
    assert survivors(logits, Sampling(top_k=2, top_p=0.6))[0].tolist() == [0]


def test_min_p_is_a_share_of_the_best():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert survivors(logits, Sampling(min_p=0.29))[0].tolist() == [0, 1, 2]
    assert survivors(logits, Sampling(min_p=0.31))[0].tolist() == [0, 1]


def test_filtered_draws_follow_what_is_left():
    sampling = Sampling(temperature=0.8, top_k=5, top_p=0.9, min_p=0.1, seed=3)
    counts = _counts(sampling)
    ids, share = survivors(LOGITS, sampling)
    assert counts.sum() == counts[ids].sum()
    assert _chi_square(counts[ids], share.float()) < 18.5  # at most 4 degrees: once in a thousand


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    place=st.integers(0, 2**20),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 8),
    top_p=st.floats(0.01, 1),
    min_p=st.floats(0, 1),
)
def test_a_draw_is_repeatable_and_its_probability_is_told(
    seed, place, temperature, top_k, top_p, min_p
):
    sampling = Sampling(temperature, top_p, top_k, min_p, seed)
    drawn = sample(LOGITS, sampling, place)
    assert drawn == sample(LOGITS.clone(), sampling, place)
    assert drawn.logp == pytest.approx(float(torch.log_softmax(LOGITS, 0)[drawn.id]), abs=1e-6)


def test_neighbouring_seeds_and_places_are_unrelated():
    values = torch.tensor([[uniform(seed, place) for place in range(300)] for seed in range(300)])
    assert float(values.min()) >= 0
    assert float(values.max()) < 1
    assert abs(float(values.mean()) - 0.5) < 0.005
    centred = values - 0.5
    for neighbour in (centred[1:] * centred[:-1], centred[:, 1:] * centred[:, :-1]):
        assert abs(float(neighbour.mean())) * 12 < 0.02


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"top_k": 1.5},
        {"min_p": -0.1},
        {"min_p": 2},
        {"seed": 2**64},
        {"repetition": 0},
        {"repetition": math.nan},
        {"repetition": math.inf},
        {"presence": 2.1},
        {"frequency": -2.1},
        {"frequency": math.nan},
        {"bias": ((-1, 1.0),)},
        {"bias": ((1.5, 1.0),)},
        {"bias": ((3, 101.0),)},
        {"bias": ((3, math.nan),)},
        {"bias": ((3, 1.0), (3, 2.0))},
    ],
)
def test_values_that_make_no_sense_are_named(values):
    with pytest.raises(RequestError, match=next(iter(values))):
        Sampling(**values)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_of_a_broken_models_logits_nothing_is_drawn(bad):
    logits = LOGITS.clone()
    logits[3] = bad
    assert sample(logits, Sampling(), 0).id == -1


def test_tokens_of_probability_zero_are_never_drawn():
    logits = LOGITS.clone()
    logits[[0, -1]] = -math.inf
    drawn = {sample(logits, Sampling(temperature=5, seed=1), place).id for place in range(500)}
    assert drawn == {1, 2, 3, 4, 5, 6}


def _mask(tokens, vocab=8):
    words = [0] * ((vocab + 31) // 32)
    for token in tokens:
        words[token // 32] |= 1 << token % 32
    return torch.tensor([w - 2**32 if w >= 2**31 else w for w in words], dtype=torch.int32)


def test_repetition_divides_what_is_positive_and_multiplies_the_rest_once():
    sampling = Sampling(repetition=2.0)
    changed = adjusted(LOGITS, sampling, {0, 1, 3}, {1: 5, 4: 1})
    assert changed.tolist() == pytest.approx([0.0, 1.0, 1.0, -2.0, 0.75, -3.0, 0.5, 1.9])
    # The prompt as it came, with repeats, is the same as its set.
    assert changed.equal(adjusted(LOGITS, sampling, [3, 0, 1, 1, 0, 3], {4: 1, 1: 5}))


def test_presence_and_frequency_look_at_the_answer_alone():
    changed = adjusted(LOGITS, Sampling(presence=0.5), {0, 1, 2}, {1: 3, 5: 1, 6: 0})
    assert (LOGITS - changed).tolist() == pytest.approx([0, 0.5, 0, 0, 0, 0.5, 0, 0])
    changed = adjusted(LOGITS, Sampling(frequency=0.25), {0, 1, 2}, {1: 3, 5: 1, 6: 0})
    assert (LOGITS - changed).tolist() == pytest.approx([0, 0.75, 0, 0, 0, 0.25, 0, 0])


def test_the_bias_comes_last_and_keeps_its_size():
    sampling = Sampling(repetition=2.0, presence=0.5, frequency=0.25, bias=((1, 4.0), (7, -100.0)))
    changed = adjusted(LOGITS, sampling, (), {1: 2})
    assert float(changed[1]) == pytest.approx(2.0 / 2 - 0.5 - 2 * 0.25 + 4)
    assert float(changed[7]) == pytest.approx(1.9 - 100)


def test_adjusting_is_done_on_a_copy_and_plain_changes_nothing():
    logits = LOGITS.clone()
    for sampling in (Sampling(), Sampling(1.5, 0.9, 3, 0.1, 7), Sampling(bias=((0, 0.0),))):
        adjusted(logits, sampling, [1], {2: 1}).fill_(9)
        assert logits.equal(LOGITS)
        assert adjusted(logits, sampling, [1], {2: 1}).equal(LOGITS)
    assert Sampling(1.5, 0.9, 3, 0.1, 7).plain
    for value in ({"repetition": 1.1}, {"presence": -1}, {"frequency": 1}, {"bias": ((0, 1.0),)}):
        assert not Sampling(**value).plain


def test_a_bias_on_an_unknown_token_is_named():
    with pytest.raises(RequestError, match="token 8"):
        adjusted(LOGITS, Sampling(bias=((8, 1.0),)), (), {})


@pytest.mark.parametrize("temperature", [0.0, 0.7, 5.0])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.99}, {"min_p": 0.001}])
def test_only_allowed_tokens_are_drawn(temperature, filters):
    sampling = Sampling(temperature=temperature, seed=5, **filters)
    own = torch.log_softmax(LOGITS, 0)
    for place in range(200):
        drawn = sample(LOGITS, sampling, place, _mask([3, 6]))
        assert drawn.id in (3, 6)
        assert drawn.logp == pytest.approx(float(own[drawn.id]))
    if temperature == 0:
        assert drawn.id == 6


def test_draws_under_a_mask_follow_what_it_leaves():
    counts = torch.zeros(len(LOGITS))
    for place in range(4000):
        counts[sample(LOGITS, Sampling(seed=2), place, _mask([0, 1, 2, 4])).id] += 1
    share = torch.softmax(LOGITS[[0, 1, 2, 4]], 0)
    assert counts.sum() == counts[[0, 1, 2, 4]].sum()
    assert _chi_square(counts[[0, 1, 2, 4]], share) < 16.3  # 3 degrees: once in a thousand


@pytest.mark.parametrize("vocab", [1, 31, 32, 33, 64, 100])
def test_a_mask_reaches_the_last_bit_of_the_last_word(vocab):
    logits = torch.zeros(vocab)
    for token in {0, vocab // 2, vocab - 1}:
        assert sample(logits, Sampling(seed=1), 0, _mask([token], vocab)).id == token


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**64 - 1), place=st.integers(0, 2**20), top_k=st.integers(0, 8))
def test_a_mask_that_allows_all_changes_no_draw(seed, place, top_k):
    sampling = Sampling(top_k=top_k, seed=seed)
    assert sample(LOGITS, sampling, place, _mask(range(8))) == sample(LOGITS, sampling, place)


def test_where_no_token_can_be_drawn_there_is_none():
    assert sample(LOGITS, Sampling(), 0, _mask([])).id == -1
    logits = LOGITS.clone()
    logits[3] = -math.inf
    assert sample(logits, Sampling(temperature=0), 0, _mask([3])).id == -1


def test_alternatives_are_the_best_tokens_the_lower_id_of_equals_first():
    logits = torch.tensor([0.0, 3.0, 1.0, 3.0, 1.0, 1.0, -1.0])
    own = torch.log_softmax(logits, 0).tolist()
    best = [1, 3, 2, 4, 5, 0, 6]
    for count in range(9):
        found = alternatives(logits, count)
        assert [token for token, _ in found] == best[:count]
        assert [logp for _, logp in found] == pytest.approx([own[i] for i in best[:count]])
    with pytest.raises(RequestError, match="alternatives"):
        alternatives(logits, -1)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(0, 45))
def test_alternatives_are_those_of_a_plain_sort(values, count):
    found = alternatives(torch.tensor(values, dtype=torch.float32), count)
    best = sorted(range(len(values)), key=lambda token: (-values[token], token))
    assert [token for token, _ in found] == best[:count]

"""Laws of the draw: every backend takes the oracle's token, whatever the filters, row by row.

Promise: every tier that this processor can run is held to them. The oracle is `sample` below, which
draws one row at a time and was written without the backends.
"""

import functools
import itertools
import math

import pytest
import torch

from fathom.engine.sampler import Sampling, uniform
from fathom.errors import KernelError
from fathom.ops import draw as room
from fathom.ops import native
from fathom.ops.draw import cpu, draw, reference
from fathom.ops.native.recorder import record

VOCABULARIES = (1, 2, 47, 1024, pytest.param(32768, marks=pytest.mark.slow))
TEMPERATURES, TOP_KS, TOP_PS, MIN_PS = (0.0, 0.3, 1.0, 2.5), (0, 1, 7, 60), (1, 0.9, 0.3), (0, 0.04)
KINDS = ("smooth", "tied", "flat", "masked", "sparse")


def sample(logits, sampling, place, words):
    """Id and log-probability among what was drawn from."""
    left = logits.double()
    if words is not None:
        allowed = [bool(int(words[i // 32]) >> i % 32 & 1) for i in range(len(left))]
        left = torch.where(torch.tensor(allowed), left, -math.inf)
    if sampling.temperature == 0:
        return int(left.argmax()), 0.0
    share = torch.softmax((left - left.max()) / sampling.temperature, 0)
    ids = torch.arange(len(share))
    if sampling.top_k or sampling.top_p < 1 or sampling.min_p > 0:
        share, ids = torch.sort(share, descending=True, stable=True)
        if sampling.top_k:
            share = share[: sampling.top_k]
        if sampling.top_p < 1:
            before = share.cumsum(0) - share
            share = share[: max(1, int((before < sampling.top_p * share.sum()).sum()))]
        share = share[: int((share >= sampling.min_p * share[0]).sum())]
        share = share / share.sum()
    reached = share.cumsum(0)
    point = uniform(sampling.seed, place) * float(reached[-1])
    index = int(torch.searchsorted(reached, point, right=True))
    if index == len(share):
        index = int(torch.searchsorted(reached, float(reached[-1])))
    return int(ids[index]), float(share[index].log())


def parameters(samplings, points):
    """What `draw` takes besides logits and masks."""
    wide = torch.float64
    return [
        torch.tensor([s.temperature for s in samplings], dtype=wide),
        torch.tensor([s.top_k for s in samplings], dtype=torch.int64),
        torch.tensor([s.top_p for s in samplings], dtype=wide),
        torch.tensor([s.min_p for s in samplings], dtype=wide),
        torch.tensor(points, dtype=wide),
    ]


def bits(allowed_SV):
    """The mask of what is True; bits beyond the vocabulary are set, which must not matter."""
    S, V = allowed_SV.shape
    filled = torch.ones(S, -(-V // 32) * 32, dtype=torch.bool)
    filled[:, :V] = allowed_SV
    words = (filled.view(S, -1, 32).long() << torch.arange(32)).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def logits_of(kind, S, V, g):
    """Logits [S, V]: with few equals, with many, hardly different, with -inf among them."""
    x = torch.randn(S, V, generator=g) * 3
    if kind == "tied":
        x = (x / 2).round() / 2
    if kind == "flat":
        x = x / 300
    if kind == "sparse":
        x[torch.rand(S, V, generator=g) < 0.8] = -math.inf
        x[:, V // 2] = 0.5
    return x


@functools.cache
def case(kind, V):
    """Logits, masks and parameters of one row for each combination; what the oracle draws."""
    few = V > 1024
    samplings = [
        Sampling(temperature, top_p, top_k, min_p, seed=V)
        for temperature, top_k, top_p, min_p in itertools.product(
            TEMPERATURES, (*TOP_KS, V + 3), (*TOP_PS, 1e-9), (*MIN_PS, 1.0)
        )
    ][:: 7 if few else 1]
    g = torch.Generator().manual_seed(V)
    S = len(samplings)
    x = logits_of(kind, S, V, g)
    allowed = torch.rand(S, V, generator=g) < torch.rand(S, 1, generator=g)
    allowed[torch.arange(S), torch.randint(0, V, (S,), generator=g)] = True
    masks = bits(allowed) if kind == "masked" else None
    drawn = [
        sample(x[s], own, s, None if masks is None else masks[s]) for s, own in enumerate(samplings)
    ]
    points = [uniform(V, s) for s in range(S)]
    return x, parameters(samplings, points), masks, drawn


def assert_drawn(got, x, drawn):
    """Ids, and log-probabilities to a millionth."""
    ids, logp, sampler_logp = got
    assert [ids.dtype, logp.dtype, sampler_logp.dtype] == [torch.int64, *[torch.float32] * 2]
    assert ids.tolist() == [token for token, _ in drawn]
    exact = torch.log_softmax(x.double(), 1).gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(logp.double(), exact, rtol=1e-6, atol=1e-6)
    wanted = torch.tensor([logp for _, logp in drawn])
    torch.testing.assert_close(sampler_logp, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("V", VOCABULARIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_native_draw_is_the_oracles(tier, threads, kind, V):
    x, own, masks, drawn = case(kind, V)
    threads(1)
    first = cpu.draw(x, *own, masks)
    assert_drawn(first, x, drawn)
    threads(5)
    for have, want in zip(cpu.draw(x, *own, masks), first, strict=True):
        assert torch.equal(have, want)


@pytest.mark.parametrize("V", VOCABULARIES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_oracles(kind, V):
    x, own, masks, drawn = case(kind, V)
    assert_drawn(reference.draw(x, *own, masks), x, drawn)


def test_a_row_alone_is_the_same_bits(tier):
    x, own, masks, _ = case("masked", 1024)
    whole = cpu.draw(x, *own, masks)
    for s in range(0, len(x), 5):
        row = slice(s, s + 1)
        for one, all_rows in zip(
            cpu.draw(x[row], *(values[row] for values in own), masks[row]), whole, strict=True
        ):
            assert torch.equal(one, all_rows[row])


@pytest.mark.parametrize("V", [1, 47, 1000])
def test_rows_may_lie_apart_and_what_is_between_is_not_read(tier, V):
    x, own, _, _ = case("smooth", 1024)
    x = x[:, :V].contiguous()
    wanted = cpu.draw(x, *own, None)
    whole = torch.full((len(x), V + 8), torch.nan)
    whole[:, 3 : 3 + V] = x
    for have, want in zip(cpu.draw(whole[:, 3 : 3 + V], *own, None), wanted, strict=True):
        assert torch.equal(have, want)


BROKEN = [math.nan, math.inf]
TAKEN = [
    Sampling(0),
    Sampling(1),
    Sampling(1, top_k=3),
    Sampling(1, top_p=0.5),
    Sampling(1, min_p=0.1),
]


@pytest.mark.parametrize("V", [1, 47, 1024])
@pytest.mark.parametrize("function", [cpu.draw, reference.draw], ids=["native", "reference"])
def test_a_row_without_a_token_gives_none_and_harms_no_neighbour(tier, function, V):
    samplings = [one for one in TAKEN for _ in range(7)]
    x = torch.randn(len(samplings), V, generator=torch.Generator().manual_seed(0))
    allowed = torch.ones(len(x), V, dtype=torch.bool)
    masked = torch.zeros(len(x), dtype=torch.bool)
    for s in range(0, len(x), 7):
        x[s, V // 3] = math.nan
        x[s + 1, -1] = math.inf
        x[s + 2] = -math.inf
        allowed[s + 3] = False
        x[s + 4, -1], allowed[s + 4, :-1] = -math.inf, False
        # a token that may not be drawn can be broken as well
        x[s + 5, 0], allowed[s + 5, 0] = math.nan, False
        masked[s + 6] = True
    own = parameters(samplings, [0.7] * len(x))
    ids, logp, sampler_logp = function(x, *own, bits(allowed))
    assert torch.equal(ids >= 0, masked)
    assert torch.equal(logp.isnan(), ~masked)
    assert torch.equal(sampler_logp.isnan(), ~masked)
    alone = function(x[6:7], *(values[6:7] for values in own), None)
    assert ids[6] == alone[0][0]


def test_points_walk_through_what_is_left(tier):
    """At 0 the first token that has a share, at the end the last; in between in the right order."""
    x = torch.tensor([-math.inf, 1.0, 3.0, 2.0, -2000.0, 3.0, -math.inf])
    points = [0.0, *torch.linspace(0.001, 0.999, 500).tolist(), 1 - 2.0**-53]
    for backend in (cpu, reference):
        for sampling, order in (
            (Sampling(1), [1, 2, 3, 5]),
            (Sampling(1, top_k=4), [2, 5, 3, 1]),
            (Sampling(1, top_k=3), [2, 5, 3]),
            (Sampling(1, top_k=100), [2, 5, 3, 1]),
            (Sampling(1, min_p=0.3), [2, 5, 3]),
            (Sampling(1, top_p=0.5), [2, 5]),
        ):
            own = parameters([sampling] * len(points), points)
            ids, _, sampler_logp = backend.draw(x.repeat(len(points), 1), *own, None)
            assert [token for token, _ in itertools.groupby(ids.tolist())] == order
            share = torch.softmax(x[order], 0)
            for token, each in zip(order, share.tolist(), strict=True):
                assert abs((ids == token).double().mean().item() - each) < 0.01
                assert sampler_logp[ids == token][0].item() == pytest.approx(math.log(each))


def test_log_probabilities_are_right_to_a_millionth_for_many_tokens(tier):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(5, 131072, generator=g) * torch.tensor([0.0, 0.01, 1.0, 4.0, 20.0])[:, None]
    x += torch.tensor([0.0, 1000.0, -5000.0, 3.0, 0.0])[:, None]
    for sampling in (Sampling(0), Sampling(0.7), Sampling(1, top_k=40, top_p=0.95)):
        own = parameters([sampling] * 5, [0.1, 0.3, 0.5, 0.7, 0.9])
        drawn = [
            (int(i), float(a), float(b))
            for i, a, b in zip(*reference.draw(x, *own, None), strict=True)
        ]
        ids, logp, sampler_logp = cpu.draw(x, *own, None)
        assert ids.tolist() == [one[0] for one in drawn]
        exact = torch.log_softmax(x.double(), 1).gather(1, ids[:, None])[:, 0]
        torch.testing.assert_close(logp.double(), exact, rtol=1e-6, atol=1e-6)
        wanted = torch.tensor([one[2] for one in drawn])
        torch.testing.assert_close(sampler_logp, wanted, rtol=1e-6, atol=1e-6)


@torch.inference_mode()
def test_a_recording_reads_logits_points_and_masks_anew(tier):
    V, S = 300, 4
    samplings = [Sampling(0), Sampling(1), Sampling(0.8, top_k=20), Sampling(1.2, top_p=0.9)]
    x, masks = torch.zeros(S, V), torch.zeros(S, -(-V // 32), dtype=torch.int32)
    own = parameters(samplings, [0.0] * S)
    recording = None
    for number in range(5):
        g = torch.Generator().manual_seed(number)
        x.copy_(torch.randn(S, V, generator=g))
        own[4].copy_(torch.rand(S, generator=g))
        masks.copy_(bits(torch.rand(S, V, generator=g) < 0.5))
        wanted, _, _ = reference.draw(x, *own, masks)
        if recording is None:
            recording = record(lambda: draw(x, *own, masks)[0], [x, own[4], masks])
            assert recording.why_not is None
            assert recording.calls == 1
        else:
            recording.replay()
        assert torch.equal(recording.result, wanted)


def test_every_backend_can_be_forced(monkeypatch):
    x, own, masks, drawn = case("masked", 47)
    for backend in ("native", "reference"):
        monkeypatch.setenv("FATHOM_DRAW", backend)
        assert_drawn(draw(x, *own, masks), x, drawn)
    monkeypatch.delenv("FATHOM_DRAW")
    monkeypatch.setenv("FATHOM_TIER", "none")
    assert native.tier() is None
    assert_drawn(room.draw(x, *own, masks), x, drawn)


def test_what_does_not_fit_is_refused_by_name():
    x, (temperature, top_k, top_p, min_p, point), masks, _ = case("masked", 47)
    rest = temperature, top_k, top_p, min_p, point
    with pytest.raises(KernelError, match=r"draw: logits must be torch.float32; got torch.bf"):
        cpu.draw(x.bfloat16(), *rest, None)
    with pytest.raises(KernelError, match=r"draw: logits must have dense rows"):
        cpu.draw(torch.zeros(47, len(x)).T, *rest, None)
    with pytest.raises(KernelError, match=r"draw: temperature must be torch.float64; got torch.fl"):
        cpu.draw(x, temperature.float(), *rest[1:], None)
    with pytest.raises(KernelError, match=r"draw: top_k must be torch.int64; got torch.int32"):
        cpu.draw(x, temperature, top_k.int(), *rest[2:], None)
    with pytest.raises(KernelError, match=rf"draw: point must have the shape \[{len(x)}\]"):
        cpu.draw(x, *rest[:4], point[:1], None)
    with pytest.raises(KernelError, match=rf"draw: allowed must have the shape \[{len(x)}, 2\]"):
        cpu.draw(x, *rest, masks[:, :1])

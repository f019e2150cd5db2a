"""Laws of states in fp16: unbiased; the same bits in steps, drafts, threads and the reference.

Promise: every tier that this processor can run is held to them. What drafts ask of fp32 states is
`test_ssd_draft.py`.
"""

import pytest
import torch

from fathom.errors import KernelError
from fathom.ops import native, ssd
from fathom.ops.layout import Layout
from fathom.ops.native.recorder import record
from fathom.ops.ssd import Rounding, cpu, reference
from fathom.ops.ssd.rounding import chances, kept

HALF = torch.float16
SHAPES = {"even": (4, 16, 2, 32), "odd": (6, 7, 2, 33), "one": (1, 3, 1, 1), "wide": (3, 65, 3, 20)}
"""H, P, G, N."""
LENGTHS = [(1,), (9,), (3, 3, 3), (9, 1, 4), (17, 2, 8)]


def case(layout, shape, dtype=torch.float32, seed=0):
    """x, dt, A, B, C, D, states in fp16 of all sizes, and a rounding."""
    H, P, G, N = shape
    g = torch.Generator().manual_seed(seed)
    T, S = layout.tokens, layout.sequences
    sizes = torch.randn(S, H, P, N, generator=g) * 2.0 ** torch.randint(
        -26, 8, (S, H, P, N), generator=g
    )
    return [
        torch.randn(T, H, P, generator=g).to(dtype),
        torch.rand(T, H, generator=g) * 0.5,
        -torch.rand(H, generator=g) * 8,
        torch.randn(T, G, N, generator=g).to(dtype),
        torch.randn(T, G, N, generator=g).to(dtype),
        torch.randn(H, generator=g).to(dtype),
        sizes.to(HALF),
        Rounding(torch.randint(0, 1000, (S,), generator=g, dtype=torch.int32), 7),
    ]


def exact(layout, shape, seed=0):
    """The same where a step adds x to a state in one rounding, whatever a tier's arithmetic is."""
    x, dt, A, B, C, D, state, rounding = case(layout, shape, seed=seed)
    return [x, torch.ones_like(dt), A * 0, torch.ones_like(B), C, D, state, rounding]


def stepped(backend, inputs, layout):
    """Outputs [T, H, P] of `step_`, token by token; each sequence's states before and after all."""
    x, dt, A, B, C, D, first, rounding = inputs
    y, states = torch.empty(x.shape, dtype=x.dtype), []
    for s, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
        states.append([first[s : s + 1].clone()])
        for place in range(length):
            own, now = slice(start + place, start + place + 1), states[-1][-1].clone()
            at = Rounding(rounding.past_S[s : s + 1] + place, rounding.seed)
            y[own] = backend.step_(x[own], dt[own], A, B[own], C[own], D, now, at)
            states[-1].append(now)
    return y, states


def after(states, counts):
    """States [S, H, P, N] after so many tokens of each sequence."""
    return torch.cat([own[count] for own, count in zip(states, counts, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_drafts_are_steps_to_the_bit(tier, threads, lengths, shape, dtype):
    layout = Layout.of(lengths)
    inputs = case(layout, shape, dtype)
    x, dt, A, B, C, D, before, rounding = inputs
    wanted, states = stepped(cpu, inputs, layout)
    same = before.clone()
    for count in (1, 5):
        threads(count)
        assert torch.equal(cpu.peek(x, dt, A, B, C, D, layout, before, rounding), wanted)
        assert torch.equal(before, same)
        for shift in range(max(lengths) + 1):
            counts = [(shift + s) % (n + 1) for s, n in enumerate(lengths)]
            moved = before.clone()
            cpu.replay(moved, x, dt, A, B, layout, torch.tensor(counts), rounding)
            assert torch.equal(moved, after(states, counts))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_random_numbers_are_the_references_to_the_bit(tier, shape):
    layout = Layout.of((9, 1, 4))
    inputs = exact(layout, shape)
    _, states = stepped(cpu, inputs, layout)
    _, wanted = stepped(reference, inputs, layout)
    for own, others in zip(states, wanted, strict=True):
        for one, other in zip(own, others, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_values_are_the_references(tier, shape):
    layout = Layout.of((9, 1, 4))
    inputs = case(layout, shape)
    y, states = stepped(cpu, inputs, layout)
    wanted, others = stepped(reference, inputs, layout)
    # a last digit of fp32 may tip a rounding, which is one part in 1024 of a state
    torch.testing.assert_close(y, wanted, rtol=1e-2, atol=1e-2)
    own, other = (after(each, layout.lengths).float() for each in (states, others))
    torch.testing.assert_close(own, other, rtol=2e-3, atol=1e-6)
    assert (own == other).float().mean() > 0.98


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_in_the_reference_drafts_are_steps(shape):
    layout = Layout.of((9, 1, 4))
    inputs = case(layout, shape)
    x, dt, A, B, C, D, state, rounding = inputs
    wanted, states = stepped(reference, inputs, layout)
    y = reference.peek(x, dt, A, B, C, D, layout, state, rounding)
    torch.testing.assert_close(y, wanted, rtol=1e-2, atol=1e-2)
    reference.replay(state, x, dt, A, B, layout, torch.tensor([5, 1, 0]), rounding)
    torch.testing.assert_close(state.float(), after(states, [5, 1, 0]).float(), rtol=2e-3, atol=0)


def added(update, tokens, state, seed=3):
    """`state` [1, H, P, N] after so many tokens that add `update` to each."""
    _, H, P, N = state.shape
    x, dt, B = torch.full((1, H, P), update), torch.ones(1, H), torch.ones(1, 1, N)
    state, past_S = state.clone(), torch.zeros(1, dtype=torch.int32)
    for _ in range(tokens):
        cpu.step_(x, dt, 0 * dt[0], B, B, dt[0], state, Rounding(past_S, seed))
        past_S += 1
    return state.double()


def test_many_small_updates_are_not_lost(tier):
    begin = torch.ones(1, 8, 32, 64, dtype=HALF)
    # fp16's next number after 1 is 1 + 2^-10: to nearest, not one of 256 updates would stay
    assert begin.float().add(2.0**-14).to(HALF).equal(begin)
    mean = added(2.0**-14, 256, begin).mean()
    # a step's deviation is below 2^-12, that of 256 is 16 times as much, of 16,384 states a 128th
    assert abs(mean - 1.015625) < 4 * 2.0**-12 * 16 / 128
    small = torch.full((1, 8, 32, 64), 2.0**-20, dtype=HALF)
    mean = added(2.0**-27, 64, small).mean()
    assert abs(mean - (2.0**-20 + 2.0**-21)) < 4 * 2.0**-25 * 8 / 128


def test_what_fp16_holds_stays_and_what_it_cannot_becomes_its_greatest(tier):
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(HALF)
    every = every[every.isfinite()].view(1, 2, 248, 128)
    assert torch.equal(added(0.0, 1, every), every.double())
    most = torch.full((1, 1, 4, 17), 65504.0, dtype=HALF)
    assert (added(1e6, 1, most) == 65504).all()
    assert (added(-1e30, 1, most) == -65504).all()
    assert added(float("inf"), 1, most).isnan().all()
    assert (added(31.99, 8, most) == 65504).all()
    assert added(float("nan"), 2, most).isnan().all()


def test_chance_is_even_and_neighbours_tell_nothing_of_each_other():
    # layers, positions, heads, channels, states
    numbers = torch.stack(
        [chances(seed, torch.arange(500, 564), (4, 16, 64)) for seed in range(40, 48)]
    ).double()
    count = numbers.numel()
    assert (numbers.min(), numbers.max()) == (0, 8191)
    assert torch.equal(numbers, numbers.round())
    unit = ((numbers + 0.5) / 8192 - 0.5) * 12**0.5
    # 8 x 64 tokens are drawn apart, all of their states from one sum of two hashes each
    assert _even(unit)
    assert _even(unit.square() - 1)
    for power in (1, 2):
        moment = unit**power - (power - 1)
        for axis in range(5):
            for lag in (1, 2, 3):
                one, other = (
                    moment.narrow(axis, first, moment.shape[axis] - lag) for first in (0, lag)
                )
                assert _even(one * other), (power, axis, lag)
    share = torch.bincount(numbers.flatten().int() >> 7, minlength=64) * 64 / count
    assert (share - 1).abs().max() < 0.03


def _even(values):
    """Whether the mean is zero as far as so many tokens can tell, and small."""
    tokens = values.mean((2, 3, 4)).flatten()
    return abs(tokens.mean()) < min(0.05, 4.5 * tokens.std() / len(tokens) ** 0.5)


def test_a_rounded_state_is_one_of_its_neighbours_by_their_distance():
    state = torch.randn(512, 1, 1, 64, generator=torch.Generator().manual_seed(0))
    state = state[:1].expand_as(state)
    found = kept(state, HALF, Rounding(torch.arange(512, dtype=torch.int32), 0)).double()
    exact_ = state.double()
    below = torch.minimum(found, exact_).amax(0), torch.maximum(found, exact_).amin(0)
    gap = 2.0 ** (exact_[0].abs().log2().floor() - 10)
    assert ((found - exact_).abs() < gap).all()
    assert (below[0] <= below[1] + gap).all()
    assert ((found - exact_).mean(0).abs() < 4.5 * gap * 0.5 / 512**0.5).all()


def test_neighbours_change_no_bit(tier):
    layout = Layout.of((1,) * 5)
    x, dt, A, B, C, D, state, rounding = case(layout, SHAPES["odd"])
    alone = []
    for s in range(5):
        own = slice(s, s + 1)
        now, at = state[own].clone(), Rounding(rounding.past_S[own], rounding.seed)
        cpu.step_(x[own], dt[own], A, B[own], C[own], D, now, at)
        alone.append(now)
    cpu.step_(x, dt, A, B, C, D, state, rounding)
    assert torch.equal(state, torch.cat(alone))


@torch.inference_mode()
def test_a_recording_reads_positions_anew(tier):
    layout = Layout.of((1, 1, 1))
    x, dt, A, B, C, D, state, rounding = exact(layout, SHAPES["odd"])
    past_S = rounding.past_S
    own = state.clone()
    wanted = reference.step_(x, dt, A, B, C, D, own, rounding)

    def step():
        return ssd.step_(x, dt, A, B, C, D, state, rounding)

    recording = record(step, [x, state, past_S])
    assert recording.why_not is None
    for _ in range(4):
        assert torch.equal(state, own)
        torch.testing.assert_close(recording.result, wanted, rtol=1e-4, atol=1e-4)
        past_S += 1
        recording.replay()
        wanted = reference.step_(x, dt, A, B, C, D, own, rounding)


def test_without_native_kernels_it_is_the_same(monkeypatch):
    layout = Layout.of((9, 1, 4))
    inputs = exact(layout, SHAPES["wide"])
    x, dt, A, B, _, _, state, rounding = inputs
    _, states = stepped(cpu, inputs, layout)
    monkeypatch.setenv("FATHOM_TIER", "none")
    assert native.tier() is None
    ssd.replay(state, x, dt, A, B, layout, torch.tensor([5, 0, 4]), rounding)
    assert torch.equal(state, after(states, [5, 0, 4]))


def test_what_does_not_fit_is_refused_by_name(tier):
    layout = Layout.of((1, 1))
    x, dt, A, B, C, D, state, rounding = case(layout, SHAPES["odd"])
    for backend in (cpu, reference):
        with pytest.raises(KernelError, match="no rounding was given"):
            backend.step_(x, dt, A, B, C, D, state.clone())
    with pytest.raises(
        KernelError, match=r"ssd\.step: state must be torch.float32 or torch.float16"
    ):
        cpu.step_(x, dt, A, B, C, D, state.bfloat16(), rounding)
    with pytest.raises(KernelError, match=r"ssd\.peek: past must have the shape \[2\]"):
        cpu.peek(x, dt, A, B, C, D, layout, state, Rounding(rounding.past_S[:1], 0))
    wrong = Rounding(rounding.past_S.long(), 0)
    with pytest.raises(KernelError, match=r"ssd\.replay: past must be torch.int32"):
        cpu.replay(state, x, dt, A, B, layout, torch.tensor([1, 1]), wrong)


def test_one_rounding_to_nearest_keeps_within_the_range():
    wide = torch.tensor([[[[1e9, -1e9, 1.0006, float("nan")]]]])
    narrow = ssd.nearest(wide, HALF)[0, 0, 0]
    assert narrow[:3].tolist() == [65504, -65504, 1 + 2.0**-10]
    assert narrow[3].isnan()
    assert ssd.nearest(wide, torch.float32) is wide

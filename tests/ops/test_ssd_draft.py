"""Laws of what drafts ask of the native scan: `peek` and `replay` are steps, to the bit.

Promise: every tier that this processor can run is held to them; inputs are parts of wider rows, and
what lies between rows or past a count is NaN.
"""

import pytest
import torch

from fathom.errors import KernelError
from fathom.ops import native, ssd
from fathom.ops.layout import Layout
from fathom.ops.native.recorder import record
from fathom.ops.ssd import cpu, reference

SHAPES = {"even": (4, 16, 2, 16), "odd": (6, 7, 2, 33), "one": (1, 3, 1, 1), "wide": (3, 65, 3, 20)}
"""H, P, G, N."""
LENGTHS = [(1,), (5,), (9,), (3, 3, 3), (9, 1, 4), (1, 2, 3, 4, 5, 6, 7, 8, 9, 4, 4, 1, 8, 2, 9, 3)]
TYPES = [torch.float32, torch.bfloat16]


def case(layout, shape, dtype=torch.float32, seed=0):
    """x, dt, A, B, C, D and states; x, B and C lie in the rows of one projection."""
    H, P, G, N = shape
    g = torch.Generator().manual_seed(seed)
    T = layout.tokens
    widths = [3, H * P, 5, G * N, G * N, 2]
    whole = torch.randn(T, sum(widths), generator=g).to(dtype)
    before, x, between, B, C, after = whole.split(widths, dim=1)
    for gap in (before, between, after):
        gap.fill_(torch.nan)
    steps = torch.full((T, H + 1), torch.nan)
    steps[:, :H] = torch.rand(T, H, generator=g) * 0.5
    return [
        x.unflatten(1, (H, P)),
        steps[:, :H],
        -torch.rand(H, generator=g) * 8,
        B.unflatten(1, (G, N)),
        C.unflatten(1, (G, N)),
        torch.randn(H, generator=g).to(dtype),
        torch.randn(layout.sequences, H, P, N, generator=g),
    ]


def stepped(inputs, layout):
    """Outputs [T, H, P] of `step_`, token by token; each sequence's states before and after all."""
    x, dt, A, B, C, D, first = inputs
    y, states = torch.empty(x.shape, dtype=x.dtype), []
    for s, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
        states.append([first[s : s + 1].clone()])
        for t in range(start, start + length):
            own, now = slice(t, t + 1), states[-1][-1].clone()
            y[own] = cpu.step_(x[own], dt[own], A, B[own], C[own], D, now)
            states[-1].append(now)
    return y, states


def after(states, counts):
    """States [S, H, P, N] after so many tokens of each sequence."""
    return torch.cat([own[count] for own, count in zip(states, counts, strict=True)])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_a_peek_equals_steps_to_the_bit_and_changes_no_state(tier, threads, lengths, shape, dtype):
    layout = Layout.of(lengths, range(len(lengths)))
    inputs = case(layout, shape, dtype)
    before = inputs[6].clone()
    wanted, _ = stepped(inputs, layout)
    for count in (1, 2, 5):
        threads(count)
        y = cpu.peek(*inputs[:6], layout, inputs[6])
        assert y.dtype == dtype
        assert torch.equal(y, wanted)
        assert torch.equal(inputs[6], before)
    wide = [t.double() for t in inputs]
    close = reference.peek(*wide[:6], layout, wide[6])
    bound = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(y.double(), close, rtol=bound, atol=bound)


def test_neighbours_change_no_bit_of_a_peek(tier):
    layout = Layout.of(LENGTHS[-1])
    x, dt, A, B, C, D, state = case(layout, SHAPES["odd"])
    whole = cpu.peek(x, dt, A, B, C, D, layout, state)
    for s, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
        own = slice(start, start + length)
        alone = Layout.of([length])
        y = cpu.peek(x[own], dt[own], A, B[own], C[own], D, alone, state[s : s + 1])
        assert torch.equal(y, whole[own])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_a_replay_equals_steps_to_the_bit(tier, threads, lengths, shape, dtype):
    layout = Layout.of(lengths)
    inputs = case(layout, shape, dtype)
    _, states = stepped(inputs, layout)
    for shift in range(max(lengths) + 1):
        x, dt, A, B, _, _, before = case(layout, shape, dtype)
        counts = [(shift + s) % (n + 1) for s, n in enumerate(lengths)]
        wanted = after(states, counts)
        # what lies past a sequence's count may be anything
        for start, length, count in zip(layout.starts, lengths, counts, strict=True):
            for kept in (x, dt, B):
                kept[start + count : start + length] = torch.nan
        counts_S = torch.tensor(counts, dtype=(torch.int32, torch.int64)[shift % 2])
        for count in (1, 2, 5):
            threads(count)
            state = before.clone()
            cpu.replay(state, x, dt, A, B, layout, counts_S)
            assert torch.equal(state, wanted)
        state = before.double()
        wide = x.double(), dt.double(), A.double(), B.double()
        reference.replay(state, *wide, layout, counts_S)
        torch.testing.assert_close(state, wanted.double(), rtol=1e-5, atol=1e-5)


def test_more_counts_as_all_there_are(tier):
    layout = Layout.of((2, 6))
    x, dt, A, B, _, _, before = case(layout, SHAPES["odd"])
    all_of_them, more = before.clone(), before.clone()
    cpu.replay(all_of_them, x, dt, A, B, layout, torch.tensor([2, 6]))
    cpu.replay(more, x, dt, A, B, layout, torch.tensor([3, 600]))
    assert torch.equal(more, all_of_them)


@pytest.mark.parametrize("lengths", [(4, 4, 4), (9, 1, 4)], ids=str)
@pytest.mark.parametrize("dtype", TYPES)
@torch.inference_mode()
def test_a_recording_reads_tokens_states_and_counts_anew(tier, dtype, lengths):
    layout = Layout.of(lengths)
    x, dt, A, B, C, D, state = case(layout, SHAPES["odd"], dtype)
    counts = torch.zeros(3, dtype=torch.int64)
    buffers = [x, dt, B, C, state, counts]

    def step():
        y = ssd.peek(x, dt, A, B, C, D, layout, state)
        ssd.replay(state, x, dt, A, B, layout, counts)
        return y

    recording = None
    for number in range(6):
        fresh = case(layout, SHAPES["odd"], dtype, seed=number)
        for buffer, value in zip((x, dt, B, C), (fresh[i] for i in (0, 1, 3, 4)), strict=True):
            buffer.copy_(value)
        counts.copy_(torch.tensor([(number + s) % (n + 1) for s, n in enumerate(lengths)]))
        wanted, states = stepped([x, dt, A, B, C, D, state], layout)
        if recording is None:
            recording = record(step, buffers)
            assert recording.why_not is None
            assert recording.calls == 2
        else:
            recording.replay()
        assert torch.equal(recording.result, wanted)
        assert torch.equal(state, after(states, counts.tolist()))


def test_what_does_not_fit_is_refused_by_name(tier):
    layout = Layout.of((3, 5))
    x, dt, A, B, C, D, state = case(layout, SHAPES["odd"])
    counts = torch.tensor([1, 2])
    with pytest.raises(KernelError, match=r"ssd\.peek: x must have the shape \[8, 6, 7\]"):
        cpu.peek(x[:4], dt, A, B, C, D, layout, state)
    with pytest.raises(KernelError, match=r"ssd\.peek: C must have the shape"):
        cpu.peek(x, dt, A, B, C[:, :1], D, layout, state)
    with pytest.raises(KernelError, match=r"ssd\.peek: state must have the shape \[2, 6, 7, 33\]"):
        cpu.peek(x, dt, A, B, C, D, layout, state[:1])
    with pytest.raises(KernelError, match=r"ssd\.replay: state must be contiguous"):
        cpu.replay(state.transpose(0, 1).contiguous().transpose(0, 1), x, dt, A, B, layout, counts)
    with pytest.raises(KernelError, match=r"ssd\.replay: counts must be torch.int32 or"):
        cpu.replay(state, x, dt, A, B, layout, counts.double())
    with pytest.raises(KernelError, match=r"ssd\.replay: dt must be torch.float32"):
        cpu.replay(state, x, dt.bfloat16(), A, B, layout, counts)
    with pytest.raises(KernelError, match="groups must divide"):
        cpu.replay(state, x, dt, A, B.repeat(1, 2, 1), layout, counts)


def test_no_gradient_flows_and_training_may_go_on():
    layout = Layout.of((2, 1))
    x, dt, A, B, C, D, state = case(layout, SHAPES["odd"])
    y = ssd.peek(x.requires_grad_(), dt, A, B, C, D, layout, state)
    ssd.replay(state, x, dt, A, B, layout, torch.tensor([1, 1]))
    assert not y.requires_grad
    assert not state.requires_grad


def test_without_native_kernels_it_is_the_same_to_rounding(monkeypatch):
    layout = Layout.of((9, 1, 4))
    inputs = case(layout, SHAPES["wide"])
    x, dt, A, B, C, D, state = inputs
    wanted, states = stepped(inputs, layout)
    monkeypatch.setenv("FATHOM_TIER", "none")
    assert native.tier() is None
    torch.testing.assert_close(
        ssd.peek(x, dt, A, B, C, D, layout, state), wanted, rtol=1e-4, atol=1e-4
    )
    ssd.replay(state, x, dt, A, B, layout, torch.tensor([5, 0, 4]))
    torch.testing.assert_close(state, after(states, [5, 0, 4]), rtol=1e-4, atol=1e-4)

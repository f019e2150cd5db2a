"""Laws of the scan: backends agree, scan equals steps, packed equals separate, cut anywhere."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.ops import ssd
from fathom.ops.layout import Layout
from fathom.ops.ssd import eager, reference
from fathom.ops.ssd.chunks import chunks

H, P, G, N = 6, 8, 2, 5


def case(layout, seed=0, heads=H, groups=G, state=False):
    """Random inputs of `scan`, decays from hardly any to nearly all."""
    g = torch.Generator().manual_seed(seed)
    T = layout.tokens
    return [
        torch.randn(T, heads, P, generator=g),
        torch.rand(T, heads, generator=g) * 0.5,
        -torch.rand(heads, generator=g) * 8,
        torch.randn(T, groups, N, generator=g),
        torch.randn(T, groups, N, generator=g),
        torch.randn(heads, generator=g),
        torch.randn(layout.sequences, heads, P, N, generator=g) if state else None,
    ]


def scan(backend, layout, chunk):
    """A scan of seven tensors."""
    return lambda *x: backend.scan(*x[:6], layout, chunk, x[6])


@pytest.mark.parametrize("state", [False, True], ids=["fresh", "continued"])
@pytest.mark.parametrize(
    "lengths", [(1,), (63,), (64,), (1000,), (1, 2, 3), (64, 1, 130, 63), (16, 16, 16)]
)
def test_the_hand_written_backward_agrees_with_autograd(assert_agrees, lengths, state):
    layout = Layout.of(lengths)
    inputs = case(layout, state=state)
    assert_agrees(scan(eager, layout, 16), scan(reference, layout, 16), inputs)


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (3, 3), (5, 1), (12, 4)])
@pytest.mark.parametrize("chunk", [1, 7, 128])
def test_backends_agree_for_any_heads_groups_and_chunk(assert_agrees, heads, groups, chunk):
    layout = Layout.of((37, 5))
    inputs = case(layout, heads=heads, groups=groups)
    assert_agrees(scan(eager, layout, chunk), scan(reference, layout, chunk), inputs)


def stepped(inputs, layout):
    """Each sequence token by token."""
    x, dt, A, B, C, D, state = inputs
    ys, finals = [], []
    for sequence, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
        now = torch.zeros(1, *x.shape[1:], B.shape[-1], dtype=x.dtype)
        if state is not None:
            now = state[sequence : sequence + 1]
        for t in range(start, start + length):
            y, now = reference.step(
                x[t : t + 1], dt[t : t + 1], A, B[t : t + 1], C[t : t + 1], D, now
            )
            ys.append(y)
        finals.append(now)
    return torch.cat(ys), torch.cat(finals)


@pytest.mark.parametrize("state", [False, True], ids=["fresh", "continued"])
@pytest.mark.parametrize("lengths", [(1,), (64,), (65, 3, 130)])
def test_scan_equals_steps(lengths, state):
    layout = Layout.of(lengths, [5 * i for i in range(len(lengths))])
    inputs = [None if x is None else x.double() for x in case(layout, state=state)]
    y, final = reference.scan(*inputs[:6], layout, 32, inputs[6])
    y_steps, final_steps = stepped(inputs, layout)
    torch.testing.assert_close(y, y_steps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(final, final_steps, rtol=1e-9, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(0, 3))
def test_packed_equals_separate(lengths, seed):
    layout = Layout.of(lengths)
    x, dt, A, B, C, D, _ = case(layout, seed)
    y, final = ssd.scan(x, dt, A, B, C, D, layout, 16)
    for sequence, (start, length) in enumerate(zip(layout.starts, lengths, strict=True)):
        part = slice(start, start + length)
        alone, state = ssd.scan(x[part], dt[part], A, B[part], C[part], D, Layout.of([length]), 16)
        torch.testing.assert_close(y[part], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(final[sequence], state[0], rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_cutting_anywhere_changes_nothing(pieces):
    total = sum(pieces)
    x, dt, A, B, C, D, _ = case(Layout.of([total]))
    whole, final = ssd.scan(x, dt, A, B, C, D, Layout.of([total]), 16)
    state, done, ys = torch.zeros(1, H, P, N), 0, []
    for piece in pieces:
        part = slice(done, done + piece)
        y, state = ssd.scan(
            x[part], dt[part], A, B[part], C[part], D, Layout.of([piece], [done]), 16, state
        )
        ys.append(y)
        done += piece
    torch.testing.assert_close(torch.cat(ys), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, final, rtol=1e-4, atol=1e-5)


def test_chunks_begin_at_multiples_of_the_chunk_from_the_first_token():
    cut = chunks(Layout.of([10, 20], past=[5, 0]), 8)
    chunk_T = (cut.cell_T // 8).tolist()
    # the first sequence has seen 5 tokens: 3 more reach its first boundary
    begins = [t for t in range(30) if t == 0 or chunk_T[t] != chunk_T[t - 1]]
    assert begins == [0, 3, 10, 18, 26]
    assert (cut.cell_T % 8)[begins].tolist() == [0] * 5


def test_extreme_decays_stay_finite():
    layout = Layout.of([200])
    x, dt, A, B, C, D, _ = case(layout)
    for backend in (eager, reference):
        y, final = backend.scan(x, dt * 200, A * 10, B, C, D, layout, 64, None)
        assert torch.isfinite(y).all()
        assert torch.isfinite(final).all()


def test_bf16_inputs_keep_their_type_and_fp32_states():
    layout = Layout.of([70])
    x, dt, A, B, C, D, _ = case(layout)
    narrow = x.bfloat16(), dt, A, B.bfloat16(), C.bfloat16(), D
    y, final = ssd.scan(*narrow, layout, 16)
    wide, _ = ssd.scan(*(value.float() for value in narrow), layout, 16)
    assert y.dtype == torch.bfloat16
    assert final.dtype == torch.float32
    torch.testing.assert_close(y, wide.bfloat16())


def test_a_step_in_place_is_the_step():
    x, dt, A, B, C, D, state = case(Layout.of((1, 1, 1)), state=True)
    y, after = ssd.step(x, dt, A, B, C, D, state)
    assert torch.equal(ssd.step_(x, dt, A, B, C, D, state), y)
    assert torch.equal(state, after)


@pytest.mark.parametrize("lengths", [(1,), (9,), (4, 4), (3, 1, 9)])
def test_a_peek_is_what_steps_would_say(lengths):
    layout = Layout.of(lengths)
    inputs = [x.double() for x in case(layout, state=True)]
    before = inputs[6].clone()
    wanted, _ = stepped(inputs, layout)
    y = reference.peek(*inputs[:6], layout, inputs[6])
    torch.testing.assert_close(y, wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(inputs[6], before)


def test_replay_takes_each_sequence_its_own_number_of_steps():
    x, dt, A, B, C, D, before = case(Layout.of((3, 4)), state=True)
    state = before.clone()
    ssd.replay(state, x, dt, A, B, Layout.of((3, 4)), torch.tensor([0, 3]))
    assert torch.equal(state[0], before[0])
    now = before[1:]
    for t in range(3, 6):
        one = slice(t, t + 1)
        _, now = ssd.step(x[one], dt[one], A, B[one], C[one], D, now)
    torch.testing.assert_close(state[1:], now, rtol=1e-5, atol=1e-5)


def test_step_sizes_are_positive_fp32_without_a_clamp():
    raw = torch.tensor([[-30.0, 0.0, 100.0]], dtype=torch.bfloat16)
    steps = ssd.step_sizes(raw, torch.zeros(3, dtype=torch.bfloat16))
    wanted = torch.tensor([[9.357623e-14, 0.6931472, 100.0]])
    torch.testing.assert_close(steps, wanted, rtol=1e-5, atol=0.0)

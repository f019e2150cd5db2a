"""Laws of the native scan: the reference's values and gradients, the same bits for any threads.

Promise: every tier that this processor can run is held to them; memory that nobody wrote is NaN.
What drafts ask, `peek` and `replay`, is `test_ssd_draft.py`.
"""

import pytest
import torch

from fathom.errors import KernelError
from fathom.ops import native
from fathom.ops.layout import Layout
from fathom.ops.ssd import cpu, reference

TIERS = native.runnable()
SHAPES = {"even": (4, 16, 2, 16), "odd": (6, 7, 2, 33), "one": (1, 3, 1, 1), "wide": (3, 65, 3, 20)}
"""H, P, G, N."""
RAGGED = (64, 1, 130, 63)


@pytest.fixture(params=TIERS)
def tier(request, monkeypatch):
    monkeypatch.setenv("FATHOM_TIER", request.param)
    return request.param


def case(layout, shape, state=True, seed=0):
    """Inputs of `scan`, decays from hardly any to nearly all."""
    H, P, G, N = shape
    g = torch.Generator().manual_seed(seed)
    T = layout.tokens
    return [
        torch.randn(T, H, P, generator=g),
        torch.rand(T, H, generator=g) * 0.5,
        -torch.rand(H, generator=g) * 8,
        torch.randn(T, G, N, generator=g),
        torch.randn(T, G, N, generator=g),
        torch.randn(H, generator=g),
        torch.randn(layout.sequences, H, P, N, generator=g) if state else None,
    ]


def scan(backend, layout, chunk):
    """A scan of seven tensors."""
    return lambda *x: backend.scan(*x[:6], layout, chunk, x[6])


def learn(inputs, layout, chunk=32):
    """y, final states and all gradients of the native scan, for fixed weights of the outputs."""
    own = [None if x is None else x.clone().requires_grad_() for x in inputs]
    y, final = cpu.scan(*own[:6], layout, chunk, own[6])
    g = torch.Generator().manual_seed(1)
    outputs = [torch.randn(out.shape, generator=g).to(out.dtype) for out in (y, final)]
    torch.autograd.backward([y, final], outputs)
    return [y.detach(), final.detach()] + [x.grad for x in own if x is not None]


def assert_same_bits(got, wanted):
    for index, (have, want) in enumerate(zip(got, wanted, strict=True)):
        assert torch.equal(have, want), f"output or gradient {index} differs"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("lengths", [(1,), (63,), (64,), RAGGED, (32, 32)])
def test_values_and_gradients_are_the_references(assert_agrees, tier, lengths, shape):
    layout = Layout.of(lengths, [3 * i for i in range(len(lengths))])
    for state in (False, True):
        inputs = case(layout, shape, state)
        assert_agrees(scan(cpu, layout, 32), scan(reference, layout, 32), inputs)


def test_a_thousand_tokens_and_wide_chunks(assert_agrees, tier):
    layout = Layout.of((1000,))
    inputs = case(layout, SHAPES["even"])
    assert_agrees(scan(cpu, layout, 128), scan(reference, layout, 128), inputs)


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_any_chunk_will_do(assert_agrees, tier, chunk):
    layout = Layout.of((37, 5), (2, 0))
    inputs = case(layout, SHAPES["odd"])
    assert_agrees(scan(cpu, layout, chunk), scan(reference, layout, chunk), inputs)


@pytest.mark.parametrize("missing", ["y", "states"])
def test_an_output_without_gradient_counts_as_zero(tier, missing):
    layout = Layout.of(RAGGED)
    grads = []
    for backend in (cpu, reference):
        own = [x.clone().requires_grad_() for x in case(layout, SHAPES["odd"])]
        y, final = scan(backend, layout, 32)(*own)
        (final if missing == "y" else y).square().sum().backward()
        grads.append([torch.zeros_like(x) if x.grad is None else x.grad for x in own])
    for have, want in zip(*grads, strict=True):
        assert (have - want).norm() <= 1e-4 * want.norm().clamp_min(0.1)


@pytest.mark.parametrize("state", [False, True], ids=["fresh", "continued"])
@pytest.mark.parametrize("lengths", [(300,), RAGGED, (1, 2, 1)])
def test_any_number_of_threads_gives_the_same_bits(tier, threads, lengths, state):
    layout = Layout.of(lengths)
    inputs = case(layout, SHAPES["odd"], state)
    threads(1)
    wanted = learn(inputs, layout)
    silent = scan(cpu, layout, 32)(*inputs)
    assert_same_bits(silent, wanted[:2])
    for count in (2, 5, 16):
        threads(count)
        assert_same_bits(learn(inputs, layout), wanted)
        assert_same_bits(scan(cpu, layout, 32)(*inputs), silent)


def test_neighbours_change_no_bit(tier, threads):
    layout = Layout.of(RAGGED)
    x, dt, A, B, C, D, state = case(layout, SHAPES["odd"])
    threads(2)
    packed = learn([x, dt, A, B, C, D, state], layout)
    for s, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
        part = slice(start, start + length)
        y, final = cpu.scan(
            x[part], dt[part], A, B[part], C[part], D, Layout.of([length]), 32, state[s : s + 1]
        )
        assert torch.equal(y, packed[0][part])
        assert torch.equal(final[0], packed[1][s])


def test_bf16_is_widened_exactly_and_rounded_once(tier):
    layout = Layout.of(RAGGED)
    x, dt, A, B, C, D, state = case(layout, SHAPES["odd"])
    narrow = [x.bfloat16(), dt, A, B.bfloat16(), C.bfloat16(), D.bfloat16(), state]
    got = learn(narrow, layout)
    # the outputs' weights are rounded too, so the wide pass is given the same ones
    wide = [t.float() for t in narrow]
    own = [t.clone().requires_grad_() for t in wide]
    y, final = cpu.scan(*own[:6], layout, 32, own[6])
    g = torch.Generator().manual_seed(1)
    weights = torch.randn(y.shape, generator=g).bfloat16().float()
    torch.autograd.backward([y, final], [weights, torch.randn(final.shape, generator=g)])
    wanted = [y.detach(), final.detach()] + [t.grad for t in own]
    types = [t.dtype for t in (x.bfloat16(), final)] + [t.dtype for t in narrow]
    assert [t.dtype for t in got] == types
    assert_same_bits(got, [t.to(kind) for t, kind in zip(wanted, types, strict=True)])


def test_rows_may_lie_apart(tier):
    """x, B, C as parts of one projection, as the model has them."""
    layout = Layout.of(RAGGED)
    H, P, G, N = shape = SHAPES["odd"]
    x, dt, A, B, C, D, state = case(layout, shape)
    wanted = learn([x, dt, A, B, C, D, state], layout)
    T = layout.tokens
    whole = torch.full((T, 3 + H * P + 2 * G * N + H), torch.nan)
    whole[:, 3:] = torch.cat([x.flatten(1), B.flatten(1), C.flatten(1), dt], 1)
    _, x, B, C, dt = whole.split([3, H * P, G * N, G * N, H], 1)
    views = [x.unflatten(1, (H, P)), dt, A, B.unflatten(1, (G, N)), C.unflatten(1, (G, N)), D]
    assert not views[0].is_contiguous()
    leaves = [v.detach().requires_grad_() for v in (*views, state)]
    y, final = cpu.scan(*leaves[:6], layout, 32, leaves[6])
    g = torch.Generator().manual_seed(1)
    torch.autograd.backward([y, final], [torch.randn(o.shape, generator=g) for o in (y, final)])
    assert_same_bits([y.detach(), final.detach()] + [v.grad for v in leaves], wanted)


def test_extreme_decays_stay_finite(tier):
    layout = Layout.of((200,))
    x, dt, A, B, C, D, state = case(layout, SHAPES["even"])
    for strength in (0.0, 1e-30, 2000.0):
        outcome = learn([x, dt * strength, A, B, C, D, state], layout, 128)
        assert all(torch.isfinite(value).all() for value in outcome)


def step_case(sequences, shape, seed=0):
    """Inputs of `step`."""
    return case(Layout.of((1,) * sequences), shape, seed=seed)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("sequences", [1, 5])
def test_a_step_is_the_references(tier, sequences, shape):
    inputs = step_case(sequences, shape)
    y, state = cpu.step(*inputs)
    y_want, state_want = reference.step(*(t.double() for t in inputs))
    torch.testing.assert_close(y.double(), y_want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state.double(), state_want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_step_in_place_is_the_step_whatever_the_threads_and_neighbours(tier, threads, shape):
    *inputs, before = step_case(16, shape)
    threads(1)
    y, after = cpu.step(*inputs, before)
    for count in (1, 2, 5, 16):
        threads(count)
        state = before.clone()
        assert_same_bits([cpu.step_(*inputs, state), state], [y, after])
    x, dt, A, B, C, D = inputs
    own = slice(3, 4)
    alone, state = cpu.step(x[own], dt[own], A, B[own], C[own], D, before[own])
    assert_same_bits([alone, state], [y[own], after[own]])


def test_a_step_takes_the_models_types_and_rows_that_lie_apart(tier):
    H, P, G, N = SHAPES["odd"]
    x, dt, A, B, C, D, state = step_case(5, SHAPES["odd"])
    whole = torch.cat([x.flatten(1), B.flatten(1), C.flatten(1)], 1).bfloat16()
    x, B, C = whole.split([H * P, G * N, G * N], 1)
    x, B, C, D = (
        x.unflatten(1, (H, P)),
        B.unflatten(1, (G, N)),
        C.unflatten(1, (G, N)),
        D.bfloat16(),
    )
    y, after = cpu.step(x, dt, A, B, C, D, state)
    wide, same = cpu.step(*(t.float().contiguous() for t in (x, dt, A, B, C, D)), state)
    assert y.dtype == torch.bfloat16
    assert_same_bits([y, after], [wide.bfloat16(), same])


def test_a_step_can_be_learned_from(tier):
    inputs = [t.requires_grad_() for t in step_case(2, SHAPES["odd"])]
    y, _ = cpu.step(*inputs)
    y.sum().backward()
    assert all(t.grad is not None for t in inputs)


def test_the_scan_equals_steps(tier):
    layout = Layout.of((70, 3))
    x, dt, A, B, C, D, state = case(layout, SHAPES["odd"])
    y, final = cpu.scan(x, dt, A, B, C, D, layout, 32, state)
    for s, (start, length) in enumerate(zip(layout.starts, layout.lengths, strict=True)):
        now = state[s : s + 1].clone()
        for t in range(start, start + length):
            own = slice(t, t + 1)
            one = cpu.step_(x[own], dt[own], A, B[own], C[own], D, now)
            torch.testing.assert_close(one, y[own], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(now, final[s : s + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 63, 64, 1000])
@pytest.mark.parametrize("heads", [1, 6, 33])
def test_step_sizes_are_the_references(assert_agrees, tier, tokens, heads):
    g = torch.Generator().manual_seed(0)
    raw, bias = torch.randn(tokens, heads, generator=g) * 20, torch.randn(heads, generator=g)
    assert_agrees(cpu.step_sizes, reference.step_sizes, [raw, bias], 1e-5)


def test_step_sizes_read_parts_of_a_projection_and_bf16(tier, threads):
    g = torch.Generator().manual_seed(0)
    whole, bias = torch.randn(300, 50, generator=g).bfloat16(), torch.randn(6, generator=g)
    raw = whole[:, 44:].detach().requires_grad_()
    bias = bias.bfloat16().requires_grad_()
    outcomes = []
    for count in (1, 2, 5, 16):
        threads(count)
        steps = cpu.step_sizes(raw, bias)
        outcomes.append([steps.detach(), *torch.autograd.grad(steps.square().sum(), [raw, bias])])
        assert_same_bits(outcomes[-1], outcomes[0])
    assert [t.dtype for t in outcomes[0]] == [torch.float32, torch.bfloat16, torch.bfloat16]
    torch.testing.assert_close(outcomes[0][0], reference.step_sizes(raw, bias).detach())


def test_what_does_not_fit_is_refused_by_name(tier):
    layout = Layout.of((8,))
    x, dt, A, B, C, D, state = case(layout, SHAPES["odd"])
    wrong = {
        "ssd.scan: x must have the shape": [x[:4], dt, A, B, C, D, state],
        "ssd.scan: dt must be torch.float32": [x, dt.bfloat16(), A, B, C, D, state],
        "ssd.scan: C must have dense rows": [x, dt, A, B, C.transpose(1, 2), D, state],
        "ssd.scan: state must be torch.float32": [x, dt, A, B, C, D, state.double()],
        "groups must divide": [x, dt, A, B.repeat(1, 2, 1), C.repeat(1, 2, 1), D, state],
    }
    wrong["ssd.scan: C must have dense rows"][4] = torch.randn(8, 33, 2).transpose(1, 2)
    for message, inputs in wrong.items():
        with pytest.raises(KernelError, match=message):
            scan(cpu, layout, 32)(*inputs)
    with pytest.raises(KernelError, match=r"ssd\.step: state must have the shape"):
        cpu.step_(*step_case(2, SHAPES["odd"])[:6], state)


def test_a_recorded_step_reads_its_buffers_anew(tier):
    inputs = step_case(3, SHAPES["odd"])
    *rest, state = inputs
    tape = native.kernels().Tape()
    before = state.clone()
    tape.begin()
    y = cpu.step_(*rest, state)
    tape.end()
    assert len(tape) == 1
    wanted, twice = cpu.step(*rest, cpu.step(*rest, before)[1])
    tape.replay()
    assert_same_bits([y, state], [wanted, twice])

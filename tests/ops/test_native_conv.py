"""Laws of the native convolution: equal to the reference on every tier, the same bits always."""

import pytest
import torch

from fathom.errors import KernelError
from fathom.ops import conv, native
from fathom.ops.conv import cpu, eager, reference
from fathom.ops.layout import Layout
from fathom.ops.native.recorder import record

LENGTHS = [(1,), (3,), (64,), (300,), (1, 1, 1), (2, 70, 1, 3, 257, 31)]


def case(tokens, channels, taps=4, sequences=None, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, channels, generator=g).to(dtype)
    weight, bias = torch.randn(channels, taps, generator=g), torch.randn(channels, generator=g)
    tail = torch.randn(sequences or 1, taps - 1, channels, generator=g).to(dtype)
    return [x, weight.to(dtype), bias.to(dtype), tail if sequences else None]


@pytest.mark.parametrize(("taps", "channels"), [(2, 12), (4, 1), (4, 37), (4, 300), (5, 37)])
@pytest.mark.parametrize("tail", [False, True], ids=["fresh", "continued"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_it_is_the_reference(tier, assert_agrees, lengths, tail, taps, channels):
    layout = Layout.of(lengths)
    assert_agrees(
        lambda x, w, b, t: cpu.causal_conv(x, w, b, layout, t),
        lambda x, w, b, t: reference.causal_conv(x, w, b, layout, t),
        case(layout.tokens, channels, taps, len(lengths) if tail else None),
        1e-5,
    )


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_may_be_mixed_and_a_result_is_rounded_once(tier, dtype, weight_dtype):
    layout = Layout.of([5, 1, 40])
    x, weight, bias, tail = case(46, 40, 4, 3, dtype)
    weight = weight.to(weight_dtype)
    got = cpu.causal_conv(x, weight, bias, layout, tail)
    want = reference.causal_conv(x, weight, bias, layout, tail)
    torch.testing.assert_close(got, want)


def test_the_input_may_be_a_slice_of_wider_rows(tier, assert_agrees):
    layout = Layout.of([70, 2, 30])
    wide = torch.randn(102, 90, generator=torch.Generator().manual_seed(0))
    _, weight, bias, _ = case(1, 37)

    def sliced(backend):
        def function(wide, weight, bias):
            return backend.causal_conv(wide[:, 20:57], weight, bias, layout, None)

        return function

    assert_agrees(sliced(cpu), sliced(reference), [wide, weight, bias], 1e-5)


def test_a_bf16_gradient_is_the_references_rounded(tier):
    layout = Layout.of([40, 2])
    gradients = []
    for backend in (cpu, reference):
        own = [t.requires_grad_() for t in case(42, 24, 4, 2, torch.bfloat16)]
        y, _ = backend.causal_conv(*own[:3], layout, own[3])
        y.float().square().sum().backward()
        gradients.append([t.grad for t in own])
    for have, want in zip(*gradients, strict=True):
        torch.testing.assert_close(have, want, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("lengths", [(600,), (1,) * 70, (300, 2, 298)])
def test_the_number_of_threads_changes_no_bit(tier, assert_threads_agree, lengths):
    layout = Layout.of(lengths)
    assert_threads_agree(
        lambda x, w, b, t: cpu.causal_conv(x, w, b, layout, t),
        case(layout.tokens, 520, 4, len(lengths)),
    )


def test_sequences_do_not_change_their_neighbours(tier, assert_rows_are_alone):
    x, weight, bias, tail = case(300, 40, 4, 300, torch.bfloat16)
    windows = torch.cat([tail, x[:, None]], 1).flatten(1)

    def function(windows):
        tail, x = windows.unflatten(1, (4, 40)).split([3, 1], dim=1)
        return cpu.causal_conv(x[:, 0], weight, bias, Layout.of([1] * len(x)), tail)

    assert_rows_are_alone(function, windows)


def test_one_sequence_is_the_same_bits_however_it_is_cut(tier):
    x, weight, bias, _ = case(300, 40)
    whole, last = cpu.causal_conv(x, weight, bias, Layout.of([300]), None)
    tail = torch.zeros(1, 3, 40)
    pieces = []
    for piece in x.split([1, 5, 16, 17, 64, 1, 196]):
        y, tail = cpu.causal_conv(piece, weight, bias, Layout.of([len(piece)]), tail)
        pieces.append(y)
    assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(tail, last)


@pytest.mark.parametrize("backend", [cpu, eager, reference], ids=["native", "eager", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_moves_the_tails_on_in_place(backend, dtype):
    x, weight, bias, tail = case(70, 37, 4, 70, dtype)
    y, after = backend.causal_conv(x, weight, bias, Layout.of([1] * 70), tail)
    place, held = tail.data_ptr(), tail.clone()
    got = backend.step_(x, weight, bias, held)
    assert torch.equal(got, y)
    assert torch.equal(held, after)
    backend.step_(x, weight, bias, tail)
    assert tail.data_ptr() == place
    assert torch.equal(tail, after)


def test_a_recorded_step_moves_on_when_it_is_played_again(tier):
    x, weight, bias, tail = case(5, 37, 4, 5)
    tape = native.kernels().Tape()
    tape.begin()
    y = cpu.step_(x, weight, bias, tail)
    tape.end()
    assert len(tape) == 1
    twice = tail.clone()
    want = reference.step_(x.flip(0), weight, bias, twice)
    x.copy_(x.flip(0))
    tape.replay()
    torch.testing.assert_close(y, want)
    assert torch.equal(tail, twice)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("taps", "channels"), [(2, 12), (4, 1), (4, 300), (7, 37)])
@pytest.mark.parametrize("lengths", [(1,), (9,), (3, 3, 3), (9, 1, 4), (*range(1, 10),) * 2])
def test_kept_inputs_leave_the_tails_of_as_many_steps(tier, lengths, taps, channels, dtype):
    layout = Layout.of(lengths)
    wide, weight, bias, before = case(layout.tokens, channels + 5, taps, len(lengths), dtype)
    x, before = wide[:, 2:-3], before[..., :channels].contiguous()
    # each sequence's tails before and after all of its steps
    tails = [[own] for own in before.split(1)]
    for own, start, length in zip(tails, layout.starts, lengths, strict=True):
        for token in x[start : start + length].split(1):
            own.append(own[-1].clone())
            cpu.step_(token, weight[:channels], bias[:channels], own[-1])
    for shift in range(max(lengths) + 1):
        counts = [(shift + s) % (n + 1) for s, n in enumerate(lengths)]
        wanted = torch.cat([own[count] for own, count in zip(tails, counts, strict=True)])
        kept = torch.full_like(wide, torch.nan)[:, 2:-3]
        for start, count in zip(layout.starts, counts, strict=True):
            kept[start : start + count] = x[start : start + count]
        counts_S = torch.tensor(counts, dtype=(torch.int32, torch.int64)[shift % 2])
        for backend in (cpu, eager, reference):
            tail = before.clone()
            backend.keep_(tail, kept, layout, counts_S)
            assert torch.equal(tail, wanted)


@pytest.mark.parametrize("lengths", [(4, 4, 4), (9, 1, 4)], ids=str)
@torch.inference_mode()
def test_a_recording_reads_kept_inputs_and_counts_anew(tier, lengths):
    layout, counts = Layout.of(lengths), torch.zeros(3, dtype=torch.int32)
    x, _, _, tail = case(layout.tokens, 37, 4, 3)
    result = torch.zeros(3, 3, 37)

    def step():
        conv.keep_(tail, x, layout, counts)
        return result.copy_(tail)

    recording = None
    for number in range(7):
        x.copy_(torch.randn(x.shape, generator=torch.Generator().manual_seed(number)))
        counts.copy_(torch.tensor([(number + s) % (n + 1) for s, n in enumerate(lengths)]))
        wanted = tail.clone()
        reference.keep_(wanted, x, layout, counts)
        if recording is None:
            recording = record(step, [x, counts, tail, result])
            assert recording.why_not is None
        else:
            recording.replay()
        assert torch.equal(tail, wanted)
        assert torch.equal(recording.result, wanted)


def test_threads_change_no_tail(tier):
    layout, before = Layout.of([40] * 30), torch.get_num_threads()
    x, _, _, tail = case(1200, 700, 4, 30)
    tails = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        tails.append(tail.clone())
        conv.keep_(tails[-1], x, layout, torch.arange(30))
    torch.set_num_threads(before)
    assert torch.equal(tails[0], tails[1])
    assert torch.equal(tails[0], tails[2])


def test_a_step_lets_no_gradient_through():
    x, weight, bias, tail = case(2, 8, 4, 2)
    y = conv.step_(x.requires_grad_(), weight.requires_grad_(), bias, tail)
    assert not y.requires_grad
    assert not tail.requires_grad


def test_what_is_wrong_is_said_with_its_name():
    x, weight, bias, tail = case(4, 6, 4, 1)
    layout = Layout.of([4])
    with pytest.raises(KernelError, match=r"conv: x must have the shape \[4, 6\]; got \[3, 6\]"):
        cpu.causal_conv(x[:3], weight, bias, layout, None)
    with pytest.raises(KernelError, match=r"conv: x must have dense rows"):
        cpu.causal_conv(torch.zeros(6, 4).T, weight, bias, layout, None)
    with pytest.raises(KernelError, match=r"conv: weight must be contiguous"):
        cpu.causal_conv(x, torch.zeros(4, 6).T, bias, layout, None)
    with pytest.raises(KernelError, match=r"conv: weight must have two taps or more; got 1"):
        cpu.causal_conv(x, weight[:, :1], bias, layout, None)
    with pytest.raises(KernelError, match=r"conv: bias must have the shape \[6\]"):
        cpu.causal_conv(x, weight, bias[:5], layout, None)
    with pytest.raises(KernelError, match=r"conv: tail must have the shape \[1, 3, 6\]"):
        cpu.causal_conv(x, weight, bias, layout, tail[:, :2])
    with pytest.raises(KernelError, match=r"conv: tail must be torch.float32; got torch.bfloat16"):
        cpu.step_(x[:1], weight, bias, tail.bfloat16())
    with pytest.raises(KernelError, match=r"conv: bias must be torch.float32 or torch.bfloat16"):
        cpu.causal_conv(x, weight, bias.double(), layout, None)
    with pytest.raises(KernelError, match=r"conv.keep_: tail must be torch.float32; got torch.bf"):
        cpu.keep_(tail.bfloat16(), x, layout, torch.tensor([1]))
    with pytest.raises(KernelError, match=r"conv.keep_: counts must be torch.int32 or torch.int64"):
        cpu.keep_(tail, x, layout, torch.tensor([1.0]))

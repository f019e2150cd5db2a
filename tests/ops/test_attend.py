"""Laws of attention: backends agree, nobody sees the future or the neighbour.

Promise: pages are poisoned with NaN wherever nothing was stored, tables are scattered, and every
tier that this processor can run is held to the same laws.
"""

from dataclasses import replace

import pytest
import torch

from fathom.errors import KernelError
from fathom.ops import native
from fathom.ops.attend import Pages, cpu, eager, reference
from fathom.ops.layout import Layout

TIERS = native.runnable()
RAGGED = (1, 40, 39, 41, 2, 120, 3)
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


@pytest.fixture(params=TIERS)
def tier(request, monkeypatch):
    """Each tier in turn."""
    monkeypatch.setenv("FATHOM_TIER", request.param)
    return request.param


def case(layout, heads=6, shared=2, width=4, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        torch.randn(layout.tokens, count, width, generator=g).to(dtype)
        for count in (heads, shared, shared)
    ]


def scattered(most, sequences, heads, width, dtype=torch.float32, tokens=32, **scales):
    """Empty pages for `most` tokens of each sequence, in an order that nobody expects."""
    each = -(-most // tokens)
    count = sequences * each + 3
    g = torch.Generator().manual_seed(5)
    places = torch.randperm(count, generator=g)[: sequences * each].int()
    return Pages.empty(
        count,
        heads,
        width,
        places.view(sequences, each),
        torch.zeros(sequences, dtype=torch.int32),
        tokens=tokens,
        dtype=dtype,
        **scales,
    )


def in_pieces(backend, q, k, v, lengths, cuts, pages):
    """Outputs of sequences that come in several calls: `cuts` gives each call's lengths."""
    starts = list(Layout.of(lengths).starts)
    outputs = [[] for _ in lengths]
    with torch.no_grad():
        for cut in cuts:
            layout = Layout.of(cut)
            pieces = [
                torch.cat([x[s : s + n] for s, n in zip(starts, cut, strict=True)])
                for x in (q, k, v)
            ]
            y = backend.attend(*pieces, layout, pages)
            for sequence, part in enumerate(y.split(cut)):
                outputs[sequence].append(part)
            pages.past_S.add_(torch.tensor(cut, dtype=torch.int32))
            starts = [s + n for s, n in zip(starts, cut, strict=True)]
    return torch.cat([torch.cat(parts) for parts in outputs])


def off(got, wanted):
    """Relative distance of all values; NaN where one is NaN."""
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize(("heads", "shared"), [(1, 1), (6, 2), (5, 5), (8, 1)])
@pytest.mark.parametrize("lengths", [(1,), (63,), (64,), (500,), (64, 64), RAGGED])
def test_backends_agree(assert_agrees, lengths, heads, shared):
    layout = Layout.of(lengths)
    assert_agrees(
        lambda q, k, v: eager.attend(q, k, v, layout, None),
        lambda q, k, v: reference.attend(q, k, v, layout, None),
        case(layout, heads, shared),
    )


@pytest.mark.parametrize(
    ("heads", "shared", "width"),
    [(1, 1, 64), (4, 2, 48), (6, 2, 8), (10, 2, 80), (16, 2, 128), (32, 1, 16), (7, 1, 64)],
)
@pytest.mark.parametrize("lengths", [(1,), (63,), (64,), (1000,), RAGGED])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_native_forward_agrees(tier, lengths, heads, shared, width, dtype):
    layout = Layout.of(lengths)
    q, k, v = case(layout, heads, shared, width, dtype)
    wanted = reference.attend(q.double(), k.double(), v.double(), layout, None)
    with torch.no_grad():
        got = cpu.attend(q, k, v, layout, None)
    assert off(got, wanted) < (1e-6 if dtype == torch.float32 else 6e-3)


@pytest.mark.parametrize(
    ("heads", "shared", "width"), [(1, 1, 64), (4, 2, 48), (6, 2, 8), (32, 1, 16), (5, 1, 80)]
)
@pytest.mark.parametrize("lengths", [(1,), (63,), (64,), (1000,), RAGGED])
def test_native_gradients_agree(tier, assert_agrees, lengths, heads, shared, width):
    layout = Layout.of(lengths)
    assert_agrees(
        lambda q, k, v: cpu.attend(q, k, v, layout, None),
        lambda q, k, v: reference.attend(q, k, v, layout, None),
        case(layout, heads, shared, width),
        # a lone token's gradients are zero, but for rounding
        tolerance=5e-6 if layout.tokens > 1 else 1e-4,
    )


@pytest.mark.parametrize("fresh", [1, 2, 17])
@pytest.mark.parametrize("past", [0, 1, 30])
@pytest.mark.parametrize("backend", [eager, reference, cpu])
def test_remembering_equals_reading_again(backend, past, fresh):
    total = past + fresh
    q, k, v = case(Layout.of([total]))
    whole = reference.attend(q, k, v, Layout.of([total]), None)
    pages = scattered(total, 1, 2, 4)
    cuts = [[past], [fresh]] if past else [[fresh]]
    got = in_pieces(backend, q, k, v, [total], cuts, pages)
    torch.testing.assert_close(got, whole, rtol=1e-5, atol=1e-5)
    assert pages.past_S.tolist() == [total]


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("width", [8, 64])
def test_native_cut_anywhere_is_one_pass_bit_for_bit(tier, dtype, width):
    lengths = [700, 30, 1030]
    q, k, v = case(Layout.of(lengths), 6, 2, width, dtype)
    cuts = [[513, 1, 700], [1, 1, 1], [2, 1, 1], [1, 5, 27], [182, 21, 300], [1, 1, 1]]
    assert [sum(cut[s] for cut in cuts) for s in range(3)] == lengths
    once = in_pieces(cpu, q, k, v, lengths, [lengths], scattered(1030, 3, 2, width, dtype))
    cut = in_pieces(cpu, q, k, v, lengths, cuts, scattered(1030, 3, 2, width, dtype, tokens=128))
    fresh = cpu.attend(q, k, v, Layout.of(lengths), None)
    assert torch.equal(once, cut)
    assert torch.equal(once, fresh)


@pytest.mark.parametrize("heads", [1, 2, 8, 32])
@pytest.mark.parametrize("past", [1, 511, 512, 1500])
def test_native_decode_agrees_and_equals_the_row_of_the_prefill(tier, heads, past):
    layout = Layout.of([past + 1])
    q, k, v = case(layout, heads, 1, 64, BF16)
    wanted = reference.attend(*(x.double() for x in (q, k, v)), layout, None)[-1:]
    pages = scattered(past + 1, 1, 1, 64, BF16, tokens=64)
    got = in_pieces(cpu, q, k, v, [past + 1], [[past], [1]], pages)[-1:]
    assert off(got, wanted) < 6e-3
    assert torch.equal(got, cpu.attend(q, k, v, layout, None)[-1:])


@pytest.mark.parametrize("stored", [BF16, FP8])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
@pytest.mark.parametrize("backend", [cpu, eager])
def test_rounded_pages_agree_with_the_reference_on_the_same(tier, backend, stored, dtype):
    lengths = [600, 33]
    q, k, v = case(Layout.of(lengths), 8, 2, 48, dtype)
    k[5] *= 1000
    scales = {"k_scale": 0.37, "v_scale": 2.5} if stored == FP8 else {}
    cuts = [[599, 1], [1, 32]]
    own = scattered(600, 2, 2, 48, stored, **scales)
    same = replace(own, keys=own.keys.clone(), values=own.values.clone())
    same = replace(same, past_S=own.past_S.clone())
    got = in_pieces(backend, q, k, v, lengths, cuts, own)
    wanted = in_pieces(reference, q, k, v, lengths, cuts, same)
    for sequence, tokens in enumerate(lengths):
        for one, other in zip(own.read(sequence, tokens), same.read(sequence, tokens), strict=True):
            assert torch.equal(one, other)
    assert off(got, wanted) < (1e-5 if dtype == torch.float32 else 6e-3)


def test_every_fp8_number_is_read_as_it_is(tier):
    codes = torch.arange(256, dtype=torch.uint8)
    codes = codes[codes & 0x7F != 0x7F].view(FP8).float()
    v = codes.view(-1, 1, 2)
    q = torch.zeros(127, 1, 2)
    pages = scattered(127, 1, 1, 2, FP8)
    with torch.no_grad():
        got = cpu.attend(q, torch.zeros_like(v), v, Layout.of([127]), pages)
    assert torch.equal(pages.read(0, 127)[1], v)
    means = v.double().cumsum(0) / torch.arange(1, 128)[:, None, None]
    torch.testing.assert_close(got.double(), means, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [2, 5, 16])
@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_threads_do_not_change_a_bit(dtype, threads):
    lengths, cuts = [900, 2, 70], [[899, 1, 60], [1, 1, 10]]
    q, k, v = case(Layout.of(lengths), 8, 2, 32, dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = in_pieces(cpu, q, k, v, lengths, cuts, scattered(900, 3, 2, 32, dtype))
        torch.set_num_threads(threads)
        many = in_pieces(cpu, q, k, v, lengths, cuts, scattered(900, 3, 2, 32, dtype))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, many)


def gradients(q, k, v, lengths):
    """Gradients of the three for fixed output weights."""
    own = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    weights = torch.randn(q.shape, generator=torch.Generator().manual_seed(9)).to(q.dtype)
    (cpu.attend(*own, Layout.of(lengths), None) * weights).sum().backward()
    return [x.grad for x in own]


@pytest.mark.parametrize("threads", [2, 5, 16])
def test_threads_do_not_change_a_bit_of_gradients(threads):
    lengths = [300, 1, 70]
    inputs = case(Layout.of(lengths), 6, 2, 48)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gradients(*inputs, lengths)
        torch.set_num_threads(threads)
        many = gradients(*inputs, lengths)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(one, many, strict=True))


def test_a_gradient_that_is_spread_over_tokens_is_taken_as_it_is():
    lengths = [300, 70]
    layout = Layout.of(lengths)
    own = [x.requires_grad_() for x in case(layout, 6, 2, 48)]
    got = torch.autograd.grad(cpu.attend(*own, layout, None).sum(), own)
    wanted = torch.autograd.grad(reference.attend(*own, layout, None).sum(), own)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_gradients_of_bf16_agree(tier):
    lengths = [130, 7]
    inputs = case(Layout.of(lengths), 6, 2, 48, BF16)
    got = gradients(*inputs, lengths)
    own = [x.double().requires_grad_() for x in inputs]
    weights = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(9)).to(BF16)
    (reference.attend(*own, Layout.of(lengths), None) * weights).sum().backward()
    for x, wanted in zip(got, own, strict=True):
        assert x.dtype == BF16
        assert off(x, wanted.grad) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, BF16])
def test_neighbours_do_not_change_a_bit(tier, dtype):
    lengths = [530, 1, 64, 200]
    q, k, v = case(Layout.of(lengths), 6, 2, 48, dtype)
    together = cpu.attend(q, k, v, Layout.of(lengths), None)
    parts = [x.split(lengths) for x in (q, k, v)]
    alone = [
        cpu.attend(q1, k1, v1, Layout.of([n]), None)
        for q1, k1, v1, n in zip(*parts, lengths, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_native_rows_may_be_strided(tier):
    layout = Layout.of([70])
    wide = torch.randn(70, 10 * 16, generator=torch.Generator().manual_seed(2))
    q, k, v = (x.unflatten(-1, (-1, 16)) for x in wide.split([96, 32, 32], -1))
    dense = [x.contiguous() for x in (q, k, v)]
    with torch.no_grad():
        got = cpu.attend(q, k, v, layout, None)
        assert torch.equal(got, cpu.attend(*dense, layout, None))


def test_a_recorded_step_reads_the_lengths_when_it_is_replayed(tier):
    lengths, most = [600, 90], 610
    total = [n + 2 for n in lengths]
    q, k, v = case(Layout.of(total), 4, 2, 32, BF16)
    cuts = [lengths, [1, 1], [1, 1]]
    wanted = in_pieces(cpu, q, k, v, total, cuts, scattered(most, 2, 2, 32, BF16))
    pages = scattered(most, 2, 2, 32, BF16)
    starts = Layout.of(total).starts
    before = [
        torch.cat([x[s : s + n] for s, n in zip(starts, lengths, strict=True)]) for x in (q, k, v)
    ]
    steps = [
        [
            torch.stack([x[s + n + i] for s, n in zip(starts, lengths, strict=True)])
            for x in (q, k, v)
        ]
        for i in range(2)
    ]
    tape = native.kernels().Tape()
    with torch.no_grad():
        cpu.attend(*before, Layout.of(lengths), pages)
        pages.past_S.add_(torch.tensor(lengths, dtype=torch.int32))
        buffers = [x.clone() for x in steps[0]]
        tape.begin()
        y = cpu.attend(*buffers, Layout.of([1, 1]), pages)
        tape.end()
        assert len(tape) == 2
        pages.past_S.add_(1)
        for buffer, x in zip(buffers, steps[1], strict=True):
            buffer.copy_(x)
        tape.replay()
    assert torch.equal(y, torch.stack([wanted[601], wanted[-1]]))


def test_nobody_sees_the_future_or_the_neighbour(tier):
    layout = Layout.of([4, 5])
    q, k, v = case(layout)
    for backend in (cpu, eager):
        k[3], v[3] = 1.0, 1.0
        before = backend.attend(q, k, v, layout, None)
        k[3], v[3] = 50.0, 50.0
        after = backend.attend(q, k, v, layout, None)
        same = (before == after).flatten(1).all(1)
        assert same.tolist() == [True, True, True, False, True, True, True, True, True]


def test_numbers_that_are_none_stay_in_their_sequence(tier):
    layout = Layout.of([600, 5])
    q, k, v = case(layout)
    k[2] = torch.nan
    with torch.no_grad():
        y = cpu.attend(q, k, v, layout, None)
    assert y[2:600].isnan().all()
    assert not y[600:].isnan().any()


def test_what_native_attention_cannot_take_is_named():
    layout = Layout.of([3, 5])
    q, k, v = case(layout)
    pages = scattered(8, 2, 2, 4)
    with pytest.raises(KernelError, match="attend: q has 6 heads, which 4 key-value heads"):
        cpu.attend(q, k.repeat(1, 2, 1), v.repeat(1, 2, 1), layout, None)
    with pytest.raises(KernelError, match=r"attend: q must have the shape \[8, 6, 4\]"):
        cpu.attend(q[:7], k, v, layout, None)
    with pytest.raises(KernelError, match=r"attend: k must have the shape \[8, 2, 4\]"):
        cpu.attend(q, k[:7], v, layout, pages)
    with pytest.raises(KernelError, match=r"attend: v must be torch.float32; got torch.bfloat16"):
        cpu.attend(q, k, v.bfloat16(), layout, pages)
    with pytest.raises(KernelError, match="attend: q must have dense rows"):
        cpu.attend(q.transpose(1, 2).contiguous().transpose(1, 2), k, v, layout, pages)
    with pytest.raises(KernelError, match=r"attend: q must be torch.float32 or torch.bfloat16"):
        cpu.attend(q.double(), k, v, layout, pages)
    with pytest.raises(KernelError, match="attend: pages must hold 1 sequences on the CPU"):
        cpu.attend(q, k, v, Layout.of([8]), pages)
    with pytest.raises(KernelError, match="attend: pages of width 4 cannot hold"):
        cpu.attend(*case(layout, width=6), layout, pages)
    with pytest.raises(KernelError, match=r"attend: k must be torch.float32 as q where gradients"):
        cpu.attend(q.clone().requires_grad_(), k.bfloat16(), v.bfloat16(), layout, None)
    full = replace(pages, past_S=torch.tensor([0, 30], dtype=torch.int32))
    with pytest.raises(ValueError, match="sequence 1 needs 2 pages, its row of table_SB has 1"):
        cpu.attend(q, k, v, layout, full)
    nowhere = replace(pages, table_SB=torch.tensor([[0], [-1]], dtype=torch.int32))
    with pytest.raises(ValueError, match="table_SB names page -1 for sequence 1"):
        cpu.attend(q, k, v, layout, nowhere)


def test_pages_refuse_what_they_cannot_be():
    table, past = torch.zeros(2, 1, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    with pytest.raises(KernelError, match="even width; got 48 tokens of width 8"):
        Pages.empty(2, 1, 8, table, past, tokens=48)
    with pytest.raises(KernelError, match="must both be one of"):
        Pages.empty(2, 1, 8, table, past, dtype=torch.float16)
    with pytest.raises(KernelError, match=r"must be int32; got torch.int64"):
        Pages.empty(2, 1, 8, table.long(), past)
    with pytest.raises(KernelError, match=r"table_SB must be contiguous of shape \[3, 1\]"):
        Pages.empty(2, 1, 8, table, torch.zeros(3, dtype=torch.int32))

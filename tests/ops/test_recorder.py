"""Laws of fathom/ops/native/recorder.py: a replay is the step, or there is none and it says why."""

import psutil
import pytest
import torch
from torch.nn import functional as F

from fathom.ops import native, norm
from fathom.ops.native.recorder import CONSTANTS, record

TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=native.runnable())
def tier(request, monkeypatch):
    """Every tier that this processor can run."""
    monkeypatch.setenv("FATHOM_TIER", request.param)


class Toy:
    """A step with a state, a residual stream, rows picked by token, and a counter."""

    def __init__(self, sequences, dtype, width=40):
        generator = torch.Generator().manual_seed(sequences)
        self.tokens = torch.zeros(sequences, dtype=torch.int64)
        self.table = torch.randn(11, width, generator=generator).to(dtype)
        self.weight = torch.randn(width, generator=generator)
        self.state = torch.zeros(sequences, width, dtype=dtype)
        self.past = torch.zeros(sequences, dtype=torch.int32)

    def buffers(self):
        return [self.tokens, self.state, self.past]

    def step(self):
        scale = -self.weight.exp()
        x = F.embedding(self.tokens, self.table)
        for _ in range(3):
            x = x + norm.rms_norm(x, scale, 1e-5)
        left, right = x.split([8, x.shape[1] - 8], dim=-1)
        x = torch.cat([right, left], dim=-1)
        self.state.copy_(norm.rms_norm(x + self.state, self.weight, 1e-5))
        self.past.add_(1)
        turned = self.state.T.contiguous().T
        return (turned.reshape(x.shape) + x).float()


def _fill(toy, number):
    generator = torch.Generator().manual_seed(100 + number)
    toy.tokens.copy_(torch.randint(0, 11, toy.tokens.shape, generator=generator))


@pytest.mark.usefixtures("tier")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("sequences", [1, 3, 16])
@torch.inference_mode()
def test_a_replay_is_the_step_bit_for_bit(sequences, dtype):
    plain, recorded = Toy(sequences, dtype), Toy(sequences, dtype)
    recording = None
    for number in range(60):
        _fill(plain, number)
        _fill(recorded, number)
        wanted = plain.step()
        if recording is None:
            recording = record(recorded.step, recorded.buffers())
            assert recording.why_not is None
        else:
            recording.replay()
        assert torch.equal(recording.result, wanted)
        assert torch.equal(recorded.state, plain.state)
        assert recorded.past.tolist() == [number + 1] * sequences


@torch.inference_mode()
def test_what_depends_on_weights_alone_is_computed_once():
    toy = Toy(2, torch.float32)
    recording = record(toy.step, toy.buffers())
    before = recording.calls
    recording.replay()
    # three norms and sums, the rows, two parts of cat, a sum, a norm, a copy, the count, the
    # turned copies and the last sum: the exponential of the weight and its sign are not among them
    assert before == recording.calls <= 17


@torch.inference_mode()
def test_intermediate_results_share_memory_as_they_did_in_the_step():
    x = torch.ones(4, 1 << 16)

    def step():
        y = x
        for _ in range(50):
            y = y + x
        return y

    recording = record(step, [x])
    recording.replay()
    assert len(recording._arena.blocks) <= 3
    assert torch.equal(recording.result, 51 * x)


@torch.inference_mode()
def test_zeros_are_zero_again_at_every_replay():
    x = torch.ones(3, 8)

    def step():
        y = torch.zeros(3, 8)
        y.add_(x)
        return y

    recording = record(step, [x])
    for _ in range(3):
        recording.replay()
        assert torch.equal(recording.result, x)


@torch.inference_mode()
def test_a_number_that_names_no_row_gives_no_number():
    table, index = torch.ones(4, 8), torch.tensor([1, 3])
    recording = record(lambda: F.embedding(index, table), [index])
    index.copy_(torch.tensor([4, -1]))
    recording.replay()
    assert recording.result.isnan().all()


REFUSALS = [
    (lambda x, w: x.exp(), "aten.exp.default works on values that change"),
    (lambda x, w: x + 1, "one shape and float type"),
    (lambda x, w: x + w[0], "one shape and float type"),
    (lambda x, w: x + x.to(torch.float64), "not converted to torch.float64"),
    (lambda x, w: (w.add_(1), x + w)[1], "overwrites a value"),
    (lambda x, w: (w.copy_(x), x + w)[1], "not named as changing"),
    (lambda x, w: x + torch.rand(4, 8), "random"),
    (lambda x, w: x + torch.full((4, 8), x.sum().item()), "aten.sum"),
    (lambda x, w: (x.tolist(), x + w)[1], "tolist reads a value"),
    (lambda x, w: (x.numpy(), x + w)[1], "numpy reads a value"),
    (lambda x, w: w.exp(), "depends on no buffer"),
    (lambda x, w: x + w.repeat(1, CONSTANTS // 128 + 1)[:, :8], "constants"),
    (lambda x, w: x.index_select(1, torch.tensor([0])), "first axis"),
    (lambda x, w: x[x[:, 0] > 0], "has no native twin"),
]


@pytest.mark.parametrize(("step", "words"), REFUSALS)
@torch.inference_mode()
def test_what_cannot_be_recorded_runs_and_says_why(step, words):
    x, w = torch.arange(32.0).view(4, 8), torch.ones(4, 8)
    torch.manual_seed(0)
    wanted = step(x.clone(), w.clone())
    torch.manual_seed(0)
    recording = record(lambda: step(x, w), [x])
    assert words in recording.why_not
    assert torch.equal(recording.result, wanted)
    assert recording.calls == 0


def test_gradients_are_not_recorded():
    x = torch.ones(4, 8)
    assert "gradients" in record(lambda: x + x, [x]).why_not


@torch.inference_mode()
def test_without_native_kernels_there_is_no_recording(monkeypatch):
    monkeypatch.setenv("FATHOM_TIER", "none")
    x = torch.ones(4, 8)
    assert "FATHOM_TIER=none" in record(lambda: x + x, [x]).why_not


@torch.inference_mode()
def test_a_step_that_fails_leaves_no_tape_recording():
    x = torch.ones(4, 8)

    def broken():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        record(broken, [x])
    first = record(lambda: x + x, [x])
    norm.rms_norm(x, torch.ones(8), 1e-5)
    assert first.calls == 1


@pytest.mark.slow
@torch.inference_mode()
def test_ten_thousand_replays_take_no_memory():
    toy = Toy(3, torch.float32)
    recording = record(toy.step, toy.buffers())
    for _ in range(100):
        recording.replay()
    before = psutil.Process().memory_info().rss
    for _ in range(10_000):
        recording.replay()
    assert psutil.Process().memory_info().rss - before < 1 << 20


@torch.inference_mode()
def test_what_each_call_takes_is_told_with_its_name():
    toy = Toy(2, torch.float32)
    recording = record(toy.step, toy.buffers())
    spent = recording.spent(5)
    assert len(spent) == recording.calls
    assert {name for name, _ in spent} == {
        *("add", "copy_cells", "count_up", "gather_rows", "rms_norm")
    }
    assert all(microseconds >= 0 for _, microseconds in spent)
    assert toy.past.tolist() == [6, 6]

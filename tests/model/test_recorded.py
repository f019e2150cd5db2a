"""Laws of fathom/model/recorded.py: a recorded step is the model's step, bit for bit."""

import logging

import psutil
import pytest
import torch

from fathom.config.model import AttentionConfig, MambaConfig, MlpConfig, ModelConfig, MoEConfig
from fathom.errors import RequestError
from fathom.model import recorded
from fathom.model.memory import Memory
from fathom.model.nemotron import Nemotron
from fathom.model.recorded import RecordedStep
from fathom.ops import native
from fathom.ops.layout import Layout

VOCAB = 48


def _model(dtype=torch.float32, latent=16, tied=False):
    """Every kind of block, the experts latent or not, packed for generation."""
    config = ModelConfig(
        name="tiny",
        vocab=VOCAB,
        width=32,
        pattern="ME*-ME*",
        mamba=MambaConfig(heads=4, head_width=8, state=8, groups=2, chunk=8),
        attention=AttentionConfig(heads=4, kv_heads=2, head_width=8),
        moe=MoEConfig(experts=6, chosen=2, expert_width=16, shared_width=16, latent=latent),
        mlp=MlpConfig(hidden=24),
        init=0.3,
        tied=tied,
    )
    return Nemotron(config, seed=3, dtype=dtype).eval().pack()


def _prefilled(model, sequences, tokens):
    """A memory that has read as many tokens a sequence as it says, with room for 128."""
    dtype = model.embedding.weight.dtype
    memory = Memory.empty(model.config, sequences=sequences, capacity=64, dtype=dtype)
    generator = torch.Generator().manual_seed(sequences)
    ids = torch.randint(0, VOCAB, (sequences * tokens,), generator=generator)
    with torch.inference_mode():
        model(ids, Layout.of([tokens] * sequences), memory)
    return memory


def _tokens(sequences, step):
    generator = torch.Generator().manual_seed(1000 * sequences + step)
    return torch.randint(0, VOCAB, (sequences,), generator=generator).tolist()


@torch.inference_mode()
def _plain(model, memory, tokens):
    hidden = model(torch.tensor(tokens), Layout.of([1] * len(tokens)), memory)
    return model.logits(hidden)


def _agree(model, sequences, steps, start=7):
    """Run steps recorded and not, each from its own memory; return the recorded step."""
    memory, other = _prefilled(model, sequences, start), _prefilled(model, sequences, start)
    step = RecordedStep(model, memory)
    for number in range(steps):
        tokens = _tokens(sequences, number)
        wanted = _plain(model, other, tokens)
        assert torch.equal(step.step(tokens), wanted), f"step {number} differs"
        assert step.why_not is None
    assert memory.seen == other.seen == [start + steps] * sequences
    for mine, theirs in zip(memory.buffers(), other.buffers(), strict=True):
        if mine.dtype == torch.float32 and mine.dim() == 4:
            assert torch.equal(mine, theirs)
    return step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("latent", [None, 16])
@pytest.mark.parametrize("sequences", [1, 3, 16])
def test_a_recorded_step_is_the_models_step(sequences, latent, dtype):
    step = _agree(_model(dtype, latent), sequences, 60)
    assert step.recording is not None
    assert step.recording.calls > 20


@pytest.mark.parametrize("tier", native.runnable())
def test_every_tier_records(monkeypatch, tier):
    monkeypatch.setenv("FATHOM_TIER", tier)
    assert _agree(_model(), 3, 20).recording is not None


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_recorded_step_is_the_models_step_with_any_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        _agree(_model(), 5, 20)
    finally:
        torch.set_num_threads(before)


def test_a_tied_head_is_recorded_too():
    assert _agree(_model(tied=True), 2, 20).recording is not None


def test_when_the_keys_move_the_step_is_recorded_anew():
    model = _model()
    memory, other = _prefilled(model, 2, 100), _prefilled(model, 2, 100)
    step, made = RecordedStep(model, memory), []
    for number in range(60):
        tokens = _tokens(2, number)
        assert torch.equal(step.step(tokens), _plain(model, other, tokens))
        if step.recording is not None and step.recording not in made:
            made.append(step.recording)
    assert len(made) == 2


def test_another_prefill_between_steps_is_seen():
    model = _model()
    memory, other = _prefilled(model, 2, 9), _prefilled(model, 2, 9)
    step = RecordedStep(model, memory)
    for number in range(12):
        tokens = _tokens(2, number)
        assert torch.equal(step.step(tokens), _plain(model, other, tokens))
        if number == 6:
            ids, layout = torch.arange(8), Layout.of([5, 3])
            with torch.inference_mode():
                model(ids, layout, memory)
                model(ids, layout, other)


def test_another_number_of_threads_is_seen():
    model, before = _model(), torch.get_num_threads()
    step = RecordedStep(model, _prefilled(model, 1, 5))
    for number in range(3):
        step.step(_tokens(1, number))
    first = step.recording
    torch.set_num_threads(before + 1)
    try:
        step.step([1])
        assert step.recording is not first
    finally:
        torch.set_num_threads(before)


def test_where_it_cannot_be_recorded_it_runs_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setenv("FATHOM_TIER", "none")
    recorded.announce.cache_clear()
    model = _model()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            memory, other = _prefilled(model, 2, 5), _prefilled(model, 2, 5)
            step = RecordedStep(model, memory)
            for number in range(5):
                tokens = _tokens(2, number)
                assert torch.equal(step.step(tokens), _plain(model, other, tokens))
            assert step.why_not == "FATHOM_TIER=none switches them off"
    assert len(caplog.records) == 1
    assert "FATHOM_TIER=none" in caplog.text


def test_a_model_that_is_not_packed_runs_and_says_which_operation_it_was(caplog):
    model = Nemotron(_model().config, seed=3).eval()
    memory, other = _prefilled(model, 2, 5), _prefilled(model, 2, 5)
    step = RecordedStep(model, memory)
    for number in range(5):
        tokens = _tokens(2, number)
        assert torch.equal(step.step(tokens), _plain(model, other, tokens))
    assert "aten." in step.why_not


@pytest.mark.parametrize("tokens", [[1], [1, 2, 3], [1, VOCAB], [-1, 1]])
def test_tokens_that_make_no_sense_are_refused_before_work(tokens):
    model = _model()
    memory = _prefilled(model, 2, 5)
    step = RecordedStep(model, memory)
    with pytest.raises(RequestError, match="one token from 0 to 47 for each of 2 sequences"):
        step.step(tokens)
    assert memory.seen == [5, 5]


@pytest.mark.slow
def test_ten_thousand_replays_take_no_memory():
    model = _model()
    step = RecordedStep(model, _prefilled(model, 2, 5))
    for _ in range(3):
        step.step([1, 2])
    memory, recording = step.memory, step.recording
    before = psutil.Process().memory_info().rss
    for _ in range(10_000):
        # the counters stand still, so that keys do not grow
        recording.replay()
        memory.past_S.fill_(8)
    assert psutil.Process().memory_info().rss - before < 1 << 20

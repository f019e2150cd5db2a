"""Laws of quantisation-aware distillation: what is learned, what it gains, what is stored of it."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fathom.checkpoint import weights
from fathom.checkpoint.quantise import quantise as write
from fathom.checkpoint.run import Run
from fathom.config.data import DataConfig
from fathom.config.model import ModelConfig
from fathom.config.train import (
    BalanceConfig,
    BatchConfig,
    DistilConfig,
    MtpConfig,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)
from fathom.data.batch import Batch
from fathom.data.feed import Feed
from fathom.errors import ConfigError
from fathom.model.nemotron import Nemotron
from fathom.model.precision import lay
from fathom.quantise.run import quantise
from fathom.train.loop import train
from fathom.train.objective import CHUNK, loss, totals
from fathom.train.report import Metrics
from fathom.train.step import prepare

Draw = Callable[..., Batch]
FeedOf = Callable[[int], Feed]
EVERY = {"blocks.*": "w4a16", "blocks.*.latent_*": "w8a16", "head": "w8a16"}
"""A table of precisions with queries, keys and values in it."""


def recipe(**parts: object) -> TrainConfig:
    settings: dict[str, object] = {
        "steps": 6,
        "distil": DistilConfig(teacher="given"),
        "data": DataConfig(max_length=32),
        "batch": BatchConfig(tokens=96, micro=48),
        "balance": BalanceConfig(on=False),
        "mtp": MtpConfig(detach=True),
        "optim": OptimConfig(lr=1e-3, weight_decay=0.0),
        "schedule": ScheduleConfig(kind="cosine", warmup=1, floor=0.1),
        "precision": EVERY,
        "save_every": 2,
    }
    return TrainConfig(**(settings | parts))


@pytest.fixture
def peaked(model: Nemotron) -> Nemotron:
    """A model whose logits are far from even, so that rounding it is felt."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4.0)
    return model


@pytest.fixture
def go(peaked: Nemotron, rows: FeedOf) -> Callable[..., tuple[dict, Nemotron]]:
    """Distil the peaked model into a copy of itself; return each step's numbers, and the copy."""

    def run(config, folder: Path | None = None, stop_after: int | None = None, heldout=None):
        found: dict[int, dict[str, float]] = {}

        def report(event: Metrics) -> None:
            if event.kind == "step":
                found[event.step] = {k: v for k, v in event.values.items() if "second" not in k}
                if event.step == stop_after:
                    raise KeyboardInterrupt

        student = copy.deepcopy(peaked)
        place = Run(folder) if folder else None
        train(
            config,
            model=student,
            feed=rows(0),
            heldout=heldout,
            run=place,
            report=report,
            teacher=peaked,
        )
        return found, student

    return run


def share(student: Nemotron, teacher: Nemotron | None, batch: Batch, config: TrainConfig):
    return loss(student, batch, config, totals([batch], 2), teacher)


def by_hand(student: Nemotron, teacher: Nemotron, batch: Batch) -> torch.Tensor:
    """The divergence of all logits at once, in double."""
    p, q = (
        m.logits(m(batch.tokens_T, batch.layout)).double().log_softmax(-1)
        for m in (teacher, student)
    )
    weights_T = batch.weights_T.double()
    return ((p.exp() * (p - q)).sum(-1) * weights_T).sum() / weights_T.sum()


def test_a_student_that_is_its_teacher_has_nothing_to_learn(peaked, random_batch: Draw):
    found = share(copy.deepcopy(peaked), peaked, random_batch([20, 9]), recipe())
    assert float(found.teacher) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("weights_of", ["ones", "random"])
def test_the_loss_is_the_forward_divergence(tiny, peaked, random_batch: Draw, weights_of):
    batch = random_batch([CHUNK, 9, 30], weights=weights_of)
    student, config = Nemotron(tiny, seed=2), recipe(mtp=MtpConfig(depths=0))
    found = loss(student, batch, config, totals([batch], 0), peaked)
    wanted = by_hand(student, peaked, batch)
    assert wanted.item() > 0.1
    assert found.total.item() == pytest.approx(wanted.item(), rel=1e-5)
    plain = loss(student, batch, config, totals([batch], 0))
    assert float(found.next) == pytest.approx(float(plain.next), rel=1e-5)
    names = dict(student.named_parameters())
    ours = torch.autograd.grad(found.total, names.values(), allow_unused=True)
    theirs = torch.autograd.grad(wanted, names.values(), allow_unused=True)
    for name, own, other in zip(names, ours, theirs, strict=True):
        assert (own is None) == (other is None), name
        if own is not None:
            torch.testing.assert_close(own, other, rtol=2e-3, atol=1e-6, msg=name)


def test_the_data_counts_as_much_as_is_asked_for(tiny, peaked, random_batch: Draw):
    batch, student = random_batch([20, 9]), Nemotron(tiny, seed=2)
    parts = [
        share(student, peaked, batch, recipe(distil=DistilConfig(teacher="given", data=data)))
        for data in (0.0, 0.25)
    ]
    gained = parts[1].total.item() - parts[0].total.item()
    assert gained == pytest.approx(0.25 * float(parts[0].next), rel=1e-4)


def test_a_teacher_is_never_changed_and_gets_no_gradient(go, peaked):
    before = {name: value.clone() for name, value in peaked.state_dict().items()}
    found, student = go(recipe(steps=2))
    assert all(parameter.grad is None for parameter in peaked.parameters())
    for name, value in peaked.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not torch.equal(student.embedding.weight, peaked.embedding.weight)
    assert found[2]["divergence"] > 0


def test_a_run_that_is_taken_up_again_repeats_itself_bit_for_bit(go, tmp_path):
    whole, student = go(recipe())
    go(recipe(), tmp_path, stop_after=3)
    rest, again = go(recipe(), tmp_path)
    assert min(rest) == 4
    assert rest == {step: whole[step] for step in rest}
    for name, value in student.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_best_checkpoint_is_the_nearest_to_the_teacher_on_held_out_texts(
    go, peaked, random_batch: Draw, tmp_path
):
    batches = [random_batch([30, 9], weights="random"), random_batch([20], seed=3)]
    config = recipe(steps=4, evaluate_every=2, save_every=2, optim=OptimConfig(lr=0.03))
    _, student = go(config, tmp_path, heldout={"texts": batches})
    apart = {}
    for step in (2, 4):
        saved = Run(tmp_path).load(step).tensors
        student.load_state_dict(
            {k.removeprefix("model."): v for k, v in saved.items() if k.startswith("model.")}
        )
        whole = [by_hand(student, peaked, b).item() * float(b.weights_T.sum()) for b in batches]
        apart[step] = sum(whole) / sum(float(b.weights_T.sum()) for b in batches)
    best = Run(tmp_path).load("best")
    assert best.step == min(apart, key=apart.__getitem__)
    assert best.score == pytest.approx(apart[best.step], rel=1e-4)


@pytest.mark.slow
def test_a_few_steps_bring_the_rounded_student_nearer_than_rounding(go, peaked, rows, tmp_path):
    batch = rows(1).next(400)
    divergences = []
    for steps in (0, 60):
        student = peaked
        if steps:
            _, student = go(recipe(steps=steps, optim=OptimConfig(lr=1e-3, weight_decay=0.0)))
        plain = weights.save(student, tmp_path / f"plain-{steps}")
        quantise(plain, tmp_path / f"rounded-{steps}", "nvfp4", method="max")
        rounded = weights.load(tmp_path / f"rounded-{steps}", packed=False)
        divergences.append(by_hand(rounded, peaked, batch).item())
    assert divergences[1] < 0.7 * divergences[0], divergences


@pytest.mark.parametrize("name", ["nvfp4", "fp8", "mixed"])
def test_a_named_table_is_what_quantise_stores(peaked, random_batch: Draw, tmp_path, name):
    batch = random_batch([20, 9])
    quantise(weights.save(peaked, tmp_path / "plain"), tmp_path / "out", name, method="max")
    stored = weights.load(tmp_path / "out", packed=False)
    before = peaked(batch.tokens_T, batch.layout)
    lay(peaked, f"weights-{name}")
    trained = peaked.logits(peaked(batch.tokens_T, batch.layout))
    served = stored.logits(stored(batch.tokens_T, batch.layout))
    torch.testing.assert_close(trained, served, rtol=0, atol=1e-5)
    assert (trained - peaked.logits(before)).abs().max() > 1e-3


def test_what_is_stored_of_a_student_computes_what_was_trained(go, random_batch, tmp_path):
    batch = random_batch([20, 9])
    _, student = go(recipe(steps=2))
    prepare(student, recipe())
    trained = student.logits(student(batch.tokens_T, batch.layout))
    table = {"blocks.*": "nvfp4", "blocks.*.latent_*": "fp8", "head": "fp8"}
    plain = weights.save(student, tmp_path / "plain")
    stored = weights.load(write(plain, tmp_path / "out", table), packed=False)
    served = stored.logits(stored(batch.tokens_T, batch.layout))
    torch.testing.assert_close(trained, served, rtol=0, atol=1e-5)
    scales = {p.plain.abs().max().item() for p in _fused(student)}
    assert len(scales) > 1, "their own scales would be the shared one"


def _fused(model: Nemotron):
    (attention,) = (b.mixer for b in model.blocks if hasattr(b.mixer, "q_proj"))
    return attention.q_proj, attention.k_proj, attention.v_proj


def test_a_teacher_that_does_not_fit_is_refused(tiny: ModelConfig, model, rows):
    other = Nemotron(ModelConfig.of(tiny.as_dict() | {"vocab": 80}), seed=0)
    with pytest.raises(ConfigError, match="80 tokens, the student 64"):
        train(recipe(), model=model, feed=rows(0), teacher=other)
    with pytest.raises(ConfigError, match="both or neither"):
        train(recipe(), model=model, feed=rows(0))
    with pytest.raises(ConfigError, match="packed=False"):
        lay(Nemotron(tiny, seed=0).pack(), "weights-nvfp4")

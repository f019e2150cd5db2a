"""Laws of training in four bits: it learns, repeats itself, switches, and says what it loses."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fathom.checkpoint.run import Run
from fathom.config.data import DataConfig
from fathom.config.load import load_recipe, to_toml
from fathom.config.model import ModelConfig
from fathom.config.train import (
    PRECISIONS,
    BatchConfig,
    Nvfp4Config,
    OptimConfig,
    ScheduleConfig,
    SwitchConfig,
    TrainConfig,
)
from fathom.data.feed import Feed
from fathom.errors import ConfigError
from fathom.model.nemotron import Nemotron
from fathom.model.precision import TABLES, Matrices
from fathom.train.loop import train
from fathom.train.report import Metrics

FeedOf = Callable[[int], Feed]
VOLATILE = {"seconds", "tokens_per_second"}


def recipe(**parts: object) -> TrainConfig:
    settings: dict[str, object] = {
        "steps": 8,
        "data": DataConfig(max_length=32),
        "batch": BatchConfig(tokens=96, micro=48),
        "optim": OptimConfig(lr=3e-3),
        "schedule": ScheduleConfig(warmup=2, decay=0.5),
        "precision": {"*": "bf16", "blocks.*.in_proj": "nvfp4", "blocks.*.experts": "nvfp4"},
        "nvfp4": Nvfp4Config(health_every=3),
        "evaluate_every": 4,
        "save_every": 3,
    }
    return TrainConfig(**(settings | parts))


@pytest.fixture
def go(tiny: ModelConfig, rows: FeedOf) -> Callable[..., tuple[dict, Nemotron]]:
    """Train a fresh tiny model; return the numbers of every step, and the model."""

    def run(config, folder: Path | None = None, stop_after: int | None = None, shape=tiny):
        found: dict[int, dict[str, float]] = {}

        def report(event: Metrics) -> None:
            if event.kind == "step":
                kept = {k: v for k, v in event.values.items() if k not in VOLATILE}
                found[event.step] = kept
                if event.step == stop_after:
                    raise KeyboardInterrupt

        model = Nemotron(shape, seed=1)
        place = Run(folder) if folder else None
        train(config, model=model, feed=rows(0), run=place, report=report)
        return found, model

    return run


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["super-nvfp4", {"*": "nvfp4", "head": "bf16"}])
def test_the_loss_falls(go, precision):
    found, _ = go(recipe(steps=30, precision=precision))
    losses = [found[step]["loss"] for step in sorted(found)]
    assert sum(losses[-5:]) / 5 < sum(losses[:3]) / 3 - 0.5


def test_a_run_that_is_taken_up_again_repeats_itself_bit_for_bit(go, tmp_path):
    whole, model = go(recipe())
    go(recipe(), tmp_path, stop_after=4)
    rest, resumed = go(recipe(), tmp_path)
    assert min(rest) == 5
    assert {step: whole[step] for step in rest} == rest
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_the_seed_moves_the_stochastic_rounding(go):
    """Without it two seeds of the same weights and data are one run; with it they are two."""
    for stochastic in (False, True):
        runs = [
            go(recipe(seed=seed, steps=4, nvfp4=Nvfp4Config(stochastic=stochastic)))[0]
            for seed in (0, 1)
        ]
        assert (runs[0][3] == runs[1][3]) is not stochastic


def test_each_micro_batch_draws_its_own(go, monkeypatch):
    from fathom.ops.nvfp4 import Quantiser

    keys, own = set(), Quantiser.key

    def noted(self):
        key = own(self)
        keys.add((key.step, key.micro))
        return key

    monkeypatch.setattr(Quantiser, "key", noted)
    go(recipe(steps=4))
    assert keys == {(step, micro) for step in range(4) for micro in range(2)}


def test_the_precision_switches_at_its_step_and_a_resumed_run_knows(go, tmp_path):
    switched = recipe(precision_switch=SwitchConfig(step=4, precision="bf16"))
    plain, _ = go(recipe())
    whole, model = go(switched)
    assert {s: plain[s] for s in (1, 2, 3, 4)} == {s: whole[s] for s in (1, 2, 3, 4)}
    assert plain[5]["loss"] != whole[5]["loss"]
    assert not any(part.quantisers for part in model.modules() if isinstance(part, Matrices))
    go(switched, tmp_path, stop_after=6)
    rest, _ = go(switched, tmp_path)
    assert rest == {step: whole[step] for step in (7, 8)}


def test_what_rounding_loses_is_reported_now_and_then(go):
    found, _ = go(recipe())
    names = {
        *(f"rounding/underflow/{role}" for role in ("activation", "weight", "gradient")),
        "rounding/zero_gradients",
        "rounding/zero_gradients_worst",
    }
    for step, values in found.items():
        assert {k for k in values if k.startswith("rounding")} == (
            names if step % 3 == 1 else set()
        )
    for values in (found[1], found[4]):
        assert 0.03 < values["rounding/underflow/activation"] < 0.3
        assert 0.03 < values["rounding/underflow/weight"] < 0.3
        assert 0 < values["rounding/underflow/gradient"] < 0.5
        assert 0 <= values["rounding/zero_gradients"] <= values["rounding/zero_gradients_worst"] < 1
    assert not any(k.startswith("rounding") for k in go(recipe(precision="bf16"))[0][1])


def test_the_named_precisions_are_the_tables():
    assert set(PRECISIONS) == TABLES.keys() - {"w4a8"}


def test_recipes_name_tables_or_lay_their_own_over_one(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(
        'steps = 40\nprecision = { base = "super-nvfp4", "last 4" = "bf16" }\n'
        'precision_switch = { step = 30, precision = "mxfp8" }\n'
    )
    config = load_recipe(path)
    assert config.precision == {"base": "super-nvfp4", "last 4": "bf16"}
    assert config.precision_at(29) == config.precision
    assert config.precision_at(30) == "mxfp8"
    path.write_text(to_toml(config))
    assert load_recipe(path) == config
    assert load_recipe(path, ["precision=ultra-nvfp4"]).precision == "ultra-nvfp4"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"precision": "super-fp4"}, "no precision 'super-fp4'.* Did you mean 'super-nvfp4'"),
        ({"precision": {"base": "fp8"}}, "no precision 'fp8'"),
        ({"precision_switch": {"step": 8, "precision": "bf16"}}, "never reached"),
        ({"precision_switch": {"step": 0, "precision": "bf16"}}, "greater than 0"),
        ({"nvfp4": {"tile": False}}, "no field 'tile'. Did you mean 'tiles'"),
    ],
)
def test_what_cannot_be_is_refused_in_words(parts, words):
    with pytest.raises(ConfigError, match=words):
        recipe(**parts)

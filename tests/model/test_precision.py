"""Laws of the table: patterns decide, the last match wins, nothing is silently missed."""

import pytest
import torch
from torch import nn

from fathom.config.model import ModelConfig
from fathom.errors import ConfigError
from fathom.model.nemotron import Nemotron
from fathom.model.precision import (
    TABLES,
    Linear,
    Matrices,
    lay,
    multiplications,
    resolve,
    share,
)
from fathom.model.sizes import NANO, NANO_4B, POCKET, SIZES, SUPER, ULTRA
from fathom.ops.layout import Layout
from fathom.ops.nvfp4 import Recipe, Rounding


def precisions(model):
    return {
        name: part.precision for name, part in model.named_modules() if isinstance(part, Linear)
    }


def names_of(config: ModelConfig) -> list[str]:
    return [name for name in multiplications(config) if not name.endswith("router")]


def test_the_last_matching_pattern_wins(tiny):
    lay(tiny, {"*": "bf16", "*.q_proj": "stored"})
    found = precisions(tiny)
    assert found["blocks.2.mixer.q_proj"] == "stored"
    assert found["blocks.2.mixer.k_proj"] == "bf16"
    lay(tiny, "fp32")
    assert set(precisions(tiny).values()) == {"stored"}


def test_bf16_products_are_near_and_not_equal(tiny, tokens):
    exact = tiny(tokens, Layout.of([300]))
    lay(tiny, "bf16")
    rounded = tiny(tokens, Layout.of([300]))
    assert rounded.dtype == torch.float32
    error = (rounded - exact).norm() / exact.norm()
    assert 1e-4 < error < 0.05


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("fp64", "no precision 'fp64'"),
        ({"base": "fp64"}, "no precision 'fp64'"),
        ({"*": "fp4"}, "asks for the precision 'fp4'"),
        ({"blocks.9.*": "bf16"}, "matches no matrix"),
        ({"last 0": "bf16"}, "matches no matrix"),
        ("w4a8", "is plain"),
    ],
)
def test_wrong_tables_are_refused_in_words(tiny, table, words):
    with pytest.raises(ConfigError, match=words):
        lay(tiny, table)


def test_packed_matrices_are_not_trained_in_four_bits(tiny):
    tiny.pack()
    with pytest.raises(ConfigError, match=r"is for training, and .* is packed"):
        lay(tiny, {"*.in_proj": "nvfp4"})


@pytest.mark.parametrize(
    ("pattern", "blocks"),
    [
        ("last 14/88", range(74, 88)),
        ("last 15%", range(74, 88)),
        ("last 3", range(85, 88)),
        ("first 1", range(1)),
        ("first 10%", range(9)),
        ("last 200", range(88)),
    ],
)
def test_blocks_are_counted_from_either_end_and_rounded_up(pattern, blocks):
    found = resolve(names_of(SUPER), {pattern: "bf16"})
    assert {int(name.split(".")[1]) for name in found} == set(blocks)
    assert all(name.startswith("blocks.") for name in found)


def test_supers_table_is_that_of_its_report():
    found = resolve(names_of(SUPER), "super-nvfp4")
    assert found.keys() == set(names_of(SUPER))
    for name, precision in found.items():
        part, _, matrix = name.rpartition(".mixer.")
        inside = part.startswith("blocks.") and 1 <= int(part.split(".")[1]) < 74
        wanted = "bf16"
        if inside and matrix in {"in_proj", "experts", "shared.up", "shared.down"}:
            wanted = "nvfp4"
        if inside and matrix == "out_proj":
            wanted = "mxfp8"
        assert precision == wanted, name


def test_ultra_protects_its_last_sixteen_blocks_and_nano_its_last_eight():
    for config, table, kept in ((ULTRA, "ultra-nvfp4", 16), (NANO, "nano-nvfp4", 8)):
        found = resolve(names_of(config), table)
        four = {int(n.split(".")[1]) for n, p in found.items() if p in ("nvfp4", "mxfp8")}
        assert len(config.pattern) - 1 - max(four) == kept
        assert min(four) == 0
    assert set(resolve(names_of(NANO), "nano-bf16").values()) == {"bf16"}


def test_dense_mlps_count_as_mlps_and_missing_kinds_of_blocks_are_no_error():
    found = resolve(names_of(NANO_4B), "super-nvfp4")
    assert found["blocks.1.mixer.up"] == "nvfp4"
    assert found["blocks.12.mixer.q_proj"] == "bf16"


def test_a_named_table_can_be_the_base_of_ones_own():
    own = {"base": "super-nvfp4", "blocks.2.*": "bf16"}
    found, named = resolve(names_of(SUPER), own), resolve(names_of(SUPER), "super-nvfp4")
    assert {name for name in found if found[name] != named[name]} == {
        "blocks.2.mixer.in_proj",
        "blocks.2.mixer.out_proj",
    }


@pytest.mark.parametrize("name", SIZES)
def test_the_matrices_that_are_counted_are_those_of_the_model(name):
    config = SIZES[name]
    work = multiplications(config)
    model = Nemotron(config, device="meta")
    found = {}
    for own, part in model.named_modules():
        if isinstance(part, Linear):
            found[own] = part.plain.numel()
        elif isinstance(part, Matrices):
            index = int(own.split(".")[1]) if own.startswith("blocks") else None
            shape = config.moe if index is None else config.mixer(index)
            own_share = shape.chosen / shape.experts
            found[own] = sum(p.numel() for p in part.parameters()) * own_share
        elif own.endswith("router"):
            found[own] = part.weight.numel()
    if config.tied:
        found["head"] = config.vocab * config.width
    assert work == found


def test_the_share_of_four_bits_is_that_of_its_matrices():
    work = multiplications(SUPER)
    four = [n for n, p in resolve(names_of(SUPER), "super-nvfp4").items() if p == "nvfp4"]
    assert share(SUPER, "super-nvfp4") == sum(work[n] for n in four) / sum(work.values())
    assert 0.6 < share(SUPER, "super-nvfp4") < 0.65
    assert share(SUPER, "bf16") == 0
    assert share(SUPER, "bf16", "bf16") + work["blocks.1.mixer.router"] * 42 / sum(
        work.values()
    ) == pytest.approx(1, abs=0.01)
    assert 0.08 < share(SUPER, "super-nvfp4", "mxfp8") < 0.1


@pytest.mark.parametrize("table", [name for name in TABLES if name != "w4a8"])
def test_a_model_learns_in_every_table(table):
    """Gradients of all matrices are finite, none is missing, and the first steps help."""
    model, rounding = Nemotron(POCKET, seed=0), Rounding(0)
    lay(model, table, rounding)
    tokens = torch.arange(193) * 7 % 50
    layout = Layout.of([100, 92])
    losses = []
    for step in range(8):
        rounding.move(step, 0)
        hidden = model(tokens[:-1], layout)
        loss = nn.functional.cross_entropy(model.logits(hidden), tokens[1:])
        loss.backward()
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.startswith("mtp."):
                    continue
                assert weight.grad is not None, name
                assert weight.grad.isfinite().all(), name
                weight -= 0.5 * weight.grad / weight.grad.norm().clamp_min(1e-3)
                weight.grad = None
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 1


def test_gradient_checkpointing_repeats_the_same_lots(tiny, tokens):
    rounding = Rounding(0)
    table = {"*": "bf16", "blocks.*.experts": "nvfp4", "blocks.*.in_proj": "nvfp4"}
    lay(tiny, table, rounding)
    grads = []
    for again in (False, True):
        tiny.gradient_checkpointing = again
        tiny.zero_grad()
        tiny(tokens, Layout.of([300])).square().sum().backward()
        grads.append([p.grad.clone() for p in tiny.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def test_the_recipe_reaches_the_matrices(tiny):
    rounding, recipe = Rounding(0), Recipe(transform=False)
    lay(tiny, {"*.in_proj": "nvfp4", "*.out_proj": "mxfp8"}, rounding, recipe)
    kinds = {
        name.rsplit(".")[-1]: part.quantisers[0].recipe
        for name, part in tiny.named_modules()
        if isinstance(part, Matrices) and part.quantisers
    }
    assert kinds["in_proj"] == recipe
    assert kinds["out_proj"].format == "mxfp8"
    numbers = [
        q.matrix
        for part in tiny.modules()
        if isinstance(part, Matrices)
        for q in part.quantisers or ()
    ]
    assert len(set(numbers)) == len(numbers)
    lay(tiny, "fp32")
    assert all(not p.quantisers for p in tiny.modules() if isinstance(p, Matrices))

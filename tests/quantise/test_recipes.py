"""A map gives every matrix the format that the published checkpoints give its part."""

import pytest

from fathom.checkpoint.expected import WEIGHT, layout, stored_formats
from fathom.checkpoint.opened import PLAIN
from fathom.cli.quantise import Format
from fathom.errors import ConfigError
from fathom.model.sizes import LIGHTNING, NANO, NANO_4B, SUPER, ULTRA
from fathom.quantise.recipes import RECIPES, lay, part_of, recipe


def table(name, config):
    wanted = layout(config)
    matrices = dict.fromkeys(
        wanted[n].name.removesuffix(WEIGHT) for n in stored_formats(config, wanted, PLAIN)
    )
    return lay(recipe(name), config, list(matrices))


def names(found, kind):
    return {name for name, own in found.items() if own == kind}


def test_nano_keeps_the_six_mamba_blocks_before_attention():
    found = table("nano-nvfp4", NANO)
    plain = {name for name in names(found, "plain") if name.endswith(("in_proj", "out_proj"))}
    assert plain == {
        f"blocks.{i}.mixer.{w}_proj" for i in (4, 11, 18, 25, 32, 41) for w in ("in", "out")
    }
    assert found["blocks.1.mixer.experts.up"] == found["blocks.0.mixer.in_proj"] == "nvfp4"
    assert found["blocks.5.mixer.q_proj"] == found["head"] == "plain"
    assert names(table("nano-fp8", NANO), "fp8") == names(found, "nvfp4")


def test_lightning_counts_are_those_of_the_published_file():
    found = table("lightning", LIGHTNING)
    assert len(names(found, "fp8")) == 46
    # two stacks of 128 experts and two shared matrices a block, and the head
    assert len(names(found, "nvfp4")) == 23 * 2 + 23 * 2 + 1
    assert all(found[name] == "plain" for name in found if name.startswith("mtp."))


@pytest.mark.parametrize(("name", "config"), [("super-nvfp4", SUPER), ("ultra-nvfp4", ULTRA)])
def test_super_and_ultra_follow_one_rule(name, config):
    found = table(name, config)
    assert {part_of(n) for n in names(found, "nvfp4")} == {"experts"}
    assert {part_of(n) for n in names(found, "fp8")} == {"shared", "mamba"}
    assert recipe(name).method == {"super-nvfp4": "mse", "ultra-nvfp4": "4o6"}[name]


def test_nano_4b_gives_some_matrices_more_bits():
    found = table("nano-4b", NANO_4B)
    down = [name for name in found if part_of(name) == "mlp" and name.endswith(".down")]
    eight = [place for place, name in enumerate(down) if found[name] == "fp8"]
    assert eight == [0, 1, 4, 7, 10, 13, 14, 15, 16]
    assert found["head"] == "fp8"
    assert found["blocks.12.mixer.v_proj"] == "nvfp4"


def test_the_command_line_offers_all():
    assert set(Format.__args__) == set(RECIPES)


def test_what_is_unknown_is_told():
    with pytest.raises(ConfigError, match="known are nvfp4"):
        recipe("int4")
    with pytest.raises(ConfigError, match="no matrix"):
        part_of("blocks.0.norm")

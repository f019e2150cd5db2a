"""What compressed-tensors says about formats is understood as that library understands it."""

import json

import pytest

from fathom.checkpoint.compressed import describe, parse
from fathom.checkpoint.opened import read_precisions
from fathom.errors import CheckpointError

FOUR = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
EIGHT = {"num_bits": 8, "type": "float", "strategy": "tensor"}


def field(groups, **more):
    return {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {f"group_{i}": group for i, group in enumerate(groups)},
        **more,
    }


def group(targets=("Linear",), weights=FOUR, **more):
    return {"targets": list(targets), "weights": weights, **more}


def told(folder, quantization):
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    return read_precisions(folder)


def test_linear_means_all_but_what_is_ignored(tmp_path):
    ignore = ["lm_head", "re:.*layers\\.2\\.mixer\\.[qk]_proj", "model.layers.4.mixer.in_proj"]
    dialect, found = told(tmp_path, field([group()], ignore=ignore))
    assert dialect == "compressed-tensors"
    assert found.of("lm_head") == "plain"
    assert found.of("backbone.layers.2.mixer.k_proj") == "plain"
    assert found.of("backbone.layers.2.mixer.v_proj") == "nvfp4"
    assert found.of("backbone.layers.4.mixer.in_proj") == "plain"
    assert found.of("backbone.layers.44.mixer.in_proj") == "nvfp4"
    # a name is a name, no beginning of one; a pattern is a beginning
    assert parse(field([group()], ignore=["mtp"]), "x").of("mtp.layers.0.eh_proj") == "nvfp4"
    assert parse(field([group()], ignore=["re:mtp"]), "x").of("mtp.layers.0.eh_proj") == "plain"


def test_a_group_that_names_a_module_counts_before_one_that_takes_all():
    named = group(["re:model\\.layers\\.0\\..*"], EIGHT, format="float-quantized")
    rest = group(format="nvfp4-pack-quantized")
    found = parse({**field([rest, named]), "format": "mixed-precision"}, "x")
    assert found.of("backbone.layers.0.mixer.in_proj") == "fp8"
    assert found.of("backbone.layers.1.mixer.in_proj") == "nvfp4"


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        (field([]), "needs config_groups"),
        (field([group()], ignore="lm_head"), "ignore must be a list"),
        (field([group()], ignore=["re:("]), "no regular expression"),
        (field([group()], quantization_status="frozen"), "'frozen'"),
        (field([group()], transform_config={"config_groups": {"R1": {}}}), "transform_config"),
        (field([group()], sparsity_config={"format": "sparse-24-bitmask"}), "sparsity_config"),
        (field([group(format="pack-quantized")]), "group_0 is stored in the format 'pack-quan"),
        (field([group(format="mixed-precision")]), "'mixed-precision'"),
        (field([group(weights={**FOUR, "group_size": 32})]), "group_size 32"),
        (field([group(weights={**FOUR, "num_bits": 8})]), "num_bits 8"),
        (field([group(weights={**FOUR, "type": "int"})]), "type 'int'"),
        (field([group(weights={**FOUR, "symmetric": False})]), "symmetric False"),
        (
            field([group(weights={**EIGHT, "strategy": "channel"}, format="float-quantized")]),
            "strategy 'channel'",
        ),
        (field([group(weights=None)]), "must be an object"),
        (field([{**group(), "targets": "Linear"}]), "targets must be a list"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, quantization, message):
    with pytest.raises(CheckpointError, match=message):
        told(tmp_path, quantization)


@pytest.mark.parametrize(
    "algorithms",
    [
        {"lm_head": "NVFP4"},
        {"lm_head": "W4A16_NVFP4", "backbone.layers.1.mixer.in_proj": "FP8"},
        {f"backbone.layers.1.mixer.experts.{e}.{w}_proj": "NVFP4" for e in (0, 1) for w in "ab"}
        | {"backbone.layers.11.mixer.in_proj": "FP8", "mtp.layers.1.mixer.q_proj": "W4A16_NVFP4"},
    ],
)
def test_what_is_written_is_read(algorithms):
    plain = {"backbone.layers.1.mixer.q_proj", "backbone.layers.1.mixer.gate"} - set(algorithms)
    found = parse(describe(algorithms, [*plain, "mtp*"][: len(plain)], "0.1", ["x.k_scale"]), "x")
    for module in [*algorithms, *plain]:
        wanted = {"FP8": "fp8", None: "plain"}.get(algorithms.get(module), "nvfp4")
        assert found.of(module) == wanted, module


def test_patterns_take_both_names_of_the_backbone_and_all_experts_at_once():
    experts = {f"backbone.layers.1.mixer.experts.{e}.up_proj": "NVFP4" for e in range(3)}
    field = describe({**experts, "backbone.layers.0.mixer.in_proj": "FP8"}, ["mtp*"], "0.1", [])
    groups = list(field["config_groups"].values())
    assert field["format"] == "mixed-precision"
    assert groups[0]["targets"] == [r"re:(backbone|model)\.layers\.0\.mixer\.in_proj$"]
    assert groups[1]["targets"] == [
        r"re:(backbone|model)\.layers\.1\.mixer\.experts\.\d+\.up_proj$"
    ]
    assert field["ignore"] == ["re:mtp.*$"]
    assert field["kv_cache_scheme"] is None

"""What a checkpoint says about its formats is understood, or refused; what is written is read."""

import json

import pytest

from fathom.checkpoint.formats import as_field, describe, plain_modules
from fathom.checkpoint.opened import PLAIN, read_precisions
from fathom.errors import CheckpointError

MIXED = {
    "quant_algo": "MIXED_PRECISION",
    "kv_cache_quant_algo": "FP8",
    "exclude_modules": ["backbone.layers.2.mixer.q_proj", "mtp*", "*.gate"],
    "quantized_layers": {
        "lm_head": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
        "backbone.layers.0.mixer.in_proj": {"quant_algo": "FP8"},
        "backbone.layers.1.mixer.experts": {"quant_algo": "NVFP4", "group_size": 16},
    },
}


def told(folder, quantization=None, field=None):
    """Write what a checkpoint says, and read it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"quantization_config": field} if field else {}))
    if quantization is not None:
        text = json.dumps({"producer": {"name": "modelopt"}, "quantization": quantization})
        (folder / "hf_quant_config.json").write_text(text)
    return read_precisions(folder)[1]


def test_a_checkpoint_that_says_nothing_is_plain(tmp_path):
    assert told(tmp_path) == PLAIN
    assert read_precisions(tmp_path)[0] is None


def test_the_own_entry_counts_before_exclusion_and_that_before_the_whole(tmp_path):
    found = told(
        tmp_path,
        {
            "quant_algo": "FP8",
            "exclude_modules": ["lm_head", "backbone.layers.4.*", "backbone.layers.1?.mixer"],
            "quantized_layers": {"backbone.layers.4.mixer.in_proj": {"quant_algo": "NVFP4"}},
        },
    )
    assert found.of("backbone.layers.4.mixer.in_proj") == "nvfp4"
    assert found.of("backbone.layers.4.mixer.out_proj") == "plain"
    assert found.of("backbone.layers.40.mixer.out_proj") == "fp8"
    assert found.of("backbone.layers.12.mixer.out_proj") == "plain"
    assert found.of("lm_head") == "plain"
    assert found.of("backbone.layers.3.mixer.q_proj") == "fp8"


def test_mixed_precision_quantises_what_is_listed_alone(tmp_path):
    found = told(tmp_path, MIXED)
    assert found.of("lm_head") == "nvfp4"
    assert found.of("backbone.layers.0.mixer.in_proj") == "fp8"
    assert found.of("backbone.layers.1.mixer.experts.3.up_proj") == "nvfp4"
    assert found.of("backbone.layers.2.mixer.q_proj") == "plain"
    assert found.of("backbone.layers.2.mixer.o_proj") == "plain"
    assert found.of("mtp.layers.0.mixer.q_proj") == "plain"


def test_both_places_say_the_same(tmp_path):
    field = {
        **{k: v for k, v in MIXED.items() if k not in ("exclude_modules", "kv_cache_quant_algo")},
        "quant_method": "modelopt",
        "ignore": MIXED["exclude_modules"],
    }
    assert told(tmp_path / "one", MIXED) == told(tmp_path / "two", field=field)


def test_the_file_of_its_own_is_asked_first(tmp_path):
    field = {"quant_method": "modelopt", "quant_algo": "FP8"}
    assert told(tmp_path, {"quant_algo": "NVFP4"}, field).of("lm_head") == "nvfp4"


def test_the_names_of_transformers_mean_the_official_ones(tmp_path):
    found = told(tmp_path, {"quant_algo": "FP8", "exclude_modules": ["model.layers.4.*"]})
    assert found.of("backbone.layers.4.mixer.in_proj") == "plain"


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_algo": "W4A8_AWQ"}, "W4A8_AWQ"),
        ({"quant_algo": "NVFP4", "group_size": 32}, "group_size is 32"),
        ({"quant_algo": "MIXED_PRECISION"}, "quantized_layers"),
        ({"quant_algo": ["FP8"]}, "FP8"),
        ({"quant_algo": "FP8", "exclude_modules": "lm_head"}, "must be a list"),
        ({"quant_algo": "FP8", "quantized_layers": ["lm_head"]}, "must map modules"),
        (
            {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"lm_head": {}}},
            "lm_head is quantised by None",
        ),
        ([], "needs the field 'quantization'"),
    ],
)
def test_what_is_not_read_is_refused_by_name(tmp_path, quantization, message):
    with pytest.raises(CheckpointError, match=message):
        told(tmp_path, quantization)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "'gptq'"),
        ({"quant_method": "fp8"}, "'fp8'"),
        ({"quant_algo": "FP8"}, "None"),
        ("modelopt", "as ModelOpt and compressed-tensors write them"),
        ({"quant_method": "modelopt", "config_groups": {"group_0": {}}}, "no quant_algo"),
    ],
)
def test_other_libraries_are_refused_politely(tmp_path, field, message):
    with pytest.raises(CheckpointError, match=message):
        told(tmp_path, field=field)


@pytest.mark.parametrize(
    "algorithms",
    [
        {"lm_head": "FP8"},
        {"lm_head": "W4A16_NVFP4", "backbone.layers.0.mixer.in_proj": "FP8"},
        {"mtp.layers.0.mixer.q_proj": "NVFP4", "lm_head": "NVFP4"},
    ],
)
def test_what_is_written_is_read_in_both_places(tmp_path, algorithms):
    modules = (
        "lm_head",
        "backbone.embeddings",
        "backbone.layers.0.mixer.in_proj",
        "backbone.layers.0.mixer.conv1d",
        "mtp.layers.0.mixer.q_proj",
        "mtp.layers.1.mixer.gate",
    )
    plain = plain_modules([f"{module}.weight" for module in modules], algorithms)
    described = describe(algorithms, plain, "0.1")
    file = told(tmp_path / "file", described["quantization"])
    field = told(tmp_path / "field", field=as_field(described))
    for module in modules:
        wanted = {"FP8": "fp8", None: "plain"}.get(algorithms.get(module), "nvfp4")
        assert file.of(module) == field.of(module) == wanted, module


def test_the_groups_of_config_json_name_what_they_hold():
    layers = {"lm_head": "W4A16_NVFP4", "a.in_proj": "FP8", "a.out_proj": "FP8"}
    field = as_field(describe(layers, ["b"], "0.1", "FP8"))
    assert field["quant_method"] == "modelopt"
    assert field["quant_algo"] == "MIXED_PRECISION"
    assert field["ignore"] == ["b"]
    groups = field["config_groups"]
    assert groups["group_0"]["targets"] == ["a.in_proj", "a.out_proj"]
    assert groups["group_1"]["weights"]["num_bits"] == 4
    assert "input_activations" not in groups["group_1"]
    assert field["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}


def test_a_plain_mtp_head_is_excluded_as_a_whole():
    names = ["lm_head.weight", "mtp.layers.0.mixer.q_proj.weight", "backbone.norm_f.weight"]
    assert plain_modules(names, {"lm_head": "FP8"}) == ["mtp*"]
    assert plain_modules(names, {"mtp.layers.0.mixer.q_proj": "FP8"}) == ["lm_head"]

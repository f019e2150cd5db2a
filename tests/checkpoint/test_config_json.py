"""The published config.json files give the named sizes; what would compute otherwise is refused."""

import json
import math

import pytest

from fathom.checkpoint.config_json import parse, read_config
from fathom.config.model import MoEConfig
from fathom.errors import CheckpointError
from fathom.model.sizes import LIGHTNING, NANO, NANO_4B, SUPER, ULTRA

WORDS = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}
NEW_WORDS = {"M": "linear_attention", "E": "moe", "*": "full_attention", "-": "mlp"}

NANO_PATTERN = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
SUPER_PATTERN = (
    "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME"
)
ULTRA_PATTERN = (
    "MEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*"
    "EMEMEM*EMEMEMEM*EMEMEMEME"
)
DENSE_PATTERN = "M-M-M-MM-M-M*-M-M*-M-M-M*-M-M-MM*-MMM-M-M-"

COMMON = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "vocab_size": 131072,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "head_dim": 128,
    "num_key_value_heads": 2,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "norm_eps": 1e-05,
    "residual_in_fp32": False,
    "rescale_prenorm_residual": True,
    "use_bias": False,
    "mlp_bias": False,
    "mamba_proj_bias": False,
    "use_conv_bias": True,
    "use_mamba_kernels": True,
    "use_cache": True,
    "ssm_state_size": 128,
    "n_groups": 8,
    "conv_kernel": 4,
    "chunk_size": 128,
    "expand": 2,
    "mamba_head_dim": 64,
    "mamba_hidden_act": "silu",
    "mamba_ssm_cache_dtype": "float32",
    "mlp_hidden_act": "relu2",
    "time_step_min": 0.001,
    "time_step_max": 0.1,
    "time_step_floor": 0.0001,
    "num_logits_to_keep": 1,
    "sliding_window": None,
    "partial_rotary_factor": 1.0,
    "rope_theta": 10000,
    "max_position_embeddings": 262144,
}
EXPERTS = {"n_shared_experts": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": True}

NANO_JSON = {
    **COMMON,
    **EXPERTS,
    "auto_map": {"AutoConfig": "configuration_nemotron_h.NemotronHConfig"},
    "torch_dtype": "bfloat16",
    "transformers_version": "4.53.2",
    "hidden_size": 2688,
    "num_hidden_layers": 52,
    "hybrid_override_pattern": NANO_PATTERN,
    "num_attention_heads": 32,
    "mamba_num_heads": 64,
    "n_routed_experts": 128,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1856,
    "intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "routed_scaling_factor": 2.5,
}
LIGHTNING_JSON = {
    **{k: v for k, v in NANO_JSON.items() if k not in ("hybrid_override_pattern", "torch_dtype")},
    "dtype": "bfloat16",
    "transformers_version": "5.8.1",
    "layers_block_type": [WORDS[letter] for letter in NANO_PATTERN],
    "mtp_layers_block_type": ["attention", "moe"],
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 1048576,
    "moe_latent_size": None,
    "moe_shared_expert_overlap": True,
}
SUPER_JSON = {
    **COMMON,
    **EXPERTS,
    "dtype": "bfloat16",
    "hidden_size": 4096,
    "num_hidden_layers": 88,
    "hybrid_override_pattern": SUPER_PATTERN,
    "mtp_hybrid_override_pattern": "*E",
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 32,
    "mamba_num_heads": 128,
    "n_routed_experts": 512,
    "num_experts_per_tok": 22,
    "moe_intermediate_size": 2688,
    "intermediate_size": 2688,
    "moe_shared_expert_intermediate_size": 5376,
    "moe_latent_size": 1024,
    "moe_shared_expert_overlap": False,
    "routed_scaling_factor": 5.0,
    "time_step_limit": [0.0, math.inf],
}
ULTRA_JSON = {
    **{
        k: v
        for k, v in SUPER_JSON.items()
        if k not in ("num_hidden_layers", "hybrid_override_pattern", "mtp_hybrid_override_pattern")
    },
    "hidden_size": 8192,
    "layers_block_type": [WORDS[letter] for letter in ULTRA_PATTERN],
    "mtp_layers_block_type": ["attention", "moe"],
    "num_attention_heads": 64,
    "mamba_num_heads": 256,
    "moe_intermediate_size": 5120,
    "intermediate_size": 5120,
    "moe_shared_expert_intermediate_size": 10240,
    "moe_latent_size": 2048,
    "time_step_limit": [0.0, 1e308],
}
NANO_4B_JSON = {
    **COMMON,
    "dtype": "bfloat16",
    "hidden_size": 3136,
    "num_hidden_layers": 42,
    "hybrid_override_pattern": DENSE_PATTERN,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "mamba_num_heads": 96,
    "mamba_head_dim": 80,
    "chunk_size": 256,
    "intermediate_size": 12544,
}
MEMBERS = {
    "nano": (NANO_JSON, NANO),
    "lightning": (LIGHTNING_JSON, LIGHTNING),
    "super": (SUPER_JSON, SUPER),
    "ultra": (ULTRA_JSON, ULTRA),
    "nano-4b": (NANO_4B_JSON, NANO_4B),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_the_published_fields_give_the_named_size(name, tmp_path):
    fields, size = MEMBERS[name]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert read_config(tmp_path / "config.json") == size


def test_infinity_is_read_in_all_spellings(tmp_path):
    for text in ("Infinity", "1e308", '{"__float__": "Infinity"}', "1e999"):
        raw = json.dumps({**NANO_JSON, "time_step_limit": "HERE"})
        (tmp_path / "config.json").write_text(raw.replace('"HERE"', f"[0.0, {text}]"))
        assert read_config(tmp_path / "config.json") == NANO


def test_both_vocabularies_of_block_types_mean_the_same():
    fields = {k: v for k, v in NANO_4B_JSON.items() if k != "hybrid_override_pattern"}
    for key in ("layers_block_type", "layer_types"):
        for words in (WORDS, NEW_WORDS):
            types = [words[letter] for letter in DENSE_PATTERN]
            assert parse({**fields, key: types}) == NANO_4B


def test_a_model_of_another_shape_is_custom_and_keeps_its_context():
    found = parse({**NANO_JSON, "vocab_size": 1000, "max_position_embeddings": 77})
    assert (found.name, found.vocab, found.context) == ("custom", 1000, 77)
    assert parse({**NANO_JSON, "max_position_embeddings": 77}) == NANO.replace(context=77)


def test_a_tied_head_is_read():
    assert parse({**NANO_JSON, "tie_word_embeddings": True}).tied


def test_an_mtp_pattern_without_a_module_counts_for_nothing():
    fields = {**NANO_JSON, "mtp_layers_block_type": ["attention", "moe"]}
    assert parse({**fields, "num_nextn_predict_layers": 0}) == NANO
    assert parse(fields) == NANO


OTHER_MATHEMATICS = {
    "attention_bias": True,
    "mlp_bias": True,
    "use_bias": True,
    "mamba_proj_bias": True,
    "use_conv_bias": False,
    "mlp_hidden_act": "silu",
    "mamba_hidden_act": "gelu",
    "n_group": 8,
    "topk_group": 4,
    "norm_topk_prob": False,
    "residual_in_fp32": True,
    "sliding_window": 4096,
    "time_step_limit": [0.001, math.inf],
    "num_nextn_predict_layers": 2,
    "n_shared_experts": 2,
    "model_type": "nemotron",
    "architectures": ["NemotronHForSequenceClassification"],
}


@pytest.mark.parametrize("field", OTHER_MATHEMATICS)
def test_other_mathematics_is_refused_by_name(field):
    with pytest.raises(CheckpointError, match=field):
        parse({**LIGHTNING_JSON, field: OTHER_MATHEMATICS[field]})


@pytest.mark.parametrize(
    "limit", [[0.0, 0.1], [0.5, math.inf], [0.0], 3, [0.0, math.nan], [0.0, "x"], [0.0, {}]]
)
def test_a_clamp_on_dt_is_refused(limit):
    with pytest.raises(CheckpointError, match="dt is not clamped"):
        parse({**NANO_JSON, "time_step_limit": limit})


def test_an_unknown_field_is_refused_with_the_nearest_name_and_may_be_ignored():
    fields = {**NANO_JSON, "n_routed_expert": 4}
    with pytest.raises(CheckpointError, match=r"Did you mean 'n_routed_experts'.*ignore="):
        parse(fields)
    assert parse(fields, ignore=("n_routed_expert",)) == NANO


@pytest.mark.parametrize(
    "field",
    ["hidden_size", "vocab_size", "ssm_state_size", "num_key_value_heads", "n_routed_experts"],
)
def test_a_missing_field_is_named(field):
    fields = {k: v for k, v in NANO_JSON.items() if k != field}
    with pytest.raises(CheckpointError, match=f"needs the field '{field}'"):
        parse(fields, "here/config.json")


def test_fields_that_no_block_uses_may_be_missing():
    fields = {k: v for k, v in NANO_4B_JSON.items() if k not in ("n_group", "moe_latent_size")}
    assert parse(fields) == NANO_4B


def test_contradictions_are_told():
    for change, told in (
        ({"num_hidden_layers": 51}, "num_hidden_layers is 51.*52 blocks"),
        ({"layers_block_type": ["moe"] * 52}, "contradicts itself about the blocks"),
        ({"norm_eps": 1e-6}, "norm_eps is 1e-06, but layer_norm_epsilon"),
        ({"layers_block_type": ["moe", "mambo"]}, "'mambo' at place 1.*Did you mean 'mamba'"),
        ({"layers_block_type": "moe"}, "must be a list"),
        ({"hybrid_override_pattern": "MEX"}, "'X'"),
        ({"n_groups": 7}, "7 groups"),
        ({"hidden_size": "wide"}, "width"),
        ({"hidden_size": -1}, "width"),
    ):
        with pytest.raises(CheckpointError, match=told):
            parse({**NANO_JSON, **change})


def test_a_config_without_blocks_is_told():
    fields = {k: v for k, v in NANO_JSON.items() if k != "hybrid_override_pattern"}
    with pytest.raises(CheckpointError, match="does not say which blocks"):
        parse(fields)
    with pytest.raises(CheckpointError, match="wanted mtp_hybrid_override_pattern"):
        parse({**NANO_JSON, "num_nextn_predict_layers": 1})


def test_puzzle_blocks_have_experts_of_their_own():
    blocks = [
        {"block_type": "mamba"},
        {"block_type": "moe", "moe_intermediate_size": 1280, "num_experts_per_tok": 4},
        {"block_type": "attention"},
        {"block_type": "moe", "moe_intermediate_size": 2688, "num_experts_per_tok": 22},
    ]
    dropped = ("hybrid_override_pattern", "num_hidden_layers", "moe_intermediate_size")
    fields = {
        **{k: v for k, v in SUPER_JSON.items() if k not in (*dropped, "num_experts_per_tok")},
        "model_type": "nemotron_h_puzzle",
        "architectures": ["NemotronHPuzzleForCausalLM"],
        "ssm_state_size": 96,
        "block_configs": blocks,
        "mtp_block_configs": [blocks[2], blocks[3]],
    }
    found = parse(fields)
    full = SUPER.moe
    assert full is not None
    assert found.pattern == "ME*E"
    assert found.mamba is not None
    assert found.mamba.state == 96
    assert found.moe == full
    assert found.moe_of == {1: MoEConfig(**{**full.as_dict(), "chosen": 4, "expert_width": 1280})}
    with pytest.raises(CheckpointError, match="block of block_configs may hold"):
        parse({**fields, "block_configs": [{"block_type": "mamba", "strange": 1}]})

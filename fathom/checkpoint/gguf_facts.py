"""What a GGUF file says about a model, in the words that llama.cpp asks for.

Promise: a model that llama.cpp's nemotron_h and nemotron_h_moe would compute differently, or not
load, is refused here with the reason. Tensors are `gguf.py`'s, tokens `gguf_text.py`'s.
"""

from collections.abc import Collection
from typing import Any

from fathom.config.model import ModelConfig
from fathom.errors import CheckpointError

MTP = "*E"
"""The one MTP head that llama.cpp knows."""
FILE_TYPES = {"NVFP4": 39, "BF16": 32, "F16": 1, "F32": 0}
"""llama.cpp's numbers for what most of a file is stored in, the narrowest first."""


def architecture(config: ModelConfig) -> str:
    """llama.cpp's name for this kind of model."""
    return "nemotron_h_moe" if "E" in config.pattern else "nemotron_h"


def check_model(config: ModelConfig) -> None:
    """Raise `CheckpointError` for a model that llama.cpp does not compute."""
    pattern, reason = config.pattern, None
    if "M" not in pattern or "*" not in pattern:
        reason = "it wants Mamba and attention blocks, one of each at least"
    elif "E" in pattern and "-" in pattern:
        reason = "it takes every feed-forward block of a model with experts for one with experts"
    elif config.moe_of:
        reason = "the experts of all blocks must be of one shape"
    elif "E" in pattern and config.moe is not None and config.moe.shared_width == 0:
        reason = "blocks with experts must have a shared one"
    elif config.mtp and (config.mtp != MTP or "E" not in pattern):
        reason = (
            f"it knows the MTP head {MTP!r} of a model with experts alone, not {config.mtp!r}; "
            f"leave the head out (--no-mtp)"
        )
    if reason is not None:
        raise CheckpointError(
            f"llama.cpp cannot run the model {config.name!r} with the blocks {pattern!r}: {reason}."
        )


def add_facts(writer: Any, config: ModelConfig, kinds: Collection[str]) -> None:
    """Give a gguf.GGUFWriter all that describes the model; `kinds` are the types of matrices."""
    mamba, attention = config.mamba, config.attention
    assert mamba is not None
    assert attention is not None
    blocks = list(config.pattern) + (["mtp"] if config.mtp else [])
    writer.add_name(config.name)
    writer.add_file_type(next(number for kind, number in FILE_TYPES.items() if kind in kinds))
    writer.add_quantization_version(2)
    writer.add_vocab_size(config.vocab)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.width)
    writer.add_block_count(len(blocks))
    writer.add_layer_norm_eps(config.eps)
    writer.add_layer_norm_rms_eps(config.eps)
    # a block without keys and without a feed-forward width is Mamba's
    writer.add_head_count(attention.heads)
    writer.add_head_count_kv([attention.kv_heads if b in ("*", "mtp") else 0 for b in blocks])
    writer.add_key_length(attention.head_width)
    writer.add_value_length(attention.head_width)
    writer.add_rope_scaling_finetuned(False)
    writer.add_ssm_conv_kernel(mamba.conv)
    writer.add_ssm_state_size(mamba.state)
    writer.add_ssm_group_count(mamba.groups)
    writer.add_ssm_inner_size(mamba.heads * mamba.head_width)
    writer.add_ssm_time_step_rank(mamba.heads)
    moe = config.moe if "E" in config.pattern else None
    hidden = moe.expert_width if moe is not None else config.mlp.hidden if config.mlp else 0
    writer.add_feed_forward_length([hidden if b in ("E", "-", "mtp") else 0 for b in blocks])
    if moe is None:
        return
    writer.add_expert_count(moe.experts)
    writer.add_expert_used_count(moe.chosen)
    writer.add_expert_feed_forward_length(moe.expert_width)
    writer.add_expert_shared_feed_forward_length(moe.shared_width)
    writer.add_expert_shared_count(1)
    writer.add_expert_weights_norm(True)
    writer.add_expert_weights_scale(moe.scale)
    writer.add_expert_group_count(1)
    if moe.latent is not None:
        writer.add_moe_latent_size(moe.latent)
    if config.mtp:
        writer.add_nextn_predict_layers(1)


__all__ = ["FILE_TYPES", "add_facts", "architecture", "check_model"]

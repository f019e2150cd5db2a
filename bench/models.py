"""Random weights of the benchmarks' shapes, the same for Fathom and its peers.

Promise: one set of random weights (standard deviation 0.02, norms one), made once by transformers
and written as an official checkpoint folder, serves every engine; each folder is stored in the type
that its model is served in. Its tokenizer is small: engines want one, benchmarks feed ids. The same
weights for llama.cpp are `to_llama.py`'s.

    python bench/models.py bench-1b runs/bench/bench-1b
    python bench/models.py bench-1b runs/bench/bench-1b-fp32 --dtype float32
"""

import argparse
from pathlib import Path

import torch
from transformers import NemotronHConfig, NemotronHForCausalLM
from workloads import WORKLOADS

from fathom.config.model import ModelConfig
from fathom.text import Tokenizer

STORED = {"pocket-like": torch.float32, "tiny-31m": torch.float32, "bench-1b": torch.bfloat16}
"""The type of each workload's weights on disk; router correction biases are fp32 always."""


def peer_config(config: ModelConfig) -> NemotronHConfig:
    """The same shape for transformers."""
    assert config.mamba is not None
    assert config.attention is not None
    assert config.moe is not None
    return NemotronHConfig(
        vocab_size=config.vocab,
        hidden_size=config.width,
        hybrid_override_pattern=config.pattern,
        num_attention_heads=config.attention.heads,
        num_key_value_heads=config.attention.kv_heads,
        head_dim=config.attention.head_width,
        mamba_num_heads=config.mamba.heads,
        mamba_head_dim=config.mamba.head_width,
        ssm_state_size=config.mamba.state,
        n_groups=config.mamba.groups,
        conv_kernel=config.mamba.conv,
        chunk_size=config.mamba.chunk,
        n_routed_experts=config.moe.experts,
        num_experts_per_tok=config.moe.chosen,
        moe_intermediate_size=config.moe.expert_width,
        moe_shared_expert_intermediate_size=config.moe.shared_width,
        intermediate_size=config.moe.expert_width,
        routed_scaling_factor=config.moe.scale,
        moe_latent_size=config.moe.latent,
        max_position_embeddings=config.context,
        num_nextn_predict_layers=0,
        tie_word_embeddings=False,
        use_cache=False,
    )


def make(config: ModelConfig, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write the workload's random weights as a Hugging Face folder.

    Args:
        config: the shape.
        folder: where; it is made.
        dtype: type of the weights; None: the workload's own of `STORED`. Weights of another type
            are these rounded, for they are drawn in fp32.
    """
    torch.manual_seed(0)
    model = NemotronHForCausalLM(peer_config(config)).float()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.dim() > 1 and "conv1d" not in name:
                value.normal_(std=0.02)
    biases = {n: b.clone() for n, b in model.named_buffers() if n.endswith("correction_bias")}
    model.to(dtype or STORED[config.name])
    for name, bias in biases.items():
        owner, _, last = name.rpartition(".")
        model.get_submodule(owner).register_buffer(last, bias)
    model.save_pretrained(folder)
    Tokenizer.train((__doc__,), vocab=520, special_slots=256).save(folder)


def main() -> None:
    """Write one workload."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=WORKLOADS)
    parser.add_argument("folder", type=Path, help="where its Hugging Face folder shall stand")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="stored type")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype) if options.dtype else None
    make(WORKLOADS[options.name], options.folder, dtype)


if __name__ == "__main__":
    main()

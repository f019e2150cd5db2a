"""What a model must move and multiply at least: the bounds that its speed is held against.

Promise: bytes are those of the tensors that are there, packed or not; of the routed experts as many
count as evenly spread routing is expected to visit. What a machine moves and multiplies in a second
is `machine.py`; both together are printed by `fathom bench`.
"""

from torch import nn

from fathom.config.model import MambaConfig, ModelConfig, MoEConfig
from fathom.model.latent_moe import Experts
from fathom.model.nemotron import Nemotron
from fathom.model.precision import Linear


def distinct_experts(shape: MoEConfig, tokens: int) -> float:
    """Expected number of different experts that `tokens` tokens visit if routing is even."""
    return shape.experts * (1 - (1 - shape.chosen / shape.experts) ** tokens)


def weight_bytes(model: Nemotron, sequences: int) -> float:
    """Bytes of weights that a decode step of so many sequences reads; the MTP head is not."""
    table = model.embedding.weight
    found = float(sequences * table.shape[1] * table.element_size())
    if model.packed_table is not None:
        found += model.packed_table.data.numel()
    elif model.head is None:
        found += table.numel() * table.element_size()
    parts = [*model.blocks, model.final_norm, *([model.head] if model.head is not None else [])]
    for part in parts:
        for inner in part.modules():
            found += _own_bytes(inner)
    for index in range(len(model.config.pattern)):
        shape = model.config.mixer(index)
        if isinstance(shape, MoEConfig):
            share = distinct_experts(shape, sequences) / shape.experts
            inside = [x for x in model.blocks[index].modules() if isinstance(x, Experts)]
            found += share * sum(map(_experts_bytes, inside))
    return found


def _own_bytes(part: nn.Module) -> float:
    """Bytes of a module's own tensors; routed experts are counted apart."""
    if isinstance(part, Experts):
        return 0.0
    if isinstance(part, Linear) and part.packed is not None:
        return part.packed.data.numel()
    return sum(own.numel() * own.element_size() for own in part.parameters(recurse=False))


def _experts_bytes(part: Experts) -> float:
    """Bytes of all routed experts of a layer."""
    if part.packed is not None:
        return sum(stack.data.numel() for stack in part.packed)
    return sum(own.numel() * own.element_size() for own in part.parameters())


def step_bytes(model: Nemotron, sequences: int, context: int) -> float:
    """Bytes that a decode step moves: weights, state read and written, keys and values read."""
    config, width = model.config, model.embedding.weight.element_size()
    kept = 2 * (config.state_bytes + config.conv_bytes(width))
    kept += context * config.kv_bytes_per_token(width)
    return weight_bytes(model, sequences) + sequences * kept


def attention_flop(config: ModelConfig, context: int) -> float:
    """FLOP of scores and weighted sums of one token over `context` others, in all layers."""
    if config.attention is None:
        return 0.0
    shape = config.attention
    return 4.0 * config.count("*") * context * shape.heads * shape.head_width


def forward_flop(config: ModelConfig, documents: int, length: int, head_rows: int) -> float:
    """FLOP of a forward pass: weights, chunked scan, causal attention.

    Args:
        config: the shape.
        documents: sequences.
        length: tokens of each.
        head_rows: rows that become logits: all in training, each sequence's last in prefill.
    """
    tokens = documents * length
    weights = config.active_parameters - 2 * config.vocab * config.width
    scan = 0
    if isinstance(config.mamba, MambaConfig):
        mamba = config.mamba
        inside = mamba.chunk * (mamba.groups * mamba.state + mamba.inner)
        scan = config.count("M") * (2 * inside + 4 * mamba.inner * mamba.state)
    each = 2 * weights + scan + attention_flop(config, length) / 2
    return float(tokens) * each + 2 * config.vocab * config.width * head_rows


__all__ = ["attention_flop", "distinct_experts", "forward_flop", "step_bytes", "weight_bytes"]

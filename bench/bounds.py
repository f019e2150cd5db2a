"""How fast a machine could be at most: bytes that a step must move, by the shape alone.

Promise: plain formulas over a model's shape, the same for every engine, so that nobody argues;
what the machine does a second is measured in `ceiling.py`. A decode step reads every stored tensor
that it uses (of the routed experts as many as a batch is expected to hit), reads and writes the
recurrent state and reads the keys and values of the past. FLOP, and the same bytes counted on a
model that is there, are the library's `model/traffic.py`.
"""

from dataclasses import dataclass

from fathom.config.model import MambaConfig, ModelConfig, MoEConfig
from fathom.model.traffic import attention_flop, distinct_experts


@dataclass(frozen=True)
class Stored:
    """Bytes that one weight takes, by what it belongs to."""

    mamba: float
    """in_proj and out_proj of the Mamba mixers."""
    experts: float
    """Routed and shared experts."""
    head: float
    """lm_head."""
    rest: float
    """Attention, router, convolution, norms, embedding."""
    kv: float
    """One value of keys and values, and of the convolution's tail."""


NVFP4_BYTES = 0.5 + 1 / 16
"""A four-bit code, and one byte of scale for sixteen of them."""

STORED = {
    "fp32": Stored(4, 4, 4, 4, 4),
    "bf16": Stored(2, 2, 2, 2, 2),
    "nvfp4": Stored(NVFP4_BYTES, NVFP4_BYTES, NVFP4_BYTES, 2, 2),
}
"""The formats that the benchmarks' folders have."""


def weight_bytes(config: ModelConfig, stored: Stored, batch: int) -> float:
    """Bytes of the weights that a decode step of `batch` sequences reads."""
    found = config.vocab * config.width * (stored.rest if config.tied else stored.head)
    found += (batch + 1) * config.width * stored.rest  # embedding rows, final norm
    for index in range(len(config.pattern)):
        mixer = config.mixer(index)
        found += config.width * stored.rest
        if isinstance(mixer, MambaConfig):
            products = config.width * (mixer.in_rows + mixer.inner)
            found += products * stored.mamba
            found += (mixer.parameters(config.width) - products) * stored.rest
        elif isinstance(mixer, MoEConfig):
            found += _expert_bytes(mixer, config.width, stored, batch)
        else:
            found += mixer.parameters(config.width) * stored.rest
    return found


def _expert_bytes(moe: MoEConfig, width: int, stored: Stored, batch: int) -> float:
    """Bytes of one mixture that a decode step of `batch` sequences reads."""
    one = 2 * (moe.latent or width) * moe.expert_width
    shared = 2 * width * moe.shared_width
    around = moe.active(width) - moe.chosen * one - shared
    read = distinct_experts(moe, batch) * one + shared
    return read * stored.experts + around * stored.rest


def decode_bytes(config: ModelConfig, stored: Stored, batch: int, context: int) -> float:
    """Bytes that one decode step moves: weights, state read and written, keys and values read."""
    per_value = stored.kv
    tail = config.conv_bytes(1) * per_value
    kept = 2 * (config.state_bytes + tail) + context * config.kv_bytes_per_token(1) * per_value
    return weight_bytes(config, stored, batch) + batch * kept


def context_seconds(
    config: ModelConfig, stored: Stored, tokens: int, read: float, flops: float
) -> float:
    """Least time that `tokens` more tokens of context add to a decode step of one sequence.

    Args:
        config: the shape.
        stored: how keys and values are kept.
        tokens: of context.
        read: bytes a second.
        flops: FLOP a second.
    """
    moved = tokens * config.kv_bytes_per_token(1) * stored.kv / read
    return max(moved, attention_flop(config, tokens) / flops)

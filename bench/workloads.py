"""The shapes that every benchmark measures: ones that Fathom and its peers all can run.

Promise: the same three everywhere; random weights for them are made by `models.py`.
"""

from fathom.config.model import AttentionConfig, MambaConfig, ModelConfig, MoEConfig

POCKET_LIKE = ModelConfig(
    name="pocket-like",
    vocab=1024,
    width=192,
    pattern="MEM*EMEM*E",
    mamba=MambaConfig(heads=6, state=64, groups=2),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=48),
    moe=MoEConfig(experts=16, chosen=4, expert_width=128, shared_width=256),
)
TINY_31M = ModelConfig(
    name="tiny-31m",
    vocab=32768,
    width=256,
    pattern="MEMEM*EMEME",
    mamba=MambaConfig(heads=8, state=64, groups=4),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=64),
    moe=MoEConfig(experts=16, chosen=4, expert_width=256, shared_width=512),
)
BENCH_1B = ModelConfig(
    name="bench-1b",
    vocab=32768,
    width=1024,
    pattern="MEMEM*EMEMEM*EMEMEM*EMEMEME",
    mamba=MambaConfig(heads=32, state=128, groups=8),
    attention=AttentionConfig(heads=16, kv_heads=2, head_width=64),
    moe=MoEConfig(experts=64, chosen=6, expert_width=704, shared_width=1408),
)
WORKLOADS = {config.name: config for config in (POCKET_LIKE, TINY_31M, BENCH_1B)}
"""The shapes by name; sizes and context are in docs and RESULTS.md."""

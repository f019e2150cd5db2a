"""The attention mixer: grouped queries, no positions of any kind.

Promise: the order of tokens reaches attention only through causality (and through the Mamba layers
around it), which is why nothing here limits the context. The mathematics is `ops/attend`.
"""

import torch
from torch import Tensor, nn

from fathom.config.model import AttentionConfig
from fathom.model.memory import AttentionMemory
from fathom.model.precision import Linear
from fathom.ops import attend
from fathom.ops.layout import Layout


class Attention(nn.Module):
    """Causal attention with H query heads on h key-value heads of width d."""

    def __init__(
        self,
        config: AttentionConfig,
        width: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        queries, shared = config.heads * config.head_width, config.kv_heads * config.head_width
        self.q_proj = Linear(width, queries, dtype=dtype, device=device)
        self.k_proj = Linear(width, shared, dtype=dtype, device=device)
        self.v_proj = Linear(width, shared, dtype=dtype, device=device)
        self.o_proj = Linear(queries, width, dtype=dtype, device=device)

    def initialise(self, std: float, out_std: float, generator: torch.Generator) -> None:
        """Fresh weights."""
        for matrix in (self.q_proj, self.k_proj, self.v_proj):
            nn.init.normal_(matrix.plain, std=std, generator=generator)
        nn.init.normal_(self.o_proj.plain, std=out_std, generator=generator)

    def forward(self, x_TD: Tensor, layout: Layout, memory: AttentionMemory | None) -> Tensor:
        """[T, D] -> [T, D]; the memory, if there is one, takes this call's keys and values."""
        width = self.config.head_width
        q = self.q_proj(x_TD).unflatten(-1, (self.config.heads, width))
        k = self.k_proj(x_TD).unflatten(-1, (self.config.kv_heads, width))
        v = self.v_proj(x_TD).unflatten(-1, (self.config.kv_heads, width))
        y = attend.attend(q, k, v, layout, memory.pages if memory else None)
        return self.o_proj(y.flatten(-2))  # type: ignore[no-any-return]


__all__ = ["Attention"]

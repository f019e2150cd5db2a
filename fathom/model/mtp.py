"""The multi-token prediction head: two blocks that look one token further each time they run.

Promise: one set of weights serves every depth; embedding and head are the backbone's. At depth 1
the hidden state is the backbone's after its final norm, at depth k the head's own output of depth
k - 1. How it learns is `train/objective.py`.
Source: Nemotron 3 Super technical report (arXiv 2604.12374), DeepSeek-V3 (arXiv 2412.19437).
"""

import torch
from torch import Tensor, nn

from fathom.config.model import ModelConfig
from fathom.model.block import Block, RMSNorm
from fathom.model.memory import Memory
from fathom.model.precision import Linear
from fathom.ops.layout import Layout


class MTP(nn.Module):
    """From a hidden state and the embedding of the next token to the next hidden state."""

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        width, eps = config.width, config.eps
        self.enorm = RMSNorm(width, eps, dtype=dtype, device=device)
        self.hnorm = RMSNorm(width, eps, dtype=dtype, device=device)
        self.eh_proj = Linear(2 * width, width, dtype=dtype, device=device)
        self.blocks = nn.ModuleList(
            Block(config.shape(letter), config, dtype=dtype, device=device) for letter in config.mtp
        )
        self.final_norm = RMSNorm(width, eps, dtype=dtype, device=device)

    def forward(
        self, hidden_TD: Tensor, embedded_TD: Tensor, layout: Layout, memory: Memory | None = None
    ) -> Tensor:
        """Hidden states at t and embeddings of t + 1 -> hidden states that predict t + 2.

        A memory holds the head's own keys and values; it moves on by the layout's tokens.
        """
        if memory is not None:
            layout = memory.continued(layout)
        both = torch.cat([self.enorm(embedded_TD), self.hnorm(hidden_TD)], dim=-1)
        x_TD = self.eh_proj(both)
        for index, block in enumerate(self.blocks):
            x_TD = block(x_TD, layout, memory.layers[index] if memory is not None else None)
        if memory is not None:
            memory.advance(layout)
        return self.final_norm(x_TD)  # type: ignore[no-any-return]


__all__ = ["MTP"]

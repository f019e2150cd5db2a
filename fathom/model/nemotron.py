"""Nemotron 3, whole: embedding, a row of blocks, a norm, a head; five minutes top to bottom.

Promise: the same call trains and serves. `model(tokens, layout)` remembers nothing;
`model(tokens, layout, memory)` continues the memory's sequences. Hidden states come back after the
final norm, and `model.logits` turns only the rows that are needed into logits.
Source: Nemotron 3 white paper (arXiv 2512.20856), section 2.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fathom.config.model import ModelConfig
from fathom.errors import ConfigError, RequestError
from fathom.model.block import Block, RMSNorm
from fathom.model.latent_moe import Experts, Router
from fathom.model.mamba import Mamba
from fathom.model.memory import MambaMemory, Memory
from fathom.model.mtp import MTP
from fathom.model.precision import Linear
from fathom.model.sizes import size
from fathom.ops.layout import Layout
from fathom.ops.linear import Packed, packed_linear


class Nemotron(nn.Module):
    """A hybrid Mamba-2 / attention / MoE language model.

    Args:
        config: its shape, or the name of a size such as "pocket".
        dtype: type of the parameters (router correction biases are fp32 always).
        device: where they live; "meta" makes a model without memory.
        seed: of the fresh weights; None leaves them unset, for a loader to fill.
    """

    def __init__(
        self,
        config: ModelConfig | str,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        seed: int | None = 0,
    ) -> None:
        super().__init__()
        self.config = config = size(config) if isinstance(config, str) else config
        table = torch.empty(config.vocab, config.width, dtype=dtype, device=device)
        self.embedding = nn.Embedding.from_pretrained(table, freeze=False)
        self.blocks = nn.ModuleList(
            Block(config.mixer(index), config, dtype=dtype, device=device)
            for index in range(len(config.pattern))
        )
        self.final_norm = RMSNorm(config.width, config.eps, dtype=dtype, device=device)
        self.head = None
        if not config.tied:
            self.head = Linear(config.width, config.vocab, dtype=dtype, device=device)
        self.packed_table: Packed | None = None
        """Where the head is the embedding: a copy of it, packed for products."""
        self.mtp = MTP(config, dtype=dtype, device=device) if config.mtp else None
        self.calibration: Mapping[str, float] = {}
        """Scales of activations, keys and values that a quantised checkpoint brought, by the
        official names of their tensors; products do not use them, saving writes them again."""
        self.gradient_checkpointing = False
        """Whether training recomputes each block in the backward pass instead of keeping it."""
        if seed is not None and table.device.type != "meta":
            self.initialise(seed)

    def initialise(self, seed: int) -> None:
        """Fresh weights: normal, smaller by sqrt(blocks) where a block writes into the stream."""
        generator = torch.Generator().manual_seed(seed)
        std = self.config.init_std
        out_std = std / len(self.config.pattern) ** 0.5
        nn.init.normal_(self.embedding.weight, std=std, generator=generator)
        if self.head is not None:
            nn.init.normal_(self.head.plain, std=std, generator=generator)
        blocks = [*self.blocks, *(self.mtp.blocks if self.mtp is not None else ())]
        for block in blocks:
            block.mixer.initialise(std, out_std, generator)
        if self.mtp is not None:
            nn.init.normal_(self.mtp.eh_proj.plain, std=std, generator=generator)

    def forward(self, tokens_T: Tensor, layout: Layout, memory: Memory | None = None) -> Tensor:
        """Run the stream through every block.

        Args:
            tokens_T: int64 [T], sequences end to end.
            layout: how many tokens each sequence brings.
            memory: what the sequences remember; it moves on by these tokens. None: nothing.

        Returns:
            Hidden states [T, D] after the final norm.

        Raises:
            RequestError: the layout and the tokens or the memory do not fit.
        """
        if tokens_T.shape != (layout.tokens,):
            raise RequestError(
                f"The layout speaks of {layout.tokens} tokens, but tokens has shape "
                f"{list(tokens_T.shape)}; give one flat stream."
            )
        if memory is not None:
            layout = memory.continued(layout)
        x_TD = self.embedding(tokens_T)
        for index, block in enumerate(self.blocks):
            remembered = memory.layers[index] if memory is not None else None
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x_TD = checkpoint(block, x_TD, layout, remembered, use_reentrant=False)
            else:
                x_TD = block(x_TD, layout, remembered)
        if memory is not None:
            memory.advance(layout)
        return self.final_norm(x_TD)  # type: ignore[no-any-return]

    def pack(self) -> "Nemotron":
        """Lay every matrix out for fast products, in place; the model cannot be trained any more.

        Each weight is freed as its packed form is made. Embedding, convolutions, norms and routers
        stay as they are. Returns the model itself.
        """
        for part in self.modules():
            if isinstance(part, Linear | Experts) and part.packed is None:
                part.pack()
        if self.head is None and self.packed_table is None:
            self.packed_table = Packed.of(self.embedding.weight)
        return self.requires_grad_(False)

    def memory(self, sequences: int = 1, capacity: int = 256) -> Memory:
        """The memory of so many sequences that have not begun, of this model's type and place.

        Keys and values have room for `capacity` tokens of each at first.
        """
        weight = self.embedding.weight
        return Memory.empty(
            self.config,
            sequences=sequences,
            capacity=capacity,
            dtype=weight.dtype,
            device=weight.device,
        )

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Hidden states [T, D] -> logits [T, V] in fp32."""
        if self.packed_table is not None:
            return packed_linear(hidden_TD, self.packed_table).float()
        if self.head is None:
            return F.linear(hidden_TD.float(), self.embedding.weight.float())
        return self.head(hidden_TD).float()  # type: ignore[no-any-return]

    def accept(self, memory: Memory, layout: Layout, counts_S: Tensor) -> None:
        """Move a memory that is holding on by the first `counts_S` tokens of its last call.

        The states are then, bit for bit, what as many single steps would have made of them.

        Args:
            memory: holding; `layout` is that of the call.
            layout: what each sequence brought.
            counts_S: int32 [S], how many of each sequence's tokens stay, from 0 to all.
        """
        for block, remembered in zip(self.blocks, memory.layers, strict=True):
            if isinstance(block.mixer, Mamba) and isinstance(remembered, MambaMemory):
                block.mixer.accept(remembered, layout, counts_S)

    def draft(
        self,
        hidden_TD: Tensor,
        next_tokens_T: Tensor,
        layout: Layout,
        memory: Memory | None = None,
    ) -> Tensor:
        """One depth of the MTP head: states at t and tokens t + 1 -> states that predict t + 2.

        Args:
            hidden_TD: the backbone's states after its final norm, or the head's of a depth less.
            next_tokens_T: the token that follows each.
            layout: what each sequence brings.
            memory: the head's own keys and values; it moves on by the layout's tokens.

        Raises:
            ConfigError: this model has no MTP head.
        """
        if self.mtp is None:
            raise ConfigError(f"{self.config.name} has no MTP head; its config says mtp = ''.")
        embedded_TD = self.embedding(next_tokens_T)
        return self.mtp(hidden_TD, embedded_TD, layout, memory)  # type: ignore[no-any-return]

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix [V, D]: the embedding where they are tied."""
        return self.embedding.weight if self.head is None else self.head.plain

    def routers(self) -> list[Router]:
        """Every router in order, the MTP head's last."""
        return [part for part in self.modules() if isinstance(part, Router)]


__all__ = ["Nemotron"]

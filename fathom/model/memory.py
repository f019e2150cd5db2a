"""What a sequence remembers between calls: convolution tail, recurrent state, keys and values.

Promise: a memory is a value its holder owns; passing it to the model continues every sequence in
it exactly where it stopped. The Mamba part never grows, and a step of one token a sequence updates
it in place; keys and values lie in pages, one table for all layers, and a pool that is full
doubles. A memory that is `holding` keeps the inputs of a call instead of moving on by them, until
`Nemotron.accept` says how many of its tokens stay: what was drafted in vain leaves no trace, and no
copy of a state is needed. What a page is, is `ops/attend/pages.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from fathom.config.model import AttentionConfig, MambaConfig, MixerConfig, ModelConfig
from fathom.errors import RequestError
from fathom.ops.attend.pages import PAGE, Pages
from fathom.ops.layout import Layout
from fathom.ops.ssd import Rounding


@dataclass
class Held:
    """What one Mamba layer was given by the last call, in the order of its stream."""

    taken_Tc: Tensor
    """Inputs of the convolution."""
    given_Tc: Tensor
    """Its outputs: x, B and C of the scan."""
    dt_TH: Tensor
    """Step sizes, fp32."""

    def keep(self, taken_Tc: Tensor, given_Tc: Tensor, dt_TH: Tensor) -> None:
        """Take a call's inputs in the place of the last one's."""
        tokens = taken_Tc.shape[0]
        self.taken_Tc[:tokens].copy_(taken_Tc)
        self.given_Tc[:tokens].copy_(given_Tc)
        self.dt_TH[:tokens].copy_(dt_TH)


@dataclass
class MambaMemory:
    """One Mamba layer's memory of S sequences."""

    tail_Skc: Tensor
    """The last k - 1 inputs of the convolution, in the model's type."""
    state_SHPN: Tensor
    """The recurrent state, fp32 or fp16."""
    held: Held | None = None
    """Room for the inputs of a call that may be taken back; None: calls are final."""
    rounding: Rounding | None = None
    """How a state in fp16 is rounded; its past is the memory's."""

    def buffers(self) -> list[Tensor]:
        """What a step writes into, in place."""
        held = self.held
        kept = [held.taken_Tc, held.given_Tc, held.dt_TH] if held is not None else []
        return [self.tail_Skc, self.state_SHPN, *kept]


@dataclass
class AttentionMemory:
    """One attention layer's memory: its pool of pages, with the table that all layers share."""

    pages: Pages

    def buffers(self) -> list[Tensor]:
        """What a step writes into, in place."""
        return [self.pages.keys, self.pages.values]

    def grow(self, count: int, table_SB: Tensor) -> None:
        """Exchange the table, and the pool for one of `count` pages if that is more."""
        old = self.pages
        if count > old.keys.shape[0]:
            new = Pages.empty(
                count,
                old.heads,
                old.width,
                table_SB,
                old.past_S,
                tokens=old.tokens,
                dtype=old.keys.dtype,
                k_scale=old.k_scale,
                v_scale=old.v_scale,
            )
            new.keys[: old.keys.shape[0]].copy_(old.keys)
            new.values[: old.values.shape[0]].copy_(old.values)
            self.pages = new
        else:
            self.pages = replace(old, table_SB=table_SB)


@dataclass
class Memory:
    """All that S sequences remember of a model's backbone, layer by layer."""

    layers: list[MambaMemory | AttentionMemory | None]
    """One entry a block; None for blocks that remember nothing."""
    seen: list[int]
    """Tokens each sequence has given so far."""
    past_S: Tensor
    """int32 [S]: the same as `seen`, where the attention layers read it."""
    table_SB: Tensor
    """int32 [S, B]: pages of each sequence, the same in every attention layer."""
    given: list[int]
    """Pages each sequence has."""
    holding: bool = False
    """Whether calls are kept until it is known how many of their tokens stay."""

    @classmethod
    def empty(
        cls,
        config: ModelConfig,
        *,
        sequences: int = 1,
        capacity: int = 256,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> "Memory":
        """The memory of sequences that have not begun.

        Args:
            config: the model's shape.
            sequences: how many sequences S.
            capacity: tokens of each sequence for which keys and values have room at first. Up to
                there nothing moves; beyond, the pool of pages doubles.
            dtype: type of tails, keys and values: the model's. States are fp32.
            device: where it lives.
        """
        each = max(1, -(-capacity // PAGE))
        table_SB = torch.arange(sequences * each, dtype=torch.int32, device=device)
        mixers = [config.mixer(index) for index in range(len(config.pattern))]
        return cls.paged(mixers, table_SB.view(sequences, each), sequences * each, dtype=dtype)

    @classmethod
    def paged(
        cls,
        mixers: Iterable[MixerConfig],
        table_SB: Tensor,
        pages: int,
        *,
        dtype: torch.dtype = torch.float32,
        kv_dtype: torch.dtype | None = None,
        state_dtype: torch.dtype = torch.float32,
        begun: bool = True,
    ) -> "Memory":
        """The same for a row of blocks and a table of pages that the caller gives out.

        Args:
            mixers: the blocks' shapes.
            table_SB: int32 [S, B], the pages of each sequence; the memory lives on its device.
            pages: how many pages every attention layer's pool has.
            dtype: type of the convolutions' tails.
            kv_dtype: type of keys and values; None: `dtype`.
            state_dtype: of recurrent states: fp32, or fp16, rounded by chance at every step.
            begun: False leaves tails and states unset, for a caller who writes them before use, so
                that rows nobody uses take no memory.
        """
        (sequences, each), device = table_SB.shape, table_SB.device
        make = torch.zeros if begun else torch.empty
        layers: list[MambaMemory | AttentionMemory | None] = []
        past_S = torch.zeros(sequences, dtype=torch.int32, device=device)
        for index, mixer in enumerate(mixers):
            if isinstance(mixer, MambaConfig):
                tail = (sequences, mixer.conv - 1, mixer.conv_width)
                state = (sequences, mixer.heads, mixer.head_width, mixer.state)
                layers.append(
                    MambaMemory(
                        make(tail, dtype=dtype, device=device),
                        make(state, dtype=state_dtype, device=device),
                        rounding=Rounding(past_S, index) if state_dtype == torch.float16 else None,
                    )
                )
            elif isinstance(mixer, AttentionConfig):
                heads, width, kind = mixer.kv_heads, mixer.head_width, kv_dtype or dtype
                pool = Pages.empty(pages, heads, width, table_SB, past_S, dtype=kind)
                layers.append(AttentionMemory(pool))
            else:
                layers.append(None)
        return cls(layers, [0] * sequences, past_S, table_SB, [each] * sequences)

    def continued(self, layout: Layout) -> Layout:
        """The same layout with this memory's past in it; keys and values get room for its tokens.

        Raises:
            RequestError: the layout has another number of sequences.
        """
        if layout.sequences != len(self.seen):
            raise RequestError(
                f"The memory holds {len(self.seen)} sequences, the layout brings "
                f"{layout.sequences}; give every sequence of the memory at least one token."
            )
        self.make_room(layout.lengths)
        return Layout.of(layout.lengths, self.seen)

    def part(self, layers: Iterable[MambaMemory | None], rows: Tensor | slice) -> "Memory":
        """A memory of some of the sequences that shares this one's pages.

        Args:
            layers: what the Mamba layers remember of them; None elsewhere, one entry a block. How
                states are rounded follows the part's own lengths.
            rows: which sequences; a slice makes views of table and lengths, indices copies.
        """
        table_SB, past_S = self.table_SB[rows], self.past_S[rows]
        own: list[MambaMemory | AttentionMemory | None] = []
        for mine, given in zip(self.layers, layers, strict=True):
            if isinstance(mine, AttentionMemory):
                pages = replace(mine.pages, table_SB=table_SB, past_S=past_S)
                own.append(AttentionMemory(pages))
            elif given is not None and given.rounding is not None:
                own.append(replace(given, rounding=replace(given.rounding, past_S=past_S)))
            else:
                own.append(given)
        count, each = table_SB.shape
        return Memory(own, past_S.tolist(), past_S, table_SB, [each] * count)

    def hold(self, layers: Iterable[Held | None]) -> "Memory":
        """The same memory, holding: calls keep their inputs in `layers` and move nothing on."""
        held: list[MambaMemory | AttentionMemory | None] = [
            replace(layer, held=room) if isinstance(layer, MambaMemory) else layer
            for layer, room in zip(self.layers, layers, strict=True)
        ]
        return replace(self, layers=held, holding=True)

    def make_room(self, lengths: Sequence[int]) -> None:
        """Give every sequence the pages that so many more tokens need; nothing else moves."""
        needed = [-(-(seen + new) // PAGE) for seen, new in zip(self.seen, lengths, strict=True)]
        if all(need <= given for need, given in zip(needed, self.given, strict=True)):
            return
        used, widest = sum(self.given), self.table_SB.shape[1]
        if max(needed) > widest:
            wider = max(max(needed), 2 * widest) - widest
            self.table_SB = F.pad(self.table_SB, (0, wider), value=-1)
        for sequence, need in enumerate(needed):
            given = self.given[sequence]
            if need > given:
                fresh = torch.arange(used, used + need - given, dtype=torch.int32)
                self.table_SB[sequence, given:need] = fresh.to(self.table_SB.device)
                self.given[sequence] = need
                used += need - given
        for layer in self.layers:
            if isinstance(layer, AttentionMemory):
                held = layer.pages.keys.shape[0]
                layer.grow(held if used <= held else max(used, 2 * held), self.table_SB)

    def buffers(self) -> list[Tensor]:
        """Everything that a step of one token a sequence reads and writes, where it stays."""
        found = [self.past_S, self.table_SB]
        for layer in self.layers:
            if layer is not None:
                found += layer.buffers()
        return found

    def advance(self, layout: Layout) -> None:
        """Move on by the tokens of a finished call; a memory that is holding stays."""
        if self.holding:
            return
        self.count(layout)
        if len(set(layout.lengths)) == 1:
            self.past_S += layout.lengths[0]
        else:
            self.past_S += torch.tensor(layout.lengths, dtype=torch.int32).to(self.past_S.device)

    def count(self, layout: Layout) -> None:
        """What of `advance` is Python's: the numbers of tokens, not the tensor that holds them."""
        self.seen = [seen + new for seen, new in zip(self.seen, layout.lengths, strict=True)]


__all__ = ["AttentionMemory", "Held", "MambaMemory", "Memory"]

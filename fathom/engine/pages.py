"""The engine's memory: one pool of pages for keys and values, one row of states a running request.

Promise: a page belongs to whoever counts on it, requests and kept prefixes alike, and is free when
nobody does; what a page or a state held before is never read, because lengths say what is valid.
Requests that run occupy the first rows without gaps, so a step works on views and nothing is
gathered. What a page is, is `ops/attend/pages.py`; how a model uses all this, `model/memory.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fathom.config.engine import EngineConfig
from fathom.errors import RequestError
from fathom.model.memory import AttentionMemory, Held, MambaMemory, Memory
from fathom.model.nemotron import Nemotron
from fathom.ops.attend.pages import PAGE
from fathom.ops.ssd import nearest

HISTORY = 4096
"""Tokens that the MTP head remembers of a request; beyond, it begins anew. It has no positions and
reads hidden states that know what came before, so that costs little."""

KV_DTYPES = {"bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
"""What keys and values may be stored as, beside the model's own type."""

STATE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
"""What the rows' states may be stored as; those of prompts, read or kept for reuse, are fp32."""


def pages_for(tokens: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // PAGE)


class PagePool:
    """Which pages are in use, and by how many."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._owners = [0] * count

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Hand out free pages; the caller has made sure that there are enough."""
        taken = [self._free.pop() for _ in range(count)]
        for page in taken:
            self._owners[page] = 1
        return taken

    def share(self, pages: Sequence[int]) -> None:
        """Count one more owner of each page."""
        for page in pages:
            self._owners[page] += 1

    def release(self, pages: Sequence[int]) -> None:
        """Count one owner less; pages that have none are free again."""
        for page in pages:
            self._owners[page] -= 1
            assert self._owners[page] >= 0
            if not self._owners[page]:
                self._free.append(page)


@dataclass
class State:
    """What the Mamba layers remember of one sequence."""

    layers: list[tuple[Tensor, Tensor] | None]
    """Tail [1, k - 1, c] and state [1, H, P, N] of each Mamba block; None of the others."""

    @classmethod
    def of(cls, memory: Memory, row: int) -> "State":
        """What a memory holds of one of its sequences, as views; `copy` keeps it."""
        rows = slice(row, row + 1)
        return cls(
            [
                (layer.tail_Skc[rows], layer.state_SHPN[rows])
                if isinstance(layer, MambaMemory)
                else None
                for layer in memory.layers
            ]
        )

    @property
    def bytes(self) -> int:
        """How much memory it takes."""
        return sum(x.nbytes for layer in self.layers if layer is not None for x in layer)

    def copy(self) -> "State":
        """The same numbers in memory of their own."""
        return State([layer and (layer[0].clone(), layer[1].clone()) for layer in self.layers])


class Slots:
    """The memory of the requests that run, one row each, and the pages of all."""

    def __init__(self, model: Nemotron, config: EngineConfig) -> None:
        """Make room as the config says; raises `RequestError` where it cannot hold a request."""
        shape, weight = model.config, model.embedding.weight
        spare = config.drafts + 1
        wide = pages_for(config.context + spare)
        tokens = config.kv_tokens or max(2 * config.context, 4096 * config.sequences)
        if pages_for(tokens) < pages_for(config.context):
            raise RequestError(
                f"Keys and values have room for {tokens} tokens, less than the {config.context} "
                f"of one request's context. Raise kv_tokens or lower context."
            )
        self.pool = PagePool(pages_for(tokens))
        count, device = config.sequences, weight.device
        self.table_SB = torch.full((count, wide), -1, dtype=torch.int32, device=device)
        kinds = {"dtype": weight.dtype, "kv_dtype": KV_DTYPES.get(config.kv, weight.dtype)}
        kinds["state_dtype"] = STATE_DTYPES[config.state]
        mixers = [shape.mixer(index) for index in range(len(shape.pattern))]
        self.memory = Memory.paged(mixers, self.table_SB, self.pool.count, begun=False, **kinds)
        self.head: Memory | None = None
        """The MTP head's memory: each row has pages of its own, which no other request shares."""
        if model.mtp is not None and config.drafts:
            drafting = [shape.shape(letter) for letter in shape.mtp]
            each = pages_for(min(HISTORY, config.context) + 2 * spare)
            own = torch.arange(count * each, dtype=torch.int32, device=device).view(count, each)
            self.head = Memory.paged(drafting, own, count * each, **kinds)
        self.drafting_SD = weight.new_zeros(count, shape.width)
        """The head's last hidden states, a row a request."""
        rows = count * spare
        self.held = [
            Held(
                weight.new_empty(rows, layer.tail_Skc.shape[2]),
                weight.new_empty(rows, layer.tail_Skc.shape[2]),
                torch.empty(rows, layer.state_SHPN.shape[1], device=device),
            )
            if isinstance(layer, MambaMemory) and self.head is not None
            else None
            for layer in self.memory.layers
        ]

    @property
    def head_room(self) -> int:
        """Tokens that the head's memory of a request has room for."""
        return self.head.table_SB.shape[1] * PAGE if self.head is not None else 0

    @property
    def state_bytes(self) -> int:
        """Bytes of recurrent state that one sequence takes."""
        return self.read(0).bytes

    def first(self, count: int) -> Memory:
        """The memory of the first rows, as views."""
        rows = slice(0, count)
        return self.memory.part(
            [_rows(layer, rows) if isinstance(layer, MambaMemory) else None for layer in self._own],
            rows,
        )

    def of_head(self, rows: Tensor | slice, past_S: Tensor) -> Memory:
        """The MTP head's memory of some rows, which hold as many tokens as the caller says."""
        assert self.head is not None
        found = self.head.part([None] * len(self.head.layers), rows)
        found.past_S = past_S
        for layer in found.layers:
            if isinstance(layer, AttentionMemory):
                layer.pages = replace(layer.pages, past_S=past_S)
        return found

    def holding(self, count: int) -> Memory:
        """The memory of the first rows, which keeps calls until they are accepted."""
        return self.first(count).hold(self.held)

    def begun(self) -> State:
        """The state of a sequence that has not begun."""
        layers = self.read(0).layers
        return State(
            [x and (torch.zeros_like(x[0]), torch.zeros_like(x[1]).float()) for x in layers]
        )

    def read(self, slot: int) -> State:
        """The state in a row, as views; `State.copy` keeps it."""
        return State.of(self.memory, slot)

    def write(self, slot: int, state: State, pages: Sequence[int], past: int) -> None:
        """Put a sequence into a row."""
        for layer, given in zip(self._own, state.layers, strict=True):
            if isinstance(layer, MambaMemory) and given is not None:
                layer.tail_Skc[slot].copy_(given[0][0])
                layer.state_SHPN[slot].copy_(nearest(given[1][0], layer.state_SHPN.dtype))
        self.give(slot, 0, pages)
        self.memory.past_S[slot] = past

    def give(self, slot: int, place: int, pages: Sequence[int]) -> None:
        """Enter pages into a row of the table, from the page `place` on."""
        fresh = torch.tensor(pages, dtype=torch.int32)
        self.table_SB[slot, place : place + len(pages)] = fresh.to(self.table_SB.device)

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        self.write(target, self.read(source), (), 0)
        self.table_SB[target] = self.table_SB[source]
        self.memory.past_S[target] = self.memory.past_S[source]
        self.drafting_SD[target] = self.drafting_SD[source]
        if self.head is not None:
            table = self.head.table_SB
            table[[target, source]] = table[[source, target]]

    def gathered(
        self, states: Sequence[State], pages: Sequence[Sequence[int]], past: Sequence[int]
    ) -> Memory:
        """A memory of sequences that have no rows: their states copied, their pages as they are."""
        device = self.table_SB.device
        table_SB = torch.full((len(pages), max(map(len, pages))), -1, dtype=torch.int32)
        for row, given in zip(table_SB, pages, strict=True):
            row[: len(given)] = torch.tensor(given, dtype=torch.int32)
        past_S = torch.tensor(list(past), dtype=torch.int32, device=device)
        layers: list[MambaMemory | None] = []
        for own in zip(*(state.layers for state in states), strict=True):
            both = [layer for layer in own if layer is not None]
            tails, rows = [tail for tail, _ in both], [state for _, state in both]
            layers.append(MambaMemory(torch.cat(tails), torch.cat(rows)) if both else None)
        whole = Memory(self._own, list(past), past_S, table_SB.to(device), [0] * len(pages))
        return whole.part(layers, slice(None))

    def copy_page(self, source: int, target: int) -> None:
        """Copy what a page holds, in every attention layer."""
        for layer in self._own:
            if isinstance(layer, AttentionMemory):
                for pool in (layer.pages.keys, layer.pages.values):
                    _bytes(pool)[target].copy_(_bytes(pool)[source])

    @property
    def _own(self) -> list[MambaMemory | AttentionMemory | None]:
        return self.memory.layers


def _rows(layer: MambaMemory, rows: slice) -> MambaMemory:
    return replace(layer, tail_Skc=layer.tail_Skc[rows], state_SHPN=layer.state_SHPN[rows])


def _bytes(pool: Tensor) -> Tensor:
    """The same memory as bytes, which can be copied on every device."""
    return pool.view(torch.uint8) if pool.element_size() == 1 else pool


__all__ = ["KV_DTYPES", "STATE_DTYPES", "PagePool", "Slots", "State", "pages_for"]

"""How a ragged stream is cut into the chunks of the scan.

Promise: chunk boundaries lie at multiples of the chunk from each sequence's own first token,
earlier calls counted, so a sequence is cut alike however it is packed or continued.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.ops.layout import Layout
from fathom.ops.rows import pick, place

WIDEST = 64
"""Tokens of one tile: past this the pairs inside a chunk cost more than the states between."""


@dataclass(frozen=True)
class Chunks:
    """K chunks of at most Q tokens.

    Sequences of one length that fill their chunks lie as in the stream; all others are laid by
    rank (every sequence's first chunk, then every second one), longest sequences first. Either way
    the chunks of one rank are a plain slice, and so are those before them.
    """

    width: int
    """Q."""
    count: int
    """K."""
    dense: bool
    """Whether every chunk is full and in its place, so that the stream is the grid."""
    cell_T: Tensor
    """int64: the cell (k x Q + q) of each token."""
    order_S: Tensor
    """int64: the sequence of each chunk of the first rank."""
    last_S: Tensor
    """int64: the last chunk of each sequence."""
    ranks: tuple[slice, ...]
    """For r = 0, 1, ...: the chunks that are the (r+1)-th of their sequence."""
    before: tuple[slice, ...]
    """For each rank but the first: the chunks that come just before its own."""


@functools.lru_cache(maxsize=32)
@torch.inference_mode(False)
def chunks(layout: Layout, width: int) -> Chunks:
    """Cut a layout into chunks of `width` tokens."""
    cut = pieces(layout, width)
    deepest = max(len(own) for own in cut)
    order = sorted(range(len(cut)), key=lambda s: -len(cut[s]))
    by_rank = [[s for s in order if len(cut[s]) > rank] for rank in range(deepest)]
    even = len(set(layout.lengths)) == 1 and deepest * width == layout.lengths[0]
    if even:
        rows = [piece for own in cut for piece in own]
        ranks = [slice(rank, None, deepest) for rank in range(deepest)]
        before = ranks[:-1]
        last = [deepest * (s + 1) - 1 for s in range(len(cut))]
    else:
        rows = [cut[s][rank] for rank, members in enumerate(by_rank) for s in members]
        sizes = [len(members) for members in by_rank]
        starts = [sum(sizes[:rank]) for rank in range(deepest)]
        ranks = [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]
        before = [
            slice(start, start + size) for start, size in zip(starts[:-1], sizes[1:], strict=True)
        ]
        last = [starts[len(own) - 1] + order.index(s) for s, own in enumerate(cut)]
    cells = [torch.arange(k * width, k * width + tokens) for k, (_, tokens) in enumerate(rows)]
    tokens = [torch.arange(first, first + tokens) for first, tokens in rows]
    cell_T = torch.empty(layout.tokens, dtype=torch.int64)
    cell_T[torch.cat(tokens)] = torch.cat(cells)
    return Chunks(
        width=width,
        count=len(rows),
        dense=even,
        cell_T=cell_T,
        order_S=torch.tensor(order),
        last_S=torch.tensor(last),
        ranks=tuple(ranks),
        before=tuple(before),
    )


def pieces(layout: Layout, width: int) -> list[list[tuple[int, int]]]:
    """(first token, tokens) of each chunk of each sequence, for chunks of `width` tokens."""
    return [
        _pieces(*sequence, width)
        for sequence in zip(layout.starts, layout.lengths, layout.past, strict=True)
    ]


def tile(chunk: int) -> int:
    """The largest divisor of the chunk that is at most `WIDEST`: boundaries stay where they are."""
    return next(width for width in range(min(chunk, WIDEST), 0, -1) if chunk % width == 0)


def _pieces(start: int, length: int, past: int, width: int) -> list[tuple[int, int]]:
    """(first token, tokens) of each chunk of one sequence."""
    pieces, place = list[tuple[int, int]](), 0
    while place < length:
        take = min(width - (past + place) % width, length - place)
        pieces.append((start + place, take))
        place += take
    return pieces


def to_grid(x_T: Tensor, cut: Chunks) -> Tensor:
    """Lay a stream [T, ...] on the grid [K, Q, ...]; padding cells are zero."""
    if not cut.dense:
        x_T = place(x_T, cut.cell_T.to(x_T.device), cut.count * cut.width)
    return x_T.reshape(cut.count, cut.width, *x_T.shape[1:])


def to_stream(x_KQ: Tensor, cut: Chunks) -> Tensor:
    """Read the stream [T, ...] back from the grid [K, Q, ...]."""
    flat = x_KQ.reshape(cut.count * cut.width, *x_KQ.shape[2:])
    return flat if cut.dense else pick(flat, cut.cell_T.to(flat.device))


__all__ = ["WIDEST", "Chunks", "chunks", "pieces", "tile", "to_grid", "to_stream"]

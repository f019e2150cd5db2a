"""The memory of a recorded step: where its intermediate results lie, and what of it may change.

Promise: a result's place is its own for as long as a tensor of the step holds it, and stays
allocated while the arena lives, so the addresses that a recording knows are good. What changes from
step to step is known by the memory that a tensor lies in. The recording is `recorder.py`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LINE = 64
"""Bytes of a cache line; sizes of blocks are multiples of it."""


class Arena:
    """Blocks of memory for a step's results, and the tensors that have to live on."""

    def __init__(self, changing: Sequence[Tensor]) -> None:
        """Begin with the buffers that change from step to step."""
        self.kept: list[Tensor] = list(changing)
        """What lives as long as the arena: the buffers, and what was computed once."""
        self.blocks: list[Tensor] = []
        """A block whose tensors have all gone serves the next result that fits, so that a replay
        touches as little memory as the step did. The order of calls is the step's, so nothing is
        overwritten too early."""
        self._changing = {_memory(x) for x in changing}
        self._unused = _holders(torch.empty(1, dtype=torch.uint8))

    def changes(self, x: Tensor) -> bool:
        """Whether a tensor's values may differ from step to step."""
        return _memory(x) in self._changing

    def empty(
        self, shape: Sequence[int], dtype: torch.dtype, stride: Sequence[int] | None = None
    ) -> Tensor:
        """A tensor of unset values that change, contiguous unless strides are given."""
        stride = stride or _contiguous(shape)
        reach = sum((n - 1) * s for n, s in zip(shape, stride, strict=True)) + 1
        block = self._block(-(-max(1, reach * dtype.itemsize) // LINE) * LINE)
        return block.view(dtype).as_strided(tuple(shape), tuple(stride))

    def _block(self, size: int) -> Tensor:
        """A block of `size` bytes or up to twice as many."""
        free = [
            block
            for block in self.blocks
            if size <= block.numel() <= 2 * size and _holders(block) == self._unused
        ]
        if free:
            block = min(free, key=Tensor.numel)
            if torch.are_deterministic_algorithms_enabled():
                block.fill_(255)
            return block
        block = torch.empty(size, dtype=torch.uint8)
        self.blocks.append(block)
        self._changing.add(_memory(block))
        return block


def _memory(x: Tensor) -> int:
    """What tensors that share memory have in common."""
    storage: int = x.untyped_storage()._cdata
    return storage


def _holders(block: Tensor) -> int:
    """How many tensors share a block's memory, itself and what is asked here counted."""
    count: int = torch._C._storage_Use_Count(block.untyped_storage()._cdata)
    return count


def _contiguous(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides of a contiguous tensor."""
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(1, n)
    return tuple(reversed(strides))


__all__ = ["LINE", "Arena"]

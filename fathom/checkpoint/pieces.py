"""Values moved between tensors and safetensors files, piece by piece.

Promise: memory stays at the tensor being filled plus one piece, files are read with plain file
operations (nothing is mapped), and types are converted on the way. What a file may look like is
checked in `safe.py`.
"""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from fathom.checkpoint.safe import CODES, Entry
from fathom.errors import CheckpointError

PIECE = 8 * 2**20
"""Bytes read or written at once."""


class Reader:
    """Reads values piece by piece; holds one open file and one piece of memory."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._file: BufferedReader | None = None
        self._path: Path | None = None
        self._piece = bytearray(PIECE)

    def __enter__(self) -> Self:
        """Return itself; files are opened as they are read."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
        self._file = None

    def read(self, entry: Entry, target: Tensor, start: int = 0) -> None:
        """Fill the contiguous `target` with values of `entry` from value `start` on.

        The target's own type decides; its number of values decides how many are read. Where the
        file holds reciprocals, the target gets what they mean.
        """
        flat = target.detach().view(-1)
        assert start + flat.numel() <= entry.values
        width = entry.dtype.itemsize
        file = self._open(entry.file)
        file.seek(entry.begin + start * width)
        per_piece = PIECE // width
        for done in range(0, flat.numel(), per_piece):
            count = min(per_piece, flat.numel() - done)
            room = memoryview(self._piece)[: count * width]
            if file.readinto(room) != count * width:
                raise CheckpointError(
                    f"{entry.file} ended in the middle of {entry.name!r}: it was changed while it "
                    f"was read. Try again when nothing writes to it."
                )
            flat[done : done + count].copy_(
                torch.frombuffer(self._piece, dtype=entry.dtype, count=count)
            )
        if entry.inverse:
            flat.reciprocal_()

    def _open(self, path: Path) -> BufferedReader:
        if self._file is None or self._path != path:
            self.__exit__()
            try:
                self._file, self._path = path.open("rb"), path
            except OSError as error:
                raise CheckpointError(f"{path} cannot be read: {error}.") from error
        return self._file


@dataclass(frozen=True)
class Item:
    """A tensor to be written: what it is called, and how to get a run of its values."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    fill: Callable[[Tensor, int], None]
    """fill(piece, start): put the values from `start` on into the flat `piece`; called in order."""

    @property
    def bytes(self) -> int:
        """How many bytes its values take."""
        return math.prod(self.shape) * self.dtype.itemsize

    @classmethod
    def of(
        cls,
        name: str,
        tensor: Tensor,
        *,
        dtype: torch.dtype | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> "Item":
        """Make an item of a tensor on any device, to be stored as `dtype` under `shape`."""

        laid_out: list[Tensor] = []

        def fill(piece: Tensor, start: int) -> None:
            # a strided tensor is laid out once, and only while it is written
            if start == 0:
                laid_out[:] = [tensor.detach().reshape(-1)]
            piece.copy_(laid_out[0][start : start + piece.numel()])
            if start + piece.numel() == tensor.numel():
                laid_out.clear()

        return cls(name, dtype or tensor.dtype, shape or tuple(tensor.shape), fill)


def write(path: Path, items: Iterable[Item], *, digest: "hashlib._Hash | None" = None) -> int:
    """Write one safetensors file piece by piece, flush it to the disk, return its size in bytes.

    Feeds what is written to `digest` if one is given. Raises `OSError` when the disk is full.
    """
    # wide types first, so that every tensor begins at a multiple of its width
    ordered = sorted(items, key=lambda item: -item.dtype.itemsize)
    described: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in ordered:
        assert item.name not in described, item.name
        described[item.name] = {
            "dtype": CODES[item.dtype],
            "shape": list(item.shape),
            "data_offsets": [end, end + item.bytes],
        }
        end += item.bytes
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    start = len(text).to_bytes(8, "little") + text
    staging = bytearray(PIECE)
    with path.open("wb") as file:
        file.write(start)
        if digest is not None:
            digest.update(start)
        for item in ordered:
            per_piece = PIECE // item.dtype.itemsize
            values = math.prod(item.shape)
            for done in range(0, values, per_piece):
                count = min(per_piece, values - done)
                item.fill(torch.frombuffer(staging, dtype=item.dtype, count=count), done)
                room = memoryview(staging)[: count * item.dtype.itemsize]
                file.write(room)
                if digest is not None:
                    digest.update(room)
        file.flush()
        os.fsync(file.fileno())
    return len(start) + end


__all__ = ["PIECE", "Item", "Reader", "write"]

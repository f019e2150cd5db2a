"""A checkpoint written again in another dialect, or with its matrices decoded.

Promise: between ModelOpt and compressed-tensors nothing is rounded again: codes and block scales
keep their bytes, and the scale of a whole matrix becomes its reciprocal. The model is never held:
values pass through a few megabytes on their way. What the dialects say is `formats.py`'s and
`compressed.py`'s; GGUF is `gguf.py`'s.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fathom.checkpoint import compressed
from fathom.checkpoint.atomic import new_folder
from fathom.checkpoint.expected import WEIGHT, matrix_needs, stored_dtype
from fathom.checkpoint.folder import SHARD_BYTES, copy_text, storable, write_model
from fathom.checkpoint.formats import Stored
from fathom.checkpoint.names import CORRECTION_BIAS
from fathom.checkpoint.opened import Dialect, Opened, matrix_of, open_checkpoint
from fathom.checkpoint.packed import StoredMatrix, check_bytes, read_scale
from fathom.checkpoint.pieces import Item, Reader
from fathom.checkpoint.safe import Entry
from fathom.errors import ConfigError

Target = Literal["modelopt", "compressed-tensors", "bf16"]
ROUTED = ".mixer.experts."
"""What the names of routed experts' matrices contain."""
SILENTLY_WRONG = (
    "The routed experts are written in compressed-tensors' nvfp4-pack-quantized. vLLM reads them; "
    "transformers 5.23 loads them without a word and wrong: it leaves out weight_global_scale, so "
    "their weights are some thousand times too large. Give transformers the bf16 form (--to bf16), "
    "or leave the routed experts plain."
)


def rewrite(
    source: str | Path,
    target: str | Path,
    to: Target,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Write a checkpoint again in another form.

    Args:
        source: a folder or hub id; tokenizer and template are copied.
        target: the folder to write; replaced once the new one is complete.
        to: a dialect for quantised matrices, or `bf16`: all matrices decoded.
        dtype: stored type of what is plain (correction biases are fp32 always); None: as it is,
            and bf16 for what is decoded.
        shard_bytes: largest size of one file.

    Returns warnings: what readers of the new form may do wrong.

    Raises:
        CheckpointError: the source is damaged, or the target cannot be written.
        ConfigError: a dialect is asked for and nothing is quantised.
    """
    opened = open_checkpoint(source)
    if opened.dialect is None and to != "bf16":
        raise ConfigError(
            f"{opened.folder} holds plain weights, so there is nothing to say in {to}'s words. "
            f"`fathom quantise` rounds them first."
        )
    plain = dtype or (torch.bfloat16 if to == "bf16" else None)
    stored = plain or stored_dtype(opened.entries, opened.quantised)
    storable(stored)
    dialect: Dialect = "compressed-tensors" if to == "compressed-tensors" else "modelopt"
    with Reader() as reader:
        if to == "bf16":
            items = [_decoded(reader, opened, name, stored) for name in opened.wanted]
        else:
            items = _renamed(reader, opened, dialect, dtype)
        with new_folder(Path(target), sum(item.bytes for item in items)) as fresh:
            write_model(
                fresh,
                items,
                opened.config,
                stored,
                algorithms=None if to == "bf16" else opened.algorithms(),
                dialect=dialect,
                tensors=opened.wanted,
                shard_bytes=shard_bytes,
            )
            copy_text(opened.folder, fresh)
    return warnings(opened) if to == "compressed-tensors" else []


def warnings(opened: Opened) -> list[str]:
    """What readers of a compressed-tensors export of this checkpoint may do wrong."""
    wrong = any(ROUTED in name and kind == "nvfp4" for name, kind in opened.stored.items())
    return [SILENTLY_WRONG] if wrong else []


def _decoded(reader: Reader, opened: Opened, name: str, dtype: torch.dtype) -> Item:
    """One tensor of the model as plain numbers."""
    slot, entry = opened.wanted[name], opened.entries[name]
    if opened.stored.get(name, "plain") == "plain":
        own = torch.float32 if name.endswith(CORRECTION_BIAS) else dtype
        return Item(name, own, slot.shape, partial(reader.read, entry))
    rows, columns = slot.shape
    matrix = StoredMatrix(name, opened.stored[name], rows, columns, opened.entries)

    def fill(piece: Tensor, start: int) -> None:
        """Decode the rows that a run of values touches."""
        first, last = start // columns, -(-(start + piece.numel()) // columns)
        found = matrix.decode_rows(reader, first, last - first).view(-1)
        piece.copy_(found[start - first * columns :][: piece.numel()])

    return Item(name, dtype, slot.shape, fill)


def _renamed(
    reader: Reader, opened: Opened, dialect: Dialect, dtype: torch.dtype | None
) -> list[Item]:
    """All tensors with the names of a dialect, their values as they are.

    Plain experts are one tensor in compressed-tensors' dialect, as transformers holds them: its
    reader of that dialect drops plain ones that come one by one.
    """
    items: list[Item] = []
    stacks: dict[str, list[Entry]] = {}
    for name, slot in opened.wanted.items():
        kind, entry = opened.stored.get(name, "plain"), opened.entries[name]
        if kind != "plain":
            for part, need in matrix_needs(name.removesuffix(WEIGHT), slot.shape, kind).items():
                if not need.optional:
                    items.append(_part(reader, opened, part, dialect))
        elif slot.expert is not None and dialect == "compressed-tensors":
            before, _, which = name.removesuffix(WEIGHT).rpartition(".")
            stack = f"{before.rpartition('.')[0]}.{which}"
            stacks.setdefault(stack, []).append(entry)
        else:
            own = torch.float32 if name.endswith(CORRECTION_BIAS) else dtype or entry.dtype
            items.append(Item(name, own, slot.shape, partial(reader.read, entry)))
    for name, entries in stacks.items():
        shape = (len(entries), *entries[0].shape)
        fill = partial(_stacked, reader, entries)
        items.append(Item(name, dtype or entries[0].dtype, shape, fill))
    return items + [_part(reader, opened, name, dialect) for name in opened.scales]


def _stacked(reader: Reader, entries: list[Entry], piece: Tensor, start: int) -> None:
    """Fill a run of values of equal tensors, one behind the other."""
    each, done = entries[0].values, 0
    while done < piece.numel():
        index, offset = divmod(start + done, each)
        count = min(piece.numel() - done, each - offset)
        reader.read(entries[index], piece[done : done + count], offset)
        done += count


def _part(reader: Reader, opened: Opened, name: str, dialect: Dialect) -> Item:
    """A tensor of a quantised matrix under the name that a dialect gives it."""
    entry, kind = opened.entries[name], opened.stored.get(matrix_of(name), "plain")
    spelt, inverse = name, False
    if dialect == "compressed-tensors":
        spelt, inverse = compressed.spelt(name, kind)
    if name.endswith(WEIGHT) or (kind == "nvfp4" and name.endswith(".weight_scale")):
        return Item(spelt, entry.dtype, entry.shape, partial(_values, reader, entry, kind))
    if inverse and entry.inverse:
        # the reciprocal of a reciprocal would be another number
        entry, inverse = replace(entry, inverse=False), False
    shape = (1,) if dialect == "compressed-tensors" else ()
    return Item(spelt, torch.float32, shape, partial(_scale, reader, entry, inverse))


def _values(reader: Reader, entry: Entry, kind: Stored, piece: Tensor, start: int) -> None:
    """Copy codes or block scales; raises `CheckpointError` for those that mean nothing."""
    reader.read(entry, piece, start)
    if piece.dtype == torch.float8_e4m3fn:
        check_bytes(entry, piece, signed=kind == "fp8")


def _scale(reader: Reader, entry: Entry, inverse: bool, piece: Tensor, start: int) -> None:
    """Copy a scale, or its reciprocal."""
    read_scale(reader, entry, piece)
    if inverse:
        piece.reciprocal_()


__all__ = ["Target", "rewrite", "warnings"]

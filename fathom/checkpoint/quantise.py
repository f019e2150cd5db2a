"""A plain checkpoint written again with some of its matrices in NVFP4 or FP8.

Promise: the model is never held: matrices come from their files row by row, and of one at a time
the codes are kept until they are written. Rounding is to nearest, with scales from the largest
weights alone: nothing is calibrated and no scales for activations are written, so what comes out
is for products that round weights alone (W4A16, and FP8 weights). How numbers are rounded is
`ops/nvfp4`, what is written where `formats.py`.
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from fathom import hub
from fathom.checkpoint.atomic import new_folder, standing
from fathom.checkpoint.config_json import read_config
from fathom.checkpoint.expected import (
    WEIGHT,
    check,
    layout,
    matrix_needs,
    stored_dtype,
    stored_formats,
)
from fathom.checkpoint.folder import SHARD_BYTES, copy_text, write_model
from fathom.checkpoint.formats import Precisions, Stored
from fathom.checkpoint.names import CORRECTION_BIAS, Slot, canonical
from fathom.checkpoint.packed import row_pieces
from fathom.checkpoint.pieces import Item, Reader
from fathom.checkpoint.safe import Entry, catalogue
from fathom.config.model import ModelConfig
from fathom.errors import ConfigError
from fathom.ops import nvfp4

TABLES: Mapping[str, Mapping[str, Stored]] = {
    "lightning": {
        "head": "nvfp4",
        "blocks.*.mixer.experts.*": "nvfp4",
        "blocks.*.mixer.shared.*": "nvfp4",
        "blocks.*.mixer.in_proj": "fp8",
        "blocks.*.mixer.out_proj": "fp8",
    },
    "bench-nvfp4": {
        "head": "nvfp4",
        "blocks.*.mixer.experts.*": "nvfp4",
        "blocks.*.mixer.shared.*": "nvfp4",
        "blocks.*.mixer.in_proj": "nvfp4",
        "blocks.*.mixer.out_proj": "nvfp4",
    },
}
"""Which matrices are stored in which format, by our names; the last pattern that matches counts.

`lightning` is the map of the published Nemotron 3.5 Lightning NVFP4 checkpoint; `bench-nvfp4` is
what the benchmarks run in four bits.
"""
ALGORITHM: Mapping[Stored, str] = {"fp8": "FP8", "nvfp4": "W4A16_NVFP4"}
"""ModelOpt's words for weights in these formats without scales for activations."""


def lay_formats(
    config: ModelConfig, wanted: Mapping[str, Slot], table: str | Mapping[str, Stored]
) -> dict[str, Stored]:
    """The format of each matrix, by official name, that a table gives it.

    Args:
        config: the model.
        wanted: its tensors (`expected.layout`).
        table: a name of `TABLES`, or patterns of our names (`blocks.*.mixer.in_proj`) to `fp8`,
            `nvfp4` or `plain`; the last one that matches counts, and no match is plain.

    Raises:
        ConfigError: an unknown table or format, or a pattern that matches no matrix.
        CheckpointError: a matrix whose rows are no whole blocks of NVFP4.
    """
    if isinstance(table, str):
        if table not in TABLES:
            raise ConfigError(f"There is no table {table!r}; known are {', '.join(TABLES)}.")
        table = TABLES[table]
    found = stored_formats(config, wanted, Precisions(None, {}, ()))
    for pattern, kind in table.items():
        if kind not in ("plain", *ALGORITHM):
            raise ConfigError(
                f"{pattern!r} asks for the format {kind!r}; known are plain, "
                f"{', '.join(ALGORITHM)}."
            )
        names = [n for n in found if fnmatchcase(wanted[n].name.removesuffix(WEIGHT), pattern)]
        if not names:
            raise ConfigError(f"The table's pattern {pattern!r} matches no matrix of the model.")
        found.update(dict.fromkeys(names, kind))
    return found


class _Matrix:
    """One matrix on its way: its largest weight is found once, and it is encoded once."""

    def __init__(self, reader: Reader, entry: Entry, kind: Stored) -> None:
        self.reader, self.entry, self.kind = reader, entry, kind
        self.peak: Tensor | None = None
        self.encoded: dict[str, Tensor] = {}

    def rows(self, first: int, count: int) -> Tensor:
        """Some rows in fp32."""
        columns = self.entry.shape[1]
        rows = torch.empty(count, columns)
        self.reader.read(self.entry, rows, first * columns)
        return rows

    def amax(self) -> Tensor:
        """The largest magnitude, fp32 []."""
        if self.peak is None:
            rows, columns = self.entry.shape
            parts = [nvfp4.largest(self.rows(*part)) for part in row_pieces(rows, columns)]
            self.peak = torch.stack(parts).amax()
        return self.peak

    def scale(self) -> Tensor:
        """The scale of the whole matrix, fp32 []."""
        of = nvfp4.tensor_scale if self.kind == "nvfp4" else nvfp4.tensor_scale_fp8
        return of(self.amax())

    def encode(self) -> None:
        """Encode all rows."""
        rows, columns = self.entry.shape
        amax, scale = self.amax(), self.scale()
        four = self.kind == "nvfp4"
        dtype = torch.uint8 if four else torch.float8_e4m3fn
        codes = torch.empty(rows, columns // 2 if four else columns, dtype=dtype)
        scales = torch.empty(rows, columns // nvfp4.BLOCK * four, dtype=torch.float8_e4m3fn)
        for first, count in row_pieces(rows, columns):
            part, values = slice(first, first + count), self.rows(first, count)
            if four:
                codes[part], scales[part] = nvfp4.encode(values, amax)
            else:
                codes[part] = nvfp4.encode_fp8(values, scale)
        self.encoded["weight"] = codes.view(-1)
        if four:
            self.encoded["weight_scale"] = scales.view(-1)

    def fill(self, which: str, piece: Tensor, start: int) -> None:
        """Put values of the tensor called `which` into the flat `piece`."""
        if which == self.scale_name:
            piece.copy_(self.scale().view(1))
            return
        if not self.encoded:
            self.encode()
        end = start + piece.numel()
        piece.copy_(self.encoded[which][start:end])
        if end == self.encoded[which].numel():
            # kept until it is written, and no longer
            del self.encoded[which]

    @property
    def scale_name(self) -> str:
        """The last part of the name of the whole matrix's scale."""
        return "weight_scale_2" if self.kind == "nvfp4" else "weight_scale"


def _items(
    reader: Reader, name: str, entry: Entry, slot: Slot, kind: Stored, dtype: torch.dtype | None
) -> list[Item]:
    """What is written for one tensor of the source."""
    if kind == "plain":
        own = torch.float32 if name.endswith(CORRECTION_BIAS) else dtype or entry.dtype
        return [Item(name, own, slot.shape, partial(reader.read, entry))]
    module = name.removesuffix(WEIGHT)
    matrix = _Matrix(reader, entry, kind)
    return [
        Item(
            part,
            next(iter(need.dtypes)),
            need.shape,
            partial(matrix.fill, part.removeprefix(f"{module}.")),
        )
        for part, need in matrix_needs(module, slot.shape, kind).items()
        if not need.optional
    ]


def quantise(
    source: str | Path,
    target: str | Path,
    table: str | Mapping[str, Stored],
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a checkpoint again, its matrices in the formats of a table, in ModelOpt's layout.

    Args:
        source: a folder or hub id with plain weights; tokenizer and template are copied.
        target: the folder to write; replaced once the new one is complete.
        table: see `lay_formats`.
        dtype: stored type of what stays plain (correction biases are fp32 always); None: as it is.
        shard_bytes: largest size of one file.

    Returns the folder.

    Raises:
        CheckpointError: the source is damaged or quantised, or the target cannot be written.
        ConfigError: the table does not fit the model.
        KernelError: a weight is not finite.
    """
    local = standing(Path(source).expanduser())
    folder = local if local.is_dir() else hub.locate(source)
    config = read_config(folder / "config.json")
    entries = canonical(catalogue(folder))
    wanted = layout(config)
    check(entries, wanted, folder)
    kinds = lay_formats(config, wanted, table)
    with Reader() as reader:
        items = [
            item
            for name, slot in wanted.items()
            for item in _items(reader, name, entries[name], slot, kinds.get(name, "plain"), dtype)
        ]
        algorithms = {
            name.removesuffix(WEIGHT): ALGORITHM[kind]
            for name, kind in kinds.items()
            if kind != "plain"
        }
        with new_folder(Path(target), sum(item.bytes for item in items)) as fresh:
            write_model(
                fresh,
                items,
                config,
                dtype or stored_dtype(entries),
                algorithms=algorithms,
                shard_bytes=shard_bytes,
            )
            copy_text(folder, fresh)
    return Path(target)


__all__ = ["ALGORITHM", "TABLES", "lay_formats", "quantise"]

"""A plain checkpoint written again with some of its matrices in NVFP4 or FP8.

Promise: the model is never held: matrices come from their files row by row, and of one at a time
the codes are kept until they are written. Queries, keys and values of a block share one scale,
because engines multiply with them as one matrix. Scales of activations are written where they are
given; without them what comes out is for products that round weights alone (W4A16, and FP8
weights). How numbers are rounded is `ops/nvfp4`, what is written where `formats.py`, and how
formats, roundings and scales are chosen the room `quantise/`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from fathom.checkpoint.atomic import new_folder
from fathom.checkpoint.expected import WEIGHT, matrix_needs, stored_dtype, stored_formats
from fathom.checkpoint.folder import SHARD_BYTES, copy_text, write_model
from fathom.checkpoint.formats import Stored
from fathom.checkpoint.names import CORRECTION_BIAS, Slot
from fathom.checkpoint.opened import PLAIN, Opened, algorithms, open_checkpoint
from fathom.checkpoint.packed import row_pieces
from fathom.checkpoint.pieces import Item, Reader
from fathom.checkpoint.safe import Entry
from fathom.config.model import ModelConfig
from fathom.errors import CheckpointError, ConfigError
from fathom.model import precision
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
FUSED = tuple(f"{name}{WEIGHT}" for name in precision.FUSED)
"""Tensors of a block that engines lay side by side."""
Told = Callable[[str, float, float], None]
"""told(name, signal, noise): the sum of a matrix's squares, and of its errors' squares."""


@dataclass(frozen=True)
class Rounding:
    """How weights become NVFP4, given the largest of their matrix."""

    scale: Callable[[Tensor], Tensor]
    """Largest magnitude, fp32 [] -> the scale of the whole matrix."""
    encode: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(rows in fp32 [R, I], largest magnitude) -> codes [R, I / 2], block scales [R, I / 16]."""


LARGEST = Rounding(nvfp4.tensor_scale, nvfp4.encode)
"""Every block's largest weight becomes a 6."""


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
    found = stored_formats(config, wanted, PLAIN)
    for pattern, kind in table.items():
        if kind not in get_args(Stored):
            raise ConfigError(
                f"{pattern!r} asks for the format {kind!r}; known are "
                f"{', '.join(get_args(Stored))}."
            )
        names = [n for n in found if fnmatchcase(wanted[n].name.removesuffix(WEIGHT), pattern)]
        if not names:
            raise ConfigError(f"The table's pattern {pattern!r} matches no matrix of the model.")
        found.update(dict.fromkeys(names, kind))
    return found


class _Peak:
    """The largest magnitude of some matrices that share a scale, found once."""

    def __init__(self, reader: Reader, entries: list[Entry]) -> None:
        self.reader, self.entries = reader, entries
        self.found: Tensor | None = None

    def __call__(self) -> Tensor:
        """The magnitude, fp32 []."""
        if self.found is None:
            parts = [
                nvfp4.largest(_rows(self.reader, entry, *part))
                for entry in self.entries
                for part in row_pieces(*entry.shape)
            ]
            self.found = torch.stack(parts).amax()
        return self.found


def _rows(reader: Reader, entry: Entry, first: int, count: int) -> Tensor:
    """Some rows of a plain matrix in fp32."""
    columns = entry.shape[1]
    rows = torch.empty(count, columns)
    reader.read(entry, rows, first * columns)
    return rows


class _Matrix:
    """One matrix on its way: it is encoded once, and kept until it is written."""

    def __init__(self, plan: "_Plan", entry: Entry, kind: Stored, peak: _Peak, name: str) -> None:
        self.plan, self.entry, self.kind, self.peak, self.name = plan, entry, kind, peak, name
        self.encoded: dict[str, Tensor] = {}

    def scale(self) -> Tensor:
        """The scale of the whole matrix, fp32 []."""
        if self.kind == "nvfp4":
            return self.plan.rounding.scale(self.peak())
        return nvfp4.tensor_scale_fp8(self.peak())

    def encode(self) -> None:
        """Encode all rows."""
        rows, columns = self.entry.shape
        amax, scale = self.peak(), self.scale()
        four = self.kind == "nvfp4"
        dtype = torch.uint8 if four else torch.float8_e4m3fn
        codes = torch.empty(rows, columns // 2 if four else columns, dtype=dtype)
        scales = torch.empty(rows, columns // nvfp4.BLOCK * four, dtype=torch.float8_e4m3fn)
        signal = noise = 0.0
        for first, count in row_pieces(rows, columns):
            part, values = (
                slice(first, first + count),
                _rows(self.plan.reader, self.entry, first, count),
            )
            if four:
                codes[part], scales[part] = self.plan.rounding.encode(values, amax)
            else:
                codes[part] = nvfp4.encode_fp8(values, scale)
            if self.plan.told is not None:
                found = (
                    nvfp4.dequantise(nvfp4.Quantised(codes[part], scales[part], scale))
                    if four
                    else nvfp4.dequantise_fp8(codes[part], scale)
                )
                signal += values.square().sum().item()
                noise += (found - values).square().sum().item()
        self.encoded["weight"] = codes.view(-1)
        if four:
            self.encoded["weight_scale"] = scales.view(-1)
        if self.plan.told is not None:
            self.plan.told(self.name, signal, noise)

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


@dataclass(frozen=True)
class _Plan:
    """What becomes of the tensors of a source."""

    reader: Reader
    opened: Opened
    kinds: Mapping[str, Stored]
    """The format of every matrix, by official name."""
    dtype: torch.dtype | None
    rounding: Rounding
    told: Told | None

    def items(self) -> list[Item]:
        """All that is written of the source."""
        peaks: dict[tuple[str, Stored], _Peak] = {}
        found: list[Item] = []
        for name, slot in self.opened.wanted.items():
            kind, entry = self.kinds.get(name, "plain"), self.opened.entries[name]
            if kind == "plain":
                own = torch.float32 if name.endswith(CORRECTION_BIAS) else self.dtype or entry.dtype
                found.append(Item(name, own, slot.shape, partial(self.reader.read, entry)))
                continue
            together = name.rpartition(".mixer.")[0] if name.endswith(FUSED) else name
            peak = peaks.setdefault((together, kind), _Peak(self.reader, []))
            peak.entries.append(entry)
            found += self._quantised(name, slot, _Matrix(self, entry, kind, peak, name))
        return found

    def _quantised(self, name: str, slot: Slot, matrix: _Matrix) -> list[Item]:
        """The tensors of a quantised matrix."""
        module = name.removesuffix(WEIGHT)
        return [
            Item(
                part,
                next(iter(need.dtypes)),
                need.shape,
                partial(matrix.fill, part.removeprefix(f"{module}.")),
            )
            for part, need in matrix_needs(module, slot.shape, matrix.kind).items()
            if not need.optional
        ]


def _fitting(scales: Mapping[str, float], kinds: Mapping[str, Stored]) -> dict[str, float]:
    """These scales without those of the rows of matrices that stay plain."""
    plain = {name.removesuffix(WEIGHT) for name, kind in kinds.items() if kind == "plain"}
    return {
        name: value
        for name, value in scales.items()
        if not name.endswith(".input_scale") or name.rpartition(".")[0] not in plain
    }


def quantise(
    source: str | Path,
    target: str | Path,
    table: str | Mapping[str, Stored],
    *,
    dtype: torch.dtype | None = None,
    rounding: Rounding = LARGEST,
    scales: Mapping[str, float] | None = None,
    told: Told | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a checkpoint again, its matrices in the formats of a table, in ModelOpt's layout.

    Args:
        source: a folder or hub id with plain weights; tokenizer and template are copied.
        target: the folder to write; replaced once the new one is complete.
        table: see `lay_formats`.
        dtype: stored type of what stays plain (correction biases are fp32 always); None: as it is.
        rounding: how weights become NVFP4.
        scales: of activations, keys and values by official name (`...in_proj.input_scale`,
            `...k_proj.k_scale`); those of matrices that stay plain are left out.
        told: hears of every quantised matrix how much of it is lost.
        shard_bytes: largest size of one file.

    Returns the folder.

    Raises:
        CheckpointError: the source is damaged or quantised, or the target cannot be written.
        ConfigError: the table does not fit the model.
        KernelError: a weight is not finite.
    """
    opened = open_checkpoint(source)
    if opened.dialect is not None:
        raise CheckpointError(
            f"{opened.folder} holds quantised weights already; rounding them again would add their "
            f"errors up. Take the BF16 sibling of the model."
        )
    kinds = lay_formats(opened.config, opened.wanted, table)
    beside = _fitting(scales or {}, kinds)
    with Reader() as reader:
        items = _Plan(reader, opened, kinds, dtype, rounding, told).items()
        items += [Item.of(name, torch.tensor(value)) for name, value in beside.items()]
        with new_folder(Path(target), sum(item.bytes for item in items)) as fresh:
            write_model(
                fresh,
                items,
                opened.config,
                dtype or stored_dtype(opened.entries),
                algorithms=algorithms(kinds, beside),
                shard_bytes=shard_bytes,
            )
            copy_text(opened.folder, fresh)
    return Path(target)


__all__ = ["FUSED", "LARGEST", "TABLES", "Rounding", "Told", "lay_formats", "quantise"]

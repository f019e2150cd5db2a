"""Matrices read from files straight into packed storage, and written out of it.

Promise: a matrix passes through a few megabytes of rows on its way, in either direction, and no bit
of codes or scales changes; what is quantised can also be decoded into plain weights. How packed
rows lie in memory is `ops/linear/packed.py`, what a file must hold `expected.py`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fathom.checkpoint.expected import WEIGHT
from fathom.checkpoint.formats import GROUP, Stored
from fathom.checkpoint.names import Slot
from fathom.checkpoint.pieces import PIECE, Item, Reader
from fathom.checkpoint.safe import Entry
from fathom.config.model import ModelConfig
from fathom.errors import CheckpointError
from fathom.model.latent_moe import Experts
from fathom.model.nemotron import Nemotron
from fathom.model.precision import Linear
from fathom.ops import nvfp4
from fathom.ops.linear.packed import PANEL, STORED, Format, Packed, PackedStack

PLAIN: Mapping[torch.dtype, Format] = {torch.bfloat16: "bf16", torch.float32: "fp32"}
"""The formats of weights that are not quantised."""


def packed_formats(
    wanted: Mapping[str, Slot],
    stored: Mapping[str, Stored],
    entries: Mapping[str, Entry],
    dtype: torch.dtype | None,
) -> dict[str, Format]:
    """In which format each of our matrices is packed: as it is stored, plain ones as `dtype`.

    Raises `CheckpointError` for fp16, and where the experts of a layer differ.
    """
    if dtype is not None and dtype not in PLAIN:
        raise CheckpointError(
            f"Packed weights are bf16 or fp32, not {dtype}; ask for one of these, or load with "
            f"packed=False."
        )
    found: dict[str, Format] = {}
    for name, kind in stored.items():
        # fp16 is packed as fp32, which holds it exactly
        own = PLAIN.get(dtype or entries[name].dtype, "fp32") if kind == "plain" else kind
        before = found.setdefault(wanted[name].name, own)
        if before != own and not {before, own} <= set(PLAIN.values()):
            raise CheckpointError(
                f"{name} is stored in {own}, other experts of its layer in {before}; packed, the "
                f"experts of a layer share one format. Load with packed=False."
            )
        if before != own:
            found[wanted[name].name] = "fp32"
    return found


def empty_model(config: ModelConfig, dtype: torch.dtype, formats: Mapping[str, Format]) -> Nemotron:
    """A model to be filled: packed matrices of these formats, all else parameters of `dtype`."""
    model = Nemotron(config, dtype=dtype, device="meta", seed=None)
    for name, part in model.named_modules():
        if isinstance(part, Linear):
            part.pack(Packed.empty(formats[f"{name}.weight"], *part.plain.shape))
        elif isinstance(part, Experts):
            stacks = [
                PackedStack.empty(formats[f"{name}.{which}"], *getattr(part, which).shape)
                for which in ("up", "down")
            ]
            part.pack((stacks[0], stacks[1]))
    # not `to_empty`, for which torch would import 40 MB of symbolic mathematics
    for part in model.modules():
        for name, value in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.empty(value.shape, dtype=value.dtype)))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    return model


def held(model: Nemotron) -> dict[str, Packed | PackedStack]:
    """The packed matrices of a model, by the names that their tensors would have."""
    found: dict[str, Packed | PackedStack] = {}
    for name, part in model.named_modules():
        if isinstance(part, Linear) and part.packed is not None:
            found[f"{name}.weight"] = part.packed
        elif isinstance(part, Experts) and part.packed is not None:
            found[f"{name}.up"], found[f"{name}.down"] = part.packed
    return found


def matrix(packed: Packed | PackedStack, slot: Slot) -> Packed:
    """The matrix that an official tensor fills."""
    if isinstance(packed, Packed):
        return packed
    assert slot.expert is not None
    return packed[slot.expert]


def row_pieces(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """Whole panels of rows that take at most a piece of memory as fp32: first row, how many."""
    step = max(PANEL, PIECE // (4 * columns) // PANEL * PANEL)
    for first in range(0, rows, step):
        yield first, min(step, rows - first)


def read_scale(reader: Reader, entry: Entry, value: Tensor) -> None:
    """Fill `value`, fp32 [], with the one scale that a tensor holds.

    Raises `CheckpointError` unless it is a finite number above zero.
    """
    reader.read(entry, value)
    if not (value > 0 and value.isfinite()):
        held = value.reciprocal() if entry.inverse else value
        raise CheckpointError(
            f"{entry.name} in {entry.file} is {held.item()}; a scale is a finite number above "
            f"zero. The file is damaged, or the scales were never set; fetch or export it again."
        )


def check_bytes(entry: Entry, values: Tensor, signed: bool) -> None:
    """Raise `CheckpointError` if an E4M3 value is no number, or negative though it is a scale."""
    size = values.view(torch.uint8)
    if (size & 0x7F if signed else size).amax() > 0x7E:
        what = "values that are no numbers (0x7F)"
        raise CheckpointError(
            f"{entry.name} in {entry.file} holds {what if signed else f'negative ones or {what}'}; "
            f"such weights mean nothing. The file is damaged, or its exporter let scales overflow."
        )


@dataclass(frozen=True)
class StoredMatrix:
    """One matrix [rows, columns] in the files."""

    name: str
    """Its official name, `...weight`."""
    kind: Stored
    rows: int
    columns: int
    entries: Mapping[str, Entry]

    @property
    def scale(self) -> Entry | None:
        """Where the scale of the whole matrix is, if it has one."""
        suffix = {"plain": None, "fp8": "_scale", "nvfp4": "_scale_2"}[self.kind]
        return None if suffix is None else self.entries[self.name + suffix]

    def read_scale(self, reader: Reader) -> Tensor:
        """The scale, fp32 []; one where there is none."""
        value = torch.ones(())
        if self.scale is not None:
            read_scale(reader, self.scale, value)
        return value

    def read(
        self, reader: Reader, first: int, count: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        """Some rows as `Packed.fill` takes them; plain ones as `dtype`."""
        if self.kind != "nvfp4":
            dtype = dtype if self.kind == "plain" else torch.float8_e4m3fn
            values = torch.empty(count, self.columns, dtype=dtype)
            reader.read(self.entries[self.name], values, first * self.columns)
            if self.kind == "fp8":
                check_bytes(self.entries[self.name], values, signed=True)
            return values, None
        codes = torch.empty(count, self.columns // 2, dtype=torch.uint8)
        reader.read(self.entries[self.name], codes, first * (self.columns // 2))
        scales = torch.empty(count, self.columns // GROUP, dtype=torch.float8_e4m3fn)
        blocks = self.entries[f"{self.name}_scale"]
        reader.read(blocks, scales, first * (self.columns // GROUP))
        check_bytes(blocks, scales, signed=False)
        return codes, scales

    def pack(self, reader: Reader, packed: Packed) -> None:
        """Fill a packed matrix."""
        dtype = STORED[packed.format]
        for first, count in row_pieces(self.rows, self.columns):
            packed.fill(first, *self.read(reader, first, count, dtype))
        packed.scale.copy_(self.read_scale(reader))

    def decode_rows(self, reader: Reader, first: int, count: int) -> Tensor:
        """Some rows in fp32, [count, columns]: the numbers that codes and scales mean."""
        values, scales = self.read(reader, first, count, torch.float32)
        if self.kind == "plain":
            return values
        scale = self.read_scale(reader)
        if scales is None:
            return nvfp4.dequantise_fp8(values, scale)
        return nvfp4.dequantise(nvfp4.Quantised(values, scales, scale))

    def decode(self, reader: Reader, target_OI: Tensor) -> None:
        """Fill a plain matrix with the numbers that codes and scales mean."""
        for first, count in row_pieces(self.rows, self.columns):
            target_OI.detach()[first : first + count].copy_(self.decode_rows(reader, first, count))


class _Rows:
    """Serves the values (or block scales) of a packed matrix as one flat run, in order."""

    def __init__(self, packed: Packed, scales: bool) -> None:
        self.packed, self.scales = packed, scales
        halved = packed.columns // 2 if packed.format == "nvfp4" else packed.columns
        self.width = packed.columns // GROUP if scales else halved
        self.begin()

    def begin(self) -> None:
        """Start at the first row, holding nothing."""
        # not an empty tensor: its few bytes, held beside freed rows, would keep their memory in use
        self.flat: Tensor | None
        self.parts = row_pieces(self.packed.rows, self.packed.columns)
        self.first, self.flat = 0, None

    def fill(self, piece: Tensor, start: int) -> None:
        """Put the values from `start` on into the flat `piece`."""
        if start == 0:
            self.begin()
        done = 0
        while done < piece.numel():
            at = start + done - self.first * self.width
            if self.flat is None or at >= self.flat.numel():
                self.first, count = next(self.parts)
                values, scales = self.packed.unpack(self.first, count)
                found = scales if self.scales else values
                assert found is not None
                self.flat, at = found.view(-1), 0
            count = min(piece.numel() - done, self.flat.numel() - at)
            piece[done : done + count].copy_(self.flat[at : at + count])
            done += count
        if start + done == self.packed.rows * self.width:
            # nothing is kept of a matrix that has been written
            self.begin()


def items(name: str, packed: Packed, dtype: torch.dtype | None) -> list[Item]:
    """The tensors of a packed matrix in the official layout; plain ones as `dtype`, or as it is."""
    shape = (packed.rows, packed.columns)
    values = _Rows(packed, scales=False).fill
    own = STORED[packed.format]
    if packed.format in PLAIN.values():
        return [Item(name, dtype or own, shape, values)]
    scale = f"{name}_scale"
    if packed.format == "fp8":
        return [Item(name, own, shape, values), Item.of(scale, packed.scale)]
    blocks = _Rows(packed, scales=True).fill
    return [
        Item(name, own, (shape[0], shape[1] // 2), values),
        Item(scale, torch.float8_e4m3fn, (shape[0], shape[1] // GROUP), blocks),
        Item.of(f"{scale}_2", packed.scale),
    ]


def algorithm(packed: Packed, name: str, calibration: Mapping[str, float]) -> str | None:
    """ModelOpt's word for a packed matrix; None: it is not quantised."""
    if packed.format == "fp8":
        return "FP8"
    if packed.format != "nvfp4":
        return None
    calibrated = f"{name.removesuffix(WEIGHT)}.input_scale" in calibration
    return "NVFP4" if calibrated else "W4A16_NVFP4"


__all__ = [
    "PLAIN",
    "StoredMatrix",
    "algorithm",
    "check_bytes",
    "empty_model",
    "held",
    "items",
    "matrix",
    "packed_formats",
    "read_scale",
    "row_pieces",
]

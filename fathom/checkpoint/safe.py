"""Safetensors files, checked before they are believed.

Promise: a header is measured against the file before a single value is read: its length, names,
types, shapes and offsets must describe the file exactly, without gaps or overlaps, and an index
may only name files beside it. Reading and writing the values is `pieces.py`; which names mean
what is `names.py`.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from fathom.errors import CheckpointError

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""The types a file may hold."""

CODES = {dtype: code for code, dtype in DTYPES.items()}
"""The name of each type in a file."""

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEADER_LIMIT = 100_000_000
"""Bytes that a header or a JSON file may take; the format's own limit."""
DIMENSION_LIMIT = 2**48
_PLAIN = re.compile(r"[\w][\w.-]*\.safetensors")


@dataclass(frozen=True)
class Entry:
    """Where the values of one tensor lie."""

    file: Path
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Offset of the first byte in the file."""
    inverse: bool = False
    """Whether the reciprocals of the values stored are meant."""

    @property
    def values(self) -> int:
        """How many values the tensor has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """How many bytes the values take."""
        return self.values * self.dtype.itemsize

    def shaped(self, shape: tuple[int, ...]) -> Self:
        """Return the same values under another shape."""
        assert math.prod(shape) == self.values
        return replace(self, shape=shape)

    def rows(self) -> list[Self]:
        """Cut the tensor along its first dimension."""
        step = self.bytes // self.shape[0] if self.shape[0] else 0
        return [
            replace(
                self, name=f"{self.name}[{i}]", shape=self.shape[1:], begin=self.begin + i * step
            )
            for i in range(self.shape[0])
        ]


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object; raise `CheckpointError` in words.

    Bare `Infinity` is taken as Python does; a key that stands there twice is refused.
    """
    try:
        if path.stat().st_size > HEADER_LIMIT:
            raise CheckpointError(
                f"{path} has {path.stat().st_size:,} bytes; JSON of more than {HEADER_LIMIT:,} "
                f"bytes is not read. Is it the right file?"
            )
        text = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(
            f"There is no {path.name} in {path.parent}; a checkpoint folder needs one. "
            f"Is the folder right, and the download complete?"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    return _object(text, str(path))


def _object(text: bytes, what: str) -> dict[str, Any]:
    """Parse JSON bytes that must be an object without repeated keys."""
    try:
        found = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{what} is not valid JSON ({error}); the file is damaged or cut off. Fetch it again."
        ) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{what} must hold a JSON object, not {type(found).__name__}.")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object, refusing a key that comes twice."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise CheckpointError(f"the name {key!r} stands there twice; one of them is wrong.")
        made[key] = value
    return made


def header(path: Path) -> dict[str, Entry]:
    """Return the tensors of one safetensors file, its header checked against the file's size.

    Raises `CheckpointError` naming file and tensor if anything in it cannot be true.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(
                    f"{path} is cut off: its header wants {length + 8:,} bytes, the file has "
                    f"{size:,}. Fetch it again."
                )
            if length > HEADER_LIMIT:
                raise CheckpointError(
                    f"{path} claims a header of {length:,} bytes; at most {HEADER_LIMIT:,} are "
                    f"allowed. This is no safetensors file, or it is damaged."
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    described = _object(text, f"The header of {path}")
    notes = described.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
        raise CheckpointError(f"{path}: __metadata__ must map names to strings.")
    entries = {
        name: _entry(path, name, fields, 8 + length, size) for name, fields in described.items()
    }
    _cover(path, entries, 8 + length, size)
    return entries


def _entry(path: Path, name: str, fields: object, start: int, size: int) -> Entry:
    """Check what a header says about one tensor."""

    def wrong(what: str) -> CheckpointError:
        return CheckpointError(
            f"{path}: tensor {name!r} {what}. The file is damaged; fetch it again."
        )

    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        raise wrong(f"must be described by dtype, shape and data_offsets, not {fields!r:.80}")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise wrong(f"has the unknown type {dtype!r:.40}; known are {', '.join(DTYPES)}")
    if not _whole(shape) or any(n >= DIMENSION_LIMIT for n in shape):
        raise wrong(f"has the impossible shape {shape!r:.80}")
    if not _whole(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise wrong(f"has the impossible data_offsets {offsets!r:.80}")
    entry = Entry(path, name, DTYPES[dtype], tuple(shape), start + offsets[0])
    if entry.bytes != offsets[1] - offsets[0]:
        raise wrong(
            f"of type {dtype} and shape {shape} takes {entry.bytes:,} bytes, but the header gives "
            f"it {offsets[1] - offsets[0]:,}"
        )
    if start + offsets[1] > size:
        raise wrong(
            f"ends at byte {start + offsets[1]:,}, but the file has {size:,} and is cut off"
        )
    return entry


def _whole(found: object) -> bool:
    """Whether this is a list of whole numbers from zero on."""
    return isinstance(found, list) and all(type(n) is int and n >= 0 for n in found)


def _cover(path: Path, entries: Mapping[str, Entry], start: int, size: int) -> None:
    """Check that the tensors fill the file from the header to its end, each byte once."""
    end = start
    for entry in sorted(entries.values(), key=lambda e: (e.begin, e.bytes)):
        if entry.begin != end:
            how = "overlaps the tensor before it" if entry.begin < end else "leaves a gap before it"
            raise CheckpointError(
                f"{path}: tensor {entry.name!r} {how} (begins at byte {entry.begin:,}, wanted "
                f"{end:,}). The file is damaged; fetch it again."
            )
        end += entry.bytes
    if end != size:
        raise CheckpointError(
            f"{path}: its tensors end at byte {end:,}, but the file has {size:,}. "
            f"The file is damaged; fetch it again."
        )


def catalogue(folder: Path) -> dict[str, Entry]:
    """Return all tensors of a checkpoint folder by name, from one file or from an index's shards.

    Raises `CheckpointError` if a shard is missing, lies outside the folder, lacks a tensor the
    index puts there, or holds one that the index does not know.
    """
    if not (folder / INDEX).exists():
        if (folder / SINGLE).exists():
            return header(folder / SINGLE)
        found = sorted(entry.name for entry in folder.iterdir() if entry.is_file())[:8]
        raise CheckpointError(
            f"{folder} holds neither {SINGLE} nor {INDEX}; found {', '.join(found) or 'nothing'}. "
            f"Fathom reads safetensors alone: pickled weights (.bin, .pt) must be converted first."
        )
    mapping = read_object(folder / INDEX).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise CheckpointError(f"{folder / INDEX} needs a weight_map of tensor names to files.")
    for name, file in mapping.items():
        if not isinstance(file, str) or not _PLAIN.fullmatch(file):
            raise CheckpointError(
                f"{folder / INDEX} puts tensor {name!r} into {file!r}; wanted the plain name of a "
                f".safetensors file in the same folder."
            )
    shards = sorted(set(mapping.values()))
    missing = [file for file in shards if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(shards)} shards: {_some(missing)}. "
            f"The download is incomplete; run it again."
        )
    entries: dict[str, Entry] = {}
    for file in shards:
        listed = {name for name, place in mapping.items() if place == file}
        held = header(folder / file)
        for wrong, what in ((listed - set(held), "lacks"), (set(held) - listed, "also holds")):
            if wrong:
                raise CheckpointError(
                    f"{folder / file} {what} {_some(sorted(wrong))}, unlike what {INDEX} says. "
                    f"The files are of different checkpoints; fetch them again."
                )
        entries.update(held)
    return entries


def _some(names: list[str], limit: int = 4) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


__all__ = ["CODES", "DTYPES", "INDEX", "SINGLE", "Entry", "catalogue", "header", "read_object"]

"""The files of a checkpoint folder, written into it one after the other.

Promise: the names, configs and indices are those of the official checkpoints, quantised ones as
ModelOpt or compressed-tensors write them; nothing is held but the tensor that is being written.
That the folder appears whole is `atomic.py`'s work, what goes into it `weights.py`'s, `merge.py`'s,
`quantise.py`'s and `rewrite.py`'s.
"""

import json
import math
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from fathom import __version__
from fathom.checkpoint import compressed, formats
from fathom.checkpoint.atomic import write_text
from fathom.checkpoint.config_write import STOP_IDS, generation_json, to_json
from fathom.checkpoint.expected import FLOATS
from fathom.checkpoint.opened import Dialect
from fathom.checkpoint.pieces import Item, write
from fathom.checkpoint.safe import INDEX, SINGLE
from fathom.config.model import ModelConfig
from fathom.errors import CheckpointError

SHARD_BYTES = 5_000_000_000
"""Bytes of one file of a large checkpoint."""

_COPIED = {
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


def write_model(
    folder: Path,
    items: list[Item],
    config: ModelConfig,
    dtype: torch.dtype,
    stop_ids: Collection[int] = STOP_IDS,
    *,
    algorithms: Mapping[str, str] | None = None,
    dialect: Dialect = "modelopt",
    tensors: Collection[str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write weights and configs of a model into a folder; raises `OSError` on a full disk.

    `algorithms` names ModelOpt's algorithm for each module that is quantised; `dialect` is the one
    in which the items are named and the formats described; `tensors` are the official names of the
    model's tensors, where the items are called otherwise.
    """
    _write_shards(folder, items, shard_bytes)
    stop_ids = [token for token in stop_ids if token < config.vocab]
    files = {
        "config.json": to_json(config, storable(dtype)),
        "generation_config.json": generation_json(stop_ids),
    }
    if algorithms:
        names = [item.name for item in items]
        plain = formats.plain_modules(names if tensors is None else tensors, algorithms)
        if dialect == "compressed-tensors":
            scales = [compressed.official(name) for name in names]
            field = compressed.describe(algorithms, plain, __version__, scales)
        else:
            scaled = any(name.endswith((".k_scale", ".v_scale")) for name in names)
            told = formats.describe(algorithms, plain, __version__, "FP8" if scaled else None)
            files[formats.FILE], field = told, formats.as_field(told)
        files["config.json"][formats.FIELD] = field
    for name, fields in files.items():
        write_text(folder / name, json.dumps(fields, indent=2) + "\n")


def copy_text(source: Path, target: Path) -> None:
    """Take over tokenizer, template and stop ids from another checkpoint folder."""
    for file in source.iterdir():
        if file.name in _COPIED or file.suffix == ".jinja":
            shutil.copyfile(file, target / file.name)


def storable(dtype: torch.dtype) -> str:
    """The name of a type that weights may have; raises `CheckpointError` for any other."""
    if dtype not in FLOATS:
        raise CheckpointError(
            f"Weights cannot be stored as {dtype}; wanted {', '.join(FLOATS.values())}."
        )
    return FLOATS[dtype]


def _write_shards(folder: Path, items: list[Item], shard_bytes: int) -> None:
    """Write one file, or several and the index that says what lies where."""
    shards: list[list[Item]] = [[]]
    room = shard_bytes
    for item in items:
        if shards[-1] and item.bytes > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(item)
        room -= item.bytes
    if len(shards) == 1:
        write(folder / SINGLE, items)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write(folder / name, shard)
        places |= {item.name: name for item in shard}
    index = {
        "metadata": {
            "total_size": sum(item.bytes for item in items),
            "total_parameters": sum(math.prod(item.shape) for item in items),
        },
        "weight_map": places,
    }
    write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


__all__ = ["SHARD_BYTES", "copy_text", "storable", "write_model"]

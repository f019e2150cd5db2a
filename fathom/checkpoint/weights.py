"""Whole models in and out of the official Hugging Face layout.

Promise: loading takes little more memory than the weights, because every tensor is read straight
into its place, and nothing is read before the whole folder has been checked; saving writes the
names, types and files of the official checkpoints, and a folder is replaced only when its
successor is complete. Plain weights are read and written, and NVFP4 and FP8 (`packed.py`) as
ModelOpt has them; compressed-tensors' are read (`opened.py`), and written by `rewrite.py`. Names
are `names.py`, the config `config_json.py`, training runs `run.py`.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from fathom.checkpoint import packed as packing
from fathom.checkpoint.atomic import new_folder
from fathom.checkpoint.config_write import STOP_IDS
from fathom.checkpoint.expected import ACTIVATIONS, ROUTER, layout, stored_dtype
from fathom.checkpoint.folder import SHARD_BYTES, storable, write_model
from fathom.checkpoint.formats import Stored
from fathom.checkpoint.names import CORRECTION_BIAS, Slot
from fathom.checkpoint.opened import open_checkpoint
from fathom.checkpoint.pieces import Item, Reader
from fathom.checkpoint.safe import Entry
from fathom.errors import CheckpointError
from fathom.model.nemotron import Nemotron


class Saves(Protocol):
    """What a `Text` offers here: its stop ids, and writing itself."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a turn."""

    def save(self, folder: Path) -> None:
        """Write tokenizer and template into a folder."""


def load(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    ignore: Collection[str] = (),
    mtp: bool = True,
    packed: bool | None = None,
) -> Nemotron:
    """Load a model from a folder or a hub id in the official layout.

    Args:
        path: a folder, or `owner/name[@revision]` on the hub.
        dtype: type of the parameters; None keeps the stored one (where files mix types, the
            widest, so that nothing is rounded). Router correction biases are fp32 always.
        device: where the model shall live.
        ignore: config fields and tensors (patterns such as `*.k_scale`) to pass over.
        mtp: whether to load the MTP head of a model that has one.
        packed: whether every matrix is laid out for fast products on the CPU, in the format it is
            stored in; such a model generates and cannot be trained. None: if the checkpoint is
            quantised. False decodes quantised weights into plain ones.

    Scales of activations, keys and values that a quantised checkpoint brings are kept in
    `model.calibration`; products do not use them.

    Raises `CheckpointError` if files are missing, damaged, quantised in a way that is not read here
    or of another model; nothing large is allocated before all of them have been checked.
    """
    opened = open_checkpoint(path, ignore=ignore, mtp=mtp)
    config, entries, wanted = opened.config, opened.entries, opened.wanted
    quantised, stored = opened.quantised is not None, opened.stored
    own = dtype or stored_dtype(entries, opened.quantised)
    if quantised if packed is None else packed:
        _check_place(device, opened.folder)
        packs = packing.packed_formats(wanted, stored, entries, dtype)
        model = packing.empty_model(config, own, packs)
    else:
        model = Nemotron(config, dtype=own, device=device, seed=None)
    if quantised and dtype is None:
        _keep_wide_routers(model, entries, wanted)
    _fill(model, entries, wanted, stored)
    return model.pack() if packing.held(model) else model


def _check_place(device: torch.device | str | None, folder: Path) -> None:
    """Raise unless packed weights can live there."""
    if device is not None and torch.device(device).type != "cpu":
        raise CheckpointError(
            f"{folder} was asked for on {device}, but packed weights live on the CPU. Load with "
            f"packed=False, which decodes quantised weights into plain ones."
        )


def _keep_wide_routers(
    model: Nemotron, entries: Mapping[str, Entry], wanted: Mapping[str, Slot]
) -> None:
    """Let routers be fp32 where the files have them so, beside narrower weights."""
    for name, slot in wanted.items():
        if name.endswith(ROUTER) and entries[name].dtype == torch.float32:
            router = model.get_submodule(slot.name.removesuffix(".weight"))
            wide = torch.empty(
                slot.shape, dtype=torch.float32, device=model.embedding.weight.device
            )
            router.weight = nn.Parameter(wide)


def _fill(
    model: Nemotron,
    entries: Mapping[str, Entry],
    wanted: Mapping[str, Slot],
    stored: Mapping[str, Stored],
) -> None:
    """Read everything into its place, in the order of the files: each once, front to back."""
    tensors, matrices = model.state_dict(), packing.held(model)
    calibration: dict[str, float] = {}
    value = torch.empty(())
    with torch.no_grad(), Reader() as reader:
        for name, entry in sorted(entries.items(), key=lambda e: (e[1].file, e[1].begin)):
            if name.endswith(ACTIVATIONS):
                packing.read_scale(reader, entry, value)
                calibration[name] = value.item()
            if name not in wanted:
                continue
            slot = wanted[name]
            if slot.name not in matrices and stored.get(name, "plain") == "plain":
                reader.read(entry, slot.part(tensors[slot.name]))
                continue
            rows, columns = slot.shape
            source = packing.StoredMatrix(name, stored[name], rows, columns, entries)
            if slot.name in matrices:
                source.pack(reader, packing.matrix(matrices[slot.name], slot))
            else:
                source.decode(reader, slot.part(tensors[slot.name]))
    model.calibration = calibration


def save(
    model: Nemotron,
    folder: str | Path,
    text: Saves | None = None,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a model as an official checkpoint folder, which appears whole or not at all.

    Args:
        model: the model; its correction biases are written in fp32, quantised matrices as they
            are, in ModelOpt's layout, all else as `dtype`.
        folder: where; a checkpoint that is there is replaced once the new one is complete, and
            other files in the folder (a tokenizer, a README) stay.
        text: tokenizer and template to write beside the weights.
        dtype: stored type of the weights; None: the model's own.
        shard_bytes: largest size of one file.

    Returns the folder. Raises `CheckpointError` if it cannot be written, the disk is full for
    instance; what was there before is untouched then.
    """
    storable(dtype or model.embedding.weight.dtype)
    tensors, matrices = model.state_dict(), packing.held(model)
    items: list[Item] = []
    algorithms: dict[str, str] = {}
    for name, slot in layout(model.config).items():
        if slot.name in matrices:
            packed = packing.matrix(matrices[slot.name], slot)
            items += packing.items(name, packed, dtype)
            algorithm = packing.algorithm(packed, name, model.calibration)
            if algorithm is not None:
                algorithms[name.removesuffix(".weight")] = algorithm
        else:
            tensor = tensors[slot.name]
            own = torch.float32 if name.endswith(CORRECTION_BIAS) else dtype or tensor.dtype
            items.append(Item.of(name, slot.part(tensor), dtype=own, shape=slot.shape))
    for name, value in model.calibration.items():
        items.append(Item.of(name, torch.tensor(value)))
    target = Path(folder)
    stop_ids = STOP_IDS if text is None else text.stop_ids
    with new_folder(target, sum(item.bytes for item in items)) as fresh:
        write_model(
            fresh,
            items,
            model.config,
            dtype or model.embedding.weight.dtype,
            stop_ids,
            algorithms=algorithms,
            shard_bytes=shard_bytes,
        )
        if text is not None:
            text.save(fresh)
    return target


__all__ = ["Saves", "load", "save"]

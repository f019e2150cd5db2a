"""Which tensors a checkpoint must hold, and whether it does.

Promise: a folder is compared with the model that its config describes tensor by tensor (name,
shape, type) before a single value is read, and one message tells everything that does not fit.
Names are `names.py`, formats `formats.py`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch

from fathom.checkpoint.formats import GROUP, Says, Stored
from fathom.checkpoint.names import CORRECTION_BIAS, Slot, slots
from fathom.checkpoint.safe import Entry
from fathom.config.model import ModelConfig
from fathom.errors import CheckpointError
from fathom.model.latent_moe import Experts
from fathom.model.nemotron import Nemotron
from fathom.model.precision import Linear
from fathom.model.sizes import SIZES

FLOATS = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
"""The types that weights may have."""

WEIGHT = ".weight"
ACTIVATIONS = (".input_scale", ".k_scale", ".v_scale")
"""Ends of the names of scales that belong to what runs through a matrix, not to its weights."""
ROUTER = ".mixer.gate.weight"
_SCALAR = ((), (1,))


@dataclass(frozen=True)
class Need:
    """What a tensor must be."""

    shape: tuple[int, ...]
    dtypes: Collection[torch.dtype] = frozenset(FLOATS)
    """The first is written."""
    optional: bool = False

    def fits(self, entry: Entry) -> bool:
        """Whether the shape is right; one value may have one dimension or none."""
        return entry.shape == self.shape or (self.shape == () and entry.shape in _SCALAR)


def layout(config: ModelConfig) -> dict[str, Slot]:
    """The tensors of a model by official name, each with its place in ours."""
    model = Nemotron(config, device="meta", seed=None)
    return slots({name: tuple(t.shape) for name, t in model.state_dict().items()})


def stored_formats(
    config: ModelConfig, wanted: Mapping[str, Slot], precisions: Says
) -> dict[str, Stored]:
    """How each matrix is stored, by official name: every `Linear` and every expert."""
    model = Nemotron(config, device="meta", seed=None)
    matrices: set[str] = set()
    for name, part in model.named_modules():
        if isinstance(part, Linear):
            matrices.add(f"{name}.weight")
        elif isinstance(part, Experts):
            matrices |= {f"{name}.up", f"{name}.down"}
    return {
        name: precisions.of(name.removesuffix(WEIGHT))
        for name, slot in wanted.items()
        if slot.name in matrices
    }


def needs(
    wanted: Mapping[str, Slot], stored: Mapping[str, Stored] | None = None
) -> dict[str, Need]:
    """What a checkpoint of these tensors holds, its matrices stored as `stored` says.

    Scales of activations, keys and values are known beside a quantised model's matrices and may be
    absent.
    """
    found: dict[str, Need] = {}
    for name, slot in wanted.items():
        kind, module = (stored or {}).get(name, "plain"), name.removesuffix(WEIGHT)
        if kind == "plain":
            found[name] = Need(slot.shape)
        else:
            found |= matrix_needs(module, slot.shape, kind)
        for which in ("k", "v"):
            if stored is not None and module.endswith(f".{which}_proj"):
                found[f"{module}.{which}_scale"] = Need((), optional=True)
    return found


def matrix_needs(module: str, shape: tuple[int, ...], kind: Stored) -> dict[str, Need]:
    """The tensors of one quantised matrix [O, I]."""
    rows, columns = shape
    # ModelOpt writes fp32, compressed-tensors the scales of FP8 in the type of the model
    one = Need((), (torch.float32, torch.bfloat16, torch.float16))
    known = {f"{module}.input_scale": Need((), optional=True)}
    if kind == "fp8":
        values = Need(shape, (torch.float8_e4m3fn,))
        return {f"{module}.weight": values, f"{module}.weight_scale": one, **known}
    if columns % GROUP:
        raise CheckpointError(
            f"{module} has rows of {columns} weights, which are no whole blocks of {GROUP}, so it "
            f"cannot be stored in NVFP4. Is it listed by mistake?"
        )
    return {
        f"{module}.weight": Need((rows, columns // 2), (torch.uint8,)),
        f"{module}.weight_scale": Need((rows, columns // GROUP), (torch.float8_e4m3fn,)),
        f"{module}.weight_scale_2": one,
        **known,
    }


def check(
    entries: Mapping[str, Entry],
    wanted: Mapping[str, Slot],
    folder: Path,
    stored: Mapping[str, Stored] | None = None,
    spelt: Callable[[str], str] = str,
) -> None:
    """Raise `CheckpointError` unless the tensors found are exactly those wanted.

    `stored` says how each matrix is stored; None: all are plain. `spelt` gives a tensor the name
    that it has in the files' own dialect.
    """
    quantised = [n for n, e in entries.items() if e.dtype.itemsize == 1 or "weight_scale" in n]
    if quantised and stored is None:
        raise CheckpointError(
            f"{folder} holds quantised weights ({quantised[0]}) where plain ones are wanted. They "
            f"can be loaded if hf_quant_config.json, or quantization_config in config.json, says "
            f"how they were quantised; for all else take the BF16 sibling of the model."
        )
    needed = needs(wanted, stored)
    missing = [n for n, need in needed.items() if n not in entries and not need.optional]
    extra = [name for name in entries if name not in needed]
    known = [(n, need, entries[n]) for n, need in needed.items() if n in entries]
    wrong = [found for found in known if not found[1].fits(found[2])]
    odd = [found for found in known if found[2].dtype not in found[1].dtypes]
    if not (missing or extra or wrong or odd):
        return
    told = [f"{folder} does not hold the model that its config.json describes."]
    if missing:
        told.append(
            _listed("are missing", [f"{spelt(n)} {list(needed[n].shape)}" for n in missing])
        )
    if extra:
        told.append(
            _listed("have no place", [f"{entries[n].name} {list(entries[n].shape)}" for n in extra])
        )
    if wrong:
        sizes = [f"{spelt(n)} wanted {list(w.shape)}, got {list(e.shape)}" for n, w, e in wrong]
        told.append(_listed("have the wrong shape", sizes))
    if odd:
        told.append(_listed("have the wrong type", [_odd(spelt(n), w, e) for n, w, e in odd]))
    if stored is not None and (wrong or odd):
        told.append("What is wanted follows from how the checkpoint says it was quantised.")
    if missing and all(name.startswith("mtp.") for name in missing):
        told.append(
            "The MTP head alone is missing; transformers drops it on saving. Load with mtp=False, "
            "or take the original files."
        )
    raise CheckpointError(" ".join(told) + _guess(entries))


def _odd(name: str, need: Need, entry: Entry) -> str:
    """What type a tensor should have had."""
    floats = need.dtypes == frozenset(FLOATS)
    wanted = "a float" if floats else " or ".join(str(dtype) for dtype in need.dtypes)
    return f"{name} wanted {wanted}, got {entry.dtype}"


def _listed(what: str, names: list[str]) -> str:
    """One sentence that shows the first few."""
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names):,} tensors {what}: {'; '.join(names[:3])}{more}."


def _guess(entries: Mapping[str, Entry]) -> str:
    """Say which known size these tensors would make up."""
    values = sum(entry.values for entry in entries.values())
    for config in SIZES.values():
        if (len(entries), values) in (
            (config.tensors, config.parameters),
            (config.replace(mtp="").tensors, config.backbone_parameters),
        ):
            return f" By their count and size the tensors are those of {config.name!r}."
    return f" The files hold {len(entries):,} tensors with {values:,} values."


def stored_dtype(
    entries: Mapping[str, Entry], stored: Mapping[str, Stored] | None = None
) -> torch.dtype:
    """The one type that holds every plain weight exactly, scales and correction biases aside.

    In a quantised checkpoint routers are left aside too; some keep them wider than all else.
    """
    found = [entry.dtype for name, entry in entries.items() if _decides(name, stored)]
    return reduce(torch.promote_types, found)


def _decides(name: str, stored: Mapping[str, Stored] | None) -> bool:
    """Whether a tensor has a say in the type of the model's parameters."""
    if name.endswith(CORRECTION_BIAS):
        return False
    if stored is None:
        return True
    scale = name.endswith((".weight_scale", ".weight_scale_2", *ACTIVATIONS))
    return not scale and not name.endswith(ROUTER) and stored.get(name, "plain") == "plain"


__all__ = [
    "ACTIVATIONS",
    "FLOATS",
    "ROUTER",
    "WEIGHT",
    "Need",
    "check",
    "layout",
    "matrix_needs",
    "needs",
    "stored_dtype",
    "stored_formats",
]

"""Which matrix of a checkpoint is stored in which format, as compressed-tensors writes it down.

Promise: `quantization_config` of config.json is understood as that library understands it (a module
has the format of the group that names it, by name or by a `re:` pattern, else of the group that
takes every Linear, unless `ignore` names it), and what is not read here is refused by name. Tensors
get ModelOpt's names at the door, so that nobody else knows this dialect: codes and block scales
are the same bytes, the scales of whole matrices are stored as reciprocals. ModelOpt's own words
are `formats.py`'s.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fathom.checkpoint.formats import ALGORITHMS, GROUP, Stored
from fathom.checkpoint.safe import Entry
from fathom.errors import CheckpointError

METHOD = "compressed-tensors"
FORMATS: Mapping[str, Stored] = {"nvfp4-pack-quantized": "nvfp4", "float-quantized": "fp8"}
"""Formats of files that are read and written, and how such a matrix is stored."""
MIXED = "mixed-precision"

_WANTED: Mapping[Stored, dict[str, Any]] = {
    "nvfp4": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": GROUP},
    "fp8": {"num_bits": 8, "type": "float", "strategy": "tensor"},
}
"""What the weights of a group must be."""
_RENAMED: Mapping[str, tuple[str, bool]] = {
    "weight_packed": ("weight", False),
    "weight_global_scale": ("weight_scale_2", True),
    "input_global_scale": ("input_scale", True),
}
"""Ends of tensors' names: ModelOpt's for the same, and whether the value is its reciprocal."""
_CACHE = re.compile(r"(.+\.mixer)\.([kv])_scale")
_NUMBERED = re.compile(r"\.experts\.\d+\.")


@dataclass(frozen=True)
class Groups:
    """What a compressed-tensors checkpoint says about its formats."""

    groups: tuple[tuple[Stored, tuple[str, ...]], ...]
    """The format of each group and what it is for: names, `re:` patterns, or `Linear`."""
    ignore: tuple[str, ...]
    """Names and patterns of modules that are plain."""

    def of(self, module: str) -> Stored:
        """How the matrix of `module` (an official name) is stored."""
        names = (module, re.sub(r"^backbone\.", "model.", module))
        if any(_matches(one, names) for one in self.ignore):
            return "plain"
        for kind, targets in self.groups:
            if any(_matches(one, names) for one in targets):
                return kind
        for kind, targets in self.groups:
            if "Linear" in targets:
                return kind
        return "plain"


def _matches(target: str, names: Iterable[str]) -> bool:
    """Whether a target is one of these names, or a pattern that one of them begins with."""
    if target.startswith("re:"):
        return any(re.match(target.removeprefix("re:"), name) for name in names)
    return target in names


def parse(told: Mapping[str, Any], what: str) -> Groups:
    """Read and check a quantization_config; raises `CheckpointError` for what is not read here."""
    groups, ignore = told.get("config_groups"), told.get("ignore") or []
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(f"{what} needs config_groups, which say what is stored how.")
    if not isinstance(ignore, list) or not all(isinstance(one, str) for one in ignore):
        raise CheckpointError(f"{what}: ignore must be a list of names of modules.")
    status = told.get("quantization_status", "compressed")
    if status != "compressed":
        raise CheckpointError(
            f"{what}: quantization_status is {status!r}; wanted 'compressed', codes and scales "
            f"instead of weights that only imitate them. Save the model compressed."
        )
    for field in ("transform_config", "sparsity_config"):
        rest = told.get(field)
        if rest and rest.get("format", "?") != "dense":
            raise CheckpointError(
                f"{what}: {field} asks for more than decoding codes with scales, which is not done "
                f"here. Take a checkpoint without it or the BF16 sibling of the model."
            )
    found = [_group(name, one, told.get("format"), what) for name, one in groups.items()]
    patterns = [one for _, targets in found for one in targets] + ignore
    for pattern in patterns:
        _check_pattern(pattern, what)
    return Groups(tuple(found), tuple(ignore))


def _check_pattern(pattern: str, what: str) -> None:
    """Raise unless a `re:` pattern is a regular expression."""
    try:
        re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise CheckpointError(f"{what}: {pattern!r} is no regular expression ({error}).") from None


def _group(name: str, told: Any, whole: Any, what: str) -> tuple[Stored, tuple[str, ...]]:
    """The format of one group of config_groups and its targets."""
    what = f"{what}: {name}"
    if not isinstance(told, dict) or not isinstance(told.get("weights"), dict):
        raise CheckpointError(f"{what} must be an object that says how weights are stored.")
    form = told.get("format") or whole
    if form not in FORMATS:
        raise CheckpointError(
            f"{what} is stored in the format {form!r}; read are {' and '.join(FORMATS)}, and "
            f"{MIXED} of these. Take such a checkpoint or the BF16 sibling of the model."
        )
    kind, weights = FORMATS[form], told["weights"]
    wanted = {**_WANTED[kind], "symmetric": True, "dynamic": False}
    for field, value in wanted.items():
        if weights.get(field, value) != value:
            raise CheckpointError(
                f"{what}: weights have {field} {weights[field]!r}; {form} is read with {value!r} "
                f"alone. Take another checkpoint or the BF16 sibling of the model."
            )
    targets = told.get("targets")
    if not isinstance(targets, list) or not all(isinstance(one, str) for one in targets):
        raise CheckpointError(f"{what}: targets must be a list of names of modules.")
    return kind, tuple(targets)


def official(name: str) -> str:
    """The name that ModelOpt gives a tensor of this dialect."""
    module, _, last = name.rpartition(".")
    if last in _RENAMED:
        return f"{module}.{_RENAMED[last][0]}"
    if match := _CACHE.fullmatch(name):
        return f"{match[1]}.{match[2]}_proj.{match[2]}_scale"
    return name


def renamed(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    """These tensors under ModelOpt's names; an entry of a reciprocal says so."""
    return {
        official(name): replace(
            entry, inverse=_RENAMED.get(name.rpartition(".")[2], ("", False))[1]
        )
        for name, entry in entries.items()
    }


def spelt(name: str, kind: Stored) -> tuple[str, bool]:
    """The name of a tensor of a matrix stored so, and whether it holds the reciprocal."""
    module, _, last = name.rpartition(".")
    for own, (theirs, inverse) in _RENAMED.items():
        if kind == "nvfp4" and last == theirs:
            return f"{module}.{own}", inverse
    return name, False


def describe(
    algorithms: Mapping[str, str], plain: Iterable[str], version: str, scales: Collection[str]
) -> dict[str, Any]:
    """The content of quantization_config.

    Args:
        algorithms: quantised modules (official names) and ModelOpt's words for how.
        plain: modules that are not quantised, or patterns with `*`.
        version: of this library.
        scales: names of the scales of activations, keys and values that are there.
    """
    kinds: dict[tuple[Stored, bool], list[str]] = {}
    for module, algorithm in algorithms.items():
        scaled = f"{module}.input_scale" in scales
        kinds.setdefault((ALGORITHMS[algorithm], scaled), []).append(module)
    formats = {kind: form for form, kind in FORMATS.items()}
    groups = {
        f"group_{index}": {
            "format": formats[kind],
            "targets": ["Linear"] if len(kinds) == 1 else _patterns(modules),
            "weights": _arguments(kind, dynamic=False),
            "input_activations": _activations(kind) if scaled else None,
            "output_activations": None,
        }
        for index, ((kind, scaled), modules) in enumerate(sorted(kinds.items()))
    }
    used = {str(group["format"]) for group in groups.values()}
    cached = any(name.endswith((".k_scale", ".v_scale")) for name in scales)
    return {
        "quant_method": METHOD,
        "format": used.pop() if len(used) == 1 else MIXED,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": _patterns(plain),
        "kv_cache_scheme": _arguments("fp8", dynamic=False) if cached else None,
        "producer": {"name": "fathom", "version": version},
    }


def _activations(kind: Stored) -> dict[str, Any]:
    """What a group says about the rows that meet its matrices, if their scales are there."""
    return _arguments(kind, dynamic="local" if kind == "nvfp4" else False)


def _arguments(kind: Stored, dynamic: bool | str) -> dict[str, Any]:
    """How numbers are rounded, in that library's words."""
    told = {**_WANTED[kind], "symmetric": True, "dynamic": dynamic}
    if kind == "nvfp4":
        told["scale_dtype"] = "torch.float8_e4m3fn"
        told["zp_dtype"] = "torch.float8_e4m3fn"
        told["observer"] = "static_minmax" if dynamic else "memoryless_minmax"
    return told


def _patterns(modules: Iterable[str]) -> list[str]:
    """Modules as `re:` patterns that also match the names that other readers give them.

    transformers and vLLM say `model.` for `backbone.`; an expert's number becomes any number,
    because readers that hold experts as one ask for all of a layer at once.
    """
    found: dict[str, None] = {}
    for module in modules:
        text = re.escape(_NUMBERED.sub(".experts.@.", module)).replace("@", r"\d+")
        text = re.sub(r"^backbone\\\.", r"(backbone|model)\\.", text).replace(r"\*", ".*")
        found[f"re:{text}$"] = None
    return list(found)


__all__ = [
    "FORMATS",
    "METHOD",
    "MIXED",
    "Groups",
    "describe",
    "official",
    "parse",
    "renamed",
    "spelt",
]

"""Which matrix of a checkpoint is stored in which format, as ModelOpt writes it down.

Promise: a matrix has the format that its own entry of `quantized_layers` names, else none if a
pattern excludes it, else that of the whole checkpoint; whatever else a file asks for is refused,
never guessed. Both places are written, hf_quant_config.json and `quantization_config` in
config.json. Which of them is asked, and whether they speak another dialect, is `opened.py`'s; the
bytes themselves are `packed.py`'s.

Formats are those of weights: NVFP4 with scales for activations (`NVFP4`) and without
(`W4A16_NVFP4`) are stored alike.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol

from fathom.errors import CheckpointError

Stored = Literal["plain", "fp8", "nvfp4"]
"""`plain` is bf16, fp16 or fp32."""

ALGORITHMS: Mapping[str, Stored] = {"NVFP4": "nvfp4", "W4A16_NVFP4": "nvfp4", "FP8": "fp8"}
"""ModelOpt's names and how such a matrix is stored."""
MIXED = "MIXED_PRECISION"
GROUP = 16
"""Columns that share a block scale."""
FILE = "hf_quant_config.json"
FIELD = "quantization_config"

_MATRIX = re.compile(r"(_proj|\.conv1d|\.gate|\.embeddings|lm_head)$")
_FLOAT8 = {"dynamic": False, "num_bits": 8, "type": "float"}
_FLOAT4 = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": GROUP}
_GROUPS: Mapping[str, dict[str, Any]] = {
    "FP8": {"input_activations": _FLOAT8, "weights": _FLOAT8},
    "NVFP4": {"input_activations": _FLOAT4, "weights": _FLOAT4},
    "W4A16_NVFP4": {"weights": _FLOAT4},
}


class Says(Protocol):
    """What a checkpoint says about its formats, whoever wrote it down."""

    def of(self, module: str) -> Stored:
        """How the matrix of `module`, an official name, is stored."""


@dataclass(frozen=True)
class Precisions:
    """What a checkpoint says about its formats, under official names (`backbone.`)."""

    whole: str | None
    """The algorithm of every matrix that nothing else is said about."""
    layers: Mapping[str, str]
    """Modules, such as `backbone.layers.0.mixer.in_proj`, and their own algorithms."""
    exclude: tuple[str, ...]
    """Patterns of modules that are plain; what lies inside such a module is plain too."""

    def of(self, module: str) -> Stored:
        """How the matrix of `module` is stored."""
        around = [module]
        while "." in around[-1]:
            around.append(around[-1].rpartition(".")[0])
        for name in around:
            if name in self.layers:
                return ALGORITHMS[self.layers[name]]
        if any(fnmatchcase(name, pattern) for name in around for pattern in self.exclude):
            return "plain"
        return "plain" if self.whole is None else ALGORITHMS[self.whole]


def parse(told: Any, what: str, excluding: str = "exclude_modules") -> Precisions:
    """Read and check the fields that both places share; raises `CheckpointError`.

    `excluding` is the field that names what is plain.
    """
    if not isinstance(told, dict):
        raise CheckpointError(
            f"{what} needs the field 'quantization', an object that says which algorithm "
            f"quantised the weights. Fetch the file again."
        )
    whole = told.get("quant_algo")
    layers = told.get("quantized_layers") or {}
    exclude = told.get(excluding) or []
    if not isinstance(layers, dict) or not all(isinstance(one, dict) for one in layers.values()):
        raise CheckpointError(f"{what}: quantized_layers must map modules to objects.")
    if not isinstance(exclude, list) or not all(isinstance(one, str) for one in exclude):
        raise CheckpointError(f"{what}: {excluding} must be a list of names of modules.")
    if whole is None and not layers and told.get("config_groups"):
        raise CheckpointError(f"{what} has config_groups but no quant_algo; wanted both.")
    if whole == MIXED and not layers:
        raise CheckpointError(f"{what}: {MIXED} needs quantized_layers, which says what is what.")
    found = {
        _official(name): _algorithm(one.get("quant_algo"), one, f"{what}: {name}")
        for name, one in layers.items()
    }
    if whole is not None and whole != MIXED:
        whole = _algorithm(whole, told, what)
    return Precisions(
        None if whole == MIXED else whole, found, tuple(_official(one) for one in exclude)
    )


def _official(name: str) -> str:
    """The name of a module as the official checkpoints have it."""
    return re.sub(r"^model\.", "backbone.", name)


def _algorithm(name: Any, told: Mapping[str, Any], what: str) -> str:
    """Check the name of an algorithm and its group size."""
    if not isinstance(name, str) or name not in ALGORITHMS:
        raise CheckpointError(
            f"{what} is quantised by {name!r}; read are {', '.join(ALGORITHMS)} and {MIXED} of "
            f"these. Take such a checkpoint or the BF16 sibling of the model."
        )
    size = told.get("group_size")
    if ALGORITHMS[name] == "nvfp4" and size not in (None, GROUP):
        raise CheckpointError(f"{what}: group_size is {size!r}; NVFP4 has blocks of {GROUP}.")
    return name


def describe(
    algorithms: Mapping[str, str], plain: Iterable[str], version: str, kv_cache: str | None = None
) -> dict[str, Any]:
    """The content of hf_quant_config.json.

    Args:
        algorithms: quantised modules and their algorithms.
        plain: modules that are not quantised, or patterns of them.
        version: of this library, the producer.
        kv_cache: the algorithm that scales of keys and values are for; None: there are none.
    """
    kinds = sorted(set(algorithms.values()))
    told: dict[str, Any] = {
        "quant_algo": kinds[0] if len(kinds) == 1 else MIXED,
        "kv_cache_quant_algo": kv_cache,
        "group_size": GROUP,
        "exclude_modules": sorted(plain),
    }
    if len(kinds) > 1:
        told["quantized_layers"] = {
            module: {"quant_algo": name, "group_size": GROUP}
            if ALGORITHMS[name] == "nvfp4"
            else {"quant_algo": name}
            for module, name in algorithms.items()
        }
    return {"producer": {"name": "fathom", "version": version}, "quantization": told}


def plain_modules(names: Iterable[str], algorithms: Mapping[str, str]) -> list[str]:
    """The modules among these tensors' that are worth saying that they are not quantised."""
    modules = {name.removesuffix(".weight") for name in names if name.endswith(".weight")}
    plain = sorted(m for m in modules if _MATRIX.search(m) and m not in algorithms)
    if any(module.startswith("mtp.") for module in algorithms):
        return plain
    rest = [module for module in plain if not module.startswith("mtp.")]
    return rest + ["mtp*"] * (len(rest) < len(plain))


def as_field(described: Mapping[str, Any]) -> dict[str, Any]:
    """What `describe` gave, as `quantization_config` of config.json says the same."""
    told = described["quantization"]
    layers = told.get("quantized_layers")
    field: dict[str, Any] = {"quant_method": "modelopt", "quant_algo": told["quant_algo"]}
    if layers is None:
        groups = {told["quant_algo"]: ["Linear"]}
    else:
        field["quantized_layers"] = layers
        groups = {
            name: sorted(module for module, one in layers.items() if one["quant_algo"] == name)
            for name in sorted({one["quant_algo"] for one in layers.values()})
        }
    field["config_groups"] = {
        f"group_{index}": {**_GROUPS[name], "targets": targets}
        for index, (name, targets) in enumerate(groups.items())
    }
    field["ignore"] = told["exclude_modules"]
    if told["kv_cache_quant_algo"] is not None:
        field["kv_cache_scheme"] = _FLOAT8
    field["producer"] = described["producer"]
    return field


__all__ = [
    "ALGORITHMS",
    "FIELD",
    "FILE",
    "GROUP",
    "MIXED",
    "Precisions",
    "Says",
    "Stored",
    "as_field",
    "describe",
    "parse",
    "plain_modules",
]

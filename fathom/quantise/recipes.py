"""Which part of a model is stored in which format: the published maps, and our own.

Promise: a map speaks of parts, not of numbers of blocks, so it fits every shape of the family; what
it says nothing about stays as it is. Maps that the publisher chose module by module (Super, Nano
4B) are here as the rule that they follow in the main; a search for oneself is `sensitivity.py`.
Source: the published hf_quant_config.json files and ModelOpt's recipes for the family.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fathom.checkpoint.formats import Stored
from fathom.config.model import ModelConfig
from fathom.errors import ConfigError

Part = Literal["experts", "shared", "mamba", "qkv", "attention_out", "latent", "mlp", "head", "mtp"]
Method = Literal["max", "mse", "4o6"]
"""How block scales are found; see `rounding.py`."""

_PARTS: Mapping[str, Part] = {
    r"mtp\..+": "mtp",
    r"head": "head",
    r".+\.mixer\.experts\.(up|down)": "experts",
    r".+\.mixer\.shared\.(up|down)": "shared",
    r".+\.mixer\.(in|out)_proj": "mamba",
    r".+\.mixer\.[qkv]_proj": "qkv",
    r".+\.mixer\.o_proj": "attention_out",
    r".+\.mixer\.latent_(up|down)": "latent",
    r".+\.mixer\.(up|down)": "mlp",
}
"""Our names of matrices, the first pattern that matches counts."""


@dataclass(frozen=True)
class Recipe:
    """A map, and how its matrices are rounded."""

    parts: Mapping[Part, Stored]
    """The format of each part; what is not named stays plain."""
    method: Method = "max"
    rows: bool = True
    """Whether the rows that meet NVFP4 matrices are rounded too (W4A4), so that their scales are
    wanted."""
    cache: bool = True
    """Whether keys and values are kept in FP8, so that their scales are wanted."""
    before_attention: bool = True
    """Whether the Mamba blocks that feed attention are quantised like the others."""
    more_bits: bool = False
    """Whether some of the matrices that leave an MLP are FP8: those of the first and last eighth
    of the MLPs, and of every third between, as llama.cpp's Q4_K_M gives them more bits."""


_NANO: Mapping[Part, Stored] = {"experts": "nvfp4", "shared": "nvfp4", "mamba": "nvfp4"}
_SUPER: Mapping[Part, Stored] = {"experts": "nvfp4", "shared": "fp8", "mamba": "fp8"}
RECIPES: Mapping[str, Recipe] = {
    "nvfp4": Recipe({**_NANO, "mlp": "nvfp4"}, method="4o6"),
    "fp8": Recipe({"experts": "fp8", "shared": "fp8", "mamba": "fp8", "mlp": "fp8"}),
    "mixed": Recipe({**_SUPER, "mlp": "nvfp4"}, method="4o6", rows=False),
    "nano-fp8": Recipe({"experts": "fp8", "shared": "fp8", "mamba": "fp8"}, before_attention=False),
    "nano-nvfp4": Recipe(_NANO, cache=False, before_attention=False),
    "super-nvfp4": Recipe(_SUPER, method="mse"),
    "ultra-nvfp4": Recipe(_SUPER, method="4o6"),
    "lightning": Recipe(
        {"experts": "nvfp4", "shared": "nvfp4", "mamba": "fp8", "head": "nvfp4"},
        method="4o6",
        rows=False,
    ),
    "nano-4b": Recipe(
        {
            "mamba": "nvfp4",
            "mlp": "nvfp4",
            "qkv": "nvfp4",
            "attention_out": "nvfp4",
            "head": "fp8",
        },
        rows=False,
        more_bits=True,
    ),
}
"""`nvfp4`, `fp8` and `mixed` are ours; the others are the maps of the published checkpoints."""


def part_of(matrix: str) -> Part:
    """The part that one of our matrices (`blocks.0.mixer.in_proj`) belongs to."""
    for pattern, part in _PARTS.items():
        if re.fullmatch(pattern, matrix):
            return part
    raise ConfigError(f"{matrix!r} is no matrix of a model; wanted a name without `.weight`.")


def recipe(name: str) -> Recipe:
    """The recipe of this name; raises `ConfigError` for an unknown one."""
    if name not in RECIPES:
        raise ConfigError(f"There is no recipe {name!r}; known are {', '.join(RECIPES)}.")
    return RECIPES[name]


def lay(found: Recipe, config: ModelConfig, matrices: list[str]) -> dict[str, Stored]:
    """The format of each of these matrices of a model that is quantised by a recipe."""
    table: dict[str, Stored] = {}
    mlps = [f"blocks.{i}." for i, letter in enumerate(config.pattern) if letter == "-"]
    for matrix in matrices:
        part = part_of(matrix)
        kind = found.parts.get(part, "plain")
        if part == "mamba" and not found.before_attention and _feeds_attention(matrix, config):
            kind = "plain"
        if part == "mlp" and found.more_bits and matrix.endswith(".down"):
            place = mlps.index(re.sub(r"mixer.*", "", matrix))
            kind = "fp8" if _more_bits(place, len(mlps)) else kind
        table[matrix] = kind
    return table


def _feeds_attention(matrix: str, config: ModelConfig) -> bool:
    """Whether the block after this matrix's is attention."""
    index = int(matrix.split(".")[1])
    return config.pattern[index + 1 : index + 2] == "*"


def _more_bits(place: int, count: int) -> bool:
    """Whether the MLP at this place of so many gets more bits."""
    eighth = count // 8
    return place < eighth or place >= 7 * count // 8 or (place - eighth) % 3 == 2


__all__ = ["RECIPES", "Method", "Part", "Recipe", "lay", "part_of", "recipe"]

"""Which matrix is multiplied in which precision: a table laid over the model.

Promise: a layer does not know its precision; `lay` writes it into the matrices once, and the
layers' code is the same for all of them. The tables of the family's training recipes are here, and
what share of the work each leaves to four bits. What each precision does to the digits is
`ops/linear/README.md` and `ops/nvfp4/README.md`.
"""

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import get_args

import torch
from torch import Tensor, nn

from fathom.config.model import AttentionConfig, MambaConfig, MixerConfig, MlpConfig, ModelConfig
from fathom.errors import ConfigError
from fathom.ops.linear import (
    WEIGHTS_ALONE,
    Packed,
    Precision,
    linear,
    packed_linear,
    quantised_linear,
)
from fathom.ops.nvfp4 import Quantiser, Recipe, Rounding, largest, straight_through

FUSED = (".mixer.q_proj", ".mixer.k_proj", ".mixer.v_proj")
"""Matrices of a block that engines lay side by side."""


class Matrices(nn.Module):
    """What a precision can be laid over: one matrix, or a stack of them."""

    precision: Precision
    packed: object | None
    """The packed weights; None: they are parameters."""
    quantisers: tuple[Quantiser, ...] | None
    """What rounds the products of each weight in training; None: nothing does."""


class Linear(Matrices):
    """y = W x without a bias, W [rows, columns], in the precision laid over it.

    Its weight is a parameter that can be trained, or packed for products alone.
    """

    weight: nn.Parameter | None

    def __init__(
        self,
        columns: int,
        rows: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(rows, columns, dtype=dtype, device=device))
        self.precision: Precision = "stored"
        self.packed: Packed | None = None
        self.quantisers: tuple[Quantiser, ...] | None = None
        self.together: tuple[Linear, ...] = ()
        """Matrices, this one among them, that files give one scale, where weights alone are
        rounded; none: this one has its own."""

    def forward(self, x_TI: Tensor) -> Tensor:
        """[T, columns] -> [T, rows]."""
        if self.packed is not None:
            return packed_linear(x_TI, self.packed, self.precision)
        if self.quantisers is not None:
            return quantised_linear(x_TI, self.plain, self.quantisers[0])
        if self.together:
            amax = torch.stack([largest(part.plain.detach()) for part in self.together]).amax()
            form = WEIGHTS_ALONE[self.precision]
            return linear(x_TI, straight_through(self.plain, form, amax))
        return linear(x_TI, self.plain, self.precision)

    @property
    def plain(self) -> nn.Parameter:
        """The weight of a matrix that is not packed.

        Raises:
            ConfigError: it is packed.
        """
        if self.weight is None:
            raise ConfigError(
                "This matrix is packed for generation and cannot be trained; load the model with "
                "packed=False."
            )
        return self.weight

    def pack(self, packed: Packed | None = None) -> None:
        """Take packed weights, by default the own ones, in the place of the parameter."""
        self.packed = Packed.of(self.plain) if packed is None else packed
        self.weight = None


Table = Mapping[str, Precision]
"""Patterns to precisions, the last match of a name winning. A pattern is one of names
(`blocks.*.mixer.in_proj`) or of blocks from either end: `first 1`, `last 15%`, `last 14/88` of
however many there are, rounded up."""

BF16: Table = {"*": "bf16"}
"""Every matrix in BF16 but the router, whose scores are fp32 in every recipe of the family."""

FOUR_BITS: Table = {
    **BF16,
    "blocks.*.mixer.in_proj": "nvfp4",
    "blocks.*.mixer.out_proj": "mxfp8",
    "blocks.*.mixer.experts": "nvfp4",
    "blocks.*.mixer.shared.*": "nvfp4",
    "blocks.*.mixer.up": "nvfp4",
    "blocks.*.mixer.down": "nvfp4",
}
"""What all recipes in four bits share: Mamba's in_proj, experts and MLPs in NVFP4, Mamba's out_proj
in MXFP8; attention, latent projections, MTP, embedding and head stay (Super technical report,
arXiv 2604.12374, table 3)."""

IN_FOUR_BITS: Table = {**dict.fromkeys(FOUR_BITS, "w4a16"), "*": "stored"}
"""Weights alone rounded to NVFP4, those that `fathom quantise --format nvfp4` stores so."""

TABLES: Mapping[str, Table] = {
    "fp32": {"*": "stored"},
    "bf16": BF16,
    "w4a8": {"*": "w4a8"},
    "nano-bf16": BF16,
    "nano-nvfp4": {**FOUR_BITS, "last 15%": "bf16"},
    "super-nvfp4": {**FOUR_BITS, "first 1": "bf16", "last 14/88": "bf16"},
    "ultra-nvfp4": {**FOUR_BITS, "last 16/108": "bf16"},
    "mxfp8": {**dict.fromkeys(FOUR_BITS, "mxfp8"), "*": "bf16"},
    "weights-nvfp4": IN_FOUR_BITS,
    "weights-fp8": {**dict.fromkeys(FOUR_BITS, "w8a16"), "*": "stored"},
    "weights-mixed": {
        **IN_FOUR_BITS,
        "blocks.*.mixer.in_proj": "w8a16",
        "blocks.*.mixer.out_proj": "w8a16",
        "blocks.*.mixer.shared.*": "w8a16",
    },
}
"""The tables that a recipe may name; `w4a8` is for packed models alone. Nano was trained in BF16;
its table in four bits is the white paper's study (arXiv 2512.20856). `weights-nvfp4`,
`weights-fp8` and `weights-mixed` are for a student that `fathom quantise` will store in the format
of that name."""


def resolve(names: Iterable[str], table: str | Mapping[str, str]) -> dict[str, Precision]:
    """The precision of each of these matrices for which the table has one.

    Args:
        names: of matrices, as the model has them.
        table: a name of `TABLES`, or patterns to precisions; the key `base` then names a table
            that comes before them.

    Raises:
        ConfigError: an unknown table, precision or way to say which blocks, or a pattern of the
            caller's own that matches nothing.
    """
    names, found, formats = list(names), dict[str, Precision](), get_args(Precision)
    known = table if isinstance(table, str) else table.get("base")
    if known is not None:
        if known not in TABLES:
            raise ConfigError(f"There is no precision {known!r}; known are {', '.join(TABLES)}.")
        for pattern, precision in TABLES[known].items():
            found |= dict.fromkeys(_matches(names, pattern), precision)
    if isinstance(table, str):
        return found
    for pattern, given in table.items():
        if pattern == "base":
            continue
        if given not in formats:
            raise ConfigError(
                f"{pattern!r} asks for the precision {given!r}; known are {', '.join(formats)}."
            )
        matched = _matches(names, pattern)
        if not matched:
            raise ConfigError(f"The precision table's pattern {pattern!r} matches no matrix.")
        found |= dict.fromkeys(matched, formats[formats.index(given)])
    return found


def _matches(names: list[str], pattern: str) -> list[str]:
    """The names that a pattern of names or of blocks means."""
    wanted = re.fullmatch(r"(first|last) (\d+)(?:(%)|/(\d+))?", pattern)
    if wanted is None:
        return fnmatch.filter(names, pattern)
    block_of = {name: int(name.split(".")[1]) for name in names if name.startswith("blocks.")}
    blocks = 1 + max(block_of.values(), default=-1)
    end, number, percent, of = wanted.groups()
    whole = 100 if percent else int(of or 0)
    count = -(-blocks * int(number) // whole) if whole else int(number)
    inside = range(count) if end == "first" else range(blocks - count, blocks)
    return [name for name, block in block_of.items() if block in inside]


def lay(
    model: nn.Module,
    table: str | Mapping[str, str],
    rounding: Rounding | None = None,
    recipe: Recipe | None = None,
) -> None:
    """Give every matrix of `model` the precision of the last pattern that matches its name.

    Args:
        model: a model whose matrices are `Linear`, or stacks of experts.
        table: as for `resolve`.
        rounding: who draws where gradients are rounded stochastically; training in NVFP4 needs one.
        recipe: what NVFP4 does to operands, if not what the family's recipes do.

    Raises:
        ConfigError: see `resolve`; w4a8 for matrices that are not packed, a precision of training
            for packed ones.
    """
    own = Recipe() if recipe is None else recipe
    matrices = {name: part for name, part in model.named_modules() if isinstance(part, Matrices)}
    found = resolve(matrices, table)
    for number, (name, part) in enumerate(matrices.items()):
        precision = found.get(name, part.precision)
        trains = precision in ("nvfp4", "mxfp8")
        if precision == "w4a8" and part.packed is None:
            raise ConfigError(f"w4a8 is for packed matrices; {name} is plain. Pack the model.")
        if (trains or precision in WEIGHTS_ALONE) and part.packed is not None:
            raise ConfigError(
                f"{precision} is for training, and {name} is packed for generation. Load the "
                f"model with packed=False."
            )
        part.precision, part.quantisers = precision, None
        if trains:
            made = replace(own, format="nvfp4" if precision == "nvfp4" else "mxfp8")
            count = 1 if isinstance(part, Linear) else 2
            part.quantisers = tuple(
                Quantiser(made, rounding, 2 * number + which) for which in range(count)
            )
    _share_scales(matrices)


def _share_scales(matrices: Mapping[str, Matrices]) -> None:
    """Let queries, keys and values of a block that are rounded alike have one scale, as files do:
    engines multiply with them as one matrix."""
    fused: dict[tuple[str, Precision], list[Linear]] = {}
    for name, part in matrices.items():
        if not isinstance(part, Linear):
            continue
        part.together = ()
        if part.precision in WEIGHTS_ALONE and name.endswith(FUSED):
            fused.setdefault((name.rpartition(".")[0], part.precision), []).append(part)
    for parts in fused.values():
        for part in parts:
            part.together = tuple(parts)


def multiplications(config: ModelConfig) -> dict[str, int]:
    """Multiplications of each matrix for one token, forward, by the matrix's name.

    Routers are there too, as `blocks.1.mixer.router`, and the MTP head once.
    """
    found: dict[str, int] = {}
    for index in range(len(config.pattern)):
        for name, count in _mixer(config.mixer(index), config.width).items():
            found[f"blocks.{index}.mixer.{name}"] = count
    found["head"] = config.vocab * config.width
    if config.mtp:
        found["mtp.eh_proj"] = 2 * config.width**2
    for index, letter in enumerate(config.mtp):
        for name, count in _mixer(config.shape(letter), config.width).items():
            found[f"mtp.blocks.{index}.mixer.{name}"] = count
    return found


def _mixer(shape: MixerConfig, width: int) -> dict[str, int]:
    """The same for one mixer."""
    if isinstance(shape, MambaConfig):
        return {"in_proj": shape.in_rows * width, "out_proj": shape.inner * width}
    if isinstance(shape, AttentionConfig):
        query, key = (n * shape.head_width * width for n in (shape.heads, shape.kv_heads))
        return {"q_proj": query, "k_proj": key, "v_proj": key, "o_proj": query}
    if isinstance(shape, MlpConfig):
        return {"up": shape.hidden * width, "down": shape.hidden * width}
    inside = shape.latent or width
    found = {
        "router": shape.experts * width,
        "experts": shape.chosen * 2 * inside * shape.expert_width,
    }
    if shape.shared_width:
        found |= dict.fromkeys(("shared.up", "shared.down"), shape.shared_width * width)
    if shape.latent:
        found |= dict.fromkeys(("latent_down", "latent_up"), shape.latent * width)
    return found


def share(config: ModelConfig, table: str | Mapping[str, str], precision: str = "nvfp4") -> float:
    """The share of all matrices' multiplications whose three products are in `precision`.

    Head, routers and one pass of the MTP head are counted; attention and scan are no matrices.
    """
    work = multiplications(config)
    laid = resolve((name for name in work if not name.endswith(".router")), table)
    inside = sum(count for name, count in work.items() if laid.get(name) == precision)
    return inside / sum(work.values())


__all__ = [
    "BF16",
    "FOUR_BITS",
    "FUSED",
    "IN_FOUR_BITS",
    "TABLES",
    "Linear",
    "Matrices",
    "Table",
    "lay",
    "multiplications",
    "resolve",
    "share",
]

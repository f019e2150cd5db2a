"""Which matrix is multiplied in which precision: a table laid over the model.

Promise: a layer does not know its precision; `lay` writes it into the matrices once, and the
layers' code is the same for all of them. What each precision does to the digits is
`ops/linear/README.md`.
"""

import fnmatch
from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from fathom.errors import ConfigError
from fathom.ops.linear import Packed, Precision, linear, packed_linear


class Matrices(nn.Module):
    """What a precision can be laid over: one matrix, or a stack of them."""

    precision: Precision
    packed: object | None
    """The packed weights; None: they are parameters."""


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

    def forward(self, x_TI: Tensor) -> Tensor:
        """[T, columns] -> [T, rows]."""
        if self.packed is not None:
            return packed_linear(x_TI, self.packed, self.precision)
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


BF16: Mapping[str, Precision] = {"*": "bf16"}
"""Every matrix in BF16 but the router, whose scores are fp32 in every recipe of the family."""

TABLES: Mapping[str, Mapping[str, Precision]] = {
    "fp32": {"*": "stored"},
    "bf16": BF16,
    "w4a8": {"*": "w4a8"},
}
"""The tables that a recipe may name; `w4a8` is for packed models alone."""


def lay(model: nn.Module, table: str | Mapping[str, Precision]) -> None:
    """Give every matrix of `model` the precision of the last pattern that matches its name.

    Args:
        model: a model whose matrices are `Linear`, packed experts counted.
        table: a name of `TABLES`, or patterns (`blocks.*.mixer.in_proj`) to precisions.

    Raises:
        ConfigError: an unknown table or precision, a pattern that matches nothing, or w4a8 for
            matrices that are not packed.
    """
    if isinstance(table, str):
        if table not in TABLES:
            raise ConfigError(f"There is no precision {table!r}; known are {', '.join(TABLES)}.")
        table = TABLES[table]
    matrices = {
        name: part
        for name, part in model.named_modules()
        if isinstance(part, Linear) or (isinstance(part, Matrices) and part.packed is not None)
    }
    for pattern, precision in table.items():
        if precision not in get_args(Precision):
            raise ConfigError(
                f"{pattern!r} asks for the precision {precision!r}; known are "
                f"{', '.join(get_args(Precision))}."
            )
        names = fnmatch.filter(matrices, pattern)
        if not names:
            raise ConfigError(f"The precision table's pattern {pattern!r} matches no matrix.")
        for name in names:
            if precision == "w4a8" and matrices[name].packed is None:
                raise ConfigError(f"w4a8 is for packed matrices; {name} is plain. Pack the model.")
            matrices[name].precision = precision


__all__ = ["BF16", "TABLES", "Linear", "Matrices", "lay"]

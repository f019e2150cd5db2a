"""How training rounds the three products of a matrix: y = x W', dx = dy W, dW = dy' x.

Promise: what is rounded how is a frozen `Recipe`; who draws is a `Rounding` that the trainer holds
and moves on, so a run that is taken up again repeats itself. The products themselves are
`ops/linear/quantised.py` and `ops/experts/quantised.py`. Source: NVIDIA, Pretraining Large Language
Models with NVFP4 (arXiv 2509.25149).

| product | first operand | second operand |
|---|---|---|
| y = x W' | x, along its rows, nearest | W, 16 x 16 tiles, nearest |
| dx = dy W | dy, along its rows, stochastic | the same W |
| dW = dy' x | dy, along tokens, transformed, stochastic | x, along tokens, transformed, nearest |
"""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from fathom.errors import KernelError
from fathom.ops import dispatch, native
from fathom.ops.nvfp4 import cpu, triton
from fathom.ops.nvfp4 import operands as reference
from fathom.ops.nvfp4.operands import MX_BLOCK, Copy, Groups, Operands
from fathom.ops.nvfp4.philox import Key
from fathom.ops.nvfp4.reference import BLOCK

OPERATION = dispatch.Operation(
    "nvfp4",
    (
        native.backend(cpu),
        dispatch.Backend("triton", triton, triton.why_not),
        dispatch.Backend("reference", reference, dispatch.never_against),
    ),
)
"""The backends of the rounding itself."""

Role = Literal["activation", "weight", "gradient"]


@dataclass(frozen=True)
class Recipe:
    """What is done to operands; the switches are for ablations of NVFP4."""

    format: Literal["nvfp4", "mxfp8"] = "nvfp4"
    """mxfp8: blocks of 32 of E4M3 with a power of two, to nearest everywhere, no switches."""
    tiles: bool = True
    """Whether 16 x 16 weights share a block scale, so that W and W' are the same numbers."""
    stochastic: bool = True
    """Whether gradients are rounded stochastically."""
    transform: bool = True
    """Whether both operands of dW are transformed (random Hadamard) before."""

    @property
    def block(self) -> int:
        """Tokens of a block: groups of tokens are filled up to whole ones."""
        return BLOCK if self.format == "nvfp4" else MX_BLOCK


@final
class Rounding:
    """Where a run's random numbers stand, and what it notes of its rounding; the trainer's."""

    def __init__(self, seed: int) -> None:
        """Begin at step 0."""
        self.seed = seed
        self.step = self.micro = 0
        self.zeros: dict[Role, list[Tensor]] | None = None
        """While somebody listens: shares of values that were not zero and became it."""

    def move(self, step: int, micro: int) -> None:
        """Go to a micro-batch of a step."""
        self.step, self.micro = step, micro

    def listen(self) -> None:
        """Note what becomes zero from now on; it costs a pass over each matrix."""
        self.zeros = {}

    def heard(self) -> dict[str, float]:
        """What was noted since `listen`, by role, and note no more."""
        found, self.zeros = self.zeros or {}, None
        return {
            f"underflow/{role}": float(torch.stack(all_).mean()) for role, all_ in found.items()
        }

    def note(self, role: Role, x: Tensor, rows: Tensor, groups: Groups | None) -> None:
        """Note the share of x's values, as groups take them, that became zero in `rows`."""
        if self.zeros is None:
            return
        kept = (x != 0).sum(-1)
        if groups is not None and groups.source_R is not None:
            kept = torch.cat([kept, kept.new_zeros(1)])[groups.source_R]
        before, after = kept.sum(), (rows != 0).sum()
        share = (before - after) / before.clamp_min(1)
        self.zeros.setdefault(role, []).append(share.float())


@dataclass(frozen=True)
class Weight:
    """A weight, or a stack of them, as operands of y = x W' and of dx = dy W."""

    forward: Tensor
    """[.., O, I]: blocks lie along I."""
    forward_scale: Tensor
    """fp32 [E]."""
    backward: Tensor
    """[.., O, I]: blocks lie along O; with tiles the same tensor."""
    backward_scale: Tensor


@final
class Quantiser:
    """The rounding of one weight's products."""

    def __init__(self, recipe: Recipe, rounding: Rounding | None, matrix: int) -> None:
        """Round by `recipe`; `matrix` is the weight's number in the model, for its random numbers.

        Without a `rounding` nothing can be rounded stochastically.
        """
        self.recipe, self.rounding, self.matrix = recipe, rounding, matrix

    def key(self) -> Key | None:
        """The key of this moment, if gradients are rounded stochastically.

        Raises:
            KernelError: they are, and nobody holds the random numbers.
        """
        if self.recipe.format != "nvfp4" or not self.recipe.stochastic:
            return None
        if self.rounding is None:
            raise KernelError(
                "nvfp4: gradients are rounded stochastically, and nobody holds the random "
                "numbers. Give `lay` a Rounding(seed), and move it on at every step."
            )
        return Key(self.rounding.seed, self.rounding.step, self.rounding.micro, self.matrix)

    def weight(self, weight: Tensor, dtype: torch.dtype) -> Weight:
        """The weight's operands in `dtype`.

        They are made at every call: torch's fused optimizers change weights without a trace, so
        nothing says whether kept ones are still those of the weight.
        """
        made = weight_operands(weight.detach(), self.recipe, dtype)
        if self.rounding is not None:
            self.rounding.note("weight", weight.detach(), made.forward, None)
        return made

    def activation(
        self, x: Tensor, dtype: torch.dtype, groups: Groups | None, learns: bool
    ) -> Operands:
        """x for y = x W' in `dtype`, and in fp32 for dW if the weight `learns`."""
        columns = Copy(torch.float32, transform=self.recipe.transform) if learns else None
        found = self._operands(x, Copy(dtype), columns, None, groups)
        if self.rounding is not None and found.rows is not None:
            self.rounding.note("activation", x, found.rows, groups)
        return found

    def gradient(
        self, dy: Tensor, dtype: torch.dtype, key: Key | None, groups: Groups | None, learns: bool
    ) -> Operands:
        """dy for dx = dy W in `dtype`, and in fp32 for dW if the weight `learns`."""
        lot = key is not None
        columns = Copy(torch.float32, lot, transform=self.recipe.transform) if learns else None
        found = self._operands(dy, Copy(dtype, lot), columns, key, groups)
        if self.rounding is not None and found.rows is not None:
            self.rounding.note("gradient", dy, found.rows, groups)
        return found

    def _operands(
        self, x: Tensor, rows: Copy, columns: Copy | None, key: Key | None, groups: Groups | None
    ) -> Operands:
        if self.recipe.format == "nvfp4":
            return operands(x, rows, columns, key, groups)
        return _mx(x, rows, columns, groups)


def weight_operands(weight: Float[Tensor, "*E O I"], recipe: Recipe, dtype: torch.dtype) -> Weight:
    """Round a weight [O, I], or each of a stack [E, O, I], for both products that it is in."""
    if weight.ndim == 2:
        groups, shape = None, weight.shape
        matrix = weight
    else:
        count, rows, width = weight.shape
        whole = -(-rows // recipe.block) * recipe.block
        matrix, shape = weight.reshape(count * rows, width), torch.Size((count, whole, width))
        places = torch.arange(count * rows, device=weight.device).view(count, rows)
        source = torch.nn.functional.pad(places, (0, whole - rows), value=-1).flatten()
        blocks = torch.arange(count, dtype=torch.int32, device=weight.device)
        groups = Groups(source, blocks.repeat_interleave(whole // BLOCK), count)
    along_rows = Copy(dtype, tiles=recipe.tiles)
    along_columns = None if recipe.tiles else Copy(dtype)
    if recipe.format == "nvfp4":
        found = operands(matrix, along_rows, along_columns, None, groups)
    else:
        found = _mx(matrix, along_rows, Copy(dtype), groups)
    assert found.rows is not None
    rows = weight.shape[-2]
    forward = found.rows.view(shape)[..., :rows, :]
    if found.columns is None:
        return Weight(forward, found.rows_scale, forward, found.rows_scale)
    backward = found.columns[:rows] if weight.ndim == 2 else found.columns.view(shape)[:, :rows]
    return Weight(forward, found.rows_scale, backward, found.columns_scale)


def operands(
    x: Float[Tensor, "T C"],
    rows: Copy | None,
    columns: Copy | None,
    key: Key | None = None,
    groups: Groups | None = None,
) -> Operands:
    """Copies of a matrix as operands in NVFP4; `README.md` has the mathematics.

    Args:
        x: [T, C] in fp32 or BF16.
        rows: how to make the copy whose blocks lie along rows; None: it is not wanted.
        columns: the same for blocks of 16 rows along columns.
        key: whose random numbers round the copies that are rounded stochastically.
        groups: which rows to take, and which of them share a scale; None: all, in one.

    Raises:
        KernelError: a copy is to be rounded stochastically and there is no key.
    """
    if key is None and any(copy is not None and copy.stochastic for copy in (rows, columns)):
        raise KernelError("nvfp4: stochastic rounding needs a key; give one.")
    backend = OPERATION.choose(dispatch.Case.of(x)).module
    found: Operands = backend.operands(x.contiguous(), rows, columns, key, groups)
    return found


def mxfp8_operands(
    x: Float[Tensor, "T C"],
    rows: torch.dtype | None,
    columns: torch.dtype | None,
    groups: Groups | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """The same in MXFP8, whose groups are of whole blocks of 32; there are no scales apart."""
    backend = OPERATION.choose(dispatch.Case.of(x)).module
    found: tuple[Tensor | None, Tensor | None] = backend.mxfp8_operands(
        x.contiguous(), rows, columns, groups
    )
    return found


def _mx(x: Tensor, rows: Copy, columns: Copy | None, groups: Groups | None) -> Operands:
    """MXFP8's copies, whose scales are one."""
    wanted = None if columns is None else columns.dtype
    by_rows, by_columns = mxfp8_operands(x, rows.dtype, wanted, groups)
    ones = torch.ones(groups.count if groups else 1, device=x.device)
    return Operands(by_rows, ones, by_columns, ones)


def scaled(
    sums: Float[Tensor, "R C"],
    alpha: Float[Tensor, "*G"],
    dtype: torch.dtype,
    group_B: Int32[Tensor, " B"] | None = None,
    block: int = BLOCK,
) -> Float[Tensor, "R C"]:
    """The sums of a product, rounded to BF16, times alpha: [R, C] in `dtype`.

    Args:
        sums: fp32 or BF16 [R, C].
        alpha: fp32 [G], the product of both operands' scales.
        group_B: int32, the group of each `block` rows; None: there is one.
    """
    backend = OPERATION.choose(dispatch.Case.of(sums)).module
    found: Tensor = backend.scaled(sums, alpha, group_B, block, dtype)
    return found


__all__ = [
    "OPERATION",
    "Quantiser",
    "Recipe",
    "Role",
    "Rounding",
    "Weight",
    "mxfp8_operands",
    "operands",
    "scaled",
    "weight_operands",
]

"""Weights laid out for products: packed once, read in one stream by every product after that.

Promise: packing loses nothing; `unpack` gives the same bits back. A packed matrix cannot be
trained. Where a value lies is `ops/native/linear/format.h`; without native kernels the same bytes
are laid by PyTorch, so that a model loads and runs anywhere.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from fathom.errors import KernelError
from fathom.ops import native
from fathom.ops.dispatch import Case

Format = Literal["fp32", "bf16", "fp8", "nvfp4"]
"""`fp8` is E4M3 with one scale a matrix; `nvfp4` E2M1 with an E4M3 scale for 16 columns and one."""

PANEL, BLOCK = 32, 16
"""Rows of a panel and columns of a block."""

CODES: dict[Format, int] = {name: code for code, name in enumerate(get_args(Format))}
STORED = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "nvfp4": torch.uint8,
}
"""The type of the values that a format is filled from."""


@dataclass(frozen=True)
class Packed:
    """One matrix [rows, columns] in panels; `scale` (fp32, one value) multiplies all of it."""

    format: Format
    rows: int
    columns: int
    data: Tensor
    """uint8, the panels one after the other."""
    scale: Tensor

    @classmethod
    def empty(cls, format: Format, rows: int, columns: int) -> "Packed":
        """Room for a matrix, to be filled; its scale is one.

        Raises:
            KernelError: NVFP4 with columns that are no multiple of 16.
        """
        data = native.room([matrix_bytes(format, rows, columns)], torch.uint8)
        return cls(format, rows, columns, data, torch.ones(()))

    @classmethod
    def of(cls, weight_OI: Tensor) -> "Packed":
        """Pack a plain matrix of fp32 or bf16 as it is."""
        found: Format = "bf16" if weight_OI.dtype == torch.bfloat16 else "fp32"
        packed = cls.empty(found, weight_OI.shape[0], weight_OI.shape[1])
        packed.fill(0, weight_OI.detach())
        return packed

    @property
    def dtype(self) -> torch.dtype:
        """The type that activations have beside it in a model stored like this."""
        return torch.float32 if self.format == "fp32" else torch.bfloat16

    def fill(self, first: int, values: Tensor, scales: Tensor | None = None) -> None:
        """Put rows [first, first + r) in their place.

        Args:
            first: a multiple of 32.
            values: [r, columns] of the format's type; NVFP4: codes uint8 [r, columns / 2], the
                even column in the low nibble. r is a multiple of 32, but for the last rows.
            scales: NVFP4's block scales, float8_e4m3fn [r, columns / 16].

        Raises:
            KernelError: rows that do not fit, or another type.
        """
        count = values.shape[0]
        self._check(first, count)
        if self.format == "nvfp4" and scales is None:
            raise KernelError("Packed.fill: nvfp4 needs block scales beside the codes.")
        wanted = (count, self.columns // 2 if self.format == "nvfp4" else self.columns)
        if values.dtype != STORED[self.format] or values.shape != wanted:
            raise KernelError(
                f"Packed.fill: {self.format} is filled from {STORED[self.format]} "
                f"{list(wanted)}; got {values.dtype} {list(values.shape)}."
            )
        values = values.contiguous()
        scales = None if scales is None else scales.contiguous()
        if _native():
            native.kernels().pack(*self._part(first, values, scales))
        else:
            _lay(self, first, values, scales)

    def unpack(self, first: int = 0, count: int | None = None) -> tuple[Tensor, Tensor | None]:
        """Rows [first, first + count) as `fill` takes them: values, and NVFP4's block scales."""
        count = self.rows - first if count is None else count
        self._check(first, count)
        halved = self.format == "nvfp4"
        values = torch.empty(
            count, self.columns // 2 if halved else self.columns, dtype=STORED[self.format]
        )
        scales = None
        if halved:
            scales = torch.empty(count, self.columns // BLOCK, dtype=torch.float8_e4m3fn)
        if _native():
            native.kernels().unpack(*self._part(first, values, scales))
        else:
            _read(self, first, values, scales)
        return values, scales

    def dense(self, first: int = 0, count: int | None = None) -> Tensor:
        """Rows [first, first + count) as fp32 numbers, the scale multiplied."""
        values, scales = self.unpack(first, count)
        if scales is None:
            return values.float() * self.scale
        codes = torch.stack([values & 15, values >> 4], -1).flatten(1).int()
        blocks: Tensor = _E2M1[codes].unflatten(1, (-1, BLOCK)) * scales.float()[..., None]
        return blocks.flatten(1) * self.scale

    def _part(self, first: int, values: Tensor, scales: Tensor | None) -> tuple[int, ...]:
        """What the kernels want to know of rows from `first` on, and of where their values are."""
        return (
            CODES[self.format],
            values.data_ptr(),
            0 if scales is None else scales.data_ptr(),
            self.data.data_ptr(),
            first,
            values.shape[0],
            self.columns,
        )

    def _check(self, first: int, count: int) -> None:
        """Raise unless rows [first, first + count) are whole panels of this matrix."""
        end = first + count
        whole = first % PANEL == 0 and (count % PANEL == 0 or end == self.rows)
        if not whole or first < 0 or end > self.rows:
            raise KernelError(
                f"Packed: rows {first} to {end} are not whole panels of {PANEL} rows of a matrix "
                f"with {self.rows} rows."
            )


@dataclass(frozen=True)
class PackedStack:
    """E matrices of one shape, such as a layer's experts, in one piece of memory."""

    format: Format
    count: int
    rows: int
    columns: int
    data: Tensor
    """uint8 [E, bytes of a matrix]."""
    scale: Tensor
    """fp32 [E]."""

    @classmethod
    def empty(cls, format: Format, count: int, rows: int, columns: int) -> "PackedStack":
        """Room for `count` matrices; their scales are one."""
        data = native.room([count, matrix_bytes(format, rows, columns)], torch.uint8)
        return cls(format, count, rows, columns, data, torch.ones(count))

    @classmethod
    def of(cls, weight_EOI: Tensor) -> "PackedStack":
        """Pack plain matrices of fp32 or bf16 as they are."""
        found: Format = "bf16" if weight_EOI.dtype == torch.bfloat16 else "fp32"
        E, rows, columns = weight_EOI.shape
        stack = cls.empty(found, E, rows, columns)
        for expert in range(E):
            stack[expert].fill(0, weight_EOI[expert].detach())
        return stack

    def __getitem__(self, expert: int) -> Packed:
        """One matrix, a view of the stack."""
        return Packed(self.format, self.rows, self.columns, self.data[expert], self.scale[expert])

    def __len__(self) -> int:
        """How many matrices."""
        return self.count


_E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def matrix_bytes(format: Format, rows: int, columns: int) -> int:
    """Bytes of a packed matrix.

    Raises:
        KernelError: an unknown format, or NVFP4 with columns that are no multiple of 16.
    """
    if format not in CODES:
        raise KernelError(f"There is no weight format {format!r}; known are {', '.join(CODES)}.")
    if format == "nvfp4" and columns % BLOCK:
        raise KernelError(f"nvfp4 needs columns in multiples of {BLOCK}; got {columns}.")
    blocks = -(-columns // BLOCK)
    block = {"fp32": 2048, "bf16": 1024, "fp8": 512, "nvfp4": 256 + PANEL}[format]
    return -(-rows // PANEL) * (-(-blocks * block // 64) * 64)


def _native() -> bool:
    """Whether native kernels do the packing."""
    return native.why_not(Case("cpu", torch.float32, False)) is None


def _grid(packed: Packed, first: int, count: int) -> tuple[Tensor, Tensor | None, int]:
    """The panels of some rows as values by place, NVFP4's scales, and the number of blocks."""
    blocks = -(-packed.columns // BLOCK)
    panels = packed.data.view(-(-packed.rows // PANEL), -1)
    own = panels[first // PANEL : -(-(first + count) // PANEL)]
    if packed.format == "nvfp4":
        codes = own[:, : blocks * 256].view(torch.int32).view(-1, blocks, 2, PANEL)
        return codes, own[:, blocks * 256 : blocks * 288].view(-1, blocks, PANEL), blocks
    shape = (BLOCK, PANEL) if packed.format == "fp32" else (8, PANEL, 2)
    size = 512 * STORED[packed.format].itemsize
    return (
        own[:, : blocks * size].view(STORED[packed.format]).view(-1, blocks, *shape),
        None,
        blocks,
    )


def _lay(packed: Packed, first: int, values: Tensor, scales: Tensor | None) -> None:
    """`Packed.fill` by PyTorch."""
    grid, own_scales, blocks = _grid(packed, first, values.shape[0])
    panels = grid.shape[0]
    padded = values.new_zeros(
        panels * PANEL, blocks * (8 if packed.format == "nvfp4" else BLOCK), dtype=values.dtype
    )
    padded[: values.shape[0], : values.shape[1]] = values
    if scales is not None and own_scales is not None:
        four = padded.view(panels, PANEL, blocks, 2, 4).to(torch.int32)
        shifts = torch.arange(4, dtype=torch.int32) * 4
        lanes = ((four & 15) << shifts).sum(-1) + ((four >> 4) << (shifts + 16)).sum(-1)
        grid.copy_(lanes.to(torch.int32).permute(0, 2, 3, 1))
        whole = scales.new_zeros(panels * PANEL, blocks, dtype=torch.uint8)
        whole[: scales.shape[0]] = scales.view(torch.uint8)
        own_scales.copy_(whole.view(panels, PANEL, blocks).transpose(1, 2))
    elif packed.format == "fp32":
        grid.copy_(padded.view(panels, PANEL, blocks, BLOCK).permute(0, 2, 3, 1))
    else:
        grid.view(torch.uint8).copy_(
            padded.view(panels, PANEL, blocks, 8, 2)
            .permute(0, 2, 3, 1, 4)
            .contiguous()
            .view(torch.uint8)
        )


def _read(packed: Packed, first: int, values: Tensor, scales: Tensor | None) -> None:
    """`Packed.unpack` by PyTorch."""
    grid, own_scales, _ = _grid(packed, first, values.shape[0])
    if scales is not None and own_scales is not None:
        lanes = grid.permute(0, 3, 1, 2)[..., None]
        shifts = torch.arange(4, dtype=torch.int32) * 4
        four = (lanes >> shifts & 15) | ((lanes >> (shifts + 16) & 15) << 4)
        values.copy_(four.flatten(2).flatten(0, 1)[: values.shape[0]].to(torch.uint8))
        found = own_scales.transpose(1, 2).flatten(0, 1)[: values.shape[0]]
        scales.view(torch.uint8).copy_(found)
        return
    order = (0, 3, 1, 2) if packed.format == "fp32" else (0, 3, 1, 2, 4)
    rows = grid.permute(order).flatten(2).flatten(0, 1)
    values.copy_(rows[: values.shape[0], : values.shape[1]])


__all__ = ["BLOCK", "CODES", "PANEL", "STORED", "Format", "Packed", "PackedStack", "matrix_bytes"]

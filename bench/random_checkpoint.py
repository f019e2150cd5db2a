"""A randomly filled checkpoint of any named size, plain or in a precision map.

Promise: no model is ever held, so a size that fits the disk can be made on any machine: values are
drawn as they are written, a few megabytes at a time, quantised ones directly as codes and scales.
Weights spread like normal ones (standard deviation 0.02), so activations stay sensible; the same
seed gives the same bytes. The folder appears whole or not at all, and free space is checked first.

    python bench/random_checkpoint.py nano runs/bench/nano-lightning --table lightning
    python bench/random_checkpoint.py nano runs/bench/tiny --table lightning --layers 8
"""

import argparse
import math
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from workloads import WORKLOADS

from fathom.checkpoint.atomic import new_folder
from fathom.checkpoint.expected import WEIGHT, layout, matrix_needs
from fathom.checkpoint.folder import write_model
from fathom.checkpoint.formats import Stored
from fathom.checkpoint.names import CORRECTION_BIAS, Slot
from fathom.checkpoint.opened import algorithms
from fathom.checkpoint.pieces import Item
from fathom.checkpoint.quantise import TABLES, lay_formats
from fathom.config.model import ModelConfig
from fathom.model.sizes import size

SPREAD = 0.02
"""Standard deviation of a weight."""
CODE_SPREAD = math.sqrt(8.5625)
"""Root mean square of the sixteen E2M1 numbers."""
SCALES = (0x6C, 0x78)
"""Bytes of the block scales drawn: 96 to 240, about the middle of a Gaussian weight's."""
_DRAWN = torch.arange(*SCALES, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
SCALE_SPREAD = _DRAWN.square().mean().sqrt().item()
"""Root mean square of these scales."""
FP8_SPREAD = 448 / 6
"""Standard deviation of FP8 values: six of them reach the largest."""


class Fills:
    """Draws values for tensors by their names, and says how fast it goes."""

    def __init__(self, seed: int, total: int) -> None:
        self.seed, self.total = seed, total
        self.written = 0
        self.began = self.told = time.monotonic()

    def draw(self, name: str) -> np.random.Generator:
        """A stream of random numbers of its own for every tensor and piece."""
        return np.random.Generator(np.random.SFC64([self.seed, *name.encode()]))

    def count(self, piece: Tensor) -> None:
        """Add to what is written, and tell now and then."""
        self.written += piece.numel() * piece.element_size()
        now = time.monotonic()
        if now - self.told > 2 or self.written == self.total:
            self.told, gigabytes = now, self.written / 1e9
            print(
                f"{gigabytes:8.2f} of {self.total / 1e9:.2f} GB, "
                f"{(now - self.began) / gigabytes:.2f} s per GB",
                file=sys.stderr,
                flush=True,
            )

    def codes(self, name: str, piece: Tensor, start: int) -> None:
        """Pairs of E2M1 codes, all equally likely."""
        drawn = self.draw(f"{name} {start}").bytes(piece.numel())
        piece.copy_(torch.frombuffer(bytearray(drawn), dtype=torch.uint8))
        self.count(piece)

    def scales(self, name: str, piece: Tensor, start: int) -> None:
        """Block scales, all equally likely."""
        drawn = self.draw(f"{name} {start}").integers(*SCALES, piece.numel(), dtype=np.uint8)
        piece.view(torch.uint8).copy_(torch.from_numpy(drawn))
        self.count(piece)

    def normal(self, name: str, spread: float, piece: Tensor, start: int) -> None:
        """Normal numbers, within what the type can hold."""
        drawn = self.draw(f"{name} {start}").standard_normal(piece.numel(), dtype=np.float32)
        largest = torch.finfo(piece.dtype).max
        piece.copy_(torch.from_numpy(drawn).mul_(spread).clamp_(-largest, largest))
        self.count(piece)

    def constant(self, value: float, piece: Tensor, start: int) -> None:
        """One number throughout."""
        piece.fill_(value)
        self.count(piece)

    def state(self, name: str, low: float, high: float, piece: Tensor, start: int) -> None:
        """A Mamba block's A_log (logarithms of A) or dt_bias (dt before its softplus)."""
        drawn = self.draw(f"{name} {start}")
        if name.endswith("A_log"):
            found = np.log(drawn.uniform(low, high, piece.numel()))
        else:
            step = np.exp(drawn.uniform(math.log(low), math.log(high), piece.numel()))
            found = step + np.log(-np.expm1(-step))
        piece.copy_(torch.from_numpy(found))
        self.count(piece)


def plain_item(fills: Fills, name: str, slot: Slot) -> Item:
    """A tensor that is not quantised: bf16, correction biases fp32."""
    dtype = torch.float32 if name.endswith(CORRECTION_BIAS) else torch.bfloat16
    if name.endswith("A_log"):
        fill = partial(fills.state, name, 1.0, 16.0)
    elif name.endswith("dt_bias"):
        fill = partial(fills.state, name, 1e-3, 0.1)
    elif name.endswith((CORRECTION_BIAS, "conv1d.bias")):
        fill = partial(fills.constant, 0.0)
    elif name.endswith(".D") or len(slot.shape) == 1:
        fill = partial(fills.constant, 1.0)
    elif name.endswith("conv1d.weight"):
        fill = partial(fills.normal, name, 1 / math.sqrt(3 * slot.shape[-1]))
    else:
        fill = partial(fills.normal, name, SPREAD)
    return Item(name, dtype, slot.shape, fill)


def quantised_items(fills: Fills, name: str, slot: Slot, kind: Stored) -> list[Item]:
    """The tensors of a quantised matrix."""
    found: list[Item] = []
    for part, need in matrix_needs(name.removesuffix(WEIGHT), slot.shape, kind).items():
        if need.optional:
            continue
        dtype = next(iter(need.dtypes))
        if need.shape == ():
            whole = FP8_SPREAD if kind == "fp8" else CODE_SPREAD * SCALE_SPREAD
            fill = partial(fills.constant, SPREAD / whole)
        elif dtype == torch.uint8:
            fill = partial(fills.codes, part)
        elif kind == "nvfp4":
            fill = partial(fills.scales, part)
        else:
            fill = partial(fills.normal, part, FP8_SPREAD)
        found.append(Item(part, dtype, need.shape, fill))
    return found


def make(config: ModelConfig, folder: Path, table: str | None, seed: int = 0) -> Path:
    """Write a randomly filled checkpoint of this shape; raises `CheckpointError` on a full disk."""
    wanted = layout(config)
    kinds = {} if table is None else lay_formats(config, wanted, table)
    fills = Fills(seed, 0)
    items: list[Item] = []
    for name, slot in wanted.items():
        kind = kinds.get(name, "plain")
        if kind == "plain":
            items.append(plain_item(fills, name, slot))
        else:
            items += quantised_items(fills, name, slot, kind)
    fills.total = sum(item.bytes for item in items)
    with new_folder(folder, fills.total) as fresh:
        write_model(fresh, items, config, torch.bfloat16, algorithms=algorithms(kinds))
    return folder


def shape(name: str, layers: int | None) -> ModelConfig:
    """A named size or a workload, without an MTP head, or its first blocks alone."""
    config = WORKLOADS[name] if name in WORKLOADS else size(name).replace(mtp="")
    if layers is not None and layers < len(config.pattern):
        config = config.replace(name=f"{name}-{layers}", pattern=config.pattern[:layers])
    return config


def main() -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("size", help="a named size or a workload: nano, lightning, bench-1b ...")
    parser.add_argument("path", type=Path, help="the folder to write")
    parser.add_argument("--table", choices=list(TABLES), help="a precision map; left out: bf16")
    parser.add_argument("--layers", type=int, help="only so many blocks")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    config = shape(given.size, given.layers)
    print(make(config, given.path, given.table, given.seed))


if __name__ == "__main__":
    main()

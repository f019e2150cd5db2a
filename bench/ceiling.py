"""What the machine can do at most, measured while a benchmark runs.

Promise: the figures that every bound divides by are measured in the same run as what is bounded,
and the median of several is taken, because a shared machine changes from minute to minute.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from fathom import machine


@dataclass(frozen=True)
class Ceiling:
    """Rates with the threads that torch uses."""

    read: float
    """Bytes read a second."""
    float_flops: float
    """FLOP a second of products, by the faster of fp32 and bf16."""
    int8_flops: float
    """Operations a second of int8 products; 0 where torch has none."""


def measure() -> Ceiling:
    """Measure for about a second and a half."""
    rates = machine.measure()
    return Ceiling(rates.read * 1e9, max(rates.fp32, rates.bf16) * 1e9, int8_flops())


def int8_flops(width: int = 1024, seconds: float = 0.2) -> float:
    """Operations a second of torch's int8 product of a square, the best of some."""
    left = torch.ones(width, width, dtype=torch.int8)
    shortest, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begin = time.perf_counter()
        torch._int_mm(left, left)
        shortest = min(shortest, time.perf_counter() - begin)
    return 2 * width**3 / shortest


def median(found: Sequence[Ceiling]) -> Ceiling:
    """The median of each rate."""
    columns = [asdict(one) for one in found]
    return Ceiling(**{key: statistics.median(one[key] for one in columns) for key in columns[0]})

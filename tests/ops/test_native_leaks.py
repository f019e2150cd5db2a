"""Laws of memory: no native kernel keeps any, however often it is called.

Promise: every kernel that the module binds is called here; a new one needs its line in `CALLS`.
"""

import gc
from collections.abc import Callable

import psutil
import pytest
import torch
from torch import Tensor

from fathom.ops import attend, conv, draw, experts, linear, native, norm, nvfp4, ssd
from fathom.ops.attend.cpu import fresh_pages
from fathom.ops.layout import Layout
from fathom.ops.linear.packed import Packed, PackedStack

CALLS_MADE = 10_000
GROWTH = 512 * 1024
"""Bytes that a process may grow by: 52 a call."""
NO_KERNELS = {"Tape", "ScanInputs", "ScanSizes", "threads", "panel_bytes", "ssd_state_values"}
NO_KERNELS |= {"large_pages"}  # advice to the system, once a buffer


def drawn(*shape: int) -> Tensor:
    """Numbers that want a gradient."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def trained(function: Callable[..., object], *inputs: Tensor) -> Callable[[], None]:
    """A call of the function, and its backward pass."""

    def call() -> None:
        outputs = function(*inputs)
        first = outputs[-1] if isinstance(outputs, tuple) else outputs
        torch.autograd.grad(first, inputs, torch.ones_like(first), allow_unused=True)

    return call


def still(function: Callable[[], object]) -> Callable[[], None]:
    """A call without gradients."""

    def call() -> None:
        with torch.no_grad():
            function()

    return call


def packed(first: int, weight: Packed, values: Tensor) -> None:
    """Pack and unpack."""
    weight.fill(first, values)
    weight.unpack()


def moved(floats: Tensor, halves: Tensor, numbers: Tensor) -> None:
    """What a recorded step does between the operations: floats and halves [4, 8], numbers [4]."""
    kernels, other = native.kernels(), torch.empty_like(floats)
    x, y, n, z = (t.data_ptr() for t in (floats, halves, numbers, other))
    places = (1, 4, 8, 32, 8, 1, 32, 8, 1)
    kernels.add(x, x, x, floats.numel(), 0)
    kernels.gather_rows(x, 32, 4, n, 8, z, 4, 32)
    kernels.copy_cells(x, z, *places, 4)
    kernels.convert_cells(x, y, *places, 0)
    kernels.count_up(n, 4, 0, 8)


def draws(logits: Tensor) -> None:
    """A draw of two rows with every filter, and of two without any."""
    wide = torch.ones(2, dtype=torch.float64)
    draw.draw(logits, wide, torch.full((2,), 9), wide / 2, wide / 20, wide / 3, None)
    draw.draw(logits, wide, torch.zeros(2, dtype=torch.int64), wide, wide * 0, wide / 3, None)


def calls() -> dict[str, Callable[[], object]]:
    """What is called: every kernel at least once."""
    layout, x, weight = Layout.of([3, 2]), drawn(5, 16), drawn(16)
    k, plain, stack = drawn(5, 1, 16), drawn(16, 16).detach(), drawn(4, 16, 16).detach()
    matrix, matrices = Packed.of(plain), PackedStack.of(stack)
    chosen, weights = torch.tensor([[0, 3]] * 5), torch.ones(5, 2)
    heads, B, dt, A, D = drawn(5, 2, 8), drawn(5, 1, 8), torch.rand(5, 2), -torch.ones(2), drawn(2)
    state, counts = torch.zeros(5, 2, 8, 8), torch.ones(5, dtype=torch.int64)
    half, rounding = state.half(), ssd.Rounding(torch.zeros(5, dtype=torch.int32), 1)
    floats, ones = torch.zeros(4, 8), Layout.of([1] * 5)
    four = nvfp4.Quantiser(nvfp4.Recipe(), nvfp4.Rounding(0), 0)
    token = [t.detach() for t in (heads, dt, A, B, B, D)]
    return {
        "rms_norm": trained(lambda x, w: norm.rms_norm(x, w, 1e-5), x, weight),
        "gated_norm": trained(lambda x, w: norm.gated_norm(x, x, w, 2, 1e-5), x, weight),
        "conv": trained(
            lambda x, w, b: conv.causal_conv(x, w, b, layout)[0], x, drawn(16, 4), weight
        ),
        "conv step": still(lambda: conv.step_(x, drawn(16, 4), weight, torch.zeros(5, 3, 16))),
        "route": trained(
            lambda x, w: experts.route(x, w, torch.zeros(16), 2, 1.0)[1], x, drawn(16, 16)
        ),
        "squared_relu": trained(experts.squared_relu, x),
        "pack": still(lambda: packed(0, matrix, plain)),
        "linear": still(lambda: linear.packed_linear(x.detach(), matrix)),
        "experts": still(
            lambda: experts.packed_experts(x.detach(), matrices, matrices, chosen, weights)
        ),
        "scan": trained(lambda x, B, D: ssd.scan(x, dt, A, B, B, D, layout, 16)[0], heads, B, D),
        "step": still(lambda: ssd.step_(*token, state)),
        "peek": still(lambda: ssd.peek(*token, ones, state)),
        "replay": still(lambda: ssd.replay(state, *token[:4], ones, counts)),
        "step in fp16": still(lambda: ssd.step_(*token, half, rounding)),
        "peek in fp16": still(lambda: ssd.peek(*token, ones, half, rounding)),
        "replay in fp16": still(lambda: ssd.replay(half, *token[:4], ones, counts, rounding)),
        "kept tails": still(lambda: conv.keep_(torch.zeros(5, 3, 16), x.detach(), ones, counts)),
        "step sizes": trained(ssd.step_sizes, drawn(5, 2), drawn(2)),
        "draw": still(lambda: draws(drawn(2, 400).detach())),
        "attend": trained(
            lambda q, k, v: attend.attend(q, k, v, layout), *(drawn(5, 1, 16) for _ in range(3))
        ),
        "attend in generation": still(
            lambda: attend.attend(*[t.detach() for t in (k, k, k)], layout)
        ),
        "nvfp4": trained(lambda x, w: linear.quantised_linear(x, w, four), x, drawn(16, 16)),
        "mxfp8": still(lambda: nvfp4.mxfp8_operands(plain, torch.float32, torch.bfloat16)),
        "between": lambda: moved(floats, floats.bfloat16(), torch.arange(4)),
        "pages": still(lambda: fresh_pages(k.detach(), layout, torch.float32)),
    }


class Seen:
    """A module that notes which of its functions were asked for."""

    def __init__(self, module: object) -> None:
        self.module, self.names = module, set[str]()

    def __getattr__(self, name: str) -> object:
        self.names.add(name)
        return getattr(self.module, name)


def test_every_kernel_is_called_here(monkeypatch):
    seen = Seen(native.kernels())
    monkeypatch.setattr(native, "kernels", lambda: seen)
    for call in calls().values():
        call()
    bound = {name for name in dir(seen.module) if callable(getattr(seen.module, name))}
    bound = {name for name in bound if not name.startswith("_")} - NO_KERNELS
    assert bound - seen.names == set(), "kernels without a line in `calls`"


@pytest.mark.slow
@pytest.mark.parametrize("name", calls())
def test_ten_thousand_calls_keep_nothing(name):
    torch.use_deterministic_algorithms(False)
    call, process = calls()[name], psutil.Process()
    for _ in range(CALLS_MADE // 10):
        call()
    gc.collect()
    before = process.memory_info().rss
    for _ in range(CALLS_MADE):
        call()
    gc.collect()
    assert process.memory_info().rss - before <= GROWTH

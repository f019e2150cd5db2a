"""Which operations `cpu_ops.py` measures, on which shapes, and what each must move and compute.

Promise: data and formulas alone. Shapes are those of the workloads. Bytes are of operands read and
results written once, FLOP of the products; three times both where gradients are taken too. Where
weights are packed, PyTorch's own figure is of plain ones (BF16 where the format is narrower).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from op_calls import Calls, activations, by_backend, copies, packed_matrix, packed_stack, randn
from torch import Tensor
from workloads import BENCH_1B, POCKET_LIKE, TINY_31M

from fathom.config.model import ModelConfig
from fathom.ops import attend, conv, experts, linear, norm, ssd
from fathom.ops.attend import Pages
from fathom.ops.attend.pages import PAGE
from fathom.ops.layout import Layout
from fathom.ops.linear.packed import Format, matrix_bytes


@dataclass(frozen=True)
class OpCase:
    """One operation on one shape."""

    name: str
    make: Callable[[], Calls]
    """Builds operands and returns what can be called."""
    bytes: float
    flop: float
    training: bool = False
    """Whether gradients are taken too."""
    int8: bool = False
    """Whether products take int8 activations."""


def linear_case(
    label: str, shape: tuple[int, int], tokens: int, form: Format, *, int8: bool = False
) -> OpCase:
    """tokens x columns times a matrix [rows, columns], packed in a format."""
    rows, columns = shape
    size = matrix_bytes(form, rows, columns)
    dtype = activations(form)

    def make() -> Calls:
        x = randn(dtype, tokens, columns)
        packed = [(x, packed_matrix(form, rows, columns), int8) for _ in range(copies(size))]
        plain = rows * columns * dtype.itemsize
        sets = [(x, randn(dtype, rows, columns), "stored") for _ in range(copies(plain))]
        native, _ = by_backend(linear.PACKED, "packed_linear", packed)
        _, eager = by_backend(linear.OPERATION, "linear", sets)
        return native, eager

    moved = size + dtype.itemsize * tokens * (rows + columns)
    flop = 2.0 * tokens * rows * columns
    name = f"linear {'w4a8' if int8 else form}, {label}, {tokens} rows"
    return OpCase(name, make, moved, flop, int8=int8)


def experts_case(config: ModelConfig, tokens: int, form: Format, *, int8: bool = False) -> OpCase:
    """Routed experts of one block, packed in a format, with the routing drawn uniformly."""
    assert config.moe is not None
    moe, width, dtype = config.moe, config.moe.latent or config.width, activations(form)
    up, down = (moe.experts, moe.expert_width, width), (moe.experts, width, moe.expert_width)
    generator = torch.Generator().manual_seed(tokens)
    scores = torch.rand(tokens, moe.experts, generator=generator)
    chosen = scores.topk(moe.chosen, dim=-1).indices
    one = matrix_bytes(form, *up[1:]) + matrix_bytes(form, *down[1:])
    read = int(chosen.unique().numel()) * one

    def make() -> Calls:
        x, weights = randn(dtype, tokens, width), torch.rand(tokens, moe.chosen)
        turns = min(4, copies(read))
        packed = [
            (x, packed_stack(form, *up), packed_stack(form, *down), chosen, weights, int8)
            for _ in range(turns)
        ]
        sets = [(x, randn(dtype, *up), randn(dtype, *down), chosen, weights) for _ in range(turns)]
        native, _ = by_backend(experts.PACKED, "packed_experts", packed)
        _, eager = by_backend(experts.OPERATION, "experts", sets)
        return native, eager

    moved = read + 2 * dtype.itemsize * tokens * width
    flop = 4.0 * tokens * moe.chosen * width * moe.expert_width
    name = f"experts {'w4a8' if int8 else form}, {config.name}, {tokens} rows"
    return OpCase(name, make, moved, flop, int8=int8)


def route_case(config: ModelConfig, tokens: int, dtype: torch.dtype) -> OpCase:
    """Scores of all experts and the choice."""
    assert config.moe is not None
    moe, width = config.moe, config.width

    def make() -> Calls:
        x, weight = randn(dtype, tokens, width), randn(dtype, moe.experts, width)
        sets = [(x, weight, torch.zeros(moe.experts), moe.chosen, moe.scale)]
        return by_backend(experts.ROUTE, "route", sets)

    moved = dtype.itemsize * width * (tokens + moe.experts)
    flop = 2.0 * tokens * width * moe.experts
    return OpCase(f"route {config.name}, {tokens} rows", make, moved, flop)


def norm_cases(
    config: ModelConfig, tokens: int, dtype: torch.dtype, *, training: bool = False
) -> Iterator[OpCase]:
    """The block's norm and the mixer's gated one."""
    assert config.mamba is not None
    mamba, width = config.mamba, config.width

    def plain() -> Calls:
        sets = [(randn(dtype, tokens, width), torch.ones(width, dtype=dtype), config.eps)]
        return by_backend(norm.OPERATION, "rms_norm", sets, training=training)

    def gated() -> Calls:
        y, z = (randn(dtype, tokens, mamba.inner) for _ in range(2))
        sets = [(y, z, torch.ones(mamba.inner, dtype=dtype), mamba.groups, config.eps)]
        return by_backend(norm.OPERATION, "gated_norm", sets, training=training)

    size = _ways(training) * dtype.itemsize * tokens
    name = f"{config.name}, {tokens} rows{_shown(training)}"
    yield OpCase(f"rms_norm {name}", plain, 2 * size * width, 0, training)
    yield OpCase(f"gated_norm {name}", gated, 3 * size * mamba.inner, 0, training)


def conv_case(
    config: ModelConfig, lengths: Sequence[int], dtype: torch.dtype, *, training: bool = False
) -> OpCase:
    """The convolution with its SiLU; one token a sequence goes the way of a decode step."""
    assert config.mamba is not None
    mamba, tokens = config.mamba, sum(lengths)
    channels, step = mamba.conv_width, max(lengths) == 1

    def make() -> Calls:
        x, weight = randn(dtype, tokens, channels), randn(dtype, channels, mamba.conv)
        bias = randn(dtype, channels)
        tail = randn(dtype, len(lengths), mamba.conv - 1, channels)
        if step:
            return by_backend(conv.OPERATION, "step_", [(x, weight, bias, tail)])
        sets = [(x, weight, bias, Layout.of(lengths), None if training else tail)]
        return by_backend(conv.OPERATION, "causal_conv", sets, training=training)

    tails = 2 * len(lengths) * (mamba.conv - 1)
    moved = dtype.itemsize * channels * (2 * tokens + tails + mamba.conv + 1)
    name = f"conv {config.name}, {_lengths(lengths)}{_shown(training)}"
    return OpCase(name, make, _ways(training) * moved, 0, training)


def scan_case(
    config: ModelConfig, lengths: Sequence[int], dtype: torch.dtype, *, training: bool = False
) -> OpCase:
    """The chunked scan from empty states."""
    assert config.mamba is not None
    mamba, tokens, ways = config.mamba, sum(lengths), _ways(training)

    def make() -> Calls:
        sets = [(*_scan_inputs(config, tokens, dtype), Layout.of(lengths), mamba.chunk, None)]
        return by_backend(ssd.OPERATION, "scan", sets, training=training)

    inside = mamba.chunk * (mamba.groups * mamba.state + mamba.inner)
    flop = float(tokens) * (2 * inside + 4 * mamba.inner * mamba.state)
    moved = _scan_bytes(config, tokens, dtype) + 4 * len(lengths) * mamba.inner * mamba.state
    name = f"scan {config.name}, {_lengths(lengths)}{_shown(training)}"
    return OpCase(name, make, ways * moved, ways * flop, training)


def step_case(config: ModelConfig, sequences: int, dtype: torch.dtype) -> OpCase:
    """One token of each sequence: the state is read and written in its place."""
    assert config.mamba is not None
    mamba = config.mamba
    shape = (sequences, mamba.heads, mamba.head_width, mamba.state)
    state = 4.0 * sequences * mamba.inner * mamba.state

    def make() -> Calls:
        inputs = _scan_inputs(config, sequences, dtype)
        sets = [(*inputs, torch.randn(shape)) for _ in range(copies(2 * state))]
        return by_backend(ssd.OPERATION, "step_", sets)

    moved = 2 * state + _scan_bytes(config, sequences, dtype)
    flop = 6.0 * sequences * mamba.inner * mamba.state
    return OpCase(f"step {config.name}, {sequences} sequences", make, moved, flop)


def attend_case(
    config: ModelConfig, lengths: Sequence[int], past: int, dtype: torch.dtype
) -> OpCase:
    """Causal attention of each sequence's new tokens, which follow `past` others in pages."""
    assert config.attention is not None
    shape, sequences, tokens = config.attention, len(lengths), sum(lengths)
    kept = 2.0 * dtype.itemsize * sequences * past * shape.kv_heads * shape.head_width

    def make() -> Calls:
        q = randn(dtype, tokens, shape.heads, shape.head_width)
        k, v = (randn(dtype, tokens, shape.kv_heads, shape.head_width) for _ in range(2))
        layout = Layout.of(lengths, [past] * sequences)
        if not past:
            return by_backend(attend.OPERATION, "attend", [(q, k, v, layout, None)])
        sets = [
            (q, k, v, layout, _pages(config, sequences, past + max(lengths), past, dtype))
            for _ in range(copies(kept))
        ]
        return by_backend(attend.OPERATION, "attend", sets)

    fresh = dtype.itemsize * tokens * shape.head_width * 2 * (shape.heads + shape.kv_heads)
    seen = tokens * past + sum(n * (n + 1) / 2 for n in lengths)
    flop = 4.0 * seen * shape.heads * shape.head_width
    name = f"attend {config.name}, {_lengths(lengths)} after {past}"
    return OpCase(name, make, kept + fresh, flop)


def _pages(
    config: ModelConfig, sequences: int, capacity: int, past: int, dtype: torch.dtype
) -> Pages:
    """A pool in which every sequence holds `past` random keys and values."""
    assert config.attention is not None
    each = -(-capacity // PAGE)
    table_SB = torch.arange(sequences * each, dtype=torch.int32).view(sequences, each)
    past_S = torch.full((sequences,), past, dtype=torch.int32)
    heads, width = config.attention.kv_heads, config.attention.head_width
    pages = Pages.empty(sequences * each, heads, width, table_SB, past_S, dtype=dtype)
    pages.keys.normal_()
    pages.values.normal_()
    return pages


def _scan_inputs(config: ModelConfig, tokens: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x, dt, A, B, C, D of some tokens."""
    assert config.mamba is not None
    mamba = config.mamba
    x = randn(dtype, tokens, mamba.heads, mamba.head_width)
    dt, A = 0.1 * torch.rand(tokens, mamba.heads), -torch.rand(mamba.heads) - 0.5
    B, C = (randn(dtype, tokens, mamba.groups, mamba.state) for _ in range(2))
    return x, dt, A, B, C, torch.ones(mamba.heads)


def _scan_bytes(config: ModelConfig, tokens: int, dtype: torch.dtype) -> float:
    """Bytes of what the scan reads and writes besides states."""
    assert config.mamba is not None
    mamba = config.mamba
    values = 2 * mamba.inner + 2 * mamba.groups * mamba.state
    return float(tokens) * (dtype.itemsize * values + 4 * mamba.heads)


def _ways(training: bool) -> int:
    return 3 if training else 1


def _shown(training: bool) -> str:
    return ", forward + backward" if training else ""


def _lengths(lengths: Sequence[int]) -> str:
    return f"{len(lengths)} x {lengths[0]}"


def cases() -> Iterator[OpCase]:
    """Every case: serving two workloads, then training two."""
    for config, forms in ((BENCH_1B, ("bf16", "nvfp4", "w4a8", "fp8")), (POCKET_LIKE, ("fp32",))):
        yield from _serving(config, forms)
    for config, lengths in ((POCKET_LIKE, [256] * 8), (TINY_31M, [2048])):
        yield from norm_cases(config, sum(lengths), torch.float32, training=True)
        yield conv_case(config, lengths, torch.float32, training=True)
        yield scan_case(config, lengths, torch.float32, training=True)


def _serving(config: ModelConfig, forms: Sequence[str]) -> Iterator[OpCase]:
    """The operations of prefill and decode."""
    dtype, mamba = torch.float32 if "fp32" in forms else torch.bfloat16, config.mamba
    assert mamba is not None
    known: dict[str, tuple[Format, bool]] = {
        "fp32": ("fp32", False),
        "bf16": ("bf16", False),
        "fp8": ("fp8", False),
        "nvfp4": ("nvfp4", False),
        "w4a8": ("nvfp4", True),
    }
    for tokens in (1, 16, 512):
        yield from norm_cases(config, tokens, dtype)
        yield conv_case(config, [tokens] if tokens == 512 else [1] * tokens, dtype)
        yield route_case(config, tokens, dtype)
        for form, int8 in (known[name] for name in forms):
            shape = (mamba.in_rows, config.width)
            yield linear_case(f"in_proj {config.name}", shape, tokens, form, int8=int8)
            yield experts_case(config, tokens, form, int8=int8)
    for form, int8 in (known[name] for name in forms):
        shape = (config.vocab, config.width)
        yield linear_case(f"head {config.name}", shape, 1, form, int8=int8)
    for sequences in (1, 16, 64):
        yield step_case(config, sequences, dtype)
    for lengths in ([512], [4096], [256] * 8):
        yield scan_case(config, lengths, dtype)
    for new, past in (([512], 0), ([4096], 0), ([1], 8192), ([1], 32768), ([1] * 16, 1024)):
        yield attend_case(config, new, past, dtype)

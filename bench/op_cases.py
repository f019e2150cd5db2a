"""Which operations `cpu_ops.py` measures, on which shapes, and what each must move and compute.

Promise: data and formulas alone; timing is elsewhere. Shapes are those of the workloads. Bytes are
of operands read and results written once, FLOP of the products; where an operation's operands fit
a cache, several copies take turns, so that memory is what is measured. Where weights are packed,
PyTorch's own figure is of plain ones.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from workloads import BENCH_1B, POCKET_LIKE

from fathom.config.model import ModelConfig
from fathom.ops import attend, conv, dispatch, experts, linear, norm, ssd
from fathom.ops.layout import Layout
from fathom.ops.linear.packed import Format, Packed, PackedStack, matrix_bytes

Call = Callable[[], object]

COLD = 256 * 2**20
"""Bytes of operands in turn, beyond what a cache holds."""


@dataclass(frozen=True)
class OpCase:
    """One operation on one shape."""

    name: str
    make: Callable[[], tuple[Call | None, Call | None]]
    """Native and PyTorch's own, ready to be called; None where there is none."""
    bytes: float
    flop: float


def in_turn(function: Callable[..., object], sets: Sequence[tuple[Any, ...]]) -> Call:
    """A call that takes the next set of arguments each time."""
    place = 0

    def call() -> object:
        nonlocal place
        place = (place + 1) % len(sets)
        return function(*sets[place])

    return call


def by_backend(
    operation: dispatch.Operation, function: str, sets: Sequence[tuple[Any, ...]]
) -> tuple[Call | None, Call | None]:
    """The native backend of an operation, where it takes the case, and the eager one."""
    tensor = next(one for one in sets[0] if isinstance(one, Tensor))
    found: dict[str, Call] = {}
    for backend in operation.backends:
        if backend.why_not(dispatch.Case.of(tensor)) is None:
            found[backend.name] = in_turn(getattr(backend.module, function), sets)
    return found.get("native"), found.get("eager")


def copies(size: float) -> int:
    """How many copies of operands of `size` bytes a cache does not hold."""
    return max(1, min(64, round(COLD / size)))


def _randn(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float32).to(dtype)


def linear_case(label: str, shape: tuple[int, int], tokens: int, form: Format) -> OpCase:
    """tokens x columns times a matrix [rows, columns], packed in a format.

    PyTorch multiplies plain weights: BF16 ones where the format is narrower.
    """
    rows, columns = shape
    size = matrix_bytes(form, rows, columns)
    dtype = _activations(form)

    def make() -> tuple[Call | None, Call | None]:
        x = _randn(dtype, tokens, columns)
        packed = [(x, packed_matrix(form, rows, columns)) for _ in range(copies(size))]
        plain = rows * columns * dtype.itemsize
        sets = [(x, _randn(dtype, rows, columns), "stored") for _ in range(copies(plain))]
        native, _ = by_backend(linear.PACKED, "packed_linear", packed)
        _, eager = by_backend(linear.OPERATION, "linear", sets)
        return native, eager

    moved = size + dtype.itemsize * tokens * (rows + columns)
    flop = 2.0 * tokens * rows * columns
    return OpCase(f"linear {form}, {label}, {tokens} rows", make, moved, flop)


def experts_case(config: ModelConfig, tokens: int, form: Format) -> OpCase:
    """Routed experts of one block, packed in a format, with the routing drawn uniformly."""
    assert config.moe is not None
    moe, width, dtype = config.moe, config.moe.latent or config.width, _activations(form)
    up, down = (moe.experts, moe.expert_width, width), (moe.experts, width, moe.expert_width)
    generator = torch.Generator().manual_seed(tokens)
    scores = torch.rand(tokens, moe.experts, generator=generator)
    chosen = scores.topk(moe.chosen, dim=-1).indices
    one = matrix_bytes(form, *up[1:]) + matrix_bytes(form, *down[1:])
    read = int(chosen.unique().numel()) * one

    def make() -> tuple[Call | None, Call | None]:
        x, weights = _randn(dtype, tokens, width), torch.rand(tokens, moe.chosen)
        turns = min(4, copies(read))
        packed = [
            (x, packed_stack(form, *up), packed_stack(form, *down), chosen, weights)
            for _ in range(turns)
        ]
        sets = [
            (x, _randn(dtype, *up), _randn(dtype, *down), chosen, weights) for _ in range(turns)
        ]
        native, _ = by_backend(experts.PACKED, "packed_experts", packed)
        _, eager = by_backend(experts.OPERATION, "experts", sets)
        return native, eager

    moved = read + 2 * dtype.itemsize * tokens * width
    flop = 4.0 * tokens * moe.chosen * width * moe.expert_width
    return OpCase(f"experts {form}, {config.name}, {tokens} rows", make, moved, flop)


def packed_matrix(form: Format, rows: int, columns: int) -> Packed:
    """A packed matrix of small numbers."""
    matrix = Packed.empty(form, rows, columns)
    _small(matrix.data, form)
    return matrix


def packed_stack(form: Format, count: int, rows: int, columns: int) -> PackedStack:
    """Packed matrices of small numbers."""
    stack = PackedStack.empty(form, count, rows, columns)
    _small(stack.data, form)
    return stack


def _small(data: Tensor, form: Format) -> None:
    """Fill packed bytes: every one below 0x3c is a small number whatever it stands for."""
    if form in ("fp32", "bf16"):
        values = data.view(torch.float32 if form == "fp32" else torch.bfloat16)
        values.normal_()
    else:
        data.random_(0, 256).bitwise_and_(0x3B)


def _activations(form: Format) -> torch.dtype:
    return torch.float32 if form == "fp32" else torch.bfloat16


def route_case(config: ModelConfig, tokens: int, dtype: torch.dtype) -> OpCase:
    """Scores of all experts and the choice."""
    assert config.moe is not None
    moe, width = config.moe, config.width

    def make() -> tuple[Call | None, Call | None]:
        x, weight = _randn(dtype, tokens, width), _randn(dtype, moe.experts, width)
        sets = [(x, weight, torch.zeros(moe.experts), moe.chosen, moe.scale)]
        return by_backend(experts.OPERATION, "route", sets)

    moved = dtype.itemsize * width * (tokens + moe.experts)
    flop = 2.0 * tokens * width * moe.experts
    return OpCase(f"route {config.name}, {tokens} rows", make, moved, flop)


def norm_cases(config: ModelConfig, tokens: int, dtype: torch.dtype) -> Iterator[OpCase]:
    """The block's norm and the mixer's gated one."""
    assert config.mamba is not None
    mamba, width = config.mamba, config.width

    def plain() -> tuple[Call | None, Call | None]:
        sets = [(_randn(dtype, tokens, width), torch.ones(width, dtype=dtype), config.eps)]
        return by_backend(norm.OPERATION, "rms_norm", sets)

    def gated() -> tuple[Call | None, Call | None]:
        y, z = (_randn(dtype, tokens, mamba.inner) for _ in range(2))
        sets = [(y, z, torch.ones(mamba.inner, dtype=dtype), mamba.groups, config.eps)]
        return by_backend(norm.OPERATION, "gated_norm", sets)

    size = dtype.itemsize * tokens
    yield OpCase(f"rms_norm {config.name}, {tokens} rows", plain, 2 * size * width, 0)
    yield OpCase(f"gated_norm {config.name}, {tokens} rows", gated, 3 * size * mamba.inner, 0)


def conv_case(config: ModelConfig, lengths: Sequence[int], dtype: torch.dtype) -> OpCase:
    """The convolution with its SiLU, tails given."""
    assert config.mamba is not None
    mamba, tokens = config.mamba, sum(lengths)
    channels = mamba.conv_width

    def make() -> tuple[Call | None, Call | None]:
        x, weight = _randn(dtype, tokens, channels), _randn(dtype, channels, mamba.conv)
        tail = _randn(dtype, len(lengths), mamba.conv - 1, channels)
        sets = [(x, weight, _randn(dtype, channels), Layout.of(lengths), tail)]
        return by_backend(conv.OPERATION, "causal_conv", sets)

    tails = 2 * len(lengths) * (mamba.conv - 1)
    moved = dtype.itemsize * channels * (2 * tokens + tails + mamba.conv + 1)
    return OpCase(f"conv {config.name}, {_lengths(lengths)}", make, moved, 0)


def scan_case(config: ModelConfig, lengths: Sequence[int], dtype: torch.dtype) -> OpCase:
    """The chunked scan from given states."""
    assert config.mamba is not None
    mamba, tokens = config.mamba, sum(lengths)

    def make() -> tuple[Call | None, Call | None]:
        sets = [(*_scan_inputs(config, tokens, dtype), Layout.of(lengths), mamba.chunk, None)]
        return by_backend(ssd.OPERATION, "scan", sets)

    inside = mamba.chunk * (mamba.groups * mamba.state + mamba.inner)
    flop = float(tokens) * (2 * inside + 4 * mamba.inner * mamba.state)
    moved = _scan_bytes(config, tokens, dtype) + 4 * len(lengths) * mamba.inner * mamba.state
    return OpCase(f"scan {config.name}, {_lengths(lengths)}", make, moved, flop)


def step_case(config: ModelConfig, sequences: int, dtype: torch.dtype) -> OpCase:
    """One token of each sequence: the state is read and written."""
    assert config.mamba is not None
    mamba = config.mamba
    shape = (sequences, mamba.heads, mamba.head_width, mamba.state)
    state = 4.0 * sequences * mamba.inner * mamba.state

    def make() -> tuple[Call | None, Call | None]:
        inputs = _scan_inputs(config, sequences, dtype)
        sets = [(*inputs, torch.randn(shape)) for _ in range(copies(2 * state))]
        return by_backend(ssd.OPERATION, "step", sets)

    moved = 2 * state + _scan_bytes(config, sequences, dtype)
    flop = 6.0 * sequences * mamba.inner * mamba.state
    return OpCase(f"step {config.name}, {sequences} sequences", make, moved, flop)


def attend_case(config: ModelConfig, new: int, past: int, dtype: torch.dtype) -> OpCase:
    """Causal attention of `new` tokens that follow `past` others."""
    assert config.attention is not None
    shape = config.attention
    kept = 2.0 * dtype.itemsize * past * shape.kv_heads * shape.head_width

    def make() -> tuple[Call | None, Call | None]:
        q = _randn(dtype, new, shape.heads, shape.head_width)
        k, v = (_randn(dtype, new, shape.kv_heads, shape.head_width) for _ in range(2))
        layout = Layout.of([new], [past])
        if not past:
            return by_backend(attend.OPERATION, "attend", [(q, k, v, layout, None)])
        old = (past, shape.kv_heads, shape.head_width)
        sets = [
            (q, k, v, layout, [(_randn(dtype, *old), _randn(dtype, *old))])
            for _ in range(copies(kept))
        ]
        return by_backend(attend.OPERATION, "attend", sets)

    fresh = dtype.itemsize * new * shape.head_width * 2 * (shape.heads + shape.kv_heads)
    seen = new * past + new * (new + 1) / 2
    flop = 4.0 * seen * shape.heads * shape.head_width
    return OpCase(f"attend {config.name}, {new} after {past}", make, kept + fresh, flop)


def _scan_inputs(config: ModelConfig, tokens: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x, dt, A, B, C, D of some tokens."""
    assert config.mamba is not None
    mamba = config.mamba
    x = _randn(dtype, tokens, mamba.heads, mamba.head_width)
    dt, A = 0.1 * torch.rand(tokens, mamba.heads), -torch.rand(mamba.heads) - 0.5
    B, C = (_randn(dtype, tokens, mamba.groups, mamba.state) for _ in range(2))
    return x, dt, A, B, C, torch.ones(mamba.heads)


def _scan_bytes(config: ModelConfig, tokens: int, dtype: torch.dtype) -> float:
    """Bytes of what the scan reads and writes besides states."""
    assert config.mamba is not None
    mamba = config.mamba
    values = 2 * mamba.inner + 2 * mamba.groups * mamba.state
    return float(tokens) * (dtype.itemsize * values + 4 * mamba.heads)


def _lengths(lengths: Sequence[int]) -> str:
    return f"{len(lengths)} x {lengths[0]}"


def cases() -> Iterator[OpCase]:
    """Every case, in the order of a block."""
    narrow: tuple[Format, ...] = ("bf16", "nvfp4", "fp8")
    for config, forms in ((BENCH_1B, narrow), (POCKET_LIKE, ("fp32",))):
        dtype, mamba = _activations(forms[0]), config.mamba
        assert mamba is not None
        for tokens in (1, 16, 512):
            yield from norm_cases(config, tokens, dtype)
            yield conv_case(config, [tokens] if tokens == 512 else [1] * tokens, dtype)
            yield route_case(config, tokens, dtype)
            for form in forms:
                shape = (mamba.in_rows, config.width)
                yield linear_case(f"in_proj {config.name}", shape, tokens, form)
                yield experts_case(config, tokens, form)
        for form in forms:
            yield linear_case(f"head {config.name}", (config.vocab, config.width), 1, form)
        for sequences in (1, 16, 64):
            yield step_case(config, sequences, dtype)
        for lengths in ([512], [4096], [256] * 8):
            yield scan_case(config, lengths, dtype)
        for new, past in ((512, 0), (4096, 0), (1, 8192), (1, 32768)):
            yield attend_case(config, new, past, dtype)

"""Operands of training: what they mean, and that native code gives the reference's bits."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import KernelError
from fathom.ops import nvfp4
from fathom.ops.nvfp4 import Copy, Groups, Key, cpu
from fathom.ops.nvfp4.training import OPERATION

REFERENCE = OPERATION.backends[-1].module
KEY = Key(2**63 + 5, 7, 3, 19)
SHAPES = [(1, 1), (5, 7), (16, 16), (33, 40), (63, 100), (64, 644), (1000, 24)]
F, B = torch.float32, torch.bfloat16


def drawn(rows: int, columns: int, power: int = 1, dtype: torch.dtype = F) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    return (torch.randn(rows, columns, generator=generator) ** power).to(dtype)


def some_groups(rows: int, blocks: int) -> Groups:
    """Rows taken at random, some of them none, in five groups of which two are empty."""
    generator = torch.Generator().manual_seed(rows)
    source = torch.randint(-1, rows, (16 * blocks,), generator=generator)
    return Groups(source, torch.tensor([0, 2, 2, 3][:blocks], dtype=torch.int32), 5)


def assert_same(one: nvfp4.Operands, other: nvfp4.Operands) -> None:
    for name in ("rows", "rows_scale", "columns", "columns_scale"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype
            assert torch.equal(a, b), f"{name}: {(a != b).float().mean():.1%} differ"


@pytest.mark.parametrize("dtype", [F, B])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_operands_are_those_of_the_reference(tier, shape, dtype):
    for power, blocks in itertools.product((1, 7), (0, 4)):
        x = drawn(*shape, power, dtype)
        groups = some_groups(shape[0], blocks) if blocks else None
        for lot, tiles, transform, to in itertools.product((0, 1), (0, 1), (0, 1), (F, B)):
            rows = Copy(to, bool(lot), bool(tiles))
            columns = Copy(F if to == B else B, bool(lot), transform=bool(transform))
            wanted = REFERENCE.operands(x, rows, columns, KEY, groups)
            assert_same(cpu.operands(x, rows, columns, KEY, groups), wanted)
        for a, b in zip(
            cpu.mxfp8_operands(x, F, B, groups),
            REFERENCE.mxfp8_operands(x, F, B, groups),
            strict=True,
        ):
            assert torch.equal(a, b)


@given(
    # a sixteenth of the largest float: the transform adds up sixteen
    st.lists(st.floats(-(2.0**123), 2.0**123, width=32), min_size=1, max_size=64),
    st.integers(1, 20),
)
def test_any_finite_numbers_have_finite_operands_and_native_ones_are_the_same(values, rows):
    x = torch.tensor(values).repeat(rows, 1)
    rows_copy, columns_copy = Copy(B, True), Copy(F, True, transform=True)
    found = cpu.operands(x, rows_copy, columns_copy, KEY, None)
    assert_same(found, REFERENCE.operands(x, rows_copy, columns_copy, KEY, None))
    assert found.rows.isfinite().all()
    assert (found.rows.abs() <= 2688).all()
    assert found.rows_scale.isfinite()
    assert found.columns.isfinite().all()
    assert found.columns_scale.isfinite()
    for a, b in zip(
        cpu.mxfp8_operands(x, B, F, None), REFERENCE.mxfp8_operands(x, B, F, None), strict=True
    ):
        assert torch.equal(a, b)


def test_results_do_not_depend_on_threads(assert_threads_agree):
    def call(x):
        copies = Copy(F, True), Copy(F, True, transform=True)
        found = cpu.operands(x.detach(), *copies, KEY, None)
        return found.rows, found.columns, *cpu.mxfp8_operands(x.detach(), F, F, None)

    def with_gradient(x):
        return tuple(part + 0 * x.sum() for part in call(x))

    assert_threads_agree(with_gradient, [drawn(300, 100)])


def test_the_processes_setting_of_denormals_changes_nothing(tier):
    x = drawn(32, 32) * 3e-38
    copies = Copy(F), Copy(F)
    wanted = REFERENCE.operands(x, *copies, None, None)
    try:
        torch.set_flush_denormal(True)
        found = cpu.operands(x, *copies, None, None)
    finally:
        torch.set_flush_denormal(False)
    assert torch.equal(found.rows, wanted.rows)
    assert torch.equal(found.columns, wanted.columns)
    assert found.rows.any()


def test_rows_hold_what_quantise_decodes_to():
    x = drawn(48, 64)
    found = nvfp4.operands(x, Copy(F), None)
    assert torch.equal(found.rows * found.rows_scale, nvfp4.dequantise(nvfp4.quantise(x)))


def test_columns_are_the_rows_of_the_transpose():
    x = drawn(48, 32)
    turned = nvfp4.operands(x.T.contiguous(), Copy(F), None)
    found = nvfp4.operands(x, None, Copy(F))
    assert torch.equal(found.columns.T, turned.rows)
    assert found.columns_scale == turned.rows_scale


def test_tiles_make_a_weight_and_its_transpose_the_same_numbers():
    weight = drawn(64, 48, 3)
    one = nvfp4.operands(weight, Copy(F, tiles=True), None)
    other = nvfp4.operands(weight.T.contiguous(), Copy(F, tiles=True), None)
    assert torch.equal(one.rows.T, other.rows)
    assert one.rows_scale == other.rows_scale
    alone = nvfp4.operands(weight, Copy(F), None)
    assert not torch.equal(alone.rows, one.rows)


@pytest.mark.parametrize(("tiles", "low", "high"), [(False, 0.094, 0.0965), (True, 0.11, 0.113)])
def test_the_error_on_gaussian_weights_is_that_of_the_blocks(tiles, low, high):
    weight = torch.randn(512, 512, generator=torch.Generator().manual_seed(0))
    found = nvfp4.operands(weight, Copy(F, tiles=tiles), None)
    error = (found.rows * found.rows_scale - weight).norm() / weight.norm()
    assert low < error < high


def test_each_group_is_rounded_as_if_alone():
    x, groups = drawn(50, 40), some_groups(50, 4)
    found = nvfp4.operands(x, Copy(F), Copy(F, transform=True), None, groups)
    taken = torch.cat([x, torch.zeros(1, 40)])[groups.source_R]
    for group in range(5):
        rows = (groups.group_B == group).repeat_interleave(16)
        alone = nvfp4.operands(taken[rows], Copy(F), Copy(F, transform=True))
        if not rows.any():
            assert found.rows_scale[group] == 1
            continue
        assert torch.equal(found.rows[rows], alone.rows)
        assert torch.equal(found.columns[rows], alone.columns)
        assert found.rows_scale[group] == alone.rows_scale[0]
        assert found.columns_scale[group] == alone.columns_scale[0]


def test_rounding_by_lot_is_right_in_the_mean():
    x = drawn(32, 48)
    total_rows, total_columns, times = torch.zeros(32, 48), torch.zeros(32, 48), 400
    for step in range(times):
        key = Key(0, step, 0, 0)
        found = nvfp4.operands(x, Copy(F, True), Copy(F, True), key)
        total_rows += found.rows * found.rows_scale
        total_columns += found.columns * found.columns_scale
    # a block's largest value may be clamped at 6, and stays off
    below = x.abs() < 0.9 * x.unflatten(1, (-1, 16)).abs().amax(-1).repeat_interleave(16, 1)
    assert ((total_rows / times - x)[below].norm() / x[below].norm()) < 0.01
    below = x.abs() < 0.9 * x.unflatten(0, (-1, 16)).abs().amax(1).repeat_interleave(16, 0)
    assert ((total_columns / times - x)[below].norm() / x[below].norm()) < 0.01


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_makes_its_own_groups_products_nan(tier, wrong):
    x = torch.ones(40, 32)
    x[20, 3] = wrong
    source = torch.arange(32)
    groups = Groups(source, torch.tensor([0, 1], dtype=torch.int32), 2)
    for module in (cpu, REFERENCE):
        found = module.operands(x, Copy(F), Copy(F, transform=True), None, groups)
        assert found.rows_scale[0] == 1 / 2688
        assert found.rows_scale[1].isnan()
        assert found.columns_scale[1].isnan()
        assert found.columns_scale[0].isfinite()
        rows, columns = module.mxfp8_operands(x, F, F, None)
        assert rows.isnan().sum() == 32
        assert rows[20].isnan().all()
        assert columns[:32, 3].isnan().all()
        assert columns.isnan().sum() == 32


def test_zeros_stay_zeros():
    found = nvfp4.operands(torch.zeros(20, 20), Copy(B, True), Copy(F, True), KEY)
    assert not found.rows.any()
    assert not found.columns.any()
    assert found.rows_scale == 1
    assert not nvfp4.mxfp8_operands(torch.zeros(20, 20), B, F)[0].any()


def test_a_lot_without_a_key_is_refused():
    with pytest.raises(KernelError, match="needs a key"):
        nvfp4.operands(torch.ones(2, 2), Copy(F, True), None)


def test_mxfp8_scales_are_the_next_power_of_two():
    """448 x 2^k just fits and needs no more; a little above needs the next power."""
    block = torch.zeros(3, 32)
    block[0, 0], block[1, 0], block[2, 0] = 448.0, 449.0, 448 * 2.0**-20
    block[:, 1] = block[:, 0] / 448
    rows, _ = nvfp4.mxfp8_operands(block, F, None)
    assert rows[0, :2].tolist() == [448, 1]
    assert rows[1, 0] == 448
    assert torch.equal(rows[2, :2], block[2, :2])
    error = (nvfp4.mxfp8_operands(drawn(256, 256), F, None)[0] - drawn(256, 256)).norm() / 256
    assert 0.02 < error < 0.03


def test_sums_are_rounded_to_bf16_and_scaled_by_group(tier):
    sums, alpha = drawn(70, 37), torch.tensor([0.5, 3.0, -1e-3])
    group = torch.tensor([0, 2, 1, 1, 0], dtype=torch.int32)
    for given_, to in itertools.product((F, B), (F, B)):
        for place in (None, group):
            own = alpha[:1] if place is None else alpha
            wanted = REFERENCE.scaled(sums.to(given_), own, place, 16, to)
            assert torch.equal(nvfp4.scaled(sums.to(given_), own, to, place), wanted)

"""Triton's kernels give the reference's bits in its interpreter, and its compiler takes them.

Promise: no GPU is needed. The interpreter shows the arithmetic; code for NVIDIA's GPUs is compiled
and looked at, for what an interpreter cannot show: how instructions round.
"""

import importlib.util
import itertools
import re
from types import ModuleType

import pytest
import torch

from fathom.ops.dispatch import Case
from fathom.ops.nvfp4 import Copy, Groups, Key, triton
from fathom.ops.nvfp4.training import OPERATION

pytestmark = [
    pytest.mark.oracle,
    # 1 / 0 is meant, as in the reference: numpy says so aloud
    pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter"),
]
REFERENCE = OPERATION.backends[-1].module
KEY = Key(2**63 + 5, 2**32 - 7, 3, 2**20 - 1)
F, B = torch.float32, torch.bfloat16


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The backend once more, its kernels made for Triton's interpreter."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    spec = importlib.util.spec_from_file_location("interpreted", triton.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(rows: int, columns: int, power: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * 1000 + columns)
    return (torch.randn(rows, columns, generator=generator) ** power).to(dtype)


def some_groups(rows: int) -> Groups:
    """Rows taken at random, some of them none, in five groups of which two are empty."""
    source = torch.randint(-1, rows, (64,), generator=torch.Generator().manual_seed(rows))
    return Groups(source, torch.tensor([0, 2, 2, 3], dtype=torch.int32), 5)


def assert_same(module: ModuleType, *case: object) -> None:
    found, wanted = module.operands(*case), REFERENCE.operands(*case)
    for name in ("rows", "rows_scale", "columns", "columns_scale"):
        a, b = getattr(found, name), getattr(wanted, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype
            assert torch.equal(a, b), f"{name}: {(a != b).float().mean():.1%} differ"


@pytest.mark.parametrize("dtype", [F, B])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 40), (63, 100)])
def test_operands_are_those_of_the_reference(interpreted, shape, dtype):
    for power, own in ((1, None), (7, some_groups(shape[0]))):
        x = drawn(*shape, power, dtype)
        for lot, tiles, transform in itertools.product((False, True), repeat=3):
            copies = Copy(B, lot, tiles), Copy(F, lot, transform=transform)
            assert_same(interpreted, x, *copies, KEY, own)


def test_numbers_near_the_ends_of_fp32_are_those_of_the_reference(interpreted):
    for size in (1e-44, 3e-38, 1e-20, 1e30, 2.0**122):
        x = drawn(32, 32, 1, F).clamp(-4, 4) * size
        for lot in (False, True):
            assert_same(interpreted, x, Copy(F, lot), Copy(F, lot, transform=True), KEY, None)


def test_block_scales_of_all_sizes_and_between_any_two_are_those_of_the_reference(interpreted):
    sizes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    x = torch.zeros(253, 16)
    # with the last, 2688, the factor of the matrix is 1
    x[:, 3] = 6 * torch.cat([(sizes[1:] + sizes[:-1]) / 2, sizes])
    assert_same(interpreted, x, Copy(F), None, None, None)


def test_groups_of_a_matrixs_own_rows_are_those_of_the_reference(interpreted):
    x, groups = drawn(64, 70, 3, F), Groups(None, some_groups(1).group_B, 5)
    assert_same(interpreted, x, Copy(F), Copy(F, transform=True), None, groups)


def test_one_copy_alone_is_that_of_the_reference(interpreted):
    x = drawn(20, 20, 1, F)
    assert_same(interpreted, x, Copy(F), None, None, None)
    assert_same(interpreted, x, None, Copy(B), None, None)


@pytest.mark.parametrize("shape", [(0, 20), (20, 0)])
def test_a_matrix_without_numbers_has_the_scale_1(interpreted, shape):
    found = interpreted.operands(torch.zeros(shape), Copy(F), Copy(F), None, None)
    assert found.rows.shape == shape
    assert found.rows_scale.tolist() == found.columns_scale.tolist() == [1]


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [F, B])
def test_what_is_not_finite_makes_its_own_groups_scales_nan(interpreted, wrong, dtype):
    x = torch.ones(40, 32, dtype=dtype)
    x[20, 3] = wrong
    groups = Groups(torch.arange(32), torch.tensor([0, 1], dtype=torch.int32), 2)
    found = interpreted.operands(x, Copy(F), Copy(F, transform=True), None, groups)
    for scale in (found.rows_scale, found.columns_scale):
        assert scale.isfinite().tolist() == [True, False]
        assert scale[1].isnan()


def test_where_it_cannot_run_it_says_why(interpreted, monkeypatch):
    assert triton.why_not(Case("cuda", F, True)) is None
    assert triton.why_not(Case("cpu", F, True)) == "Triton runs on GPUs, the tensors are on cpu"
    assert "not torch.float64" in triton.why_not(Case("cuda", torch.float64, True))
    assert interpreted.why_not(Case("cpu", F, True)) is None
    assert OPERATION.choose(Case("cuda", B, True)).name == "triton"
    monkeypatch.setattr(triton, "INSTALLED", False)
    assert "not installed" in triton.why_not(Case("cuda", F, True))


TYPES = {"x": "*bf16", "source": "*i64", "group": "*i32", "found": "*i32", "made": "*bf16"} | {
    "sixth": "*fp32",
    "inverse": "*fp32",
}


def compiled(name: str, options: dict[str, object], capability: int) -> str:
    """A kernel's PTX; whatever has no type above is an int32."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    kernel = getattr(triton, name)
    known = {k: v for k, v in options.items() if k in kernel.arg_names}
    signature = {
        argument: "constexpr" if argument in known else TYPES.get(argument, "i32")
        for argument in kernel.arg_names
    }
    places = {(kernel.arg_names.index(argument),): value for argument, value in known.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    made = compile(source, target=GPUTarget("cuda", capability, 32), options=triton.EXACT)
    assert made.asm["cubin"]
    return str(made.asm["ptx"])


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("columns", [False, True])
def test_gpu_code_rounds_every_step_and_divides_exactly(columns, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    options = {"WIDTH": triton.WIDTH, "TRANSFORM": columns, "COLUMNS": columns}
    if columns:
        options |= {"source": None, "group": None}
    compiled("_measure", options, capability)
    text = compiled("_round", options | {"TILES": not columns, "LOT": True}, capability)
    arithmetic = re.findall(r"\b(?:fma|mul|add|sub|div)\.[a-z0-9.]*f32\b", text)
    assert "div.rn.f32" in arithmetic
    assert set(arithmetic) <= {f"{step}.rn.f32" for step in ("mul", "add", "sub", "div")}

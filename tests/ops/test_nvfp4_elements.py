"""Elements of four bits, random words and the Hadamard transform: what each promises on its own."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import KernelError
from fathom.ops.nvfp4 import Key, swizzle, unswizzle
from fathom.ops.nvfp4.elements import nearest_e2m1, nearest_e4m3, stochastic_e2m1
from fathom.ops.nvfp4.hadamard import hadamard
from fathom.ops.nvfp4.philox import words
from fathom.ops.nvfp4.reference import VALUES, e2m1

BELOW = torch.arange(0.0, 448.5, 0.0078125)


def test_values_and_codes_round_alike():
    y = torch.cat([BELOW[BELOW <= 6], torch.rand(10_000) * 6])
    y = torch.cat([y, -y])
    table = torch.tensor([*VALUES, *(-value for value in VALUES)])
    assert torch.equal(nearest_e2m1(y), table[e2m1(y).int()])


def test_products_of_elements_and_block_scales_are_exact_in_bf16_and_fp16():
    codes = torch.tensor(VALUES)
    bytes_ = torch.arange(127, dtype=torch.uint8)
    products = codes[:, None] * bytes_.view(torch.float8_e4m3fn).float()
    assert products.numel() == 1016
    assert torch.equal(products.bfloat16().float(), products)
    assert torch.equal(products.half().float(), products)
    inside = products[products <= 448]
    assert (nearest_e4m3(inside) != inside).any()


@pytest.mark.parametrize(
    ("size", "byte"),
    [(2**-10, 0), (1.5 * 2**-9, 2), (2**-9, 1), (17, 88), (19, 90), (336, 122), (368, 124)],
)
def test_e4m3_rounds_to_nearest_even_below_the_normal_range_too(size, byte):
    wanted = torch.tensor([byte], dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert nearest_e4m3(torch.tensor([float(size)])) == wanted


def test_what_e2m1_has_is_never_moved_by_lot():
    grid = torch.tensor([*VALUES, *(-value for value in VALUES)])
    for word in (0, 1, 2**31, 2**32 - 1):
        assert torch.equal(stochastic_e2m1(grid, torch.full((16,), word)), grid)


@given(st.floats(-6, 6, width=32), st.integers(0, 2**32 - 1))
def test_a_lot_gives_one_of_the_two_neighbours(y, word):
    found = stochastic_e2m1(torch.tensor([y]), torch.tensor([word])).item()
    grid = sorted({*VALUES, *(-value for value in VALUES)})
    neighbours = {max(v for v in grid if v <= y), min(v for v in grid if v >= y)}
    assert found in neighbours


@pytest.mark.parametrize("y", [0.1, 0.3, 0.49, 0.75, 1.3, 2.7, 3.99, 4.5, 5.9, -0.2, -3.3])
def test_the_mean_of_lots_is_the_number(y):
    word = words(Key(5, 0, 0, 0), False, (1000, 1000)).flatten()
    found = stochastic_e2m1(torch.tensor(y), word).double()
    spread = found.std() / len(word) ** 0.5
    assert abs(found.mean() - float(torch.tensor(y))) < 4 * spread


@pytest.mark.parametrize(
    ("counter", "seed", "wanted"),
    [
        (0, 0, ("5f6fb709", "0d893f64", "4f121f81", "4f730a48")),
        (0xFFFFFFFF, 2**64 - 1, ("5207ddc2", "45165e59", "4d8ee751", "8c52f662")),
    ],
)
def test_words_are_those_of_philox(counter, seed, wanted, monkeypatch):
    """The generator's published test vectors; a place of all ones is no matrix's."""
    ones = (torch.full, torch.arange)
    if counter:
        monkeypatch.setattr(Key, "__post_init__", lambda self: None)
        monkeypatch.setattr(Key, "place", property(lambda self: counter))
        monkeypatch.setattr(torch, "arange", lambda n: ones[0]((n,), counter))
    found = words(Key(seed, counter, 0, 0), bool(counter), (4, 1))
    assert [f"{word:08x}" for word in found.flatten().tolist()] == list(wanted)


def test_words_depend_on_every_part_of_the_key_and_on_the_place_alone():
    shape = (16, 32)
    keys = [Key(1, 2, 3, 4), Key(2, 2, 3, 4), Key(1, 3, 3, 4), Key(1, 2, 4, 4), Key(1, 2, 3, 5)]
    all_ = [words(key, columns, shape) for key in keys for columns in (False, True)]
    for i, one in enumerate(all_):
        for other in all_[:i]:
            assert (one == other).float().mean() < 0.01
    assert torch.equal(words(keys[0], False, (23, 50))[:16, :32], all_[0])
    mean = torch.stack(all_).double().mean() / 2**32
    assert abs(mean - 0.5) < 0.02


@pytest.mark.parametrize(
    "wrong", [(0, 2**32, 0, 0), (0, 0, 2048, 0), (0, 0, 0, 2**20), (0, -1, 0, 0)]
)
def test_keys_that_would_run_into_one_another_are_refused(wrong):
    with pytest.raises(KernelError, match="below"):
        Key(*wrong)


def test_the_transform_is_signs_then_sylvesters_matrix():
    signs = [1, 1, 1, -1, 1, -1, -1, -1, -1, -1, -1, 1, -1, 1, -1, -1]
    matrix = torch.ones(1, 1)
    for _ in range(4):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    matrix = torch.diag(torch.tensor(signs).float()) @ matrix / 4
    x = torch.randn(3, 16, 5)
    wanted = torch.einsum("brc,rs->bsc", x.double(), matrix.double())
    assert torch.allclose(hadamard(x).double(), wanted, atol=1e-6)


def test_the_transform_cancels_in_a_product_along_tokens():
    a, b = torch.randn(4, 16, 6), torch.randn(4, 16, 7)
    plain = a.flatten(0, 1).T.double() @ b.flatten(0, 1).double()
    turned = hadamard(a).flatten(0, 1).T.double() @ hadamard(b).flatten(0, 1).double()
    assert torch.allclose(turned, plain, atol=1e-5)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (128, 4), (130, 7), (300, 12)])
def test_a_scale_is_swizzled_to_its_place(rows, columns):
    scales = torch.randint(1, 127, (rows, columns), dtype=torch.uint8).view(torch.float8_e4m3fn)
    flat = swizzle(scales)
    whole = -(-columns // 4) * 4
    assert flat.numel() == -(-rows // 128) * 128 * whole
    r, c = torch.arange(rows)[:, None], torch.arange(columns)
    place = (r // 128 * (whole // 4) + c // 4) * 512 + r % 32 * 16 + r % 128 // 32 * 4 + c % 4
    assert torch.equal(flat.view(torch.uint8)[place], scales.view(torch.uint8))
    assert flat.view(torch.uint8).count_nonzero() == rows * columns
    back = unswizzle(flat, rows, columns)
    assert torch.equal(back.view(torch.uint8), scales.view(torch.uint8))

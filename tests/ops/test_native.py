"""Laws of the door to the native kernels: a tier is chosen in words, can be forced or is refused.

Promise: every tier that this processor can run is loaded and computes.
"""

import pytest
import torch

from fathom.errors import KernelError
from fathom.ops import native, norm
from fathom.ops.dispatch import Case
from fathom.ops.native.tensors import dense, rows


def test_the_most_wanted_runnable_tier_is_used():
    assert native.runnable()[-1] == "portable"
    assert native.tier() == native.runnable()[0]


@pytest.mark.parametrize("tier", native.runnable())
def test_every_runnable_tier_can_be_forced(monkeypatch, tier):
    monkeypatch.setenv("FATHOM_TIER", tier)
    assert native.tier() == tier
    assert native.kernels().WIDTH in (4, 8, 16)


def test_no_tier_means_no_native_backend(monkeypatch):
    monkeypatch.setenv("FATHOM_TIER", "none")
    case = Case("cpu", torch.float32, gradients=False)
    assert native.why_not(case) == "FATHOM_TIER=none switches them off"
    assert norm.OPERATION.choose(case).name != "native"
    with pytest.raises(KernelError, match="no native kernels here"):
        native.kernels()


def test_an_unknown_tier_is_an_error(monkeypatch):
    monkeypatch.setenv("FATHOM_TIER", "sse9")
    with pytest.raises(KernelError, match="names no tier; known are avx512_bf16"):
        native.tier()


def test_a_tier_whose_features_are_missing_is_an_error(monkeypatch):
    monkeypatch.setenv("FATHOM_TIER", "avx2")
    monkeypatch.setitem(native.TIERS, "avx2", ("antigravity",))
    native._choose.cache_clear()
    with pytest.raises(KernelError, match="lacks antigravity"):
        native.tier()
    native._choose.cache_clear()


def test_what_is_wrong_with_a_tensor_is_said_with_its_name():
    x = torch.zeros(4, 6)
    with pytest.raises(KernelError, match=r"f: x must have the shape \[4, 5\]; got \[4, 6\]"):
        dense("f: x", x, (4, 5), torch.float32)
    with pytest.raises(KernelError, match=r"f: x must be torch.bfloat16; got torch.float32"):
        dense("f: x", x, (4, 6), torch.bfloat16)
    with pytest.raises(KernelError, match=r"f: x must be contiguous; its strides are \[6, 1\]"):
        dense("f: x", x[:, :3], (4, 3), torch.float32)
    with pytest.raises(KernelError, match=r"f: x must have dense rows"):
        rows("f: x", x.T, (6, 4), torch.float32)
    assert rows("f: x", x[:, 2:], (4, 4), torch.float32) == (x.data_ptr() + 8, 6)

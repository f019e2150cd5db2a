"""Laws of the native norms: equal to the reference on every tier, the same bits for any company."""

import pytest
import torch

from fathom.errors import KernelError
from fathom.ops.norm import cpu, reference

SIZES = [(1, 1), (1, 12), (7, 33), (63, 48), (65, 130), (300, 16)]


def case(tokens, width, dtype=torch.float32, weight_dtype=None):
    g = torch.Generator().manual_seed(0)
    x, z = (torch.randn(tokens, width, generator=g).to(dtype) for _ in range(2))
    return x, z, torch.randn(width, generator=g).to(weight_dtype or dtype)


@pytest.mark.parametrize(("tokens", "width"), SIZES)
def test_rms_norm_is_the_reference(tier, assert_agrees, tokens, width):
    x, _, weight = case(tokens, width)
    assert_agrees(
        lambda x, w: cpu.rms_norm(x, w, 1e-5),
        lambda x, w: reference.rms_norm(x, w, 1e-5),
        [x, weight],
        1e-5,
    )


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(("tokens", "width"), [(1, 3), (7, 33), (63, 48), (65, 129), (300, 15)])
def test_gated_norm_is_the_reference(tier, assert_agrees, tokens, width, groups):
    assert_agrees(
        lambda y, z, w: cpu.gated_norm(y, z, w, groups, 1e-5),
        lambda y, z, w: reference.gated_norm(y, z, w, groups, 1e-5),
        case(tokens, width),
        1e-5,
    )


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_may_be_mixed_and_a_result_is_rounded_once(tier, dtype, weight_dtype):
    x, z, weight = case(9, 37, dtype, weight_dtype)
    for gate in (z, z.bfloat16(), z.float()):
        got = cpu.gated_norm(x, gate, weight, 1, 1e-5)
        want = reference.gated_norm(x, gate, weight, 1, 1e-5)
        torch.testing.assert_close(got, want)
    torch.testing.assert_close(cpu.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


def test_gradients_have_their_inputs_types(tier):
    x, z, weight = (t.requires_grad_() for t in case(9, 36, torch.bfloat16))
    cpu.gated_norm(x, z, weight, 3, 1e-5).float().square().sum().backward()
    got = [t.grad for t in (x, z, weight)]
    x, z, weight = (t.detach().requires_grad_() for t in (x, z, weight))
    reference.gated_norm(x, z, weight, 3, 1e-5).float().square().sum().backward()
    for have, want in zip(got, (x.grad, z.grad, weight.grad), strict=True):
        torch.testing.assert_close(have, want, rtol=2e-2, atol=2e-2)


def test_inputs_may_be_slices_of_wider_rows(tier, assert_agrees):
    wide = torch.randn(70, 100, generator=torch.Generator().manual_seed(0))
    weight = case(1, 33)[2]

    def sliced(norm):
        def function(wide, weight):
            y, z, _ = wide.split([33, 33, 34], dim=-1)
            return norm.gated_norm(y, z, weight, 3, 1e-5), norm.rms_norm(z, weight, 1e-5)

        return function

    assert_agrees(sliced(cpu), sliced(reference), [wide, weight], 1e-5)


def test_the_number_of_threads_changes_no_bit(tier, assert_threads_agree):
    def both(y, z, w):
        return cpu.rms_norm(y, w, 1e-5), cpu.gated_norm(y, z, w, 2, 1e-5)

    assert_threads_agree(both, case(200, 300))


def test_rows_do_not_change_their_neighbours(tier, assert_rows_are_alone):
    y, z, weight = case(300, 50, torch.bfloat16)
    pairs = torch.cat([y, z], 1)

    def both(pairs):
        y, z = pairs.split([50, 50], dim=-1)
        return cpu.rms_norm(y, weight, 1e-5), cpu.gated_norm(y, z, weight, 5, 1e-5)

    assert_rows_are_alone(both, pairs)


def test_what_is_wrong_is_said_with_its_name():
    y, z, weight = case(4, 6)
    with pytest.raises(KernelError, match=r"rms_norm: weight must have the shape \[6\]"):
        cpu.rms_norm(y, weight[:5], 1e-5)
    with pytest.raises(KernelError, match=r"rms_norm: x must be torch.float32 or torch.bfloat16"):
        cpu.rms_norm(y.double(), weight, 1e-5)
    with pytest.raises(KernelError, match=r"gated_norm: z must have the shape \[4, 6\]"):
        cpu.gated_norm(y, z[:3], weight, 2, 1e-5)
    with pytest.raises(KernelError, match=r"gated_norm: y must have dense rows"):
        cpu.gated_norm(torch.zeros(6, 4).T, z, weight, 2, 1e-5)
    with pytest.raises(KernelError, match=r"gated_norm: groups must divide the 6 channels; got 4"):
        cpu.gated_norm(y, z, weight, 4, 1e-5)

"""Laws of the choice: reasons in words, a forced backend runs or is an error."""

import pytest
import torch

from fathom.errors import KernelError
from fathom.ops import attend, conv, draw, experts, linear, norm, ssd
from fathom.ops.dispatch import Case

ROOMS = (attend, conv, draw, experts, linear, norm, ssd)
OPERATIONS = [*(room.OPERATION for room in ROOMS), experts.ROUTE]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_operation_has_a_backend_for_every_case(operation):
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        case = Case("cpu", dtype, gradients=True)
        answers = dict(operation.explain(case))
        assert list(answers.values()).count("chosen") == 1
        assert answers["reference"] in ("chosen", "not needed")


def test_a_backend_says_why_not():
    answers = dict(ssd.OPERATION.explain(Case("cpu", torch.float64, gradients=True)))
    assert answers["eager"] == "it computes in fp32, which would lose digits of torch.float64"


def test_a_backend_can_be_forced(monkeypatch):
    case = Case("cpu", torch.float32, gradients=True)
    assert ssd.OPERATION.choose(case).name != "reference"
    monkeypatch.setenv("FATHOM_SSD", "reference")
    assert ssd.OPERATION.choose(case).name == "reference"


def test_a_forced_backend_that_cannot_run_is_an_error(monkeypatch):
    monkeypatch.setenv("FATHOM_SSD", "eager")
    with pytest.raises(KernelError, match="cannot run here: it computes in fp32"):
        ssd.OPERATION.choose(Case("cpu", torch.float64, gradients=True))


def test_an_unknown_forced_backend_is_an_error(monkeypatch):
    monkeypatch.setenv("FATHOM_CONV", "cuda")
    with pytest.raises(KernelError, match="known are native, eager, reference"):
        conv.OPERATION.choose(Case("cpu", torch.float32, gradients=True))

"""What every operation's tests share: the same case through a backend and the reference."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from fathom.ops import native

Outcome = list[Tensor]


def values_and_gradients(
    function: Callable[..., object], inputs: Sequence[Tensor | None], dtype: torch.dtype
) -> Outcome:
    """Outputs of `function`, then the gradient of each input for fixed random output weights."""
    own = [None if x is None else x.detach().clone().to(dtype).requires_grad_() for x in inputs]
    outputs = function(*own)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(7)
    total = sum(
        (y * torch.randn(y.shape, generator=generator).to(y.dtype)).sum()
        for y in outputs
        if y.requires_grad
    )
    total.backward()
    return [y.detach() for y in outputs] + [x.grad for x in own if x is not None]


@pytest.fixture
def assert_agrees() -> Callable[..., None]:
    """Fail unless a backend in fp32 equals the reference in fp64: values and all gradients."""

    def check(
        backend: Callable[..., object],
        reference: Callable[..., object],
        inputs: Sequence[Tensor | None],
        tolerance: float = 1e-4,
    ) -> None:
        wanted = values_and_gradients(reference, inputs, torch.float64)
        got = values_and_gradients(backend, inputs, torch.float32)
        assert len(wanted) == len(got)
        for index, (want, have) in enumerate(zip(wanted, got, strict=True)):
            assert torch.isfinite(have).all(), f"output or gradient {index} is not finite"
            error = (have.double() - want).norm() / want.double().norm().clamp_min(0.1)
            assert error <= tolerance, f"output or gradient {index} is off by {error:.1e}"

    return check


@pytest.fixture(params=native.runnable())
def tier(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each tier of the native kernels that this processor can run, forced."""
    monkeypatch.setenv("FATHOM_TIER", request.param)
    return str(request.param)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets how many threads share the work; the number from before comes back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def assert_threads_agree() -> Iterator[Callable[..., None]]:
    """Fail unless outputs and gradients are the same bits with 1, 2, 5 and 16 threads."""
    before = torch.get_num_threads()

    def check(
        function: Callable[..., object],
        inputs: Sequence[Tensor | None],
        dtype: torch.dtype = torch.float32,
    ) -> None:
        outcomes = []
        for threads in (1, 2, 5, 16):
            torch.set_num_threads(threads)
            outcomes.append(values_and_gradients(function, inputs, dtype))
        for outcome in outcomes[1:]:
            for one, other in zip(outcomes[0], outcome, strict=True):
                assert torch.equal(one, other)

    yield check
    torch.set_num_threads(before)


@pytest.fixture
def assert_rows_are_alone() -> Callable[..., None]:
    """Fail unless a row of a result is the same bits among 1, 5, 16, 17, 64 or 300 rows."""

    def check(function: Callable[[Tensor], Sequence[Tensor]], x_TD: Tensor) -> None:
        assert x_TD.shape[0] == 300
        whole = function(x_TD)
        for rows in (1, 5, 16, 17, 64):
            for first in (0, 300 - rows):
                part = function(x_TD[first : first + rows])
                for one, all_rows in zip(part, whole, strict=True):
                    assert torch.equal(one, all_rows[first : first + rows])

    return check

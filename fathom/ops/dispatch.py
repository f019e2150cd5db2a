"""Which backend an operation runs on, and why not on the others.

Promise: the choice is made once per case (device, type, gradients or not) from what each backend
says of itself in words; never by trying a call and catching its failure. `fathom doctor` prints
`explain()`. Setting FATHOM_SSD=reference (or _CONV, _NORM, _ROUTE, _EXPERTS, _ATTEND, _DRAW) forces
a backend; a forced backend that cannot run is an error, not a quiet fallback. FATHOM_TIER forces a
tier of the native kernels (`ops/native`), or none.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import torch

from fathom.errors import KernelError


@dataclass(frozen=True)
class Case:
    """What a choice may depend on: where the tensors live, their type, whether gradients flow."""

    device: str
    dtype: torch.dtype
    gradients: bool

    @classmethod
    def of(cls, tensor: torch.Tensor) -> "Case":
        """The case that a tensor presents at this moment."""
        return cls(tensor.device.type, tensor.dtype, torch.is_grad_enabled())


@dataclass(frozen=True)
class Backend:
    """One implementation of an operation: its module and its own word on what it cannot do."""

    name: str
    module: ModuleType
    why_not: Callable[[Case], str | None]


@dataclass(frozen=True)
class Operation:
    """An operation and its backends, the most wanted first; the last takes every case."""

    name: str
    backends: tuple[Backend, ...]

    def choose(self, case: Case) -> Backend:
        """The first backend that has nothing against the case, or the one that is forced."""
        return _choose(self, case, os.environ.get(f"FATHOM_{self.name.upper()}", ""), forced_tier())

    def explain(self, case: Case) -> list[tuple[str, str]]:
        """Each backend's name with "chosen", "not needed" or its reason against the case."""
        chosen = self.choose(case).name
        answers = []
        for backend in self.backends:
            reason = backend.why_not(case)
            answers.append(
                (backend.name, reason or ("chosen" if backend.name == chosen else "not needed"))
            )
        return answers


@functools.lru_cache(maxsize=256)
def _choose(operation: Operation, case: Case, forced: str, tier: str) -> Backend:
    """Choose once per case; `forced` and `tier` are the names in the environment, or nothing."""
    if forced:
        for backend in operation.backends:
            if backend.name == forced:
                reason = backend.why_not(case)
                if reason:
                    raise KernelError(
                        f"FATHOM_{operation.name.upper()}={forced} cannot run here: {reason}. "
                        f"Unset it, or name another backend."
                    )
                return backend
        raise KernelError(
            f"FATHOM_{operation.name.upper()}={forced} names no backend of {operation.name}; "
            f"known are {', '.join(backend.name for backend in operation.backends)}."
        )
    for backend in operation.backends:
        if backend.why_not(case) is None:
            return backend
    raise KernelError(f"No backend of {operation.name} takes {case}.")


def never_against(case: Case) -> str | None:
    """The reference's answer: it takes every case."""
    return None


def only_fp32_or_bf16(case: Case) -> str | None:
    """The answer of backends that compute in fp32 whatever they are given."""
    if case.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in fp32, which would lose digits of {case.dtype}"
    return None


def in_torch(
    name: str, eager: ModuleType, reference: ModuleType, native: Backend | None = None
) -> Operation:
    """An operation with the two backends that plain PyTorch gives it, and a native one before."""
    fast = Backend("eager", eager, only_fp32_or_bf16)
    slow = Backend("reference", reference, never_against)
    return Operation(name, (native, fast, slow) if native else (fast, slow))


def forced_tier() -> str:
    """The tier of native kernels that the environment asks for: a name, "none", or nothing."""
    return os.environ.get("FATHOM_TIER", "")


__all__ = [
    "Backend",
    "Case",
    "Operation",
    "forced_tier",
    "in_torch",
    "never_against",
    "only_fp32_or_bf16",
]

"""The native CPU kernels: one module per CPU tier, and the choice of the one to use.

Promise: a tier is chosen by what the processor says it has, once; `FATHOM_TIER=avx2` forces another
one that it can run, and an impossible one is an error. Without a compiler at install time there are
no modules, `why_not` says so, and every operation runs on PyTorch. Tensors are checked in
`tensors.py`; the kernels are the C++ beside this file, a folder an operation.
"""

import functools
import importlib
from collections.abc import Sequence
from types import ModuleType

import torch

from fathom.errors import KernelError
from fathom.ops import dispatch

_VECTORS = ("avx512_f", "avx512_bw", "avx512_cd", "avx512_dq", "avx512_vl", "avx512_vnni")
TIERS = {
    "avx512_bf16": (*_VECTORS, "avx512_bf16"),
    "avx512": _VECTORS,
    "avx2": ("avx2", "fma3", "f16c", "bmi", "bmi2", "lzcnt"),
    "portable": (),
}
"""Every tier, the most wanted first, with the features it needs (as torch names them)."""


def kernels() -> ModuleType:
    """The module of the tier in use.

    Raises:
        KernelError: there is none, or the forced one cannot run here.
    """
    found = _choose(dispatch.forced_tier())
    if isinstance(found, str):
        raise KernelError(f"There are no native kernels here: {found}.")
    return found


def tier() -> str | None:
    """The name of the tier in use; None where there are no native kernels."""
    found = _choose(dispatch.forced_tier())
    return None if isinstance(found, str) else found.__name__.rpartition("._")[2]


def runnable() -> tuple[str, ...]:
    """The tiers that were built and that this processor can run, the most wanted first."""
    return tuple(name for name in TIERS if not lacks(name) and not isinstance(_load(name), str))


def lacks(name: str) -> tuple[str, ...]:
    """The features of a tier that this processor does not have."""
    have = torch.cpu.get_capabilities()
    return tuple(feature for feature in TIERS[name] if not have.get(feature, False))


def why_not(case: dispatch.Case) -> str | None:
    """What speaks against native kernels in this case, in words."""
    if case.device != "cpu":
        return f"native kernels run on the CPU, the tensors are on {case.device}"
    if case.dtype not in (torch.float32, torch.bfloat16):
        return f"native kernels take fp32 and bf16, not {case.dtype}"
    found = _choose(dispatch.forced_tier())
    return found if isinstance(found, str) else None


LARGE = 4 << 20
"""Bytes from which a buffer is worth large pages: it is read from end to end at every step."""


def room(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device | str | None = None
) -> torch.Tensor:
    """An empty tensor, on large pages where it is large and the system has them.

    With small ones a core looks up a new address every few cache lines, and asks for nothing ahead
    beyond them.
    """
    found = torch.empty(tuple(shape), dtype=dtype, device=device)
    case = dispatch.Case(found.device.type, torch.float32, False)
    if found.nbytes >= LARGE and why_not(case) is None:
        kernels().large_pages(found.data_ptr(), found.nbytes)
    return found


def backend(module: ModuleType) -> dispatch.Backend:
    """An operation's native backend: a module whose functions call the kernels."""
    return dispatch.Backend("native", module, why_not)


@functools.lru_cache(maxsize=8)
def _choose(forced: str) -> ModuleType | str:
    """The module to use, or why there is none; `forced` is a tier, "none", or nothing."""
    if forced == "none":
        return "FATHOM_TIER=none switches them off"
    if forced:
        if forced not in TIERS:
            raise KernelError(
                f"FATHOM_TIER={forced} names no tier; known are {', '.join(TIERS)} and none."
            )
        if lacks(forced):
            raise KernelError(
                f"FATHOM_TIER={forced} cannot run here: this processor lacks "
                f"{', '.join(lacks(forced))}. Runnable are {', '.join(runnable())}."
            )
        found = _load(forced)
        if isinstance(found, str):
            raise KernelError(f"FATHOM_TIER={forced} cannot run here: {found}.")
        return found
    for name in TIERS:
        if not lacks(name) and not isinstance(found := _load(name), str):
            return found
    return (
        "they were not built; install a C++20 compiler and install Fathom again "
        "(operations run on PyTorch meanwhile, several times slower in generation)"
    )


@functools.lru_cache(maxsize=8)
def _load(name: str) -> ModuleType | str:
    """The module of a tier, or why it cannot be imported. Torch's OpenMP must be there before."""
    try:
        return importlib.import_module(f"fathom.ops.native._{name}")
    except ImportError as error:
        return f"the tier {name} was not built ({error})"


__all__ = ["TIERS", "backend", "kernels", "lacks", "room", "runnable", "tier", "why_not"]

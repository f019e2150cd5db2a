"""A decode step written down as a list of native calls, to be made again without Python.

Promise: the step runs once as it is; what is replayed gives the same bits on whatever its buffers
then hold. Native kernels write themselves down (core/tape.h); the few PyTorch operations between
them get native equivalents (`recorded_ops.py`); what depends on no buffer that changes is computed
once and kept. Anything else is refused in words, and the step runs to its end unrecorded. A value
that reaches the step as a Python number is the same at every replay: what changes from step to step
must lie in a tensor named as changing.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fathom.ops import dispatch, native
from fathom.ops.native.arena import Arena
from fathom.ops.native.recorded_ops import NATIVE, Refused

CONSTANTS = 64 << 20
"""Most bytes of values computed once that a recording may keep."""

_aten = torch.ops.aten
_EMPTY = {_aten.empty, _aten.empty_like, _aten.new_empty, _aten.empty_strided}
_FILLED = {
    *(_aten.zeros, _aten.zeros_like, _aten.new_zeros),
    *(_aten.ones, _aten.ones_like, _aten.new_ones),
    *(_aten.full, _aten.full_like, _aten.new_full),
}
_SAME = {_aten._unsafe_view, _aten.detach_, _aten.lift_fresh, _aten.resolve_conj, _aten.resolve_neg}


class Recording:
    """A step that was run once, and what it takes to make it again."""

    def __init__(self, result: Tensor, why_not: str | None, tape: Any, arena: Arena | None) -> None:
        self.result = result
        """What the step returned; a replay writes there."""
        self.why_not = why_not
        """Why it cannot be replayed, in words; None: it can."""
        self._tape, self._arena = tape, arena

    @property
    def calls(self) -> int:
        """Native calls of a replay."""
        return len(self._tape) if self._tape is not None else 0

    @property
    def bytes(self) -> int:
        """Memory that its intermediate results take."""
        return sum(block.nbytes for block in self._arena.blocks) if self._arena is not None else 0

    def replay(self) -> None:
        """Make every call again, without Python and without its lock."""
        self._tape.replay()

    def spent(self, times: int) -> list[tuple[str, float]]:
        """Replay so many times; each call's name and its mean microseconds, in order."""
        nanoseconds = self._tape.spent(times)
        return [(self._tape.name(i), ns / 1e3 / times) for i, ns in enumerate(nanoseconds)]


def record(step: Callable[[], Tensor], changing: Sequence[Tensor]) -> Recording:
    """Run `step` once and write down what it does.

    Args:
        step: works in inference mode or without gradients; runs to its end in every case.
        changing: the buffers whose values differ from step to step, those that the step
            itself writes (states, keys, counters) included. They must stay where they are.

    Returns:
        Its result and the recording, or the reason why there is none.
    """
    case = dispatch.Case.of(changing[0])
    if reason := _against(case, changing):
        return Recording(step(), reason, None, None)
    tape = native.kernels().Tape()
    recorder = _Recorder(changing, tape.end)
    tape.begin()
    try:
        with _Watch(recorder), recorder:
            result = step()
    finally:
        tape.end()
    if recorder.why_not is None and not recorder.arena.changes(result):
        recorder.why_not = "its result depends on no buffer that changes"
    if recorder.why_not is not None:
        return Recording(result, recorder.why_not, None, None)
    return Recording(result, None, tape, recorder.arena)


def _against(case: dispatch.Case, changing: Sequence[Tensor]) -> str | None:
    """What speaks against recording before anything has run."""
    if case.gradients:
        return "gradients are enabled, and a recording has none"
    if any(x.device.type != "cpu" for x in changing):
        return f"native calls run on the CPU, the step on {changing[0].device}"
    return native.why_not(dispatch.Case(case.device, torch.float32, False))


class _Recorder(TorchDispatchMode):
    """Sees every PyTorch operation of a step; decides what becomes of it."""

    def __init__(self, changing: Sequence[Tensor], end: Callable[[], None]) -> None:
        super().__init__()
        self.why_not: str | None = None
        self.arena = Arena(changing)
        self._end = end
        self._constant_bytes = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Not to be kept from a compiler that is not at work: that would import it, in a second."""
        return False

    def refuse(self, reason: str) -> None:
        """End the recording; the step goes on without it."""
        if self.why_not is None:
            self.why_not = reason
            self._end()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """One operation: a view, memory, a constant, a native equivalent, or a refusal."""
        kwargs = kwargs or {}
        if self.why_not is not None:
            return func(*args, **kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(
            func.name(), "CompositeImplicitAutograd"
        ) and (func.overloadpacket not in _SAME):
            with self:
                return func.decompose(*args, **kwargs)
        try:
            return self._one(func, args, kwargs)
        except Refused as reason:
            self.refuse(str(reason))
            return func(*args, **kwargs)

    def _one(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation that is not made of others."""
        packet = func.overloadpacket
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if any(x.device.type != "cpu" for x in inputs) or _elsewhere(kwargs.get("device")):
            raise Refused(f"{func} does not run on the CPU")
        if packet in _SAME or func.is_view:
            result = func(*args, **kwargs)
            if not any(self.arena.changes(x) for x in inputs):
                self.arena.kept += [x for x in tree_leaves(result) if isinstance(x, Tensor)]
            return result
        if packet in _EMPTY:
            like = func(*args, **{**kwargs, "device": "meta"})
            return self.arena.empty(like.shape, like.dtype, like.stride())
        if packet in _FILLED:
            # a kernel may write here: every replay begins with the values once more
            return NATIVE[_aten.clone](self.arena, self._constant(func, args, kwargs))
        if not any(self.arena.changes(x) for x in inputs):
            return self._constant(func, args, kwargs)
        if packet not in NATIVE:
            raise Refused(
                f"{func} works on values that change from step to step and has no native twin"
            )
        return NATIVE[packet](self.arena, *args, **kwargs)

    def _constant(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """An operation on constants: run now, kept for ever."""
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise Refused(f"{func} draws random numbers, which would be the same at every replay")
        if func._schema.is_mutable:
            raise Refused(f"{func} overwrites a value that a replay takes for constant")
        result = func(*args, **kwargs)
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        self.arena.kept += made
        self._constant_bytes += sum(x.numel() * x.element_size() for x in made)
        if self._constant_bytes > CONSTANTS:
            self.refuse(
                f"its constants, {func} the last, take more than {CONSTANTS >> 20} MiB beside "
                f"the weights"
            )
        return result


class _Watch(TorchFunctionMode):
    """Sees what passes operations by: addresses given out, values read into Python."""

    READS = (Tensor.tolist, Tensor.numpy, Tensor.item)

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Keep what a kernel was given the address of; refuse values that Python reads."""
        if func is Tensor.data_ptr:
            if not self._recorder.arena.changes(args[0]):
                self._recorder.arena.kept.append(args[0])
        elif func in self.READS and self._recorder.arena.changes(args[0]):
            self._recorder.refuse(
                f"Tensor.{func.__name__} reads a value that changes from step to step into Python"
            )
        return func(*args, **(kwargs or {}))


def _elsewhere(device: Any) -> bool:
    """Whether an argument asks for another device than the CPU."""
    return device is not None and torch.device(device).type != "cpu"


__all__ = ["CONSTANTS", "Recording", "record"]

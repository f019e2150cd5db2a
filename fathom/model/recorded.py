"""A call of the model on fixed buffers, recorded once and then replayed without Python.

Promise: what comes out is what the model's own call gives, bit for bit. The first run is as it is,
the second is written down (`ops/native/recorder.py`), all later ones replay it, until a buffer,
the number of threads or the tier of the kernels is another: then it is written down anew. Where it
cannot be recorded every run is as it is, and `why_not` says why in words. The weights must not
change while a recording is in use. Who asks is `engine/runner.py`; `RecordedStep` is the simplest
use, one token for every sequence of a memory of its own.
"""

import functools
import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fathom.errors import RequestError
from fathom.model.memory import Memory
from fathom.model.nemotron import Nemotron
from fathom.ops import native
from fathom.ops.layout import Layout
from fathom.ops.native.recorder import Recording, record


class Recorded:
    """A call on fixed buffers: run as it is, then written down, then replayed."""

    def __init__(
        self,
        call: Callable[[], Tensor],
        buffers: Callable[[], list[Tensor]],
        *,
        warm: bool = False,
    ) -> None:
        """Take the call and what says which buffers it reads and writes.

        The first run packs weights and fills caches, which no replay should do again; `warm` says
        that another call has done so already. The call must work on the numbers in its buffers.
        """
        self.why_not: str | None = None
        """Why it is not replayed, in words; None: it is, or will be."""
        self.recording: Recording | None = None
        """What the next run replays, if nothing moves."""
        self._call, self._buffers = call, buffers
        self._ran = warm
        self._made_for: tuple[str | None, int] = (None, 0)
        self._held: list[Tensor] = []

    def __call__(self) -> Tensor:
        """Make the call; its result is good until the next run, which may write in its place."""
        if self.recording is not None and self._holds():
            self.recording.replay()
            return self.recording.result
        return self._run()

    def _holds(self) -> bool:
        """Whether everything is where it was when the call was recorded."""
        buffers = self._buffers()
        if buffers is self._held:
            # a list that is never another: who made it looks after tier and threads as well
            return True
        return (
            len(buffers) == len(self._held)
            and all(map(_is, buffers, self._held))
            and self._made_for == (native.tier(), torch.get_num_threads())
        )

    @torch.inference_mode()
    def _run(self) -> Tensor:
        """A run through Python, written down if it is not the first."""
        self.recording = None
        if not self._ran or self.why_not is not None:
            self._ran = True
            return self._call()
        before = self._buffers()
        made_for = (native.tier(), torch.get_num_threads())
        recording = record(self._call, before)
        self.why_not = recording.why_not
        if self.why_not is None and not all(map(_is, self._buffers(), before)):
            self.why_not = "a layer's memory was replaced by another, not updated in place"
        if self.why_not is None:
            self.recording, self._made_for, self._held = recording, made_for, before
        else:
            announce(self.why_not)
        return recording.result


class RecordedStep:
    """The decode step of one model and one memory."""

    def __init__(self, model: Nemotron, memory: Memory) -> None:
        self.model, self.memory = model, memory
        self._layout = Layout.of([1] * len(memory.seen))
        device = model.embedding.weight.device
        self._tokens_S = torch.zeros(len(memory.seen), dtype=torch.int64, device=device)
        # the same memory as numpy sees it, which writes a list four times faster
        self._ids_S = self._tokens_S.numpy() if device.type == "cpu" else None
        self._step = Recorded(self._forward, lambda: [self._tokens_S, *self.memory.buffers()])

    @property
    def why_not(self) -> str | None:
        """Why steps are not replayed, in words; None: they are, or will be."""
        return self._step.why_not

    @property
    def recording(self) -> Recording | None:
        """What the next step replays, if nothing moves."""
        return self._step.recording

    def step(self, tokens: Sequence[int]) -> Tensor:
        """Feed one token to each sequence; return the fp32 logits [S, V] of what follows.

        The logits are good until the next step, which may write in their place. Raises
        `RequestError` for another number of tokens than sequences, or an unknown token.
        """
        vocab = self.model.config.vocab
        if len(tokens) != len(self.memory.seen) or min(tokens) < 0 or max(tokens) >= vocab:
            raise RequestError(
                f"A step takes one token from 0 to {vocab - 1} for each of "
                f"{len(self.memory.seen)} sequences; got {list(tokens)[:8]}."
            )
        if self._ids_S is None:
            self._tokens_S.copy_(torch.tensor(tokens))
        else:
            self._ids_S[:] = tokens
        self.memory.make_room(self._layout.lengths)
        seen = self.memory.seen
        logits_SV = self._step()
        if self.memory.seen is seen:
            # a replay moves the tensors on, and leaves Python's numbers to Python
            self.memory.count(self._layout)
        return logits_SV

    def _forward(self) -> Tensor:
        """The model's own step."""
        hidden_SD = self.model(self._tokens_S, self._layout, self.memory)
        logits_SV: Tensor = self.model.logits(hidden_SD)
        return logits_SV


def _is(one: Tensor, other: Tensor) -> bool:
    """Whether two names mean one tensor."""
    return one is other


@functools.lru_cache(maxsize=64)
def announce(reason: str) -> None:
    """Log once a process that steps run through Python, and why."""
    logging.getLogger(__name__).warning(
        "Every decode step runs through Python, which is slower for small models: %s.", reason
    )


__all__ = ["Recorded", "RecordedStep", "announce"]

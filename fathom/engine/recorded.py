"""One token for every sequence of a memory, recorded once and then replayed without Python.

Promise: the logits are those of the model's own forward, bit for bit. The first step runs as it is,
the second is written down (`ops/native/recorder.py`), all later ones replay it, until a buffer of
the memory, the number of threads or the tier of the kernels is another: then it is written down
anew. Where it cannot be recorded every step runs as it is, and `why_not` says why in words. The
weights must not change while the memory is in use. Who asks is `engine/runner.py`.
"""

import functools
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from fathom.errors import RequestError
from fathom.model.memory import Memory
from fathom.model.nemotron import Nemotron
from fathom.ops import native
from fathom.ops.layout import Layout
from fathom.ops.native.recorder import Recording, record


class RecordedStep:
    """The decode step of one model and one memory."""

    def __init__(self, model: Nemotron, memory: Memory) -> None:
        self.model, self.memory = model, memory
        self.why_not: str | None = None
        """Why steps are not replayed, in words; None: they are, or will be."""
        self._layout = Layout.of([1] * len(memory.seen))
        device = model.embedding.weight.device
        self._tokens_S = torch.zeros(len(memory.seen), dtype=torch.int64, device=device)
        # the same memory as numpy sees it, which writes a list four times faster
        self._ids_S = self._tokens_S.numpy() if device.type == "cpu" else None
        self._ran = False
        self._recording: Recording | None = None
        self._made_for: tuple[str | None, int] = (None, 0)
        self._buffers: list[Tensor] = []

    @property
    def recording(self) -> Recording | None:
        """What the next step replays, if nothing moves."""
        return self._recording

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
        if self._recording is not None and self._holds():
            self._recording.replay()
            self.memory.count(self._layout)
            return self._recording.result
        return self._run()

    def _holds(self) -> bool:
        """Whether everything is where it was when the step was recorded."""
        buffers = self.memory.buffers()
        return (
            len(buffers) == len(self._buffers)
            and all(map(_is, buffers, self._buffers))
            and self._made_for == (native.tier(), torch.get_num_threads())
        )

    @torch.inference_mode()
    def _run(self) -> Tensor:
        """A step through Python, written down if it is not the first."""
        self._recording = None
        if not self._ran or self.why_not is not None:
            # the first packs weights and fills caches, which no replay should do again
            self._ran = True
            return self._forward()
        before = self.memory.buffers()
        made_for = (native.tier(), torch.get_num_threads())
        recording = record(self._forward, [self._tokens_S, *before])
        self.why_not = recording.why_not
        after = self.memory.buffers()
        if self.why_not is None and not all(map(_is, after, before)):
            self.why_not = "a layer's memory was replaced by another, not updated in place"
        if self.why_not is None:
            self._recording, self._made_for, self._buffers = recording, made_for, before
        else:
            announce(self.why_not)
        return recording.result

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


__all__ = ["RecordedStep", "announce"]

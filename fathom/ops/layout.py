"""Which tokens of one ragged stream belong to which sequence.

Promise: nothing but this says where a sequence begins, so convolution, scan and attention all stop
at the same places. A layout holds plain numbers; the index tensors that follow from them are made
once and kept, outside of inference mode so that training may use what generation made.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from fathom.errors import KernelError


@dataclass(frozen=True)
class Layout:
    """Sequences laid end to end in a stream of T tokens.

    `lengths` says how many tokens each brings now, `past` how many it brought before (zero in
    training; the model fills it from its memory).
    """

    lengths: tuple[int, ...]
    past: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if not self.past:
            object.__setattr__(self, "past", (0,) * len(self.lengths))
        if not self.lengths or min(self.lengths) < 1:
            raise KernelError(
                f"A layout needs at least one sequence, each of at least one token; "
                f"got lengths {list(self.lengths)[:8]}. Leave empty sequences out."
            )
        if len(self.past) != len(self.lengths) or min(self.past) < 0:
            raise KernelError(
                f"past must give a count of zero or more for each of {len(self.lengths)} "
                f"sequences; got {list(self.past)[:8]}."
            )

    @classmethod
    def of(cls, lengths: Sequence[int], past: Sequence[int] | None = None) -> "Layout":
        """Make a layout from any sequence of lengths (and of earlier lengths)."""
        return cls(tuple(int(n) for n in lengths), tuple(int(n) for n in past or ()))

    @property
    def tokens(self) -> int:
        """Tokens T in the stream."""
        return sum(self.lengths)

    @property
    def sequences(self) -> int:
        """Sequences S in the stream."""
        return len(self.lengths)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Index of each sequence's first token in the stream."""
        starts = [0]
        for length in self.lengths[:-1]:
            starts.append(starts[-1] + length)
        return tuple(starts)

    @cached_property
    def sequence_T(self) -> Tensor:
        """int64 [T]: the sequence that each token belongs to."""
        with torch.inference_mode(False):
            return torch.repeat_interleave(
                torch.arange(self.sequences), torch.tensor(self.lengths), output_size=self.tokens
            )

    @cached_property
    def place_T(self) -> Tensor:
        """int64 [T]: how many tokens of its sequence precede each token in this stream."""
        with torch.inference_mode(False):
            return torch.arange(self.tokens) - torch.tensor(self.starts)[self.sequence_T]

    @cached_property
    def last_S(self) -> Tensor:
        """int64 [S]: index of each sequence's last token in the stream."""
        with torch.inference_mode(False):
            return torch.tensor(self.starts) + torch.tensor(self.lengths) - 1

    @cached_property
    def bounds(self) -> Tensor:
        """int32 [S + 1]: index of each sequence's first token, and T."""
        with torch.inference_mode(False):
            return torch.tensor([*self.starts, self.tokens], dtype=torch.int32)


__all__ = ["Layout"]

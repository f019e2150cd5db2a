"""Pages of keys and values: what attention remembers of many sequences in one pool.

Promise: a page holds a fixed number of tokens and any sequence may name any page; how many tokens a
sequence holds is read from a tensor when the attention runs. What was never written is never used.
Who owns the pages and gives out new ones is `model/memory.py`; kernels know the same arrangement
from `ops/native/attend/pages.h`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.errors import KernelError
from fathom.ops import native
from fathom.ops.layout import Layout

DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)
"""What keys and values may be stored as."""

PAGE = 128
"""Tokens of a page where nobody says otherwise."""

MOST = 448.0
"""The greatest number of fp8 E4M3; larger ones are stored as this."""


@dataclass(frozen=True)
class Pages:
    """One attention layer's keys and values of S sequences.

    The arrangement lets a product read a page as it lies: scores with keys side by side, outputs
    with the width side by side, and bf16 in the pairs that one instruction multiplies. `pair` is 1
    for fp32 and 2 for bf16 and fp8; D is d rounded up to 16, beyond d nothing is written.
    """

    keys: Tensor
    """[pages, h, d / pair, P, pair]: channel i of token t is at [i / pair, t, i % pair]."""
    values: Tensor
    """[pages, h, P / pair, D, pair]: channel i of token t is at [t / pair, i, t % pair]."""
    table_SB: Tensor
    """int32 [S, B]: the page of each run of P tokens of each sequence; -1 where there is none."""
    past_S: Tensor
    """int32 [S]: tokens each sequence held before the call."""
    width: int
    """d, the width of a head."""
    k_scale: float = 1.0
    """A stored key times this is the key."""
    v_scale: float = 1.0
    """A stored value times this is the value."""

    def __post_init__(self) -> None:
        pair = 1 if self.keys.dtype == torch.float32 else 2
        count, heads = self.keys.shape[:2]
        wanted = {
            "keys": (count, heads, self.width // pair, self.tokens, pair),
            "values": (count, heads, self.tokens // pair, -(-self.width // 16) * 16, pair),
            "table_SB": (self.past_S.shape[0], self.table_SB.shape[1]),
        }
        for name, shape in wanted.items():
            got = getattr(self, name)
            if tuple(got.shape) != shape or not got.is_contiguous():
                raise KernelError(
                    f"pages: {name} must be contiguous of shape {list(shape)}; got "
                    f"{list(got.shape)}. Make them with Pages.empty."
                )
        if self.keys.dtype not in DTYPES or self.values.dtype != self.keys.dtype:
            raise KernelError(
                f"pages: keys and values must both be one of {', '.join(map(str, DTYPES))}; got "
                f"{self.keys.dtype} and {self.values.dtype}."
            )
        if {self.table_SB.dtype, self.past_S.dtype} != {torch.int32}:
            raise KernelError(
                f"pages: table_SB and past_S must be int32; got {self.table_SB.dtype} and "
                f"{self.past_S.dtype}. Convert them."
            )
        if self.tokens not in (16, 32, 64, 128, 256, 512) or self.width % 2:
            raise KernelError(
                f"pages: a page holds 16, 32, 64, 128, 256 or 512 tokens of an even width; got "
                f"{self.tokens} tokens of width {self.width}."
            )

    @classmethod
    def empty(
        cls,
        pages: int,
        heads: int,
        width: int,
        table_SB: Tensor,
        past_S: Tensor,
        *,
        tokens: int = PAGE,
        dtype: torch.dtype = torch.float32,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
    ) -> "Pages":
        """A pool in which nothing is written, on the table's device.

        Raises:
            KernelError: a size or a type that pages cannot have.
        """
        pair = 1 if dtype == torch.float32 else 2
        device = table_SB.device
        keys = (pages, heads, width // pair, tokens, pair)
        values = (pages, heads, tokens // pair, -(-width // 16) * 16, pair)
        return cls(
            native.room(keys, dtype, device),
            native.room(values, dtype, device),
            table_SB,
            past_S,
            width,
            k_scale,
            v_scale,
        )

    @property
    def tokens(self) -> int:
        """P, the tokens of a page."""
        return self.keys.shape[3]

    @property
    def heads(self) -> int:
        """h, the key-value heads."""
        return self.keys.shape[1]

    def write(self, k_Thd: Tensor, v_Thd: Tensor, layout: Layout) -> None:
        """Store the keys and values of a call's tokens, each sequence's from past_S on."""
        pair = self.keys.shape[-1]
        device = self.keys.device
        sequence_T = layout.sequence_T.to(device)
        token_T = self.past_S.long()[sequence_T] + layout.place_T.to(device)
        page_T = self.table_SB[sequence_T, token_T // self.tokens].long()
        slot_T = token_T % self.tokens
        k = _stored(k_Thd, self.k_scale, self.keys.dtype).unflatten(-1, (-1, pair))
        v = _stored(v_Thd, self.v_scale, self.keys.dtype)
        _bits(self.keys)[page_T, :, :, slot_T] = _bits(k)
        _bits(self.values)[page_T, :, slot_T // pair, : self.width, slot_T % pair] = _bits(v)

    def read(self, sequence: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Keys and values [tokens, h, d] of the sequence's first tokens.

        They are of the stored type, or fp32 times the scales where that is fp8.
        """
        pages = self.table_SB[sequence, : -(-tokens // self.tokens)].long()
        k = _bits(self.keys)[pages].view(self.keys.dtype).permute(0, 3, 1, 2, 4).flatten(3)
        v = _bits(self.values)[pages][..., : self.width, :].view(self.keys.dtype)
        k, v = k.flatten(0, 1)[:tokens], v.permute(0, 2, 4, 1, 3).flatten(0, 2)[:tokens]
        if self.keys.dtype == torch.float8_e4m3fn:
            return k.float() * self.k_scale, v.float() * self.v_scale
        return k, v


def _stored(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """What is stored of x: x / scale, rounded."""
    x = x.float() / scale if scale != 1.0 else x
    return (x.clamp(-MOST, MOST) if dtype == torch.float8_e4m3fn else x).to(dtype)


def _bits(x: Tensor) -> Tensor:
    """The same memory as bytes where it is fp8, which PyTorch cannot index everywhere."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


__all__ = ["DTYPES", "MOST", "PAGE", "Pages"]

"""How much an engine holds and how it divides its time, as frozen data.

Promise: nothing here depends on the model; what a shape makes of it (bytes of a page, of a state)
the engine counts and says in its errors. Read by `engine/engine.py`.
"""

from typing import Literal

from pydantic import Field

from fathom.config.strict import Strict


class EngineConfig(Strict):
    """Sizes and habits of one engine."""

    sequences: int = Field(default=64, ge=1, le=4096)
    """Most requests that are read and answered side by side; others wait."""
    context: int = Field(default=32768, ge=16, le=1 << 24)
    """Most tokens of one request, its answer counted."""
    kv_tokens: int | None = Field(default=None, ge=128)
    """Tokens whose keys and values have room, those kept for reuse counted; None: twice `context`,
    and four thousand a sequence at least. The room is taken from the system as it is used."""
    kv: Literal["model", "bf16", "fp8"] = "model"
    """What keys and values are stored as; "model": the model's own type."""
    state: Literal["fp32", "fp16"] = "fp32"
    """What the recurrent states of running requests are stored as; fp16 is rounded by chance at
    every token, so that small updates are not lost."""
    chunk: int = Field(default=512, ge=1)
    """Most prompt tokens that a step reads beside its decoding."""
    readers: int = Field(default=8, ge=1)
    """Most prompts that share a chunk."""
    prefix_bytes: int = Field(default=1 << 30, ge=0)
    """Bytes of recurrent state kept for prompts that begin alike; 0 keeps nothing."""
    drafts: int = Field(default=3, ge=0, le=8)
    """Most tokens drafted ahead by the MTP head; 0: none. How many it is at a time is measured."""
    adapt: bool = True
    """Whether the depth of drafts follows what they gain; False: always `drafts`."""


__all__ = ["EngineConfig"]

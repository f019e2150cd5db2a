"""Tokens and turns: the text room's public face; no torch here.

Promise: `Text` is all that generation and training need; `Tokenizer` is its inner part. Events of
an answer are `Reasoning`, `Content` and `ToolCall`. What each file does is said at its top.
"""

from fathom.text.conversation import Text
from fathom.text.stream import (
    Content,
    Event,
    PlainRouter,
    Reasoning,
    StreamRouter,
    ToolCall,
    merged,
    parse,
)
from fathom.text.template import ChatTemplate, TemplateLimits
from fathom.text.tokenizer import Tokenizer, TokenStream

__all__ = [
    "ChatTemplate",
    "Content",
    "Event",
    "PlainRouter",
    "Reasoning",
    "StreamRouter",
    "TemplateLimits",
    "Text",
    "TokenStream",
    "Tokenizer",
    "ToolCall",
    "merged",
    "parse",
]

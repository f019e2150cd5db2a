"""How an answer looks on a terminal while it comes: thoughts dimmed, answers plain, calls named.

Promise: what a model says is printed as it is, never read as markup or as terminal commands.
"""

import json
import re
from collections.abc import Iterator

from rich.console import Console

from fathom.errors import RequestError
from fathom.generation import Answer
from fathom.text import Content, Event, Reasoning, ToolCall
from fathom.text.chat import Thinking

# Everything below the space but line ends and tabs, and what follows it in the second block of
# controls: a model must not be able to move the cursor or retitle a window.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def say(events: Iterator[Event | Answer], console: Console) -> Answer:
    """Print an answer as it comes; return it whole."""
    thinking = False
    for event in events:
        if isinstance(event, Answer):
            console.print()
            return event
        if thinking and isinstance(event, Content):
            console.print()
        thinking = isinstance(event, Reasoning)
        speak(event, console)
    raise AssertionError("a stream ends with its answer")


def speak(event: Event, console: Console) -> None:
    """Print one piece of an answer."""
    if isinstance(event, ToolCall):
        arguments = json.dumps(event.arguments, ensure_ascii=False)
        write(console, f"\n{event.name}({arguments})\n", "cyan")
    else:
        write(console, event.text, "dim italic" if isinstance(event, Reasoning) else "")


def thinking_of(word: str) -> Thinking:
    """What `--thinking` says: on, off, low or medium; raises `RequestError`."""
    known: dict[str, Thinking] = {"on": True, "off": False, "low": "low", "medium": "medium"}
    if word not in known:
        raise RequestError(f"Thinking is one of {', '.join(known)}; got {word!r}.")
    return known[word]


def harmless(text: str) -> str:
    """The text with a mark in the place of whatever a terminal might take for a command."""
    return _CONTROLS.sub("�", text)


def write(console: Console, text: str, style: str) -> None:
    """Print a piece of text as it is."""
    shown = harmless(text)
    console.print(shown, style=style, end="", markup=False, highlight=False, soft_wrap=True)


__all__ = ["harmless", "say", "speak", "thinking_of", "write"]

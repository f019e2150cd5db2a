"""Routes new text to reasoning, content or tool calls, and ends it at a stop string.

Promise: the events do not depend on how the text was cut into pieces (`parse` is one piece);
nothing is lost: what looks like a tag or a call and is none comes out as text. The rules are those
of the `nemotron_v3` reasoning parser and the `qwen3_coder` tool parser, with their known faults
mended: a call inside an open thought ends the thought, a stray closing tag is ignored.

White space that only glues is left out, so that an answer that is rendered again (`chat.py`) gives
the text it came from: around `</think>` one line end where the glue has one, after a later
`<think>` one line end, and what stands directly beside a tool call.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.errors import TextError
from fathom.text import calls
from fathom.text.chat import Glue
from fathom.text.messages import normal_tools
from fathom.text.stop import StopFinder, overlap

_TAGS = ("<think>", "</think>", calls.OPEN)
_TAG = re.compile("|".join(re.escape(tag) for tag in _TAGS))


@dataclass(frozen=True)
class Reasoning:
    """A piece of thought."""

    text: str


@dataclass(frozen=True)
class Content:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """A complete call of a tool."""

    name: str
    arguments: dict[str, Any]


Event = Reasoning | Content | ToolCall


def merged(events: Iterable[Event]) -> list[Event]:
    """Return the events with neighbouring texts of one kind joined."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, Reasoning) and isinstance(last, Reasoning):
            result[-1] = Reasoning(last.text + event.text)
        elif isinstance(event, Content) and isinstance(last, Content):
            result[-1] = Content(last.text + event.text)
        else:
            result.append(event)
    return result


class StreamRouter:
    """The router of one answer; feed it pieces of text, then finish it."""

    def __init__(
        self,
        *,
        reasoning: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stop: Sequence[str] = (),
        surface: bool = False,
        glue: Glue = "ultra",
    ) -> None:
        """Begin inside a thought if `reasoning`, as after a prompt that ends with `<think>`.

        `tools` type the arguments of calls. `stop` strings are matched in everything the model
        writes, tags included. With `surface`, an answer that would be empty is the thought
        instead; thoughts then wait until an answer begins, since either may come of them.
        """
        self._schemas = calls.schemas(normal_tools(tools))
        self._stop = StopFinder(stop)
        self._glue = glue
        self._inside = reasoning
        self._buffer = ""
        # White space that may prove to be glue, and whether one line end is to be dropped.
        self._white = ""
        self._drop_line_end = False
        self._after_call = False
        self._call_scanned = 0
        self._waiting: list[Event] | None = [] if surface else None
        self._out: list[Event] = []
        self._finished = False

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._stop.found

    def feed(self, piece: str) -> list[Event]:
        """Take new text; return the events that are now certain. Text after a stop is ignored."""
        if self._finished:
            raise TextError("This answer was finished; a new one needs a new router.")
        self._buffer += self._stop.feed(piece)
        self._route(final=False)
        return self._taken()

    def finish(self) -> list[Event]:
        """Return the events of what was held back; the text is over. A second time: nothing."""
        if self._finished:
            return []
        self._finished = True
        self._buffer += self._stop.finish()
        self._route(final=True)
        self._flush_white()
        if self._waiting is not None:
            thought = "".join(e.text for e in self._waiting if isinstance(e, Reasoning))
            self._out += [Content(thought)] if thought.strip() else self._waiting
        return self._taken()

    def _taken(self) -> list[Event]:
        events, self._out = merged(self._out), []
        return events

    def _route(self, final: bool) -> None:
        """Turn as much of the buffer into events as is certain."""
        while self._buffer:
            tag = _TAG.search(self._buffer)
            if tag is None:
                keep = 0 if final else overlap(self._buffer, _TAGS)
                self._text(self._cut(len(self._buffer) - keep))
                return
            self._text(self._cut(tag.start()))
            if tag.group() == calls.OPEN:
                if not self._call(final):
                    return
            else:
                self._cut(len(tag.group()))
                self._think(opens=tag.group() == "<think>")

    def _cut(self, size: int) -> str:
        """Take the first `size` characters of the buffer."""
        text, self._buffer = self._buffer[:size], self._buffer[size:]
        return text

    def _think(self, opens: bool) -> None:
        """A thought opens or closes; a tag that changes nothing is ignored."""
        if opens == self._inside:
            return
        if opens:
            self._flush_white()
            self._drop_line_end = True
        else:
            # In a thought only the glue's own line end waits.
            self._white = ""
            self._drop_line_end = self._glue == "nano"
        self._inside = opens

    def _call(self, final: bool) -> bool:
        """Handle the call that the buffer may begin with; False: more text is needed."""
        begins = calls.begins(self._buffer)
        if begins is None and not final:
            return False
        if begins is False:
            self._text(self._cut(len(calls.OPEN)))
            return True
        while (end := self._call_end()) is not None:
            found = calls.read(self._buffer[:end], self._schemas)
            if found != "open":
                self._emit_call(self._cut(end), found)
                return True
        if not final:
            return False
        self._emit_call(self._buffer, calls.read(self._buffer, self._schemas))
        self._buffer = ""
        return True

    def _call_end(self) -> int | None:
        """The next place where the call in the buffer may end."""
        place = self._buffer.find(calls.CLOSE, self._call_scanned)
        if place < 0:
            self._call_scanned = max(len(self._buffer) - len(calls.CLOSE), 0)
            return None
        self._call_scanned = place + 1
        return place + len(calls.CLOSE)

    def _emit_call(self, text: str, found: calls.Call | calls.Unread) -> None:
        """A call, or the text of what did not become one; either ends a thought."""
        self._call_scanned = 0
        if isinstance(found, tuple):
            self._white = ""
            self._drop_line_end = False
            self._inside = False
            self._after_call = True
            self._emit(ToolCall(*found))
            return
        if self._inside:
            self._flush_white()
            self._inside = False
        self._drop_line_end = False
        self._text(text)

    def _text(self, text: str) -> None:
        """Text of the present kind; white space at its end waits for what follows."""
        if self._drop_line_end and text:
            self._drop_line_end = False
            text = text.removeprefix("\n")
        text = self._white + text
        shown = text.rstrip()
        if self._inside and not (self._glue == "nano" and text.endswith("\n")):
            shown = text
        elif self._inside:
            shown = text[:-1]
        self._white = text[len(shown) :]
        if shown:
            self._after_call = False
            self._emit(Reasoning(shown) if self._inside else Content(shown))

    def _flush_white(self) -> None:
        """Show the white space that waited, unless it only follows a call."""
        white, self._white = self._white, ""
        if white and not self._after_call:
            self._emit(Reasoning(white) if self._inside else Content(white))

    def _emit(self, event: Event) -> None:
        """Pass an event on, or let it wait for the first sign of an answer."""
        if self._waiting is None:
            self._out.append(event)
            return
        self._waiting.append(event)
        if isinstance(event, ToolCall) or (isinstance(event, Content) and event.text.strip()):
            self._out += self._waiting
            self._waiting = None


class PlainRouter:
    """Passes text on as content until a stop string: for text that is no chat."""

    def __init__(self, stop: Sequence[str] = ()) -> None:
        """Look for any of `stop`."""
        self._stop = StopFinder(stop)

    @property
    def stopped(self) -> str | None:
        """The stop string that ended the text, or None."""
        return self._stop.found

    def feed(self, piece: str) -> list[Event]:
        """Take new text; return what is now certain."""
        text = self._stop.feed(piece)
        return [Content(text)] if text else []

    def finish(self) -> list[Event]:
        """Return what was held back; the text is over."""
        text = self._stop.finish()
        return [Content(text)] if text else []


def parse(
    text: str,
    *,
    reasoning: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    stop: Sequence[str] = (),
    surface: bool = False,
    glue: Glue = "ultra",
) -> list[Event]:
    """Return the events of a whole answer; the arguments are those of `StreamRouter`."""
    router = StreamRouter(reasoning=reasoning, tools=tools, stop=stop, surface=surface, glue=glue)
    return merged([*router.feed(text), *router.finish()])


__all__ = [
    "Content",
    "Event",
    "PlainRouter",
    "Reasoning",
    "StreamRouter",
    "ToolCall",
    "merged",
    "parse",
]

"""One conversation: what is remembered, what commands do, what comes of a line.

Promise: a line goes in and pieces come out, without any terminal; an answer that was cut short or
failed leaves the conversation as it was. Ctrl-C (`interrupt`) is heeded between two steps of the
engine, which is therefore whole afterwards and goes on remembering what it has read. How pieces
look is `chat.py`'s; what engine and templates do, theirs.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from fathom.checkpoint.atomic import write_text
from fathom.cli import voice
from fathom.cli.settings import Limit, Settings
from fathom.cli.tally import Note, Piece, Reading, Watch, told
from fathom.config.strict import nearest
from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.errors import FathomError, RequestError, TextError
from fathom.generation import Answer, Scribe
from fathom.text import Reasoning, Text
from fathom.text.messages import Message, normal_messages

COMMANDS = {
    "/budget": ("N|off [MESSAGE]", "most tokens of thought; MESSAGE is written at the cut"),
    "/think": ("on|off|low|medium", "whether to think first"),
    "/thought": ("", "show what was thought for the last answer"),
    "/retry": ("", "answer the last question again, with other draws"),
    "/undo": ("", "forget the last question and its answer"),
    "/new": ("", "forget the conversation"),
    "/system": ("[TEXT|off]", "what the model is told beforehand"),
    "/save": ("FILE", "write the conversation as JSON"),
    "/load": ("FILE", "go on with a conversation that was saved"),
    "/stats": ("", "what the engine has done so far"),
    "/help": ("", "show this"),
    "/quit": ("", "end, as Ctrl-D does"),
}
"""Every command: what follows it, and what it does."""
KEYS = (
    "Enter sends; Alt-Enter, or a backslash at the end, begins a new line. Ctrl-C ends a thought, "
    "and a second time the answer. A line that begins with a space is never a command."
)
SHOWN = 60
"""Most characters of a question that is named."""


class Talk:
    """A conversation with one engine; the engine is not closed here."""

    def __init__(self, engine: Engine, text: Text, settings: Settings, system: str = "") -> None:
        """Begin with nothing but a system prompt, if there is one."""
        self.engine, self.text, self.settings = engine, text, settings
        self.messages: list[Message] = [{"role": "system", "content": system}] if system else []
        """What is remembered."""
        self.over = False
        """Whether the user has ended it."""
        self._draws = settings.seed
        self._thought = ""
        # A question that has no answer yet, with all before it.
        self._open: list[Message] | None = None
        self._presses = 0

    @property
    def status(self) -> str:
        """How things stand, in a few words."""
        thinking = self.settings.thinking
        word = thinking if isinstance(thinking, str) else "on" if thinking else "off"
        turns = sum(message["role"] == "user" for message in self.messages)
        limit = self.settings.limit
        return f"thinking {word} · budget {limit} · questions {turns} · /help"

    def say(self, line: str) -> Iterator[Piece]:
        """What comes of a line: an answer, or what a command does."""
        try:
            if line.startswith("/"):
                yield from self._command(line)
            elif line.strip():
                yield from self._answer([*self.messages, {"role": "user", "content": line.strip()}])
        except FathomError as error:
            yield Note(str(error), fault=True)

    def interrupt(self) -> None:
        """Ctrl-C: ends the thought that goes on; outside of one, or a second time, the answer."""
        self._presses += 1

    def load(self, path: str) -> Note:
        """Take a saved conversation in the place of this one; raises `TextError`."""
        self.messages, self._open, self._thought = _read(Path(path).expanduser()), None, ""
        return Note(f"Goes on after {len(self.messages)} messages of {path}.")

    def tell(self, system: str) -> None:
        """Say something else beforehand, or nothing, from the next answer on."""
        rest = [message for message in self.messages if message["role"] != "system"]
        self.messages = [{"role": "system", "content": system}, *rest] if system else rest

    def _command(self, line: str) -> Iterator[Piece]:
        """Do what a command says."""
        name, _, rest = line.partition(" ")
        name, rest = name.strip().replace("/exit", "/quit"), rest.strip()
        if name not in COMMANDS:
            raise RequestError(
                f"There is no command {name}.{nearest(name, COMMANDS)} /help lists them."
            )
        wanted, _ = COMMANDS[name]
        if rest and not wanted:
            raise RequestError(f"Nothing follows {name}; got {rest!r}.")
        if not rest and wanted and not wanted.startswith("["):
            raise RequestError(f"{name} needs {wanted} behind it.")
        yield from getattr(self, "_do_" + name[1:])(rest)

    def _do_budget(self, rest: str) -> Iterator[Piece]:
        word, _, message = rest.partition(" ")
        settings = replace(self.settings, limit=Limit.of(word), message=message.strip())
        settings.budget(self.text)
        self.settings = settings
        end = f", then: {message.strip()}" if message.strip() else "."
        yield Note(f"Thoughts have {word} tokens{end}" if word != "off" else "No budget.")

    def _do_think(self, rest: str) -> Iterator[Piece]:
        self.settings = replace(self.settings, thinking=voice.thinking_of(rest))
        yield Note(f"Thinking is {rest}.")

    def _do_thought(self, rest: str) -> Iterator[Piece]:
        yield Note(self._thought or "The last answer came without a thought.")

    def _do_retry(self, rest: str) -> Iterator[Piece]:
        asked = list(self._open or self.messages)
        if asked and asked[-1]["role"] == "assistant":
            asked.pop()
        if not asked or asked[-1]["role"] == "system":
            raise RequestError("Nothing was asked yet.")
        yield from self._answer(asked)

    def _do_undo(self, rest: str) -> Iterator[Piece]:
        place = max((i for i, m in enumerate(self.messages) if m["role"] == "user"), default=None)
        if place is None:
            raise RequestError("There is nothing to undo.")
        asked = _short(str(self.messages[place]["content"]))
        self.messages, self._open, self._thought = self.messages[:place], None, ""
        yield Note(f"Forgotten: {asked}")

    def _do_new(self, rest: str) -> Iterator[Piece]:
        self.messages = [message for message in self.messages if message["role"] == "system"]
        self._open, self._thought = None, ""
        yield Note("Forgotten." if not self.messages else "Forgotten, but for the system prompt.")

    def _do_system(self, rest: str) -> Iterator[Piece]:
        if rest:
            self.tell("" if rest == "off" else rest)
        told = next((m["content"] for m in self.messages if m["role"] == "system"), None)
        yield Note(f"The model is told beforehand: {told}" if told else "It is told nothing.")

    def _do_save(self, rest: str) -> Iterator[Piece]:
        path = Path(rest).expanduser()
        if path.exists():
            # Only a conversation is written over.
            try:
                _read(path)
            except TextError:
                raise TextError(f"{path} is no conversation; give the name of another file.") from (
                    None
                )
        saved = {"model": self.engine.model.config.name, "messages": self.messages}
        beside = path.with_name(path.name + ".part")
        try:
            write_text(beside, json.dumps(saved, ensure_ascii=False, indent=1) + "\n")
            beside.replace(path)
        except (OSError, UnicodeEncodeError) as error:
            beside.unlink(missing_ok=True)
            raise TextError(f"{path} cannot be written: {error}.") from None
        yield Note(f"{len(self.messages)} messages are in {path}.")

    def _do_load(self, rest: str) -> Iterator[Piece]:
        yield self.load(rest)

    def _do_stats(self, rest: str) -> Iterator[Piece]:
        yield Note("\n".join(told(self.engine.stats, self.engine.why_not_recorded)))

    def _do_help(self, rest: str) -> Iterator[Piece]:
        rows = [(f"{name} {wanted}", does) for name, (wanted, does) in COMMANDS.items()]
        width = max(len(row[0]) for row in rows)
        yield Note("\n".join([*(f"{left:<{width}}  {does}" for left, does in rows), KEYS]))

    def _do_quit(self, rest: str) -> Iterator[Piece]:
        self.over = True
        yield from ()

    def _answer(self, asked: list[Message]) -> Iterator[Piece]:
        """Answer a conversation that ends with a question; remember the answer."""
        self._open, self._thought, self._presses = asked, "", 0
        request, scribe = replace(self.settings, seed=self._draws).prepare(self.text, asked)
        self._draws += 1
        room = self.engine.config.context - len(request.ids)
        if room < 1:
            raise RequestError(
                f"The conversation has {len(request.ids)} tokens, and the engine holds "
                f"{self.engine.config.context} with the answer. Begin anew with /new, /undo "
                f"something, or start with a larger --context."
            )
        request = replace(request, max_tokens=min(request.max_tokens, room))
        watch = Watch(request)
        for piece in self._heard(request, scribe, watch):
            if isinstance(piece, Reasoning):
                self._thought += piece.text
            yield piece
        if watch.thinking:
            yield watch.thought()
        if not scribe.over:
            yield Note("Cut short and not remembered; /retry asks again.")
            return
        answer = scribe.answer()
        self.messages, self._open = [*asked, remembered(answer)], None
        limit = "--max-tokens" if room >= self.settings.max_tokens else "--context"
        yield Note(watch.summary(answer, limit))

    def _heard(self, request: Request, scribe: Scribe, watch: Watch) -> Iterator[Piece]:
        """The pieces of an answer, up to its end or until it is cut short."""
        engine = self.engine
        before = engine.stats.read_tokens
        number = engine.add(request)
        try:
            while not scribe.over:
                for event in engine.step():
                    if event.request == number:
                        yield from watch.see(event, scribe.hear(event))
                if not watch.tokens:
                    yield Reading(engine.stats.read_tokens - before, len(request.ids))
                if self._presses and not scribe.over:
                    self._presses -= 1
                    if watch.by_hand or request.budget is None or not engine.end_thinking(number):
                        return
                    watch.by_hand = True
        finally:
            engine.cancel(number)


def remembered(answer: Answer) -> Message:
    """An answer as a message of the conversation."""
    message: Message = {"role": "assistant", "content": answer.content}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.tool_calls
        ]
    return message


def _read(path: Path) -> list[Message]:
    """The messages of a saved conversation, or of a bare list of messages."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise TextError(f"{path} is no saved conversation: {error}.") from None
    messages = data.get("messages") if isinstance(data, dict) else data
    if not isinstance(messages, list):
        raise TextError(f"{path} is no saved conversation: it holds no list of messages.")
    try:
        return normal_messages(messages) if messages else []
    except TextError as error:
        raise TextError(f"{path} is no saved conversation: {error}") from None


def _short(text: str) -> str:
    """The beginning of a text, in one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"


__all__ = ["COMMANDS", "KEYS", "Talk", "remembered"]

"""What a user types: prompt_toolkit on a terminal, plain lines elsewhere.

Promise: on a terminal Enter sends, Alt-Enter or a backslash at the end begins a new line, the arrow
keys bring back what was said before, Ctrl-C clears what is being typed and Ctrl-D ends. What was
said is kept in a file that only its user can read; where that cannot be written nothing is kept,
and `kept` says so. What lines mean is `talk.py`'s.
"""

import os
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, final

import platformdirs
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

HISTORY = platformdirs.user_state_path("fathom") / "chat_history"
"""Where what was said is kept, unless a user's settings say otherwise."""

_STYLE = Style.from_dict(
    {"prompt": "bold", "bottom-toolbar": "noreverse", "bottom-toolbar.text": "ansibrightblack"}
)


class Keyboard(Protocol):
    """Where lines come from."""

    def ask(self) -> str | None:
        """What the user says next; None: the conversation is over."""


@final
class Lines:
    """Reads lines of standard input; a backslash at the end of one joins the next to it."""

    def ask(self) -> str | None:
        """The next line, or lines; None: there is none, or Ctrl-C was pressed."""
        said = ""
        while True:
            try:
                line = sys.stdin.readline()
            except KeyboardInterrupt:
                return None
            if not line:
                return said or None
            line = line.rstrip("\n")
            if not line.endswith("\\"):
                return said + line
            said += line[:-1] + "\n"


@final
class Terminal:
    """Reads from a terminal, with history and the names of commands."""

    def __init__(
        self, history: History, commands: Mapping[str, str], status: Callable[[], str]
    ) -> None:
        """Complete the names of `commands`, each with its sentence; show `status` below."""
        self._session: PromptSession[str] = PromptSession(
            "> ",
            multiline=True,
            prompt_continuation="  ",
            history=history,
            key_bindings=_keys(),
            completer=_Commands(commands),
            bottom_toolbar=status,
            style=_STYLE,
        )

    def ask(self) -> str | None:
        """What was typed and sent."""
        while True:
            try:
                return self._session.prompt()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return None


@final
class _Commands(Completer):
    """Completes a command while it is the first word."""

    def __init__(self, commands: Mapping[str, str]) -> None:
        self._commands = commands

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
        typed = document.text_before_cursor
        if typed.startswith("/") and not any(letter.isspace() for letter in typed):
            for name, sentence in self._commands.items():
                if name.startswith(typed):
                    yield Completion(name, -len(typed), display_meta=sentence)


@final
class _Kept(FileHistory):
    """A history that goes on without its file where that cannot be used any more."""

    def load_history_strings(self) -> list[str]:
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError:
            # A full disk is no reason to lose a conversation.
            return


def kept(path: Path | None) -> tuple[History, str | None]:
    """The history kept in a file, and why there is none, in words; `path` None: none is wanted."""
    if path is None:
        return InMemoryHistory(), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o600))
    except OSError as error:
        return InMemoryHistory(), (
            f"What you say is not kept for the arrow keys: {path} cannot be written "
            f"({error.strerror or error})."
        )
    return _Kept(str(path)), None


@contextmanager
def hushed() -> Iterator[None]:
    """Within it, what is typed does not show among what the model says."""
    if not sys.stdin.isatty():
        yield
        return
    number = sys.stdin.fileno()
    before = termios.tcgetattr(number)
    quiet = [*before]
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(number, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(number, termios.TCSANOW, before)


def _keys() -> KeyBindings:
    """Enter sends; Alt-Enter and a backslash before Enter begin a new line; Ctrl-C clears."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    # Without this the prompt would end and begin again, and keys in between would be lost.
    @keys.add("c-c")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    return keys


__all__ = ["HISTORY", "Keyboard", "Lines", "Terminal", "hushed", "kept"]

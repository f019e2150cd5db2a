"""`fathom chat`: a conversation on the terminal.

Promise: one engine lives as long as the conversation, so what was read once is not read again;
Ctrl-C while the model speaks never ends the program. Thoughts show in a few dim lines while they
come and fold into one. Without a terminal it reads lines and prints plain text. What is said and
remembered is `talk.py`'s, what is typed `keyboard.py`'s.
"""

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text as Shown

from fathom import machine
from fathom.cli import keyboard, source, voice
from fathom.cli.settings import (
    BudgetMessage,
    BudgetWord,
    Drafts,
    Dtype,
    Limit,
    Seed,
    Settings,
    Temperature,
    ThinkingWord,
    TopP,
)
from fathom.cli.talk import COMMANDS, Talk
from fathom.cli.tally import Note, Piece, Reading, ThoughtOver
from fathom.engine.engine import Engine
from fathom.text import Event, Reasoning

HINT = "Enter sends · Alt-Enter new line · Ctrl-C cuts short · Ctrl-D ends · /help"
WINDOW = 6
"""Lines of a thought that show while it goes on."""
REDRAW_SECONDS = 0.08
SLOW_SECONDS = 0.5
"""How long a prompt may be read in silence."""


def chat(
    checkpoint: Annotated[str, typer.Argument(help="A folder, a hub id or a run's folder.")],
    system: Annotated[str, typer.Option(help="What the model is told beforehand.")] = "",
    load: Annotated[
        Path | None, typer.Option(help="A conversation to go on with, as /save writes it.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 1024,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    thinking: ThinkingWord = "on",
    budget: BudgetWord = "off",
    budget_message: BudgetMessage = "",
    seed: Seed = 0,
    context: Annotated[
        int, typer.Option(min=16, help="Most tokens of the conversation, its answer counted.")
    ] = 32768,
    drafts: Drafts = 3,
    dtype: Dtype = None,
    history: Annotated[
        Path | None,
        typer.Option(
            help="Where what you typed is kept for the arrow keys.",
            show_default=str(keyboard.HISTORY),
        ),
    ] = None,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Keep nothing of what you typed.")
    ] = False,
) -> None:
    """Talk with a model."""
    settings = Settings(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        thinking=voice.thinking_of(thinking),
        limit=Limit.of(budget),
        message=budget_message,
    )
    kind = source.dtype_of(dtype)
    machine.tune()
    console = Console()
    model, text = source.open_both(checkpoint, dtype=kind)
    with Engine(model, sequences=1, context=context, drafts=drafts) as engine:
        talk = Talk(engine, text, settings)
        settings.budget(text)
        loaded = talk.load(str(load)) if load is not None else None
        if system:
            talk.tell(system)
        size = f"{model.config.parameters:,} parameters, context {context:,}"
        note(Note(f"{model.config.name}, {size}\n{HINT}"), console)
        if loaded is not None:
            note(loaded, console)
        ears = listen(talk, None if no_history else history or keyboard.HISTORY, console)
        while not talk.over and (said := ears.ask()) is not None:
            with interruptible(talk), keyboard.hushed():
                Screen(console).show(talk.say(said))
            console.print()


def listen(talk: Talk, history: Path | None, console: Console) -> keyboard.Keyboard:
    """The keyboard where there is a terminal, else standard input."""
    if not (sys.stdin.isatty() and console.is_terminal):
        return keyboard.Lines()
    kept, why = keyboard.kept(history)
    if why is not None:
        note(Note(why), console)
    commands = {name: sentence for name, (_, sentence) in COMMANDS.items()}
    return keyboard.Terminal(kept, commands, lambda: talk.status)


@contextmanager
def interruptible(talk: Talk) -> Iterator[None]:
    """Within it Ctrl-C goes to the conversation; only a process's main thread hears it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: talk.interrupt())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Screen:
    """Shows the pieces that come of one line."""

    def __init__(self, console: Console) -> None:
        """Show them on `console`."""
        self.console = console
        self._live: Live | None = None
        self._thought = ""
        self._began = self._drawn = time.monotonic()
        # Whether the cursor stands behind something.
        self._open = False

    def show(self, pieces: Iterator[Piece]) -> None:
        """Show them as they come."""
        try:
            for piece in pieces:
                self._show(piece)
        finally:
            self._fold()
            self._end_line()

    def _show(self, piece: Piece) -> None:
        if isinstance(piece, Reading):
            if time.monotonic() - self._began > SLOW_SECONDS:
                self._draw(f"reading, {piece.tokens:,} of up to {piece.total:,} tokens")
        elif isinstance(piece, Reasoning):
            self._thought += piece.text
            if self.console.is_terminal:
                self._draw(self._thought)
            else:
                self._say(piece)
        elif isinstance(piece, ThoughtOver):
            self._fold()
            self._end_line()
            self._thought = ""
            note(
                Note(
                    f"thought for {piece.tokens:,} tokens, {piece.seconds:.1f} s; /thought shows it"
                ),
                self.console,
            )
        elif isinstance(piece, Note):
            self._fold()
            self._end_line()
            note(piece, self.console)
        else:
            self._fold()
            self._say(piece)

    def _say(self, piece: Event) -> None:
        """Print what the model says."""
        voice.speak(piece, self.console)
        self._open = True

    def _draw(self, text: str) -> None:
        """Show the last lines of a text that will vanish again."""
        if not self.console.is_terminal:
            return
        now = time.monotonic()
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        elif now - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = now
        width = self.console.width
        # Wrapping is only needed for what may show.
        tail = voice.harmless(text[-WINDOW * width :]).lstrip("\n")
        lines = Shown(tail).wrap(self.console, width)[-WINDOW:]
        self._live.update(Shown("\n", style="dim italic").join(lines), refresh=True)

    def _fold(self) -> None:
        """Let what was drawn vanish."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _end_line(self) -> None:
        """Go to the beginning of a line."""
        if self._open:
            self.console.print()
            self._open = False


def note(said: Note, console: Console) -> None:
    """Print what the program says."""
    text = voice.harmless(said.text)
    console.print(text, style="red" if said.fault else "dim", markup=False, highlight=False)


__all__ = ["Screen", "chat", "interruptible", "listen", "note"]

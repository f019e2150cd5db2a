"""Laws of fathom/cli/keyboard.py; keys come through a pipe that counts as a terminal."""

import io
import os
import stat
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from fathom.cli.keyboard import HISTORY, Lines, Terminal, hushed, kept

ENTER, LINE_END, ALT_ENTER, CTRL_C, CTRL_D, UP = "\r", "\n", "\x1b\r", "\x03", "\x04", "\x1b[A"


def typed(*keys, history=None):
    """What is sent when these keys are pressed, the next ones at the next question."""
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        terminal = Terminal(history or InMemoryHistory(), {"/new": "n", "/help": "h"}, lambda: "")
        found = []
        for some in keys:
            pipe.send_text(some)
            found.append(terminal.ask())
    return found[0] if len(found) == 1 else found


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("hello" + ENTER, "hello"),
        ("one" + ALT_ENTER + "two" + ENTER, "one\ntwo"),
        ("typed while the model spoke" + LINE_END, "typed while the model spoke"),
        ("one\\" + ENTER + "two" + ENTER, "one\ntwo"),
        ("one\\ " + ENTER, "one\\ "),
        ("nonsense" + CTRL_C + "sense" + ENTER, "sense"),
        (CTRL_C + CTRL_D, None),
        (" /new" + ENTER, " /new"),
    ],
)
def test_keys_do_what_is_said_of_them(keys, said):
    assert typed(keys) == said


def test_what_was_said_comes_back_with_the_arrow_keys():
    assert typed("first" + ENTER, UP + "!" + ENTER) == ["first", "first!"]


def test_what_was_said_is_kept_for_the_next_time_where_only_its_user_can_read_it(tmp_path):
    path = tmp_path / "state" / "chat_history"
    history, why = kept(path)
    assert why is None
    assert typed("two\\" + ENTER + "lines" + ENTER, history=history) == "two\nlines"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert typed(UP + UP + ENTER, history=kept(path)[0]) == "two\nlines"


def test_where_nothing_can_be_written_nothing_is_kept_and_that_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    history, why = kept(tmp_path / "file" / "chat_history")
    assert "not kept" in why
    assert typed("hello" + ENTER, history=history) == "hello"
    assert kept(None)[1] is None


def test_a_history_that_can_no_longer_be_written_loses_no_conversation(tmp_path):
    path = tmp_path / "chat_history"
    history, _ = kept(path)
    path.unlink()
    path.mkdir()
    assert typed("hello" + ENTER, "again" + ENTER, history=history) == ["hello", "again"]


def test_the_history_is_in_the_users_state_folder():
    assert HISTORY.name == "chat_history"
    assert HISTORY.parent.name == "fathom"
    assert isinstance(HISTORY, Path)


@pytest.mark.parametrize(
    ("typed_", "found"), [("/", ["/new", "/help"]), ("/n", ["/new"]), ("/new ", []), ("n", [])]
)
def test_commands_are_completed_as_the_first_word(typed_, found):
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        terminal = Terminal(InMemoryHistory(), {"/new": "n", "/help": "h"}, lambda: "")
    completer = terminal._session.completer
    told = completer.get_completions(Document(typed_), CompleteEvent())
    assert [completion.text for completion in told] == found


def test_lines_are_joined_by_a_backslash_and_end_with_the_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("one\ntwo\\\nthree\n\nfour\\\n"))
    lines = Lines()
    assert [lines.ask() for _ in range(5)] == ["one", "two\nthree", "", "four\n", None]


def test_ctrl_c_ends_lines_that_no_terminal_gives(monkeypatch):
    class Interrupted(io.StringIO):
        def readline(self, *size):
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Interrupted())
    assert Lines().ask() is None


def test_what_is_typed_does_not_show_while_the_model_speaks(monkeypatch):
    import termios

    main, other = os.openpty()
    with os.fdopen(other, "r") as terminal, os.fdopen(main, "rb"):
        monkeypatch.setattr("sys.stdin", terminal)
        before = termios.tcgetattr(other)
        with hushed():
            assert not termios.tcgetattr(other)[3] & termios.ECHO
        assert termios.tcgetattr(other) == before
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    with hushed():
        pass

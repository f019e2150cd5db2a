"""Laws of fathom/cli/chat.py."""

import io
import os
import signal
import threading

import pytest
from rich.console import Console

from fathom.cli import chat as verb
from fathom.cli import keyboard
from fathom.cli.chat import Screen, interruptible, listen, note
from fathom.cli.settings import Limit, Settings
from fathom.cli.talk import Talk
from fathom.cli.tally import Note, Reading, ThoughtOver
from fathom.text import Content, Reasoning, ToolCall


@pytest.fixture
def says(fathom, untuned, tiny_run, monkeypatch):
    """Run `fathom chat` with lines on standard input; return code, output and errors."""

    def call(lines, *options):
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(line + "\n" for line in lines)))
        return fathom("chat", tiny_run, "--max-tokens", 8, "--context", 1024, *options)

    return call


def shown(pieces, *, terminal=True, width=40):
    """What a screen makes of pieces."""
    console = Console(
        file=io.StringIO(), force_terminal=terminal, color_system=None, width=width, height=20
    )
    Screen(console).show(iter(pieces))
    return console.file.getvalue()


def test_lines_are_answered_without_a_terminal(says):
    code, out, err = says(["2+3?", "/undo", "4+5?\\", "and 6+7?", "/quit", "8?"])
    assert code == 0
    assert err == ""
    assert out.count("first after") == 2
    assert "Forgotten: 2+3?" in out


def test_a_conversation_is_begun_with_what_is_told_and_what_was_saved(says, tmp_path):
    path = tmp_path / "talk.json"
    code, _, _ = says(["2+3?", f"/save {path}"], "--system", "Be brief.", "--budget", "3")
    assert code == 0
    code, out, _ = says(["/system", "/undo"], "--load", path)
    assert "Be brief." in out
    assert "Forgotten: 2+3?" in out
    code, out, _ = says(["/system"], "--load", path, "--system", "Be long.")
    assert "Be long." in out


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--budget", "x"), "200+40"),
        (("--thinking", "x"), "medium"),
        (("--load", "none.json"), "none.json"),
        (("--dtype", "fp7"), "fp32"),
    ],
)
def test_options_that_make_no_sense_end_it(says, options, word):
    code, _, err = says([], *options)
    assert code == 2
    assert word in err


def test_ctrl_c_goes_to_the_conversation_while_it_answers(engine, words):
    talk = Talk(engine, words, Settings(max_tokens=400, limit=Limit(5)))
    console = Console(file=io.StringIO())

    def pressed():
        for piece in talk.say("2+3?"):
            if isinstance(piece, Content):
                os.kill(os.getpid(), signal.SIGINT)
            yield piece

    before = signal.getsignal(signal.SIGINT)
    with interruptible(talk):
        Screen(console).show(pressed())
    assert "Cut short" in console.file.getvalue()
    assert talk.messages == []
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_ctrl_c_is_left_alone(engine, words):
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def run():
        with interruptible(Talk(engine, words, Settings())):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_thought_folds_into_one_line_on_a_terminal():
    pieces = [Reasoning("I think\nso"), ThoughtOver(12, 1.25), Content("yes"), Note("done")]
    told = shown(pieces)
    assert (
        told.index("I think") < told.index("\x1b[2K") < told.index("thought for 12 tokens, 1.2 s")
    )
    assert told.endswith("yes\ndone\n")
    assert shown(pieces, terminal=False) == (
        "I think\nso\nthought for 12 tokens, 1.2 s; /thought \nshows it\nyes\ndone\n"
    )


def test_only_the_last_lines_of_a_long_thought_show():
    thought = "\n".join(f"line {number}" for number in range(100))
    told = shown([Reasoning(thought)])
    assert "line 99" in told
    assert "line 94" in told
    assert "line 93" not in told


def test_a_call_of_a_tool_is_shown_as_one():
    assert 'f({"x": 1})' in shown([Content("hm"), ToolCall("f", {"x": 1}), Note("done")])


def test_nothing_that_is_said_commands_the_terminal():
    bad = "\x1b]0;title\x07\x9b2J"
    pieces = [Reasoning(bad), ThoughtOver(1, 0.0), Content(bad), Note(bad), Note(bad, fault=True)]
    for terminal in (True, False):
        told = shown(pieces, terminal=terminal)
        assert "\x1b]" not in told
        assert "\x07" not in told
        assert "\x9b" not in told


def test_a_prompt_that_takes_long_to_read_is_told(monkeypatch):
    monkeypatch.setattr(verb, "SLOW_SECONDS", -1.0)
    assert "reading, 512 of up to 1,024 tokens" in shown([Reading(512, 1024), Content("x")])
    assert "reading" not in shown([Reading(512, 1024), Content("x")], terminal=False)


def test_what_is_in_brackets_is_no_markup():
    console = Console(file=io.StringIO(), width=40)
    note(Note("[bold]a[/bold]"), console)
    assert console.file.getvalue() == "[bold]a[/bold]\n"


def test_without_a_terminal_lines_are_read(engine, words, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    talk = Talk(engine, words, Settings())
    assert isinstance(listen(talk, tmp_path / "x", Console(file=io.StringIO())), keyboard.Lines)
    assert not list(tmp_path.iterdir())

"""Laws of fathom/cli/many.py, through the verb."""

import io
import json
import os
import signal

import pytest
from rich.console import Console

from fathom.cli import many, source
from fathom.cli.generate import Bar
from fathom.cli.jsonl import Output
from fathom.cli.many import Progress
from fathom.generation import generate

LINES = [
    {"prompt": "What is 2+3?", "id": "first"},
    {"messages": [{"role": "system", "content": "Add."}, {"role": "user", "content": "4+5?"}]},
    {"prompt": "short", "max_tokens": 2, "meta": {"kept": [1]}},
    {"prompt": "greedy", "temperature": 0, "budget": 3},
    {"prompt": "seeded", "seed": 77, "top_p": 0.9, "tools": [{"name": "f", "parameters": {}}]},
    {"prompt": "What is 2+3?"},
]
"""An input with every kind of line."""


@pytest.fixture
def ask(fathom, untuned, tiny_run, tmp_path):
    """Write an input, answer it; return code, the output's lines and what was said."""

    def call(*options, lines=LINES, out="out.jsonl"):
        given = tmp_path / "in.jsonl"
        given.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
        files = ("--input", given, "--output", tmp_path / out)
        code, _, err = fathom("generate", tiny_run, *files, "--max-tokens", 10, *options)
        path = tmp_path / out
        found = [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
        return code, found, err

    return call


def by_index(found):
    """Answers by their line, each once."""
    assert len({one["index"] for one in found}) == len(found)
    return {one["index"]: one for one in found}


def test_every_line_is_answered_as_it_would_be_alone(ask, tiny_run):
    code, found, err = ask("--seed", 5, "--sequences", 3)
    assert code == 0, err
    answers = by_index(found)
    assert sorted(answers) == list(range(len(LINES)))
    model, text = source.open_both(tiny_run)
    for index, line in enumerate(LINES):
        given = {
            name: line[name] for name in ("temperature", "top_p", "budget", "tools") if name in line
        }
        alone = generate(
            model,
            text,
            line.get("prompt") or line["messages"],
            max_tokens=line.get("max_tokens", 10),
            seed=line.get("seed", 5 + index),
            **given,
        )[0]
        assert answers[index]["content"] == alone.content, index
        assert answers[index]["reasoning"] == alone.reasoning, index
        assert answers[index]["usage"]["answered"] == len(alone.ids)
        assert answers[index]["id"] == line.get("id")
    assert answers[2]["meta"] == {"kept": [1]}
    assert answers[3]["usage"]["cut"]
    assert "6 lines answered: 52 tokens" in err


def test_a_run_that_was_broken_off_goes_on_and_ends_alike(ask, tmp_path):
    _, whole, _ = ask(out="whole.jsonl")
    code, part, _ = ask()
    path = tmp_path / "out.jsonl"
    kept = path.read_bytes().splitlines(keepends=True)[:3]
    path.write_bytes(b"".join(kept) + b'{"index": 4, "con')
    code, found, err = ask()
    assert code == 0
    assert "torn: 17 bytes" in err
    assert "3 lines answered" in err
    assert found[:3] == part[:3]
    texts = [{i: x["content"] for i, x in by_index(some).items()} for some in (whole, found)]
    assert texts[0] == texts[1]
    code, again, err = ask()
    assert code == 0
    assert again == found
    assert "All 6 lines were answered before" in err


def test_going_on_otherwise_is_refused_and_fresh_begins_anew(ask, tmp_path):
    _, before, _ = ask()
    code, found, err = ask("--temperature", 0.5)
    assert code == 2
    assert "temperature was 1.0 and is 0.5" in err
    code, found, err = ask(lines=[*LINES, {"prompt": "more"}])
    assert code == 2
    assert "input" in err
    assert found == before
    code, found, err = ask("--temperature", 0.5, "--fresh")
    assert code == 0
    assert "out.jsonl.old-1" in err
    assert len(found) == len(LINES)
    # what changes no answer may change
    assert ask("--temperature", 0.5, "--sequences", 1, "--drafts", 0)[0] == 0


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ('{"prompt"', "no JSON"),
        ({"prompt": "x", "temprature": 1}, "temperature"),
        ({"prompt": "x", "temperature": -1}, "temperature"),
        ({"prompt": "x", "budget": "many"}, "200+40"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "robot"),
        ({"prompt": "x" * 400}, "200 together"),
    ],
)
def test_a_bad_line_ends_it_before_anything_runs_or_is_written_down(ask, bad, word):
    lines = [LINES[0], bad, LINES[1]]
    code, found, err = ask("--context", 200, lines=lines)
    assert code == 2
    assert "Line 2 of" in err
    assert word in err
    assert found == []
    code, found, err = ask("--context", 200, "--errors", "skip", lines=lines)
    assert code == 0
    assert word in by_index(found)[1]["error"]
    assert [by_index(found)[i]["stop_reason"] for i in (0, 2)] == ["length", "length"]
    assert "1 of them with an error" in err
    assert "All 3 lines" in ask("--context", 200, "--errors", "skip", lines=lines)[2]


def test_ctrl_c_loses_nothing_that_has_ended(ask, monkeypatch):
    add = Output.add

    def pressed(output, record):
        add(output, record)
        if len(output.done) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Output, "add", pressed)
    code, found, err = ask("--sequences", 2)
    assert code == 130
    assert "the same command goes on" in err
    assert 2 <= len(found) < len(LINES)
    monkeypatch.undo()
    code, after, _ = ask("--sequences", 2)
    assert code == 0
    assert after[: len(found)] == found
    assert len(by_index(after)) == len(LINES)


def test_an_answer_that_goes_wrong_is_an_error_with_its_line(ask, monkeypatch):
    add = many.Engine.add

    def refused(engine, request):
        if request.max_tokens == 2:
            raise many.DataError("It is broken.")
        return add(engine, request)

    monkeypatch.setattr(many.Engine, "add", refused)
    code, _, err = ask()
    assert code == 2
    assert "Line 3" in err
    code, found, _ = ask("--errors", "skip", out="other.jsonl")
    assert code == 0
    assert by_index(found)[2]["error"] == "It is broken."


def test_a_stop_string_ends_an_answer_and_is_told(ask, tiny_run):
    model, text = source.open_both(tiny_run)
    free = generate(model, text, "x", max_tokens=10, temperature=0, thinking=False)[0].content
    stop = free[3:5]
    options = ("--temperature", 0, "--thinking", "off", "--stop", stop)
    code, (one,), err = ask(*options, lines=[{"prompt": "x"}])
    assert code == 0, err
    assert one["content"] == free[: free.index(stop)]
    assert (one["stop_reason"], one["stop_string"]) == ("stop", stop)
    assert one["usage"]["answered"] >= 1


def test_a_schema_and_a_budget_hold_for_every_line(ask, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["yes", "no"]}')
    code, found, err = ask("--schema", schema, "--budget", 4, "--max-tokens", 40)
    assert code == 0, err
    for one in found:
        if one["index"] not in (2, 3):
            assert json.loads(one["content"]) in ("yes", "no")
            assert one["usage"]["thought"] <= 4


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "--input"),
        (("--input", "x.jsonl"), "--output"),
        (("hello", "--input", "x.jsonl", "--output", "y"), "--input"),
        (("--input", "none.jsonl", "--output", "y"), "none.jsonl"),
        (("--input", "x", "--output", "y", "--errors", "no"), "skip"),
        (("hello", "--budget", "x"), "200+40"),
        (("hello", "--regex", "(", "--schema", "s"), "give one"),
    ],
)
def test_arguments_that_make_no_sense_are_told(fathom, untuned, tiny_run, arguments, word):
    code, _, err = fathom("generate", tiny_run, *arguments)
    assert code == 2
    assert word in err


def test_a_bar_shows_how_far_it_is(monkeypatch):
    now = Progress(total=9, before=1, done=4, bad=2, rate=1234.0)
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with Bar(console) as bar:
        bar.show(now)
        bar.show(now)
    assert "4/9" in console.file.getvalue()
    assert "1,234 tokens/s, 2 errors" in console.file.getvalue()
    plain = Console(file=io.StringIO(), width=120)
    with Bar(plain) as bar:
        bar.show(now)
        assert plain.file.getvalue() == ""
        bar._printed -= 60
        bar.show(now)
        bar.show(now)
    assert plain.file.getvalue() == "4 of 9  1,234 tokens/s, 2 errors\n"

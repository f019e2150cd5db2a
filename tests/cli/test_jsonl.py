"""Laws of fathom/cli/jsonl.py."""

import json
import subprocess
import sys

import pytest

from fathom.cli.jsonl import Bad, Input, Line, Output
from fathom.cli.settings import Limit, Settings
from fathom.errors import DataError

FACTS = {"input": "abc", "temperature": 1.0, "stop": ["x"]}


@pytest.fixture
def path(tmp_path):
    """Where an output goes."""
    return tmp_path / "out.jsonl"


def written(path, *indices):
    """An output with some answers."""
    with Output(path, FACTS) as output:
        for index in indices:
            output.add({"index": index, "content": f"answer {index}"})
    return path


def read(tmp_path, *lines):
    """An input of these lines."""
    file = tmp_path / "in.jsonl"
    file.write_bytes(
        b"\n".join(x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines)
    )
    return Input.read(file)


def test_lines_are_counted_as_they_stand(tmp_path):
    given = read(tmp_path, {"prompt": "a"}, b"", {"prompt": "b", "id": 7}, b"  ")
    assert sorted(given.lines) == [0, 2]
    assert given.lines[2].id == 7
    assert given.fingerprint != read(tmp_path, {"prompt": "a"}).fingerprint


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b"{", "no JSON"),
        (b"[1]", "no JSON object"),
        (b"\xff{}", "no JSON"),
        ({"id": "x"}, "either prompt or messages"),
        ({"prompt": "a", "messages": [], "id": "x"}, "either prompt or messages"),
        ({"prompt": "a", "max_token": 3, "id": "x"}, "'max_tokens'"),
        ({"prompt": "a", "max_tokens": 0, "id": "x"}, "max_tokens"),
        ({"prompt": 3, "id": "x"}, "prompt"),
    ],
)
def test_a_line_that_cannot_be_used_is_told_and_keeps_its_name(tmp_path, line, word):
    bad = read(tmp_path, {"prompt": "good"}, line).lines[1]
    assert isinstance(bad, Bad)
    assert word in bad.error
    assert bad.id == ("x" if isinstance(line, dict) else None)


def test_an_input_that_is_not_there_or_empty_is_told(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        Input.read(tmp_path / "none")
    with pytest.raises(DataError, match="empty"):
        read(tmp_path, b"", b"\t")


def test_what_a_line_gives_goes_before_the_settings():
    settings = Settings(max_tokens=5, seed=10, limit=Limit(3))
    plain = Line(prompt="a").over(settings, 4)
    assert plain == Settings(max_tokens=5, seed=14, limit=Limit(3))
    own = Line(prompt="a", max_tokens=9, temperature=0, top_p=0.5, seed=1, budget=8)
    assert own.over(settings, 4) == Settings(
        max_tokens=9, temperature=0.0, top_p=0.5, seed=1, limit=Limit(8)
    )
    assert Line(prompt="a", budget="off").over(settings, 0).limit == Limit()


def test_an_output_knows_what_is_done(path):
    written(path, 3, 0)
    with Output(path, FACTS) as output:
        assert output.done == {0, 3}
        assert output.torn == 0
        output.add({"index": 1, "id": "\ud800"})
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [3, 0, 1]


@pytest.mark.parametrize("torn", [b'{"index": 5, "con', b'{"index": 5}', b"\0\0\n", b"7\n"])
def test_a_torn_line_is_cut_off(path, torn):
    whole = written(path, 3, 0).read_bytes()
    path.write_bytes(whole + torn)
    with Output(path, FACTS) as output:
        assert output.done == {0, 3}
        assert output.torn == len(torn)
        output.add({"index": 5})
    assert path.read_bytes() == whole + b'{"index": 5}\n'


def test_a_line_that_is_no_answer_among_others_is_told_and_kept(path):
    whole = written(path, 3).read_bytes()
    path.write_bytes(b"mine\n" + whole)
    with pytest.raises(DataError, match="Line 1"):
        Output(path, FACTS)
    assert path.read_bytes() == b"mine\n" + whole


def test_going_on_with_other_facts_is_refused_in_words(path):
    before = written(path, 3).read_bytes()
    with pytest.raises(DataError, match=r"temperature was 1\.0 and is 0\.5") as told:
        Output(path, {**FACTS, "temperature": 0.5})
    assert "--fresh" in str(told.value)
    with pytest.raises(DataError, match="new was null and is 1"):
        Output(path, {**FACTS, "new": 1})
    assert path.read_bytes() == before


def test_a_file_that_is_something_else_is_left_alone(path):
    path.write_text("my notes\n")
    with pytest.raises(DataError, match="does not say what it was made of"):
        Output(path, FACTS)
    assert path.read_text() == "my notes\n"


def test_fresh_renames_what_is_there(path):
    for number in (1, 2):
        written(path, 3)
        with Output(path, {"input": number}, fresh=True) as output:
            assert output.renamed.name == f"out.jsonl.old-{number}"
            assert output.done == set()
        path.unlink()
    names = {file.name for file in path.parent.iterdir()}
    assert "out.jsonl.settings.json.old-1" in names
    with Output(path, FACTS, fresh=True) as output:
        assert output.renamed is None


def test_one_process_at_a_time_writes(path):
    written(path, 3)
    code = (
        "import sys; from pathlib import Path; from fathom.cli.jsonl import Output\n"
        f"Output(Path(sys.argv[1]), {FACTS!r})"
    )
    with Output(path, FACTS):
        done = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
        )
    assert "Another process is writing" in done.stderr


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        Output(tmp_path / "none" / "out.jsonl", FACTS)

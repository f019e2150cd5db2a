"""Laws of fathom/cli/talk.py."""

import json

import pytest

from fathom.cli.settings import Limit, Settings
from fathom.cli.talk import COMMANDS, Talk
from fathom.cli.tally import Note, ThoughtOver, told
from fathom.engine.engine import Engine
from fathom.text import Content, Reasoning


@pytest.fixture
def talk(engine, words):
    """A conversation whose thoughts have five tokens and whose answers end at twenty."""
    return Talk(engine, words, Settings(max_tokens=20, limit=Limit(5), seed=3))


def said(talk, line):
    """All pieces that come of a line."""
    return list(talk.say(line))


def roles(talk):
    """Who said what is remembered."""
    return [message["role"] for message in talk.messages]


def faults(pieces):
    """What the program complains of."""
    return [piece.text for piece in pieces if isinstance(piece, Note) and piece.fault]


def text_of(pieces, kind):
    """What came of one kind."""
    return "".join(piece.text for piece in pieces if isinstance(piece, kind))


def interrupted(talk, line, *kinds):
    """The pieces of a line where Ctrl-C is pressed at the first piece of each kind."""
    pieces, left = [], list(kinds)
    for piece in talk.say(line):
        pieces.append(piece)
        if left and isinstance(piece, left[0]):
            left.pop(0)
            talk.interrupt()
    return pieces


def test_a_conversation_is_remembered_until_it_is_forgotten(talk):
    pieces = said(talk, "2+3?")
    assert roles(talk) == ["user", "assistant"]
    answer = talk.messages[-1]
    assert answer["reasoning_content"] == text_of(pieces, Reasoning)
    assert answer["content"] == text_of(pieces, Content)
    said(talk, "4+5?")
    assert roles(talk) == ["user", "assistant"] * 2
    said(talk, "/new")
    assert talk.messages == []


def test_what_was_read_for_one_question_is_not_read_again_for_the_next(talk):
    said(talk, "A question of some length, so that there is something to remember.")
    *_, last = said(talk, "4+5?")
    assert talk.engine.stats.reused_tokens > 60
    assert f"remembered {talk.engine.stats.reused_tokens} of " in last.text


def test_a_budget_cuts_the_thought_and_is_told(talk):
    (note,) = said(talk, "/budget 4 Enough.")
    assert note.text == "Thoughts have 4 tokens, then: Enough."
    pieces = said(talk, "2+3?")
    (over,) = [piece for piece in pieces if isinstance(piece, ThoughtOver)]
    assert text_of(pieces, Reasoning).endswith("Enough.")
    # the closing message is part of what was shown as thought
    assert over.tokens == 4 + len("Enough.")
    assert "thought cut at the budget" in pieces[-1].text
    assert pieces.index(over) < next(i for i, p in enumerate(pieces) if isinstance(p, Content))
    said(talk, "/budget off")
    assert talk.settings.limit == Limit()
    assert talk.settings.message == ""


def test_ctrl_c_in_a_thought_ends_it_and_the_model_answers(talk):
    said(talk, "/budget off")
    pieces = interrupted(talk, "2+3?", Reasoning)
    assert text_of(pieces, Content)
    assert "thought ended by you" in pieces[-1].text
    assert "budget" not in pieces[-1].text
    assert roles(talk) == ["user", "assistant"]


def test_a_second_ctrl_c_cuts_the_answer_which_is_not_remembered(talk):
    pieces = interrupted(talk, "2+3?", Reasoning, Content)
    assert "Cut short" in pieces[-1].text
    assert talk.messages == []
    assert talk.engine.unfinished <= 1
    assert said(talk, "/retry")[-1].text.startswith("20 tokens")
    assert [message["content"] for message in talk.messages[:1]] == ["2+3?"]


def test_two_presses_at_once_cut_an_answer_in_its_thought(talk):
    talk.settings = Settings(max_tokens=40)
    pieces = []
    for piece in talk.say("2+3?"):
        if not any(isinstance(p, Reasoning) for p in pieces) and isinstance(piece, Reasoning):
            talk.interrupt()
            talk.interrupt()
        pieces.append(piece)
    assert "Cut short" in pieces[-1].text
    assert any(isinstance(piece, ThoughtOver) for piece in pieces)


def test_ctrl_c_while_it_answers_cuts_it(talk):
    said(talk, "/think off")
    pieces = interrupted(talk, "2+3?", Content)
    assert "Cut short" in pieces[-1].text
    assert talk.messages == []


def test_ctrl_c_between_questions_does_nothing(talk):
    talk.interrupt()
    said(talk, "2+3?")
    assert roles(talk) == ["user", "assistant"]


def test_a_question_asked_again_draws_otherwise_and_replaces_the_answer(talk):
    said(talk, "2+3?")
    before = talk.messages
    said(talk, "/retry")
    assert roles(talk) == ["user", "assistant"]
    assert talk.messages[0] == before[0]
    assert talk.messages[1] != before[1]


def test_undo_forgets_the_last_question_and_its_answer(talk):
    talk.tell("Be brief.")
    said(talk, "2+3?")
    said(talk, "4+5?")
    (note,) = said(talk, "/undo")
    assert note.text == "Forgotten: 4+5?"
    assert roles(talk) == ["system", "user", "assistant"]
    said(talk, "/undo")
    assert roles(talk) == ["system"]
    assert faults(said(talk, "/undo")) == ["There is nothing to undo."]
    assert faults(said(talk, "/retry")) == ["Nothing was asked yet."]


def test_the_system_prompt_can_be_said_changed_and_taken_back(talk):
    said(talk, "2+3?")
    said(talk, "/system Be brief.\nVery brief.")
    assert talk.messages[0] == {"role": "system", "content": "Be brief.\nVery brief."}
    (note,) = said(talk, "/system")
    assert "Very brief." in note.text
    said(talk, "/new")
    assert roles(talk) == ["system"]
    said(talk, "/system off")
    assert talk.messages == []


def test_a_saved_conversation_goes_on_elsewhere(talk, engine, words, tmp_path):
    talk.tell("Be brief.")
    said(talk, "Wie heißt du?\nUnd warum?")
    path = tmp_path / "talk.json"
    said(talk, f"/save {path}")
    other = Talk(engine, words, Settings())
    (note,) = said(other, f"/load {path}")
    assert not note.fault
    assert other.messages == talk.messages
    assert list(tmp_path.iterdir()) == [path]
    # saved again over itself, and read as a bare list of messages
    assert not faults(said(other, f"/save {path}"))
    path.write_text(json.dumps(other.messages))
    said(talk, f"/load {path}")
    assert talk.messages == other.messages


def test_only_a_conversation_is_written_over(talk, tmp_path):
    path = tmp_path / "thesis.json"
    path.write_text('{"chapters": 5}')
    (fault,) = faults(said(talk, f"/save {path}"))
    assert "no conversation" in fault
    assert path.read_text() == '{"chapters": 5}'
    (fault,) = faults(said(talk, f"/save {tmp_path / 'none' / 'x.json'}"))
    assert "cannot be written" in fault


@pytest.mark.parametrize(
    "content", ["", "[1", "{}", "3", '[{"role": "robot", "content": ""}]', '{"messages": {}}']
)
def test_what_is_no_conversation_is_not_loaded(talk, tmp_path, content):
    said(talk, "2+3?")
    path = tmp_path / "x.json"
    path.write_text(content)
    (fault,) = faults(said(talk, f"/load {path}"))
    assert "no saved conversation" in fault
    assert roles(talk) == ["user", "assistant"]


def test_the_last_thought_can_be_seen(talk):
    assert "without a thought" in said(talk, "/thought")[0].text
    pieces = said(talk, "2+3?")
    assert said(talk, "/thought")[0].text == text_of(pieces, Reasoning)


def test_every_command_in_the_table_is_done_and_told(talk):
    (help_,) = said(talk, "/help")
    for name, (wanted, _) in COMMANDS.items():
        assert name in help_.text
        if wanted and not wanted.startswith("["):
            assert faults(said(talk, name)) == [f"{name} needs {wanted} behind it."]
        elif not wanted and name != "/quit":
            assert faults(said(talk, f"{name} x")) == [f"Nothing follows {name}; got 'x'."]
    assert not talk.over
    assert said(talk, "/quit") == []
    assert talk.over


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("/bugdet 3", "'/budget'"),
        ("/budget many", "200+40"),
        ("/think hard", "medium"),
        ("/etc/passwd", "/help"),
    ],
)
def test_a_command_that_makes_no_sense_is_told_and_changes_nothing(talk, line, word):
    before = talk.settings
    (fault,) = faults(said(talk, line))
    assert word in fault
    assert talk.settings == before
    assert talk.messages == []


def test_a_line_that_begins_with_a_space_is_said(talk):
    said(talk, " /help is a command")
    assert talk.messages[0]["content"] == "/help is a command"
    assert said(talk, "  ") == []


def test_a_conversation_that_fills_the_context_is_told_and_can_be_undone(untaught, words):
    with Engine(untaught, sequences=1, context=64, drafts=0) as small:
        talk = Talk(small, words, Settings(max_tokens=40, thinking=False))
        pieces = said(talk, "2+3?")
        assert pieces[-1].text.endswith("cut at --context")
        (fault,) = faults(said(talk, "And what is 4+5, or 6+7, or 8+9?"))
        assert "--context" in fault
        assert roles(talk) == ["user", "assistant"]


def test_stats_say_what_the_engine_has_done(talk):
    said(talk, "2+3?")
    text = said(talk, "/stats")[0].text
    assert "requests: 1 (1 length)" in text
    assert "nothing was kept yet" in text
    assert "thoughts ended by force: 1" in text
    assert "drafts accepted" in text
    assert told(talk.engine.stats, "why")[-1] == "steps run through Python: why"


def test_the_status_says_how_things_stand(talk):
    assert talk.status == "thinking on · budget 5 · questions 0 · /help"
    said(talk, "/think low")
    said(talk, "/budget 200+40")
    said(talk, "2+3?")
    assert talk.status == "thinking low · budget 200+40 · questions 1 · /help"

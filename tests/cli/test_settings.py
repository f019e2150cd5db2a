"""Laws of fathom/cli/settings.py."""

import json

import pytest

from fathom.cli.settings import Limit, Settings, compiled, grammar_of
from fathom.errors import RequestError
from fathom.generation import generate


@pytest.mark.parametrize(
    ("word", "limit"), [("off", Limit()), ("0", Limit(0)), ("200+40", Limit(200, 40))]
)
def test_a_limit_is_read_and_written_alike(word, limit):
    assert Limit.of(word) == limit
    assert str(limit) == word


@pytest.mark.parametrize("word", ["", "-1", "3+", "2.5", "on", "9" * 12])
def test_a_limit_that_makes_no_sense_is_refused(word):
    with pytest.raises(RequestError, match=r"200\+40"):
        Limit.of(word)


def test_settings_ask_for_what_generate_is_asked_for(untaught, words):
    settings = Settings(max_tokens=9, temperature=0.5, top_k=7, seed=4, limit=Limit(3))
    request, scribe = settings.prepare(words, "hello", 2)
    assert request.sampling.seed == 6
    answer = generate(
        untaught, words, "hello", max_tokens=9, temperature=0.5, top_k=7, seed=6, budget=3
    )[0]
    assert answer.usage.thought == 3
    assert request.max_tokens == 9
    assert request.budget.tokens == 3
    assert not scribe.over


def test_without_a_limit_thoughts_are_counted_all_the_same(words):
    budget = Settings().budget(words)
    assert budget.tokens is None
    assert Settings(raw=True).budget(words) is None


def test_the_facts_are_plain_data_and_tell_settings_apart():
    facts = Settings(stop=("a",), limit=Limit(3)).facts
    assert json.loads(json.dumps(facts)) == facts
    assert facts["budget"] == "3"
    assert Settings(message="x").facts != Settings().facts


def test_a_schema_comes_from_a_file(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text('{"type": "integer"}')
    assert grammar_of(path, None).kind == "json"
    assert grammar_of(None, "[0-9]").kind == "regex"
    assert grammar_of(None, None) is None
    with pytest.raises(RequestError, match="give one"):
        grammar_of(path, "x")
    path.write_text("{")
    with pytest.raises(RequestError, match=r"schema\.json"):
        grammar_of(path, None)
    with pytest.raises(RequestError, match="none"):
        grammar_of(tmp_path / "none", None)


def test_a_grammar_holds_after_the_thought(untaught, words):
    grammar = compiled(grammar_of(None, "[ab]{3}"), words, untaught)
    answer = generate(untaught, words, "x", max_tokens=60, budget=5, grammar=grammar)[0]
    assert answer.usage.thought == 5
    assert len(answer.content) == 3
    assert set(answer.content) <= set("ab")
    # the budget is not needed for that: the tags are found
    answer = generate(untaught, words, "x", max_tokens=9, thinking=False, grammar=grammar)[0]
    assert set(answer.content) <= set("ab")

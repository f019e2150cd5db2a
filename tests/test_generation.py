"""Laws of fathom/generation.py."""

from dataclasses import replace

import pytest

from fathom.config.model import AttentionConfig, MambaConfig, ModelConfig, MoEConfig
from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.engine.sampler import Sampling
from fathom.errors import RequestError
from fathom.generation import MOST, Answer, generate, group_size, prepare
from fathom.model.nemotron import Nemotron
from fathom.model.sizes import POCKET, ULTRA
from fathom.text import Content, Reasoning, Text, Tokenizer, parse


@pytest.fixture(scope="module")
def text():
    """The pure byte tokenizer: 32 special slots and 256 bytes."""
    return Text(Tokenizer.train([], vocab=288, special_slots=32))


@pytest.fixture(scope="module")
def model():
    """A tiny model with fresh weights."""
    return Nemotron(
        ModelConfig(
            vocab=288,
            width=32,
            pattern="ME*",
            mamba=MambaConfig(heads=2, head_width=16, state=8, groups=1, chunk=16),
            attention=AttentionConfig(heads=2, kv_heads=1, head_width=16),
            moe=MoEConfig(experts=4, chosen=2, expert_width=16, shared_width=16),
            init=0.3,
        ),
        seed=5,
    )


def test_a_string_a_conversation_and_a_list_of_both_are_prompts(model, text):
    turn = [{"role": "user", "content": "hello"}]
    one, two = (
        generate(model, text, "hello", max_tokens=6),
        generate(model, text, turn, max_tokens=6),
    )
    both = generate(model, text, [turn, "hello"], max_tokens=6, temperature=0)
    assert one[0].ids == two[0].ids
    assert [len(found) for found in (one, two, both)] == [1, 1, 2]
    assert both[0].ids == both[1].ids
    assert generate(model, text, []) == []


def test_an_answer_is_what_the_engine_and_the_text_room_make_of_it(model, text):
    answer = generate(model, text, "hi", max_tokens=40, seed=3)[0]
    ids = text.prompt([{"role": "user", "content": "hi"}])
    request = Request(tuple(ids), 40, Sampling(seed=3), text.stop_ids)
    request = replace(request, boundaries=text.boundaries(ids))
    done = Engine(model, sequences=1, context=256).run(request)
    assert answer.ids == done.ids
    assert answer.logps == done.logps
    said = done.ids[:-1] if done.stop_reason == "stop" else done.ids
    events = parse(text.tokenizer.decode(said), glue=text.glue)
    assert answer.reasoning == "".join(e.text for e in events if isinstance(e, Reasoning))
    assert answer.content == "".join(e.text for e in events if isinstance(e, Content))
    assert answer.stop_reason == done.stop_reason
    assert answer.tokens_per_second > 0


def test_a_stream_is_the_answer_in_pieces(model, text):
    whole = generate(model, text, "hi", max_tokens=30)[0]
    *pieces, answer = generate(model, text, "hi", max_tokens=30, stream=True)
    assert isinstance(answer, Answer)
    assert answer.ids == whole.ids
    assert "".join(p.text for p in pieces if isinstance(p, Reasoning)) == whole.reasoning
    assert "".join(p.text for p in pieces if isinstance(p, Content)) == whole.content
    assert answer.usage == whole.usage
    assert answer.usage.answered == len(answer.ids)


def test_whoever_steps_an_engine_gets_the_same_from_a_prepared_prompt(model, text):
    whole = generate(model, text, "hi", max_tokens=30, seed=4, budget=5)[0]
    with Engine(model, sequences=1, context=256) as engine:
        request, scribe = prepare(text, "hi", max_tokens=30, sampling=Sampling(seed=4), budget=5)
        engine.add(request)
        pieces = []
        while not scribe.over:
            for event in engine.step():
                pieces += scribe.hear(event)
    answer = scribe.answer()
    assert answer.ids == whole.ids
    assert answer.usage == whole.usage
    assert "".join(p.text for p in pieces if isinstance(p, Content)) == whole.content


def test_what_comes_after_a_stop_string_is_not_heard(model, text):
    free = generate(model, text, "x", max_tokens=30, temperature=0, chat=False)[0].content
    stop = free[10:12]
    asked = {"max_tokens": 30, "sampling": Sampling(temperature=0), "stop": [stop], "chat": False}
    request, scribe = prepare(text, "x", **asked)
    with Engine(model, sequences=1, context=256) as engine:
        engine.add(request)
        while engine.unfinished:
            for event in engine.step():
                scribe.hear(event)
    assert scribe.answer().content == free[: free.index(stop)]
    assert scribe.answer().usage.answered == 30
    assert len(scribe.answer().ids) < 30


def test_an_engine_that_is_left_while_it_streams_forgets_the_request(model, text):
    with Engine(model, sequences=1, context=256) as engine:
        for _ in generate(engine, text, "hi", max_tokens=30, stream=True):
            break
        engine.step()
        assert engine.unfinished == 0


def test_prompts_side_by_side_answer_as_alone_with_seeds_that_count_up(model, text):
    prompts = ["a", "longer than that", "a"]
    group = generate(model, text, prompts, max_tokens=12, seed=8)
    for place, prompt in enumerate(prompts):
        alone = generate(model, text, prompt, max_tokens=12, seed=8 + place)[0]
        assert group[place].ids == alone.ids
    assert group[0].ids != group[2].ids


@pytest.mark.parametrize("count", [1, 2])
def test_a_stop_string_ends_an_answer_and_is_no_part_of_it(model, text, count):
    free = generate(model, text, "x", max_tokens=60, temperature=0, chat=False)[0]
    stop = free.content[10:12]
    prompts = ["x"] * count if count > 1 else "x"
    for answer in generate(
        model, text, prompts, max_tokens=60, temperature=0, chat=False, stop=[stop]
    ):
        assert answer.content == free.content[: free.content.index(stop)]
        assert answer.stop_reason == "stop"
        assert answer.stop_string == stop
        assert answer.ids == free.ids[: len(answer.ids)]
        assert len(answer.ids) < 60
        assert answer.usage.answered >= len(answer.ids)


def test_without_chat_the_prompt_is_continued_as_it_stands(model, text):
    answer = generate(model, text, "abc", max_tokens=9, temperature=0, chat=False)[0]
    done = Engine(model, sequences=1, context=256).run(
        Request(tuple(text.tokenizer.encode("abc")), 9, Sampling(temperature=0), text.stop_ids)
    )
    assert answer.ids == done.ids
    assert answer.reasoning == ""


def test_thinking_off_begins_with_the_answer(model, text):
    answer = generate(model, text, "hi", max_tokens=5, thinking=False)[0]
    assert answer.reasoning == ""
    assert answer.content


@pytest.mark.parametrize(
    ("prompts", "options", "word"),
    [
        ("a", {"temperature": -1}, "temperature"),
        ("a", {"max_tokens": 0}, "max_tokens"),
        (["a", "b"], {"stream": True}, "streamed"),
        (["a", {"role": "user", "content": "b"}], {}, "mixes"),
        ([[{"role": "user", "content": "b"}]], {"chat": False}, "chat=False"),
        ("", {"chat": False}, "empty"),
    ],
)
def test_what_makes_no_sense_is_refused(model, text, prompts, options, word):
    with pytest.raises(RequestError, match=word):
        generate(model, text, prompts, **options)


def test_groups_follow_the_state_that_a_model_keeps():
    assert group_size(POCKET) == MOST
    assert group_size(ULTRA) == 2

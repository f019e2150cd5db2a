"""Laws of fathom/engine/prefix.py: what is remembered gives what reading again would give."""

import pytest

from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.engine.sampler import Sampling
from fathom.generation import generate

GREEDY = Sampling(temperature=0)
SOLO = {"drafts": 0, "prefix_bytes": 0, "sequences": 1, "context": 8192}


def _prompt(length, seed=1):
    return tuple((seed * 31 + i * i * 7 + i // 3) % 48 for i in range(length))


def _run(engine, ids, **more):
    return engine.run(Request(ids, 6, GREEDY, **more))


@pytest.mark.parametrize("length", [40, 127, 128, 129, 300])
@pytest.mark.parametrize("drafts", [0, 2])
def test_going_on_from_what_is_kept_is_reading_it_again(drafting, agree, length, drafts):
    engine = Engine(drafting, sequences=2, context=1024, drafts=drafts, adapt=False)
    beginning = _prompt(length)
    _run(engine, beginning)
    for tail in ((1, 2, 3), (9,) * 140, ()):
        found = _run(engine, beginning + tail)
        wanted = _run(Engine(drafting, **SOLO), beginning + tail)
        assert found.usage.reused == length
        assert agree(drafting, beginning + tail, found.ids, wanted.ids)
        assert found.logps == pytest.approx(wanted.logps, abs=1e-4)


def test_a_system_prompt_that_twenty_requests_share_is_read_once(drafting):
    shared = _prompt(4000)
    requests = [Request((*shared, *_prompt(20 + i, i + 3)), 4, GREEDY) for i in range(20)]
    engine = Engine(drafting, sequences=8, context=8192, chunk=512, drafts=0)
    answers = engine.generate(requests)
    stats = engine.stats
    assert stats.read_tokens <= 4000 + sum(len(r.ids) - 4000 for r in requests) + 20
    assert [a.usage.reused >= 4000 for a in answers] == [False] + [True] * 19
    alone = [_run(Engine(drafting, **SOLO), requests[i].ids).ids[:4] for i in (0, 7, 19)]
    assert [answers[i].ids for i in (0, 7, 19)] == alone


def test_the_same_prompt_many_times_is_read_once(drafting):
    engine = Engine(drafting, sequences=8, context=1024)
    prompt = _prompt(200)
    engine.generate([Request(prompt, 5, Sampling(seed=seed)) for seed in range(16)])
    assert engine.stats.read_tokens == 200


def test_a_named_boundary_is_kept(drafting):
    engine = Engine(drafting, sequences=1, context=1024)
    beginning = _prompt(150)
    _run(engine, beginning + (1,) * 60, boundaries=(100, 150))
    found = _run(engine, beginning + (2,) * 60)
    assert found.usage.reused == 150
    assert found.usage.miss == "what follows token 150 is new"
    assert _run(engine, beginning[:120] + (3,) * 9).usage.reused == 100


def test_where_prompts_part_is_noticed(drafting):
    engine = Engine(drafting, sequences=1, context=1024)
    beginning = _prompt(150)
    assert _run(engine, beginning + (1,) * 60).usage.miss == "nothing was kept yet"
    second = _run(engine, beginning + (2,) * 60)
    assert second.usage.reused == 0
    assert second.usage.miss == (
        "it leaves what is known at token 150, and the last state kept before that is at 0"
    )
    assert _run(engine, beginning + (3,) * 60).usage.reused == 150


def test_every_miss_says_why(drafting):
    engine = Engine(drafting, sequences=1, context=1024)
    _run(engine, _prompt(90))
    assert _run(engine, _prompt(90, 5)).usage.miss == "it begins like no prompt that is kept"
    assert _run(engine, _prompt(60)).usage.miss == (
        "it is all known, but no state was kept between tokens 0 and 60"
    )
    assert _run(engine, _prompt(90), alone=True).usage.miss == "the request asked to be read alone"
    scored = engine.run(Request(_prompt(90), 2, GREEDY, prompt_logprobs=0))
    assert scored.usage.miss == "the prompt is to be scored, so it is read whole"
    off = Engine(drafting, **SOLO)
    assert "prefix_bytes = 0" in _run(off, _prompt(9)).usage.miss
    assert _run(engine, _prompt(90)).usage.miss is None
    small = Engine(drafting, sequences=1, context=1024, prefix_bytes=engine._slots.state_bytes)
    _run(small, _prompt(90))
    _run(small, _prompt(90, 5))
    assert "made room for others" in _run(small, _prompt(90)).usage.miss


def test_kept_beginnings_stay_within_their_bytes_and_their_pages(drafting):
    state = Engine(drafting, sequences=1, context=1024)._slots.state_bytes
    engine = Engine(drafting, sequences=1, context=1024, prefix_bytes=3 * state, kv_tokens=1408)
    for seed in range(9):
        _run(engine, _prompt(130, seed))
        stats = engine.stats
        assert stats.kept_bytes == stats.kept_prefixes * state <= 3 * state
    assert stats.evicted == 6
    _run(engine, _prompt(1000, 77))
    assert engine.stats.kept_prefixes < 3
    engine.forget()
    assert engine.stats.free_pages == engine.stats.pages


def test_a_second_turn_reads_the_new_message_and_little_else(learned, agree):
    engine = Engine(learned.model, sequences=1, context=2048, chunk=64)
    system = "You know the colours of things, and say one word. " * 6
    turns = [{"role": "system", "content": system}, {"role": "user", "content": learned.ask("sky")}]
    (first,) = generate(engine, learned.text, turns, max_tokens=60, temperature=0.0)
    said = {
        "role": "assistant",
        "reasoning_content": first.reasoning,
        "content": first.content,
    }
    more = [*turns, said, {"role": "user", "content": learned.ask("coal")}]
    before = engine.stats.read_tokens
    (second,) = generate(engine, learned.text, more, max_tokens=60, temperature=0.0)
    read = engine.stats.read_tokens - before
    fresh = len(learned.text.prompt(more)) - len(learned.text.prompt(turns))
    assert read <= fresh + 64
    assert second.usage.reused > len(learned.text.prompt(turns)) - 64
    (wanted,) = generate(
        Engine(learned.model, **SOLO), learned.text, more, max_tokens=60, temperature=0.0
    )
    assert agree(learned.plain, learned.text.prompt(more), second.ids, wanted.ids)

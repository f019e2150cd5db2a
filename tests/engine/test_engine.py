"""Laws of fathom/engine/engine.py: what many requests get is what each would get alone."""

import random

import pytest
import torch

from fathom.engine.budget import Budget
from fathom.engine.engine import Engine
from fathom.engine.request import Event, Request
from fathom.engine.sampler import Sampling
from fathom.errors import ConfigError, RequestError
from fathom.ops.layout import Layout

PROMPT = tuple(range(5, 26))
GREEDY = Sampling(temperature=0)
SOLO = {"drafts": 0, "prefix_bytes": 0, "sequences": 1, "context": 512}


def _whole_logp(model, prompt, answer):
    """Log-probabilities [T, V] before each token of the answer, by one training forward."""
    ids = torch.tensor([*prompt, *answer])
    with torch.no_grad():
        logits = model.logits(model(ids, Layout.of([len(ids)])))
    return torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]


def _drain(engine):
    """All events until nothing is left."""
    events = []
    while engine.unfinished:
        events += engine.step()
    return events


def _random_requests(count, seed=0, most=40):
    rnd = random.Random(seed)
    samplings = (GREEDY, GREEDY, Sampling(1.0), Sampling(0.7, 0.9), Sampling(0.9, top_k=7))
    return [
        Request(
            tuple(rnd.randrange(48) for _ in range(rnd.randrange(1, 60))),
            rnd.randrange(1, most),
            Sampling(*_fields(rnd.choice(samplings)), seed=place),
        )
        for place in range(count)
    ]


def _fields(sampling):
    return sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p


@pytest.fixture(scope="module")
def apart(drafting):
    """Requests, and what each is answered by the plainest engine."""
    requests, engine = _random_requests(24), Engine(drafting, **SOLO)
    return requests, [engine.run(request) for request in requests]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(seed=11), Sampling(0.7, 0.9, 20, 0.01, 5)])
def test_decoding_is_the_training_forward(tiny, sampling):
    answer = Engine(tiny, **SOLO).run(Request(PROMPT, 30, sampling))
    whole = _whole_logp(tiny, PROMPT, answer.ids)
    told = torch.tensor(answer.logps)
    assert len(answer.ids) == 30
    assert torch.allclose(told, whole[range(30), list(answer.ids)], atol=1e-4)
    if sampling.temperature == 0:
        assert answer.ids == tuple(whole.argmax(-1).tolist())


@pytest.mark.parametrize(
    "config",
    [
        {"sequences": 8},
        {"sequences": 8, "chunk": 7},
        {"sequences": 8, "drafts": 2, "adapt": False},
        {"sequences": 5, "drafts": 3, "adapt": False, "chunk": 16},
        {"sequences": 5, "drafts": 3},
        {"sequences": 6, "drafts": 1, "adapt": False, "kv_tokens": 512},
        {"sequences": 1, "drafts": 1, "adapt": False},
    ],
    ids=str,
)
def test_requests_side_by_side_answer_as_alone(drafting, apart, config):
    requests, alone = apart
    engine = Engine(drafting, **{"context": 512, "drafts": 0, **config})
    together = engine.generate(requests)
    for one, other in zip(alone, together, strict=True):
        assert other.ids == one.ids
        assert other.logps == pytest.approx(one.logps, abs=1e-4)
        assert other.sampler_logps == pytest.approx(one.sampler_logps, abs=1e-3)
        assert other.stop_reason == one.stop_reason
    if config.get("kv_tokens"):
        assert engine.stats.preempted > 0


def test_what_is_drafted_is_bit_for_bit_what_is_decoded(drafting):
    requests = _random_requests(6, seed=4)
    plain = Engine(drafting, context=512, drafts=0, sequences=6).generate(requests)
    drafted = Engine(drafting, context=512, drafts=2, adapt=False, sequences=6).generate(requests)
    assert [one.logps for one in plain] == [one.logps for one in drafted]


def test_numbers_add_up(drafting):
    requests = _random_requests(20, seed=2)
    engine = Engine(drafting, context=512, sequences=4, drafts=2, adapt=False)
    answers = engine.generate(requests)
    stats = engine.stats
    assert stats.added == sum(stats.ended.values()) == 20
    assert stats.answered_tokens == sum(len(answer.ids) for answer in answers)
    assert stats.prompt_tokens == sum(len(request.ids) for request in requests)
    assert stats.read_tokens + stats.reused_tokens == stats.prompt_tokens
    assert sum(stats.drafted) >= sum(stats.accepted)
    assert sum(answer.usage.accepted for answer in answers) == sum(stats.accepted)
    assert stats.pages - stats.free_pages <= stats.kept_prefixes * 2
    assert 0 < stats.model_seconds < stats.step_seconds
    engine.forget()
    assert engine.stats.free_pages == stats.pages


def test_a_stop_token_ends_the_answer_and_is_its_last(tiny):
    free = Engine(tiny, **SOLO).run(Request(PROMPT, 30, GREEDY))
    stop = free.ids[9]
    stopped = Engine(tiny, **SOLO).run(Request(PROMPT, 30, GREEDY, frozenset({stop})))
    assert stopped.ids == free.ids[: free.ids.index(stop) + 1]
    assert stopped.stop_reason == "stop"


def test_a_stop_at_the_last_token_counts_as_a_stop(tiny):
    first = Engine(tiny, **SOLO).run(Request(PROMPT, 1, GREEDY))
    again = Engine(tiny, **SOLO).run(Request(PROMPT, 1, GREEDY, frozenset(first.ids)))
    assert (first.stop_reason, again.stop_reason) == ("length", "stop")


def test_a_stream_is_the_answer(tiny):
    engine = Engine(tiny, **SOLO)
    tokens = list(engine.stream(Request(PROMPT, 9, GREEDY)))
    assert [token.stop_reason for token in tokens] == [None] * 8 + ["length"]
    assert list(Engine(tiny, **SOLO).run(Request(PROMPT, 9, GREEDY)).tokens()) == tokens


def test_leaving_a_stream_early_frees_the_request(tiny):
    engine = Engine(tiny, **SOLO)
    stream = engine.stream(Request(PROMPT, 100))
    next(stream)
    stream.close()
    assert engine.unfinished == 0
    assert engine.stats.free_pages == engine.stats.pages
    assert len(engine.run(Request(PROMPT, 3)).ids) == 3


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(()), "empty"),
        (Request((1,), 0), "max_tokens"),
        (Request((1, 48)), "the token 48"),
        (Request((1, -3)), "the token -3"),
        (Request((1,) * 500, 100), "holds 512 together"),
        (Request((1,), logprobs=65), "logprobs must be from 0 to 64"),
        (Request((1,), prompt_logprobs=-1), "prompt_logprobs must be"),
        (Request((1,), deadline=0.0), "deadline must be over 0"),
        (Request((1,), sampling=Sampling(bias=((99, 1.0),))), "bias names the token 99"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_before_anything_runs(tiny, request_, words):
    engine = Engine(tiny, **SOLO)
    with pytest.raises(RequestError, match=words):
        engine.stream(request_)
    with pytest.raises(RequestError, match=words):
        engine.generate([Request((1,)), request_])
    assert engine.stats.added == 0


def test_an_engine_that_could_not_hold_a_request_is_refused(tiny):
    with pytest.raises(RequestError, match="Raise kv_tokens or lower context"):
        Engine(tiny, context=1000, kv_tokens=512)
    with pytest.raises(ConfigError, match="Did you mean 'chunk'"):
        Engine(tiny, chunks=3)


def test_a_damaged_model_ends_the_request_and_not_the_engine(tiny):
    engine = Engine(tiny, **SOLO)
    good = tiny.head.weight[7, 3].item()
    with torch.no_grad():
        tiny.head.weight[7, 3] = float("nan")
    try:
        engine.add(Request(PROMPT, 5))
        (event,) = _drain(engine)
    finally:
        with torch.no_grad():
            tiny.head.weight[7, 3] = good
    assert (event.token, event.stop_reason) == (None, "error")
    assert "NaN" in event.error
    assert engine.stats.free_pages == engine.stats.pages


def test_cancelling_ends_a_request_wherever_it_is(tiny):
    for steps in range(6):
        engine = Engine(tiny, sequences=2, chunk=9, context=128, prefix_bytes=0)
        numbers = [engine.add(Request(PROMPT, 40, GREEDY)) for _ in range(4)]
        for _ in range(steps):
            engine.step()
        for number in numbers:
            assert engine.cancel(number)
        assert not engine.cancel(numbers[0])
        told = [event for event in engine.step() if event.stop_reason]
        assert [event.stop_reason for event in told] == ["cancelled"] * 4
        assert engine.unfinished == 0
        assert engine.stats.free_pages == engine.stats.pages


def test_a_deadline_ends_a_request_as_it_is(tiny):
    engine = Engine(tiny, **SOLO)
    slow = engine.add(Request(PROMPT, 400, GREEDY, deadline=1e-6))
    events = _drain(engine)
    assert [(event.request, event.stop_reason) for event in events] == [(slow, "deadline")]


def test_a_greater_priority_goes_first_and_the_lesser_loses_nothing(tiny):
    engine = Engine(tiny, sequences=1, context=256)
    wanted = Engine(tiny, **SOLO).run(Request(PROMPT, 30, GREEDY))
    low = engine.add(Request(PROMPT, 30, GREEDY))
    events = [event for _ in range(5) for event in engine.step()]
    high = engine.add(Request(PROMPT[::-1], 4, GREEDY, priority=2))
    events += _drain(engine)
    order = [event.request for event in events]
    assert order.index(high) < len(order) - 1 - order[::-1].index(low)
    assert order[-1] == low
    assert tuple(event.token.id for event in events if event.request == low) == wanted.ids
    assert engine.stats.preempted == 1


def test_prompts_are_read_by_turns_so_that_a_long_one_holds_up_nobody(tiny):
    engine = Engine(tiny, sequences=4, chunk=16, context=1024, prefix_bytes=0)
    long = engine.add(Request(tuple(range(40)) * 12, 2, GREEDY))
    short = engine.add(Request(PROMPT[:6], 2, GREEDY))
    order = [event.request for event in _drain(engine)]
    assert order.index(short) < order.index(long)


def test_a_prompt_can_be_scored(tiny):
    for chunk in (7, 512):
        engine = Engine(tiny, sequences=1, chunk=chunk, context=256)
        for _ in range(2):
            answer = engine.run(Request(PROMPT, 2, GREEDY, prompt_logprobs=2))
            whole = _whole_logp(tiny, PROMPT[:1], PROMPT[1:])
            told = torch.tensor([token.logp for token in answer.prompt])
            assert [token.id for token in answer.prompt] == list(PROMPT[1:])
            assert torch.allclose(told, whole[range(20), list(PROMPT[1:])], atol=1e-4)
            assert [len(token.alternatives) for token in answer.prompt] == [2] * 20
            best = whole.topk(2).indices.tolist()
            assert [[one.id for one in token.alternatives] for token in answer.prompt] == best


def test_alternatives_are_the_most_probable_tokens(tiny):
    answer = Engine(tiny, **SOLO).run(Request(PROMPT, 12, Sampling(seed=3), logprobs=3))
    whole = _whole_logp(tiny, PROMPT, answer.ids).topk(3)
    assert [[one.id for one in row] for row in answer.alternatives] == whole.indices.tolist()


@pytest.mark.parametrize("drafts", [0, 2])
def test_penalties_and_bias_change_what_is_drawn_and_not_what_the_model_says(drafting, drafts):
    plain = Engine(drafting, **SOLO).run(Request(PROMPT, 40, GREEDY))
    most = max(set(plain.ids), key=plain.ids.count)
    sampling = Sampling(0, repetition=1.3, frequency=0.5, bias=((most, -100.0),))
    engine = Engine(drafting, context=512, sequences=3, drafts=drafts, adapt=False)
    for answer in engine.generate([Request(PROMPT, 40, sampling)] * 3):
        assert most not in answer.ids
        whole = _whole_logp(drafting, PROMPT, answer.ids)
        own = whole[range(40), list(answer.ids)]
        assert torch.allclose(torch.tensor(answer.logps), own, atol=1e-4)
        assert max(answer.sampler_logps) == 0.0


@pytest.mark.parametrize(("drafts", "sequences"), [(0, 1), (2, 1), (2, 6)])
@pytest.mark.parametrize("tokens", [0, 1, 7, 64, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("grace", [0, 5])
def test_a_thought_is_as_long_as_its_budget_and_the_answer_follows(
    drafting, tokens, grace, drafts, sequences
):
    opening, closing = 1, 2
    budget = Budget(opening, closing, tokens, grace, frozenset({30, 31}), (7, 8))
    forbidden = ((opening, -100.0), (closing, -100.0))
    engine = Engine(drafting, context=2048, sequences=sequences, drafts=drafts, adapt=False)
    for answer in engine.generate(
        [
            Request(
                (*PROMPT, opening),
                tokens + 40,
                Sampling(1.0, seed=seed, bias=forbidden),
                budget=budget,
            )
            for seed in range(sequences)
        ]
    ):
        place = answer.ids.index(closing)
        assert answer.ids[place - 2 : place] == (7, 8)
        assert tokens <= place - 2 <= tokens + grace
        assert len(answer.ids) == tokens + 40
        assert answer.usage.cut
        assert answer.usage.thought == place - 2


@pytest.mark.parametrize("drafts", [0, 2])
def test_a_thought_can_be_ended_while_it_goes_on(drafting, drafts):
    engine = Engine(drafting, context=512, sequences=2, drafts=drafts, adapt=False)
    never = ((1, -100.0), (2, -100.0))
    number = engine.add(
        Request((*PROMPT, 1), 40, Sampling(seed=1, bias=never), budget=Budget(1, 2))
    )
    with pytest.raises(RequestError, match="without a budget"):
        engine.end_thinking(engine.add(Request(PROMPT, 1)))
    ids = [e.token.id for _ in range(6) for e in engine.step() if e.request == number and e.token]
    assert engine.end_thinking(number)
    rest = [e.token.id for e in _drain(engine) if e.request == number and e.token]
    assert rest[0] == 2
    assert 2 not in ids
    assert len(ids) + len(rest) == 40
    assert not engine.end_thinking(number)


def test_closing_frees_everything(tiny):
    with Engine(tiny, sequences=2, context=256) as engine:
        for _ in range(5):
            engine.add(Request(PROMPT, 40))
        engine.step()
        engine.step()
    stats = engine.stats
    assert engine.unfinished == 0
    assert (stats.free_pages, stats.kept_prefixes) == (stats.pages, 0)


@pytest.mark.slow
@pytest.mark.parametrize("drafts", [0, 2])
def test_two_thousand_steps_with_cancels_leak_and_mix_nothing(drafting, agree, drafts):
    rnd = random.Random(9)
    engine = Engine(
        drafting, context=512, sequences=64, drafts=drafts, adapt=False, kv_tokens=6144, chunk=96
    )
    pool = _random_requests(60, seed=8, most=60)
    alone = {}
    going, tokens, done, cancelled = {}, {}, 0, 0
    solo = Engine(drafting, **SOLO)
    for _ in range(2000):
        while len(going) < 64:
            place = rnd.randrange(len(pool))
            number = engine.add(pool[place])
            going[number], tokens[number] = place, []
        if rnd.random() < 0.3:
            number = rnd.choice(list(going))
            cancelled += engine.cancel(number)
        for event in engine.step():
            if event.token is not None:
                tokens[event.request].append(event.token.id)
            if event.stop_reason is None:
                continue
            place, found = going.pop(event.request), tuple(tokens.pop(event.request))
            if place not in alone:
                alone[place] = solo.run(pool[place]).ids
            if event.stop_reason == "cancelled":
                assert found == alone[place][: len(found)]
            else:
                assert agree(drafting, pool[place].ids, found, alone[place])
                done += 1
    stats = engine.stats
    assert done > 500
    assert cancelled > 100
    assert stats.steps == 2000
    assert stats.added == sum(stats.ended.values()) + len(going)
    assert stats.ended["cancelled"] == cancelled
    engine.close()
    assert engine.stats.free_pages == stats.pages


def test_events_are_plain_data():
    assert Event(3, None, "cancelled") == (3, None, "cancelled", None, None, ())

"""Laws of an engine whose states are fp16: half the memory, and otherwise nothing is different.

Promise: what other tests hold of fp32 holds to the bit here: drafts, neighbours, rows that move,
interruptions whose state is kept. How far log-probabilities are from fp32's is bounded.
"""

import random

import pytest
import torch

from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.engine.sampler import Sampling
from fathom.errors import ConfigError
from fathom.generation import generate
from fathom.ops.layout import Layout

PROMPT = tuple(range(5, 26))
GREEDY = Sampling(temperature=0)
SOLO = {"drafts": 0, "prefix_bytes": 0, "sequences": 1, "context": 512, "state": "fp16"}
BOUND = 0.005
"""How far a log-probability of a model of two Mamba layers may be off; in fp32 it is 3e-6."""


def _requests(count, seed=0, most=40):
    rnd = random.Random(seed)
    return [
        Request(
            tuple(rnd.randrange(48) for _ in range(rnd.randrange(1, 60))),
            rnd.randrange(1, most),
            Sampling(rnd.choice((0.0, 0.7, 1.0)), seed=place),
        )
        for place in range(count)
    ]


def _told(answers):
    return [(answer.ids, answer.logps) for answer in answers]


@pytest.fixture(scope="module")
def apart(drafting):
    """Requests, and what each is answered by the plainest engine."""
    requests, engine = _requests(12), Engine(drafting, **SOLO)
    return requests, [engine.run(request) for request in requests]


@pytest.mark.parametrize(("drafts", "sequences"), [(0, 5), (0, 12), (1, 1), (2, 5), (3, 12)])
def test_drafts_and_neighbours_change_no_bit(drafting, apart, drafts, sequences):
    requests, alone = apart
    # prompts are read whole, as alone: how they are cut decides the last digits of what is rounded
    config = {"sequences": sequences, "drafts": drafts, "adapt": False, "chunk": 4096}
    engine = Engine(drafting, context=512, prefix_bytes=0, readers=16, state="fp16", **config)
    assert _told(engine.generate(requests)) == _told(alone)
    if drafts:
        assert sum(engine.stats.drafted) > sum(engine.stats.accepted) > 0


@pytest.mark.parametrize("drafts", [0, 2])
def test_an_interruption_that_keeps_the_state_changes_no_bit(drafting, drafts):
    wanted = Engine(drafting, **SOLO).run(Request(PROMPT, 30, GREEDY))
    engine = Engine(drafting, **{**SOLO, "drafts": drafts, "adapt": False})
    low = engine.add(Request(PROMPT, 30, GREEDY))
    events = [event for _ in range(4) for event in engine.step()]
    engine.add(Request(PROMPT[::-1], 4, GREEDY, priority=2))
    while engine.unfinished:
        events += engine.step()
    own = [event.token for event in events if event.request == low and event.token is not None]
    assert engine.stats.preempted == 1
    assert tuple(token.id for token in own) == wanted.ids
    assert tuple(token.logp for token in own) == wanted.logps


def test_a_prompt_that_is_remembered_is_answered_with_the_same_bits(drafting):
    engine = Engine(drafting, **{**SOLO, "prefix_bytes": 1 << 24})
    one, other = (engine.run(Request(PROMPT, 20, GREEDY)) for _ in range(2))
    assert other.usage.reused == len(PROMPT)
    assert _told([one]) == _told([other])


def test_rows_take_half_and_what_is_kept_for_reuse_is_counted_as_it_is(drafting):
    wide, half = (Engine(drafting, **{**SOLO, "state": kind}) for kind in ("fp32", "fp16"))
    tails = sum(tail.nbytes for tail, _ in filter(None, half._slots.read(0).layers))
    assert wide._slots.state_bytes - tails == 2 * (half._slots.state_bytes - tails) > 0
    engine = Engine(drafting, **{**SOLO, "prefix_bytes": 1 << 24})
    engine.run(Request(PROMPT, 2, GREEDY))
    assert engine.stats.kept_prefixes == 1
    assert engine.stats.kept_bytes == wide._slots.state_bytes


@pytest.mark.parametrize("drafts", [0, 2])
def test_log_probabilities_are_near_those_of_training(drafting, drafts):
    off = []
    for seed in range(4):
        answer = Engine(drafting, **{**SOLO, "drafts": drafts, "adapt": False}).run(
            Request(PROMPT, 60, Sampling(seed=seed))
        )
        ids = torch.tensor([*PROMPT, *answer.ids])
        with torch.no_grad():
            logits = drafting.logits(drafting(ids, Layout.of([len(ids)])))
        whole = torch.log_softmax(logits, -1)[len(PROMPT) - 1 : -1]
        off.append((whole[range(60), list(answer.ids)] - torch.tensor(answer.logps)).abs())
    assert 1e-5 < torch.cat(off).max() < BOUND
    assert torch.cat(off).mean() < BOUND / 20


@pytest.mark.slow
@pytest.mark.parametrize("drafts", [0, 2])
def test_what_was_learned_is_answered_with_everything_at_work(learned, drafts):
    config = {"drafts": drafts, "adapt": False, "chunk": 13, "sequences": 4, "context": 1024}
    engine = Engine(learned.model, state="fp16", **config)
    prompts = [
        [
            {"role": "system", "content": learned.system},
            {"role": "user", "content": learned.ask(thing)},
        ]
        for thing, _, _ in learned.facts
    ]
    answers = generate(engine, learned.text, prompts, max_tokens=80, temperature=0.0)
    assert [(a.reasoning, a.content) for a in answers] == [fact[1:] for fact in learned.facts]
    assert engine.stats.hits > 0


def test_another_type_is_refused(drafting):
    with pytest.raises(ConfigError, match="fp16"):
        Engine(drafting, state="bf16")

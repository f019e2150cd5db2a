"""Laws of every pair of the engine's features: together they do what each does alone.

Promise: one case a pair, on a model that has learned its answers, so that drafts come true,
thoughts end and grammars bite. Each case compares with the plainest engine (one request at a time,
nothing drafted, remembered or cut) and looks that both features were really at work.
"""

import itertools
import json
import re
from typing import ClassVar

import pytest

from fathom.engine.engine import Engine
from fathom.engine.grammar import Compiler, Grammar, Vocabulary
from fathom.engine.request import Request
from fathom.engine.sampler import Sampling
from fathom.generation import generate, thinking_budget

pytestmark = pytest.mark.slow

PLAIN = {"drafts": 0, "prefix_bytes": 0, "sequences": 1, "chunk": 4096, "context": 1024}


class Hooked(Engine):
    """An engine in which things happen before given steps."""

    def __init__(self, model, hooks, **config):
        super().__init__(model, **config)
        self.hooks, self.number, self.told = hooks, 0, []

    def step(self):
        for hook in self.hooks:
            hook(self, self.number)
        self.number += 1
        events = super().step()
        self.told += events
        return events


def conversation(learned, thing):
    asked: ClassVar = {"role": "user", "content": learned.ask(thing)}
    return [{"role": "system", "content": learned.system}, asked]


def colours(learned):
    return [colour for _, _, colour in learned.facts]


class Feature:
    """What a feature asks of requests and engine, and how it shows that it was at work."""

    asked: ClassVar = {}
    config: ClassVar = {}
    prompts = 1

    def requests(self, learned):
        return dict(self.asked)

    def hook(self, engine, number):
        """Before a step."""

    def check(self, engine, answers, learned):
        """Raise unless it was at work."""


class WithBudget(Feature):
    def requests(self, learned):
        return {"budget": thinking_budget(learned.text, 5, grace=3, message=".")}

    def check(self, engine, answers, learned):
        for answer in answers:
            if answer.stop_reason != "cancelled" and answer.stop_string is None:
                assert answer.usage.cut
                assert answer.usage.thought <= 8


class WithDrafts(Feature):
    config: ClassVar = {"drafts": 2, "adapt": False}

    def check(self, engine, answers, learned):
        assert sum(engine.stats.accepted) > 0


class WithGrammar(Feature):
    def requests(self, learned):
        vocabulary = Vocabulary.of(
            learned.text.tokenizer.json, learned.text.stop_ids, learned.model.config.vocab
        )
        schema = Grammar.json_schema({"enum": colours(learned)})
        return {"grammar": Compiler(vocabulary).compile(schema)}

    def check(self, engine, answers, learned):
        for answer in answers:
            if answer.stop_reason == "stop" and answer.stop_string is None:
                assert json.loads(answer.content) in colours(learned)
            else:
                assert answer.stop_reason == "cancelled" or answer.stop_string is not None


class WithPrefix(Feature):
    config: ClassVar = {"prefix_bytes": 1 << 26}
    prompts = 3

    def check(self, engine, answers, learned):
        assert engine.stats.hits > 0
        assert engine.stats.reused_tokens >= 20


class WithChunks(Feature):
    config: ClassVar = {"chunk": 13}

    def check(self, engine, answers, learned):
        assert engine.stats.steps > len(learned.text.prompt(conversation(learned, "sky"))) // 13


class WithPreemption(Feature):
    """Requests of higher priority come in twice: one takes the row, later ones all the pages."""

    config: ClassVar = {"sequences": 1, "kv_tokens": 1152, "context": 1024}

    def hook(self, engine, number):
        if number in (4, 9):
            engine.add(Request(tuple(range(40, 60)), 3, Sampling(0), priority=1))

    def check(self, engine, answers, learned):
        assert engine.stats.preempted >= 1


class WithCancel(Feature):
    """Strangers are cancelled at every stage, and so is the second of the own requests."""

    prompts = 2
    config: ClassVar = {"sequences": 3}

    def hook(self, engine, number):
        if number == 0:
            self.strangers = [engine.add(Request((50 + i,) * 30, 99)) for i in range(3)]
        elif number in (1, 3, 5):
            engine.cancel(self.strangers.pop())
        elif number == 7:
            mine = sorted(live.number for live in engine._scheduler)
            if len(mine) > 1:
                engine.cancel(mine[-1])

    def check(self, engine, answers, learned):
        assert engine.stats.ended["cancelled"] >= 3
        assert not self.strangers


class WithBatch(Feature):
    prompts = 5
    config: ClassVar = {"sequences": 4}

    def check(self, engine, answers, learned):
        assert len(answers) >= 5


class WithSeeds(Feature):
    asked: ClassVar = {"temperature": 1.3, "seed": 77}


class WithLogprobs(Feature):
    asked: ClassVar = {"logprobs": 3}

    def check(self, engine, answers, learned):
        for answer in answers:
            assert len(answer.alternatives) == len(answer.ids)
            assert all(len(one) == 3 for one in answer.alternatives)


class WithStops(Feature):
    asked: ClassVar = {"stop": [".", "ligh"]}

    def check(self, engine, answers, learned):
        ended = [answer for answer in answers if answer.stop_reason != "cancelled"]
        assert ended
        for answer in ended:
            assert answer.stop_string in (".", "ligh")
            assert answer.stop_string not in answer.reasoning + answer.content


FEATURES = {
    "budget": WithBudget,
    "drafts": WithDrafts,
    "grammar": WithGrammar,
    "prefix": WithPrefix,
    "chunks": WithChunks,
    "preemption": WithPreemption,
    "cancel": WithCancel,
    "batch": WithBatch,
    "seeds": WithSeeds,
    "logprobs": WithLogprobs,
    "stops": WithStops,
}
PAIRS = list(itertools.combinations(FEATURES, 2))


def test_there_are_fifty_five_pairs():
    assert len(PAIRS) == 55


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=[f"{one}-{other}" for one, other in PAIRS])
def test_a_pair_of_features_does_what_each_does_alone(learned, agree, one, other):
    features = [FEATURES[one](), FEATURES[other]()]
    asked: ClassVar = {"max_tokens": 40, "temperature": 0.0}
    config: ClassVar = {**PLAIN}
    for feature in features:
        asked |= feature.requests(learned)
        config |= feature.config
    if {"batch", "preemption"} <= {one, other}:
        config["sequences"] = 2
    count = max(feature.prompts for feature in features)
    prompts = [conversation(learned, thing) for thing, _, _ in learned.facts[:count]]

    wanted = [
        generate(Engine(learned.model, **PLAIN), learned.text, prompt, **_seeded(asked, place))[0]
        for place, prompt in enumerate(prompts)
    ]
    engine = Hooked(learned.model, [feature.hook for feature in features], **config)
    found = generate(engine, learned.text, prompts, **asked)

    for prompt, mine, theirs in zip(prompts, found, wanted, strict=True):
        ids = learned.text.prompt(prompt)
        if mine.stop_reason == "cancelled":
            assert "cancel" in (one, other)
            assert mine.ids == theirs.ids[: len(mine.ids)]
            continue
        assert agree(learned.plain, ids, mine.ids, theirs.ids)
        if mine.ids == theirs.ids:
            assert mine.logps == pytest.approx(theirs.logps, abs=1e-4)
            assert (mine.content, mine.reasoning) == (theirs.content, theirs.reasoning)
            assert mine.stop_reason == theirs.stop_reason
            assert mine.stop_string == theirs.stop_string
    for feature in features:
        feature.check(engine, found, learned)
    _nothing_is_left(engine)


def test_every_plain_answer_is_what_was_taught(learned):
    answers = generate(
        Engine(learned.model, **PLAIN),
        learned.text,
        [conversation(learned, thing) for thing, _, _ in learned.facts],
        max_tokens=80,
        temperature=0.0,
    )
    assert [answer.content for answer in answers] == colours(learned)
    assert [answer.reasoning for answer in answers] == [thought for _, thought, _ in learned.facts]
    assert all(re.fullmatch("[a-z]+", answer.content) for answer in answers)


def _seeded(asked, place):
    """What `generate` gives the prompt at a place of several."""
    return {**asked, "seed": asked.get("seed", 0) + place}


def _nothing_is_left(engine):
    """When all have ended, only what is kept for reuse holds pages."""
    while engine.unfinished:
        engine.step()
    engine.forget()
    assert engine.stats.free_pages == engine.stats.pages
    assert engine.stats.running == engine.stats.reading == engine.stats.waiting == 0

"""The engine: many requests at once, by the model that also trains.

Promise: `step` is synchronous and returns what it brought; between steps any request may be added,
cancelled or told to end its thought. A request's tokens do not depend on its neighbours, on how its
prompt was cut, on drafts, on what was remembered of other prompts or on interruptions, up to the
order of sums in reading. A step gives every running request its next token, or several where drafts
came true, and reads a piece of the prompts that are next. The engine speaks token ids; text is
`generation.py`'s. Turns are `scheduler.py`'s, calls of the model `runner.py`'s, memory is
`pages.py`'s.
"""

import copy
import re
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self

from fathom.config.engine import EngineConfig
from fathom.engine.draft import Depth, Drafter
from fathom.engine.draws import Drawn, draw_now
from fathom.engine.live import Live
from fathom.engine.pages import Slots, pages_for
from fathom.engine.prefix import PrefixCache
from fathom.engine.reading import Reading
from fathom.engine.request import Completion, Event, Request, StopReason, Token
from fathom.engine.runner import Runner
from fathom.engine.scheduler import Scheduler
from fathom.engine.stats import Stats
from fathom.errors import RequestError
from fathom.model.nemotron import Nemotron

NO_NUMBER = (
    "The model's logits hold a number that is none (NaN) or infinite, or nothing that its rules "
    "allow, so no token can be drawn. Its weights are damaged, or it was trained at too high a "
    "rate."
)


class Engine:
    """Serves requests with one model, whose weights must not change unless `forget` is called."""

    def __init__(self, model: Nemotron, config: EngineConfig | None = None, **changes: Any) -> None:
        """Make an engine of a model.

        Args:
            model: any; one that is packed (`Nemotron.pack`) is faster.
            config: sizes and habits.
            changes: fields of the config by name, in the place of its own.

        Raises:
            ConfigError: an unknown field, or a value that makes no sense.
        """
        self.model = model
        config = config or EngineConfig()
        self.config = config.replace(**changes) if changes else config
        self._slots = Slots(model, self.config)
        self._prefix = PrefixCache(self._slots, self.config.prefix_bytes)
        self._scheduler = Scheduler(self._slots, self._prefix, self.config)
        drafts = self.config.drafts if self._slots.head is not None else 0
        self._runner = Runner(model, self._slots, drafts)
        self._depth = Depth(drafts, self.config.adapt)
        self._drafter = Drafter(self._runner)
        self._reading = Reading(self._runner, self._scheduler, self._prefix)
        self._lives: dict[int, Live] = {}
        self._ended: list[Event] = []
        self._stats = Stats(drafted=[0] * drafts, accepted=[0] * drafts)
        self._deadlines = 0

    @property
    def unfinished(self) -> int:
        """Requests that have not ended, and ends that no step has told of yet."""
        return len(self._lives) + len(self._ended)

    @property
    def stats(self) -> Stats:
        """What it has done so far, and how things stand."""
        now, scheduler = copy.deepcopy(self._stats), self._scheduler
        now.waiting, now.reading = len(scheduler.waiting), len(scheduler.reading)
        now.running, now.preempted = len(scheduler.running), scheduler.preempted
        now.pages, now.free_pages = self._slots.pool.count, self._slots.pool.free
        now.kept_prefixes, now.kept_bytes = len(self._prefix), self._prefix.bytes
        now.evicted = self._prefix.evicted
        return now

    @property
    def why_not_recorded(self) -> str | None:
        """Why steps run through Python, in words; None: they are replayed, or none has run."""
        return self._runner.why_not

    def add(self, request: Request) -> int:
        """Take a request in; its number, under which events speak of it.

        Raises:
            RequestError: the model cannot serve it, or the engine will never have room for it.
        """
        request.check(self.model.config.vocab, self.config.context)
        spare = self._depth.most + 1
        if pages_for(len(request.ids) + request.max_tokens + spare) > self._slots.pool.count:
            raise RequestError(
                f"The request may need {len(request.ids) + request.max_tokens} tokens of keys and "
                f"values, more than the engine has in all. Raise kv_tokens."
            )
        number = self._stats.added
        self._stats.added += 1
        live = Live(number, request, self.model.config.vocab)
        self._lives[number] = live
        self._deadlines += request.deadline is not None
        self._scheduler.wait(live)
        return number

    def cancel(self, number: int) -> bool:
        """End a request as it is, its memory freed at once; False: it had ended.

        The next step tells of it, without a token.
        """
        live = self._lives.get(number)
        if live is not None:
            self._end(live, "cancelled")
        return live is not None

    def end_thinking(self, number: int) -> bool:
        """Let a request end its thought now and answer; False: it has ended, or is not thinking.

        Raises:
            RequestError: the request does not say what a thought is (it has no `budget`).
        """
        live = self._lives.get(number)
        if live is None:
            return False
        if live.thoughts is None:
            raise RequestError(
                f"Request {number} was added without a budget, so the engine does not know its "
                f"tags. Give it a Budget; without a limit it only names them."
            )
        inside = live.thoughts.inside
        live.thoughts.end()
        return inside

    def step(self) -> list[Event]:
        """Go one step on; what it brought, each request's events in order."""
        began = time.perf_counter()
        events, self._ended = self._ended, []
        if self._deadlines:
            self._expire()
            events += self._ended
            self._ended = []
        self._scheduler.admit()
        if not (self._scheduler.running or self._scheduler.reading):
            return events
        self._runner.look()
        if self._scheduler.running:
            events += self._answer()
        if self._scheduler.reading:
            events += self._read()
        self._stats.steps += 1
        self._stats.step_seconds += time.perf_counter() - began
        return events

    def stream(self, request: Request) -> Iterator[Token]:
        """Yield one request's tokens as they come; the request is checked at once.

        Other requests that were added go on beside it, but their events are lost: for several at a
        time use `step`. Leaving the iterator early cancels the request.
        """
        return self._streamed(self.add(request))

    def run(self, request: Request) -> Completion:
        """Answer one request."""
        return self.generate([request])[0]

    def generate(
        self,
        prompts: Sequence[Request | Sequence[int]],
        *,
        progress: Callable[[int, Completion], None] | None = None,
    ) -> list[Completion]:
        """Answer requests, or plain prompts of token ids, in any number; in their order.

        Args:
            prompts: requests, or token ids with which a request of the usual settings is made.
            progress: called with its place and its answer whenever one has ended.

        Raises:
            RequestError: one of them cannot be served; then none has begun.
        """
        requests = [p if isinstance(p, Request) else Request(tuple(p)) for p in prompts]
        for request in requests:
            request.check(self.model.config.vocab, self.config.context)
        places = {self.add(request): place for place, request in enumerate(requests)}
        tokens: list[list[Token]] = [[] for _ in requests]
        scored: list[tuple[Token, ...]] = [()] * len(requests)
        done: list[Completion | None] = [None] * len(requests)
        try:
            while any(one is None for one in done):
                for event in self.step():
                    place = places.get(event.request)
                    if place is None:
                        continue
                    if event.token is not None:
                        tokens[place].append(event.token)
                        scored[place] = scored[place] or event.prompt
                    if event.stop_reason is not None:
                        if event.stop_reason == "error":
                            raise RequestError(event.error or NO_NUMBER)
                        answer = Completion.of(
                            tokens[place], event.stop_reason, event.usage, scored[place]
                        )
                        done[place] = answer
                        if progress is not None:
                            progress(place, answer)
        finally:
            for number in places:
                self.cancel(number)
        return [one for one in done if one is not None]

    def forget(self) -> None:
        """Keep nothing of earlier prompts: the model's weights have changed.

        Requests that run go on with what they have; add none before this where that matters.
        """
        self._prefix.clear()

    def close(self) -> None:
        """Cancel every request and free what they hold."""
        for number in list(self._lives):
            self.cancel(number)
        self._ended = []
        self.forget()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self) -> list[Event]:
        """Give every running request its next token, or tokens."""
        scheduler = self._scheduler
        depth = self._depth.choose(scheduler.running)
        for live in list(scheduler.running):
            if live.slot is not None:
                scheduler.room(live, live.seen + depth + 1)
        lives = list(scheduler.running)
        if not lives:
            return []
        began = time.perf_counter()
        if depth:
            events, usual = self._drafted(lives, depth)
        else:
            drawn, usual = self._runner.decode(lives), True
            self._stats.model_seconds += time.perf_counter() - began
            events = [self._take(live, drawn, row) for row, live in enumerate(lives)]
            if self._depth.most:
                self._drafter.passed(lives, self._depth.keeping)
        if self._depth.watching:
            seconds = time.perf_counter() - began
            self._depth.learn(
                len(lives), depth, len(events), seconds, steady=self._runner.steady, usual=usual
            )
        self._stats.answered_tokens += len(events)
        for live in lives:
            if live.stop_reason is not None:
                self._gone(live)
        return events

    def _drafted(self, lives: list[Live], depth: int) -> tuple[list[Event], bool]:
        """A step with drafts; whether it was like any other, so that its time says something."""
        began = time.perf_counter()
        late = self._drafter.propose(lives, depth)
        drawn = self._runner.verify(lives, depth)
        self._stats.model_seconds += time.perf_counter() - began
        events, counts = [], []
        for at, live in enumerate(lives):
            row, drafts = at * (depth + 1), live.drafts[:depth]
            came = 0
            live.drafted += depth
            while True:
                live.accepted += came > 0
                events.append(self._take(live, drawn, row + came))
                came += 1
                if live.stop_reason is not None or came > depth or live.ids[-1] != drafts[came - 1]:
                    break
            counts.append(came)
            if live not in late:
                # what the head says after a gap is no measure of it
                self._depth.count(live, depth, came - 1)
            for place in range(min(came, depth)):
                self._stats.drafted[place] += 1
                self._stats.accepted[place] += place < came - 1
        if any(live.stop_reason is None for live in lives):
            began = time.perf_counter()
            self._drafter.settle(lives, depth, counts)
            self._stats.model_seconds += time.perf_counter() - began
        return events, not late

    def _take(self, live: Live, drawn: Drawn, row: int) -> Event:
        """Make the drawn token of a row part of a request's answer."""
        if drawn.ids[row] < 0:
            live.stop_reason = "error"
            return Event(live.number, None, "error", live.usage(), live.fault or NO_NUMBER)
        token = live.take(
            drawn.ids[row],
            drawn.logps[row],
            drawn.sampler_logps[row],
            drawn.alternatives.get(row, ()),
        )
        if token.stop_reason is None:
            return Event(live.number, token)
        return Event(live.number, token, token.stop_reason, live.usage(), live.fault)

    def _read(self) -> list[Event]:
        """Read a piece of the prompts; draw the first token where one is read whole."""
        began = time.perf_counter()
        read, finished, hidden_SD = self._reading.step()
        self._stats.read_tokens += read
        for live in finished:
            if not live.answered:
                self._stats.prompt_tokens += len(live.prompt)
                self._stats.reused_tokens += live.reused
                self._stats.hits += live.reused > 0
                if live.miss is not None:
                    self._stats.misses[re.sub(r"\d+", "n", live.miss)] += 1
        fresh = [live for live in finished if not live.answered]
        logits_SV = self._runner.logits(hidden_SD) if hidden_SD is not None else None
        self._stats.model_seconds += time.perf_counter() - began
        events = []
        if fresh and logits_SV is not None:
            drawn = draw_now(logits_SV, fresh)
            for row, live in enumerate(fresh):
                event = self._take(live, drawn, row)
                events.append(event._replace(prompt=tuple(live.scored)) if live.scored else event)
            self._stats.answered_tokens += len(fresh)
        for live in finished:
            if live.stop_reason is not None:
                self._gone(live)
            else:
                self._scheduler.run(live)
        return events

    def _expire(self) -> None:
        """End the requests whose deadlines have passed."""
        now = time.monotonic()
        for live in list(self._lives.values()):
            if live.expired(now):
                self._end(live, "deadline")

    def _end(self, live: Live, reason: StopReason) -> None:
        """End a request between steps."""
        live.stop_reason = reason
        self._ended.append(Event(live.number, None, reason, live.usage()))
        self._gone(live)

    def _gone(self, live: Live) -> None:
        """Free what an ended request holds."""
        assert live.stop_reason is not None
        self._scheduler.leave(live)
        del self._lives[live.number]
        self._deadlines -= live.request.deadline is not None
        self._stats.ended[live.stop_reason] += 1
        self._stats.cut += live.thoughts is not None and live.thoughts.cut

    def _streamed(self, number: int) -> Iterator[Token]:
        """The tokens of a request that was added."""
        try:
            while number in self._lives:
                for event in self.step():
                    if event.request != number:
                        continue
                    if event.error is not None:
                        raise RequestError(event.error)
                    if event.token is not None:
                        yield event.token
        finally:
            self.cancel(number)
            self._ended = [event for event in self._ended if event.request != number]


__all__ = ["Engine"]

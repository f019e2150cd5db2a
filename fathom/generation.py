"""Text in, text out: prompts become requests, tokens become thoughts, answers and calls.

Promise: what comes back says what was thought, what was answered and how probable every token was;
text that streams is the text that comes at once. Tokens are the engine's (`engine/engine.py`),
templates and stop strings the text room's. A package cannot offer a function and a file of one
name, so `fathom.generate` lives in a file that is called otherwise.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from fathom.config.model import ModelConfig
from fathom.engine.budget import Budget
from fathom.engine.engine import Engine
from fathom.engine.grammar import Compiled
from fathom.engine.request import Alternative, Request, StopReason, Token, Usage
from fathom.engine.request import Event as EngineEvent
from fathom.engine.sampler import Sampling
from fathom.errors import RequestError
from fathom.model.nemotron import Nemotron
from fathom.text import Content, Event, PlainRouter, Reasoning, StreamRouter, Text, ToolCall, merged
from fathom.text.chat import Thinking

Messages = Sequence[Mapping[str, Any]]
Prompt = str | Messages

MOST, STATE_BYTES = 128, 1 << 30
"""Most prompts that are answered side by side, and most bytes of recurrent state they may hold."""


@dataclass(frozen=True)
class Answer:
    """One answer, whole."""

    reasoning: str
    """What the model thought."""
    content: str
    """What it answered."""
    tool_calls: tuple[ToolCall, ...]
    """Which tools it called."""
    ids: tuple[int, ...]
    """Its tokens, a stop token counted."""
    logps: tuple[float, ...]
    """Log-probability of each by the model's own distribution."""
    stop_reason: StopReason
    """A stop token or a stop string ended it ("stop"), or `max_tokens` did ("length")."""
    stop_string: str | None
    """The stop string that ended it, if one did."""
    tokens_per_second: float
    """Its tokens over the time it took, the prompt's reading and neighbours' work included."""
    alternatives: tuple[tuple[Alternative, ...], ...] = ()
    """The most probable tokens at each place, if asked for."""
    usage: Usage | None = None
    """Tokens read, remembered, thought and drafted."""


@overload
def generate(
    model: Nemotron | Engine,
    text: Text,
    prompts: Prompt | Sequence[Prompt],
    *,
    max_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    top_k: int = ...,
    min_p: float = ...,
    seed: int = ...,
    thinking: Thinking = ...,
    tools: Sequence[Mapping[str, Any]] | None = ...,
    stop: Sequence[str] = ...,
    budget: Budget | int | None = ...,
    grammar: Compiled | None = ...,
    logprobs: int = ...,
    chat: bool = ...,
    told: Callable[[int, Answer], None] | None = ...,
    stream: Literal[False] = ...,
) -> list[Answer]: ...


@overload
def generate(
    model: Nemotron | Engine,
    text: Text,
    prompts: Prompt | Sequence[Prompt],
    *,
    max_tokens: int = ...,
    temperature: float = ...,
    top_p: float = ...,
    top_k: int = ...,
    min_p: float = ...,
    seed: int = ...,
    thinking: Thinking = ...,
    tools: Sequence[Mapping[str, Any]] | None = ...,
    stop: Sequence[str] = ...,
    budget: Budget | int | None = ...,
    grammar: Compiled | None = ...,
    logprobs: int = ...,
    chat: bool = ...,
    told: Callable[[int, Answer], None] | None = ...,
    stream: Literal[True],
) -> Iterator[Event | Answer]: ...


def generate(
    model: Nemotron | Engine,
    text: Text,
    prompts: Prompt | Sequence[Prompt],
    *,
    max_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    seed: int = 0,
    thinking: Thinking = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    stop: Sequence[str] = (),
    budget: Budget | int | None = None,
    grammar: Compiled | None = None,
    logprobs: int = 0,
    chat: bool = True,
    told: Callable[[int, Answer], None] | None = None,
    stream: bool = False,
) -> list[Answer] | Iterator[Event | Answer]:
    """Answer one prompt or several.

    Args:
        model: the model, or an engine that serves it and remembers what prompts have in common.
        text: its tokenizer and template.
        prompts: a string (a user's turn), a list of messages (dicts with role and content), or a
            list of such; several are answered side by side, prompt i drawing with `seed` + i.
        max_tokens: most tokens of an answer, its thought included.
        temperature, top_p, top_k, min_p, seed: how tokens are drawn; see `Sampling`.
        thinking: whether to think first; "low" and "medium" ask for short thoughts.
        tools: functions that the model may call.
        stop: strings that end an answer; they are not part of it.
        budget: most tokens of thought, or what `thinking_budget` makes; then the model answers.
        grammar: what the answer looks like once the thought is over (`engine/grammar.py`).
        logprobs: how many of the most probable tokens to tell of at each place.
        chat: False continues a string as it stands, without template and without routing.
        told: called with its place and its answer whenever one has ended.
        stream: iterate over the pieces as they come, the whole `Answer` last; one prompt only.

    Returns one `Answer` a prompt, or the iterator. Raises `RequestError` for a value or a prompt
    that makes no sense, `TextError` for a conversation with faults.
    """
    same: dict[str, Any] = {"max_tokens": max_tokens, "thinking": thinking, "tools": tools}
    same |= {"stop": stop, "budget": budget, "grammar": grammar, "logprobs": logprobs, "chat": chat}
    asked = []
    for place, prompt in enumerate(_listed(prompts)):
        sampling = Sampling(temperature, top_p, top_k, min_p, seed + place)
        asked.append(prepare(text, prompt, sampling=sampling, **same))
    if stream and len(asked) != 1:
        raise RequestError(f"One prompt can be streamed at a time; got {len(asked)}.")
    requests = [request for request, _ in asked]
    engine = model if isinstance(model, Engine) else engine_for(model, requests)
    for request in requests:
        request.check(engine.model.config.vocab, engine.config.context)
    if stream:
        return _streamed(engine, asked)
    return _answered(engine, asked, told)


def prepare(
    text: Text,
    prompt: Prompt,
    *,
    max_tokens: int = 256,
    sampling: Sampling | None = None,
    thinking: Thinking = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    stop: Sequence[str] = (),
    budget: Budget | int | None = None,
    grammar: Compiled | None = None,
    logprobs: int = 0,
    chat: bool = True,
) -> tuple[Request, "Scribe"]:
    """A prompt as a request, and who writes its answer down: for those who step an engine.

    Arguments and errors are those of `generate`.
    """
    if chat:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids = text.prompt(turns, tools=tools, thinking=thinking)
    elif isinstance(prompt, str):
        ids = text.tokenizer.encode(prompt)
    else:
        raise RequestError("With chat=False a prompt is a string, not a list of messages.")
    if isinstance(budget, int) or (budget is None and grammar is not None and chat):
        # A grammar begins where the thought ends; the budget's tags say where that is.
        budget = thinking_budget(text, budget)
    request = Request(
        ids=tuple(ids),
        max_tokens=max_tokens,
        sampling=sampling or Sampling(),
        stop_ids=text.stop_ids,
        budget=budget,
        grammar=grammar,
        logprobs=logprobs,
        boundaries=text.boundaries(ids) if chat else (),
    )
    return request, Scribe(
        text, text.router(ids, tools=tools, stop=stop) if chat else PlainRouter(stop)
    )


def engine_for(model: Nemotron, requests: Sequence[Request]) -> Engine:
    """An engine with just the room that these requests need, side by side as far as it goes."""
    longest = max((len(one.ids) + one.max_tokens for one in requests), default=16)
    sequences = max(1, min(len(requests), group_size(model.config)))
    return Engine(
        model,
        sequences=sequences,
        context=max(16, longest),
        kv_tokens=max(256, 2 * sequences * (longest + 256)),
    )


def thinking_budget(text: Text, tokens: int | None, *, grace: int = 0, message: str = "") -> Budget:
    """A thinking budget in one model's tokens.

    Args:
        text: its tokenizer.
        tokens: most tokens of thought; None: no limit, for `Engine.end_thinking` alone.
        grace: further tokens within which the first line end ends the thought.
        message: what is written before `</think>` where a thought is ended by force.

    Raises:
        TextError: the tokenizer has no `<think>` or `</think>`.
        RequestError: a number that makes no sense.
    """
    tokenizer = text.tokenizer
    return Budget(
        open_id=tokenizer.token_id("<think>"),
        close_id=tokenizer.token_id("</think>"),
        tokens=tokens,
        grace=grace,
        newline_ids=text.newline_ids if grace else frozenset(),
        message=tuple(tokenizer.encode(message)) if message else (),
    )


def group_size(config: ModelConfig) -> int:
    """How many prompts a model of this shape answers side by side."""
    return max(1, min(MOST, STATE_BYTES // max(1, config.state_bytes)))


class Scribe:
    """Writes one answer down from what the engine tells of its request."""

    def __init__(self, text: Text, router: StreamRouter | PlainRouter) -> None:
        self._pieces = text.tokenizer.stream()
        self._router = router
        self._events: list[Event] = []
        self._tokens: list[Token] = []
        self._ended: StopReason | None = None
        self._usage: Usage | None = None
        self._began = time.perf_counter()
        self.over = False
        """Whether nothing will be added; a stop string may come before the request's own end."""

    def hear(self, event: EngineEvent) -> list[Event]:
        """Take in one event of the request; return the pieces of text that are now certain.

        Raises `RequestError` where the engine could not go on.
        """
        if event.error is not None:
            raise RequestError(event.error)
        self._usage = event.usage
        token, reason = event.token, event.stop_reason
        if self.over:
            return []
        pieces: list[Event] = []
        if token is not None:
            self._tokens.append(token)
            # A stop token ends the turn; it is no part of what was said.
            if reason != "stop":
                pieces += self._router.feed(self._pieces.feed(token.id))
        self._ended = reason
        self.over = reason is not None or self._router.stopped is not None
        if self.over:
            pieces += self._router.feed(self._pieces.finish())
            pieces += self._router.finish()
        self._events += pieces
        return pieces

    def answer(self) -> Answer:
        """The whole answer, once the request has ended."""
        assert self.over
        events = merged(self._events)
        seconds = time.perf_counter() - self._began
        return Answer(
            reasoning="".join(e.text for e in events if isinstance(e, Reasoning)),
            content="".join(e.text for e in events if isinstance(e, Content)),
            tool_calls=tuple(e for e in events if isinstance(e, ToolCall)),
            ids=tuple(token.id for token in self._tokens),
            logps=tuple(token.logp for token in self._tokens),
            stop_reason="stop" if self._router.stopped is not None else self._ended or "stop",
            stop_string=self._router.stopped,
            tokens_per_second=len(self._tokens) / max(seconds, 1e-9),
            alternatives=tuple(token.alternatives for token in self._tokens),
            usage=self._usage,
        )


Asked = Sequence[tuple[Request, Scribe]]


def _heard(engine: Engine, asked: Asked) -> Iterator[tuple[int, list[Event], Answer | None]]:
    """Answer every request; yield a place, what came there and, at its end, the whole answer."""
    places = {engine.add(request): place for place, (request, _) in enumerate(asked)}
    left = len(asked)
    try:
        while left:
            for event in engine.step():
                place = places.get(event.request)
                if place is None:
                    continue
                scribe = asked[place][1]
                pieces = scribe.hear(event)
                left -= event.stop_reason is not None
                yield place, pieces, scribe.answer() if event.stop_reason is not None else None
                if scribe.over:
                    engine.cancel(event.request)
    finally:
        for number in places:
            engine.cancel(number)


def _streamed(engine: Engine, asked: Asked) -> Iterator[Event | Answer]:
    """Yield the pieces of an answer, then the answer."""
    for _, pieces, answer in _heard(engine, asked):
        yield from pieces
        if answer is not None:
            yield answer


def _answered(
    engine: Engine, asked: Asked, told: Callable[[int, Answer], None] | None
) -> list[Answer]:
    """Answer every request, as many side by side as the engine takes; in their order."""
    answers: dict[int, Answer] = {}
    for place, _, answer in _heard(engine, asked):
        if answer is not None:
            answers[place] = answer
            if told is not None:
                told(place, answer)
    return [answers[place] for place in range(len(asked))]


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """The prompts as a list, however few were given."""
    if isinstance(prompts, str):
        return [prompts]
    found = list(prompts)
    if found and all(isinstance(one, Mapping) for one in found):
        return [found]  # type: ignore[list-item]
    if any(isinstance(one, Mapping) for one in found):
        raise RequestError(
            "The list mixes messages with prompts. Give one conversation as a list of messages, "
            "or several prompts as a list of strings and of such lists."
        )
    return found  # type: ignore[return-value]


__all__ = [
    "Answer",
    "Messages",
    "Prompt",
    "Scribe",
    "engine_for",
    "generate",
    "group_size",
    "prepare",
    "thinking_budget",
]

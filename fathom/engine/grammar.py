"""Answers that must follow a grammar: which tokens may come next, by the library llguidance.

Promise: allowed tokens alone, up to a stop token, are a text of the grammar; a stop token is
allowed exactly where the text may end; a token that was rolled back was never taken. Control tokens
are no text: a grammar that wants the letters of `<think>` never gets the token of that name. One
that cannot be used is a `RequestError` at once, and none is waited for beyond `Limits.seconds`.

The engine begins a `Matcher` when thinking has ended (`budget.py`), draws under its mask
(`sampler.py`), and rolls it back over refused drafts. A grammar is written in text; what it is
asked and answers are token ids. Keywords of JSON schema that llguidance does not know are errors.
White space between the parts of JSON is free up to `WHITE` characters, lest it go on for ever.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, Self

import numpy as np
import tokenizers
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, grammar_from
from torch import Tensor

from fathom.errors import RequestError, TextError

Kind = Literal["json", "regex", "choice", "lark"]

WHITE = 40
"""Most characters of white space in one gap of JSON: a line end and an indent of nine levels."""

_WORDS = {"json": "JSON schema", "regex": "regular expression", "choice": "list", "lark": "grammar"}
_LONE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like; raises `RequestError` for what cannot be written down."""

    kind: Kind
    """The language of the source."""
    source: str
    """A JSON schema, a regular expression (syntax of Rust's regex crate, no look-around), a JSON
    list of strings, or a grammar in llguidance's variety of Lark."""

    def __post_init__(self) -> None:
        if self.kind not in _WORDS:
            raise RequestError(f"A grammar is json, regex, choice or lark; got {self.kind!r}.")
        if not isinstance(self.source, str) or _LONE.search(self.source):
            raise RequestError(f"A {_WORDS[self.kind]} must be Unicode text; got {self.source!r}.")

    @classmethod
    def json_schema(cls, schema: dict[str, Any] | bool) -> Self:
        """JSON that satisfies a schema, its properties in the schema's order; True: any JSON."""
        return cls("json", _dumped({} if schema is True else schema, "schema"))

    @classmethod
    def json_object(cls) -> Self:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """A text that a regular expression matches from its beginning to its end."""
        return cls("regex", pattern)

    @classmethod
    def choice(cls, choices: Sequence[str]) -> Self:
        """One of several texts."""
        return cls("choice", _dumped(choices, "list"))

    @classmethod
    def lark(cls, source: str) -> Self:
        """A text of a context-free grammar; its first rule is called `start`."""
        return cls("lark", source)


@dataclass(frozen=True)
class Limits:
    """What a grammar may cost; more is a `RequestError`."""

    seconds: float = 5.0
    """Longest that a request waits for its grammar to be compiled."""
    characters: int = 131_072
    """Longest source."""
    depth: int = 64
    """Most objects and lists of a schema that lie one in another."""
    nodes: int = 10_000
    """Most values of all kinds in a schema."""
    choices: int = 4_096
    """Most texts to choose from."""
    lexer_states: int = 50_000
    """Most states of a matcher's automaton while an answer is written, 1 to 2 kB each."""
    kept: int = 64
    """Most compiled grammars that are kept; the one that was asked for longest ago goes first."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A tokenizer as grammars see it; made once a model, shared by all threads."""

    tokenizer: LLTokenizer
    """The bytes of every token, in the library's own form."""
    stop_ids: frozenset[int]
    """Tokens that end an answer."""
    vocab: int
    """Rows of the model's logits; those beyond the tokenizer are never allowed."""
    stops: Tensor
    """The stop tokens as a mask, int32 [ceil(vocab / 32)]."""
    others: Tensor
    """All other tokens of the tokenizer as a mask."""

    @classmethod
    def of(cls, tokenizer_json: str, stop_ids: frozenset[int], vocab: int) -> Self:
        """Read the text of a tokenizer.json (seconds for a large one).

        Raises `TextError` if it is damaged, `RequestError` for a `vocab` that is smaller than the
        tokenizer and for stop ids that are none or no tokens.
        """
        try:
            spelling = _Spelling(json.loads(tokenizer_json))
        # The library raises what it likes for whatever is wrong in the file.
        except Exception as error:
            raise TextError(f"tokenizer.json cannot be used: {error!r}; fetch it again.") from None
        size = len(spelling.tokens)
        if vocab < size:
            raise RequestError(f"{size} tokens exceed the model's {vocab}; give its own tokenizer.")
        if not stop_ids or not all(0 <= token < size for token in stop_ids):
            raise RequestError(f"stop_ids must be some of 0 to {size - 1}; got {set(stop_ids)}.")
        spelling.eos_token_id = min(stop_ids)
        tokenizer = LLTokenizer(TokenizerWrapper(spelling), eos_token=sorted(stop_ids))
        stops, others = _mask(stop_ids, vocab), _mask(range(size), vocab)
        return cls(tokenizer, stop_ids, vocab, stops, others & ~stops)


class Matcher:
    """Where one answer is in its grammar; for one request, and one thread at a time."""

    def __init__(self, vocabulary: Vocabulary, matcher: LLMatcher) -> None:
        """Take a matcher of the library in its first state; `Compiled.matcher` makes one."""
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._taken = 0
        # Once a text is complete the library takes nothing more, so stop tokens are counted here.
        self._stopped = 0
        self._allowed: Tensor | None = None

    @property
    def over(self) -> bool:
        """Whether nothing but a stop token may follow."""
        return not bool((self.allowed() & self._vocabulary.others).any())

    def allowed(self) -> Tensor:
        """The tokens that may come next: bit i of word w is token 32 w + i, int32 [ceil(V / 32)].

        The mask may be shared; do not write into it. Raises `RequestError` where the grammar became
        too large for its limits, or leads nowhere.
        """
        if self._stopped:
            return self._vocabulary.stops
        if self._allowed is None:
            words = bytearray(self._matcher.compute_bitmask())
            self._check()
            mask = torch.zeros_like(self._vocabulary.others)
            given = torch.frombuffer(words, dtype=torch.int32)[: len(mask)]
            mask[: len(given)] = given
            mask &= self._vocabulary.others
            if self._matcher.is_accepting():
                mask |= self._vocabulary.stops
            if not mask.any():
                raise RequestError(
                    "The grammar has come to a place where no token can follow and the text may "
                    "not end; mend the rule that leads there."
                )
            self._allowed = mask
        return self._allowed

    def take(self, token: int) -> bool:
        """Move on by one token; False, and nothing changed, if not allowed. Raises as `allowed`."""
        word, bit = divmod(token, 32)
        if not 0 <= token < self._vocabulary.vocab or not int(self.allowed()[word]) >> bit & 1:
            return False
        if token in self._vocabulary.stop_ids:
            self._stopped += 1
            return True
        taken = self._matcher.try_consume_tokens([token])
        self._check()
        assert taken == 1, f"token {token} is in the mask and was refused"
        self._taken += 1
        self._allowed = None
        return True

    def rollback(self, count: int) -> None:
        """Forget the last `count` tokens that were taken."""
        assert 0 <= count <= self._taken + self._stopped, f"{count} tokens were never taken"
        stops = min(count, self._stopped)
        self._stopped -= stops
        if count > stops:
            self._taken -= count - stops
            self._matcher.rollback(count - stops)
            self._allowed = None

    def forced(self) -> list[int]:
        """Tokens of the text that must come next, as the tokenizer writes it; often none."""
        return [] if self._stopped else list(self._matcher.compute_ff_tokens())

    def _check(self) -> None:
        """Raise `RequestError` if the library gave up, as it does at its limits."""
        if self._matcher.is_error():
            fault = _fault(self._matcher.get_error())
            raise RequestError(f"The grammar leads no further: {fault}. Ask for something simpler.")


@dataclass(frozen=True, eq=False)
class Compiled:
    """A grammar that is ready for any number of requests."""

    vocabulary: Vocabulary
    """Whose tokens it speaks of."""
    first: LLMatcher
    """The library's matcher before the first token; it is only copied."""

    def matcher(self) -> Matcher:
        """A new matcher, which takes microseconds."""
        return Matcher(self.vocabulary, self.first.deep_copy())


class Compiler:
    """Compiles the grammars of one model on threads of its own, and keeps the latest."""

    def __init__(self, vocabulary: Vocabulary, limits: Limits | None = None) -> None:
        """Requests with the same grammar compile it once, as long as it is kept."""
        self.vocabulary, self.limits = vocabulary, limits or Limits()
        self._lock = Lock()
        self._latest: OrderedDict[Grammar, Future[Compiled]] = OrderedDict()
        # Two, so that one slow grammar does not hold up the others.
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="grammar")

    def compile(self, grammar: Grammar) -> Compiled:
        """Return the grammar compiled; any thread may ask. Raises `RequestError`, naming the fault.

        One that takes too long goes on in its thread; only the library's own limits end it.
        """
        _check_size(grammar, self.limits)
        future = self._future(grammar)
        try:
            return future.result(self.limits.seconds)
        except (RequestError, TimeoutError, CancelledError) as error:
            # What is being compiled is kept: it may be there when the request comes again.
            if future.done() or future.cancel():
                with self._lock:
                    self._latest.pop(grammar, None)
            if isinstance(error, RequestError):
                raise
            raise RequestError(
                f"The {_WORDS[grammar.kind]} took more than {self.limits.seconds:g} s to compile. "
                "Ask for something simpler, or try again when less is going on."
            ) from None

    def close(self) -> None:
        """Let the threads end; nothing can be compiled any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _future(self, grammar: Grammar) -> Future[Compiled]:
        """What compiles this grammar, or has."""
        with self._lock:
            if grammar not in self._latest:
                self._latest[grammar] = self._threads.submit(self._build, grammar)
            self._latest.move_to_end(grammar)
            future = self._latest[grammar]
            if len(self._latest) > self.limits.kept:
                self._latest.popitem(last=False)
            return future

    def _build(self, grammar: Grammar) -> Compiled:
        """Compile; the first mask is part of it, since it may be what is slow or impossible."""
        library = LLParserLimits(max_lexer_states=self.limits.lexer_states, verbose_errors=False)
        definition, tokenizer = _definition(grammar), self.vocabulary.tokenizer
        first = LLMatcher(tokenizer, definition, log_level=0, limits=library)
        if first.is_error():
            words, fault = _WORDS[grammar.kind], _fault(first.get_error())
            raise RequestError(f"The {words} cannot be used: {fault}. Mend or simplify it.")
        Matcher(self.vocabulary, first).allowed()
        return Compiled(self.vocabulary, first)


class _Spelling:
    """The bytes of every token and how text is split into them, as llguidance asks for it.

    Handed the file itself, the library would split text that spells a control token into it.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        vocab, added = data["model"]["vocab"], [token["id"] for token in data["added_tokens"]]
        # The library wants an end here already; it counts as special, whatever it is.
        last = self.eos_token_id = max([*vocab.values(), *added])
        self.bos_token_id = None
        whole = LLTokenizer(json.dumps(data), eos_token=last)
        places = range(last + 1)
        self.tokens = [whole.decode_bytes([token]) for token in places]
        # An added token is one whatever flags the file gives it; so is an id without a token.
        special = {token for token in places if token != last and whole.is_special_token(token)}
        self.special_token_ids = sorted(special.union(added))
        bare = data | {"added_tokens": [], "post_processor": None}
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(bare))
        self._plain.no_truncation()
        self._plain.no_padding()

    def __call__(self, text: str) -> list[int]:
        return list(self._plain.encode(text, add_special_tokens=False).ids)


def _definition(grammar: Grammar) -> str:
    """The grammar as the library reads it."""
    if grammar.kind != "json":
        return grammar_from(grammar.kind, grammar.source)
    # What a schema says about these under "x-guidance" does not count.
    return LLMatcher.grammar_from_json_schema(
        grammar.source,
        overrides={
            "item_separator": ",",
            "key_separator": ":",
            "whitespace_pattern": rf"[\x20\x0A\x0D\x09]{{1,{WHITE}}}",
            "lenient": False,
        },
    )


def _check_size(grammar: Grammar, limits: Limits) -> None:
    """Raise `RequestError` for a grammar over the limits, before it costs anything."""
    words = _WORDS[grammar.kind]
    if len(grammar.source) > limits.characters:
        raise RequestError(
            f"The {words} has {len(grammar.source)} characters; {limits.characters} are allowed."
        )
    if grammar.kind not in ("json", "choice"):
        return
    try:
        data = json.loads(grammar.source)
    except (RecursionError, ValueError) as error:
        raise RequestError(f"The {words} cannot be read as JSON: {error}.") from None
    if grammar.kind == "json":
        _check_schema(data, limits)
        return
    strings = isinstance(data, list) and all(isinstance(text, str) for text in data)
    if not strings or not 1 <= len(data) <= limits.choices:
        given = grammar.source[:80]
        raise RequestError(f"choice takes a list of 1 to {limits.choices} strings; got {given}.")


def _check_schema(schema: Any, limits: Limits) -> None:
    """Raise `RequestError` for a schema of too many values, or too many one in another."""
    if not isinstance(schema, dict):
        raise RequestError("A JSON schema must be an object, or true for any JSON.")
    level, nodes = [schema], 0
    for _ in range(limits.depth + 1):
        nodes += len(level)
        if nodes > limits.nodes:
            raise RequestError(f"The JSON schema holds over {limits.nodes} values; ask for less.")
        holders = [one for one in level if isinstance(one, dict | list)]
        lists = [list(one.values()) if isinstance(one, dict) else one for one in holders]
        level = [value for values in lists for value in values]
        if not level:
            return
    raise RequestError(
        f"The JSON schema is nested deeper than {limits.depth}; name parts of it in $defs."
    )


def _dumped(value: object, words: str) -> str:
    """The value as JSON text."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(f"The {words} cannot be written as JSON: {error}.") from None


def _fault(message: str) -> str:
    """What the library says, in one short line; it adds excerpts, and traces of its own faults."""
    if message.startswith("panic"):
        return "it is too large"
    if message.startswith("NoExtension"):
        return "no token can follow"
    lines = [line.strip() for line in message.splitlines()] or ["the library does not say why"]
    chosen = next((line for line in lines if line.startswith("error: ")), lines[0])
    return chosen.removeprefix("error: ")[:200].rstrip(". ")


def _mask(tokens: Iterable[int], vocab: int) -> Tensor:
    """Tokens as a mask, int32 [ceil(vocab / 32)]."""
    bits_V = np.zeros((vocab + 31) // 32 * 32, dtype=bool)
    bits_V[list(tokens)] = True
    return torch.from_numpy(np.packbits(bits_V, bitorder="little").view("<i4"))


__all__ = ["WHITE", "Compiled", "Compiler", "Grammar", "Kind", "Limits", "Matcher", "Vocabulary"]

"""Laws of fathom/engine/grammar.py: what is made of allowed tokens is a text of the grammar."""

import ast
import json
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.engine.grammar import WHITE, Compiler, Grammar, Limits, Vocabulary
from fathom.errors import RequestError, TextError
from fathom.text import Tokenizer

CORPUS = [
    "The cat sat on the mat, and the dog sat on the log; then both of them thought again.",
    '{"name": "Größe", "values": [1, 20, 300], "ok": true, "none": null, "deep": {"a": []}}',
    "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\n",
]
STOPS = frozenset({2, 11})
THINK = 12

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "size": {"enum": ["small", "large", None]},
        "flags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "id": {"anyOf": [{"type": "null"}, {"type": "string", "pattern": "^[a-f]{4}$"}]},
    },
    "required": ["name", "age", "flags"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "tree": {
            "type": "object",
            "properties": {
                "leaf": {"type": "boolean"},
                "left": {"$ref": "#/$defs/tree"},
                "right": {"$ref": "#/$defs/tree"},
            },
            "required": ["leaf"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/tree",
}
CHOICES = ["yes", "yess", "no", 'a"b\\c', "two\nlines", "é🙂", "<think> the cat", "</s>"]
SUM = 'start: term ("+" term)*\nterm: NUMBER | "(" start ")"\nNUMBER: /[1-9][0-9]{0,2}/\n'
SLOW = {"type": "object", "properties": {f"k{i}": {"type": "string"} for i in range(2500)}}


def is_person(text):
    found = json.loads(text)
    assert list(found) == [name for name in PERSON["properties"] if name in found]
    assert set(PERSON["required"]) <= found.keys()
    assert isinstance(found["name"], str)
    assert len(found["name"]) <= 6
    assert type(found["age"]) is int
    assert 0 <= found["age"] <= 130
    assert found.get("size") in ["small", "large", None]
    assert 1 <= len(found["flags"]) <= 3
    assert all(type(flag) is bool for flag in found["flags"])
    assert found.get("id") is None or re.fullmatch("[a-f]{4}", found["id"])


def is_tree(text):
    pending = [json.loads(text)]
    while pending:
        tree = pending.pop()
        assert type(tree["leaf"]) is bool
        assert tree.keys() <= {"leaf", "left", "right"}
        pending += [tree[side] for side in ("left", "right") if side in tree]


def is_json(text):
    json.loads(text)


def is_object(text):
    assert isinstance(json.loads(text), dict)


def is_choice(text):
    assert text in CHOICES


def is_sum(text):
    ast.parse(text, mode="eval")
    assert re.fullmatch(r"[0-9+()]+", text)


def matches(pattern):
    return lambda text: re.fullmatch(pattern, text)[0]


# \d would be the digits of every script, of which the library knows more than Python.
DATE, CODE, WORDS = (
    "[0-9]{4}-[01][0-9]",
    "([a-c]{2,4}|x)(/[0-9]{1,3})?",
    "(ab|é🙂|\\\\n){1,4}(?:the)?",
)
GRAMMARS = {
    "person": (Grammar.json_schema(PERSON), is_person),
    "tree": (Grammar.json_schema(TREE), is_tree),
    "any JSON": (Grammar.json_schema(True), is_json),
    "any object": (Grammar.json_object(), is_object),
    "date": (Grammar.regex(DATE), matches(DATE)),
    "anchored code": (Grammar.regex(f"^{CODE}$"), matches(CODE)),
    "words": (Grammar.regex(WORDS), matches(WORDS)),
    "choice": (Grammar.choice(CHOICES), is_choice),
    "sum": (Grammar.lark(SUM), is_sum),
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(CORPUS * 3, vocab=640, special_slots=32)


@pytest.fixture(scope="module")
def source(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return (folder / "tokenizer.json").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def vocabulary(source, tokenizer):
    """A model has more rows than its tokenizer has tokens."""
    return Vocabulary.of(source, STOPS, tokenizer.size + 45)


@pytest.fixture(scope="module")
def compiler(vocabulary):
    made = Compiler(vocabulary)
    yield made
    made.close()


def tokens_of(matcher):
    """The allowed tokens, in order."""
    words = enumerate(matcher.allowed().tolist())
    return [32 * place + bit for place, word in words for bit in range(32) if word >> bit & 1]


def state(matcher):
    return matcher.allowed().tolist(), matcher.over, matcher.forced()


def walk(matcher, tokenizer, draw, most=2000):
    """Tokens drawn among the allowed ones until a stop token; ends are a little more likely."""
    taken = []
    for _ in range(most):
        tokens = tokens_of(matcher)
        ends = [i for i in tokens if i in STOPS or tokenizer.decode([i])[:1] in ('"', "]", "}")]
        token = draw.choice(ends if ends and draw.random() < 0.3 else tokens)
        assert matcher.take(token)
        if token in STOPS:
            return taken
        taken.append(token)
    raise AssertionError(f"no end after {tokenizer.decode(taken)!r}")


@pytest.mark.parametrize("name", GRAMMARS)
def test_any_way_through_allowed_tokens_writes_a_text_of_the_grammar(name, compiler, tokenizer):
    grammar, check = GRAMMARS[name]
    compiled = compiler.compile(grammar)
    texts = set()
    for seed in range(25):
        taken = walk(compiled.matcher(), tokenizer, random.Random(seed))
        assert min(taken, default=32) >= 32, "a control token is no text"
        assert max(taken, default=0) < tokenizer.size
        texts.add(tokenizer.decode(taken))
        check(tokenizer.decode(taken))
    assert len(texts) > 3, "the walks should differ"


def test_a_grammar_can_write_every_one_of_its_texts(compiler, tokenizer):
    for text in CHOICES:
        matcher = compiler.compile(Grammar.choice(CHOICES)).matcher()
        ids = tokenizer.encode(text)
        # Where only one text can follow, the mask holds the tokenizer's own spelling of it.
        assert all(matcher.take(token) for token in ids), text
        assert set(tokens_of(matcher)) >= STOPS


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_token_is_taken_exactly_if_the_mask_holds_it(name, compiler, tokenizer, vocabulary):
    matcher = compiler.compile(GRAMMARS[name][0]).matcher()
    draw = random.Random(5)
    for _ in range(8):
        before, tokens = state(matcher), tokens_of(matcher)
        assert matcher.allowed().shape == ((vocabulary.vocab + 31) // 32,)
        for token in range(-1, vocabulary.vocab + 70):
            assert matcher.take(token) is (token in tokens)
            if token in tokens:
                matcher.rollback(1)
            assert state(matcher) == before
        matcher.take(draw.choice([token for token in tokens if token not in STOPS] or [2]))


def test_a_stop_token_is_allowed_exactly_where_the_text_may_end(compiler, tokenizer):
    compiled = compiler.compile(Grammar.choice(CHOICES))
    for seed in range(40):
        matcher, draw, taken = compiled.matcher(), random.Random(seed), []
        while not matcher.over:
            tokens = set(tokens_of(matcher))
            assert tokens & STOPS in (set(), STOPS)
            assert bool(tokens & STOPS) is (tokenizer.decode(taken) in CHOICES)
            taken.append(draw.choice(sorted(tokens - STOPS)))
            matcher.take(taken[-1])
        assert set(tokens_of(matcher)) == STOPS
        assert tokenizer.decode(taken) in CHOICES


def test_after_a_stop_token_only_stop_tokens_come_and_it_can_be_taken_back(compiler, tokenizer):
    matcher = compiler.compile(Grammar.regex("a+")).matcher()
    (letter,) = tokenizer.encode("a")
    assert not matcher.take(2)
    assert matcher.take(letter)
    before = state(matcher)
    assert not matcher.over
    assert matcher.take(11)
    assert (set(tokens_of(matcher)), matcher.over, matcher.forced()) == (STOPS, True, [])
    assert not matcher.take(letter)
    assert matcher.take(2)
    matcher.rollback(2)
    assert state(matcher) == before
    assert matcher.take(letter)


@given(
    st.sampled_from(sorted(GRAMMARS)),
    st.integers(0, 2**32),
    st.lists(st.integers(0, 6), min_size=1, max_size=6),
)
def test_what_was_rolled_back_was_never_taken(compiler, name, seed, drafts):
    compiled = compiler.compile(GRAMMARS[name][0])
    matcher, draw, kept = compiled.matcher(), random.Random(seed), []
    for count in drafts:
        before = state(matcher)
        for _ in range(count):
            assert matcher.take(draw.choice(tokens_of(matcher)))
        matcher.rollback(count)
        assert state(matcher) == before
        kept.append(draw.choice(tokens_of(matcher)))
        assert matcher.take(kept[-1])
    fresh = compiled.matcher()
    assert all(fresh.take(token) for token in kept)
    assert state(fresh) == state(matcher)
    matcher.rollback(len(kept))
    assert state(matcher) == state(compiled.matcher())


def test_rolling_back_more_than_was_taken_is_the_engines_mistake(compiler):
    with pytest.raises(AssertionError, match="never taken"):
        compiler.compile(Grammar.regex("a")).matcher().rollback(1)


@pytest.mark.parametrize("name", GRAMMARS)
def test_forced_tokens_are_allowed_one_after_another(name, compiler, tokenizer):
    compiled = compiler.compile(GRAMMARS[name][0])
    for seed in range(5):
        matcher, draw = compiled.matcher(), random.Random(seed)
        for _ in range(12):
            for token in matcher.forced():
                assert matcher.take(token)
            matcher.take(draw.choice(tokens_of(matcher)))


def test_a_text_without_choice_is_forced_as_the_tokenizer_writes_it(compiler, tokenizer):
    matcher = compiler.compile(Grammar.choice(["<think> the cat sat"])).matcher()
    assert matcher.forced() == tokenizer.encode("<think> the cat sat")
    assert compiler.compile(Grammar.choice(["a", "b"])).matcher().forced() == []


def test_json_ends_even_for_a_model_that_loves_blanks(compiler, tokenizer):
    matcher = compiler.compile(Grammar.json_schema(PERSON)).matcher()
    draw, taken = random.Random(1), []
    while not matcher.over:
        tokens = tokens_of(matcher)
        blank = [i for i in tokens if i not in STOPS and not tokenizer.decode([i]).strip()]
        taken.append(draw.choice(blank or [i for i in tokens if i not in STOPS]))
        matcher.take(taken[-1])
        assert len(taken) < 3000
    text = tokenizer.decode(taken)
    gaps = re.findall(r"[ \n\r\t]+", re.sub(r'"[^"]*"', "text", text))
    assert max(map(len, gaps)) == WHITE
    is_person(text)


def test_a_schema_cannot_loosen_the_rules_of_the_house(compiler, tokenizer):
    schema = {"x-guidance": {"whitespace_pattern": "[ ]{1,1000}"}, "type": "array", "maxItems": 0}
    matcher = compiler.compile(Grammar.json_schema(schema)).matcher()
    assert matcher.take(tokenizer.encode("[")[0])
    blanks = 0
    (blank,) = tokenizer.encode(" ")
    while matcher.take(blank):
        blanks += 1
    assert blanks == WHITE
    lenient = {"x-guidance": {"lenient": True}, "if": {"type": "string"}}
    with pytest.raises(RequestError, match="if"):
        compiler.compile(Grammar.json_schema(lenient))


@pytest.mark.parametrize("special", [True, False])
def test_control_tokens_are_no_text_whatever_their_flags(source, special, tokenizer):
    data = json.loads(source)
    for token in data["added_tokens"]:
        token["special"] = special
    compiler = Compiler(Vocabulary.of(json.dumps(data), STOPS, tokenizer.size))
    matcher = compiler.compile(Grammar.regex(r"(.|\n)*")).matcher()
    tokens = set(tokens_of(matcher))
    assert {token for token in tokens if token < 32} == STOPS
    letters = {tokenizer.encode(letter)[0] for letter in 'aZ0 \n"<é'}
    assert letters < tokens
    assert tokenizer.size - 1 in tokens, "the last token is a merge like any other"
    compiler.close()


def test_a_lark_grammar_may_name_a_control_token(compiler, tokenizer):
    matcher = compiler.compile(Grammar.lark('start: <think> "a"')).matcher()
    assert tokens_of(matcher) == [THINK]
    assert matcher.take(THINK)
    assert tokens_of(matcher) == tokenizer.encode("a")


@pytest.mark.parametrize(
    ("lark", "words"),
    [
        ("start: start", "no token can follow"),
        ("start: <[11]>", "no token can follow"),
        ("start: <[5000]>", "too large: 5000"),
    ],
)
def test_a_grammar_that_leads_nowhere_is_named_before_it_is_used(lark, words, compiler):
    with pytest.raises(RequestError, match=words):
        compiler.compile(Grammar.lark(lark))


def test_a_grammar_that_comes_to_a_dead_end_later_is_named_there(compiler, tokenizer):
    matcher = compiler.compile(Grammar.lark('start: "a" <[11]> "c" | "b"')).matcher()
    assert matcher.take(tokenizer.encode("a")[0])
    with pytest.raises(RequestError, match="no token can follow"):
        matcher.allowed()
    matcher.rollback(1)
    assert matcher.take(tokenizer.encode("b")[0])
    assert set(tokens_of(matcher)) == STOPS


def test_a_matcher_that_grows_too_large_fails_in_words(vocabulary, tokenizer):
    compiler = Compiler(vocabulary, Limits(lexer_states=300))
    matcher = compiler.compile(Grammar.regex("(a|b)*a(a|b){30}")).matcher()
    draw = random.Random(0)
    text = tokenizer.encode("".join(draw.choices("ab", k=2000)))
    with pytest.raises(RequestError, match="too many states"):
        all(matcher.take(token) for token in text)
    compiler.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Grammar.regex("a("), "regular expression cannot be used: unclosed group"),
        (lambda: Grammar.regex("a(?=b)"), "look-around"),
        (lambda: Grammar.regex(r"(a)\1"), "backreferences"),
        (lambda: Grammar.regex(3), "regular expression must be Unicode text; got 3"),
        (lambda: Grammar.regex("\ud800"), "Unicode"),
        (lambda: Grammar.lark("start: a"), 'unknown name: "a"'),
        (lambda: Grammar.lark('x: "a"'), "no start rule"),
        (lambda: Grammar.lark("garbage {{"), "grammar cannot be used"),
        (lambda: Grammar.json_schema({"type": "strin"}), "Invalid type: strin"),
        (lambda: Grammar.json_schema({"not": {"type": "string"}}), '"not"'),
        (lambda: Grammar.json_schema({"$ref": "https://example.org/schema"}), "example.org"),
        (lambda: Grammar.json_schema({"$ref": "#/$defs/a"}), "/\\$defs/a"),
        (lambda: Grammar.json_schema({"pattern": "(", "type": "string"}), "unclosed group"),
        (lambda: Grammar.json_schema(False), "an object, or true"),
        (lambda: Grammar.json_schema([1]), "an object, or true"),
        (lambda: Grammar.json_schema({"x-guidance": {"x": 1}}), "unknown field `x`"),
        (lambda: Grammar.json_schema({"minimum": float("nan")}), "schema cannot be written"),
        (lambda: Grammar.json_schema({"enum": [object()]}), "schema cannot be written"),
        (lambda: Grammar("json", "{"), "cannot be read as JSON"),
        (lambda: Grammar("json", "[" * 100_000), "cannot be read as JSON"),
        (lambda: Grammar("yaml", "a"), "json, regex, choice or lark; got 'yaml'"),
        (lambda: Grammar.choice([]), "1 to 4096 strings"),
        (lambda: Grammar.choice("abc"), "1 to 4096 strings"),
        (lambda: Grammar.choice(["a", 3]), "1 to 4096 strings"),
        (lambda: Grammar.choice({"a"}), "list cannot be written"),
    ],
)
def test_a_grammar_that_cannot_be_used_is_named(make, words, compiler):
    with pytest.raises(RequestError, match=words) as caught:
        compiler.compile(make())
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def nested(depth):
    schema = {"type": "null"}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return Grammar.json_schema(schema)


@pytest.mark.parametrize(
    ("limits", "good", "bad", "words"),
    [
        (Limits(characters=9), Grammar.regex("a" * 9), Grammar.regex("a" * 10), "10 characters"),
        (Limits(depth=5), nested(5), nested(6), "deeper than 5"),
        (
            Limits(nodes=5),
            Grammar.json_schema({"enum": [1, 2, 3]}),
            Grammar.json_schema({"enum": [1, 2, 3, 4]}),
            "over 5 values",
        ),
        (Limits(choices=2), Grammar.choice(["a", ""]), Grammar.choice(["a"] * 3), "1 to 2"),
    ],
)
def test_a_grammar_over_a_limit_is_refused_and_one_at_it_is_not(
    limits, good, bad, words, vocabulary
):
    compiler = Compiler(vocabulary, limits)
    compiler.compile(good)
    with pytest.raises(RequestError, match=words):
        compiler.compile(bad)
    compiler.close()


def test_limits_as_they_come_let_through_what_the_library_can_take(compiler):
    compiler.compile(nested(64))
    with pytest.raises(RequestError, match="deeper than 64"):
        compiler.compile(nested(65))
    alternatives = {"anyOf": [{"type": "object", "properties": {"a": {}}}] * 2}
    for _ in range(9):
        alternatives = {"anyOf": [{"type": "object", "properties": {"a": alternatives}}] * 2}
    with pytest.raises(RequestError):
        compiler.compile(Grammar.json_schema({"allOf": [alternatives] * 2}))


def test_a_slow_grammar_is_not_waited_for_and_is_there_later(vocabulary):
    compiler = Compiler(vocabulary, Limits(seconds=0.01))
    grammar = Grammar.json_schema(SLOW)
    begin = time.perf_counter()
    with pytest.raises(RequestError, match=r"JSON schema took more than 0\.01 s"):
        compiler.compile(grammar)
    compiled = None
    while compiled is None:
        assert time.perf_counter() - begin < 60
        try:
            compiled = compiler.compile(grammar)
        except RequestError:
            # The thread that compiles needs this one's lock of the interpreter now and then.
            time.sleep(0.01)
    assert compiled.matcher().allowed().any()
    compiler.close()


def test_equal_grammars_are_compiled_once_and_the_oldest_is_forgotten(vocabulary):
    compiler = Compiler(vocabulary, Limits(kept=2))
    first, second, third = (Grammar.regex(letter) for letter in "abc")
    kept = compiler.compile(first)
    assert compiler.compile(Grammar.regex("a")) is kept
    compiler.compile(second)
    assert compiler.compile(first) is kept
    compiler.compile(third)
    assert compiler.compile(first) is kept
    compiler.compile(second)
    compiler.compile(third)
    assert compiler.compile(first) is not kept
    compiler.close()


def test_threads_that_ask_for_one_grammar_share_it(vocabulary):
    compiler = Compiler(vocabulary)
    with ThreadPoolExecutor(8) as askers:
        found = list(askers.map(lambda _: compiler.compile(GRAMMARS["person"][0]), range(24)))
    assert len({id(compiled) for compiled in found}) == 1
    compiler.close()


def test_matchers_of_one_grammar_do_not_disturb_each_other(compiler, tokenizer):
    compiled = compiler.compile(Grammar.choice(["ab", "cd"]))
    one, other = compiled.matcher(), compiled.matcher()
    before = state(other)
    assert one.take(tokenizer.encode("a")[0])
    assert state(other) == before == state(compiled.matcher())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"vocab": 100}, RequestError, "the model's 100"),
        ({"stop_ids": frozenset()}, RequestError, "some of 0"),
        ({"stop_ids": frozenset({100_000})}, RequestError, "100000"),
        ({"stop_ids": frozenset({-1})}, RequestError, "-1"),
        ({"tokenizer_json": "{"}, TextError, "cannot be used"),
        ({"tokenizer_json": "{}"}, TextError, "model"),
        ({"tokenizer_json": '{"model": {"vocab": {"a": 0}}}'}, TextError, "added_tokens"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_named(change, error, words, source, tokenizer):
    values = {"tokenizer_json": source, "stop_ids": STOPS, "vocab": tokenizer.size, **change}
    with pytest.raises(error, match=words):
        Vocabulary.of(**values)


@pytest.mark.parametrize("vocab", [288, 300, 320])
def test_a_model_may_have_as_many_rows_as_its_tokenizer_has_tokens(vocab):
    exact = Tokenizer.train(CORPUS * 3, vocab=vocab, special_slots=32)
    compiler = Compiler(Vocabulary.of(exact.json, STOPS, exact.size))
    matcher = compiler.compile(Grammar.choice(["a"])).matcher()
    assert matcher.take(exact.encode("a")[0])
    assert matcher.over
    compiler.close()

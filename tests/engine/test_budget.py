"""Laws of fathom/engine/budget.py: thinking ends within the budget, and an answer can follow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.engine.budget import Budget, Thoughts
from fathom.errors import RequestError

OPEN, CLOSE, LINE, WORD = 12, 13, 20, 30
MESSAGE = (40, 41, LINE)
STREAMS = st.lists(st.sampled_from([OPEN, CLOSE, LINE, WORD, WORD + 1]), max_size=80)
BUDGETS = st.builds(
    Budget,
    open_id=st.just(OPEN),
    close_id=st.just(CLOSE),
    tokens=st.none() | st.integers(0, 12),
    grace=st.integers(0, 5),
    newline_ids=st.just(frozenset({LINE})),
    message=st.sampled_from([(), MESSAGE, (WORD,)]),
)


def budget(tokens=None, grace=0, message=()):
    return Budget(OPEN, CLOSE, tokens, grace, frozenset({LINE}), message)


def answer(thoughts, wanted):
    """Pairs of a token and whether it was forced, as a model writes that wants these tokens."""
    pairs = []
    for token in [*wanted, None]:
        while thoughts.forced is not None:
            pairs.append((thoughts.forced, True))
            thoughts.take(thoughts.forced)
        if token is not None:
            pairs.append((token, False))
            thoughts.take(token)
    return pairs


def written(thoughts, wanted):
    return [token for token, _ in answer(thoughts, wanted)]


def state(thoughts):
    return thoughts.inside, thoughts.spent, thoughts.cut, thoughts.forced


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [
        ([1, OPEN], True),
        ([1, OPEN, LINE], True),
        ([OPEN, 5, CLOSE, 7], False),
        ([OPEN, 5, CLOSE, 7, OPEN], True),
        ([CLOSE, 3], False),
        ([1, 2, 3], False),
        ([], False),
    ],
)
def test_the_prompts_last_tag_says_whether_a_thought_is_open(prompt, inside):
    assert state(Thoughts(budget(), prompt)) == (inside, 0, False, None)
    assert Thoughts(budget(), tuple(prompt)).inside is inside


def test_a_budget_of_three_is_three_tokens_and_the_tag():
    thoughts = Thoughts(budget(3), [OPEN])
    assert written(thoughts, [WORD] * 5) == [WORD] * 3 + [CLOSE] + [WORD] * 2
    assert state(thoughts) == (False, 3, True, None)


@pytest.mark.parametrize("grace", [0, 4])
def test_a_budget_of_nothing_ends_every_thought_at_once(grace):
    thoughts = Thoughts(budget(0, grace), [OPEN])
    assert thoughts.forced == CLOSE
    assert written(thoughts, [WORD, OPEN, WORD]) == [CLOSE, WORD, OPEN, CLOSE, WORD]
    assert state(thoughts) == (False, 0, True, None)


def test_an_end_on_the_last_token_in_time_is_only_an_end():
    thoughts = Thoughts(budget(3), [OPEN])
    wanted = [WORD, WORD, CLOSE, WORD]
    assert written(thoughts, wanted) == wanted
    assert state(thoughts) == (False, 2, False, None)


def test_without_a_limit_nothing_is_forced():
    thoughts = Thoughts(budget(None, grace=2), [OPEN])
    wanted = [WORD, LINE] * 50
    assert written(thoughts, wanted) == wanted
    assert state(thoughts) == (True, 100, False, None)


def test_the_message_comes_token_by_token_and_is_not_counted():
    thoughts = Thoughts(budget(1, message=MESSAGE), [OPEN])
    thoughts.take(WORD)
    for token in (*MESSAGE, CLOSE):
        assert state(thoughts) == (True, 1, False, token)
        thoughts.take(token)
    assert state(thoughts) == (False, 1, True, None)


def test_all_thoughts_share_one_budget_and_a_late_one_finds_no_grace():
    thoughts = Thoughts(budget(3, grace=9, message=(WORD,)), [OPEN])
    wanted = [WORD, CLOSE, 1, OPEN, WORD, WORD, LINE, 1, OPEN, 1]
    first, second = [WORD, CLOSE, 1], [OPEN, WORD, WORD, LINE, WORD, CLOSE, 1]
    assert written(thoughts, wanted) == [*first, *second, OPEN, WORD, CLOSE, 1]
    assert thoughts.spent == 4


def test_grace_ends_at_the_first_line_end():
    thoughts = Thoughts(budget(2, grace=4), [OPEN])
    assert written(thoughts, [LINE, WORD, WORD, LINE, 1]) == [LINE, WORD, WORD, LINE, CLOSE, 1]


def test_a_line_end_that_spends_the_budget_leaves_no_grace():
    thoughts = Thoughts(budget(2, grace=4), [OPEN])
    assert written(thoughts, [WORD, LINE, 1]) == [WORD, LINE, CLOSE, 1]


def test_grace_without_a_line_end_is_spent_to_the_last():
    thoughts = Thoughts(budget(2, grace=4), [OPEN])
    assert written(thoughts, [WORD] * 8) == [WORD] * 6 + [CLOSE] + [WORD] * 2


def test_an_end_within_grace_is_only_an_end():
    thoughts = Thoughts(budget(1, grace=4, message=MESSAGE), [OPEN])
    wanted = [WORD, WORD, CLOSE, 1]
    assert written(thoughts, wanted) == wanted
    assert thoughts.cut is False


def test_a_second_opening_tag_opens_nothing_and_is_counted():
    thoughts = Thoughts(budget(3), [OPEN])
    assert written(thoughts, [OPEN] * 3) == [OPEN] * 3 + [CLOSE]


def test_a_closing_tag_outside_of_a_thought_is_nothing():
    thoughts = Thoughts(budget(1), [1])
    assert written(thoughts, [CLOSE, 1, CLOSE]) == [CLOSE, 1, CLOSE]
    assert state(thoughts) == (False, 0, False, None)


@pytest.mark.parametrize("tokens", [None, 5])
def test_a_live_request_ends_this_thought_once_and_no_other(tokens):
    thoughts = Thoughts(budget(tokens, message=(WORD,)), [OPEN])
    thoughts.take(WORD)
    thoughts.end()
    thoughts.end()
    assert thoughts.forced == WORD
    thoughts.take(WORD)
    thoughts.end()
    assert thoughts.forced == CLOSE
    thoughts.take(CLOSE)
    assert state(thoughts) == (False, 1, True, None)
    assert written(thoughts, [OPEN, WORD, WORD, CLOSE]) == [OPEN, WORD, WORD, CLOSE]
    assert thoughts.spent == 3


def test_a_live_request_outside_of_a_thought_is_nothing():
    thoughts = Thoughts(budget(), [1])
    thoughts.end()
    assert written(thoughts, [OPEN, WORD, WORD]) == [OPEN, WORD, WORD]
    assert state(thoughts) == (True, 2, False, None)


def test_a_token_against_the_forced_one_is_the_engines_mistake():
    thoughts = Thoughts(budget(0), [OPEN])
    with pytest.raises(AssertionError, match="13 was forced, 30 came"):
        thoughts.take(WORD)


@given(BUDGETS, st.booleans(), STREAMS)
def test_no_answer_thinks_longer_than_budget_and_grace(budget, inside, wanted):
    thoughts = Thoughts(budget, [OPEN] if inside else [])
    counted = 0
    for token, forced in answer(thoughts, wanted):
        if inside and token == CLOSE:
            inside = False
        elif inside:
            counted += not forced
        else:
            inside = token == OPEN
    assert (thoughts.inside, thoughts.spent) == (inside, counted)
    if budget.tokens is not None:
        assert counted <= budget.tokens + budget.grace


@given(BUDGETS, st.booleans(), STREAMS)
def test_what_is_forced_is_the_whole_ending_and_an_answer_follows(budget, opened, wanted):
    thoughts = Thoughts(budget, [OPEN] if opened else [])
    pairs = answer(thoughts, wanted)
    assert [token for token, forced in pairs if not forced] == wanted
    ending = [*budget.message, CLOSE]
    forced = [token for token, was_forced in pairs if was_forced]
    assert forced == ending * (len(forced) // len(ending))
    assert thoughts.cut is bool(forced)
    # Two endings never stand side by side: a thought must open between them.
    runs = "".join("!" if was_forced else "." for _, was_forced in pairs).split(".")
    assert {len(run) for run in runs} <= {0, len(ending)}
    assert thoughts.forced is None
    assert not (thoughts.inside and budget.tokens == 0)


@given(BUDGETS, st.booleans(), STREAMS, STREAMS, st.booleans())
def test_looking_ahead_on_a_copy_changes_nothing_and_sees_the_truth(
    budget, opened, first, then, ended
):
    thoughts = Thoughts(budget, [OPEN] if opened else [])
    answer(thoughts, first)
    before = state(thoughts)
    copy = thoughts.copy()
    if ended:
        copy.end()
    ahead = answer(copy, then)
    assert state(thoughts) == before
    if not ended:
        assert answer(thoughts, then) == ahead
        assert state(thoughts) == state(copy)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"open_id": -1}, "open_id"),
        ({"close_id": True}, "close_id"),
        ({"close_id": OPEN}, "two tags"),
        ({"tokens": -1}, "tokens"),
        ({"tokens": 3.0}, "tokens"),
        ({"tokens": False}, "tokens"),
        ({"grace": -1}, "grace"),
        ({"grace": 0.5}, "grace"),
        ({"grace": None}, "grace"),
        ({"newline_ids": frozenset({-3})}, "newline_ids"),
        ({"newline_ids": frozenset({"\n"})}, "newline_ids"),
        ({"message": (1, -1)}, "message"),
        ({"message": (1, CLOSE)}, "tag 13"),
        ({"message": (OPEN,)}, "tag 12"),
    ],
)
def test_values_that_make_no_sense_are_named(values, words):
    with pytest.raises(RequestError, match=words):
        Budget(**{"open_id": OPEN, "close_id": CLOSE, **values})

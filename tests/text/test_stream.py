"""Laws of the router: pieces do not matter, nothing is lost, an answer renders back."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fathom.errors import TextError
from fathom.text import Content, PlainRouter, Reasoning, StreamRouter, ToolCall, merged, parse
from fathom.text.chat import ChatOptions, segments, text_of

CALL = "<tool_call>\n<function=f>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>"
TOOLS = [{"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}}]
BITS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<function=f>", "</function>"),
    *("<parameter=x>", "</parameter>", "\n", " ", "a", "<", "thought", "answer", "STOP", CALL),
]
WHOLE = [bit for bit in BITS if bit != "<tool_call>"]
TEXTS = st.lists(st.sampled_from(BITS), max_size=10).map("".join)
SETTINGS = st.fixed_dictionaries(
    {
        "reasoning": st.booleans(),
        "surface": st.booleans(),
        "glue": st.sampled_from(["nano", "ultra"]),
        "stop": st.sampled_from([(), ("STOP",), ("</think>a", "\n\n"), ("a", "answer")]),
        "tools": st.sampled_from([None, TOOLS]),
    }
)


def streamed(pieces, **settings):
    router = StreamRouter(**settings)
    events = [event for piece in pieces for event in router.feed(piece)]
    return merged(events + router.finish()), router.stopped


@given(text=TEXTS, settings=SETTINGS, cuts=st.lists(st.integers(0, 200), max_size=6))
def test_events_do_not_depend_on_the_pieces(text, settings, cuts):
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    pieces = [text[a:b] for a, b in itertools.pairwise(places)]
    assert streamed(pieces, **settings) == streamed([text], **settings)
    assert streamed(text, **settings) == streamed([text], **settings)
    assert streamed([text], **settings)[0] == parse(text, **settings)


@pytest.mark.parametrize("glue", ["nano", "ultra"])
def test_every_cut_into_two_gives_the_same(glue):
    text = f"r <tool\n</think>\nfirst\n\n{CALL}\n{CALL}\n<think>\nmore</think>last STOP no"
    wanted = parse(text, stop=["STOP"], tools=TOOLS, glue=glue)
    assert [type(event).__name__ for event in wanted] == [
        *("Reasoning", "Content", "ToolCall", "ToolCall", "Reasoning", "Content"),
    ]
    for cut in range(len(text) + 1):
        found = streamed([text[:cut], text[cut:]], stop=["STOP"], tools=TOOLS, glue=glue)
        assert found == (wanted, "STOP")


@given(text=st.lists(st.sampled_from(WHOLE), max_size=10).map("".join), settings=SETTINGS)
def test_no_letter_is_lost_or_invented(text, settings):
    events = parse(text, **{**settings, "stop": ()})
    shown = "".join(CALL if isinstance(event, ToolCall) else event.text for event in events)
    said = text.replace("<think>", "").replace("</think>", "")
    assert "".join(shown.split()) == "".join(said.split())


@given(
    thought=st.text("ab \n", max_size=6).filter(str.strip),
    content=st.text("ab \n", max_size=6),
    count=st.integers(0, 2),
    glue=st.sampled_from(["nano", "ultra"]),
)
@example(thought="a\n", content="\nb", count=1, glue="nano")
def test_an_answer_that_is_rendered_again_is_the_text_it_came_from(thought, content, count, glue):
    user = {"role": "user", "content": "q"}
    prompt = text_of(segments([user], glue))
    calls = [{"name": "f", "arguments": {"x": 1}}] * count
    turn = {"role": "assistant", "reasoning_content": thought, "content": content}
    if calls:
        turn["tool_calls"] = calls
    whole = text_of(segments([user, turn], glue, options=ChatOptions(generation=False)))
    answer = whole.removeprefix(prompt).removesuffix("<|im_end|>\n")
    back = {"role": "assistant", "reasoning_content": "", "content": "", "tool_calls": []}
    for event in parse(answer, glue=glue, tools=TOOLS):
        if isinstance(event, Reasoning):
            back["reasoning_content"] += event.text
        elif isinstance(event, Content):
            back["content"] += event.text
        else:
            back["tool_calls"].append({"name": event.name, "arguments": event.arguments})
    again = text_of(segments([user, back], glue, options=ChatOptions(generation=False)))
    assert again == whole


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("r</think>c", [Reasoning("r"), Content("c")]),
        ("only a thought", [Reasoning("only a thought")]),
        ("</think>c", [Content("c")]),
        ("<think>r</think>c", [Reasoning("r"), Content("c")]),
        (
            "a</think>b<think>\nc</think>d</think>e",
            [Reasoning("a"), Content("b"), Reasoning("c"), Content("de")],
        ),
        (f"r{CALL}", [Reasoning("r"), ToolCall("f", {"x": 1})]),
        (f"r</think>say\n{CALL}\n", [Reasoning("r"), Content("say"), ToolCall("f", {"x": 1})]),
        (f"r</think>{CALL}\n{CALL}\n", [Reasoning("r"), *[ToolCall("f", {"x": 1})] * 2]),
        (f"r</think>{CALL}\nmore", [Reasoning("r"), ToolCall("f", {"x": 1}), Content("\nmore")]),
        ("the <tool_call> tag</think>c", [Reasoning("the <tool_call> tag"), Content("c")]),
        ("r</think>a < b and <tool", [Reasoning("r"), Content("a < b and <tool")]),
        ("r</think>c\n", [Reasoning("r"), Content("c\n")]),
        ("r</thi", [Reasoning("r</thi")]),
        ("", []),
    ],
)
def test_thought_answer_and_calls_are_told_apart(text, wanted):
    assert parse(text, tools=TOOLS) == wanted


def test_after_a_skipped_thought_text_is_content():
    assert parse("c</think>d", reasoning=False) == [Content("cd")]
    assert parse("c<think>\nr", reasoning=False) == [Content("c"), Reasoning("r")]


def test_one_line_end_on_each_side_of_a_closing_tag_is_nanos_glue():
    text = "r\n\n</think>\n\nc"
    assert parse(text, glue="nano") == [Reasoning("r\n"), Content("\nc")]
    assert parse(text, glue="ultra") == [Reasoning("r\n\n"), Content("\n\nc")]


@pytest.mark.parametrize("cut", [15, 25, 40, 60])
def test_a_call_that_is_cut_off_comes_out_as_content(cut):
    assert parse("r" + CALL[:cut]) == [Reasoning("r"), Content(CALL[:cut])]
    assert parse("r</think>say " + CALL[:cut]) == [Reasoning("r"), Content("say " + CALL[:cut])]


def test_a_broken_call_is_content_and_the_next_one_is_read():
    broken = "<tool_call>\n<function=f>\noops\n</function>\n</tool_call>"
    found = parse(f"{broken}\n{CALL}", reasoning=False, tools=TOOLS)
    assert found == [Content(broken), ToolCall("f", {"x": 1})]


def test_a_call_may_speak_of_calls():
    value = "write <tool_call> and </tool_call> around it"
    assert parse(CALL.replace("\n1\n", f"\n{value}\n")) == [ToolCall("f", {"x": value})]


def test_half_a_tag_is_held_and_other_text_is_not():
    router = StreamRouter(reasoning=True)
    assert router.feed("abc</th") == [Reasoning("abc")]
    assert router.feed("ink") == []
    assert router.feed(">x") == [Content("x")]
    assert router.feed("<toolbox") == [Content("<toolbox")]
    assert router.feed(CALL[:-1]) == []
    assert router.feed(">") == [ToolCall("f", {"x": "1"})]
    assert router.finish() == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("think STOP", [Reasoning("think ")]),
        ("think</think>say STOP more", [Reasoning("think"), Content("say ")]),
        ("think</think>say STO", [Reasoning("think"), Content("say STO")]),
    ],
)
def test_a_stop_string_cuts_thought_and_answer(text, wanted):
    found, stopped = streamed(text, stop=["STOP"])
    assert found == wanted
    assert stopped == ("STOP" if "STOP" in text else None)


def test_an_empty_answer_is_the_thought_where_that_is_asked():
    assert parse("all of it", surface=True) == [Content("all of it")]
    assert parse("r</think> \n", surface=True) == [Content("r")]
    assert parse("r</think>c", surface=True) == [Reasoning("r"), Content("c")]
    assert parse(f"r{CALL}", surface=True) == [Reasoning("r"), ToolCall("f", {"x": "1"})]
    assert parse("", surface=True) == []
    router = StreamRouter(surface=True)
    assert router.feed("r</think>") == []
    assert router.feed("c") == [Reasoning("r"), Content("c")]
    assert router.feed("d") == [Content("d")]


def test_a_finished_router_is_finished():
    router = StreamRouter()
    assert router.feed("a") == [Reasoning("a")]
    assert router.finish() == router.finish() == []
    with pytest.raises(TextError, match="a new router"):
        router.feed("b")


def test_long_arguments_are_read_in_time_that_grows_with_them():
    value = "x" * 200_000
    text = CALL.replace("\n1\n", f"\n{value}\n")
    pieces = [text[place : place + 20] for place in range(0, len(text), 20)]
    assert streamed(pieces)[0] == [ToolCall("f", {"x": value})]


def test_text_that_is_no_chat_passes_until_a_stop_string():
    router = PlainRouter(["</think>"])
    events = [*router.feed("<think>a</th"), *router.feed("ink>b"), *router.finish()]
    assert merged(events) == [Content("<think>a")]
    assert router.stopped == "</think>"
    assert PlainRouter().feed("x") == [Content("x")]

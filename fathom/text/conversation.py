"""`Text`: tokens and turns of one model, as its folder holds them.

Promise: one object turns a conversation into the prompt's ids, says which ids end an answer, and
routes the answer back to thought, content and calls; nothing that a user or a tool wrote becomes a
control token. Our own folders and those of official checkpoints load alike, and what is saved here
transformers can load.

A folder holds tokenizer.json, tokenizer_config.json and chat_template.jinja. A template that is
one of our own is rendered by `chat.py`; any other is the checkpoint's and is rendered by
`template.py`, since the model was trained on its wording.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self, get_args

from fathom.errors import TextError
from fathom.hub import TEXT_PATTERNS, locate
from fathom.text import chat, own_template, template
from fathom.text.chat import ChatOptions, Glue, Thinking
from fathom.text.files import write_text
from fathom.text.messages import Message, normal_messages, normal_tools
from fathom.text.shield import Shield
from fathom.text.stream import StreamRouter
from fathom.text.template import ChatTemplate
from fathom.text.tokenizer import Tokenizer

_ENDS = ("</s>", "<|im_end|>")
_PROBE: list[Message] = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "reasoning_content": "r", "content": "a"},
]


class Text:
    """The text side of one model: tokenizer and chat format. Immutable; threads may share it."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        glue: Glue | None = None,
        template: ChatTemplate | None = None,
    ) -> None:
        """Use the built-in format in `glue` style ("nano" if not said), or a `template`.

        For a template the style only tells how an answer is taken apart, and is found by asking
        the template if it is not said.
        """
        if glue is not None and glue not in get_args(Glue):
            raise TextError(f"There is no glue {glue!r}; known are {', '.join(get_args(Glue))}.")
        self.tokenizer = tokenizer
        self.template = template
        self.glue: Glue = glue or (_glue_of(template, tokenizer) if template else "nano")

    @classmethod
    def load(cls, folder: str | Path, *, glue: Glue | None = None) -> Self:
        """Read a model's folder, or a hub id `owner/name[@revision]`.

        `glue` is for a model that has no chat template. Raises `TextError`, naming the file, for
        whatever is missing or damaged, and `CheckpointError` for a hub id that cannot be had.
        """
        if isinstance(folder, str) and not Path(folder).expanduser().is_dir():
            folder = locate(folder, patterns=TEXT_PATTERNS)
        folder = Path(folder).expanduser()
        tokenizer = Tokenizer.load(folder)
        path = folder / template.FILE
        own = {own_template.source(style): style for style in get_args(Glue)}
        found = _settings_template(tokenizer, folder)
        if path.is_file():
            found = ChatTemplate.load(path)
        if found is None or found.source in own:
            return cls(tokenizer, glue=own[found.source] if found else glue)
        return cls(tokenizer, glue=glue, template=found)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
        self.tokenizer.save(folder)
        source = self.template.source if self.template else own_template.source(self.glue)
        write_text(Path(folder) / template.FILE, source)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end an answer: `</s>` and `<|im_end|>`, those that the tokenizer has."""
        found = (self.tokenizer.find(name) for name in _ENDS)
        return frozenset(token for token in found if token is not None)

    @cached_property
    def newline_ids(self) -> frozenset[int]:
        """The ids of tokens that end a line."""
        tokenizer = self.tokenizer
        return frozenset(i for i in range(tokenizer.size) if tokenizer.decode([i]).endswith("\n"))

    def boundaries(self, prompt: Sequence[int]) -> tuple[int, ...]:
        """Where in a prompt's ids other prompts are likely to part from it.

        The end of its first turn (system prompt and tools), and the beginnings of its last two: the
        last message and the assistant's turn.
        """
        begin = self.tokenizer.find("<|im_start|>")
        turns = [place for place, token in enumerate(prompt) if token == begin]
        return tuple(sorted({*turns[1:2], *turns[-2:]} - {0}))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: Thinking = True,
        generation: bool = True,
        truncate_history_thinking: bool = True,
        budget: int | None = None,
    ) -> str:
        """Return the prompt as text, to be looked at; the model is given `prompt`.

        `messages` and `tools` are OpenAI's. `thinking` opens a thought, or says "low" or "medium"
        to ask for a short one, which models that were not trained on it do not know. `generation`
        ends the prompt with the head of the assistant's turn. `truncate_history_thinking` leaves
        out the thoughts before the last user message. `budget` asks for so many tokens of thought
        in words. Raises `TextError` for a conversation with faults.
        """
        options = ChatOptions(thinking, generation, truncate_history_thinking, budget)
        if self.template is None:
            return chat.text_of(chat.segments(messages, self.glue, tools=tools, options=options))
        return self._rendered(normal_messages(messages), normal_tools(tools), options)

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: Thinking = True,
        generation: bool = True,
        truncate_history_thinking: bool = True,
        budget: int | None = None,
    ) -> list[int]:
        """Return the prompt's ids; the arguments are those of `render`.

        Names of special tokens in what people, tools and documents wrote are encoded as text.
        """
        options = ChatOptions(thinking, generation, truncate_history_thinking, budget)
        if self.template is None:
            pieces = chat.segments(messages, self.glue, tools=tools, options=options)
            return chat.encode(self.tokenizer, pieces)
        shield = Shield(self.tokenizer, normal_messages(messages), normal_tools(tools))
        return shield.encode(self._rendered(shield.messages, shield.tools, options))

    def conversation(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        thinking: Thinking = True,
        truncate_history_thinking: bool = True,
        prompt_weight: float = 0.0,
    ) -> tuple[list[int], list[float]]:
        """Return the ids of a whole conversation and each id's weight in the loss, as a target.

        What an assistant writes weighs 1: its thought, `</think>`, answer, calls and the closing
        `<|im_end|>`. All else weighs `prompt_weight`, also the beginning of an assistant's turn
        that a prompt would give it (`<think>` and a line end, or `<think></think>`).
        """
        ids = self.prompt(
            messages,
            tools=tools,
            thinking=thinking,
            generation=False,
            truncate_history_thinking=truncate_history_thinking,
        )
        weights = [prompt_weight] * len(ids)
        for start, end in self._answers(ids):
            weights[start:end] = [1.0] * (end - start)
        return ids, weights

    def router(
        self,
        prompt: Sequence[int] | str | None = None,
        *,
        thinking: Thinking = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        stop: Sequence[str] = (),
        force_nonempty_content: bool = False,
    ) -> StreamRouter:
        """Return the router of the answer to `prompt` (its ids or its text).

        It begins in the thought that the prompt leaves open, if it does; without a prompt,
        `thinking` says whether it would. If none is open, or with `force_nonempty_content`, an
        answer that would be empty is the thought instead.
        """
        open_thought = bool(thinking) if prompt is None else self._leaves_open(prompt)
        return StreamRouter(
            reasoning=open_thought,
            tools=tools,
            stop=stop,
            surface=force_nonempty_content or not open_thought,
            glue=self.glue,
        )

    def _rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        options: ChatOptions,
    ) -> str:
        """The text of the checkpoint's own template."""
        assert self.template is not None
        variables: dict[str, Any] = {"enable_thinking": bool(options.thinking)}
        if isinstance(options.thinking, str):
            variables[f"{options.thinking}_effort"] = True
        if not options.truncate_history_thinking:
            variables["truncate_history_thinking"] = False
        if options.budget is not None:
            variables["reasoning_budget"] = options.budget
        for role in ("bos_token", "eos_token", "unk_token", "pad_token"):
            token = self.tokenizer.settings.get(role)
            token = token.get("content") if isinstance(token, Mapping) else token
            if isinstance(token, str):
                variables[role] = token
        return self.template.render(
            messages, tools=tools, add_generation_prompt=options.generation, **variables
        )

    def _leaves_open(self, prompt: Sequence[int] | str) -> bool:
        """Whether the last turn of a prompt ends inside a thought."""
        start, opening, closing = "<|im_start|>", "<think>", "</think>"
        if isinstance(prompt, str):
            turn = prompt[prompt.rfind(start) + 1 :]
            return turn.rfind(opening) > turn.rfind(closing)
        names = {self.tokenizer.find(name): name for name in (start, opening, closing)}
        last = next((names[token] for token in reversed(prompt) if token in names), None)
        return last == opening

    def _answers(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Where assistants write in a rendered conversation, `<|im_end|>` included."""
        begin, end = (self.tokenizer.token_id(name) for name in ("<|im_start|>", "<|im_end|>"))
        found = []
        place = 0
        while place < len(ids):
            if ids[place] != begin:
                place += 1
                continue
            place += 1
            close = next((i for i in range(place, len(ids)) if ids[i] == end), len(ids) - 1)
            head = place
            role = ""
            while head <= close and "\n" not in role:
                role += self.tokenizer.decode([ids[head]])
                head += 1
            if role.split("\n", 1)[0].strip() == "assistant":
                found.append((self._after_prefix(ids, head), close + 1))
            place = close + 1
        return found

    def _after_prefix(self, ids: Sequence[int], place: int) -> int:
        """Step over what a prompt would have given of an assistant's turn."""
        opening, closing = (self.tokenizer.find(name) for name in ("<think>", "</think>"))
        if place < len(ids) and ids[place] == opening:
            place += 1
            line_end = self.tokenizer.encode("\n")
            if ids[place : place + 1] == [closing] or ids[place : place + 1] == line_end:
                place += 1
        return place


def _settings_template(tokenizer: Tokenizer, folder: Path) -> ChatTemplate | None:
    """The chat template inside tokenizer_config.json, where older folders keep it."""
    source = tokenizer.settings.get("chat_template")
    if isinstance(source, list):
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if not isinstance(source, str) or not source:
        return None
    return ChatTemplate(source, name=str(folder / "tokenizer_config.json"))


def _glue_of(found: ChatTemplate, tokenizer: Tokenizer) -> Glue:
    """How a template glues a thought to its answer."""
    try:
        text = Text(tokenizer, glue="ultra", template=found).render(_PROBE, generation=False)
    except TextError:
        return "ultra"
    return "nano" if "r\n</think>\na" in text else "ultra"


__all__ = ["Text"]

"""How prompts are answered: one record for `generate`, a file of prompts and `chat`.

Promise: an option means the same to each of them, and `facts` holds all that an answer depends on
beside the model and the prompt. What the values mean is `generation.py`'s and the engine's.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import typer

from fathom.engine.budget import Budget
from fathom.engine.grammar import Compiled, Compiler, Grammar, Vocabulary
from fathom.engine.request import Request
from fathom.engine.sampler import Sampling
from fathom.errors import RequestError
from fathom.generation import Prompt, Scribe, prepare, thinking_budget
from fathom.model.nemotron import Nemotron
from fathom.text import Text
from fathom.text.chat import Thinking

Temperature = Annotated[float, typer.Option(help="0: always the most probable token.")]
TopP = Annotated[float, typer.Option(help="Share of the probability to draw from.")]
TopK = Annotated[int, typer.Option(help="Most probable tokens to draw from; 0: all.")]
MinP = Annotated[float, typer.Option(help="Least probability, as a share of the best.")]
Seed = Annotated[int, typer.Option(help="Chooses the draws.")]
ThinkingWord = Annotated[str, typer.Option(help="on, off, low or medium.")]
BudgetWord = Annotated[
    str,
    typer.Option(
        metavar="N[+G]",
        help="Most tokens of thought, or off; with +G it ends at a line end, G tokens later at "
        "most.",
    ),
]
BudgetMessage = Annotated[
    str, typer.Option(help="What is written where a thought is ended by force.")
]
Drafts = Annotated[
    int, typer.Option(min=0, max=8, help="Most tokens drafted by an MTP head; 0: none.")
]
Dtype = Annotated[str | None, typer.Option(help="bf16, fp16 or fp32; left out: stored.")]
"""Options that several verbs have."""

_LIMIT = re.compile(r"(\d{1,9})(?:\+(\d{1,9}))?")


@dataclass(frozen=True)
class Limit:
    """How long a thought may be; without tokens there is no limit."""

    tokens: int | None = None
    """Most tokens of thought."""
    grace: int = 0
    """Tokens after these within which a line end is waited for."""

    @classmethod
    def of(cls, word: str) -> Self:
        """Read "off", "200" or "200+40"; raises `RequestError`."""
        if word == "off":
            return cls()
        found = _LIMIT.fullmatch(word)
        if found is None:
            raise RequestError(
                f"A budget is a number of tokens such as 200, or 200+40 to wait up to 40 more for "
                f"a line end, or off; got {word!r}."
            )
        return cls(int(found[1]), int(found[2] or 0))

    def __str__(self) -> str:
        """The word that `of` reads."""
        if self.tokens is None:
            return "off"
        return f"{self.tokens}+{self.grace}" if self.grace else str(self.tokens)


@dataclass(frozen=True)
class Settings:
    """How prompts are answered."""

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    thinking: Thinking = True
    stop: tuple[str, ...] = ()
    limit: Limit = field(default_factory=Limit)
    message: str = ""
    """What is written where a thought is ended by force."""
    raw: bool = False
    """Whether prompts are continued as they stand."""

    @property
    def facts(self) -> dict[str, Any]:
        """All of it as plain data."""
        told = {**asdict(self), "stop": list(self.stop)}
        del told["limit"], told["message"]
        return {**told, "budget": str(self.limit), "budget_message": self.message}

    def budget(self, text: Text) -> Budget | None:
        """The limit in a model's tokens; None where it has no tags of thought, or none is asked.

        Without a limit it only names the tags, so that thoughts are counted and can be ended.
        """
        tags = all(text.tokenizer.find(tag) is not None for tag in ("<think>", "</think>"))
        if self.raw or not (tags or self.limit.tokens is not None):
            return None
        limit = self.limit
        return thinking_budget(text, limit.tokens, grace=limit.grace, message=self.message)

    def prepare(
        self,
        text: Text,
        prompt: Prompt,
        place: int = 0,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        grammar: Compiled | None = None,
    ) -> tuple[Request, Scribe]:
        """The request of a prompt, which draws with the seed plus `place`, and its scribe."""
        return prepare(
            text,
            prompt,
            max_tokens=self.max_tokens,
            sampling=Sampling(
                self.temperature, self.top_p, self.top_k, self.min_p, self.seed + place
            ),
            thinking=self.thinking,
            tools=tools,
            stop=self.stop,
            budget=self.budget(text),
            grammar=grammar,
            chat=not self.raw,
        )


def grammar_of(schema: Path | None, regex: str | None) -> Grammar | None:
    """What `--schema` and `--regex` ask for; raises `RequestError` for a file without a schema."""
    if schema is not None and regex is not None:
        raise RequestError("--schema and --regex both say what an answer looks like; give one.")
    if regex is not None:
        return Grammar.regex(regex)
    if schema is None:
        return None
    try:
        return Grammar.json_schema(json.loads(schema.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(f"--schema {schema} holds no JSON schema: {error}.") from None


def compiled(grammar: Grammar | None, text: Text, model: Nemotron) -> Compiled | None:
    """A grammar in a model's tokens; raises `RequestError` for one that cannot be used."""
    if grammar is None:
        return None
    compiler = Compiler(Vocabulary.of(text.tokenizer.json, text.stop_ids, model.config.vocab))
    try:
        return compiler.compile(grammar)
    finally:
        compiler.close()


__all__ = ["Limit", "Settings", "compiled", "grammar_of"]

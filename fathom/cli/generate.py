"""`fathom generate`: one prompt and its answer, or a file of prompts and a file of answers.

Promise: one prompt is `fathom.generate` with the same defaults, and what it prints as JSON is the
whole answer; a file is answered by one engine, and the same command goes on where it was broken
off. The work on a file is `many.py`'s.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, Self, final

import torch
import typer
from rich import progress
from rich.console import Console

from fathom import machine
from fathom.cli import source, voice
from fathom.cli.display import LINE_SECONDS, clock
from fathom.cli.many import Job, Progress, Sizes, work
from fathom.cli.settings import (
    BudgetMessage,
    BudgetWord,
    Drafts,
    Dtype,
    Limit,
    MinP,
    Seed,
    Settings,
    Temperature,
    ThinkingWord,
    TopK,
    TopP,
    compiled,
    grammar_of,
)
from fathom.engine.engine import Engine
from fathom.engine.grammar import Grammar
from fathom.errors import RequestError
from fathom.generation import Answer
from fathom.generation import generate as answers_to

File = Annotated[
    Path | None,
    typer.Option(help="Prompts instead: a JSON object a line, with prompt or messages."),
]
To = Annotated[Path | None, typer.Option(help="Where the answers of --input go, one a line.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="A string that ends the answer; may be repeated.")
]
Schema = Annotated[Path | None, typer.Option(help="A JSON schema that answers must satisfy.")]
Regex = Annotated[str | None, typer.Option(help="A regular expression that answers must match.")]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the text; no template.")]
Errors = Annotated[
    Literal["stop", "skip"], typer.Option(help="With --input: stop, or skip and write the error.")
]
Fresh = Annotated[
    bool, typer.Option("--fresh", help="With --input: rename the old output and begin anew.")
]
Sequences = Annotated[
    int | None, typer.Option(min=1, help="With --input: most prompts side by side.")
]
Context = Annotated[
    int | None, typer.Option(min=16, help="With --input: most tokens of a prompt and its answer.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the one answer as JSON.")]


def generate(
    checkpoint: Annotated[str, typer.Argument(help="A folder, a hub id or a run's folder.")],
    prompt: Annotated[
        str | None, typer.Argument(help="What to ask; - reads it from standard input.")
    ] = None,
    input: File = None,
    output: To = None,
    max_tokens: Annotated[int, typer.Option(help="Most tokens to add.")] = 256,
    temperature: Temperature = 1.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    thinking: ThinkingWord = "on",
    budget: BudgetWord = "off",
    budget_message: BudgetMessage = "",
    stop: Stop = None,
    schema: Schema = None,
    regex: Regex = None,
    raw: Raw = False,
    errors: Errors = "stop",
    fresh: Fresh = False,
    sequences: Sequences = None,
    context: Context = None,
    drafts: Drafts = 3,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Answer one prompt, or a file of them."""
    settings = Settings(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        seed=seed,
        thinking=voice.thinking_of(thinking),
        stop=tuple(stop or ()),
        limit=Limit.of(budget),
        message=budget_message,
        raw=raw,
    )
    grammar, kind = grammar_of(schema, regex), source.dtype_of(dtype)
    machine.tune()
    if prompt is not None and input is None:
        one(checkpoint, prompt, settings, grammar, drafts=drafts, dtype=kind, as_json=as_json)
        return
    if prompt is not None or input is None or output is None:
        raise RequestError("Give a prompt, or --input FILE with --output FILE.")
    sizes = Sizes(sequences, context, drafts, kind)
    file(Job(checkpoint, input, output, settings, grammar, errors, fresh, sizes))


def one(
    checkpoint: str,
    prompt: str,
    settings: Settings,
    grammar: Grammar | None,
    *,
    drafts: int,
    dtype: torch.dtype | None,
    as_json: bool,
) -> None:
    """Answer one prompt."""
    model, text = source.open_both(checkpoint, dtype=dtype)
    said = sys.stdin.read() if prompt == "-" else prompt
    request, _ = settings.prepare(text, said)
    room = max(16, len(request.ids) + request.max_tokens)
    events = answers_to(
        Engine(model, sequences=1, context=room, drafts=drafts, prefix_bytes=0),
        text,
        said,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        min_p=settings.min_p,
        seed=settings.seed,
        thinking=settings.thinking,
        stop=settings.stop,
        budget=settings.budget(text),
        grammar=compiled(grammar, text, model),
        chat=not settings.raw,
        stream=True,
    )
    if as_json:
        *_, answer = events
        assert isinstance(answer, Answer)
        usage = answer.usage._asdict() if answer.usage is not None else None
        print(json.dumps({**asdict(answer), "usage": usage}, indent=2))
        return
    answer = voice.say(events, Console())
    cut = ", thought cut at the budget" if answer.usage is not None and answer.usage.cut else ""
    Console(stderr=True).print(
        f"{len(answer.ids)} tokens, {answer.tokens_per_second:.1f} a second, "
        f"ended by {answer.stop_reason}{cut}",
        style="dim",
        highlight=False,
        soft_wrap=True,
    )


def file(job: Job) -> None:
    """Answer a file of prompts and show how far it is."""
    console = Console(stderr=True)
    with Bar(console) as bar:
        try:
            end = work(job, console, bar.show)
        except KeyboardInterrupt:
            bar.stop()
            console.print(
                f"Broken off. What has ended is in {job.output}; the same command goes on.",
                highlight=False,
                soft_wrap=True,
            )
            raise typer.Exit(130) from None
    if end.done == end.before:
        console.print(
            f"All {end.total} lines were answered before.", highlight=False, soft_wrap=True
        )
        return
    errors = f", {end.bad} of them with an error" if end.bad else ""
    console.print(
        f"{end.done - end.before} lines answered{errors}: {end.tokens:,} tokens in "
        f"{clock(end.seconds)}, {end.tokens / max(end.seconds, 1e-9):,.0f} a second; "
        f"{end.reused:.0%} of the prompts' tokens were remembered",
        highlight=False,
        soft_wrap=True,
    )


@final
class Bar:
    """A bar on a terminal, elsewhere a line every few seconds; begins when first shown."""

    def __init__(self, console: Console) -> None:
        """Draw on `console`."""
        self.console = console
        self._bar: progress.Progress | None = None
        self._task = progress.TaskID(0)
        self._printed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def show(self, now: Progress) -> None:
        """Show how far it is."""
        told = f"{now.rate:,.0f} tokens/s" + (f", {now.bad} errors" if now.bad else "")
        if not self.console.is_terminal:
            if time.monotonic() - self._printed > LINE_SECONDS:
                self._printed = time.monotonic()
                self.console.print(
                    f"{now.done} of {now.total}  {told}", highlight=False, soft_wrap=True
                )
            return
        if self._bar is None:
            self._bar = progress.Progress(
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TextColumn("[dim]left[/dim]"),
                progress.TimeRemainingColumn(),
                progress.TextColumn("{task.fields[told]}"),
                console=self.console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task("", total=now.total, completed=now.before, told="")
            self._bar.start()
        self._bar.update(self._task, completed=now.done, told=told)

    def stop(self) -> None:
        """Leave the last state on the screen."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


__all__ = ["Bar", "file", "generate", "one"]

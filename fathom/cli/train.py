"""`fathom train`: a recipe and overrides in, a run's folder out.

Promise: a run that was begun goes on unless --fresh is given, and even then nothing is deleted: the
old folder is renamed. The folder holds the resolved recipe, the history, the tokenizer and the
checkpoints, so that every other verb can read it. Training itself is `train/loop.py`.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from fathom import machine
from fathom.checkpoint.run import Run
from fathom.cli import source
from fathom.cli.display import Display
from fathom.config import load as configs
from fathom.config.data import DataConfig
from fathom.config.train import TrainConfig
from fathom.data.corpus import Corpus
from fathom.data.documents import Files, HubDataset, Reader
from fathom.data.feed import Feed, heldout_batches
from fathom.errors import CheckpointError, ConfigError
from fathom.model.nemotron import Nemotron
from fathom.model.precision import Matrices
from fathom.model.sizes import size
from fathom.problems import OWN, Problems
from fathom.text import Text, Tokenizer
from fathom.train import loop, plots
from fathom.train.report import JsonLines, Report, TensorBoard, tee

RECIPE, METRICS, EVENTS = "recipe.toml", "metrics.jsonl", "tensorboard"
"""Files of a run's folder."""
SPECIAL_SLOTS = 32
"""Special tokens of a tokenizer that is trained here; the family's own has 1000."""
PROBLEMS_READ, DOCUMENTS_READ = 4000, 20000
"""Most problems and documents of a source that a tokenizer learns from."""


def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML file, such as recipes/pocket.toml.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Such as optim.lr=3e-4.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run's folder; left out: runs/NAME-OF-RECIPE.")
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="Folder or hub id of a tokenizer; left out: one is trained."),
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--fresh",
            help="Go on, or rename an old run's folder and begin anew; left out: go on if there "
            "is something to go on with.",
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option(help="Write TensorBoard events into the run's folder too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")
    ] = False,
) -> None:
    """Train a model by a recipe, or go on where a run stopped."""
    console = Console()
    config = configs.load_recipe(recipe, overrides or [])
    if dry_run:
        console.print(configs.to_toml(config), highlight=False, markup=False, soft_wrap=True)
        console.print(needs(config), highlight=False, soft_wrap=True)
        return
    folder = out or Path("runs") / recipe.stem
    begin(folder, resume, console)
    for sentence in machine.tune():
        console.print(f"· {sentence}", style="dim", highlight=False)
    words = tokenizer_of(config, folder, text or config.init, console)
    also = [TensorBoard(folder / EVENTS)] if tensorboard else []
    _, outcome = learn(config, words, folder, console, *also)
    console.print(farewell(outcome, folder), highlight=False, soft_wrap=True)
    if not outcome.finished:
        raise typer.Exit(130)


def begin(folder: Path, resume: bool | None, console: Console) -> None:
    """Make room for a run: check that there is one to resume, or rename the old one's folder."""
    there = bool(Run(folder / source.CHECKPOINTS).steps())
    if resume and not there:
        raise CheckpointError(
            f"--resume was given, but {folder} holds no checkpoint to go on with. Leave it out to "
            f"begin, or give the run's folder with --out."
        )
    if resume is False and folder.exists():
        number = next(n for n in range(1, 10**6) if not _old(folder, n).exists())
        folder.rename(_old(folder, number))
        console.print(f"The old run was renamed to {_old(folder, number)}.", highlight=False)
    folder.mkdir(parents=True, exist_ok=True)


def learn(
    config: TrainConfig, text: Text, folder: Path, console: Console, *also: Report
) -> tuple[Nemotron, loop.Outcome]:
    """Run a recipe in `folder`, or what is left of it, with a live display; draw its plots.

    `also` hear every event beside the display and the history.
    """
    model = student(config)
    shape = model.config
    config = config.model_copy(update={"model": shape}) if config.init else config
    if text.tokenizer.size > shape.vocab:
        raise ConfigError(
            f"The tokenizer has {text.tokenizer.size} tokens, the model {shape.vocab}. Give the "
            f"recipe a [model] table whose vocab is {text.tokenizer.size} or more, or use another "
            f"tokenizer."
        )
    guide = teacher(config, text)
    feed = Feed.of(config.data, text, seed=config.seed)
    for note in feed.notes:
        console.print(f"· {note}", style="dim", highlight=False)
    heldout = heldout_batches(config.data, text, tokens=config.batch.at_once, seed=config.seed)
    run = Run(folder / source.CHECKPOINTS, keep=config.keep)
    configs.write(config, folder / RECIPE)
    with Display(console, steps=config.steps) as display:
        report = tee(display, JsonLines(folder / METRICS), *also)
        outcome = loop.train(
            config,
            model=model,
            feed=feed,
            heldout=heldout,
            run=run,
            report=report,
            teacher=guide,
        )
    if outcome.step:
        plots.draw(folder / METRICS, folder / "plots")
    return model, outcome


def student(config: TrainConfig) -> Nemotron:
    """The model that a run starts with, fp32: fresh, or that of the checkpoint it names.

    Raises `ConfigError` if that one is quantised: rounded weights are no masters.
    """
    if config.init is None:
        shape = size(config.model) if isinstance(config.model, str) else config.model
        device = "cuda" if torch.cuda.is_available() else None
        return Nemotron(shape, device=device, seed=config.seed)
    model = source.open_model(config.init, dtype=torch.float32)
    if any(isinstance(part, Matrices) and part.packed is not None for part in model.modules()):
        raise ConfigError(
            f"{config.init} holds quantised weights, which cannot be trained. Let init name its "
            f"plain sibling."
        )
    return model.train()


def teacher(config: TrainConfig, text: Text) -> Nemotron | None:
    """The frozen model that a run learns from, of the type it is stored in; None without one.

    Raises `ConfigError` if its tokenizer is another; one without a tokenizer is taken at its word.
    """
    if config.distil is None:
        return None
    place, own = config.distil.teacher, text.tokenizer.fingerprint
    if source.has_text(place) and source.open_text(place).tokenizer.fingerprint != own:
        raise ConfigError(
            f"The teacher {place} has another tokenizer than the run, so their distributions "
            f"cannot be compared. Take a teacher of the same tokenizer, or give its own with "
            f"--text."
        )
    return source.open_model(place).requires_grad_(False)


def tokenizer_of(config: TrainConfig, folder: Path, given: str | None, console: Console) -> Text:
    """The run's tokenizer: its own if it has one, else the one given, else one trained now."""
    place = folder / source.TEXT
    if (place / "tokenizer.json").is_file():
        found = Text.load(place)
        if given is not None:
            other = source.open_text(given).tokenizer.fingerprint
            if other != found.tokenizer.fingerprint:
                raise ConfigError(
                    f"The run in {folder} was begun with another tokenizer than that of {given}. "
                    f"Leave --text out to go on, or begin anew with --fresh."
                )
        return found
    if given is not None:
        text = source.open_text(given)
    else:
        shape = size(config.model) if isinstance(config.model, str) else config.model
        console.print(f"Training a tokenizer of {shape.vocab:,} tokens…", highlight=False)
        tokenizer = Tokenizer.train(
            texts(config.data), vocab=shape.vocab, special_slots=SPECIAL_SLOTS
        )
        text = Text(tokenizer)
    place.mkdir(parents=True, exist_ok=True)
    text.save(place)
    return text


def texts(config: DataConfig) -> Iterator[str]:
    """What a tokenizer learns from: the sources of a recipe, problems of the training side."""
    for item in config.sources:
        if item.kind == "problems":
            problems = Problems(item.kinds or OWN, "train", 0, config.split_fraction)
            for problem in islice(problems, PROBLEMS_READ):
                yield f"{problem.question}\n{problem.thinking}\n{problem.answer}"
            continue
        reader: Reader
        if item.kind == "corpus":
            reader = Corpus()
        elif item.kind == "path":
            reader = Files(item.path, item.errors)
        else:
            reader = HubDataset(item.path, item.errors)
        for document in islice(reader, DOCUMENTS_READ):
            yield document.text or document.key


def needs(config: TrainConfig) -> str:
    """What a run holds in memory, in a sentence; nothing is opened for it."""
    length = f"{config.steps} steps" if config.steps else f"{config.minutes:g} minutes"
    if config.init is not None:
        return f"The model of {config.init}; {length} of {config.batch.tokens:,} tokens."
    shape = size(config.model) if isinstance(config.model, str) else config.model
    # fp32: weight, gradient and AdamW's two moments.
    gigabytes = 16 * shape.parameters / 1e9
    return (
        f"{shape.name}: {shape.parameters:,} parameters, {gigabytes:.2f} GB of weights, gradients "
        f"and moments; {length} of {config.batch.tokens:,} tokens."
    )


def farewell(outcome: loop.Outcome, folder: Path) -> str:
    """How a run ended, in a sentence or two."""
    loss = f" Held-out loss {outcome.heldout.loss:.4f}." if outcome.heldout else ""
    if outcome.finished:
        return f"Finished after {outcome.step} steps.{loss} The run is in {folder}."
    return (
        f"Stopped after step {outcome.step}, which is saved in {folder}.{loss} The same command "
        f"goes on from there."
    )


def _old(folder: Path, number: int) -> Path:
    """The name that an old run's folder gets."""
    return folder.with_name(f"{folder.name}.old-{number}")


__all__ = [
    "METRICS",
    "RECIPE",
    "begin",
    "farewell",
    "learn",
    "needs",
    "student",
    "teacher",
    "texts",
    "tokenizer_of",
    "train",
]

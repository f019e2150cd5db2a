"""`fathom`: the list of verbs, and how errors look.

Promise: `fathom --help` imports neither torch nor any verb; a verb's file is imported when it is
called. What Fathom raises on purpose is printed as one paragraph with exit code 2; Ctrl-C ends with
130; anything else is a fault of ours and keeps its trace. Each verb is `fathom/cli/<verb>.py`.
"""

import importlib
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from fathom import __version__
from fathom.errors import FathomError

VERBS = {
    "quickstart": ("Start here", "Train, test and talk to a small Nemotron 3 in minutes."),
    "doctor": ("Start here", "Say what this machine can do and which code it will run."),
    "bench": ("Start here", "Measure this machine's tokens a second for a model."),
    "plan": ("Start here", "Say what a model needs: parameters, weights, memory."),
    "train": ("Models", "Train a model by a recipe, or go on where a run stopped."),
    "generate": ("Models", "Answer one prompt, or a file of them."),
    "chat": ("Models", "Talk with a model."),
    "convert": ("Checkpoints", "Turn a checkpoint or a run into the form that others read."),
    "quantise": ("Checkpoints", "Round weights to four and eight bits, and say what is lost."),
    "merge": ("Checkpoints", "Average several checkpoints of one model."),
}
"""Every verb: its panel in the help and its sentence; the file and the function have its name."""


class Verbs(TyperGroup):
    """A group whose commands are names until one is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the verb that `args` begin with and import its file."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, load(name) if name in VERBS else found, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; print what Fathom raises on purpose as a paragraph."""
        try:
            return super().invoke(ctx)
        except FathomError as error:
            print(f"fathom: {error}", file=sys.stderr)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            print("\nfathom: stopped.", file=sys.stderr)
            raise typer.Exit(130) from None


def load(verb: str) -> Any:
    """Import `fathom/cli/<verb>.py` and make its function of the same name a command."""
    module = importlib.import_module(f"fathom.cli.{verb}")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(verb)(getattr(module, verb))
    return typer.main.get_command(app)


def _version(wanted: bool) -> None:
    """Print the version and end."""
    if wanted:
        print(f"fathom {__version__}")
        raise typer.Exit


def command() -> Any:
    """The whole command line, made of names alone."""
    app = typer.Typer(cls=Verbs, no_args_is_help=True, pretty_exceptions_enable=False)

    @app.callback()
    def fathom(
        version: Annotated[
            bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which.")
        ] = False,
    ) -> None:
        """Fathom: train, post-train and run NVIDIA's Nemotron 3 models."""

    group = typer.main.get_command(app)
    assert isinstance(group, Verbs)
    for verb, (panel, sentence) in VERBS.items():
        group.add_command(
            TyperCommand(verb, callback=None, help=sentence, rich_help_panel=panel), verb
        )
    return group


def run(arguments: list[str] | None = None) -> None:
    """Run the command line and leave the process with its exit code."""
    try:
        command()(args=arguments, prog_name="fathom")
    except Exception:
        traceback.print_exc()
        print(
            "\nfathom: this is a fault of Fathom's own. Please report it with the lines above and "
            "the output of `fathom doctor`.",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    run()

__all__ = ["VERBS", "Verbs", "command", "load", "run"]

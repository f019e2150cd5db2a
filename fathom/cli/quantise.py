"""`fathom quantise`: a plain checkpoint rounded to four and eight bits, and what is lost by it.

Promise: what is written is a ModelOpt checkpoint that vLLM and Fathom read (`fathom convert` gives
it other dialects); the report lies beside the weights. The work is the room `quantise/`'s.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from fathom.cli import source
from fathom.errors import ConfigError
from fathom.quantise.report import PICTURE, TABLE, Report, cells
from fathom.quantise.run import quantise as run
from fathom.quantise.texts import read_texts

Format = Literal[
    "nvfp4",
    "fp8",
    "mixed",
    "nano-fp8",
    "nano-nvfp4",
    "super-nvfp4",
    "ultra-nvfp4",
    "lightning",
    "nano-4b",
]


def quantise(
    checkpoint: Annotated[str, typer.Argument(help="A folder or a hub id with plain weights.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    form: Annotated[
        Format, typer.Option("--format", help="A map of formats; the long names are published.")
    ] = "mixed",
    calibrate: Annotated[
        str | None, typer.Option(help="Texts: a file, a folder or a hub dataset.")
    ] = None,
    rounding: Annotated[
        Literal["max", "mse", "4o6"] | None,
        typer.Option(help="How NVFP4 block scales are found; left out: as the map says."),
    ] = None,
    bits: Annotated[
        float | None, typer.Option(help="Search for formats of at most so many bits a weight.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of the texts to use.")] = 8192,
    length: Annotated[int, typer.Option(min=1, help="Most tokens of one text.")] = 2048,
) -> None:
    """Round weights to four and eight bits, and say what is lost."""
    if source.is_run(checkpoint):
        raise ConfigError(
            f"{checkpoint} is a run; make a checkpoint of it first: fathom convert {checkpoint} "
            f"FOLDER."
        )
    if bits is not None and calibrate is None:
        raise ConfigError("--bits searches by measuring; give it texts with --calibrate.")
    console = Console()
    texts = []
    if calibrate is not None:
        texts = read_texts(calibrate, source.open_text(checkpoint), tokens=tokens, length=length)
    with console.status("reading") as status:
        report = run(
            checkpoint, out, form, method=rounding, texts=texts, bits=bits, told=status.update
        )
    _show(console, report, out)
    if calibrate is None:
        _say(
            console,
            "No texts were given, so rows are not rounded and have no scales: this is for engines "
            "that multiply with plain rows (W4A16). vLLM wants scales for FP8; give --calibrate.",
        )


def _say(console: Console, text: str) -> None:
    """Print one line, however long."""
    console.print(text, highlight=False, soft_wrap=True)


def _show(console: Console, report: Report, out: Path) -> None:
    """Print the table and the sums."""
    table = Table("matrix", "format", box=None)
    for heading in ("MB", "SNR dB", "divergence"):
        table.add_column(heading, justify="right")
    for row in cells(report):
        table.add_row(*row)
    console.print(table)
    words = f"{report.bits:.3f} bits a weight"
    if report.divergence is not None:
        words += f", divergence {report.divergence:.4f} nats a token"
    _say(console, f"{words}. Written to {out}, with {TABLE} and {PICTURE}.")


__all__ = ["Format", "quantise"]

"""`fathom convert`: a checkpoint, or a training run, in the layout or dialect that others read.

Promise: the destination appears whole or not at all; weights change their type only if asked to,
codes never do, and router correction biases stay in fp32. Files are `checkpoint/weights.py`'s,
`rewrite.py`'s and `gguf.py`'s; which engine reads which is `docs/dialects.md`.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal

import typer
from rich.console import Console

from fathom.checkpoint import weights
from fathom.checkpoint.gguf import write_gguf
from fathom.checkpoint.rewrite import rewrite
from fathom.cli import source
from fathom.errors import ConfigError

To = Literal["modelopt", "compressed-tensors", "bf16", "gguf"]


def convert(
    src: Annotated[str, typer.Argument(help="A folder, a hub id, or the folder of a run.")],
    dst: Annotated[Path, typer.Argument(help="The folder, or the .gguf file, to write.")],
    to: Annotated[
        To | None,
        typer.Option(help="A dialect; left out: the official layout, quantised as ModelOpt does."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="bf16, fp16 or fp32; left out: as it is.")
    ] = None,
    which: Annotated[str, typer.Option(help="Of a run: last, best or a step's number.")] = "last",
    mtp: Annotated[bool, typer.Option(help="With gguf: whether the MTP head goes in.")] = True,
    pre: Annotated[
        str | None, typer.Option(help="With gguf: llama.cpp's name for how text is cut.")
    ] = None,
) -> None:
    """Turn a checkpoint or a run into the form that others read."""
    if to != "gguf" and (pre is not None or not mtp):
        raise ConfigError("--pre and --no-mtp are for --to gguf alone.")
    if to is None:
        _save(src, dst, dtype, which)
    elif source.is_run(src):
        dst.absolute().parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=dst.absolute().parent, prefix=".convert-") as folder:
            _save(src, Path(folder) / "run", dtype, which)
            _write(f"{folder}/run", dst, to, dtype, mtp, pre)
    else:
        _write(src, dst, to, dtype, mtp, pre)


def _say(text: str) -> None:
    """Print one line, however long."""
    Console().print(text, highlight=False, soft_wrap=True)


def _save(src: str, dst: Path, dtype: str | None, which: str) -> None:
    """Write the official layout."""
    kind = source.dtype_of(dtype)
    model = source.open_model(src, which=source.which_of(which))
    text = source.open_text(src) if source.has_text(src) else None
    folder = weights.save(model, dst, text, dtype=kind)
    words = "" if text else ", without a tokenizer: there was none"
    _say(
        f"{model.config.name}, {model.config.parameters:,} parameters, written to {folder}{words}."
    )


def _write(src: str, dst: Path, to: To, dtype: str | None, mtp: bool, pre: str | None) -> None:
    """Write a folder's weights in another dialect."""
    kind = source.dtype_of(dtype)
    if to == "gguf":
        write_gguf(src, dst, dtype=kind, mtp=mtp, pre=pre)
        told = []
    else:
        told = rewrite(src, dst, to, dtype=kind)
    _say(f"Written to {dst} as {to}.")
    for warning in told:
        _say(f"Warning: {warning}")


__all__ = ["To", "convert"]

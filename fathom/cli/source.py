"""Where a verb's model comes from: a Hugging Face folder, the hub, or a training run's folder.

Promise: the same argument means the same model to every verb. A run's folder is what
`fathom train` leaves: `recipe.toml`, `metrics.jsonl`, `text/` and `checkpoints/`. Reading files is
`checkpoint/`'s.
"""

from pathlib import Path
from typing import Literal

import torch

from fathom.checkpoint import weights
from fathom.checkpoint.run import Run
from fathom.config.model import ModelConfig
from fathom.errors import CheckpointError, ConfigError
from fathom.model.nemotron import Nemotron
from fathom.text import Text

CHECKPOINTS, TEXT = "checkpoints", "text"
"""Folders inside a run's folder."""

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Types by the names that the command line uses."""

Which = Literal["last", "best"] | int


def dtype_of(name: str | None) -> torch.dtype | None:
    """The type called `name`, None for None; raises `ConfigError` for an unknown one."""
    if name is None:
        return None
    if name not in DTYPES:
        raise ConfigError(f"There is no type {name!r}; known are {', '.join(DTYPES)}.")
    return DTYPES[name]


def which_of(text: str) -> Which:
    """What `--which` says: last, best or the number of a step."""
    if text.isdigit():
        return int(text)
    if text == "last":
        return "last"
    if text == "best":
        return "best"
    raise ConfigError(f"--which is last, best or the number of a step; got {text!r}.")


def is_run(source: str | Path) -> bool:
    """Whether `source` is the folder of a training run."""
    return (Path(source).expanduser() / CHECKPOINTS).is_dir()


def open_model(
    source: str | Path,
    *,
    which: Which = "last",
    dtype: torch.dtype | None = None,
    packed: bool = False,
) -> Nemotron:
    """Load a model, in evaluation mode, on a GPU if torch sees one; raises `CheckpointError`.

    `packed` lays it out for fast generation where it runs on the CPU; it cannot be trained then.
    """
    device = "cuda" if torch.cuda.is_available() else None
    packs = True if packed and device is None else None
    if not is_run(source):
        return weights.load(source, dtype=dtype, device=device, packed=packs).eval()
    saved = Run(Path(source).expanduser() / CHECKPOINTS).load(which)
    model = Nemotron(ModelConfig.of(saved.facts["model"]), seed=None)
    tensors = {
        name.removeprefix("model."): tensor
        for name, tensor in saved.tensors.items()
        if name.startswith("model.")
    }
    model.load_state_dict(tensors)
    model = model.to(device=device, dtype=dtype).eval()
    return model.pack() if packs else model


def open_text(source: str | Path) -> Text:
    """Load the tokenizer and template beside a model; raises `CheckpointError` or `TextError`."""
    if is_run(source):
        return Text.load(Path(source).expanduser() / TEXT)
    return Text.load(source)


def has_text(source: str | Path) -> bool:
    """Whether a tokenizer lies beside the model."""
    folder = Path(source).expanduser() / (TEXT if is_run(source) else "")
    return not folder.is_dir() or (folder / "tokenizer.json").is_file()


def open_both(
    source: str | Path, *, which: Which = "last", dtype: torch.dtype | None = None
) -> tuple[Nemotron, Text]:
    """Load a model, packed, and its text; raises `CheckpointError` if it has no tokenizer."""
    if not has_text(source):
        raise CheckpointError(
            f"{source} has no tokenizer.json, so words cannot become tokens. Put the model's "
            f"tokenizer files into the folder."
        )
    text = open_text(source)
    return open_model(source, which=which, dtype=dtype, packed=True), text


__all__ = [
    "CHECKPOINTS",
    "DTYPES",
    "TEXT",
    "Which",
    "dtype_of",
    "has_text",
    "is_run",
    "open_both",
    "open_model",
    "open_text",
    "which_of",
]

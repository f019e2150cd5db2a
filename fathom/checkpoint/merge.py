"""Several checkpoints of one model averaged into one.

Promise: what comes out is exactly the weighted sum of what went in, summed in fp32 and rounded
once; nothing is merged that does not match name by name and shape by shape; memory stays at a few
megabytes, however large the model.

Why it helps: the Nemotron reports evaluate a constant-rate run by averaging a sliding window of
its checkpoints instead of decaying the rate. With n checkpoints θ_0 ... θ_(n-1), evenly spaced, a
decay by factors f_j would have scaled the step from θ_(j-1) to θ_j, so it is imitated by

    θ = θ_0 + Σ_(j=1..n-1) f_j (θ_j − θ_(j-1)) = Σ_j w_j θ_j,   w_j = f_j − f_(j+1),

where f_0 = 1 and f_n = 0. The minus-sqrt decay f_j = 1 − sqrt(j/n) gives the weights

    w_j = sqrt((j+1)/n) − sqrt(j/n),

which are positive, sum to one, and weigh the oldest most; equal weights imitate a linear decay.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from fathom import hub
from fathom.checkpoint.atomic import new_folder, standing
from fathom.checkpoint.config_json import read_config
from fathom.checkpoint.expected import check, layout, stored_dtype
from fathom.checkpoint.folder import copy_text, write_model
from fathom.checkpoint.names import CORRECTION_BIAS, canonical, of_ours
from fathom.checkpoint.pieces import Item, Reader
from fathom.checkpoint.run import FACTS, TENSORS, Run
from fathom.checkpoint.safe import Entry, catalogue, header, read_object
from fathom.config.model import ModelConfig
from fathom.errors import CheckpointError, ConfigError

MODEL = "model."
"""What the names of the model's tensors begin with in a run's checkpoint; the rest is our name."""

Weights = Literal["minus-sqrt", "equal"] | Sequence[float]


@dataclass(frozen=True)
class _Source:
    """A checkpoint that goes in."""

    path: Path
    config: ModelConfig
    entries: dict[str, Entry]
    """Under official names."""


def window_weights(kind: Weights, count: int) -> tuple[float, ...]:
    """The weights of `count` checkpoints, oldest first; they sum to one.

    Raises `CheckpointError` for an unknown kind, or numbers that are too few or do not sum to one.
    """
    if kind == "equal":
        return (1 / count,) * count
    if kind == "minus-sqrt":
        roots = [math.sqrt(j / count) for j in range(count + 1)]
        return tuple(roots[j + 1] - roots[j] for j in range(count))
    if isinstance(kind, str):
        raise CheckpointError(
            f"There are no weights {kind!r}; wanted 'minus-sqrt', 'equal' or one number for each "
            f"checkpoint."
        )
    given = tuple(float(weight) for weight in kind)
    if len(given) != count or not abs(sum(given) - 1) < 1e-6:
        raise CheckpointError(
            f"Wanted {count} weights that sum to one, one for each checkpoint; got {list(given)} "
            f"with the sum {sum(given)}."
        )
    return given


def merge(
    paths: Sequence[str | Path],
    out: str | Path,
    weights: Weights = "minus-sqrt",
    *,
    dtype: torch.dtype | None = None,
) -> Path:
    """Write the weighted average of several checkpoints as an official checkpoint folder.

    Args:
        paths: oldest first: folders or hub ids in the official layout, checkpoints of a run
            (`run/step-00000100`), or a run's folder, which stands for all its checkpoints.
        out: the folder to write; replaced once the new one is complete.
        weights: see `window_weights`.
        dtype: stored type of the result; None: that of the checkpoints.

    Tokenizer, template and stop ids are copied from the newest checkpoint. Returns the folder.
    Raises `CheckpointError` if the checkpoints are not of one model, or `out` cannot be written.
    """
    sources = [_source(folder) for path in paths for folder in _expand(path)]
    if len(sources) < 2:
        raise CheckpointError(f"Merging needs two checkpoints at least; got {len(sources)}.")
    shares = window_weights(weights, len(sources))
    config = _agreed(sources)
    stored = dtype or stored_dtype(sources[0].entries)
    wanted = layout(config)
    with ExitStack() as stack:
        readers = [stack.enter_context(Reader()) for _ in sources]
        items = [
            Item(
                name,
                torch.float32 if name.endswith(CORRECTION_BIAS) else stored,
                slot.shape,
                partial(_average, [s.entries[name] for s in sources], shares, readers),
            )
            for name, slot in wanted.items()
        ]
        with new_folder(Path(out), sum(item.bytes for item in items)) as fresh:
            write_model(fresh, items, config, stored)
            copy_text(sources[-1].path, fresh)
    return Path(out)


def _average(
    entries: Sequence[Entry],
    shares: Sequence[float],
    readers: Sequence[Reader],
    piece: Tensor,
    start: int,
) -> None:
    """Fill `piece` with the weighted sum of the checkpoints' values from `start` on."""
    total = torch.zeros(piece.numel(), dtype=torch.float32)
    values = torch.empty(piece.numel(), dtype=torch.float32)
    for entry, share, reader in zip(entries, shares, readers, strict=True):
        reader.read(entry, values, start)
        total.add_(values, alpha=share)
    piece.copy_(total)


def _expand(path: str | Path) -> list[Path]:
    """One checkpoint's folder, or all of a run in the order of their steps."""
    local = standing(Path(path).expanduser())
    if not local.is_dir():
        return [hub.locate(path)]
    if (local / "config.json").exists() or (local / FACTS).exists():
        return [local]
    run = Run(local)
    return [run.path(step) for step in run.steps()] or [local]


def _source(folder: Path) -> _Source:
    """Read what a checkpoint says about itself, and check its tensors against its config."""
    if (folder / FACTS).exists():
        config = _config_of_run(folder)
        named = {
            name.removeprefix(MODEL): entry
            for name, entry in header(folder / TENSORS).items()
            if name.startswith(MODEL)
        }
        entries = of_ours(named)
    else:
        config = read_config(folder / "config.json")
        entries = canonical(catalogue(folder))
    check(entries, layout(config), folder)
    return _Source(folder, config, entries)


def _config_of_run(folder: Path) -> ModelConfig:
    """The shape of the model that a run trains, as its facts tell it."""
    facts = read_object(folder / FACTS).get("facts")
    told = facts.get("model") if isinstance(facts, Mapping) else None
    if not isinstance(told, Mapping):
        raise CheckpointError(
            f"{folder / FACTS} does not say which model this is (facts.model); wanted a "
            f"checkpoint of a training run."
        )
    try:
        return ModelConfig.of(told)
    except ConfigError as error:
        raise CheckpointError(f"{folder / FACTS}: facts.model is no model: {error}") from None


def _agreed(sources: Sequence[_Source]) -> ModelConfig:
    """The newest checkpoint's config, if all are of one model and stored alike."""
    newest = sources[-1]
    config = newest.config
    for source in sources:
        own = source.config.replace(name=config.name, init=config.init, context=config.context)
        if own != config:
            ours, theirs = own.as_dict(), config.as_dict()
            field = next(key for key in ours if ours[key] != theirs[key])
            raise CheckpointError(
                f"{source.path} and {newest.path} are not of one model: {field} is "
                f"{ours[field]!r} and {theirs[field]!r}."
            )
        for name, entry in source.entries.items():
            if entry.dtype != newest.entries[name].dtype:
                raise CheckpointError(
                    f"{name} is {entry.dtype} in {source.path} but {newest.entries[name].dtype} "
                    f"in {newest.path}; save them in one type first."
                )
    return config


__all__ = ["MODEL", "Weights", "merge", "window_weights"]

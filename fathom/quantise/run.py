"""A plain checkpoint in, a quantised one and its report out.

Promise: the folder written is what `checkpoint/quantise.py` makes of the table that a recipe or a
search gives it; the report lies in it. The model is loaded only where texts are given, to find
scales of activations (`calibrate.py`) and what rounding costs (`sensitivity.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fathom.checkpoint import weights
from fathom.checkpoint.expected import WEIGHT
from fathom.checkpoint.formats import Stored
from fathom.checkpoint.opened import Opened, open_checkpoint
from fathom.checkpoint.quantise import lay_formats
from fathom.checkpoint.quantise import quantise as write
from fathom.errors import ConfigError
from fathom.quantise.calibrate import Magnitudes, calibrate
from fathom.quantise.recipes import Method, Recipe, lay, part_of, recipe
from fathom.quantise.report import Report, Row, snr
from fathom.quantise.rounding import METHODS
from fathom.quantise.sensitivity import BITS, Unit, choose, divergence, expected, measure

Told = Callable[[str], None]


@dataclass
class _Found:
    """What the texts told."""

    magnitudes: Magnitudes
    reference: list[Tensor]
    """The plain model's log-probabilities."""
    units: Sequence[Unit] = ()


def quantise(
    source: str | Path,
    target: str | Path,
    name: str = "mixed",
    *,
    method: Method | None = None,
    texts: Sequence[Tensor] = (),
    bits: float | None = None,
    told: Told = lambda words: None,
) -> Report:
    """Quantise a checkpoint and say what it came to.

    Args:
        source: a folder or hub id with plain weights.
        target: the folder to write; it also gets the report.
        name: of a recipe (`recipes.RECIPES`).
        method: how block scales of NVFP4 are found; None: as the recipe says.
        texts: int64 ids [T] each, to calibrate and measure with; none: weights alone are rounded,
            and nothing but their own loss is told.
        bits: most bits a weight over all of the model: formats are searched for instead of taken
            from the recipe.
        told: hears what is being done.

    Raises:
        CheckpointError: the source is damaged or quantised, or the target cannot be written.
        ConfigError: an unknown recipe, `bits` without texts, or a budget that is too small.
    """
    own, opened = recipe(name), open_checkpoint(source)
    method = method or own.method
    if bits is not None and not texts:
        raise ConfigError("Formats are searched for by measuring; give texts to measure with.")
    found = _listen(source, texts, method, bits is not None, told) if texts else None
    table = _table(opened, own, bits, found)
    told("writing")
    sums: dict[str, list[float]] = {}

    def note(official: str, signal: float, noise: float) -> None:
        """Add up what is lost, over the experts of a layer."""
        both = sums.setdefault(opened.wanted[official].name.removesuffix(WEIGHT), [0.0, 0.0])
        both[0] += signal
        both[1] += noise

    scales = None if found is None else _scales(opened, own, table, found)
    write(source, target, table, rounding=METHODS[method], scales=scales, told=note)
    total = None
    if found is not None:
        told("measuring what is lost")
        after = weights.load(target, packed=False).eval()
        total = divergence(found.reference, after, texts)
    rows = tuple(_rows(opened, table, sums, found))
    report = Report(name, method, rows, opened.config.parameters, total)
    report.write(Path(target))
    return report


def _listen(
    source: str | Path, texts: Sequence[Tensor], method: Method, search: bool, told: Told
) -> _Found:
    """Run the plain model over the texts; with `search`, once more for every part and format."""
    told("calibrating")
    model = weights.load(source, packed=False).eval()
    found = _Found(calibrate(model, texts), expected(model, texts))
    if search:
        found.units = measure(
            model,
            texts,
            METHODS[method],
            lambda done, of: told(f"measuring part {done + 1} of {of}"),
            reference=found.reference,
        )
    return found


def _sizes(opened: Opened) -> dict[str, int]:
    """How many weights our matrices have, those of all experts of a layer together."""
    found: dict[str, int] = {}
    for official in opened.stored:
        slot = opened.wanted[official]
        name = slot.name.removesuffix(WEIGHT)
        found[name] = found.get(name, 0) + slot.shape[0] * slot.shape[1]
    return found


def _table(
    opened: Opened, own: Recipe, bits: float | None, found: _Found | None
) -> dict[str, Stored]:
    """The format of every matrix."""
    if bits is None:
        return lay(own, opened.config, list(_sizes(opened)))
    assert found is not None
    plain: dict[str, Stored] = dict.fromkeys(_sizes(opened), "plain")
    return plain | choose(found.units, bits, opened.config.parameters)


def _scales(
    opened: Opened, own: Recipe, table: Mapping[str, Stored], found: _Found
) -> dict[str, float]:
    """The scales of activations, keys and values to be written."""
    kinds = lay_formats(opened.config, opened.wanted, table)
    return found.magnitudes.scales(opened.wanted, kinds, rows=own.rows, cache=own.cache)


def _rows(
    opened: Opened,
    table: Mapping[str, Stored],
    sums: Mapping[str, Sequence[float]],
    found: _Found | None,
) -> list[Row]:
    """One row a matrix."""
    alone = {
        name: unit.lost[table[name]]
        for unit in (found.units if found is not None else ())
        for name in unit.matrices
    }
    return [
        Row(
            matrix=name,
            part=part_of(name),
            kind=table[name],
            weights=size,
            bytes=round(size * BITS[table[name]] / 8),
            snr=snr(*sums[name]) if name in sums else None,
            divergence=alone.get(name),
        )
        for name, size in _sizes(opened).items()
    ]


__all__ = ["quantise"]

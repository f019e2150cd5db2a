"""A checkpoint folder opened: what its files say, checked before a value is read.

Promise: whoever reads a checkpoint sees official names, ModelOpt's names of scales and one answer
to how each matrix is stored, whichever dialect the files speak; a folder whose files do not fit
one another is refused here. Reading values is `weights.py`'s and `rewrite.py`'s.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Literal

from fathom import hub
from fathom.checkpoint import compressed, formats
from fathom.checkpoint.atomic import standing
from fathom.checkpoint.config_json import read_config
from fathom.checkpoint.expected import ACTIVATIONS, WEIGHT, check, layout, stored_formats
from fathom.checkpoint.formats import FIELD, FILE, Precisions, Says, Stored
from fathom.checkpoint.names import Slot, canonical
from fathom.checkpoint.safe import Entry, catalogue, read_object
from fathom.config.model import ModelConfig
from fathom.errors import CheckpointError

Dialect = Literal["modelopt", "compressed-tensors"]
PLAIN = Precisions(None, {}, ())
"""What a checkpoint says that says nothing."""


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose tensors fit its config."""

    folder: Path
    config: ModelConfig
    entries: Mapping[str, Entry]
    """Its tensors by official name; scales are called as ModelOpt calls them."""
    wanted: Mapping[str, Slot]
    """The model's tensors and their places (`expected.layout`)."""
    stored: Mapping[str, Stored]
    """How each matrix is stored."""
    dialect: Dialect | None
    """Who described the formats; None: all is plain."""

    @property
    def quantised(self) -> Mapping[str, Stored] | None:
        """How each matrix is stored; None: all is plain."""
        return None if self.dialect is None else self.stored

    @property
    def scales(self) -> dict[str, Entry]:
        """Scales of activations, keys and values."""
        return {name: e for name, e in self.entries.items() if name.endswith(ACTIVATIONS)}

    def spelt(self, name: str) -> str:
        """The name that a tensor has in the files' own dialect."""
        if self.dialect != "compressed-tensors":
            return name
        return compressed.spelt(name, self.stored.get(matrix_of(name), "plain"))[0]

    def algorithms(self) -> dict[str, str]:
        """The quantised modules and ModelOpt's words for how."""
        return algorithms(self.stored, self.entries)


def algorithms(kinds: Mapping[str, Stored], tensors: Collection[str] = ()) -> dict[str, str]:
    """ModelOpt's words for how modules are quantised.

    Args:
        kinds: the format of every matrix, by official name; plain ones are left out.
        tensors: official names, among them the scales of the rows that meet matrices.
    """
    words: dict[str, str] = {}
    for name, kind in kinds.items():
        module = name.removesuffix(WEIGHT)
        if kind == "fp8":
            words[module] = "FP8"
        elif kind == "nvfp4":
            words[module] = "NVFP4" if f"{module}.input_scale" in tensors else "W4A16_NVFP4"
    return words


def matrix_of(name: str) -> str:
    """The official name of the matrix that a tensor, a scale perhaps, belongs to."""
    return name.rpartition(".")[0] + WEIGHT


def locate(path: str | Path) -> Path:
    """The folder that a path or a hub id means; raises `CheckpointError`."""
    local = standing(Path(path).expanduser())
    return local if local.is_dir() else hub.locate(path)


def read_precisions(folder: Path) -> tuple[Dialect | None, Says]:
    """Who describes the formats of a checkpoint folder, and what they say.

    hf_quant_config.json is asked first, then `quantization_config` in config.json; no
    dialect: nothing is said, so all is plain. Raises `CheckpointError` for what is not read here.
    """
    if (folder / FILE).exists():
        told = read_object(folder / FILE).get("quantization")
        return "modelopt", formats.parse(told, str(folder / FILE))
    told = read_object(folder / "config.json").get(FIELD)
    if not told:
        return None, PLAIN
    what = f"{folder / 'config.json'} ({FIELD})"
    method = told.get("quant_method") if isinstance(told, dict) else None
    if method == compressed.METHOD:
        return "compressed-tensors", compressed.parse(told, what)
    if not isinstance(method, str) or not method.startswith("modelopt"):
        raise CheckpointError(
            f"{what} describes weights quantised by {method!r}; quantised checkpoints are read as "
            f"ModelOpt and compressed-tensors write them (quant_method 'modelopt' or "
            f"{compressed.METHOD!r}). Take such a one or the BF16 sibling of the model."
        )
    excluding = "ignore" if "ignore" in told else "exclude_modules"
    return "modelopt", formats.parse(told, what, excluding)


def open_checkpoint(path: str | Path, *, ignore: Collection[str] = (), mtp: bool = True) -> Opened:
    """Open a folder or hub id in the official layout.

    Args:
        path: a folder, or `owner/name[@revision]` on the hub.
        ignore: config fields and tensors (patterns such as `*.k_scale`) to pass over.
        mtp: whether the MTP head of a model that has one counts.

    Raises `CheckpointError` if files are missing, damaged, quantised in a way that is not read here
    or of another model; only headers and JSON are read.
    """
    folder = locate(path)
    dialect, precisions = read_precisions(folder)
    config = read_config(folder / "config.json", ignore=ignore)
    entries = catalogue(folder)
    if dialect == "compressed-tensors":
        entries = compressed.renamed(entries)
    entries = canonical(entries)
    if not mtp and config.mtp:
        config = config.replace(mtp="")
        entries = {name: e for name, e in entries.items() if not name.startswith("mtp.")}
    entries = {
        name: entry for name, entry in entries.items() if not any(fnmatch(name, p) for p in ignore)
    }
    wanted = layout(config)
    stored = stored_formats(config, wanted, precisions)
    found = Opened(folder, config, entries, wanted, stored, dialect)
    check(entries, wanted, folder, found.quantised, found.spelt)
    return found


__all__ = [
    "PLAIN",
    "Dialect",
    "Opened",
    "algorithms",
    "locate",
    "matrix_of",
    "open_checkpoint",
    "read_precisions",
]

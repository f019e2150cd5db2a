"""How large the rows are that meet each matrix, and keys and values, on some texts.

Promise: the model is read and never changed; what is found is a maximum over all tokens, so the
order of texts does not matter. The scales are those that ModelOpt writes: for the rows of an NVFP4
matrix A / 2688, of an FP8 matrix A / 448, for keys and values A / 448. Every expert has its own;
one that no token was sent to takes the largest of its layer's. Matrices that take the same rows
get the same scale.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fathom.checkpoint.expected import WEIGHT
from fathom.checkpoint.formats import Stored
from fathom.checkpoint.names import Slot
from fathom.errors import DataError
from fathom.model.latent_moe import Experts
from fathom.model.nemotron import Nemotron
from fathom.model.precision import Linear
from fathom.ops.experts import squared_relu
from fathom.ops.layout import Layout

LARGEST: Mapping[Stored, float] = {"nvfp4": 6.0 * 448.0, "fp8": 448.0}
"""The number that a row's largest magnitude becomes."""


@dataclass
class Magnitudes:
    """Largest magnitudes, fp32, by our names of matrices."""

    rows: dict[str, Tensor] = field(default_factory=dict)
    """Of what is multiplied with a matrix: [], or [E] for the experts of a layer."""
    out: dict[str, Tensor] = field(default_factory=dict)
    """Of keys and values, []."""

    def scales(
        self, wanted: Mapping[str, Slot], kinds: Mapping[str, Stored], *, rows: bool, cache: bool
    ) -> dict[str, float]:
        """The scales to be written, by official name.

        Args:
            wanted: the model's tensors (`expected.layout`).
            kinds: the format of every matrix, by official name.
            rows: whether NVFP4 matrices get scales of their rows (W4A4).
            cache: whether keys and values get scales.
        """
        found: dict[str, float] = {}
        for name, slot in wanted.items():
            own, module = slot.name.removesuffix(WEIGHT), name.removesuffix(WEIGHT)
            kind = kinds.get(name, "plain")
            if own in self.rows and (kind == "fp8" or (kind == "nvfp4" and rows)):
                amax = self.rows[own] if slot.expert is None else self._of_expert(own, slot.expert)
                found[f"{module}.input_scale"] = _scale(amax, LARGEST[kind])
            if cache and own in self.out:
                found[f"{module}.{own[-6]}_scale"] = _scale(self.out[own], LARGEST["fp8"])
        return found

    def _of_expert(self, name: str, expert: int) -> Tensor:
        """One expert's magnitude; that of the largest for one that was never asked."""
        own = self.rows[name][expert]
        return own if own > 0 else self.rows[name].amax()


def _scale(amax: Tensor, largest: float) -> float:
    """A scale; one where nothing but zeros was seen."""
    return amax.item() / largest or 1.0


def calibrate(model: Nemotron, texts: Sequence[Tensor]) -> Magnitudes:
    """Run a plain model over texts (int64 ids [T] each) and keep the largest magnitudes.

    Raises `DataError` if there are no tokens.
    """
    if not any(len(ids) for ids in texts):
        raise DataError("There are no tokens to calibrate with; give a text that is not empty.")
    found = Magnitudes()
    with _watching(model, found), torch.no_grad():
        for ids in texts:
            # the head's rows count too
            model.logits(model(ids, Layout.of([len(ids)])))
    return found


@contextmanager
def _watching(model: nn.Module, found: Magnitudes) -> Iterator[None]:
    """Note magnitudes as the model runs, until the block ends."""
    handles = []
    for name, part in model.named_modules():
        if isinstance(part, Linear):
            handles.append(part.register_forward_hook(_linear_hook(name, found)))
        elif isinstance(part, Experts):
            handles.append(part.register_forward_hook(_experts_hook(name, found)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _keep(kept: dict[str, Tensor], name: str, amax: Tensor) -> None:
    """Keep the larger of what was seen and this."""
    kept[name] = torch.maximum(kept[name], amax) if name in kept else amax


def _linear_hook(name: str, found: Magnitudes):  # type: ignore[no-untyped-def]
    """What notes the rows of one matrix, and keys or values where it makes them."""

    def note(part: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        _keep(found.rows, name, given[0].abs().amax().float())
        if name.endswith((".k_proj", ".v_proj")):
            _keep(found.out, name, out.abs().amax().float())

    return note


def _experts_hook(name: str, found: Magnitudes):  # type: ignore[no-untyped-def]
    """What notes the rows of every expert's two matrices; the first product is done again."""

    def note(part: Experts, given: tuple[Tensor, Tensor, Tensor], out: Tensor) -> None:
        x_TD, chosen_TK, _ = given
        assert part.up is not None
        up, down = (torch.zeros(len(part.up)) for _ in range(2))
        for expert in chosen_TK.unique().tolist():
            rows = x_TD[(chosen_TK == expert).any(-1)]
            up[expert] = rows.abs().amax()
            down[expert] = squared_relu(rows @ part.up[expert].T).abs().amax()
        _keep(found.rows, f"{name}.up", up)
        _keep(found.rows, f"{name}.down", down)

    return note


__all__ = ["LARGEST", "Magnitudes", "calibrate"]

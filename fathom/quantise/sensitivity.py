"""How much each part of a model minds being rounded, and the best formats within a budget.

Promise: a part's sensitivity is measured, not guessed: the mean Kullback-Leibler divergence of the
next token's distribution from the plain model's when that part alone is rounded. Formats are chosen
so that the sum of divergences is small at a given number of bits a weight (all weights of the
model counted), as ModelOpt's AutoQuantize does. Matrices that engines multiply as one (queries,
keys, values) are one part. The model is put back as it was, bit for bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.checkpoint.formats import GROUP, Stored
from fathom.checkpoint.quantise import Rounding
from fathom.errors import ConfigError
from fathom.model.latent_moe import Experts
from fathom.model.nemotron import Nemotron
from fathom.model.precision import Linear
from fathom.ops import nvfp4
from fathom.ops.layout import Layout
from fathom.quantise.recipes import part_of

BITS: Mapping[Stored, float] = {"nvfp4": 4.5, "fp8": 8.0, "plain": 16.0}
"""Bits of a weight; the scales of whole matrices count for nothing."""


@dataclass(frozen=True)
class Unit:
    """Matrices that get one format."""

    matrices: tuple[str, ...]
    """Our names, without `.weight`."""
    weights: int
    """How many weights they have."""
    lost: Mapping[Stored, float]
    """Format -> divergence in nats when these alone are rounded; `plain` is 0."""

    def cost(self, kind: Stored) -> float:
        """Bits of all weights in a format."""
        return BITS[kind] * self.weights


def parameters(model: Nemotron) -> dict[str, Tensor]:
    """The plain matrices of a model by our names; those of a layer's experts are one [E, O, I].

    Raises `ConfigError` if they are packed.
    """
    found: dict[str, Tensor] = {}
    for name, part in model.named_modules():
        if isinstance(part, Linear):
            found[name] = part.plain
        elif isinstance(part, Experts):
            if part.up is None or part.down is None:
                raise ConfigError("Packed experts cannot be rounded; load with packed=False.")
            found[f"{name}.up"], found[f"{name}.down"] = part.up, part.down
    return found


def units(matrices: Sequence[str]) -> list[tuple[str, ...]]:
    """Matrices that are rounded alike, in their order; the MTP head's are left out."""
    found: dict[str, list[str]] = {}
    for name in matrices:
        part = part_of(name)
        if part != "mtp":
            own = name.rpartition(".")[0] + ".qkv" if part == "qkv" else name
            found.setdefault(own, []).append(name)
    return [tuple(names) for names in found.values()]


def rounded(weights: Sequence[Tensor], kind: Stored, rounding: Rounding) -> list[Tensor]:
    """Matrices [O, I], or stacks of them, as a format would have them: fp32; NVFP4 ones that come
    together share one scale."""
    if kind == "plain":
        return [weight.float() for weight in weights]
    if weights[0].dim() == 3:
        (stack,) = weights
        return [torch.stack([rounded([one], kind, rounding)[0] for one in stack])]
    amax = torch.stack([nvfp4.largest(weight) for weight in weights]).amax()
    found: list[Tensor] = []
    for weight in weights:
        if kind == "fp8":
            scale = nvfp4.tensor_scale_fp8(amax)
            values = nvfp4.encode_fp8(weight.float(), scale)
            found.append(nvfp4.dequantise_fp8(values, scale))
        else:
            codes, scales = rounding.encode(weight.float(), amax)
            found.append(nvfp4.dequantise(nvfp4.Quantised(codes, scales, rounding.scale(amax))))
    return found


@contextmanager
def _put(weights: Sequence[Tensor], values: Sequence[Tensor]) -> Iterator[None]:
    """Let matrices have other values until the block ends."""
    before = [weight.detach().clone() for weight in weights]
    try:
        for weight, value in zip(weights, values, strict=True):
            weight.detach().copy_(value)
        yield
    finally:
        for weight, value in zip(weights, before, strict=True):
            weight.detach().copy_(value)


@torch.no_grad()
def expected(model: Nemotron, texts: Sequence[Tensor]) -> list[Tensor]:
    """Log-probabilities of the next token, fp32 [T, V], for texts of ids [T]."""
    hidden = (model(ids, Layout.of([len(ids)])) for ids in texts)
    return [model.logits(rows).float().log_softmax(-1) for rows in hidden]


def divergence(reference: Sequence[Tensor], model: Nemotron, texts: Sequence[Tensor]) -> float:
    """Mean divergence, in nats, of a model's next tokens from what `expected` gave."""
    total = 0.0
    for ids, p in zip(texts, reference, strict=True):
        (q,) = expected(model, [ids])
        total += (p.exp() * (p - q)).sum().item()
    # rounding may leave a divergence of nothing a little below it
    return max(0.0, total / sum(len(p) for p in reference))


@torch.no_grad()
def measure(
    model: Nemotron,
    texts: Sequence[Tensor],
    rounding: Rounding,
    told: Callable[[int, int], None] = lambda done, of: None,
    *,
    reference: Sequence[Tensor] | None = None,
) -> list[Unit]:
    """Measure every part in every format: two passes over the texts for each.

    Args:
        model: with plain weights.
        texts: int64 ids [T] each.
        rounding: how weights become NVFP4.
        told: hears how many parts of how many are measured.
        reference: what `expected` gave of this model and these texts; None: it is asked.
    """
    weights = parameters(model)
    reference = expected(model, texts) if reference is None else reference
    found: list[Unit] = []
    grouped = units(list(weights))
    for done, names in enumerate(grouped):
        told(done, len(grouped))
        own = [weights[name] for name in names]
        lost: dict[Stored, float] = {"plain": 0.0}
        kinds: tuple[Stored, ...] = ("fp8", "nvfp4")
        for kind in kinds:
            if kind == "nvfp4" and any(weight.shape[-1] % GROUP for weight in own):
                continue
            with _put(own, rounded(own, kind, rounding)):
                lost[kind] = divergence(reference, model, texts)
        found.append(Unit(names, sum(weight.numel() for weight in own), lost))
    return found


def choose(found: Sequence[Unit], bits: float, parameters: int) -> dict[str, Stored]:
    """The format of every matrix: least divergence within a budget.

    Every part begins plain; again and again the step that saves a bit for the least divergence is
    taken, until the budget is met; then what room is left is spent where it helps most.

    Args:
        found: what `measure` found.
        bits: most bits a weight, over all of the model.
        parameters: weights of the whole model; those of no part have 16 bits.

    Raises `ConfigError` if the budget is below what the narrowest formats need.
    """
    kinds: list[Stored] = ["plain" for _ in found]
    inside = sum(unit.weights for unit in found)
    room = bits * parameters - BITS["plain"] * (parameters - inside)
    least = sum(min(unit.cost(kind) for kind in unit.lost) for unit in found)
    if room < least:
        lowest = (least + BITS["plain"] * (parameters - inside)) / parameters
        raise ConfigError(
            f"{bits} bits a weight are too few: with every matrix in its narrowest format the "
            f"model has {lowest:.3f}, for embeddings, norms and the MTP head stay as they are."
        )
    spent = sum(unit.cost("plain") for unit in found)
    while spent > room:
        place, kind = min(_narrower(found, kinds), key=lambda step: _price(found, kinds, *step))
        spent += found[place].cost(kind) - found[place].cost(kinds[place])
        kinds[place] = kind
    while steps := [
        (place, kind)
        for place, kind in _wider(found, kinds)
        if spent + found[place].cost(kind) - found[place].cost(kinds[place]) <= room
    ]:
        place, kind = max(steps, key=lambda step: _gain(found, kinds, *step))
        if _gain(found, kinds, place, kind) <= 0:
            break
        spent += found[place].cost(kind) - found[place].cost(kinds[place])
        kinds[place] = kind
    return {name: kind for unit, kind in zip(found, kinds, strict=True) for name in unit.matrices}


def _narrower(found: Sequence[Unit], kinds: Sequence[Stored]) -> Iterator[tuple[int, Stored]]:
    """Every step to fewer bits."""
    for place, (unit, own) in enumerate(zip(found, kinds, strict=True)):
        yield from ((place, kind) for kind in unit.lost if BITS[kind] < BITS[own])


def _wider(found: Sequence[Unit], kinds: Sequence[Stored]) -> Iterator[tuple[int, Stored]]:
    """Every step to more bits."""
    for place, (unit, own) in enumerate(zip(found, kinds, strict=True)):
        yield from ((place, kind) for kind in unit.lost if BITS[kind] > BITS[own])


def _gain(found: Sequence[Unit], kinds: Sequence[Stored], place: int, kind: Stored) -> float:
    """How much less is lost after a step."""
    return found[place].lost[kinds[place]] - found[place].lost[kind]


def _price(found: Sequence[Unit], kinds: Sequence[Stored], place: int, kind: Stored) -> float:
    """Divergence for a bit that a step saves."""
    saved = found[place].cost(kinds[place]) - found[place].cost(kind)
    return -_gain(found, kinds, place, kind) / saved


__all__ = [
    "BITS",
    "Unit",
    "choose",
    "divergence",
    "expected",
    "measure",
    "parameters",
    "rounded",
    "units",
]

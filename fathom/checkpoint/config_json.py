"""An official config.json read into a `ModelConfig`.

Promise: two models that would compute differently never read alike: a field that changes the
mathematics in a way we do not compute is refused with the reason, and so is a field that nobody
here knows. All dialects of the family are read: pattern strings and lists of block types in both
vocabularies, Puzzle's per-block experts, bare `Infinity`. The tables are in `config_fields.py`;
writing is `config_write.py`.
"""

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from fathom.checkpoint.config_fields import ALIASES, ARCHITECTURES, FIXED, KNOWN, TYPES
from fathom.checkpoint.safe import read_object
from fathom.config.model import (
    LETTERS,
    AttentionConfig,
    MambaConfig,
    MlpConfig,
    ModelConfig,
    MoEConfig,
)
from fathom.config.strict import nearest
from fathom.errors import CheckpointError, ConfigError
from fathom.model.sizes import SIZES

_NO_LIMIT = 1e300
"""A dt this large never occurs; Ultra writes 1e308 where Super writes Infinity."""

Ask = Callable[[str], Any]


def read_config(path: Path, *, ignore: Collection[str] = ()) -> ModelConfig:
    """Read the config.json at `path`; `ignore` names fields to pass over.

    Raises `CheckpointError` naming the field that is missing, unknown, contradictory or asks for
    mathematics that Fathom does not compute.
    """
    return parse(read_object(path), str(path), ignore=ignore)


def parse(
    fields: Mapping[str, Any], what: str = "config.json", *, ignore: Collection[str] = ()
) -> ModelConfig:
    """Build the `ModelConfig` that the fields of a config.json describe; see `read_config`."""
    known = _known({k: v for k, v in fields.items() if k not in ignore}, what)

    def ask(name: str) -> Any:
        if name not in known:
            raise CheckpointError(f"{what} needs the field {name!r}.")
        return known[name]

    try:
        config = _build(known, ask, what)
    except ConfigError as error:
        raise CheckpointError(f"{what} describes no model that can be built: {error}") from None
    return _named(config, known.get("fathom"))


def _known(fields: dict[str, Any], what: str) -> dict[str, Any]:
    """Unify spellings, refuse what is unknown and what would change the mathematics."""
    for name in fields:
        if name not in KNOWN:
            raise CheckpointError(
                f"{what} has the field {name!r}, which nobody here knows; it might change what "
                f"the model computes.{nearest(name, KNOWN)} If it does not, pass "
                f"ignore=({name!r},)."
            )
    found: dict[str, Any] = {}
    for name, value in fields.items():
        key = ALIASES.get(name, name)
        if key in found and found[key] != value:
            raise CheckpointError(
                f"{what} contradicts itself: {name} is {value!r}, but {key} is {found[key]!r}."
            )
        found[key] = value
    for name, (wanted, reason) in FIXED.items():
        value = found.get(name, wanted)
        # False is 0 to Python; a file that writes 0 for false means the same
        if value != wanted:
            raise CheckpointError(
                f"{what}: {name} is {value!r}, but Fathom computes {wanted!r} alone: {reason}. "
                f"This model would give other numbers here, so it is not loaded."
            )
    _check_kind(found, what)
    _check_limit(found.get("time_step_limit"), what)
    return found


def _check_kind(found: Mapping[str, Any], what: str) -> None:
    """Refuse models of another kind."""
    kind = found.get("model_type")
    if kind not in ARCHITECTURES:
        raise CheckpointError(
            f"{what}: model_type is {kind!r}; Fathom reads {' and '.join(ARCHITECTURES)} alone."
        )
    named = found.get("architectures") or [ARCHITECTURES[kind]]
    if ARCHITECTURES[kind] not in named:
        raise CheckpointError(
            f"{what}: architectures is {named!r}; wanted {ARCHITECTURES[kind]}, a language "
            f"model with a head."
        )


def _check_limit(limit: Any, what: str) -> None:
    """Refuse a clamp on dt; training and the official configs have none."""
    if limit is None:
        return
    values = [_number(value) for value in limit] if isinstance(limit, list | tuple) else []
    if len(values) != 2 or values[0] > 0 or not values[1] >= _NO_LIMIT:
        raise CheckpointError(
            f"{what}: time_step_limit is {limit!r}, but dt is not clamped here: wanted "
            f"[0.0, Infinity]. This model would give other numbers, so it is not loaded."
        )


def _number(value: Any) -> float:
    """A number, as transformers writes infinities too; NaN if it is none."""
    if isinstance(value, dict):
        value = value.get("__float__")
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _letters(types: Any, what: str, field: str) -> str:
    """A pattern from a list of block types."""
    if not isinstance(types, list):
        raise CheckpointError(f"{what}: {field} must be a list of block types, not {types!r:.60}.")
    for index, word in enumerate(types):
        if word not in TYPES:
            raise CheckpointError(
                f"{what}: {field} has {word!r} at place {index}; known are {', '.join(TYPES)}."
                f"{nearest(str(word), TYPES)}"
            )
    return "".join(TYPES[word] for word in types)


def _pattern(known: Mapping[str, Any], what: str, head: str = "") -> str:
    """The pattern of the backbone, or with `head` "mtp_" of the MTP head; all forms must agree."""
    forms: dict[str, str] = {}
    if (text := known.get(f"{head}hybrid_override_pattern")) is not None:
        strange = sorted(set(str(text)) - set(LETTERS))
        if strange:
            raise CheckpointError(
                f"{what}: {head}hybrid_override_pattern has {''.join(strange)!r}; a block is one "
                f"of the letters M E * -."
            )
        forms[f"{head}hybrid_override_pattern"] = str(text)
    if (types := known.get(f"{head}layers_block_type")) is not None:
        field = f"{head}layers_block_type"
        forms[field] = _letters(types, what, field)
    if (blocks := known.get(f"{head}block_configs")) is not None:
        field = f"{head}block_configs"
        forms[field] = _letters([_block(b, what).get("block_type") for b in blocks], what, field)
    if not forms:
        raise CheckpointError(
            f"{what} does not say which blocks the model has: wanted "
            f"{head}hybrid_override_pattern or {head}layers_block_type."
        )
    if len(set(forms.values())) > 1:
        told = "; ".join(f"{field} says {pattern!r}" for field, pattern in forms.items())
        raise CheckpointError(f"{what} contradicts itself about the blocks: {told}.")
    return next(iter(forms.values()))


def _block(block: Any, what: str) -> dict[str, Any]:
    """One entry of Puzzle's block_configs."""
    known = {"block_type", "moe_intermediate_size", "num_experts_per_tok", "n_routed_experts"}
    if not isinstance(block, dict) or (strange := set(block) - known):
        wrong = block if not isinstance(block, dict) else sorted(strange)
        raise CheckpointError(
            f"{what}: a block of block_configs may hold {', '.join(sorted(known))}; got {wrong!r}."
        )
    return block


def _build(known: Mapping[str, Any], ask: Ask, what: str) -> ModelConfig:
    """Put the record together, asking only for what the blocks need."""
    pattern = _pattern(known, what)
    layers = known.get("num_hidden_layers")
    if layers is not None and layers != len(pattern):
        raise CheckpointError(
            f"{what} contradicts itself: num_hidden_layers is {layers}, but the pattern "
            f"{pattern!r} has {len(pattern)} blocks."
        )
    modules = known.get("num_nextn_predict_layers") or 0
    if modules not in (0, 1):
        raise CheckpointError(
            f"{what}: num_nextn_predict_layers is {modules!r}; the family has one MTP module "
            f"(used again at every depth) or none."
        )
    mtp = _pattern(known, what, "mtp_") if modules else ""
    used = pattern + mtp
    moe, moe_of = _experts(known, ask, what, pattern, mtp) if "E" in used else (None, {})
    return ModelConfig(
        vocab=ask("vocab_size"),
        width=ask("hidden_size"),
        pattern=pattern,
        mamba=_mamba(ask) if "M" in used else None,
        attention=_attention(ask) if "*" in used else None,
        moe=moe,
        moe_of=moe_of,
        mlp=MlpConfig(hidden=ask("intermediate_size")) if "-" in used else None,
        mtp=mtp,
        tied=known.get("tie_word_embeddings", False),
        eps=ask("layer_norm_epsilon"),
        context=ask("max_position_embeddings"),
    )


def _mamba(ask: Ask) -> MambaConfig:
    return MambaConfig(
        heads=ask("mamba_num_heads"),
        head_width=ask("mamba_head_dim"),
        state=ask("ssm_state_size"),
        groups=ask("n_groups"),
        conv=ask("conv_kernel"),
        chunk=ask("chunk_size"),
    )


def _attention(ask: Ask) -> AttentionConfig:
    return AttentionConfig(
        heads=ask("num_attention_heads"),
        kv_heads=ask("num_key_value_heads"),
        head_width=ask("head_dim"),
    )


def _experts(
    known: Mapping[str, Any], ask: Ask, what: str, pattern: str, mtp: str
) -> tuple[MoEConfig, dict[int, MoEConfig]]:
    """The common shape of the E blocks, and the blocks that differ from it (Puzzle)."""
    shared = known.get("n_shared_experts", 1) or 0
    if shared not in (0, 1):
        raise CheckpointError(
            f"{what}: n_shared_experts is {shared!r}; the family has one shared expert, as wide "
            f"as all of them together, or none."
        )

    def shape(block: Mapping[str, Any], experts: Any) -> MoEConfig:
        def own(name: str) -> Any:
            return block[name] if block.get(name) is not None else ask(name)

        return MoEConfig(
            experts=experts if experts is not None else own("n_routed_experts"),
            chosen=own("num_experts_per_tok"),
            expert_width=own("moe_intermediate_size"),
            shared_width=ask("moe_shared_expert_intermediate_size") if shared else 0,
            latent=known.get("moe_latent_size"),
            scale=ask("routed_scaling_factor"),
        )

    blocks = known.get("block_configs") or [{}] * len(pattern)
    shapes = {i: shape(blocks[i], None) for i, letter in enumerate(pattern) if letter == "E"}
    if "E" in mtp:
        heads = known.get("mtp_block_configs") or [{}] * len(mtp)
        found = [
            shape(_block(block, what), known.get("mtp_n_routed_experts"))
            for block, letter in zip(heads, mtp, strict=True)
            if letter == "E"
        ]
        if len({repr(one) for one in found}) > 1:
            raise CheckpointError(f"{what}: the MTP head's E blocks must be of one shape.")
        common = found[0]
    else:
        # the shape of most blocks, so that the exceptions are few
        names = [repr(one) for one in shapes.values()]
        common = max(shapes.values(), key=lambda one: names.count(repr(one)))
    return common, {i: one for i, one in shapes.items() if one != common}


def _named(config: ModelConfig, own: Any) -> ModelConfig:
    """Give the config its name and its initial spread, which no official field tells."""
    for size in SIZES.values():
        if config == size.replace(name=config.name, init=config.init, context=config.context):
            config = config.replace(name=size.name, init=size.init)
    if isinstance(own, dict):
        told = {key: own[key] for key in ("name", "init") if key in own}
        try:
            return config.replace(**told)
        except ConfigError as error:
            raise CheckpointError(f"The field 'fathom' of config.json: {error}") from None
    return config


__all__ = ["parse", "read_config"]

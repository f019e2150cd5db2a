"""Tokens, merges and template of a checkpoint, as a GGUF file holds them.

Promise: llama.cpp cuts and merges text into the same ids as tokenizer.json does, and adds none of
its own; a tokenizer whose way of cutting is not known to be one of llama.cpp's is refused, never
guessed. What the tokenizer means is the room `text/`'s.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fathom.checkpoint.safe import read_object
from fathom.errors import CheckpointError
from fathom.text.tokenizer import FILE, PATTERN

CUTS: Mapping[str, str] = {PATTERN: "tekken"}
"""Patterns that cut text before merging, and llama.cpp's names for them."""
TEMPLATE = "chat_template.jinja"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""llama.cpp's kinds of tokens."""
ROLES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<unk>", "eot": "<|im_end|>"}


def add_text(writer: Any, folder: Path, rows: int, pre: str | None) -> None:
    """Give a gguf.GGUFWriter the vocabulary of a checkpoint folder.

    Args:
        writer: a gguf.GGUFWriter.
        folder: the checkpoint; without tokenizer.json the file gets no vocabulary.
        rows: of the embedding: so many tokens there are.
        pre: llama.cpp's name for how text is cut; None: found by the tokenizer's pattern.

    Raises `CheckpointError` for tokenizers that llama.cpp would read differently.
    """
    if not (folder / FILE).exists():
        writer.add_tokenizer_model("none")
        return
    told = read_object(folder / FILE)
    model = told.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise CheckpointError(
            f"{folder / FILE} has no byte-pair vocabulary, so GGUF cannot hold it."
        )
    if told.get("normalizer") is not None:
        raise CheckpointError(
            f"{folder / FILE} changes text before it cuts it (normalizer), which llama.cpp would "
            f"not do."
        )
    added = {token["id"]: token for token in told.get("added_tokens", [])}
    names = {number: token for token, number in model["vocab"].items()}
    names |= {number: token["content"] for number, token in added.items()}
    if max(names) >= rows:
        raise CheckpointError(
            f"{folder / FILE} has the id {max(names)}, the model {rows} rows; they do not belong "
            f"together."
        )
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre or _cut(told, folder))
    writer.add_token_list([names.get(number, f"[PAD{number}]") for number in range(rows)])
    writer.add_token_types([_kind(number, names, added) for number in range(rows)])
    writer.add_token_merges(list(_merges(model)))
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    _add_roles(writer, {token["content"]: number for number, token in added.items()})
    if (folder / TEMPLATE).exists():
        writer.add_chat_template((folder / TEMPLATE).read_text(encoding="utf-8"))


def _cut(told: Mapping[str, Any], folder: Path) -> str:
    """llama.cpp's name for how the tokenizer cuts text."""
    steps = told.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    patterns = [step["pattern"].get("Regex") for step in steps if step.get("type") == "Split"]
    if len(patterns) != 1 or patterns[0] not in CUTS:
        raise CheckpointError(
            f"{folder / FILE} cuts text by {patterns or steps!r:.300}, which is not known to be "
            f"one of llama.cpp's ways. If it is, give llama.cpp's name for it (pre=, --pre)."
        )
    return CUTS[patterns[0]]


def _kind(number: int, names: Mapping[int, str], added: Mapping[int, Mapping[str, Any]]) -> int:
    """llama.cpp's kind of a token."""
    if number not in names:
        return UNUSED
    if number in added:
        return CONTROL if added[number].get("special") else USER_DEFINED
    return NORMAL


def _merges(model: Mapping[str, Any]) -> Iterator[str]:
    """The merges as pairs with a space between them; tokenizer.json has them so, or as lists."""
    for merge in model.get("merges", []):
        yield merge if isinstance(merge, str) else " ".join(merge)


def _add_roles(writer: Any, ids: Mapping[str, int]) -> None:
    """Say which tokens begin, end and fill."""
    for role, name in ROLES.items():
        if name in ids:
            getattr(writer, f"add_{role}_token_id")(ids[name])


__all__ = ["CUTS", "ROLES", "add_text"]

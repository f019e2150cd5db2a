"""Text to token ids and back: a byte-level BPE in the layout of the Nemotron 3 family.

Promise: `decode(encode(text)) == text` for every text; text is never taken for a control token
unless the caller says `specials=True`; streamed text equals the text decoded at once; the same
texts train the same tokenizer. Ids are asked of tokenizer.json by name, never assumed.

The layout (white paper's tokenizer): special slots first, then the 256 bytes in order, then merges.
Turns and their framing are in `chat.py`; what a folder holds is in `conversation.py`.
"""

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from fathom.config.strict import nearest
from fathom.errors import TextError
from fathom.text.files import parse_object, read_text, write_text

FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
MAX_BYTES = 256 * 1024 * 1024

SPECIALS = {
    0: "<unk>",
    1: "<s>",
    2: "</s>",
    10: "<|im_start|>",
    11: "<|im_end|>",
    12: "<think>",
    13: "</think>",
    14: "<tool_call>",
    15: "</tool_call>",
    16: "<tool_response>",
    17: "</tool_response>",
}
"""The family's named slots; every other special slot n is called `<SPECIAL_n>`."""

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"
PATTERN = "|".join(
    (
        rf"{_LEAD}{_UPPER}*{_LOWER}+",
        rf"{_LEAD}{_UPPER}+{_LOWER}*",
        r"\p{N}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""Where text is cut before merging: words by case, single digits, symbols, white space."""


def _byte_letters() -> dict[str, int]:
    """The printable letter that byte-level BPE writes for each byte (letter -> byte)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    letters = {chr(byte): byte for byte in shown}
    letters.update({chr(256 + place): byte for place, byte in enumerate(hidden)})
    return letters


_LETTERS = _byte_letters()
_TO_BYTE = {ord(letter): byte for letter, byte in _LETTERS.items()}
_UNKNOWN = "\ufffd".encode()


class TokenStream:
    """Decodes ids one by one; half a character is held back until the rest has come."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        """Decode with `pieces`, the bytes of every id."""
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token: int) -> str:
        """Return the text that `token` completes; often one token's, "" inside a character."""
        return self._decoder.decode(_piece(self._pieces, token))

    def finish(self) -> str:
        """Return what is left at the end: U+FFFD for half a character, else nothing."""
        return self._decoder.decode(b"", final=True)


class Tokenizer:
    """A byte-level BPE read from tokenizer.json text; immutable and safe to share."""

    def __init__(
        self,
        text: str,
        *,
        source: str = FILE,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Build from the text of a tokenizer.json; `settings` is its tokenizer_config.json.

        Raises `TextError`, naming `source`, if it is damaged or no byte-level BPE.
        """
        self._text = text
        self._data = parse_object(text, source)
        self.settings: Mapping[str, Any] = dict(settings or {})
        _check_kind(self._data, source)
        # Without added tokens nothing in a text can be taken for a control token, whatever flags
        # the file gives them; their ids stay reachable by name.
        bare = {**self._data, "added_tokens": [], "post_processor": None}
        try:
            self._full = tokenizers.Tokenizer.from_str(text)
            self._plain = tokenizers.Tokenizer.from_str(json.dumps(bare, ensure_ascii=False))
        # The library raises bare Exception for whatever is wrong in the file.
        except Exception as error:
            raise TextError(f"{source} cannot be used: {error}; fetch it again.") from None
        for one in (self._full, self._plain):
            one.no_truncation()
            one.no_padding()
        self._specials: dict[str, int] = {
            token["content"]: token["id"] for token in self._data["added_tokens"]
        }
        self._pieces = _pieces(self._full.get_vocab(with_added_tokens=True), self._specials)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read tokenizer.json (the file, or the folder that holds it) and its settings file."""
        path = Path(path)
        if path.is_dir():
            path = path / FILE
        settings_path = path.with_name(SETTINGS_FILE)
        settings = {}
        if settings_path.is_file():
            settings = parse_object(read_text(settings_path, MAX_BYTES), settings_path)
        return cls(read_text(path, MAX_BYTES), source=str(path), settings=settings)

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab: int, special_slots: int = 1000) -> Self:
        """Learn merges from `texts` until there are `vocab` ids, or nothing is left to merge.

        The result does not depend on the order of the texts. No texts at all give the pure byte
        tokenizer. Raises `TextError` if `vocab` has no room for the slots and the bytes.
        """
        if special_slots <= max(SPECIALS):
            raise TextError(
                f"special_slots={special_slots} has no room for the family's control tokens; "
                f"give at least {max(SPECIALS) + 1}."
            )
        if vocab < special_slots + 256:
            raise TextError(
                f"A vocabulary of {vocab} has no room for {special_slots} special slots and 256 "
                f"bytes; give at least {special_slots + 256}."
            )
        learner = tokenizers.Tokenizer(models.BPE())
        learner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(tokenizers.Regex(PATTERN), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        learner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab - special_slots,
            min_frequency=2,
            initial_alphabet=list(_LETTERS),
            show_progress=False,
        )
        learner.train_from_iterator(_checked(texts), trainer)
        return cls(_family_layout(json.loads(learner.to_str()), special_slots))

    @property
    def size(self) -> int:
        """Number of ids: one more than the largest."""
        return len(self._pieces)

    @property
    def json(self) -> str:
        """The text of tokenizer.json."""
        return self._text

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of tokenizer.json in canonical form: spacing and key order do not count."""
        canonical = json.dumps(
            self._data, sort_keys=True, ensure_ascii=False, separators=(",", ":")
        )
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()

    @property
    def specials(self) -> Mapping[str, int]:
        """Every special token's id by its name."""
        return dict(self._specials)

    def find(self, name: str) -> int | None:
        """Return the id of the special token `name`, or None if this tokenizer has none."""
        return self._specials.get(name)

    def token_id(self, name: str) -> int:
        """Return the id of the special token `name`; raise `TextError` with the nearest name."""
        found = self._specials.get(name)
        if found is None:
            raise TextError(
                f"The tokenizer has no special token {name!r}.{nearest(name, self._specials)}"
            )
        return found

    def encode(self, text: str, *, specials: bool = False) -> list[int]:
        """Return the ids of `text`; nothing is added before or after.

        By default the text is only text: `<think>` in it becomes ordinary tokens. With `specials`
        the names of special tokens become their ids, as rendered templates need.
        """
        chosen = self._full if specials else self._plain
        try:
            return list(chosen.encode(text, add_special_tokens=False).ids)
        except (UnicodeEncodeError, TypeError):
            raise TextError(_why_not(text)) from None

    def encode_many(self, texts: Sequence[str], *, specials: bool = False) -> list[list[int]]:
        """Return the ids of every text, several at a time on the machine's cores."""
        chosen = self._full if specials else self._plain
        try:
            found = chosen.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            wrong = next((text for text in texts if not _is_text(text)), texts)
            raise TextError(_why_not(wrong)) from None
        return [list(one.ids) for one in found]

    def decode(self, ids: Iterable[int], *, specials: bool = True) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD, and so does an id
        that the tokenizer does not know. Without `specials`, special tokens are left out.
        """
        if not specials:
            hidden = set(self._specials.values())
            ids = (token for token in ids if token not in hidden)
        joined = b"".join(_piece(self._pieces, token) for token in ids)
        return joined.decode("utf-8", "replace")

    def stream(self) -> TokenStream:
        """Return a decoder for ids that come one by one."""
        return TokenStream(self._pieces)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which transformers can load."""
        folder = Path(folder)
        write_text(folder / FILE, self._text)
        settings = dict(self.settings) or self._family_settings()
        # Code from elsewhere is neither run nor passed on.
        settings.pop("auto_map", None)
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        write_text(folder / SETTINGS_FILE, text)

    def _family_settings(self) -> dict[str, Any]:
        """The tokenizer_config.json of a tokenizer that came with none."""
        roles = {
            "bos_token": "<s>",
            "eos_token": "<|im_end|>",
            "unk_token": "<unk>",
            "pad_token": "<unk>",
        }
        return {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **{role: name for role, name in roles.items() if name in self._specials},
        }


def _check_kind(data: Mapping[str, Any], source: str) -> None:
    """Raise `TextError` unless `data` describes a byte-level BPE that knows all bytes."""
    model, decoder = data.get("model"), data.get("decoder")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or model is None or model.get("type", "BPE") != "BPE":
        raise TextError(f"{source} is no byte-pair tokenizer; the family's is a byte-level BPE.")
    if not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel":
        raise TextError(f"{source} does not decode bytes; the family's is a byte-level BPE.")
    missing = [byte for letter, byte in _LETTERS.items() if letter not in vocab]
    if missing:
        raise TextError(f"{source} has no token for {len(missing)} of the 256 bytes.")
    added = data.get("added_tokens")
    if not isinstance(added, list) or not all(
        isinstance(token, dict)
        and isinstance(token.get("content"), str)
        and isinstance(token.get("id"), int)
        for token in added
    ):
        raise TextError(f"{source} has no readable list of added_tokens; fetch it again.")


def _pieces(vocab: Mapping[str, int], specials: Mapping[str, int]) -> list[bytes]:
    """The bytes that every id stands for; an id without a token stands for U+FFFD."""
    letters = set(_LETTERS)
    pieces = [_UNKNOWN] * (max(vocab.values()) + 1)
    for token, place in vocab.items():
        if token in specials or not letters.issuperset(token):
            pieces[place] = token.encode("utf-8")
        else:
            pieces[place] = bytes([_TO_BYTE[ord(letter)] for letter in token])
    return pieces


def _piece(pieces: Sequence[bytes], token: int) -> bytes:
    """The bytes of one id."""
    if token < 0:
        raise TextError(f"{token} is no token id; ids start at 0.")
    # A model may have more rows than its tokenizer has tokens, and draw one of them.
    return pieces[token] if token < len(pieces) else _UNKNOWN


def _is_text(text: object) -> bool:
    """Whether `text` is a string that UTF-8 can hold."""
    try:
        return isinstance(text, str) and text.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


def _why_not(text: object) -> str:
    """Say why `text` cannot be encoded."""
    if not isinstance(text, str):
        return f"Only text can be encoded, not {type(text).__name__}."
    place = next(place for place, letter in enumerate(text) if "\ud800" <= letter <= "\udfff")
    return f"Character {place} of the text is half a surrogate pair, which is no Unicode text."


def _checked(texts: Iterable[str]) -> Iterator[str]:
    """Pass texts on to the trainer; stop at what is no text."""
    for text in texts:
        if not _is_text(text):
            raise TextError(_why_not(text))
        yield text


def _family_layout(learned: dict[str, Any], special_slots: int) -> str:
    """Return tokenizer.json text with the learned merges behind special slots and ordered bytes."""
    names = [SPECIALS.get(slot, f"<SPECIAL_{slot}>") for slot in range(special_slots)]
    vocab = {name: slot for slot, name in enumerate(names)}
    for letter, byte in sorted(_LETTERS.items(), key=lambda item: item[1]):
        vocab[letter] = special_slots + byte
    for left, right in learned["model"]["merges"]:
        vocab.setdefault(left + right, len(vocab))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    learned["added_tokens"] = [
        {"id": slot, "content": name, **flags, "special": True} for slot, name in enumerate(names)
    ]
    learned["model"]["vocab"] = vocab
    return json.dumps(learned, ensure_ascii=False)


__all__ = ["PATTERN", "SPECIALS", "TokenStream", "Tokenizer"]

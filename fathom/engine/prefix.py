"""What is kept of earlier prompts, so that a prompt that begins alike need not be read again.

Promise: an entry stands for the first n tokens of some prompt, n anywhere: the recurrent state
after them, and a share in the pages that hold their keys and values. Reusing one gives what reading
the tokens again would have given. Entries are few and lie where they mean something: the boundaries
that a request names, the end of its prompt, and places where prompts were seen to part. The least
recently used goes first, when states take more than their bytes or when pages run short. Every
prompt of which less was found than might have been is told why.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fathom.engine.pages import Slots, State, pages_for
from fathom.ops.attend.pages import PAGE

Ids = npt.NDArray[np.int32]

FIRST = 16
"""Tokens that a prompt and an entry must share to be compared; less is sooner read than found."""

ENTRIES = 1024
"""Most entries that are kept, whatever their bytes: each is compared with every new prompt."""

NOTICED = 32
"""Tokens that two prompts must share before their parting is worth an entry."""


@dataclass
class Entry:
    """What is kept of one beginning."""

    ids: Ids
    """Its tokens."""
    state: State
    """The recurrent state after them."""
    pages: list[int]
    """Pages with their keys and values, one share in each."""
    hidden_D: Tensor
    """The hidden state of the last of them, which makes logits if nothing follows."""


@dataclass(frozen=True)
class Found:
    """What was found for a prompt."""

    entry: Entry | None
    """The longest entry that the prompt begins with."""
    shared: int
    """Tokens that the prompt has in common with any entry, at its longest."""
    miss: str | None
    """Why the entry is not as long as the prompt, in words."""


class PrefixCache:
    """Entries by their tokens, the least recently used first."""

    def __init__(self, slots: Slots, most_bytes: int) -> None:
        self._slots, self._pool, self._most = slots, slots.pool, most_bytes
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()
        self.bytes = 0
        """Bytes of the states that are kept."""
        self.evicted = 0
        """Entries that had to go."""
        self._gone: OrderedDict[bytes, int] = OrderedDict()
        self._alike: dict[bytes, dict[bytes, Entry]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def kept(self) -> bool:
        """Whether anything is kept at all."""
        return self._most > 0

    def find(self, ids: Ids) -> Found:
        """The longest entry that `ids` begins with, and why there is no longer one."""
        if not self.kept:
            return Found(None, 0, "keeping prefixes is switched off (prefix_bytes = 0)")
        shared = 0
        lengths: dict[int, bytes] = {}
        # only what shares its first tokens with the prompt can share enough to matter
        for key, kept in self._alike.get(_start(ids), {}).items():
            common = common_prefix(kept.ids, ids)
            shared = max(shared, common)
            if common == len(kept.ids):
                lengths[common] = key
        if not lengths:
            return Found(None, shared, self._why(ids, 0, shared))
        length = max(lengths)
        self._entries.move_to_end(lengths[length])
        return Found(self._entries[lengths[length]], shared, self._why(ids, length, shared))

    def _why(self, ids: Ids, found: int, shared: int) -> str | None:
        """Why no more than `found` tokens are remembered."""
        if found == len(ids):
            return None
        if not self._entries and not self._gone:
            return "nothing was kept yet"
        for length in {n for n in self._gone.values() if found < n <= len(ids)}:
            if _key(ids[:length]) in self._gone:
                return (
                    f"the state after token {length} was kept, but made room for others "
                    f"(raise prefix_bytes or kv_tokens)"
                )
        if shared == len(ids):
            return f"it is all known, but no state was kept between tokens {found} and {len(ids)}"
        if shared > found:
            return (
                f"it leaves what is known at token {shared}, and the last state kept before that "
                f"is at {found}"
            )
        if found:
            return f"what follows token {found} is new"
        return "it begins like no prompt that is kept"

    def keep(self, ids: Ids, state: State, pages: Sequence[int], hidden_D: Tensor) -> bool:
        """Keep what is remembered after `ids`, whose keys lie in the first of `pages`.

        The state is copied and the pages get one more owner. False: it is too large to be kept.
        """
        key = _key(ids)
        if key in self._entries:
            self._entries.move_to_end(key)
            return True
        size = state.bytes
        if size > self._most:
            return False
        while self._entries and (self.bytes + size > self._most or len(self) >= ENTRIES):
            self.evict()
        own = list(pages[: pages_for(len(ids))])
        self._pool.share(own)
        entry = Entry(ids.copy(), state.copy(), own, hidden_D.clone())
        self._entries[key] = self._alike.setdefault(_start(ids), {})[key] = entry
        self._gone.pop(key, None)
        self.bytes += size
        return True

    def evict(self) -> bool:
        """Let the least recently used entry go; False: there is none."""
        if not self._entries:
            return False
        key, entry = self._entries.popitem(last=False)
        alike = self._alike[_start(entry.ids)]
        del alike[key]
        if not alike:
            del self._alike[_start(entry.ids)]
        self._pool.release(entry.pages)
        self.bytes -= entry.state.bytes
        self.evicted += 1
        self._gone[key] = len(entry.ids)
        while len(self._gone) > 256:
            self._gone.popitem(last=False)
        return True

    def clear(self) -> None:
        """Forget everything, the reasons too: the weights have changed."""
        while self.evict():
            pass
        self._gone.clear()

    def room(self, pages: int) -> bool:
        """Let entries go until so many pages are free; whether they are."""
        while self._pool.free < pages and self.evict():
            pass
        return self._pool.free >= pages

    def adopt(self, entry: Entry) -> list[int] | None:
        """Pages of a new sequence that goes on from an entry; None: no page is free.

        Whole pages are shared; the last one, which the sequence will write into, is copied.
        """
        whole, rest = divmod(len(entry.ids), PAGE)
        if not rest:
            self._pool.share(entry.pages)
            return list(entry.pages)
        # held while room is made, which may let this very entry go
        self._pool.share(entry.pages)
        if not self.room(1):
            self._pool.release(entry.pages)
            return None
        (copy,) = self._pool.take(1)
        self._slots.copy_page(entry.pages[whole], copy)
        self._pool.release(entry.pages[whole:])
        return [*entry.pages[:whole], copy]


def as_ids(tokens: Sequence[int]) -> Ids:
    """Tokens as the array that comparisons work on."""
    return np.asarray(tokens, dtype=np.int32)


def common_prefix(one: Ids, other: Ids) -> int:
    """How many tokens two sequences have in common from their beginning."""
    count = min(len(one), len(other))
    same = one[:count] == other[:count]
    return count if same.all() else int(same.argmin())


def _start(ids: Ids) -> bytes:
    """What prompts have in common that may be worth an entry."""
    return ids[:FIRST].tobytes()


def _key(ids: Ids) -> bytes:
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()


__all__ = ["NOTICED", "Entry", "Found", "Ids", "PrefixCache", "as_ids", "common_prefix"]

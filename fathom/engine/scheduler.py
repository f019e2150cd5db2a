"""Whose turn it is: who is read, who is answered, who waits, and who gives way.

Promise: requests go by priority, then by arrival; every running request gets its token in every
step, and prompts share what a step may read, so a long one holds up nobody. A request of higher
priority takes the row of a lesser one, whose state is kept; one that needs pages takes them from
what is kept for reuse, then from the least of those beneath it, which is read again later. A prompt
that begins like one that is being read waits for it rather than read the same. Nothing is computed
here; `engine.py` does that.
"""

import bisect
from collections.abc import Iterator

from fathom.config.engine import EngineConfig
from fathom.engine.live import Live
from fathom.engine.pages import Slots, pages_for
from fathom.engine.prefix import NOTICED, PrefixCache, common_prefix


class Scheduler:
    """The requests of an engine, by what happens to them."""

    def __init__(self, slots: Slots, prefix: PrefixCache, config: EngineConfig) -> None:
        self.config, self.slots, self.prefix = config, slots, prefix
        self.waiting: list[Live] = []
        """Those that hold no memory, or only what is kept of an interruption; the first first."""
        self.reading: list[Live] = []
        """Those whose prompt is being read."""
        self.running: list[Live] = []
        """Those that are being answered; each one's place is its slot."""
        self.preempted = 0
        """How often a request gave way."""

    def __iter__(self) -> Iterator[Live]:
        """Every request, whatever happens to it."""
        yield from self.running
        yield from self.reading
        yield from self.waiting

    def wait(self, live: Live) -> None:
        """Put a request where its rank belongs."""
        bisect.insort(self.waiting, live, key=lambda one: one.rank)

    def admit(self) -> list[Live]:
        """Those that begin to be read, or go on to be, now."""
        admitted: list[Live] = []
        most = self.config.sequences
        for live in list(self.waiting):
            if len(self.running) + len(self.reading) >= most and not self._displace(live):
                break
            if live.state is None and self._begins_alike(live):
                continue
            if not live.pages and not self._find(live):
                break
            self.waiting.remove(live)
            self.reading.append(live)
            admitted.append(live)
        return admitted

    def shares(self) -> list[tuple[Live, int]]:
        """How many tokens each prompt may be read on, in this step.

        What a step may read is divided evenly among the first; a piece ends where something is to
        be kept. Requests that get no page are left out, and may have given way.
        """
        readers = [live for live in self.reading if live.unread][: self.config.readers]
        found: list[tuple[Live, int]] = []
        left = self.config.chunk
        for place, live in enumerate(readers):
            if live not in self.reading:
                continue
            share = max(1, left // (len(readers) - place))
            end = min(live.seen + share, live.seen + live.unread)
            stops = [n for n in live.boundaries if live.seen < n < end]
            end = min(stops, default=end)
            if not self.room(live, end):
                continue
            found.append((live, end - live.seen))
            left -= end - live.seen
            if left <= 0:
                break
        return [(live, count) for live, count in found if live in self.reading]

    def room(self, live: Live, tokens: int) -> bool:
        """Give a request pages for so many tokens; others may have to give way.

        False: it had to give way itself.
        """
        missing = pages_for(tokens) - len(live.pages)
        if missing <= 0:
            return True
        while not self.prefix.room(missing):
            paused = [one for one in self.waiting if one.pages]
            victim = max([*self.running, *self.reading, *paused], key=lambda one: one.rank)
            self.interrupt(victim, keep=False)
            if victim is live:
                return False
        fresh = self.slots.pool.take(missing)
        if live.slot is not None:
            self.slots.give(live.slot, len(live.pages), fresh)
        live.pages += fresh
        return True

    def run(self, live: Live) -> None:
        """Give a request that was read a row."""
        assert live.state is not None
        self.reading.remove(live)
        live.slot = len(self.running)
        self.running.append(live)
        self.slots.write(live.slot, live.state, live.pages, live.seen)
        live.state = None

    def leave(self, live: Live) -> None:
        """Take a request out of wherever it is, and free its memory."""
        if live.slot is not None:
            self._vacate(live)
        elif live in self.reading:
            self.reading.remove(live)
        else:
            self.waiting.remove(live)
        self.slots.pool.release(live.pages)
        live.pages, live.state = [], None

    def interrupt(self, live: Live, *, keep: bool) -> None:
        """Let a request wait again; with `keep` it goes on where it was, else it is read again."""
        self.preempted += 1
        live.drafts, live.hidden_WD, live.head_seen = [], None, None
        live.stays += 1
        if live.slot is not None:
            if keep:
                live.state = self.slots.read(live.slot).copy()
            self._vacate(live)
        elif live in self.reading:
            self.reading.remove(live)
        else:
            self.waiting.remove(live)
        if not keep:
            self.slots.pool.release(live.pages)
            live.pages, live.state, live.seen = [], None, 0
        self.wait(live)

    def _vacate(self, live: Live) -> None:
        """Free a row; the last one moves there."""
        slot = live.slot
        assert slot is not None
        last = self.running.pop()
        if last is not live:
            assert last.slot is not None
            self.slots.move(last.slot, slot)
            self.running[slot] = last
            last.slot = slot
        live.slot = None

    def _displace(self, live: Live) -> bool:
        """Let a running request of lower priority make a place; whether one did."""
        lesser = [x for x in self.running if x.request.priority < live.request.priority]
        if not lesser:
            return False
        self.interrupt(max(lesser, key=lambda one: one.rank), keep=True)
        return True

    def _find(self, live: Live) -> bool:
        """Look for what is known of its prompt, and take pages for the rest; False: too few."""
        if live.request.alone or live.request.prompt_logprobs is not None:
            entry = None
            live.miss = (
                "the request asked to be read alone"
                if live.request.alone
                else "the prompt is to be scored, so it is read whole"
            )
        else:
            found = self.prefix.find(live.prompt)
            entry = found.entry
            length = len(entry.ids) if entry is not None else 0
            parting = found.shared
            if length + NOTICED <= parting < len(live.prompt) and parting not in live.boundaries:
                bisect.insort(live.boundaries, parting)
            if not live.answered:
                live.reused, live.miss = length, found.miss
        begun = 0
        if entry is not None:
            pages = self.prefix.adopt(entry)
            if pages is not None:
                live.pages, begun = pages, len(entry.ids)
                live.state, live.seen = entry.state.copy(), begun
        missing = pages_for(len(live.ids) + 1) - len(live.pages)
        others = bool(self.running or self.reading)
        if others and not self.prefix.room(missing):
            # what runs will end, or will be interrupted by what is older than this
            self.slots.pool.release(live.pages)
            live.pages, live.state, live.seen = [], None, 0
            return False
        if entry is None or not begun:
            live.state, live.seen = self.slots.begun(), 0
            if not live.answered:
                live.reused = 0
        if begun == len(live.prompt) and entry is not None and not live.answered:
            live.hidden_WD = entry.hidden_D[None]
        live.boundaries = [n for n in live.boundaries if n > live.seen]
        return True

    def _begins_alike(self, live: Live) -> bool:
        """Whether a prompt that is being read will soon have read this one's beginning too.

        If so, that reading stops where the two part, so that what is remembered there is kept.
        """
        if live.request.alone or live.request.prompt_logprobs is not None or not self.prefix.kept:
            return False
        for other in self.reading:
            if other.request.alone or other.answered:
                continue
            common = common_prefix(other.prompt, live.prompt)
            if common - other.seen < NOTICED:
                continue
            if common < len(other.prompt) and common not in other.boundaries:
                bisect.insort(other.boundaries, common)
            return True
        return False


__all__ = ["Scheduler"]

"""Drafting by the MTP head: guesses ahead, and how far it is worth to guess.

Promise: drafting changes speed and nothing else. A draft is drawn from the head's logits by the
rules and the random number of the very place it is for; what counts is the token drawn from the
backbone's logits there, which is the one that would have come without drafts. How many tokens are
drafted follows what was measured: seconds of a step by depth and number of requests, and how often
drafts came true; where nothing is gained the head does not run, and is tried ever more rarely.
Verification, and what the memory keeps of it, is `runner.py`.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fathom.engine.live import Live
from fathom.engine.runner import WINDOW, Runner

TRIES, KEPT = 4, 9
"""Steps of a depth before its seconds are believed, and the last ones whose median counts."""

LATELY = 64
"""Steps for which hidden states are kept after one with a number of requests for which the head was
not resting: there may soon be as many again."""

SETTLED = 0.25
"""Seconds of steps with one number of requests before the head is tried with as many: each depth
has to be recorded, which takes some hundredths of a second and must come back."""

HOLD = 8
"""Steps for which a choice stands: to look at every request costs time too."""

REVIEW = 64
"""Choices after which depths that could win are tried again: a machine does not stay as it was."""

PAUSE, WORTH = 1024, 0.005
"""Least steps until a head that does not pay is tried again, and most share of the time that trials
may take; each pause is twice the one before."""

AUDIT, FADE = 24, 0.98
"""Steps with drafts after which all that they took is held against what came of it, catching up
included, and what is left of an old step's weight in that at each new one."""

PRIOR = 4.0
"""How many drafts of all requests weigh in one request's own record."""


@dataclass
class _Pace:
    """What is known of steps with one number of requests."""

    seconds: dict[int, deque[float]]
    """The last steps of each depth."""
    depth: int = 0
    stands: int = 0
    """Steps for which that depth is still the choice."""
    choices: int = 0
    used: float = 0.0
    """Seconds of its steps so far, while somebody watched."""
    until: int = 0
    """The step at which the head is tried again; before, it rests."""
    pauses: int = 0
    spent: float = 0.0
    """Seconds of steps with drafts since one last paid."""
    plain: float = 0.0
    """Seconds of a step without drafts."""
    audited: int = 0
    took: float = 0.0
    """Seconds of the last steps with drafts, the newest counting most."""
    worth: float = 0.0
    """Seconds that their tokens would have taken without."""


class Depth:
    """How many tokens to draft, by what was measured so far."""

    def __init__(self, most: int, adapt: bool = True) -> None:
        self.most, self._adapt = most, adapt
        self.tried, self.came = [0.0] * most, [0.0] * most
        """Drafts of each depth that were put to the test, and that came true; old ones fade."""
        self.watching = most > 0
        """Whether the time of the step that was chosen last says something."""
        self.keeping = False
        """Whether its hidden states may be wanted by the head."""
        self._paces: dict[int, _Pace] = {}
        self._steps = self._last = self._lately = 0

    def choose(self, lives: Sequence[Live]) -> int:
        """The depth of the next step for these requests; 0: the head is left alone."""
        if not self._adapt or not self.most or not lives:
            return self.most if lives else 0
        pace = self._pace(len(lives))
        self._steps += 1
        if self._steps < pace.until:
            self.watching = pace.until <= self._steps + WINDOW
            self.keeping = self.watching or self._steps < self._lately
            return 0
        if pace.until:
            self._try_again(pace)
        self.watching, self.keeping = True, pace.used >= SETTLED
        if not self.keeping:
            return 0
        self._lately = self._steps + LATELY
        if not pace.stands:
            pace.depth, pace.stands = self._best(pace, lives)
        pace.stands -= 1
        return pace.depth

    def learn(
        self, requests: int, depth: int, tokens: int, seconds: float, *, steady: bool, usual: bool
    ) -> None:
        """Take in how long a step took and how many tokens came of it.

        One that was recorded on the way, and is not `steady`, says nothing of the next; one in
        which the head caught up, and is not `usual`, counts in the balance alone.
        """
        pace, last = self._pace(requests), self._last
        self._last = depth
        pace.used += seconds
        if depth:
            pace.spent += seconds
        if not steady:
            return
        if depth and pace.plain:
            pace.audited += 1
            pace.took = FADE * pace.took + seconds
            pace.worth = FADE * pace.worth + tokens / requests * pace.plain
        # the first step after another kind finds other things in the caches
        if usual and depth == last:
            pace.seconds.setdefault(depth, deque(maxlen=KEPT)).append(seconds)

    def count(self, live: Live, drafts: int, accepted: int) -> None:
        """Take in how many of a request's drafts came true."""
        for depth in range(min(accepted + 1, drafts)):
            came = depth < accepted
            live.tried[depth] += 1
            live.came[depth] += came
            self.tried[depth] = 0.998 * self.tried[depth] + 1
            self.came[depth] = 0.998 * self.came[depth] + came

    def _pace(self, requests: int) -> _Pace:
        """Numbers of requests are measured together up to the next power of two."""
        size = 1 << (requests - 1).bit_length()
        return self._paces.get(size) or self._paces.setdefault(size, _Pace({}))

    def _best(self, pace: _Pace, lives: Sequence[Live]) -> tuple[int, int]:
        """The depth to go on with, or to try, and for how many steps."""
        known = {k: statistics.median(s) for k, s in pace.seconds.items() if len(s) >= TRIES}
        for depth in (1, 0):
            if depth not in known:
                return depth, TRIES + 1
        pace.plain = known[0]
        tokens = [sum(self._expected(live, k) for live in lives) for k in range(self.most + 1)]
        best = max(known, key=lambda k: tokens[k] / known[k])
        rate = tokens[best] / known[best]
        for depth in range(2, self.most + 1):
            # no step is shorter than one of less depth
            least = max(seconds for k, seconds in known.items() if k < depth)
            if depth not in known and tokens[depth] / least > rate:
                return depth, TRIES + 1
        pace.choices += 1
        if pace.choices % REVIEW == 0:
            for depth in known:
                if depth and depth != best and tokens[depth] / known[depth] > 0.7 * rate:
                    del pace.seconds[depth]
        if pace.audited >= AUDIT and pace.took > pace.worth:
            best = 0
        if best:
            pace.spent = 0.0
            pace.pauses = 0 if pace.audited >= AUDIT else pace.pauses
        else:
            pace.audited, pace.took, pace.worth = 0, 0.0, 0.0
            # so long that what the head took was worth the trial
            steps = int(pace.spent / (WORTH * known[0]))
            pace.until = self._steps + max(PAUSE << min(pace.pauses, 10), steps)
            pace.pauses, pace.spent = pace.pauses + 1, 0.0
        return best, HOLD

    def _try_again(self, pace: _Pace) -> None:
        """Let the next steps draft, and what they show count more than what was before."""
        for depth in range(self.most):
            self.tried[depth], self.came[depth] = self.tried[depth] / 16, self.came[depth] / 16
        pace.until = 0
        pace.depth, pace.stands = 1, TRIES + 1

    def _expected(self, live: Live, depth: int) -> float:
        """Tokens that a step with so many drafts brings a request."""
        tokens = chance = 1.0
        for at in range(depth):
            chance *= (live.came[at] + PRIOR * self._chance(at)) / (live.tried[at] + PRIOR)
            tokens += chance
        return tokens

    def _chance(self, depth: int) -> float:
        """How often drafts of a depth came true of late; hopeful where nothing is known."""
        return (self.came[depth] + 1) / (self.tried[depth] + 1)


class Drafter:
    """Keeps the head in step with the backbone, and draws drafts."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self._passed: deque[tuple[list[tuple[int, int]], Tensor]] = deque(maxlen=WINDOW)

    def passed(self, lives: Sequence[Live], keep: bool) -> None:
        """A step without drafts has passed; `keep` its hidden states, if the head may be wanted."""
        if not keep:
            # states on both sides of a gap are no window
            self._passed.clear()
            return
        hidden_SD = self.runner.hidden_TD[: len(lives)]
        self._passed.append(([(live.number, live.stays) for live in lives], hidden_SD.clone()))

    def propose(self, lives: Sequence[Live], depth: int) -> list[Live]:
        """Give every request `depth` drafts; those for which the head had to catch up."""
        late = [live for live in lives if live.head_seen != live.seen or not live.drafts]
        if late:
            self._catch_up(late)
        while (place := min(len(live.drafts) for live in lives)) < depth:
            for live in lives:
                live.drafts = live.drafts[:place]
            for live, token in zip(lives, self.runner.deeper(lives, place), strict=True):
                live.drafts.append(max(0, token))
        return late

    def settle(self, lives: Sequence[Live], drafts: int, counts: Sequence[int]) -> None:
        """What was verified is known: move memory and head on, and draw the next drafts.

        Where a rule may have its say on a draft only the first is drawn here: the rules of those
        behind it depend on it.
        """
        most = self.runner.slots.head_room - 2 * (drafts + 1)
        for live in lives:
            live.head_past = live.head_past if live.head_past <= most else 0
        simple = all(live.free(drafts) and live.stop_reason != "error" for live in lives)
        depth = drafts if simple else 1
        found = self.runner.settle(lives, drafts, counts, depth)
        for live, tokens in zip(lives, zip(*found, strict=True), strict=True):
            live.head_seen, live.hidden_WD = live.seen, None
            live.drafts = [max(0, token) for token in tokens]

    def _catch_up(self, lives: Sequence[Live]) -> None:
        """Let the head read what it missed of these requests, the last tokens at least."""
        for live in lives:
            rows_WD = self._missed(live)
            if rows_WD is None:
                # it was interrupted: any draft will do until the head has something to read
                live.head_past, live.drafts = 0, [live.ids[-1]]
                continue
            lag = live.seen - live.head_seen if live.head_seen is not None else math.inf
            full = live.head_past + 2 * WINDOW > self.runner.slots.head_room
            if lag > len(rows_WD) or full:
                live.head_past = 0
            live.drafts = []
            live.drafts = [max(0, self.runner.catch_up(live, rows_WD))]
            live.head_seen, live.hidden_WD = live.seen, None

    def _missed(self, live: Live) -> Tensor | None:
        """The last hidden states [W, D] of a request, as many as the head has to read, if any."""
        rows = [live.hidden_WD] if live.hidden_WD is not None else []
        name = live.number, live.stays
        for names, hidden_SD in self._passed:
            if name in names:
                row = names.index(name)
                rows.append(hidden_SD[row : row + 1])
        lag = live.seen - (live.head_seen or 0)
        return torch.cat(rows)[-min(WINDOW, max(lag, 1)) :] if rows else None


__all__ = ["Depth", "Drafter"]

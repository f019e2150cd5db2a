"""Seconds that `cpu_inference.py` measured, as rows of a table beside their bounds.

Promise: pure arithmetic. Each of Fathom's arithmetics stands beside each peer; an engine that was
not there leaves null.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bounds import STORED, context_seconds, decode_bytes
from ceiling import Ceiling
from inference_cases import CONTEXT, Case, Contender
from report import Row
from works import Work

from fathom.config.model import ModelConfig
from fathom.model.traffic import forward_flop


@dataclass(frozen=True)
class Measured:
    """One work, done by several engines."""

    work: Work
    seconds: dict[str, list[float]]
    """Of each run, by the engine's name; none where it cannot do it."""
    rates: Ceiling
    """The machine's, in the same minutes."""

    def speed(self, name: str) -> float | None:
        """Tokens a second, the median; None where there are no runs."""
        runs = self.seconds.get(name)
        return self.work.counted / statistics.median(runs) if runs else None


def bound(case: Case, config: ModelConfig, found: Measured, ours: Contender) -> float:
    """Most tokens a second that the machine allows Fathom on this work."""
    work, rates = found.work, found.rates
    if work.kind == "decode":
        moved = decode_bytes(config, STORED[case.stored], work.batch, work.tokens)
        return work.batch * rates.read / moved
    flop = forward_flop(config, work.batch, work.tokens, head_rows=work.batch)
    fastest = max(rates.float_flops, rates.int8_flops if ours.int8 else 0.0)
    return work.counted * fastest / flop


def rows_of(case: Case, config: ModelConfig, found: Measured) -> list[Row]:
    """A row for each of Fathom's arithmetics and each peer: median tokens a second."""
    rows = []
    for ours, peer in _pairs(case, found.seconds):
        speed, most = found.speed(ours.name), bound(case, config, found, ours)
        rows.append(
            Row(
                work=f"{case.folder}, {ours.what}: {found.work.name}",
                unit="tok/s",
                fathom=speed,
                peer=found.speed(peer.name) if peer else None,
                peer_name=peer.name if peer else None,
                ratio=_over(speed, found.speed(peer.name)) if peer else None,
                bound=most,
                of_bound=_over(speed, most),
                runs=_runs(found, ours, peer),
            )
        )
    return rows


def context_rows(case: Case, config: ModelConfig, found: Sequence[Measured]) -> list[Row]:
    """What a long context adds to a decode step, in ms, for the contexts that were measured."""
    at = {m.work.tokens: m for m in found if m.work.kind == "decode" and m.work.batch == 1}
    if CONTEXT not in at:
        return []
    short, rows = at.pop(CONTEXT), []
    for tokens, long in sorted(at.items()):
        if tokens < CONTEXT:
            continue
        more, rates = tokens - CONTEXT, long.rates
        least = 1e3 * context_seconds(
            config, STORED[case.stored], more, rates.read, rates.float_flops
        )
        for ours, peer in _pairs(case, long.seconds):
            added = _added(long, short, ours)
            theirs = _added(long, short, peer) if peer else None
            rows.append(
                Row(
                    work=f"{case.folder}, {ours.what}: decode 1, added by {more} of context",
                    unit="ms",
                    fathom=added,
                    peer=theirs,
                    peer_name=peer.name if peer else None,
                    ratio=_over(theirs, added),
                    bound=least,
                    of_bound=_over(least, added),
                    runs=_runs(long, ours, peer),
                )
            )
    return rows


def _pairs(case: Case, seconds: dict[str, list[float]]) -> list[tuple[Contender, Contender | None]]:
    """Each of Fathom's arithmetics with each peer of those that were asked; alone without peers.

    Where Fathom was not asked, its first arithmetic stands there with no figures.
    """
    ours = [c for c in case.contenders if c.ours and c.name in seconds]
    peers: list[Contender | None] = [c for c in case.contenders if not c.ours and c.name in seconds]
    ours = ours or [c for c in case.contenders if c.ours][:1]
    return [(one, peer) for one in ours for peer in peers or [None]]


def _added(long: Measured, short: Measured, one: Contender) -> float | None:
    """Milliseconds that the longer context adds to a step."""
    slow, fast = long.speed(one.name), short.speed(one.name)
    return 1e3 * (1 / slow - 1 / fast) if slow and fast else None


def _runs(found: Measured, ours: Contender, peer: Contender | None) -> int:
    """Runs behind the figures: Fathom's, or the peer's where Fathom has none."""
    counted = len(found.seconds.get(ours.name, ()))
    return counted or (len(found.seconds.get(peer.name, ())) if peer else 0)


def _over(above: float | None, below: float | None) -> float | None:
    """A ratio where both figures are there and above zero; noise can make a difference negative."""
    return above / below if above and below and above > 0 and below > 0 else None

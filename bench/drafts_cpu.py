"""What drafting by the MTP head gains, or costs where it can gain nothing: A B A B on the CPU.

Promise: two engines over one model answer the same requests by turns, one that drafts and one that
does not; both have answered before the clock starts, as a server has that runs for a while. Answers
are compared token by token: a difference ends the run. With a checkpoint the prompts are problems
held out from training and a row says how often drafts came true, of all tokens and of those that
are no template's: a token that stands at the same place of nearly all answers to a kind of problem,
or is a control token, can be guessed without having understood anything. Without a checkpoint the
weights are random, so nothing comes true and what is measured is the price of having tried.

    python bench/drafts_cpu.py --checkpoint runs/quickstart/model
    python bench/drafts_cpu.py --size pocket --json runs/bench/drafts.json
"""

import argparse
import statistics
import time
from pathlib import Path

from report import Row, machine_facts, print_rows, write
from workloads import WORKLOADS
from works import random_tokens

import fathom
from fathom import machine
from fathom.config.engine import EngineConfig
from fathom.engine.engine import Engine
from fathom.engine.live import Live
from fathom.engine.request import Request
from fathom.engine.sampler import Sampling
from fathom.model.nemotron import Nemotron
from fathom.model.sizes import SIZES
from fathom.problems import Problems

GROUPS = 32
"""Groups of prompts that are answered one after the other."""

WARM = 12
"""Turns of the drafting engine before the clock starts: each depth at each number of requests has
to be recorded and measured once."""

HELD_OUT = 0.1
"""Share of the problems that trainings hold out."""

KINDS = ("add", "subtract", "multiply", "sort")

SAME = 0.95
"""Share of a kind's answers with one token at one place from which on it is the template's."""


def held_out(folder: Path, batch: int, tokens: int, temperature: float) -> list[Request]:
    """Problems that the checkpoint has not seen, as chats."""
    text = fathom.Text.load(folder)
    each = GROUPS * batch // len(KINDS)
    found = [p for k in KINDS for p in Problems((k,), "heldout", 0, HELD_OUT).distinct(each)]
    return [
        Request(
            tuple(text.prompt([{"role": "user", "content": problem.question}])),
            tokens,
            Sampling(temperature, seed=place),
            text.stop_ids,
        )
        for place, problem in enumerate(found)
    ]


def random_requests(model: Nemotron, batch: int, tokens: int) -> list[Request]:
    """Random prompts that are answered to the last token."""
    prompts = random_tokens(model.config.vocab, batch, 64).tolist()
    return [Request(tuple(ids), tokens, Sampling(0)) for ids in prompts]


class Watch:
    """Counts the drafts of an engine that came true where a token is no template's."""

    def __init__(self, requests: list[Request], answers: list[list[int]]) -> None:
        self._begin = [len(request.ids) for request in requests]
        self._requests = len(requests)
        self._fixed = [self._places(requests, answers, at) for at in range(len(answers))]
        self.tried, self.came = [0] * 8, [0] * 8

    @staticmethod
    def _places(requests: list[Request], answers: list[list[int]], at: int) -> set[int]:
        """Places of one answer whose tokens nearly all answers to its kind of problem share."""
        each = max(1, len(answers) // len(KINDS))
        kind = answers[at // each * each : at // each * each + each]
        fixed = set()
        for place, token in enumerate(answers[at]):
            same = sum(len(one) > place and one[place] == token for one in kind)
            if same >= SAME * len(kind) or token in requests[at].stop_ids:
                fixed.add(place)
        return fixed

    def look(self, engine: Engine) -> None:
        """Count from now on."""
        count = engine._depth.count

        def counted(live: Live, drafts: int, accepted: int) -> None:
            count(live, drafts, accepted)
            at = live.number % self._requests
            begin = len(live.ids) - accepted - 1 - self._begin[at]
            for depth in range(min(accepted + 1, drafts)):
                if begin + depth not in self._fixed[at]:
                    self.tried[depth] += 1
                    self.came[depth] += depth < accepted

        engine._depth.count = counted  # type: ignore[method-assign]

    @property
    def acceptance(self) -> list[float]:
        """Share of the drafts of each depth that came true, where earlier ones had."""
        return [came / tried for came, tried in zip(self.came, self.tried, strict=True) if tried]


def pair(
    model: Nemotron, requests: list[Request], batch: int, pairs: int
) -> tuple[list[float], list[float], list[list[float]]]:
    """Tokens a second of each turn without and with drafts; acceptance of all and some tokens."""
    longest = max(len(r.ids) + r.max_tokens for r in requests)
    config = EngineConfig(sequences=batch, context=longest, prefix_bytes=0)
    plain, drafting = Engine(model, config, drafts=0), Engine(model, config, drafts=3)
    wanted = timed(plain, requests, batch)[1]
    # how often drafts come true is asked of one that always drafts: the other rests where it may
    always, watch = Engine(model, config, drafts=3, adapt=False), Watch(requests, wanted)
    watch.look(always)
    if timed(always, requests, batch)[1] != wanted:
        raise SystemExit("Drafting changed an answer; that is a defect.")
    for _ in range(WARM):
        timed(drafting, requests, batch)
    without, with_ = [], []
    for _ in range(pairs):
        without.append(timed(plain, requests, batch)[0])
        speed, found = timed(drafting, requests, batch)
        with_.append(speed)
        if found != wanted:
            raise SystemExit("Drafting changed an answer; that is a defect.")
    return without, with_, [always.stats.acceptance, watch.acceptance]


def timed(engine: Engine, requests: list[Request], batch: int) -> tuple[float, list[list[int]]]:
    """Tokens a second of decoding, `batch` requests at a time, and the answers' tokens.

    The clock runs from where all of a group have been read until all have ended.
    """
    seconds, tokens, answers = 0.0, 0, []
    for first in range(0, len(requests), batch):
        group = requests[first : first + batch]
        found: dict[int, list[int]] = {engine.add(request): [] for request in group}
        began = 0.0
        while engine.unfinished:
            for event in engine.step():
                if event.token is not None:
                    found[event.request].append(event.token.id)
                    tokens += began > 0
            if not began and all(found.values()):
                began = time.perf_counter()
        seconds += time.perf_counter() - began
        answers += list(found.values())
    return tokens / seconds, answers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--checkpoint", type=Path, help="a trained model's folder")
    parser.add_argument("--size", default="pocket", help="a size with random weights")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=1, help="times that a turn asks everything")
    parser.add_argument("--json", type=Path, help="write the table here too")
    options = parser.parse_args()
    machine.tune()
    if options.checkpoint is not None:
        model, name = fathom.load(options.checkpoint).eval().pack(), options.checkpoint.name
    else:
        known = {**SIZES, **WORKLOADS}
        config = known[options.size]
        config = config if config.mtp else config.replace(mtp="*E")
        model, name = Nemotron(config, seed=0).eval().pack(), f"{options.size}, random"
    rows = []
    for batch in options.batch:
        if options.checkpoint is not None:
            requests = held_out(options.checkpoint, batch, options.tokens, options.temperature)
            requests = requests * options.rounds
        else:
            requests = random_requests(model, batch, options.tokens)
        without, with_, (of_all, of_some) = pair(model, requests, batch, options.pairs)
        ratio = statistics.median(b / a for a, b in zip(without, with_, strict=True))
        came = ", ".join(f"{share:.1%}" for share in of_all) or "none"
        if options.checkpoint is not None:
            came += "; of no template's " + ", ".join(f"{share:.1%}" for share in of_some)
        rows.append(
            Row(
                work=f"{name}: {batch} at once; drafts that came true, by depth: {came}",
                unit="tok/s",
                fathom=statistics.median(with_),
                peer=statistics.median(without),
                peer_name="without drafts",
                ratio=ratio,
                bound=None,
                of_bound=None,
                runs=options.pairs,
            )
        )
        print_rows(rows[-1:])
    if options.json is not None:
        write(options.json, machine_facts(), rows)


if __name__ == "__main__":
    main()

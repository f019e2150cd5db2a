"""A million tokens of context on one small machine: the walk, and what it shows.

Promise: a small hybrid (random weights: what is shown is memory and speed, not skill) is asked
for an answer behind 1,048,576 tokens, by the engine that serves, which goes on from what it has
read of the shorter prompts. At each context the memory of its Mamba layers, its keys and values
beside what `fathom plan` says, and the speed of decoding are measured, and beside it the decoding
of an all-attention twin of the same size, whose pages are filled with random values.

    python studies/million/walk.py                          # the whole walk
    python studies/million/walk.py --contexts 1024 16384    # a short one, as the tests take it
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fathom import machine
from fathom.config.model import AttentionConfig, MambaConfig, ModelConfig, MoEConfig
from fathom.engine.engine import Engine
from fathom.engine.request import Request
from fathom.model.memory import Memory
from fathom.model.nemotron import Nemotron
from fathom.model.recorded import RecordedStep
from fathom.model.timing import pretend
from fathom.ops.attend.pages import PAGE

CONTEXTS = (1024, 32_768, 262_144, 1_048_576)
PIECE = 8192
STEPS, WARM = 128, 4

HYBRID = ModelConfig(
    name="million",
    vocab=1024,
    width=192,
    pattern="MEM*EMEME",
    mamba=MambaConfig(heads=6, head_width=64, state=64, groups=2),
    attention=AttentionConfig(heads=2, kv_heads=2, head_width=32),
    moe=MoEConfig(experts=16, chosen=4, expert_width=128, shared_width=256),
    context=1 << 20,
)
"""One attention layer of two query heads of 32 among four Mamba-2 layers."""


@dataclass
class Row:
    """What was measured at one context."""

    context: int
    mamba_bytes: int
    """Bytes of states and tails, which do not grow."""
    kv_bytes: int
    """Bytes of the pages that hold its keys and values."""
    planned_bytes: int
    """What `fathom plan` says of them."""
    read_seconds: float
    """Seconds of reading from the context before, in pieces."""
    tokens_per_second: float
    """Decoding behind the context."""
    twin_tokens_per_second: float
    """The same of the twin whose every mixer is attention."""


def twin(hybrid: ModelConfig) -> ModelConfig:
    """The same model with attention in the place of every Mamba layer, as wide as it needs to be.

    Heads are added until it has as many parameters.
    """
    pattern = hybrid.pattern.replace("M", "*")
    heads = 2
    while True:
        shape = AttentionConfig(heads=heads, kv_heads=heads, head_width=32)
        found = hybrid.replace(name="twin", pattern=pattern, mamba=None, attention=shape)
        if found.parameters >= hybrid.parameters:
            return found
        heads += 1


def walk(contexts: Sequence[int]) -> list[Row]:
    """Ask for an answer behind each context, the longer ones going on from the shorter."""
    model = Nemotron(HYBRID, seed=0).eval().pack()
    other = Nemotron(twin(HYBRID), seed=0).eval().pack()
    room = contexts[-1] + STEPS + 16
    engine = Engine(model, sequences=1, context=room, kv_tokens=room + 4096, chunk=PIECE, drafts=0)
    ids = torch.randint(
        0, HYBRID.vocab, (contexts[-1],), generator=torch.Generator().manual_seed(0)
    )
    prompt = tuple(ids.tolist())
    rows = []
    for context in contexts:
        seconds, speed, pages = answer(engine, Request(prompt[:context], STEPS))
        behind = other.memory(1, context + STEPS + 8)
        pretend(behind, context)
        twin_speed = decode(other, behind)
        del behind
        rows.append(
            Row(
                context=context,
                mamba_bytes=engine.stats.kept_bytes // engine.stats.kept_prefixes,
                kv_bytes=pages * PAGE * HYBRID.kv_bytes_per_token(4),
                planned_bytes=(context + STEPS) * HYBRID.kv_bytes_per_token(4),
                read_seconds=seconds,
                tokens_per_second=speed,
                twin_tokens_per_second=twin_speed,
            )
        )
        print(json.dumps(asdict(rows[-1])), flush=True)
    return rows


def answer(engine: Engine, request: Request) -> tuple[float, float, int]:
    """Seconds of reading, tokens a second of decoding, and pages in use at the end."""
    number = engine.add(request)
    began, came, first, pages = time.perf_counter(), 0, 0.0, 0
    told = 0.0
    while engine.unfinished:
        for event in engine.step():
            if event.token is not None:
                came += 1
                # the second step is written down: what follows is what a user sees
                first = time.perf_counter() if came == WARM else first
                read = time.perf_counter() - began if came == 1 else 0.0
                told = told or read
        pages = max(pages, engine.stats.pages - engine.stats.free_pages)
    assert number >= 0
    return told, (came - WARM) / (time.perf_counter() - first), pages


def decode(model: Nemotron, memory: Memory) -> float:
    """Tokens a second of recorded steps behind what a memory holds."""
    step = RecordedStep(model, memory)
    for token in range(WARM):
        step.step([token])
    began = time.perf_counter()
    for token in range(STEPS):
        step.step([token])
    return STEPS / (time.perf_counter() - began)


def main() -> None:
    """Walk, print, and write the rows beside this file or where `--json` says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--contexts", type=int, nargs="+", default=CONTEXTS)
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    machine.tune()
    rows = walk(sorted(options.contexts))
    print(table(rows))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| context | Mamba memory | keys and values | of `fathom plan` | read on | decode, tok/s "
        "| all-attention twin | ratio |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.context:,} | {row.mamba_bytes / 1024:.1f} KiB | {row.kv_bytes / 2**20:.1f} MiB "
        f"| {row.kv_bytes / row.planned_bytes:.3f} | {row.read_seconds:.1f} s "
        f"| {row.tokens_per_second:,.0f} | {row.twin_tokens_per_second:,.1f} "
        f"| {row.tokens_per_second / row.twin_tokens_per_second:.1f} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

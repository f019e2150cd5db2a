"""Forward + backward of a training step on the CPU: Fathom beside transformers, A B A B.

Every turn is a process of its own (the large model does not fit twice), all engines load the same
weights and take the same tokens, each computes in the arithmetic that this CPU does faster. The
peer is shown twice: as it ships, and with the process settings that Fathom's commands make
(denormals flushed, freed memory kept). No optimizer. The bound is every product's FLOP, three times
over, at the CPU's measured rate.

    python bench/train_cpu.py --json runs/bench/train_cpu.json
    python bench/train_cpu.py --only pocket-like --turns 5
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from models import make
from report import Row, machine_facts, print_rows, write
from torch.nn import functional as F
from workloads import WORKLOADS

import fathom
from fathom import machine
from fathom.config.model import ModelConfig
from fathom.model.traffic import forward_flop

CASES = {
    "pocket-like, 8 x 256": ("pocket-like", 8, 256, 5),
    "pocket-like, 1 x 2048": ("pocket-like", 1, 2048, 5),
    "tiny-31m, 1 x 2048": ("tiny-31m", 1, 2048, 3),
    "bench-1b, 1 x 512": ("bench-1b", 1, 512, 3),
}
"""Work -> model, documents, their length, counted steps a turn."""


PEERS = ("transformers", "transformers with Fathom's process settings")


def flop(config: ModelConfig, documents: int, length: int) -> float:
    """FLOP of a step: the backward pass counts twice."""
    return 3 * forward_flop(config, documents, length, head_rows=documents * length)


def worker(engine: str, name: str, documents: int, length: int, steps: int, folder: Path) -> None:
    """Load, warm up, time `steps` steps, print their seconds as JSON."""
    if engine != PEERS[0]:
        machine.tune()
    config = WORKLOADS[name]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, config.vocab, (documents, length + 1), generator=generator)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].reshape(-1)
    narrow = machine.fast_arithmetic(machine.measure()) == "bf16"
    if engine == "fathom":
        model = fathom.load(folder, dtype=torch.float32)
        from fathom.model.precision import lay

        lay(model, "bf16" if narrow else "fp32")
        layout = fathom.Layout.of([length] * documents)

        def logits() -> torch.Tensor:
            hidden_TD = model(inputs.reshape(-1), layout)
            return model.logits(hidden_TD)
    else:
        from transformers import NemotronHForCausalLM

        dtype = torch.bfloat16 if narrow else torch.float32
        model = NemotronHForCausalLM.from_pretrained(folder, dtype=dtype)

        def logits() -> torch.Tensor:
            found: torch.Tensor = model(input_ids=inputs, use_cache=False).logits
            return found.flatten(0, 1).float()

    seconds, losses = [], []
    for _ in range(steps + 1):
        begin = time.perf_counter()
        model.zero_grad(set_to_none=True)
        loss = F.cross_entropy(logits(), targets)
        loss.backward()
        seconds.append(time.perf_counter() - begin)
        losses.append(loss.item())
    print(json.dumps({"seconds": seconds[1:], "loss": losses[0], "bf16": narrow}))


def turn(engine: str, case: tuple[str, int, int, int], folder: Path) -> dict[str, object]:
    """One process of one engine."""
    command = [sys.executable, __file__, "--worker", engine, *map(str, case), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine} failed:\n{done.stderr[-2000:]}")
    found: dict[str, object] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def compare(work: str, turns: int, cache: Path) -> list[Row]:
    """A B C A B C over one workload."""
    name, documents, length, _ = CASES[work]
    config, folder = WORKLOADS[name], cache / name
    if not folder.exists():
        make(config, folder)
    times: dict[str, list[float]] = {engine: [] for engine in ("fathom", *PEERS)}
    for _ in range(turns):
        losses = {}
        for engine, seconds in times.items():
            found = turn(engine, CASES[work], folder)
            seconds.extend(found["seconds"])  # type: ignore[arg-type]
            losses[engine] = found["loss"]
        assert abs(losses["fathom"] - losses[PEERS[0]]) < 2e-2  # type: ignore[operator]
    rates = machine.measure()
    tokens = documents * length
    bound = tokens / flop(config, documents, length) * max(rates.fp32, rates.bf16) * 1e9
    speed = {engine: tokens / statistics.median(found) for engine, found in times.items()}
    return [
        Row(
            work=f"training, forward + backward: {work}",
            unit="tok/s",
            fathom=speed["fathom"],
            peer=speed[peer],
            peer_name=peer,
            ratio=speed["fathom"] / speed[peer],
            bound=bound,
            of_bound=speed["fathom"] / bound,
            runs=len(times["fathom"]),
        )
        for peer in PEERS
    ]


def main() -> None:
    """Run every workload and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="workloads whose name holds this")
    parser.add_argument("--turns", type=int, default=3, help="processes of each engine")
    parser.add_argument("--cache", type=Path, default=Path("runs/bench"), help="made weights")
    parser.add_argument("--json", type=Path, help="write the table here too")
    options = parser.parse_args()
    rows: list[Row] = []
    for work in CASES:
        if options.only in work:
            found = compare(work, options.turns, options.cache)
            print_rows(found)
            rows += found
    if options.json:
        write(options.json, machine_facts(), rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        engine, name, documents, length, steps, folder = sys.argv[2:]
        worker(engine, name, int(documents), int(length), int(steps), Path(folder))
    else:
        main()

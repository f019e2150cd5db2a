"""What the benchmarks compute without a clock: bounds, rows, the output of other programs.

Promise: the formulas that every figure is divided by are counted against a model's own tensors;
nothing here measures. The benchmarks themselves are `bench/`, imported by path.
"""

import importlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fathom import Layout, ModelConfig, Nemotron
from fathom.config.model import AttentionConfig, MambaConfig, MoEConfig
from fathom.errors import FathomError, MissingError
from fathom.model import traffic
from fathom.model.timing import pretend
from fathom.ops import native

SMALL = ModelConfig(
    name="small",
    vocab=64,
    width=32,
    pattern="ME*E",
    mamba=MambaConfig(heads=2, head_width=16, state=8, groups=1, chunk=8),
    attention=AttentionConfig(heads=2, kv_heads=1, head_width=16),
    moe=MoEConfig(experts=8, chosen=2, expert_width=16, shared_width=24),
)

LLAMA_BENCH = (
    "some line of a log {with a brace}\n"
    '{"build_commit": "0c1e570", "model_filename": "x.gguf", "n_prompt": 512, "n_gen": 0, '
    '"n_depth": 0, "avg_ns": 2000000000, "samples_ns": [ 1000000000, 3000000000 ],'
    '"samples_ts": [ 512.0, 170.6 ]}\n'
    '{"build_commit": "0c1e570", "model_filename": "x.gguf", "n_prompt": 0, "n_gen": 48, '
    '"n_depth": 8192, "avg_ns": 500000000, "samples_ns": [ 500000000 ],"samples_ts": [ 96.0 ]}\n'
)

LLAMA_BATCHED = (
    '{"n_kv_max": 4096, "n_threads": 2, "pp": 128, "tg": 16, "pl": 4, "n_kv": 576, '
    '"t_pp": 0.25, "speed_pp": 2048.0, "t_tg": 0.5, "speed_tg": 128.0, "t": 0.75, "speed": 768.0}\n'
    "\n"
    "llama_perf_context_print: load time = 1.00 ms\n"
)


@pytest.fixture
def bench(monkeypatch) -> Callable[[str], ModuleType]:
    """A module of bench/ by name."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    return importlib.import_module


class Counting:
    """An engine whose runs last as many seconds as there were runs before."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, ...]] = []

    def prefill(self, tokens: int, batch: int) -> float:
        self.asked.append((tokens, batch))
        return float(len(self.asked))

    def decode(self, batch: int, context: int, steps: int) -> float:
        self.asked.append((batch, context, steps))
        return float(len(self.asked))


def test_one_sequence_reads_the_tensors_that_a_token_uses(bench):
    bounds = bench("bounds")
    model = Nemotron(SMALL, device="meta", seed=None)
    used = 0.0
    for name, tensor in model.state_dict().items():
        share = 1.0
        if name == "embedding.weight":
            share = 1 / SMALL.vocab
        elif ".experts." in name:
            share = SMALL.moe.chosen / SMALL.moe.experts
        used += 4 * share * tensor.numel()
    assert bounds.weight_bytes(SMALL, bounds.STORED["fp32"], 1) == pytest.approx(used)


def test_a_large_batch_reads_every_tensor_once(bench):
    bounds = bench("bounds")
    batch = 1000
    every = SMALL.parameters - SMALL.vocab * SMALL.width + batch * SMALL.width
    assert bounds.weight_bytes(SMALL, bounds.STORED["fp32"], batch) == pytest.approx(4 * every)


def test_four_bit_codes_shrink_the_named_matrices_alone(bench):
    bounds = bench("bounds")
    moe, mamba, width = SMALL.moe, SMALL.mamba, SMALL.width
    matrices = width * (mamba.in_rows + mamba.inner) + SMALL.vocab * width
    matrices += 2 * (moe.chosen * 2 * width * moe.expert_width + 2 * width * moe.shared_width)
    wide = bounds.weight_bytes(SMALL, bounds.STORED["bf16"], 1)
    narrow = bounds.weight_bytes(SMALL, bounds.STORED["nvfp4"], 1)
    assert wide - narrow == pytest.approx(matrices * (2 - 0.5625))


def test_the_large_workload_moves_what_it_was_computed_to(bench):
    bounds, shape = bench("bounds"), bench("workloads").BENCH_1B
    moved = {form: bounds.decode_bytes(shape, bounds.STORED[form], 1, 0) for form in bounds.STORED}
    assert moved["bf16"] == pytest.approx(562e6 + 25e6, rel=5e-3)
    assert moved["nvfp4"] == pytest.approx(170e6 + 25e6, rel=5e-3)


def test_expected_experts_are_those_that_random_routing_visits():
    moe = SMALL.moe
    draw = random.Random(0)
    visits = []
    for _ in range(4000):
        tokens = [draw.sample(range(moe.experts), moe.chosen) for _ in range(5)]
        visits.append(len({expert for token in tokens for expert in token}))
    found = traffic.distinct_experts(moe, 5)
    assert found == pytest.approx(sum(visits) / len(visits), rel=0.02)
    assert traffic.distinct_experts(moe, 1) == pytest.approx(moe.chosen)


def test_states_are_read_and_written_and_the_past_is_read(bench):
    bounds = bench("bounds")
    stored = bounds.STORED["bf16"]
    bare = bounds.weight_bytes(SMALL, stored, 3)
    kept = 2 * (SMALL.state_bytes + SMALL.conv_bytes(2))
    past = 100 * SMALL.kv_bytes_per_token(2)
    assert bounds.decode_bytes(SMALL, stored, 3, 100) == pytest.approx(bare + 3 * (kept + past))


@pytest.mark.parametrize(("batch", "context"), [(1, 0), (4, 300)])
def test_bounds_of_a_shape_are_those_that_the_library_counts_on_a_model(bench, batch, context):
    bounds, model = bench("bounds"), Nemotron(SMALL, device="meta", seed=None)
    found = bounds.decode_bytes(SMALL, bounds.STORED["fp32"], batch, context)
    assert found == pytest.approx(traffic.step_bytes(model, batch, context), rel=1e-3)


def test_flop_of_a_longer_document_grow_by_its_attention():
    one, two = (traffic.forward_flop(SMALL, 1, n, head_rows=0) for n in (64, 128))
    assert two - 2 * one == pytest.approx(64 * traffic.attention_flop(SMALL, 64))
    with_head = traffic.forward_flop(SMALL, 1, 64, head_rows=64)
    assert with_head - one == 2 * 64 * SMALL.vocab * SMALL.width


def test_context_costs_what_takes_longer(bench):
    bounds = bench("bounds")
    moved = 1000 * SMALL.kv_bytes_per_token(2)
    flop = traffic.attention_flop(SMALL, 1000)
    stored = bounds.STORED["bf16"]
    assert bounds.context_seconds(SMALL, stored, 1000, 1.0, 1e30) == moved
    assert bounds.context_seconds(SMALL, stored, 1000, 1e30, 1.0) == flop


def test_llama_bench_is_read_by_the_work_that_was_asked(bench):
    llama, works = bench("llama_worker"), bench("works")
    rows = llama.parse(LLAMA_BENCH)
    assert llama.seconds(rows, works.Work("prefill", 512)) == [1.0, 3.0]
    assert llama.seconds(rows, works.Work("decode", 8192, 1, 48)) == [0.5]
    with pytest.raises(ValueError, match="decode 1 at 0"):
        llama.seconds(rows, works.Work("decode", 0, 1, 48))


def test_llama_batched_bench_is_read_by_its_batch(bench):
    llama, works = bench("llama_worker"), bench("works")
    rows = llama.parse(LLAMA_BATCHED)
    assert llama.seconds(rows, works.Work("decode", 128, 4, 16)) == [0.5]
    with pytest.raises(ValueError, match="decode 16"):
        llama.seconds(rows, works.Work("decode", 128, 16, 16))


def test_llama_is_asked_for_the_same_work(bench):
    llama, works = bench("llama_worker"), bench("works")
    line = llama.command(Path("b"), Path("m.gguf"), works.Work("decode", 8192, 1, 48), 2, 3)
    assert line[0] == "b/bin/llama-bench"
    assert " ".join(line[1:]) == "-m m.gguf -t 2 -p 0 -n 48 -d 8192 -r 3 -o jsonl"
    line = llama.command(Path("b"), Path("m.gguf"), works.Work("decode", 128, 4, 16), 2, 2)
    assert line[0] == "b/bin/llama-batched-bench"
    assert "-npl 4,4 -c 576" in " ".join(line)


def test_the_first_run_warms_up_and_is_not_counted(bench):
    works, engine = bench("works"), Counting()
    assert works.timed(engine, works.Work("prefill", 8), 2) == [2.0, 3.0]
    assert works.timed(engine, works.Work("decode", 5, 4, 6), 1) == [5.0]
    assert engine.asked == [(8, 1)] * 3 + [(4, 5, 6)] * 2


@pytest.mark.parametrize("batch", [1, 3])
def test_fathom_decodes_behind_a_context_that_it_never_read(bench, batch):
    worker = bench("fathom_worker")
    engine = worker.FathomEngine(Nemotron(SMALL).pack())
    memory = engine.model.memory(batch, 20)
    pretend(memory, 19)
    layout = Layout.of([1] * batch)
    with torch.inference_mode():
        hidden = engine.model(torch.zeros(batch, dtype=torch.int64), layout, memory)
    assert hidden.isfinite().all()
    assert memory.seen == [20] * batch
    assert engine.prefill(7, batch) > 0
    if native.tier() is None:
        with pytest.raises(MissingError, match="did not record"):
            engine.decode(batch, 19, 2)
    else:
        assert engine.decode(batch, 19, 2) > 0


def test_a_precision_that_fathom_lacks_is_an_error_in_words(bench, tmp_path):
    with pytest.raises(FathomError, match="w9a9"):
        bench("fathom_worker").load(tmp_path, "w9a9")


def measured(bench, work: tuple[object, ...], **seconds: list[float]):
    """A measured work; `_` in a name stands for a space."""
    rates = bench("ceiling").Ceiling(read=1e9, float_flops=1e12, int8_flops=4e12)
    named = {name.replace("_", " ").replace("llama", "llama.cpp"): s for name, s in seconds.items()}
    return bench("inference_rows").Measured(bench("works").Work(*work), named, rates)


def test_rows_hold_medians_and_each_arithmetic_beside_each_peer(bench):
    case, shape = bench("inference_cases").CASES["bench-1b-nvfp4"], bench("workloads").BENCH_1B
    found = measured(
        bench,
        ("prefill", 512),
        Fathom_nvfp4=[1.0, 9.0, 2.0],
        Fathom_w4a8=[],
        llama_NVFP4=[8.0],
        llama_Q4_0=[],
    )
    rows = bench("inference_rows").rows_of(case, shape, found)
    assert [(row.work, row.peer_name) for row in rows] == [
        ("bench-1b-nvfp4, nvfp4: prefill 512", "llama.cpp NVFP4"),
        ("bench-1b-nvfp4, w4a8: prefill 512", "llama.cpp NVFP4"),
    ]
    assert (rows[0].fathom, rows[0].peer, rows[0].ratio, rows[0].runs) == (256, 64, 4, 3)
    assert (rows[1].fathom, rows[1].ratio, rows[1].of_bound) == (None, None, None)
    assert rows[1].bound == pytest.approx(4 * rows[0].bound)


def test_a_long_context_is_told_by_what_it_adds_to_a_step(bench):
    case, shape = bench("inference_cases").CASES["pocket-like"], bench("workloads").POCKET_LIKE
    steps = ("decode", 1024, 1, 10), ("decode", 8192, 1, 10)
    short = measured(bench, steps[0], Fathom_fp32=[1.0], llama_F32=[1.0])
    long = measured(bench, steps[1], Fathom_fp32=[1.5], llama_F32=[2.0])
    (row,) = bench("inference_rows").context_rows(case, shape, [short, long])
    assert (row.unit, row.fathom, row.peer, row.ratio) == ("ms", *map(pytest.approx, (50, 100, 2)))
    moved = (8192 - 1024) * shape.kv_bytes_per_token(4)
    assert row.bound == pytest.approx(1e3 * moved / 1e9)
    assert bench("inference_rows").context_rows(case, shape, [long]) == []


def test_an_absent_figure_is_written_as_null(bench, tmp_path):
    report = bench("report")
    row = report.Row("w", "tok/s", None, None, None, None, 3.0, None, 0)
    report.print_rows([row])
    report.write(tmp_path / "sub" / "x.json", {"cpu": "c"}, [row])
    found = json.loads((tmp_path / "sub" / "x.json").read_text())
    assert found["machine"] == {"cpu": "c"}
    assert found["rows"][0]["fathom"] is None
    assert set(found["rows"][0]) >= {"work", "unit", "peer", "ratio", "bound", "of_bound", "runs"}


def test_an_operation_is_shown_by_what_bounds_it(bench):
    ops, rates = bench("cpu_ops"), bench("ceiling").Ceiling(1e9, 1e10, 0.0)
    moves = bench("op_cases").OpCase("a", lambda: (None, None), bytes=1e9, flop=1e9)
    computes = bench("op_cases").OpCase("b", lambda: (None, None), bytes=1e9, flop=1e11)
    row = ops.row(moves, rates, 2.0, 4.0, 1)
    assert (row.unit, row.fathom, row.of_bound, row.ratio) == ("GB/s", 0.5, 0.5, 2.0)
    row = ops.row(computes, rates, None, 20.0, 1)
    assert (row.unit, row.fathom, row.peer, row.bound) == ("GFLOP/s", None, 5.0, 10.0)
    int8 = bench("op_cases").OpCase("c", lambda: (None, None), bytes=1e6, flop=1e11, int8=True)
    row = ops.row(int8, bench("ceiling").Ceiling(1e9, 1e10, 4e10), 5.0, None, 1)
    assert (row.fathom, row.bound, row.of_bound) == (20.0, 40.0, 0.5)


def test_every_small_case_of_an_operation_can_be_called(bench):
    small = [c for c in bench("op_cases").cases() if c.name.endswith(("pocket-like, 1 rows",))]
    assert len(small) >= 4
    for case in small:
        native, eager = case.make()
        with torch.inference_mode():
            assert [call() for call in (native, eager) if call is not None]
        assert case.bytes > 0


def test_llamas_files_stand_beside_the_folder(bench):
    beside = bench("to_llama").beside
    assert beside(Path("m/x-1b"), "q8_0") == Path("m/x-1b-q8_0.gguf")
    assert beside(Path("m/x-1b"), "asis") == Path("m/x-1b.gguf")

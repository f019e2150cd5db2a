"""Whole models survive the way through the official layout."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fathom.checkpoint import weights
from fathom.checkpoint.atomic import replaced
from fathom.errors import CheckpointError
from fathom.model.nemotron import Nemotron
from fathom.model.sizes import POCKET
from fathom.ops.layout import Layout


class Words:
    """A text's two promises: stop ids, and files."""

    stop_ids = frozenset({5, 3})

    def save(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("shard_bytes", [2**40, 4000, 1])
def test_what_is_saved_is_loaded_bit_for_bit(tmp_path, tiny, scrambled, same, dtype, shard_bytes):
    model = scrambled(tiny, dtype, 1)
    weights.save(model, tmp_path / "x", shard_bytes=shard_bytes)
    found = weights.load(tmp_path / "x")
    same(model, found)
    assert found.config == tiny


def test_what_is_loaded_computes_the_same(tmp_path, tiny):
    model = Nemotron(tiny, seed=3)
    weights.save(model, tmp_path / "x")
    tokens, layout = torch.arange(20), Layout.of([13, 7])
    found = weights.load(tmp_path / "x")
    assert torch.equal(model(tokens, layout), found(tokens, layout))


def test_a_tied_model_has_no_head_on_disk(tmp_path, tiny, scrambled, same):
    model = scrambled(tiny.replace(tied=True), torch.bfloat16, 1)
    weights.save(model, tmp_path / "x")
    assert "lm_head.weight" not in load_file(tmp_path / "x" / "model.safetensors")
    same(model, weights.load(tmp_path / "x"))


def test_correction_biases_stay_fp32_whatever_is_asked(tmp_path, tiny, scrambled):
    model = scrambled(tiny, torch.float32, 1)
    exact = 56.975 + torch.arange(4) * 1e-4
    model.routers()[0].correction_bias.copy_(exact)
    weights.save(model, tmp_path / "x", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "x" / "model.safetensors")
    name = "backbone.layers.1.mixer.gate.e_score_correction_bias"
    assert {key for key, value in stored.items() if value.dtype == torch.float32} == {
        key for key in stored if key.endswith("e_score_correction_bias")
    }
    assert torch.equal(stored[name], exact)
    found = weights.load(tmp_path / "x", dtype=torch.bfloat16)
    assert torch.equal(found.routers()[0].correction_bias, exact)


def test_a_type_may_be_asked_for_on_loading(tmp_path, model):
    weights.save(model, tmp_path / "x")
    found = weights.load(tmp_path / "x", dtype=torch.float32).state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.float(), found[name]), name


def test_mixed_types_are_loaded_without_rounding(tmp_path, model):
    weights.save(model, tmp_path / "x")
    file = tmp_path / "x" / "model.safetensors"
    stored = load_file(file)
    fine = torch.tensor([1.0 + 2**-20] * 4)
    stored["backbone.layers.0.mixer.A_log"] = fine
    save_file(stored, file)
    found = weights.load(tmp_path / "x").state_dict()
    assert torch.equal(found["blocks.0.mixer.A_log"], fine)
    assert found["embedding.weight"].dtype == torch.float32


def test_the_files_are_the_official_ones(tmp_path, model, tiny):
    weights.save(model, tmp_path / "one", Words())
    assert {entry.name for entry in (tmp_path / "one").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    told = json.loads((tmp_path / "one" / "generation_config.json").read_text())
    assert told["eos_token_id"] == [3, 5]
    weights.save(model, tmp_path / "many", shard_bytes=4000)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 3
    assert index["metadata"]["total_size"] == tiny.checkpoint_bytes
    assert len(index["weight_map"]) == tiny.tensors
    biggest = 64 * 32 * 2
    assert all((tmp_path / "many" / f).stat().st_size < 4000 + biggest + 4000 for f in files)


def test_other_dialects_are_loaded(tmp_path, model, same):
    weights.save(model, tmp_path / "x")
    file = tmp_path / "x" / "model.safetensors"
    stored = load_file(file)
    layers = {name.split(".experts.")[0] for name in stored if ".experts." in name}
    for layer in layers:
        for which in ("up_proj", "down_proj"):
            names = [f"{layer}.experts.{e}.{which}.weight" for e in range(4)]
            stored[f"{layer}.experts.{which}"] = torch.stack([stored.pop(n) for n in names])
    save_file({k.replace("backbone.", "model."): v for k, v in stored.items()}, file)
    same(model, weights.load(tmp_path / "x"))


def test_saving_over_a_checkpoint_replaces_it_and_keeps_the_tokenizer(
    tmp_path, tiny, scrambled, same
):
    weights.save(scrambled(tiny, torch.bfloat16, 1), tmp_path / "x", Words(), shard_bytes=4000)
    second = scrambled(tiny, torch.bfloat16, 2)
    weights.save(second, tmp_path / "x")
    same(second, weights.load(tmp_path / "x"))
    assert {entry.name for entry in (tmp_path / "x").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_a_checkpoint_whose_replacement_was_killed_is_still_found(tmp_path, model, same):
    weights.save(model, tmp_path / "x")
    (tmp_path / "x").rename(replaced(tmp_path / "x"))
    same(model, weights.load(tmp_path / "x"))


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, model, same, python):
    weights.save(model, tmp_path / "x")
    script = """
import resource, sys
import torch
from fathom.checkpoint import weights
from fathom.errors import CheckpointError
model = weights.load(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    weights.save(model, sys.argv[1])
except CheckpointError as error:
    print(error)
"""
    said = python(script, tmp_path / "x")
    assert "No room to write" in said
    assert "untouched" in said
    same(model, weights.load(tmp_path / "x"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def edited(folder: Path, change) -> Path:
    file = folder / "model.safetensors"
    stored = load_file(file)
    change(stored)
    save_file(stored, file)
    return folder


def test_missing_extra_and_misshapen_tensors_are_told_with_what_was_wanted(tmp_path, model):
    weights.save(model, tmp_path / "x")

    def change(stored: dict) -> None:
        del stored["backbone.norm_f.weight"]
        stored["backbone.layers.2.mixer.q_norm.weight"] = torch.ones(8)
        stored["lm_head.weight"] = torch.ones(65, 32)

    with pytest.raises(CheckpointError) as caught:
        weights.load(edited(tmp_path / "x", change))
    told = str(caught.value)
    assert "1 tensors are missing: backbone.norm_f.weight [32]" in told
    assert "1 tensors have no place: backbone.layers.2.mixer.q_norm.weight [8]" in told
    assert "lm_head.weight wanted [64, 32], got [65, 32]" in told


def test_tensors_may_be_ignored_by_pattern(tmp_path, model, same):
    weights.save(model, tmp_path / "x")
    edited(tmp_path / "x", lambda s: s.update({"backbone.a.k_scale": torch.ones(1)}))
    with pytest.raises(CheckpointError, match="have no place"):
        weights.load(tmp_path / "x")
    same(model, weights.load(tmp_path / "x", ignore=("*.k_scale",)))


def test_a_dropped_mtp_head_is_explained_and_can_be_left_out(tmp_path, model):
    weights.save(model, tmp_path / "x")

    def change(stored: dict) -> None:
        for name in [name for name in stored if name.startswith("mtp.")]:
            del stored[name]

    edited(tmp_path / "x", change)
    with pytest.raises(CheckpointError, match=r"transformers drops it.*mtp=False"):
        weights.load(tmp_path / "x")
    found = weights.load(tmp_path / "x", mtp=False)
    assert found.config.mtp == ""
    ours = model.state_dict()
    assert all(torch.equal(ours[name], t) for name, t in found.state_dict().items())


def test_an_mtp_head_that_is_there_can_be_left_out(tmp_path, model):
    weights.save(model, tmp_path / "x")
    assert weights.load(tmp_path / "x", mtp=False).mtp is None


def test_tensors_of_a_known_size_are_recognised(tmp_path, model):
    weights.save(Nemotron(POCKET, dtype=torch.bfloat16), tmp_path / "x")
    weights.save(model, tmp_path / "y")
    (tmp_path / "x" / "config.json").write_text((tmp_path / "y" / "config.json").read_text())
    with pytest.raises(CheckpointError, match="those of 'pocket'"):
        weights.load(tmp_path / "x")


def test_quantised_checkpoints_are_refused(tmp_path, model):
    weights.save(model, tmp_path / "x")
    name = "backbone.layers.0.mixer.in_proj.weight"
    edited(tmp_path / "x", lambda s: s.update({name: s[name].to(torch.float8_e4m3fn)}))
    with pytest.raises(CheckpointError, match="quantised weights"):
        weights.load(tmp_path / "x")
    (tmp_path / "x" / "hf_quant_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"hf_quant_config\.json"):
        weights.load(tmp_path / "x")


def test_weights_that_are_no_floats_are_refused(tmp_path, model):
    weights.save(model, tmp_path / "x")
    edited(
        tmp_path / "x", lambda s: s.update({"lm_head.weight": torch.ones(64, 32).to(torch.int64)})
    )
    with pytest.raises(CheckpointError, match=r"wanted a float, got torch\.int64"):
        weights.load(tmp_path / "x")


def test_a_type_that_is_no_weight_type_is_refused(tmp_path, model):
    with pytest.raises(CheckpointError, match=r"stored as torch\.int8"):
        weights.save(model, tmp_path / "x", dtype=torch.int8)
    assert not (tmp_path / "x").exists()


MEMORY = """
import sys
import torch
from fathom.checkpoint import weights

def now(field):
    text = open("/proc/self/status").read()
    return int(text.split(field + ":")[1].split()[0]) * 1024

# the first operations of torch set up its own things once
torch.ones(1000).bfloat16().float()
open("/proc/self/clear_refs", "w").write("5")
before = now("VmRSS")
model = weights.load(sys.argv[1])
print(now("VmHWM") - before)
if len(sys.argv) > 2:
    open("/proc/self/clear_refs", "w").write("5")
    before = now("VmRSS")
    weights.save(model, sys.argv[2])
    print(now("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("shard_bytes", [2**40, 40_000_000])
def test_loading_takes_little_more_memory_than_the_weights(tmp_path, tiny, shard_bytes, python):
    config = tiny.replace(
        width=512,
        vocab=20_000,
        moe={**tiny.moe.as_dict(), "experts": 64, "expert_width": 512, "latent": 384},
        mlp={"hidden": 8192},
    )
    model = Nemotron(config, dtype=torch.bfloat16)
    weights.save(model, tmp_path / "x", shard_bytes=shard_bytes)
    size = config.checkpoint_bytes
    assert size > 200e6
    loading, saving = map(int, python(MEMORY, tmp_path / "x", tmp_path / "y").split())
    assert 0.95 * size < loading < 1.15 * size
    assert saving < 0.15 * size


@pytest.mark.oracle
def test_transformers_loads_what_we_save_bit_for_bit(tmp_path, tiny, scrambled):
    from transformers import AutoModelForCausalLM

    model = scrambled(tiny, torch.bfloat16, 4)
    weights.save(model, tmp_path / "x", shard_bytes=4000)
    found, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "x", dtype=torch.bfloat16, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["mismatched_keys"]
    found.save_pretrained(tmp_path / "theirs")
    ours: dict[str, torch.Tensor] = {}
    for file in (tmp_path / "x").glob("*.safetensors"):
        ours |= load_file(file)
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert theirs.keys() == {name for name in ours if not name.startswith("mtp.")}
    for name, tensor in theirs.items():
        assert tensor.dtype == ours[name].dtype, name
        assert torch.equal(tensor, ours[name]), name
    again = weights.load(tmp_path / "theirs", mtp=False)
    mine = model.state_dict()
    assert all(torch.equal(mine[name], t) for name, t in again.state_dict().items())


@pytest.mark.oracle
@pytest.mark.parametrize("latent", [None, 8])
def test_a_checkpoint_of_transformers_survives_loading_and_saving(tmp_path, latent):
    from transformers import NemotronHConfig, NemotronHForCausalLM

    torch.manual_seed(0)
    config = NemotronHConfig(
        vocab_size=64,
        hidden_size=32,
        hybrid_override_pattern="MEM*-E",
        mamba_num_heads=4,
        mamba_head_dim=16,
        ssm_state_size=8,
        n_groups=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=24,
        moe_latent_size=latent,
        intermediate_size=40,
    )
    theirs = NemotronHForCausalLM(config)
    for part in theirs.modules():
        if hasattr(part, "e_score_correction_bias"):
            part.e_score_correction_bias.normal_()
    theirs.save_pretrained(tmp_path / "theirs")
    model = weights.load(tmp_path / "theirs")
    weights.save(model, tmp_path / "ours")
    before = load_file(tmp_path / "theirs" / "model.safetensors")
    after = load_file(tmp_path / "ours" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert torch.equal(tensor, after[name]), name
    tokens = torch.randint(0, 64, (11,))
    theirs.eval()
    with torch.no_grad():
        wanted = theirs(tokens[None]).logits[0]
        found = model.logits(model(tokens, Layout.of([11])))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)

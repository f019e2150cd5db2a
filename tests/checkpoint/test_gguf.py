"""A GGUF file holds what the checkpoint does, and llama.cpp computes what Fathom does."""

import json

import gguf
import numpy as np
import pytest
import torch

from fathom.checkpoint import weights
from fathom.checkpoint.gguf import write_gguf
from fathom.checkpoint.quantise import quantise
from fathom.config.model import AttentionConfig, MambaConfig, ModelConfig, MoEConfig
from fathom.errors import CheckpointError
from fathom.model.nemotron import Nemotron
from fathom.ops.layout import Layout
from fathom.text.tokenizer import Tokenizer

TEXTS = ["The quick brown fox jumps over 12345 lazy dogs; don't stop!\n" * 3, "HTTPServer, Straße"]
ODD = "The quickest foxes jumped 9876 times?! fooBar Straße\n\n  x\t<think>"
TABLE = {
    "head": "nvfp4",
    "blocks.*.mixer.experts.*": "nvfp4",
    "blocks.*.mixer.shared.*": "nvfp4",
    "blocks.*.mixer.in_proj": "fp8",
    "blocks.*.mixer.out_proj": "fp8",
    "blocks.*.mixer.o_proj": "nvfp4",
    "blocks.*.mixer.latent_*": "fp8",
}
MODEL = ModelConfig(
    name="little",
    vocab=1536,
    width=128,
    pattern="MEM*EME",
    mamba=MambaConfig(heads=8, head_width=32, state=16, groups=2, chunk=16),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=24),
    moe=MoEConfig(experts=8, chosen=2, expert_width=80, shared_width=96, latent=64, scale=2.5),
    mtp="*E",
    context=1024,
)
DENSE = MODEL.replace(pattern="M-M*-", mtp="", moe=None, mlp={"hidden": 192})


@pytest.fixture(scope="module")
def tokens():
    return Tokenizer.train(TEXTS, vocab=1400)


@pytest.fixture
def make(tmp_path, tokens):
    """(config, table) -> a folder with a tokenizer, its model freshly drawn and a little peaked."""

    class Text:
        stop_ids = frozenset({2, 11})

        def save(self, folder):
            tokens.save(folder)
            (folder / "chat_template.jinja").write_text("{{ messages }}")

    def made(config, table=None):
        model = Nemotron(config, dtype=torch.bfloat16, seed=1)
        with torch.no_grad():
            model.head.weight.mul_(3)
            for router in model.routers():
                router.correction_bias.normal_(0, 0.05)
        folder = weights.save(model, tmp_path / "plain", Text())
        return folder if table is None else quantise(folder, tmp_path / "rounded", table)

    return made


def read(path):
    reader = gguf.GGUFReader(path)
    values = {}
    for tensor in reader.tensors:
        found = gguf.dequantize(tensor.data, tensor.tensor_type)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        values[tensor.name] = torch.from_numpy(np.array(found, dtype=np.float32)).view(shape)
    return reader, values


def field(reader, name):
    return reader.fields[name].contents()


def test_plain_tensors_are_there_under_their_names(make, tmp_path):
    folder = make(MODEL)
    model = weights.load(folder)
    reader, values = read(write_gguf(folder, tmp_path / "x.gguf"))
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.ssm_in.weight"] == types["blk.1.ffn_up_exps.weight"] == "BF16"
    assert types["blk.1.ffn_gate_inp.weight"] == types["blk.0.ssm_conv1d.weight"] == "F32"
    mamba, moe, attention = (model.blocks[i].mixer for i in (0, 1, 3))
    wanted = {
        "token_embd.weight": model.embedding.weight,
        "output.weight": model.head.weight,
        "output_norm.weight": model.final_norm.weight,
        "blk.0.attn_norm.weight": model.blocks[0].norm.weight,
        "blk.0.ssm_in.weight": mamba.in_proj.weight,
        "blk.0.ssm_a": -mamba.A_log.float().exp()[:, None],
        "blk.0.ssm_d": mamba.D[:, None],
        "blk.0.ssm_dt.bias": mamba.dt_bias,
        "blk.0.ssm_conv1d.weight": mamba.conv_weight,
        "blk.0.ssm_norm.weight": mamba.norm_weight.view(2, -1),
        "blk.1.ffn_up_exps.weight": moe.experts.up,
        "blk.1.ffn_gate_inp.weight": moe.router.weight,
        "blk.1.exp_probs_b.bias": moe.router.correction_bias,
        "blk.1.ffn_latent_down.weight": moe.latent_down.weight,
        "blk.1.ffn_down_shexp.weight": moe.shared.down.weight,
        "blk.3.attn_q.weight": attention.q_proj.weight,
        "blk.7.nextn.eh_proj.weight": model.mtp.eh_proj.weight,
        "blk.7.nextn.shared_head_norm.weight": model.mtp.final_norm.weight,
        "blk.7.attn_output.weight": model.mtp.blocks[0].mixer.o_proj.weight,
        "blk.7.post_attention_norm.weight": model.mtp.blocks[1].norm.weight,
        "blk.7.ffn_down_exps.weight": model.mtp.blocks[1].mixer.experts.down,
    }
    for name, tensor in wanted.items():
        assert torch.equal(values[name], tensor.detach().float()), name
    # ours, and none besides
    assert len(values) == len(model.state_dict())


def test_codes_mean_what_they_meant(make, tmp_path):
    folder = make(MODEL, TABLE)
    model = weights.load(folder, packed=False, dtype=torch.float32)
    reader, values = read(write_gguf(folder, tmp_path / "x.gguf"))
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.1.ffn_up_exps.weight"] == types["output.weight"] == "NVFP4"
    # rows of 80 and of 96 are no whole blocks of 64; the codes of Mamba are FP8
    assert types["blk.1.ffn_down_exps.weight"] == types["blk.1.ffn_down_shexp.weight"] == "BF16"
    assert types["blk.0.ssm_in.weight"] == "BF16"
    moe = model.blocks[1].mixer
    wanted = {
        "output": model.head.weight,
        "blk.0.ssm_in": model.blocks[0].mixer.in_proj.weight,
        "blk.0.ssm_out": model.blocks[0].mixer.out_proj.weight,
        "blk.1.ffn_up_exps": moe.experts.up,
        "blk.1.ffn_down_exps": moe.experts.down,
        "blk.1.ffn_up_shexp": moe.shared.up.weight,
        "blk.3.attn_output": model.blocks[3].mixer.o_proj.weight,
    }
    for name, tensor in wanted.items():
        scale = values[f"{name}.scale"]
        assert scale.shape == ((8,) if "exps" in name else (1,)), name
        product = values[f"{name}.weight"] * scale.view(-1, *[1] * (tensor.dim() - 1))
        assert torch.equal(product, tensor.detach()), name
    # no place for a scale: rounded once
    latent = moe.latent_up.weight.detach()
    assert torch.equal(values["blk.1.ffn_latent_up.weight"], latent.bfloat16().float())
    assert "blk.1.ffn_latent_up.scale" not in values
    assert field(reader, "general.file_type") == 39


def test_pieces_of_any_size_make_the_same_file(make, tmp_path, monkeypatch):
    folder = make(MODEL, TABLE)
    whole = write_gguf(folder, tmp_path / "x.gguf").read_bytes()
    monkeypatch.setattr("fathom.checkpoint.packed.PIECE", 4096)
    monkeypatch.setattr("fathom.checkpoint.gguf.PIECE", 512)
    assert write_gguf(folder, tmp_path / "y.gguf").read_bytes() == whole
    assert not list(tmp_path.glob("*.partial"))


def test_the_file_says_what_the_model_is(make, tmp_path, tokens):
    folder = make(MODEL)
    reader, _ = read(write_gguf(folder, tmp_path / "x.gguf"))
    assert field(reader, "general.architecture") == "nemotron_h_moe"
    assert field(reader, "nemotron_h_moe.block_count") == 8
    assert field(reader, "nemotron_h_moe.nextn_predict_layers") == 1
    assert field(reader, "nemotron_h_moe.attention.head_count_kv") == [0, 0, 0, 2, 0, 0, 0, 2]
    assert field(reader, "nemotron_h_moe.feed_forward_length") == [0, 80, 0, 0, 80, 0, 80, 80]
    assert field(reader, "nemotron_h_moe.moe_latent_size") == 64
    assert field(reader, "tokenizer.ggml.pre") == "tekken"
    assert field(reader, "tokenizer.ggml.eos_token_id") == 2
    assert field(reader, "tokenizer.chat_template") == "{{ messages }}"
    names = field(reader, "tokenizer.ggml.tokens")
    assert len(names) == MODEL.vocab
    assert names[12] == "<think>"
    assert names[tokens.size :] == [f"[PAD{i}]" for i in range(tokens.size, MODEL.vocab)]
    reader, values = read(write_gguf(folder, tmp_path / "y.gguf", mtp=False))
    assert field(reader, "nemotron_h_moe.block_count") == 7
    assert not any(name.startswith("blk.7.") for name in values)
    reader, _ = read(write_gguf(make(DENSE), tmp_path / "z.gguf"))
    assert field(reader, "general.architecture") == "nemotron_h"
    assert field(reader, "nemotron_h.feed_forward_length") == [0, 192, 0, 0, 192]


def test_a_file_without_tokens_is_for_ids(make, tmp_path):
    folder = make(MODEL)
    (folder / "tokenizer.json").unlink()
    reader, _ = read(write_gguf(folder, tmp_path / "x.gguf"))
    assert field(reader, "tokenizer.ggml.model") == "none"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "MEM"}, "Mamba and attention blocks"),
        ({"pattern": "M*E-", "mlp": {"hidden": 64}}, "feed-forward block"),
        ({"moe": {**MODEL.moe.as_dict(), "shared_width": 0}}, "a shared one"),
        ({"moe_of": {1: {**MODEL.moe.as_dict(), "chosen": 1}}}, "of one shape"),
        ({"mtp": "E"}, r"MTP head '\*E'.*--no-mtp"),
    ],
)
def test_models_that_llama_cpp_does_not_compute_are_refused(make, tmp_path, changes, message):
    folder = make(MODEL.replace(**changes))
    with pytest.raises(CheckpointError, match=message):
        write_gguf(folder, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_tokenizers_that_llama_cpp_would_read_differently_are_refused(make, tmp_path):
    folder = make(MODEL)
    file = folder / "tokenizer.json"
    whole = json.loads(file.read_text())

    def refused(match, **changes):
        file.write_text(json.dumps({**whole, **changes}))
        with pytest.raises(CheckpointError, match=match):
            write_gguf(folder, tmp_path / "x.gguf")
        assert not list(tmp_path.glob("x.gguf*"))

    refused("normalizer", normalizer={"type": "NFC"})
    refused("not known to be", pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False})
    write_gguf(folder, tmp_path / "y.gguf", pre="gpt-2")
    assert field(gguf.GGUFReader(tmp_path / "y.gguf"), "tokenizer.ggml.pre") == "gpt-2"
    vocab = {**whole["model"]["vocab"], "zzzz": 1536}
    refused("1536 rows", model={**whole["model"], "vocab": vocab})
    refused("byte-pair", model={"type": "Unigram", "vocab": []})


def test_a_damaged_checkpoint_leaves_what_was_there(make, tmp_path, edit):
    folder = make(MODEL, TABLE)

    def change(stored):
        stored["lm_head.weight_scale"].view(torch.uint8)[3, 1] = 0x7F

    edit(folder, change)
    (tmp_path / "x.gguf").write_text("old")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight_scale"):
        write_gguf(folder, tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_text() == "old"
    assert not list(tmp_path.glob("*.partial"))


class Llama:
    """A file run by llama.cpp."""

    def __init__(self, path):
        import llama_cpp

        self.model = llama_cpp.Llama(
            str(path), n_ctx=512, logits_all=True, n_threads=1, type_k=0, type_v=0, verbose=False
        )

    def logits(self, ids):
        self.model.reset()
        self.model.eval(ids)
        return torch.tensor(np.array(self.model.scores[: len(ids)]))

    def ids(self, text):
        return self.model.tokenize(text.encode(), add_bos=False, special=False)


def ours(folder, ids, dtype):
    model = weights.load(folder, dtype=dtype).eval()
    with torch.no_grad():
        return model.logits(model(torch.tensor(ids), Layout.of([len(ids)]))).float()


def kl(ours, theirs):
    ours, theirs = ours.log_softmax(-1), theirs.log_softmax(-1)
    return (ours.exp() * (ours - theirs)).sum(-1).mean().item()


@pytest.mark.oracle
@pytest.mark.parametrize("config", [MODEL, DENSE], ids=["experts", "dense"])
@pytest.mark.parametrize("mtp", [True, False])
def test_llama_cpp_goes_on_with_the_same_tokens(make, tmp_path, config, mtp):
    folder = make(config)
    path = write_gguf(folder, tmp_path / "x.gguf", dtype=torch.float32, mtp=mtp)
    llama = Llama(path)
    ids = llama.ids(ODD)
    assert ids == Tokenizer.load(folder).encode(ODD)
    theirs = list(ids)
    for _ in range(64):
        theirs.append(llama.logits(theirs)[-1].argmax().item())
    model = weights.load(folder, dtype=torch.float32).eval()
    for _ in range(64):
        with torch.no_grad():
            hidden = model(torch.tensor(ids), Layout.of([len(ids)]))
            ids.append(model.logits(hidden[-1:]).argmax().item())
    assert ids == theirs
    assert abs(kl(ours(folder, ids, torch.float32), llama.logits(ids))) < 1e-6


@pytest.mark.oracle
@pytest.mark.parametrize("table", [None, TABLE], ids=["bf16", "mixed"])
def test_llama_cpp_computes_nearly_the_same_in_narrow_types(make, tmp_path, table):
    folder = make(MODEL, table)
    llama = Llama(write_gguf(folder, tmp_path / "x.gguf"))
    ids = torch.randint(20, 1300, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    # it rounds rows to BF16, and to eight bits beside NVFP4
    assert kl(ours(folder, ids, torch.float32), llama.logits(ids)) < 1e-3

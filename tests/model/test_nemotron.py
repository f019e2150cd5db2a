"""Laws of the whole model: packed = separate, prefill in any cut + decode = one pass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.config.model import AttentionConfig, MambaConfig, ModelConfig, MoEConfig
from fathom.errors import ConfigError, RequestError
from fathom.model.memory import Memory
from fathom.model.nemotron import Nemotron
from fathom.ops.layout import Layout

TINY = ModelConfig(
    name="tiny-latent",
    vocab=48,
    width=24,
    pattern="ME*ME",
    mamba=MambaConfig(heads=6, head_width=8, state=8, groups=2, chunk=16),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=8),
    moe=MoEConfig(experts=8, chosen=3, expert_width=12, shared_width=20, latent=12),
)


def spread(model):
    """The logits of fresh weights lie close together; make them worth comparing."""
    with torch.no_grad():
        model.head.weight.mul_(10)
    return model


def test_packed_equals_separate(tiny, tokens):
    lengths = (1, 16, 17, 100, 63, 103)
    with torch.inference_mode():
        packed = tiny(tokens, Layout.of(lengths))
        alone = [tiny(part, Layout.of([part.shape[0]])) for part in tokens.split(lengths)]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_gradients_of_packed_equal_those_of_separate(tiny, tokens):
    lengths = (40, 1, 59)
    part = tokens[:100]

    def gradients(loss):
        tiny.zero_grad()
        loss.backward()
        return [value.grad.clone() for value in tiny.parameters() if value.grad is not None]

    packed = gradients(tiny.logits(tiny(part, Layout.of(lengths))).square().sum())
    alone = gradients(
        sum(
            tiny.logits(tiny(piece, Layout.of([piece.shape[0]]))).square().sum()
            for piece in part.split(lengths)
        )
    )
    for together, apart in zip(packed, alone, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-3)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 12))
def test_prefill_in_any_cut_and_decode_equal_one_pass(pieces, decoded):
    model = spread(Nemotron(TINY, seed=1))
    total = sum(pieces) + decoded
    tokens = torch.randint(0, TINY.vocab, (total,), generator=torch.Generator().manual_seed(total))
    with torch.inference_mode():
        whole = model.logits(model(tokens, Layout.of([total])))
        memory, outputs = Memory.empty(model.config, capacity=1), []
        for piece in tokens.split([*pieces, *[1] * decoded]):
            outputs.append(model(piece, Layout.of([piece.shape[0]]), memory))
        again = model.logits(torch.cat(outputs))
    assert memory.seen == [total]
    assert (whole - again).abs().max() <= 1e-4


def test_sequences_of_one_memory_do_not_touch(tiny, tokens):
    one, two = tokens[:50], tokens[50:120]
    with torch.inference_mode():
        memory = Memory.empty(tiny.config, sequences=2)
        first = tiny(torch.cat([one[:30], two[:9]]), Layout.of([30, 9]), memory)
        second = tiny(torch.cat([one[30:], two[9:]]), Layout.of([20, 61]), memory)
        alone_one, alone_two = tiny(one, Layout.of([50])), tiny(two, Layout.of([70]))
    torch.testing.assert_close(torch.cat([first[:30], second[:20]]), alone_one)
    torch.testing.assert_close(torch.cat([first[30:], second[20:]]), alone_two)


def test_the_mamba_memory_does_not_grow(tiny, tokens):
    memory = Memory.empty(tiny.config)

    def held():
        layer = memory.layers[0]
        return layer.tail_Skc.numel() + layer.state_SHPN.numel()

    before = held()
    with torch.inference_mode():
        tiny(tokens, Layout.of([300]), memory)
    assert held() == before
    assert memory.past_S.tolist() == [300]


def test_states_in_fp16_stay_so_and_say_nearly_the_same(tiny, tokens):
    mixers = [tiny.config.mixer(index) for index in range(len(tiny.config.pattern))]
    table_SB = torch.arange(2, dtype=torch.int32).view(2, 1)

    def said(kind):
        memory = Memory.paged(mixers, table_SB, 2, state_dtype=kind)
        parts = [tokens[:57], *tokens[57:97].split(2)]
        layouts = [Layout.of([40, 17]), *[Layout.of([1, 1])] * 20]
        hidden = [tiny(part, layout, memory) for part, layout in zip(parts, layouts, strict=True)]
        assert {layer.state_SHPN.dtype for layer in (memory.layers[0], memory.layers[4])} == {kind}
        return torch.cat(hidden)

    with torch.inference_mode():
        wide, half = said(torch.float32), said(torch.float16)
    assert torch.equal(wide[:57], half[:57])
    assert 0 < (wide - half).abs().max() < 0.01


def test_bf16_decodes_what_it_prefills(tiny, tokens):
    model = spread(tiny).to(torch.bfloat16)
    assert all(router.correction_bias.dtype == torch.float32 for router in model.routers())
    with torch.inference_mode():
        whole = model.logits(model(tokens[:80], Layout.of([80])))
        memory = Memory.empty(model.config, dtype=torch.bfloat16)
        parts = [
            model(piece, Layout.of([piece.shape[0]]), memory) for piece in tokens[:80].split(7)
        ]
        again = model.logits(torch.cat(parts))
    divergence = torch.nn.functional.kl_div(
        again.log_softmax(-1), whole.log_softmax(-1), reduction="batchmean", log_target=True
    )
    assert divergence < 5e-3


def test_recomputing_blocks_changes_no_gradient(tiny, tokens):
    def gradients():
        tiny.zero_grad()
        for router in tiny.routers():
            router.balance_weight = 0.1
        hidden = tiny(tokens[:64], Layout.of([64]))
        balance = sum(r.balance_loss for r in tiny.routers() if r.balance_loss is not None)
        (tiny.logits(hidden).square().mean() + balance).backward()
        return {n: p.grad.clone() for n, p in tiny.named_parameters() if p.grad is not None}

    kept = gradients()
    tiny.gradient_checkpointing = True
    for name, value in gradients().items():
        torch.testing.assert_close(value, kept[name], rtol=0, atol=0)


def test_the_same_seed_gives_the_same_weights_and_the_familys_spread():
    one, two, other = Nemotron("pocket"), Nemotron("pocket"), Nemotron("pocket", seed=1)
    name = "blocks.0.mixer.in_proj.weight"
    assert torch.equal(one.state_dict()[name], two.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])
    std = one.config.init_std
    assert one.state_dict()[name].std().item() == pytest.approx(std, rel=0.05)
    out = one.state_dict()["blocks.0.mixer.out_proj.weight"].std().item()
    assert out == pytest.approx(std / len(one.config.pattern) ** 0.5, rel=0.05)
    A = one.blocks[0].mixer.A_log.exp()
    assert ((A >= 1) & (A <= 16)).all()
    dt = torch.nn.functional.softplus(one.blocks[0].mixer.dt_bias)
    assert ((dt > 0.9e-3) & (dt < 0.11)).all()


def test_blocks_may_have_experts_of_different_shapes(tiny, tokens):
    odd = MoEConfig(experts=4, chosen=1, expert_width=6, shared_width=0)
    model = Nemotron(tiny.config.replace(moe_of={5: odd}))
    assert model.blocks[1].mixer.experts.up.shape == (8, 12, 12)
    assert model.blocks[5].mixer.experts.up.shape == (4, 6, 24)
    counted = model.config.parameters - model.config.correction_biases
    assert sum(p.numel() for p in model.parameters()) == counted
    assert model(tokens, Layout.of([300])).shape == (300, 24)


def test_a_tied_head_is_the_embedding(tiny, tokens):
    model = Nemotron(tiny.config.replace(tied=True))
    assert model.head_weight is model.embedding.weight
    assert "head.weight" not in model.state_dict()
    hidden = model(tokens, Layout.of([300]))
    torch.testing.assert_close(model.logits(hidden), hidden @ model.embedding.weight.T)


def test_wrong_shapes_are_refused_in_words(tiny, tokens):
    with pytest.raises(RequestError, match="speaks of 5 tokens, but tokens has shape"):
        tiny(tokens, Layout.of([5]))
    memory = Memory.empty(tiny.config, sequences=2)
    with pytest.raises(RequestError, match="holds 2 sequences, the layout brings 1"):
        tiny(tokens, Layout.of([300]), memory)
    headless = Nemotron(tiny.config.replace(mtp=""))
    with pytest.raises(ConfigError, match="has no MTP head"):
        headless.draft(torch.zeros(1, 24), tokens[:1], Layout.of([1]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pattern": ""}, "pattern is empty"),
        ({"pattern": "MXE"}, "not 'X'"),
        ({"mlp": None}, "block 3 is '-', but `mlp` is not given"),
        ({"mtp": "ME"}, "it keeps no state"),
        (
            {"moe_of": {0: {"experts": 1, "chosen": 1, "expert_width": 1, "shared_width": 1}}},
            "no E",
        ),
        ({"widht": 3}, "Did you mean 'width'"),
        ({"width": -1}, "width"),
    ],
)
def test_impossible_shapes_are_refused_in_words(tiny, change, words):
    with pytest.raises(ConfigError, match=words):
        tiny.config.replace(**change)

"""Laws of the bounds: what is counted is what is stored and read."""

import pytest
import torch

from fathom.config.model import AttentionConfig, MambaConfig, ModelConfig, MoEConfig
from fathom.model.nemotron import Nemotron
from fathom.model.traffic import attention_flop, distinct_experts, forward_flop, step_bytes

SHAPE = ModelConfig(
    name="small",
    vocab=64,
    width=32,
    pattern="ME*",
    mamba=MambaConfig(heads=2, head_width=16, state=8, groups=1, chunk=16),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=16),
    moe=MoEConfig(experts=8, chosen=2, expert_width=32, shared_width=64),
)


def test_few_tokens_visit_few_experts_and_many_visit_all():
    assert distinct_experts(SHAPE.moe, 1) == pytest.approx(2)
    assert distinct_experts(SHAPE.moe, 2) == pytest.approx(3.5)
    assert distinct_experts(SHAPE.moe, 1000) == pytest.approx(8)


def test_one_step_reads_the_active_weights_and_moves_the_state():
    model = Nemotron(SHAPE)
    # the embedding gives one row instead of itself; the head is read whole
    weights = SHAPE.active_parameters - SHAPE.vocab * SHAPE.width + SHAPE.width
    weights -= SHAPE.moe.experts  # correction biases are no parameters here
    state = 2 * (SHAPE.state_bytes + SHAPE.conv_bytes(4))
    assert step_bytes(model, 1, 0) == pytest.approx(4 * weights + state)
    grown = step_bytes(model, 1, 100) - step_bytes(model, 1, 0)
    assert grown == 100 * SHAPE.kv_bytes_per_token(4)


def test_packing_changes_the_bytes_by_the_padding_alone():
    plain = step_bytes(Nemotron(SHAPE, dtype=torch.bfloat16), 3, 10)
    packed = step_bytes(Nemotron(SHAPE, dtype=torch.bfloat16).pack(), 3, 10)
    assert plain <= packed <= 1.1 * plain


def test_a_tied_head_is_read_once():
    tied = SHAPE.replace(tied=True)
    plain, packed = (step_bytes(Nemotron(shape), 1, 0) for shape in (SHAPE, tied))
    assert plain == packed
    plain, packed = (step_bytes(Nemotron(shape).pack(), 1, 0) for shape in (SHAPE, tied))
    assert plain == packed


def test_flop_of_a_forward_pass_grow_with_tokens_and_with_their_square_in_attention():
    one, two = (forward_flop(SHAPE, 1, n, 0) for n in (100, 200))
    extra = 200 * (attention_flop(SHAPE, 200) - attention_flop(SHAPE, 100)) / 2
    assert two == pytest.approx(2 * one + extra)
    head = forward_flop(SHAPE, 1, 100, 1) - one
    assert head == 2 * SHAPE.vocab * SHAPE.width

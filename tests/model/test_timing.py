"""Laws of timing: what is timed is what is asked for, behind the context that is asked for."""

import pytest
import torch

from fathom.model.nemotron import Nemotron
from fathom.model.timing import WARM, prefill_seconds, step_seconds, warm_step


@pytest.fixture(scope="module")
def model():
    return Nemotron("pocket").eval().pack()


def test_a_warm_step_stands_behind_its_context_and_moves_by_the_steps_that_are_timed(model):
    step = warm_step(model, 2, 300, 5)
    assert step.memory.seen == [300 + WARM] * 2
    before = step.memory.buffers()
    assert step_seconds(step, [[1, 2]] * 5) > 0
    assert step.memory.seen == [300 + WARM + 5] * 2
    assert step.memory.past_S.tolist() == step.memory.seen
    # there was room from the beginning: nothing moved
    assert all(one is other for one, other in zip(step.memory.buffers(), before, strict=True))


def test_prompts_of_every_length_are_timed(model):
    assert prefill_seconds(model, torch.ones(2, 70, dtype=torch.int64)) > 0

"""Laws of a packed model: the same answers as before, nothing left to train, nothing lost."""

import copy

import pytest
import torch

from fathom.errors import ConfigError
from fathom.model.latent_moe import Experts
from fathom.model.memory import Memory
from fathom.model.nemotron import Nemotron
from fathom.model.precision import Linear, lay
from fathom.ops.layout import Layout


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def model(request):
    small = Nemotron("pocket", seed=1)
    if request.param:
        small = Nemotron(small.config.replace(tied=True), seed=1)
    return small


def test_a_packed_model_gives_the_same_logits(model):
    tokens = torch.arange(40) % model.config.vocab
    layout = Layout.of([25, 15])
    packed = copy.deepcopy(model).pack()
    with torch.inference_mode():
        want = model.logits(model(tokens, layout))
        memory = Memory.empty(model.config, sequences=2)
        got = packed.logits(packed(tokens, layout))
        packed(tokens, layout, memory)
        step = packed.logits(packed(tokens[:2], Layout.of([1, 1]), memory))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert step.shape == (2, model.config.vocab)


def test_packing_leaves_no_plain_matrix_and_packing_twice_changes_nothing(model):
    before = sum(p.numel() for p in model.parameters())
    model.pack().pack()
    matrices = [part for part in model.modules() if isinstance(part, Linear)]
    assert all(part.weight is None and part.packed is not None for part in matrices)
    assert all(part.packed for part in model.modules() if isinstance(part, Experts))
    held = sum(part.packed.rows * part.packed.columns for part in matrices)
    held += sum(
        2 * up.count * up.rows * up.columns
        for part in model.modules()
        if isinstance(part, Experts)
        for up, _ in [part.packed]
    )
    assert held + sum(p.numel() for p in model.parameters()) == before
    assert not any(p.requires_grad for p in model.parameters())


def test_w4a8_is_laid_over_packed_matrices_alone(model):
    with pytest.raises(ConfigError, match=r"is plain\. Pack the model"):
        lay(model, "w4a8")
    lay(model.pack(), "w4a8")
    parts = [part for part in model.modules() if isinstance(part, Linear | Experts)]
    assert {part.precision for part in parts} == {"w4a8"}


def test_a_packed_matrix_says_that_it_cannot_be_trained(model):
    model.pack()
    with pytest.raises(ConfigError, match="packed for generation"):
        _ = model.blocks[0].mixer.in_proj.plain

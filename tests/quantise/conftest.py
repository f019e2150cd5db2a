"""A small model with every part, a checkpoint of it, and texts of ids."""

import pytest
import torch

from fathom.checkpoint import weights
from fathom.config.model import AttentionConfig, MambaConfig, ModelConfig, MoEConfig
from fathom.model.nemotron import Nemotron

CONFIG = ModelConfig(
    name="small",
    vocab=96,
    width=64,
    pattern="ME-M*E-M",
    mamba=MambaConfig(heads=4, head_width=16, state=16, groups=2, chunk=16),
    attention=AttentionConfig(heads=4, kv_heads=2, head_width=16),
    moe=MoEConfig(experts=4, chosen=2, expert_width=48, shared_width=80, latent=32, scale=2.5),
    mlp={"hidden": 96},
    mtp="*E",
    context=256,
)


@pytest.fixture(scope="session")
def config() -> ModelConfig:
    return CONFIG


@pytest.fixture
def model(config) -> Nemotron:
    return Nemotron(config, seed=3).eval()


@pytest.fixture
def folder(model, tmp_path):
    """A plain checkpoint of the model."""
    return weights.save(model, tmp_path / "plain")


@pytest.fixture(scope="session")
def texts():
    """Three texts of random ids."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, CONFIG.vocab, (size,), generator=generator) for size in (40, 1, 70)]

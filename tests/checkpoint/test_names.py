"""Every tensor has one official name, and the official counts come out."""

import pytest
import torch
from safetensors.torch import save_file

from fathom.checkpoint.expected import layout
from fathom.checkpoint.names import canonical, of_ours, slots
from fathom.checkpoint.safe import header
from fathom.config.model import MoEConfig
from fathom.errors import CheckpointError
from fathom.model.sizes import LIGHTNING, NANO, NANO_4B, SUPER, ULTRA

PUBLISHED = {
    "nano": (NANO, 6_243),
    "lightning": (LIGHTNING, 6_513),
    "super": (SUPER, 42_683),
    "ultra": (ULTRA, 51_023),
    "nano-4b": (NANO_4B, 263),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_number_of_tensors_and_values_comes_out(name):
    config, tensors = PUBLISHED[name]
    found = layout(config)
    assert len(found) == tensors
    assert sum(torch.Size(slot.shape).numel() for slot in found.values()) == config.parameters


def test_names_and_shapes_are_those_of_super():
    found = {name: slot.shape for name, slot in layout(SUPER).items()}
    wanted = {
        "backbone.embeddings.weight": (131072, 4096),
        "backbone.layers.0.norm.weight": (4096,),
        "backbone.layers.0.mixer.in_proj.weight": (18560, 4096),
        "backbone.layers.0.mixer.conv1d.weight": (10240, 1, 4),
        "backbone.layers.0.mixer.conv1d.bias": (10240,),
        "backbone.layers.0.mixer.A_log": (128,),
        "backbone.layers.0.mixer.D": (128,),
        "backbone.layers.0.mixer.dt_bias": (128,),
        "backbone.layers.0.mixer.norm.weight": (8192,),
        "backbone.layers.0.mixer.out_proj.weight": (4096, 8192),
        "backbone.layers.7.mixer.q_proj.weight": (4096, 4096),
        "backbone.layers.7.mixer.k_proj.weight": (256, 4096),
        "backbone.layers.7.mixer.v_proj.weight": (256, 4096),
        "backbone.layers.7.mixer.o_proj.weight": (4096, 4096),
        "backbone.layers.1.mixer.gate.weight": (512, 4096),
        "backbone.layers.1.mixer.gate.e_score_correction_bias": (512,),
        "backbone.layers.1.mixer.experts.511.up_proj.weight": (2688, 1024),
        "backbone.layers.1.mixer.experts.511.down_proj.weight": (1024, 2688),
        "backbone.layers.1.mixer.shared_experts.up_proj.weight": (5376, 4096),
        "backbone.layers.1.mixer.shared_experts.down_proj.weight": (4096, 5376),
        "backbone.layers.1.mixer.fc1_latent_proj.weight": (1024, 4096),
        "backbone.layers.1.mixer.fc2_latent_proj.weight": (4096, 1024),
        "backbone.norm_f.weight": (4096,),
        "lm_head.weight": (131072, 4096),
        "mtp.layers.0.eh_proj.weight": (4096, 8192),
        "mtp.layers.0.enorm.weight": (4096,),
        "mtp.layers.0.hnorm.weight": (4096,),
        "mtp.layers.0.norm.weight": (4096,),
        "mtp.layers.0.mixer.q_proj.weight": (4096, 4096),
        "mtp.layers.1.norm.weight": (4096,),
        "mtp.layers.1.mixer.experts.0.up_proj.weight": (2688, 1024),
        "mtp.layers.1.mixer.fc1_latent_proj.weight": (1024, 4096),
        "mtp.layers.1.final_layernorm.weight": (4096,),
    }
    assert {name: found.get(name) for name in wanted} == wanted
    assert not [name for name in found if name.startswith("mtp.layers.2")]


def test_dense_blocks_have_the_official_names():
    found = layout(NANO_4B)
    assert found["backbone.layers.1.mixer.up_proj.weight"].shape == (12544, 3136)
    assert found["backbone.layers.1.mixer.down_proj.weight"].shape == (3136, 12544)


def test_blocks_may_have_experts_of_their_own_shape(tiny):
    other = MoEConfig(experts=3, chosen=1, expert_width=8, shared_width=24, latent=8, scale=5.0)
    found = layout(tiny.replace(moe_of={5: other.as_dict()}))
    assert found["backbone.layers.5.mixer.experts.2.up_proj.weight"].shape == (8, 8)
    assert "backbone.layers.5.mixer.experts.3.up_proj.weight" not in found
    assert found["backbone.layers.1.mixer.experts.3.up_proj.weight"].shape == (16, 8)


def test_no_two_tensors_share_an_official_name(tiny, model):
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    found = slots(shapes)
    assert len(found) == tiny.tensors
    assert {slot.name for slot in found.values()} == set(shapes)


def test_other_dialects_become_the_official_names(tmp_path):
    stacked = torch.randn(2, 3, 4)
    values = {
        "model.norm_f.weight": torch.randn(3),
        "model.layers.1.mixer.experts.up_proj": stacked,
        "lm_head.weight": torch.randn(2),
    }
    save_file(values, tmp_path / "x.safetensors")
    found = canonical(header(tmp_path / "x.safetensors"))
    assert {name: entry.shape for name, entry in found.items()} == {
        "backbone.norm_f.weight": (3,),
        "backbone.layers.1.mixer.experts.0.up_proj.weight": (3, 4),
        "backbone.layers.1.mixer.experts.1.up_proj.weight": (3, 4),
        "lm_head.weight": (2,),
    }


def test_a_tensor_in_two_dialects_at_once_is_refused(tmp_path):
    name = "layers.1.mixer.experts"
    values = {
        f"backbone.{name}.0.up_proj.weight": torch.randn(3, 4),
        f"model.{name}.up_proj": torch.randn(2, 3, 4),
    }
    save_file(values, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="are the same tensor"):
        canonical(header(tmp_path / "x.safetensors"))


def test_our_own_names_on_disk_become_the_official_ones(tmp_path, model, tiny):
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    found = of_ours(header(tmp_path / "x.safetensors"))
    assert {name: e.shape for name, e in found.items()} == {
        name: slot.shape for name, slot in layout(tiny).items()
    }


def test_a_name_that_is_not_ours_is_refused():
    for name in ("blocks.0.mixer.strange", "mtp.strange.weight", "strange"):
        with pytest.raises(CheckpointError, match=f"{name!r} is no tensor of a Nemotron"):
            slots({name: (1,)})

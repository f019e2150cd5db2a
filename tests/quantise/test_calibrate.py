"""Scales of activations are the largest magnitudes that the texts bring, and nothing else."""

import pytest
import torch

from fathom.checkpoint.expected import layout
from fathom.errors import DataError
from fathom.ops.layout import Layout
from fathom.quantise.calibrate import calibrate


@pytest.fixture
def found(model, texts):
    return calibrate(model, texts)


def test_rows_are_those_that_meet_the_matrix(model, texts, found):
    block, seen = model.blocks[0], []
    with torch.no_grad():
        for ids in texts:
            seen.append(block.norm(model.embedding(ids)).abs().amax())
    assert found.rows["blocks.0.mixer.in_proj"] == max(seen)
    with torch.no_grad():
        last = max(model(ids, Layout.of([len(ids)])).abs().amax() for ids in texts)
    assert found.rows["head"] == last


def test_matrices_of_the_same_rows_agree_and_the_texts_order_does_not_matter(model, texts, found):
    rows = found.rows
    assert rows["blocks.4.mixer.q_proj"] == rows["blocks.4.mixer.k_proj"]
    again = calibrate(model, list(reversed(texts)))
    assert again.rows.keys() == rows.keys()
    assert all(torch.equal(rows[name], again.rows[name]) for name in rows)


def test_every_expert_has_its_own(model, texts, found):
    moe = model.blocks[1].mixer
    kept = {"up": torch.zeros(4), "down": torch.zeros(4)}

    def note(part, given, out):
        x, chosen, _ = given
        for token, picks in zip(x, chosen.tolist(), strict=True):
            for expert in picks:
                kept["up"][expert] = max(kept["up"][expert], token.abs().amax())
                hidden = (part.up[expert] @ token).relu().square()
                kept["down"][expert] = max(kept["down"][expert], hidden.amax())

    handle = moe.experts.register_forward_hook(note)
    with torch.no_grad():
        for ids in texts:
            model(ids, Layout.of([len(ids)]))
    handle.remove()
    for which in ("up", "down"):
        own = found.rows[f"blocks.1.mixer.experts.{which}"]
        torch.testing.assert_close(own, kept[which], rtol=1e-5, atol=0)
    assert len(found.rows["blocks.1.mixer.experts.up"].unique()) > 1


def test_scales_are_what_modelopt_writes(model, texts, found, config):
    wanted = layout(config)
    kinds = {
        "backbone.layers.0.mixer.in_proj.weight": "fp8",
        "backbone.layers.0.mixer.out_proj.weight": "plain",
        "backbone.layers.1.mixer.experts.2.up_proj.weight": "nvfp4",
    }
    scales = found.scales(wanted, kinds, rows=True, cache=True)
    rows = found.rows
    assert scales == {
        "backbone.layers.0.mixer.in_proj.input_scale": pytest.approx(
            rows["blocks.0.mixer.in_proj"].item() / 448
        ),
        "backbone.layers.1.mixer.experts.2.up_proj.input_scale": pytest.approx(
            rows["blocks.1.mixer.experts.up"][2].item() / 2688
        ),
        "backbone.layers.4.mixer.k_proj.k_scale": pytest.approx(
            found.out["blocks.4.mixer.k_proj"].item() / 448
        ),
        "backbone.layers.4.mixer.v_proj.v_scale": pytest.approx(
            found.out["blocks.4.mixer.v_proj"].item() / 448
        ),
    }
    alone = found.scales(wanted, kinds, rows=False, cache=False)
    assert list(alone) == ["backbone.layers.0.mixer.in_proj.input_scale"]


def test_an_expert_that_nobody_asked_takes_the_largest(found, config):
    found.rows["blocks.1.mixer.experts.up"] = torch.tensor([0.5, 0.0, 2.0, 1.0])
    name = "backbone.layers.1.mixer.experts.1.up_proj"
    scales = found.scales(layout(config), {f"{name}.weight": "nvfp4"}, rows=True, cache=False)
    assert scales == {f"{name}.input_scale": pytest.approx(2 / 2688)}


def test_nothing_is_left_behind_and_nothing_is_no_text(model, texts):
    calibrate(model, texts)
    assert not any(part._forward_hooks for part in model.modules())
    with pytest.raises(DataError, match="no tokens"):
        calibrate(model, [])

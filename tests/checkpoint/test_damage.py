"""A damaged quantised checkpoint is refused with the tensor and the reason, in both dialects."""

import json

import pytest
import torch

from fathom.checkpoint import weights
from fathom.checkpoint.rewrite import rewrite
from fathom.errors import CheckpointError

EXPERT = "backbone.layers.1.mixer.experts.2.up_proj"
FP8 = "backbone.layers.0.mixer.in_proj"
FORMS = ("modelopt", "compressed-tensors")


@pytest.fixture(params=FORMS)
def form(request):
    return request.param


@pytest.fixture
def folder(tmp_path, quantised, blocky, form):
    found = quantised(blocky, "lightning")
    rewrite(found, tmp_path / "form", form)
    return tmp_path / "form"


def refused(folder, match):
    for packed in (True, False):
        with pytest.raises(CheckpointError, match=match):
            weights.load(folder, packed=packed)


def set_byte(name, value):
    def change(stored):
        stored[name].view(torch.uint8).view(-1)[5] = value

    return change


def codes(form):
    return f"{EXPERT}.weight" if form == "modelopt" else f"{EXPERT}.weight_packed"


def whole(form):
    return f"{EXPERT}.weight_scale_2" if form == "modelopt" else f"{EXPERT}.weight_global_scale"


@pytest.mark.parametrize("byte", [0x7F, 0xFF, 0x84])
def test_block_scales_that_mean_nothing(folder, edit, byte):
    edit(folder, set_byte(f"{EXPERT}.weight_scale", byte))
    refused(folder, r"experts\.2\.up_proj\.weight_scale in .*negative ones or .*0x7F")


@pytest.mark.parametrize("byte", [0x7F, 0xFF])
def test_fp8_values_that_are_no_numbers(folder, edit, byte):
    edit(folder, set_byte(f"{FP8}.weight", byte))
    refused(folder, r"layers\.0\.mixer\.in_proj\.weight in .*no numbers")


@pytest.mark.parametrize("value", [0.0, -0.5, float("inf"), float("nan")])
def test_scales_of_matrices_are_numbers_above_zero(folder, edit, form, value):
    name = whole(form)

    def change(stored):
        stored[name].fill_(value)

    edit(folder, change)
    refused(folder, rf"{name.replace('.', '[.]')} in .* is {value}; a scale is a finite number")


@pytest.mark.parametrize("which", ["weight_scale", "input_scale"])
def test_scales_of_fp8_are_numbers_above_zero(folder, edit, which):
    edit(folder, lambda stored: stored.update({f"{FP8}.{which}": torch.tensor(0.0)}))
    refused(folder, rf"in_proj\.{which} in .* is 0\.0")


def test_scales_of_keys_are_numbers_above_zero(folder, edit):
    name = "backbone.layers.2.mixer.k_proj.k_scale"
    edit(folder, lambda stored: stored.update({name: torch.tensor(torch.nan)}))
    refused(folder, r"k_proj\.k_scale in .* is nan")


def test_scales_that_are_missing(folder, edit, form):
    name = whole(form)
    edit(folder, lambda stored: stored.pop(name))
    refused(folder, rf"1 tensors are missing: {name.replace('.', '[.]')} \[\]")


def test_codes_of_the_wrong_type(folder, edit, form):
    name = codes(form)
    edit(folder, lambda stored: stored.update({name: stored[name].view(torch.int8)}))
    refused(folder, rf"{name.replace('.', '[.]')} wanted torch\.uint8, got torch\.int8")


def test_codes_of_the_wrong_shape(folder, edit, form):
    name = codes(form)
    edit(folder, lambda stored: stored.update({name: stored[name][:, :-1].contiguous()}))
    refused(folder, rf"{name.replace('.', '[.]')} wanted \[80, 16\], got \[80, 15\]")


def test_block_scales_of_other_blocks(folder, edit):
    name = f"{EXPERT}.weight_scale"
    edit(folder, lambda stored: stored.update({name: stored[name][:, :1].contiguous()}))
    refused(folder, r"up_proj\.weight_scale wanted \[80, 2\], got \[80, 1\]")


def test_a_scale_of_every_row_where_one_is_wanted(folder, edit):
    edit(folder, lambda stored: stored.update({f"{FP8}.weight_scale": torch.ones(164, 1)}))
    refused(folder, r"in_proj\.weight_scale wanted \[\], got \[164, 1\]")


def test_weights_that_are_plain_where_codes_are_told(folder, edit, form):
    def change(stored):
        stored[f"{EXPERT}.weight"] = torch.ones(80, 32)
        if form != "modelopt":
            del stored[codes(form)]

    edit(folder, change)
    # a plain weight has the name that ModelOpt gives to codes
    wanted = "weight" if form == "modelopt" else "weight_packed"
    refused(folder, rf"up_proj\.{wanted} wanted torch\.uint8, got torch\.float32")


def test_the_names_of_a_dialect_that_is_not_told(folder, form, tmp_path):
    rewrite(folder, tmp_path / "other", FORMS[form == FORMS[0]])
    own = folder if form == "modelopt" else tmp_path / "other"
    names = tmp_path / "other" if form == "modelopt" else folder
    for file in ("config.json", "hf_quant_config.json"):
        (names / file).write_text((own / file).read_text())
    refused(names, r"have no place: .*weight_(packed|global_scale)")


def test_formats_that_nobody_reads(folder, form):
    file = folder / "config.json"
    told = json.loads(file.read_text())
    if form == "modelopt":
        (folder / "hf_quant_config.json").unlink()
        told["quantization_config"]["quantized_layers"][EXPERT]["quant_algo"] = "W4A8_MXFP4_FP8"
    else:
        told["quantization_config"]["config_groups"]["group_1"]["format"] = "mxfp4-pack-quantized"
    file.write_text(json.dumps(told))
    refused(folder, "W4A8_MXFP4_FP8" if form == "modelopt" else "mxfp4-pack-quantized")

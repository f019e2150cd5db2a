"""Laws of the verbs that read, write and run models."""

import io
import json

import pytest
import torch
from rich.console import Console

from fathom.checkpoint.run import Run
from fathom.checkpoint.weights import load
from fathom.cli import doctor, source, voice
from fathom.config.load import load_recipe
from fathom.errors import RequestError
from fathom.generation import generate
from fathom.model.precision import lay
from fathom.ops.layout import Layout
from fathom.text import Content, Reasoning, Text, ToolCall
from fathom.train.report import read


def test_a_run_s_folder_holds_all_that_other_verbs_need(tiny_run):
    names = {path.name for path in tiny_run.iterdir()}
    assert names >= {"recipe.toml", "metrics.jsonl", "text", "checkpoints", "plots"}
    assert Run(tiny_run / "checkpoints").steps() == [1, 2, 3]
    events = read(tiny_run / "metrics.jsonl")
    assert [event["step"] for event in events if event["kind"] == "step"] == [1, 2, 3]


@pytest.mark.slow
def test_the_same_command_goes_on_where_a_run_stopped(recipe, untuned, fathom, tmp_path, tiny_run):
    out = tmp_path / "run"
    assert fathom("train", recipe, "steps=2", "--out", out)[0] == 0
    code, told, _ = fathom("train", recipe, "--out", out, "--resume")
    assert code == 0
    assert "goes on from step 2" in told
    whole, parts = (Run(f / "checkpoints").load("last") for f in (tiny_run, out))
    assert parts.step == 3
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, parts.tensors[name]), name


@pytest.mark.slow
def test_a_fresh_start_renames_the_old_run(recipe, untuned, fathom, tmp_path):
    out = tmp_path / "run"
    (out / "checkpoints").mkdir(parents=True)
    (out / "mine.txt").write_text("kept")
    assert fathom("train", recipe, "steps=1", "--out", out, "--fresh")[0] == 0
    assert (tmp_path / "run.old-1" / "mine.txt").read_text() == "kept"
    assert Run(out / "checkpoints").steps() == [1]


def test_resuming_nothing_is_refused(recipe, fathom, tmp_path):
    code, _, err = fathom("train", recipe, "--out", tmp_path / "none", "--resume")
    assert code == 2
    assert "--resume" in err


def test_a_dry_run_prints_the_recipe_and_touches_nothing(recipe, fathom, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, told, _ = fathom("train", recipe, "optim.lr=0.25", "--dry-run")
    assert code == 0
    assert "lr = 0.25" in told
    assert list(tmp_path.iterdir()) == []


def test_a_misspelt_override_names_the_nearest(recipe, fathom):
    code, _, err = fathom("train", recipe, "optim.lrr=1", "--dry-run")
    assert code == 2
    assert "optim.lr" in err


def test_a_tokenizer_larger_than_the_model_is_refused(recipe, untuned, fathom, tiny_run, tmp_path):
    text = str(tiny_run / "text")
    code, _, err = fathom(
        "train", recipe, "model.vocab=300", "--out", tmp_path / "r", "--text", text
    )
    assert code == 2
    assert "301 tokens, the model 300" in err
    assert "vocab is 301 or more" in err


DISTILLED = """
steps = 2
precision = "weights-mixed"
init = "RUN"
save_every = 1

[distil]
teacher = "RUN"

[batch]
tokens = 256

[schedule]
kind = "constant"

[data]
max_length = 128
heldout_problems = 6

[[data.sources]]
kind = "problems"
kinds = ["add"]
"""


@pytest.mark.slow
def test_a_run_is_distilled_into_eight_and_four_bits(fathom, tiny_run, untuned, tmp_path):
    recipe, out = tmp_path / "qad.toml", tmp_path / "qad"
    recipe.write_text(DISTILLED.replace("RUN", tiny_run.as_posix()))
    assert fathom("train", recipe, "steps=1", "--out", out)[0] == 0
    code, told, err = fathom("train", recipe, "--out", out)
    assert code == 0, err
    assert "goes on from step 1" in told
    events = [event for event in read(out / "metrics.jsonl") if event["kind"] == "step"]
    assert 0 < events[0]["divergence"] < 0.1
    assert load_recipe(out / "recipe.toml").model == source.open_model(tiny_run).config
    words = [source.open_text(folder).tokenizer.fingerprint for folder in (tiny_run, out)]
    assert words[0] == words[1]
    assert fathom("convert", out, tmp_path / "student")[0] == 0
    rounding = ("--format", "mixed", "--rounding", "max")
    assert fathom("quantise", tmp_path / "student", tmp_path / "small", *rounding)[0] == 0
    student = source.open_model(out)
    lay(student, "weights-mixed")
    small = load(tmp_path / "small", packed=False)
    ids = torch.arange(40) % 300
    one, other = (m.logits(m(ids, Layout.of([40]))) for m in (student, small))
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    code, _, err = fathom("train", recipe, f"init={tmp_path / 'small'}", "--out", tmp_path / "no")
    assert code == 2
    assert "plain sibling" in err


def test_a_teacher_of_another_tokenizer_is_refused(
    recipe, untuned, fathom, tiny_run, tmp_path, words
):
    words.save(tmp_path / "words")
    given = (f"distil.teacher={tiny_run}", "--text", tmp_path / "words")
    code, _, err = fathom("train", recipe, *given, "--out", tmp_path / "r")
    assert code == 2
    assert "another tokenizer" in err


def test_a_run_becomes_a_checkpoint_that_computes_the_same(fathom, tiny_run, tmp_path):
    assert fathom("convert", tiny_run, tmp_path / "hf")[0] == 0
    run, hf = source.open_model(tiny_run), load(tmp_path / "hf")
    for name, tensor in run.state_dict().items():
        assert torch.equal(tensor, hf.state_dict()[name]), name
    texts = [source.open_text(tiny_run), Text.load(tmp_path / "hf")]
    assert texts[0].tokenizer.fingerprint == texts[1].tokenizer.fingerprint


def test_a_checkpoint_is_converted_to_another_type_and_biases_stay(fathom, tiny_run, tmp_path):
    assert fathom("convert", tiny_run, tmp_path / "a", "--which", "2")[0] == 0
    assert fathom("convert", tmp_path / "a", tmp_path / "b", "--dtype", "bf16")[0] == 0
    tensors = load(tmp_path / "b").state_dict()
    assert tensors["embedding.weight"].dtype == torch.bfloat16
    assert tensors["blocks.1.mixer.router.correction_bias"].dtype == torch.float32


def test_a_merged_run_is_the_average_of_its_checkpoints(fathom, tiny_run, tmp_path):
    assert fathom("merge", tmp_path / "m", tiny_run, "--weights", "equal")[0] == 0
    run = Run(tiny_run / "checkpoints")
    mean = sum(run.load(s).tensors["model.embedding.weight"] for s in run.steps()) / 3
    merged = load(tmp_path / "m").embedding.weight
    assert torch.allclose(merged, mean, atol=1e-6)
    assert Text.load(tmp_path / "m").stop_ids


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--dtype", "fp7"), "fp32"),
        (("--which", "first"), "best"),
        (("--which", "99"), "99"),
    ],
)
def test_options_that_make_no_sense_are_told(fathom, tiny_run, tmp_path, arguments, word):
    code, _, err = fathom("convert", tiny_run, tmp_path / "x", *arguments)
    assert code == 2
    assert word in err
    assert not (tmp_path / "x").exists()


def test_generate_prints_what_the_function_returns(fathom, untuned, tiny_run):
    code, told, _ = fathom("generate", tiny_run, "What is 2+3?", "--max-tokens", 9, "--json")
    assert code == 0
    model, text = source.open_both(tiny_run)
    answer = generate(model, text, "What is 2+3?", max_tokens=9)[0]
    shown = json.loads(told)
    assert tuple(shown["ids"]) == answer.ids
    assert shown["content"] == answer.content
    assert fathom("generate", tiny_run, "2+3", "--max-tokens", 3, "--raw")[0] == 0


def test_generate_reads_standard_input(fathom, untuned, tiny_run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 2+3?"))
    code, piped, _ = fathom("generate", tiny_run, "-", "--max-tokens", 5, "--json")
    assert code == 0
    _, given, _ = fathom("generate", tiny_run, "What is 2+3?", "--max-tokens", 5, "--json")
    assert json.loads(piped)["ids"] == json.loads(given)["ids"]


def test_a_folder_without_a_tokenizer_is_told(fathom, tiny_run, tmp_path):
    assert fathom("convert", tiny_run, tmp_path / "hf")[0] == 0
    (tmp_path / "hf" / "tokenizer.json").unlink()
    code, _, err = fathom("generate", tmp_path / "hf", "hello")
    assert code == 2
    assert "tokenizer.json" in err


def test_what_a_model_says_cannot_command_the_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None)
    with pytest.raises(AssertionError, match="ends with its answer"):
        voice.say(
            iter(
                [
                    Reasoning("thought"),
                    Content("[bold]a\x1b[2Jb\n"),
                    ToolCall("f", {"x": 1}),
                ]
            ),
            console,
        )
    told = console.file.getvalue()
    assert told.startswith("thought\n[bold]a\ufffd[2Jb\n")
    assert 'f({"x": 1})' in told
    assert "\x1b[2J" not in told


def test_thinking_is_one_of_four_words():
    assert [voice.thinking_of(w) for w in ("on", "off", "low", "medium")] == [
        True,
        False,
        "low",
        "medium",
    ]
    with pytest.raises(RequestError, match="medium"):
        voice.thinking_of("high")


@pytest.mark.slow
def test_doctor_says_what_runs_and_why(fathom, untuned):
    code, told, _ = fathom("doctor", "--json")
    assert code == 0
    found = json.loads(told)
    assert found["arithmetic"] in ("fp32", "bf16")
    for operations in found["backends"].values():
        assert set(operations) == {op.name for op in doctor.OPERATIONS}
        for answers in operations.values():
            assert list(answers.values()).count("chosen") == 1
    code, told, _ = fathom("doctor")
    assert code == 0
    assert "FATHOM_NO_TUNE" in told


def test_doctor_says_what_other_systems_lack(untuned):
    here = doctor.machine.describe()
    assert any("macOS" in s or "darwin" in s for s in doctor.lacks(here, "darwin"))
    arm = doctor.Machine(**{**here.__dict__, "system": "Linux aarch64"})
    assert any("aarch64" in sentence for sentence in doctor.lacks(arm, "linux"))

"""The command line in this process, one tiny run that the verbs can read, and a tiny model."""

import pytest

from fathom.cli.main import run
from fathom.config.model import AttentionConfig, MambaConfig, ModelConfig, MoEConfig
from fathom.engine.engine import Engine
from fathom.model.nemotron import Nemotron
from fathom.text import Text, Tokenizer

RECIPE = """
steps = 3
evaluate_every = 2
save_every = 1

[model]
name = "tiny"
vocab = 320
width = 32
pattern = "ME*"
mtp = "*E"
mamba = { heads = 2, head_width = 16, state = 8, groups = 1, chunk = 16 }
attention = { heads = 2, kv_heads = 1, head_width = 16 }
moe = { experts = 4, chosen = 2, expert_width = 16, shared_width = 16, latent = 16 }

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


def ended(*arguments):
    """Run the command line; return its exit code."""
    with pytest.raises(SystemExit) as end:
        run([str(argument) for argument in arguments])
    return end.value.code or 0


@pytest.fixture
def fathom(capsys):
    """Run the command line; return exit code, standard output and standard error."""

    def call(*arguments):
        capsys.readouterr()
        code = ended(*arguments)
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


@pytest.fixture(scope="session")
def untuned():
    """Keep the verbs from changing the settings of the process that runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FATHOM_NO_TUNE", "1")
        yield


@pytest.fixture(scope="session")
def recipe(tmp_path_factory):
    """The recipe of the tiny run."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def tiny_run(recipe, untuned, tmp_path_factory):
    """The folder of a finished run; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert ended("train", recipe, "--out", folder) == 0
    return folder


@pytest.fixture(scope="session")
def words():
    """The pure byte tokenizer: 32 special slots and 256 bytes."""
    return Text(Tokenizer.train([], vocab=288, special_slots=32))


@pytest.fixture(scope="session")
def untaught():
    """A tiny model with fresh weights and an MTP head, which says any byte."""
    config = ModelConfig(
        name="untaught",
        vocab=288,
        width=32,
        pattern="ME*",
        mtp="*E",
        mamba=MambaConfig(heads=2, head_width=16, state=8, groups=1, chunk=16),
        attention=AttentionConfig(heads=2, kv_heads=1, head_width=16),
        moe=MoEConfig(experts=4, chosen=2, expert_width=16, shared_width=16),
        init=0.3,
    )
    return Nemotron(config, seed=5).eval().pack()


@pytest.fixture
def engine(untaught):
    """An engine of the tiny model."""
    with Engine(untaught, sequences=1, context=2048, drafts=1, adapt=False) as made:
        yield made

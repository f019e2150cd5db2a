"""Laws of `fathom bench`: all work asked for is measured beside its bound; nonsense is refused."""

import json

import pytest

from fathom.cli.main import run


@pytest.fixture(autouse=True)
def as_it_is(untuned):
    """The verb changes no setting of the process that runs the tests."""


def outcome(capsys, *arguments):
    """Exit code and what was printed."""
    with pytest.raises(SystemExit) as stopped:
        run(["bench", *arguments])
    printed = capsys.readouterr()
    return stopped.value.code, printed.out, printed.err


def test_every_work_is_measured_beside_its_bound(capsys):
    code, out, _ = outcome(
        capsys, "pocket", "--prefill", "32", "--sequences", "1,2", "--context", "0,64",
        "--steps", "2", "--runs", "1", "--dtype", "fp32", "--json",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0
    assert [row["work"] for row in found["rows"]] == [
        "prefill 32", "decode 1 at 0", "decode 2 at 0", "decode 1 at 64", "decode 2 at 64",
    ]  # fmt: skip
    for row in found["rows"]:
        assert row["tokens_per_second"] > 0
        assert row["of_bound"] == pytest.approx(row["tokens_per_second"] / row["bound"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["pocket", "--sequences", "0"], "--sequences takes numbers from 1 on"),
        (["pocket", "--prefill", "many"], "--prefill takes numbers from 1 on"),
        (["pocket", "--steps", "0"], "--steps and --runs must be 1 or more"),
        (["pocket", "--precision", "int3"], "There is no precision 'int3'"),
        (["ultra"], "Take a smaller size or a quantised checkpoint"),
    ],
)
def test_nonsense_is_refused_in_words(capsys, arguments, said):
    code, _, err = outcome(capsys, *arguments)
    assert code == 2
    assert said in " ".join(err.split())

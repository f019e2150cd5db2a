"""Who is compared on which model by `cpu_inference.py`, and on what work.

Promise: data only. An engine's name says its arithmetic; peers whose format is not Fathom's own
(Q8_0 and Q4_0, whose products run on int8 activations) stand there for comparison.
"""

from dataclasses import dataclass

from works import Work

CONTEXT = 1024
"""The context that longer ones are compared with."""


@dataclass(frozen=True)
class Contender:
    """An engine in one arithmetic."""

    name: str
    engine: str
    """"fathom", "transformers" or "llama"; "served" is Fathom's own engine with all it does beside
    the model's steps, to be held against those alone."""
    what: str
    """Fathom's precision, transformers' type, or llama.cpp's file."""

    @property
    def ours(self) -> bool:
        """Whether this is Fathom."""
        return self.engine == "fathom"

    @property
    def int8(self) -> bool:
        """Whether Fathom's products take int8 activations here, which have a rate of their own."""
        return self.what.endswith("a8")


@dataclass(frozen=True)
class Case:
    """A model in one format, and the engines compared on it."""

    model: str
    folder: str
    stored: str
    """The format of the folder, a name of `bounds.STORED`."""
    contenders: tuple[Contender, ...]


def _fathom(precision: str) -> Contender:
    return Contender(f"Fathom {precision}", "fathom", precision)


def _served(precision: str) -> Contender:
    return Contender(f"Fathom's engine, {precision}", "served", precision)


def _transformers(precision: str) -> Contender:
    return Contender(f"transformers {precision}", "transformers", precision)


def _llama(label: str, file: str) -> Contender:
    return Contender(f"llama.cpp {label}", "llama", f"{file}.gguf")


_SMALLER = (_llama("Q8_0", "bench-1b-q8_0"), _llama("Q4_0", "bench-1b-q4_0"))

CASES = {
    "bench-1b": Case(
        "bench-1b",
        "bench-1b",
        "bf16",
        (
            _fathom("bf16"),
            _served("bf16"),
            _transformers("bf16"),
            _transformers("fp32"),
            _llama("BF16", "bench-1b-bf16"),
            *_SMALLER,
        ),
    ),
    "bench-1b-nvfp4": Case(
        "bench-1b",
        "bench-1b-nvfp4",
        "nvfp4",
        (
            _fathom("nvfp4"),
            _fathom("w4a8"),
            _served("nvfp4"),
            _llama("NVFP4", "bench-1b-nvfp4"),
            _llama("NVFP4, head BF16", "bench-1b-nvfp4-head-bf16"),
            *_SMALLER,
        ),
    ),
    "pocket-like": Case(
        "pocket-like",
        "pocket-like",
        "fp32",
        (
            _fathom("fp32"),
            _served("fp32"),
            _transformers("fp32"),
            _llama("F32", "pocket-like-f32"),
        ),
    ),
}


def works(model: str) -> list[Work]:
    """The works of a model; small models take more steps in one go."""
    steps = 256 if model == "pocket-like" else 48
    return [
        *(Work("prefill", tokens) for tokens in (128, 512, 4096)),
        *(Work("decode", context, 1, steps) for context in (0, CONTEXT, 8192, 32768)),
        *(Work("decode", 128, batch, max(16, steps // batch)) for batch in (4, 16, 64)),
    ]

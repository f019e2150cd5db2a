"""A Hugging Face folder as llama.cpp's GGUF files, made by llama.cpp's own programs.

Promise: the weights are those of the folder (a quantised checkpoint is repacked bit for bit, which
the converter does for every matrix whose rows are multiples of 64); nothing of llama.cpp is edited.
Its converter refuses tokenizers whose fingerprint it does not know; benchmarks feed ids, so the
question is answered for it with the plain byte-level kind.

    python bench/to_llama.py runs/bench/bench-1b --source llama.cpp --build llama.cpp/build \
        --formats bf16 q8_0 q4_0

The source is llama.cpp's tree (the one inside llama-cpp-python's source package is what RESULTS.md
was measured with), built with `cmake -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON`, targets
`llama-bench`, `llama-batched-bench` and `llama-quantize`. Files come to stand beside the folder, as
`<folder>-<format>.gguf`; `asis` keeps the folder's own types, as a quantised checkpoint wants it,
and makes `<folder>.gguf`.
"""

import argparse
import subprocess
import sys
from pathlib import Path

CONVERTED = {"f32": "f32", "bf16": "bf16", "asis": "auto"}
"""Formats that the converter writes, by its own names."""
QUANTISED = {"q8_0": "Q8_0", "q4_0": "Q4_0"}
"""Formats that llama-quantize makes of a converted file."""

_CONVERT = """
import runpy, sys
tree = sys.argv.pop(1)
sys.path.insert(0, tree)
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
sys.argv[0] = tree + "/convert_hf_to_gguf.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def beside(folder: Path, form: str) -> Path:
    """Where the GGUF file of a folder in a format stands."""
    return folder.parent / (folder.name + ("" if form == "asis" else f"-{form}") + ".gguf")


def convert(folder: Path, form: str, source: Path) -> Path:
    """Run llama.cpp's converter; return the file."""
    target = beside(folder, form)
    command = [sys.executable, "-c", _CONVERT, str(source.resolve()), str(folder)]
    options = ["--outfile", str(target), "--outtype", CONVERTED[form]]
    subprocess.run([*command, *options], check=True)
    return target


def quantise(origin: Path, form: str, target: Path, build: Path) -> Path:
    """Run llama-quantize on a converted file; return the new one."""
    program = build / "bin" / "llama-quantize"
    subprocess.run([program, origin, target, QUANTISED[form]], check=True)
    return target


def main() -> None:
    """Make the formats asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="a Hugging Face folder")
    parser.add_argument("--source", type=Path, required=True, help="llama.cpp's source tree")
    parser.add_argument("--build", type=Path, help="its build folder, for quantised formats")
    parser.add_argument("--formats", nargs="+", choices=[*CONVERTED, *QUANTISED], default=["bf16"])
    options = parser.parse_args()
    for form in options.formats:
        if form in CONVERTED:
            print(convert(options.folder, form, options.source))
            continue
        if options.build is None:
            parser.error(f"{form} is made by llama-quantize; say where it is with --build")
        origin = beside(options.folder, "bf16")
        if not origin.exists():
            convert(options.folder, "bf16", options.source)
        print(quantise(origin, form, beside(options.folder, form), options.build))


if __name__ == "__main__":
    main()

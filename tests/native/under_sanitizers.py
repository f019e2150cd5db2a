"""Run tests with the sanitized modules of `build/sanitize/native` in the place of the usual ones.

Promise: `python under_sanitizers.py FOLDER ...` loads every native module of the folder before any
test asks for it, then runs pytest with the other arguments; a module that the folder does not have
is not found at all, so that no test passes without sanitizers. `check` calls it.
"""

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch  # noqa: F401 - its OpenMP must be there before the modules

TIERS = ("avx512_bf16", "avx512", "avx2", "portable")


def main() -> int:
    """Put the modules where `import` finds them, and run the tests."""
    folder, *arguments = sys.argv[1:]
    for tier in TIERS:
        name = f"fathom.ops.native._{tier}"
        # None in the place of a module makes its import fail
        sys.modules[name] = None
        path = Path(folder) / f"_{tier}{EXTENSION_SUFFIXES[0]}"
        if path.is_file():
            spec = spec_from_file_location(name, path)
            sys.modules[name] = module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
            print(f"sanitized: {path}")
    return int(pytest.main(arguments))


if __name__ == "__main__":
    sys.exit(main())

"""A folder that appears whole or not at all.

Promise: whoever is interrupted, killed or out of disk while writing leaves what stood there
before as it was; files that are not the checkpoint's own survive its replacement. What goes into
the folder is `weights.py`'s and `run.py`'s work.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fathom.errors import CheckpointError

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?|hf_quant_config\.json")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
SLACK = 2**20
"""Bytes left for headers and small files when free space is checked."""


def partial(target: Path) -> Path:
    """The folder beside `target` in which it is being written."""
    return target.with_name(f"{target.name}.partial")


def replaced(target: Path) -> Path:
    """The folder beside `target` where the old one waits while the new one takes its place."""
    return target.with_name(f".{target.name}.replaced")


def standing(target: Path) -> Path:
    """The folder to read: `target`, or what stood there if replacing it was cut short."""
    if not target.exists() and replaced(target).is_dir():
        return replaced(target)
    return target


@contextmanager
def new_folder(target: Path, needs: int) -> Iterator[Path]:
    """Give an empty folder to fill; when the block ends, it takes the place of `target`.

    `needs` is what will be written, in bytes; free space is checked before anything is touched.
    On any error the half-written folder is removed and `target` is as before. Raises
    `CheckpointError` when the disk is full or cannot be written.
    """
    target = target.expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; give the name of a folder to write.")
    fresh = partial(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _recover(target)
        shutil.rmtree(fresh, ignore_errors=True)
        free = shutil.disk_usage(target.parent).free
        if free < needs + SLACK:
            raise _no_room(target, needs, free)
        fresh.mkdir()
        yield fresh
        _flush(fresh)
        _take_place(fresh, target)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        if error.errno in _FULL:
            free = shutil.disk_usage(target.parent).free
            raise _no_room(target, needs, free) from error
        raise CheckpointError(
            f"{target} cannot be written: {error}. What stood there before is untouched."
        ) from error
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a small file and flush it to the disk."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _no_room(target: Path, needs: int, free: int) -> CheckpointError:
    return CheckpointError(
        f"No room to write {target}: it needs {needs / 1e9:,.3f} GB, {free / 1e9:,.3f} GB are free "
        f"(or the quota or file-size limit is reached). What stood there before is untouched. "
        f"Make room or choose another disk."
    )


def _flush(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _take_place(fresh: Path, target: Path) -> None:
    """Rename `fresh` to `target`; what stood there goes once the new one is in place."""
    old = replaced(target)
    try:
        if target.exists():
            os.rename(target, old)
        os.rename(fresh, target)
    except BaseException:
        if old.exists() and not target.exists():
            os.rename(old, target)
        raise
    _flush(target.parent)
    _clear(old, target)


def _recover(target: Path) -> None:
    """Finish or undo a replacement that was cut short."""
    old = replaced(target)
    if old.exists() and not target.exists():
        os.rename(old, target)
    _clear(old, target)


def _clear(old: Path, target: Path) -> None:
    """Remove a replaced folder; files the new one did not replace move over to it."""
    if not old.exists():
        return
    for entry in old.iterdir():
        if not _WEIGHTS.fullmatch(entry.name) and not (target / entry.name).exists():
            os.rename(entry, target / entry.name)
    shutil.rmtree(old)


__all__ = ["new_folder", "partial", "replaced", "standing", "write_text"]

"""The two files of `fathom generate --input`: prompts in, answers out, one JSON object a line.

Promise: a line that cannot be used is told with its number; what is in the output stays there. A
line that was torn when a run was killed is cut off; an output of another input, other settings or
another model is refused, by the facts in the file beside it. Answering is `many.py`'s.
"""

import fcntl
import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

from pydantic import Field

from fathom.checkpoint.atomic import write_text
from fathom.cli.settings import Limit, Settings
from fathom.config.strict import Strict
from fathom.errors import ConfigError, DataError
from fathom.generation import Prompt

SHOWN = 80
"""Most characters of a setting that is told."""


class Line(Strict):
    """One line of the input; what it gives goes before what the command line says."""

    prompt: str | None = None
    """What the user says; or, instead:"""
    messages: list[dict[str, Any]] | None = None
    """A conversation, as dicts with role and content."""
    tools: list[dict[str, Any]] | None = None
    """Functions that the model may call."""
    id: str | int | None = None
    """A name that the answer will bear."""
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    budget: int | str | None = None
    """Most tokens of thought, as `--budget`."""
    meta: Any = None
    """Whatever; the answer will have it too."""

    @property
    def asks(self) -> Prompt:
        """What is to be answered."""
        found = self.prompt if self.prompt is not None else self.messages
        assert found is not None
        return found

    def over(self, settings: Settings, index: int) -> Settings:
        """The settings of this line, the one with this index; its draws are its own."""
        names = ("max_tokens", "temperature", "top_p")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        seed = self.seed if self.seed is not None else settings.seed + index
        limit = Limit.of(str(self.budget)) if self.budget is not None else settings.limit
        return replace(settings, **given, seed=seed, limit=limit)


class Bad(NamedTuple):
    """A line that cannot be answered."""

    id: Any
    """Its name, if that could be read."""
    error: str
    """Why, in words."""


class Input(NamedTuple):
    """A file of prompts."""

    lines: dict[int, Line | Bad]
    """What stands in each line, counted from 0; empty ones are left out."""
    fingerprint: str
    """SHA-256 of the file."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file; raises `DataError` if that cannot be done."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"The input {path} cannot be read: {error.strerror}.") from None
        lines = {index: _line(line) for index, line in enumerate(data.split(b"\n")) if line.strip()}
        if not lines:
            raise DataError(f"The input {path} is empty; give a JSON object a line.")
        return cls(lines, hashlib.sha256(data).hexdigest())


def _line(data: bytes) -> Line | Bad:
    """One line, checked by itself."""
    name = None
    try:
        values = json.loads(data)
        if not isinstance(values, dict):
            return Bad(None, "it is no JSON object")
        name = values.get("id")
        line = Line.of(values)
    except (ValueError, RecursionError) as error:
        told = str(error) if isinstance(error, ConfigError) else f"it is no JSON: {error}"
        return Bad(name, told.removesuffix("."))
    if (line.prompt is None) == (line.messages is None):
        return Bad(name, "it must have either prompt or messages")
    return line


class Output:
    """The answers' file, held by one process at a time; a context that closes it."""

    def __init__(self, path: Path, facts: Mapping[str, Any], *, fresh: bool = False) -> None:
        """Open it, to go on with what is there.

        Args:
            path: the file; what its answers depend on lies beside it.
            facts: what these answers depend on.
            fresh: rename what is there and begin anew.

        Raises:
            DataError: it belongs to something else, is held, or cannot be written.
        """
        self.path, self._beside = path, path.with_name(path.name + ".settings.json")
        self.renamed = self._rename() if fresh and path.exists() else None
        """What the old file is called now, if there was one in the way."""
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise DataError(f"The output {path} cannot be written: {error.strerror}.") from None
        try:
            self._hold()
            self._compare(facts)
            self.done, self.torn = self._answered()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one answer, whole; raises `DataError` if that cannot be done."""
        try:
            line = json.dumps(record, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            line = json.dumps(record).encode()
        try:
            self._file.write(line + b"\n")
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"The output {self.path} cannot be written: {error.strerror}. The same command "
                f"goes on once it can."
            ) from None
        self.done.add(record["index"])

    def _hold(self) -> None:
        """Keep other processes out until this file is closed."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"Another process is writing {self.path}; let it end.") from None

    def _rename(self) -> Path:
        """Move the old output aside, and what lies beside it."""
        number = next(n for n in range(1, 10**6) if not _old(self.path, n).exists())
        if self._beside.exists():
            self._beside.rename(_old(self._beside, number))
        return self.path.rename(_old(self.path, number))

    def _compare(self, facts: Mapping[str, Any]) -> None:
        """Refuse to go on with other facts; write these down if there is nothing to go on with."""
        if not self._file.tell():
            beside = self._beside.with_name(self._beside.name + ".part")
            write_text(beside, json.dumps(facts, indent=1) + "\n")
            beside.replace(self._beside)
            return
        rest = "Give another --output, or --fresh to rename the old one and begin anew."
        try:
            before = json.loads(self._beside.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise DataError(
                f"{self.path} exists, and {self._beside.name} does not say what it was made of. "
                f"{rest}"
            ) from None
        now = json.loads(json.dumps(facts))
        told = [
            f"{name} was {_short(before.get(name))} and is {_short(now.get(name))}"
            for name in now.keys() | before.keys()
            if before.get(name) != now.get(name)
        ]
        if told:
            raise DataError(
                f"{self.path} was begun otherwise: {', '.join(sorted(told))}. Its lines would not "
                f"belong together. {rest}"
            )

    def _answered(self) -> tuple[set[int], int]:
        """Which lines are answered; what is torn at the end is cut off, and how many bytes."""
        done: set[int] = set()
        self._file.seek(0)
        whole, fault = 0, None
        for number, line in enumerate(self._file, 1):
            if fault is not None:
                raise DataError(f"Line {fault} of {self.path} is no answer; mend or remove it.")
            index = _index(line)
            if index is None:
                fault = number
                continue
            done.add(index)
            whole += len(line)
        torn = self._file.seek(0, 2) - whole
        if torn:
            self._file.truncate(whole)
        return done, torn


def _index(line: bytes) -> int | None:
    """Which line of the input a line of the output answers; None: it is torn."""
    try:
        found = json.loads(line).get("index") if line.endswith(b"\n") else None
    except (ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, int) else None


def _old(path: Path, number: int) -> Path:
    """What an output that makes room is called."""
    return path.with_name(f"{path.name}.old-{number}")


def _short(value: Any) -> str:
    """A setting as it is told."""
    text = json.dumps(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


__all__ = ["Bad", "Input", "Line", "Output"]

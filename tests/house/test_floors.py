"""Laws about who imports whom: floors, no imports of our own inside functions, no knots.

Promise: the floors are read from the syntax, so an import counts wherever it stands. The table
below is that of `docs/decisions/0003-floors.md`; a new room gets its floor in both before it gets
its first file.
"""

import ast
import graphlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import pytest

FLOORS = {
    "errors": 0,
    "machine": 1,
    "hub": 1,
    "config": 1,
    "text": 2,
    "problems": 2,
    "ops": 2,
    "model": 3,
    "data": 3,
    "checkpoint": 4,
    "train": 5,
    "engine": 5,
    "generation": 6,
    "quantise": 6,
    "cli": 7,
}
WITHOUT_TORCH = {"errors", "hub", "config", "text", "problems"}
# Pairs that the floors would allow and the design forbids: operations know tensors alone, the
# model and the engine speak token ids and never text.
APART = {
    ("ops", "config"),
    ("model", "text"),
    ("model", "problems"),
    ("engine", "text"),
    ("engine", "problems"),
}
# The only three that may import by a name held in a variable: a verb when it is called, a public
# name when it is asked for, the kernels of the tier that the processor has.
LAZY = {"fathom", "fathom.cli.main", "fathom.ops.native"}


@dataclass(frozen=True)
class Import:
    """One import of another module: its dotted name, its line, and whether it waits."""

    target: str
    line: int
    late: bool


def imports(tree: ast.Module, name: str, is_package: bool, known: Mapping) -> Iterator[Import]:
    """Every import of a module; `from a import b` means a.b where that is a module of ours."""
    pending: list[tuple[ast.AST, bool]] = [(tree, False)]
    while pending:
        node, late = pending.pop()
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name.split(".")[: None if is_package else -1]
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{origin}.{alias.name}"
                yield Import(whole if whole in known else origin, node.lineno, late)
        waits = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.If)
        pending += [(child, late or waits) for child in ast.iter_child_nodes(node)]


def imports_of(source, house) -> list[Import]:
    """The imports of one module of ours, of our own modules and of others."""
    return list(imports(source.tree, source.name, source.is_package, house))


def room_of(module: str) -> str:
    """The room of a module of ours: "ops" for "fathom.ops.ssd.chunks", "" for "fathom"."""
    return module.partition(".")[2].partition(".")[0]


def is_ours(module: str) -> bool:
    """Whether a dotted name lies in fathom/."""
    return module == "fathom" or module.startswith("fathom.")


def above(room: str, target: str) -> bool:
    """Whether `room` may not look into the room `target`."""
    if room == target:
        return False
    return FLOORS[room] <= FLOORS[target] or (room, target) in APART


def test_every_room_has_a_floor(house):
    rooms = {source.room for source in house.values()} - {""}
    assert rooms <= FLOORS.keys(), f"no floor for {sorted(rooms - FLOORS.keys())}"


def test_a_room_imports_only_from_lower_floors(house):
    broken = [
        f"{source.path}:{found.line} imports {found.target}"
        for source in house.values()
        if source.room
        for found in imports_of(source, house)
        if is_ours(found.target) and room_of(found.target)
        if above(source.room, room_of(found.target))
    ]
    assert not broken, "\n".join(broken)


def test_nothing_in_the_house_takes_its_names_from_the_public_face(house):
    broken = []
    for source in house.values():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ImportFrom) and node.module == "fathom" and not node.level:
                names = {alias.name for alias in node.names} - FLOORS.keys() - {"__version__"}
                broken += [f"{source.path}:{node.lineno} {name}" for name in sorted(names)]
    assert not broken, "\n".join(broken)


def test_our_own_modules_are_imported_at_the_top_and_always(house):
    broken = [
        f"{source.path}:{found.line} imports {found.target}"
        for source in house.values()
        for found in imports_of(source, house)
        if found.late and is_ours(found.target)
    ]
    assert not broken, "\n".join(broken)


def computed_imports(tree: ast.Module) -> Iterator[int]:
    """Lines that import by a name which may be ours: not a literal, and not in `_library`.

    `_library` is what a file calls its function that imports an optional library or says how to
    get it.
    """
    pending: list[tuple[ast.AST, bool]] = [(tree, False)]
    while pending:
        node, library = pending.pop()
        if isinstance(node, ast.Call) and not library:
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = node.args[0] if node.args else None
            foreign = isinstance(given, ast.Constant) and not is_ours(str(given.value))
            if called in {"import_module", "__import__"} and not foreign:
                yield node.lineno
        library = library or (isinstance(node, ast.FunctionDef) and node.name == "_library")
        pending += [(child, library) for child in ast.iter_child_nodes(node)]


def test_only_the_three_lazy_doors_import_by_a_computed_name(house):
    broken = [
        f"{source.path}:{line}"
        for source in house.values()
        if source.name not in LAZY
        for line in computed_imports(source.tree)
    ]
    assert not broken, "\n".join(broken)


def test_modules_are_tied_into_no_knot(house):
    graph = {
        source.name: {
            found.target
            for found in imports_of(source, house)
            if is_ours(found.target) and room_of(found.target)
        }
        for source in house.values()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as knot:
        pytest.fail(" -> ".join(knot.args[1]))


def test_rooms_that_need_no_torch_import_none(house):
    broken = [
        f"{source.path}:{found.line}"
        for source in house.values()
        if source.room in WITHOUT_TORCH
        for found in imports_of(source, house)
        if found.target.partition(".")[0] == "torch"
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("text", "target", "late"),
    [
        ("import fathom.ops.layout", "fathom.ops.layout", False),
        ("from fathom.ops import layout", "fathom.ops.layout", False),
        ("from fathom.ops import Layout", "fathom.ops", False),
        ("from .rows import x", "fathom.data.rows", False),
        ("from . import rows", "fathom.data.rows", False),
        ("from ..ops import layout", "fathom.ops.layout", False),
        ("def f():\n    import fathom.train", "fathom.train", True),
        ("if TYPE_CHECKING:\n    from fathom.cli import main", "fathom.cli.main", True),
        ("class A:\n    import fathom.train", "fathom.train", False),
    ],
)
def test_the_reader_of_imports_sees(text, target, late):
    known = dict.fromkeys(["fathom.ops.layout", "fathom.data.rows", "fathom.cli.main"])
    (found,) = imports(ast.parse(text), "fathom.data.batch", False, known)
    assert (found.target, found.late) == (target, late)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("importlib.import_module(name)", [1]),
        ("import_module('fathom.train')", [1]),
        ("__import__('fathom')", [1]),
        ("importlib.import_module('datasets')", []),
        ("def _library(name):\n    return importlib.import_module(name)", []),
    ],
)
def test_the_reader_of_computed_imports_sees(text, lines):
    assert list(computed_imports(ast.parse(text))) == lines


def test_floors_separate_what_must_stay_separate():
    assert above("ops", "model")
    assert above("train", "engine")
    assert above("engine", "train")
    assert above("engine", "text")
    assert above("ops", "config")
    assert above("text", "problems")
    assert not above("cli", "generation")
    assert not above("model", "ops")
    assert not above("ops", "ops")

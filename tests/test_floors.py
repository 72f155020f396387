"""The house rule, checked on the syntax tree: rooms import downwards only, along known edges."""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parent.parent / "src" / "dxdt"
LONGEST_FILE = 450

# Room -> rooms it may import. Nothing else is allowed; `lab` may import all rooms, and the door of
# the package (`dxdt/__init__.py`) re-exports from any of them.
EDGES: dict[str, set[str]] = {
    "ops": set(),
    "compiler": {"ops"},
    "paths": {"compiler", "ops"},
    "implicit": {"compiler", "ops"},
    "nn": {"ops"},
    "diffeq": {"paths", "implicit", "compiler", "ops"},
    "models": {"diffeq", "nn", "paths", "implicit", "ops"},
    "mcmc": {"diffeq", "ops"},
    "diffusion": {"diffeq", "mcmc", "implicit", "paths", "ops"},
    "symbolic": {"models", "diffeq", "implicit", "compiler", "ops"},
    "rl": {"diffusion", "nn", "ops"},
    "interop": {"diffusion", "nn", "ops"},
    "compat": {"diffeq", "paths", "ops"},
}
EDGES["lab"] = set(EDGES)


def floors(room: str, *below: tuple[str, ...]) -> dict[str, set[str]]:
    """Rooms inside a room, floor by floor; each may import what lies on the floors below it, the face all of them."""
    table: dict[str, set[str]] = {}
    lower: set[str] = set()
    for floor in below:
        inner = {f"{room}.{name}" for name in floor}
        table.update({name: set(lower) for name in inner})
        lower |= inner
    return {**table, room: lower}


# Rooms inside rooms -> rooms of the same house that they may import. A folder that is not named here belongs to the
# room that holds it.
INNER: dict[str, set[str]] = {
    **floors("compiler", ("native", "cuda")),
    **floors(
        "diffeq",
        ("problem",),
        ("control", "methods"),
        ("methods.exponential", "methods.implicit"),
        ("loop",),
        ("gradients",),
        ("programs",),
        ("compiled",),
    ),
    **floors("lab", ("runs",), ("data",), ("report",), ("training", "evaluation"), ("demo",), ("cli",)),
    **floors("diffusion", ("processes",), ("denoisers",), ("training", "sampling"), ("evaluation", "chains")),
}
# The version and the helper for optional packages are not rooms and may be used from everywhere.
OPEN_TO_ALL = {"dxdt.__version__", "dxdt.ops.optional"}


@dataclass(frozen=True)
class Import:
    """One imported name: `module` is absolute, `name` is None for `import module`."""

    module: str
    name: str | None
    line: int
    inside: bool

    @property
    def target(self) -> str:
        return self.module if self.name is None else f"{self.module}.{self.name}"


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str | None:
    """The room of a dotted name, None for what is not in dxdt or lies at its door."""
    parts = module.split(".")
    return parts[1] if parts[0] == "dxdt" and len(parts) > 1 and parts[1] != "__main__" else None


def inner_room_of(module: str) -> str | None:
    """The innermost room of a dotted name that a table knows."""
    parts = module.split(".")
    rooms = [".".join(parts[1:n]) for n in range(len(parts), 1, -1)] if parts[0] == "dxdt" else []
    return next((room for room in rooms if room in INNER or room in EDGES), None)


def walk(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, inside
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from walk(child, inside or function)


def read_imports(text: str, module: str, is_package: bool) -> list[Import]:
    found: list[Import] = []
    for node, inside in walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, None, node.lineno, inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, node.module] if node.module else parents)
            found += [Import(base, alias.name, node.lineno, inside) for alias in node.names]
    return found


@cache
def imports_of(path: Path) -> tuple[Import, ...]:
    return tuple(read_imports(path.read_text(), module_of(path), path.name == "__init__.py"))


def wrong_edges(module: str, imports: list[Import] | tuple[Import, ...]) -> list[str]:
    """What `module` imports from dxdt against the tables; the door is open to all."""
    room, inner = room_of(module), inner_room_of(module)
    if room is None:
        return []
    wrong: list[str] = []
    for item in imports:
        if item.module.split(".")[0] != "dxdt" or OPEN_TO_ALL & {item.module, item.target}:
            continue
        target, inner_target = room_of(item.target), inner_room_of(item.target)
        if target is None or target not in EDGES:
            wrong.append(f"line {item.line}: {item.target} is no room; import from the room itself")
        elif target != room:
            if target not in EDGES[room]:
                wrong.append(f"line {item.line}: {room} may not import {target} ({item.target})")
        elif inner_target != inner and inner_target not in INNER.get(inner or room, set()):
            wrong.append(f"line {item.line}: {inner} may not import {inner_target} ({item.target})")
    return wrong


FILES = sorted(SOURCE.rglob("*.py"))


def every_file(fault: Callable[[Path], list[str]]) -> None:
    """Fail with the faults of all files, each under its name; one test for all, because there are hundreds of files."""
    found = [f"{path.relative_to(SOURCE)}: {what}" for path in FILES for what in fault(path)]
    assert not found, "\n".join(found)


def find_circle(graph: dict[str, set[str]]) -> list[str] | None:
    """A circle of `graph` as the list of its nodes, or None."""
    done: set[str] = set()

    def visit(node: str, trail: list[str]) -> list[str] | None:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return None
        for below in sorted(graph.get(node, ())):
            if circle := visit(below, [*trail, node]):
                return circle
        done.add(node)
        return None

    return next((c for node in sorted(graph) if (c := visit(node, []))), None)


def test_the_table_has_no_circle():
    assert find_circle(EDGES) is None
    assert find_circle(INNER) is None
    assert set().union(*EDGES.values()) <= set(EDGES)


def test_every_folder_is_a_room():
    folders = {p.name for p in SOURCE.iterdir() if p.is_dir() and any(p.glob("*.py"))}
    assert folders <= set(EDGES), f"rooms without edges in the table: {sorted(folders - set(EDGES))}"


def test_imports_follow_the_edges():
    every_file(lambda path: wrong_edges(module_of(path), imports_of(path)))


def test_modules_form_no_circle():
    modules = {module_of(path): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        targets: set[str] = set()
        for item in imports_of(path):
            # `from package import module` depends on the module, not on what else the door opens.
            target = item.target if item.target in modules else item.module
            if target in modules and target != module:
                targets.add(target)
        graph[module] = targets
    circle = find_circle(graph)
    assert circle is None, " -> ".join(circle or [])


def test_no_import_inside_a_function():
    remedy = "move to the top, or use dxdt.ops.optional.require for an optional package"
    # Commands import what they run when they run, so that the command line answers at once.
    commands = SOURCE / "lab" / "cli"
    every_file(
        lambda path: (
            []
            if path.is_relative_to(commands)
            else [f"line {x.line}: {x.target}; {remedy}" for x in imports_of(path) if x.inside]
        )
    )


def private_imports(path: Path) -> list[str]:
    room = room_of(module_of(path))
    return [
        f"line {item.line}: {item.target} is a private name of another room"
        for item in imports_of(path)
        if item.module.split(".")[0] == "dxdt" and room_of(item.target) != room
        if any(p.startswith("_") and not p.endswith("__") for p in item.target.split("."))
    ]


def test_no_private_name_crosses_rooms():
    every_file(private_imports)


def lengths(path: Path) -> list[str]:
    lines = len(path.read_text().splitlines())
    return [] if lines <= LONGEST_FILE else [f"{lines} lines; a file this long wants two nouns"]


def test_files_stay_short():
    every_file(lengths)


@pytest.mark.parametrize(
    ("module", "text", "bad"),
    [
        ("dxdt.diffeq.loop.advance", "from dxdt.diffusion import reverse", True),
        ("dxdt.diffeq.loop.advance", "from ...diffusion.sampling.reverse import reverse", True),
        ("dxdt.diffeq.entry", "from .. import diffusion", True),
        ("dxdt.diffeq.loop.advance", "from dxdt import ODE", True),
        ("dxdt.diffeq.loop.advance", "import dxdt.models.flow", True),
        ("dxdt.diffeq.loop.advance", "import dxdt", True),
        ("dxdt.diffeq.loop.advance", "if True:\n    from dxdt import models", True),
        ("dxdt.diffeq.loop.advance", "from . import step\nfrom ...ops.tree import flatten", False),
        ("dxdt.diffeq.loop.advance", "from dxdt.diffeq.gradients.gradient import Direct", True),
        ("dxdt.diffeq.loop.advance", "from dxdt.diffeq import Direct", True),
        ("dxdt.diffeq.loop.advance", "from dxdt.diffeq.methods.solver import Solver", False),
        ("dxdt.diffeq.entry", "from dxdt.diffeq.compiled.solve import compiled", False),
        ("dxdt.diffusion.denoisers.denoiser", "from dxdt.diffusion.sampling.grid import Karras", True),
        ("dxdt.diffusion.denoisers.denoiser", "from dxdt.diffeq.methods.solver import Solver", False),
        ("dxdt.compat.torchsde", "from dxdt.ops.optional import require", False),
        ("dxdt.lab.cli", "from dxdt import __version__, diffusion", False),
    ],
)
def test_the_edge_rule_itself(module: str, text: str, bad: bool):
    imports = read_imports(text, module, is_package=False)
    assert bool(wrong_edges(module, imports)) is bad


def test_the_circle_finder_itself():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c", "a"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}}) is None


def test_imports_in_functions_are_seen():
    text = "def f():\n    if f:\n        import torch\nclass C:\n    import numpy\n"
    assert [item.inside for item in read_imports(text, "dxdt.x", False)] == [True, False]

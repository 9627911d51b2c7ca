"""The borders of DESIGN that no linter here computes: import circles, sizes, parameters."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("dino_core", "dino_cli")
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 8  # of the library; a command of the CLI has one per option
MAX_FILE_LINES = 400

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules(package: str) -> dict[str, ast.Module]:
    """Dotted name to syntax tree of every module of a package."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = ast.parse(path.read_text(encoding="utf-8"))
    assert len(found) > 10, "the source tree is not where it was"
    return found


def functions(tree: ast.Module) -> Iterator[Function]:
    return (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))


def imports(tree: ast.Module, known: dict[str, ast.Module]) -> set[str]:
    """Modules of ours that a module imports, in its functions too, but not only for types."""
    for_types: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for_types.update(id(inner) for line in node.body for inner in ast.walk(line))
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in known else node.module for name in names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return found & known.keys()


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module, by repeated depth-first search."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for name in graph[waiting.pop()] - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    reach = {name: reached(name) for name in graph}
    rings = {tuple(sorted(m for m in reach[n] if n in reach[m])) for n in graph if n in reach[n]}
    return [list(ring) for ring in sorted(rings)]


def test_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "d"}, "e": {"d"}}
    assert circles(graph) == [["a", "b", "c"], ["d"]]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_circles(package: str) -> None:
    known = modules(package)
    graph = {name: imports(tree, known) - {name} for name, tree in known.items()}
    assert sum(map(len, graph.values())) > len(graph) // 2
    assert circles(graph) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_and_files_are_short(package: str) -> None:
    long_functions, long_files = [], []
    for name, tree in modules(package).items():
        for function in functions(tree):
            assert function.end_lineno is not None
            lines = function.end_lineno - function.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                long_functions.append(f"{name}.{function.name}: {lines}")
    for path in sorted((ROOT / package).rglob("*.py")):
        count = len(path.read_text(encoding="utf-8").splitlines())
        if count > MAX_FILE_LINES:
            long_files.append(f"{path.relative_to(ROOT)}: {count}")
    assert (long_functions, long_files) == ([], [])


def test_functions_of_the_library_take_few_parameters() -> None:
    many = []
    for name, tree in modules("dino_core").items():
        for function in functions(tree):
            arguments = function.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            count = sum(argument.arg not in ("self", "cls") for argument in every)
            if count > MAX_PARAMETERS:
                many.append(f"{name}.{function.name}: {count}")
    assert many == []

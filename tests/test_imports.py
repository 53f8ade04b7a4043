"""The import graph of both packages, and the size of every folder.

The graph contains every import in the source: at module level, in functions, and under ``TYPE_CHECKING``. The
``__init__`` of a package is not part of it, because such a module only re-exports names of the others.
"""

from __future__ import annotations

import ast
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = {"pedcxr_client": ROOT / "client/pedcxr_client", "pedcxr_serve": ROOT / "serve/pedcxr_serve"}
ABOVE_FILMS = {"checks", "request", "reports", "client", "cli", "batch", "evaluation", "metrics"}
MOST_ENTRIES = 14
MARKERS = {"py.typed"}  # an empty file that PEP 561 requires
DATA_FOLDERS = ("golden", "demo/checkpoint")


def module_name(path: Path, source: Path) -> str:
    return ".".join(path.relative_to(source).with_suffix("").parts)


def modules_of(source: Path, package: str) -> dict[str, Path]:
    """Every module of a package except ``__init__`` modules, by dotted name."""
    return {module_name(path, source): path for path in (source / package).rglob("*.py") if path.name != "__init__.py"}


def imports_of(path: Path, package: str, modules: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, anywhere in its source."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports must be absolute"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
            names.add(str(node.module))
    return {name for name in names if name.split(".")[0] == package and name in modules}


def graph_of(source: Path, package: str) -> dict[str, set[str]]:
    modules = modules_of(source, package)
    return {name: imports_of(path, package, modules) for name, path in modules.items()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan, 1972)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = lowest[module] = len(index)
        stack.append(module)
        for target in sorted(graph[module]):
            if target not in index:
                visit(target)
                lowest[module] = min(lowest[module], lowest[target])
            elif target in stack:
                lowest[module] = min(lowest[module], index[target])
        if lowest[module] == index[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1 or module in graph[module]:
                components.append(sorted(component))

    for module in sorted(graph):
        if module not in index:
            visit(module)
    return components


def tracked_entries() -> Iterator[tuple[Path, str]]:
    """Each folder below the repository's root and each name directly in it, as Git tracks them."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    entries = {
        (parent, path.relative_to(parent).parts[0])
        for path in map(Path, filter(None, listing.split("\0")))
        for parent in path.parents
    }
    yield from sorted(entries)


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_circle_between_modules(package):
    assert circles(graph_of(PACKAGES[package].parent, package)) == []


def test_films_import_nothing_of_a_higher_layer():
    graph = graph_of(PACKAGES["pedcxr_client"].parent, "pedcxr_client")
    upwards = {
        (module, target)
        for module, targets in graph.items()
        for target in targets
        if module.startswith("pedcxr_client.films.") and target.split(".")[1] in ABOVE_FILMS
    }
    assert upwards == set()


def test_types_import_nothing_of_ours_and_errors_only_types():
    graph = graph_of(PACKAGES["pedcxr_client"].parent, "pedcxr_client")
    assert graph["pedcxr_client.types"] == set()
    assert graph["pedcxr_client.errors"] <= {"pedcxr_client.types"}


def test_no_folder_has_more_than_14_entries():
    if not (ROOT / ".git").exists():
        pytest.skip("not a Git checkout")
    counts = Counter(folder for folder, entry in tracked_entries() if entry not in MARKERS)
    too_large = {
        str(folder): count
        for folder, count in counts.items()
        if count > MOST_ENTRIES
        and folder.parts[:1] in [("client",), ("serve",), ("tests",), ("docs",)]
        and not any(f"/{data}/" in f"/{folder.as_posix()}/" for data in DATA_FOLDERS)
    }
    assert too_large == {}


def test_the_graph_contains_every_kind_of_import(tmp_path):
    files = defaultdict(str)
    files["__init__"] = "from package.a import x"
    files["a"] = "from package import b\nx = 1"
    files["b"] = "def f():\n    import package.c"
    files["c"] = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from package.a import x"
    files["d"] = "import package.a, os"
    (tmp_path / "package").mkdir()
    for name, text in files.items():
        (tmp_path / "package" / f"{name}.py").write_text(text)
    graph = graph_of(tmp_path, "package")
    assert graph["package.d"] == {"package.a"}
    assert circles(graph) == [["package.a", "package.b", "package.c"]]

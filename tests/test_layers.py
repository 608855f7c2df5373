"""The layout: folders are layers, a module imports from its own layer and from those before it, and never in a circle.

Every import counts, wherever it stands: one inside a function, or for type checkers alone, hides nothing.
"""

from __future__ import annotations

import ast
import graphlib
from pathlib import Path

import pytest

#: The layers in order: what stands further down may import what stands above, never the other way round.
LAYERS = (
    *("errors", "version", "text", "signals", "files"),
    *("ops", "config", "models", "data", "screens", "training"),
    *("tables", "matrices", "evaluation", "figures", "study", "interop"),
    *("fit_progress", "reader", "fitted", "pl", "api", "cli"),
)


def modules(package: Path) -> dict[str, Path]:
    """Dotted name below the package -> file; the package's own __init__, which loads names lazily, is exempt."""
    found = {path.relative_to(package).with_suffix("").as_posix(): path for path in package.rglob("*.py")}
    del found["__init__"]
    return {name.replace("/", ".").removesuffix(".__init__"): path for name, path in found.items()}


def imports(path: Path, known: set[str]) -> set[str]:
    """The modules of the package that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in (name.removeprefix("samsvae.") for name in names if name.startswith("samsvae.")):
            found |= {candidate for candidate in (name, name.rpartition(".")[0]) if candidate in known}
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def graph(package: Path) -> dict[str, set[str]]:
    found = modules(package)
    return {name: imports(path, set(found)) for name, path in found.items()}


def upward(found: dict[str, set[str]]) -> list[str]:
    def rank(name: str) -> int:
        return LAYERS.index(name.split(".")[0])

    return [f"{name} imports {other}" for name, others in found.items() for other in others if rank(other) > rank(name)]


def test_every_module_belongs_to_a_layer(root):
    names = {name.split(".")[0] for name in modules(root / "src" / "samsvae")}
    assert names <= set(LAYERS)


def test_no_module_imports_from_a_later_layer(root):
    assert upward(graph(root / "src" / "samsvae")) == []


def test_no_imports_run_in_a_circle(root):
    list(graphlib.TopologicalSorter(graph(root / "src" / "samsvae")).static_order())


def test_lazy_imports_are_seen(tmp_path):
    (tmp_path / "__init__.py").touch()
    for folder in ("ops", "models"):
        (tmp_path / folder).mkdir()
    (tmp_path / "models" / "model.py").write_text("from samsvae.ops import device\n")
    (tmp_path / "ops" / "device.py").write_text("def f():\n    from samsvae.models.model import Model\n")
    found = graph(tmp_path)
    assert upward(found) == ["ops.device imports models.model"]
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(found).static_order())


def test_no_module_is_longer_than_400_lines(root):
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules(root / "src" / "samsvae").items()}
    assert [name for name, length in lengths.items() if length > 400] == []


#: Functions over 60 lines, and why they stay in one piece.
LONG = {
    "api.fit": "a third of it is the docstring of the main public function",
    "evaluation.metrics.de.differential_expression": "a third is the docstring; the rest is one pass over the genes",
    "screens.simulate.sparse_shift": "the steps of the paper's simulation in their published order",
}


def test_no_function_is_longer_than_60_lines_without_a_reason(root):
    long = set()
    for name, path in modules(root / "src" / "samsvae").items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno >= 60:
                long.add(f"{name}.{node.name}")
    assert long == set(LONG)


def test_no_figure_imports_torch(root):
    """The import would take as long as drawing the figure."""
    found = graph(root / "src" / "samsvae")
    files = modules(root / "src" / "samsvae")
    reached = {name for name in found if name.startswith("figures.")}
    while more := {imported for name in reached for imported in found[name]} - reached:
        reached |= more
    assert [name for name in sorted(reached) if "\nimport torch\n" in files[name].read_text()] == []

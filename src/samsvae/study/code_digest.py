"""Digest of the code that a script runs, so that an edit reruns only the rules that depend on the edited code.

Snakemake notices an edit of a script by its modification time and does not look at the package in `src/` at all. A
rule with `params: code=code_of(...)` is rerun if and only if the code behind its script has changed. Comments,
docstrings, formatting and modules that the script never imports do not count. C code counts with the module of the same
name that loads it. Imports by string (`importlib`) are not followed.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

PACKAGE = "samsvae"

#: The package with the rules by which predictions are scored, and its modules that score: runs and splits.
SCORING = "samsvae.evaluation"
SCORERS = ("run.py", "baselines.py", "split_scores.py", "any_truth.py")

#: Modules that hold messages and compute nothing: an edit here reruns nothing.
IGNORED = ("samsvae.errors",)


def code_of(script: str | Path, root: str | Path) -> str:
    """Digest of a script and of every samsvae module that it imports, directly or indirectly.

    Parameters
    ----------
    script
        Path of the script: relative to `root`, or absolute and below it.
    root
        The checkout, with the package in `root/src/samsvae`.

    Returns
    -------
    16 hexadecimal characters. They depend neither on the folder of the checkout nor on the Python version (3.11 or
    newer).
    """
    root = Path(root).resolve()
    return _digest_of([(root / script).resolve()], root / "src", root)[:16]


def scoring_rules() -> str:
    """Digest of the code in SCORING that scores a run or a split: the column ``rules`` of tables of scores.

    Tables whose rules differ must not be compared. Only the code that scores counts, not the models, the settings or
    the data. Returns 12 hexadecimal characters, the same for the workflow, ``samsvae score`` and an installed package.
    """
    src = Path(__file__).resolve().parents[2]
    package = src.joinpath(*SCORING.split("."))
    return _digest_of([package / name for name in SCORERS], src, src, below=package)[:12]


def _digest_of(first: Sequence[Path], src: Path, root: Path, below: Path | None = None) -> str:
    """Digest of files and of the modules in the folder ``below`` (or anywhere in ``src``) that they import.

    Files are named from ``root``.
    """
    found: dict[str, str] = {}
    todo = list(first)
    seen: frozenset[str] = frozenset()
    while todo:
        path = todo.pop()
        name = path.relative_to(root).as_posix()
        if path.suffix == ".c":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif name not in found:
            found[name], imports = _read(path.read_text(encoding="utf-8"), _module(path, src))
            files = (file for module in imports - seen for file in _files(module, src))
            todo += [file for file in files if file.is_relative_to(below or src)]
            seen |= imports
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()


@cache
def _read(source: str, module: tuple[str, ...]) -> tuple[str, frozenset[str]]:
    """Digest of the code of one file, and the modules of the package that it imports."""
    tree = ast.parse(source)
    names = {name for name in _imports(tree, module) if name.split(".")[0] == PACKAGE and not name.startswith(IGNORED)}
    return hashlib.sha256(_text(tree).encode()).hexdigest(), frozenset(names)


def _text(part: object) -> str:
    """A syntax tree as text.

    The output of `ast.dump` changes between Python versions. Here empty fields, such as those that a newer grammar
    adds, are left out.
    """
    if isinstance(part, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(part) if value is not None and value != [])
        return f"{type(part).__name__}({','.join(f'{name}={_text(value)}' for name, value in fields)})"
    if isinstance(part, list):
        return f"[{','.join(_text(item) for item in part if not _is_docstring(item))}]"
    return repr(part)


def _is_docstring(part: object) -> bool:
    """Whether a statement consists of a string only, which does nothing when it runs."""
    value = part.value if isinstance(part, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _imports(tree: ast.AST, module: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that the file imports anywhere in it: modules, and names that may be modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module[: len(module) - node.level] if node.level else ()
            base = ".".join((*parents, *filter(None, [node.module])))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _module(path: Path, src: Path) -> tuple[str, ...]:
    """The parts of the dotted name of a file in `src`, including `__init__`; () for a script."""
    return path.relative_to(src).with_suffix("").parts if path.is_relative_to(src) else ()


def _files(name: str, src: Path) -> list[Path]:
    """The files that importing a name runs: for a.b.c the existing files of a, a.b and a.b.c."""
    parts = name.split(".")
    bases = [src.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
    files = [file for base in bases for file in (base.with_suffix(".py"), base.with_suffix(".c"), base / "__init__.py")]
    return [file for file in files if file.is_file()]

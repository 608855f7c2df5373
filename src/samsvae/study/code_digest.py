"""Digest of the code that a script runs, so that an edit reruns the rules it concerns and no others.

Snakemake sees an edit of a script by its modification time and does not see the package in `src/` at all. A
rule that has `params: code=code_of(...)` is run again when, and only when, the code behind its script has
changed: comments, docstrings and layout do not count, nor do modules that the script never imports. Imports
by string (`importlib`) are not followed.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = "samsvae"

#: Modules that decide what is said, never what is computed: an edit of a message reruns nothing.
QUIET = ("samsvae.errors",)


def code_of(script: str | Path, root: str | Path) -> str:
    """Digest of a script and of every samsvae module that it imports, however deep.

    Parameters
    ----------
    script
        Path of the script, relative to `root` or absolute but below it.
    root
        The checkout: the package lies in `root/src/samsvae`.

    Returns
    -------
    16 hexadecimal characters, the same wherever the checkout lies and under every Python since 3.11.
    """
    root = Path(root).resolve()
    first = (root / script).resolve()
    found: dict[str, str] = {}
    todo = [first]
    while todo:
        path = todo.pop()
        name = path.relative_to(root).as_posix()
        if name not in found:
            found[name], imports = _read(path.read_text(encoding="utf-8"), _module(path, root / "src"))
            todo += [file for module in imports for file in _files(module, root / "src")]
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]


@cache
def _read(source: str, module: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """Digest of one file's code, and the modules of the package that it imports."""
    tree = ast.parse(source)
    names = {name for name in _imports(tree, module) if name.split(".")[0] == PACKAGE and not name.startswith(QUIET)}
    return hashlib.sha256(_text(tree).encode()).hexdigest(), tuple(sorted(names))


def _text(part: object) -> str:
    """A syntax tree as text.

    Not `ast.dump`, whose output changes between versions of Python: empty fields, such as those that a newer
    grammar adds, are left out here.
    """
    if isinstance(part, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(part) if value is not None and value != [])
        return f"{type(part).__name__}({','.join(f'{name}={_text(value)}' for name, value in fields)})"
    if isinstance(part, list):
        return f"[{','.join(_text(item) for item in part if not _is_docstring(item))}]"
    return repr(part)


def _is_docstring(part: object) -> bool:
    """Whether a statement is a string by itself, which does nothing when it runs."""
    value = part.value if isinstance(part, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _imports(tree: ast.AST, module: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that the file may import, wherever in it: modules, and what could be a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module[: len(module) - node.level] if node.level else ()
            base = ".".join((*parents, *filter(None, [node.module])))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _module(path: Path, src: Path) -> tuple[str, ...]:
    """Parts of the dotted name of a file in `src`, `__init__` included; () for a script."""
    return path.relative_to(src).with_suffix("").parts if path.is_relative_to(src) else ()


def _files(name: str, src: Path) -> list[Path]:
    """Files that importing a name runs: for a.b.c those of a, a.b and a.b.c, as far as they exist."""
    parts = name.split(".")
    bases = [src.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)]
    files = [file for base in bases for file in (base.with_suffix(".py"), base / "__init__.py")]
    return [file for file in files if file.is_file()]

"""The public names of the package: the lists are complete, each name exists, and type checkers see the same names."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys

import pytest

import samsvae
from samsvae import api, fitted, pl

NAMES = ["Fitted", "SamsvaeError", "__version__", "fit", "load", "pl"]


def test_the_package_exports_these_names():
    assert samsvae.__all__ == NAMES == sorted(NAMES)
    assert all(getattr(samsvae, name) is not None for name in NAMES)
    assert set(NAMES) <= set(dir(samsvae))
    public = {name for name in dir(samsvae) if not name.startswith("_")}
    assert {name for name in public if not inspect.ismodule(getattr(samsvae, name))} == set(NAMES) - {
        "__version__",
        "pl",
    }
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        _ = samsvae.fitt


@pytest.mark.parametrize("module", [api, fitted, pl])
def test_a_module_exports_what_it_defines(module):
    defined = (inspect.isfunction, inspect.isclass)
    own = {name: value for name, value in vars(module).items() if any(kind(value) for kind in defined)}
    public = [name for name, value in own.items() if not name.startswith("_") and value.__module__ == module.__name__]
    assert module.__all__ == sorted(public)
    home = pl if module is pl else samsvae
    assert all(getattr(home, name) is getattr(module, name) for name in module.__all__)


def test_plots_need_no_import_of_their_own(root):
    code = "import samsvae; print(samsvae.pl.volcano.__name__)"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(root / "src")}, capture_output=True)
    assert done.stdout.decode().strip() == "volcano", done.stderr


def test_the_stub_has_the_same_names(root):
    tree = ast.parse((root / "src" / "samsvae" / "__init__.pyi").read_text())
    declared = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    declared |= {node.target.id for node in tree.body if isinstance(node, ast.AnnAssign)}
    (listed,) = (ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    assert declared == set(listed) and listed == NAMES
    assert (root / "src" / "samsvae" / "py.typed").is_file()


def test_importing_the_package_imports_nothing_heavy(root):
    code = "import sys, samsvae; samsvae.__version__; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(root / "src")}, capture_output=True)
    assert done.stdout.decode().strip() == "[]", done.stderr


def test_the_reference_lists_public_names_where_users_find_them(root):
    """`samsvae.fit`, not the module that defines it; the other entries are what they say."""
    entries = re.findall(r"^::: samsvae\.(\S+)$", (root / "docs" / "reference.md").read_text(), flags=re.M)
    assert set(NAMES) - {"SamsvaeError", "__version__"} <= set(entries)
    private = {
        f"{module.__name__.removeprefix('samsvae.')}.{name}" for module in (api, fitted) for name in module.__all__
    }
    assert not private & set(entries)
    for entry in set(entries) - set(NAMES):
        module, _, name = entry.rpartition(".")
        assert inspect.getdoc(getattr(importlib.import_module(f"samsvae.{module}"), name)), entry

"""The tutorials run, and their stored outputs are those of their cells."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def notebooks(root) -> ModuleType:
    """docs/site/notebooks.py, which stores the outputs of the tutorials."""
    spec = importlib.util.spec_from_file_location("notebooks", root / "docs/site/notebooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outputs_of(notebook: dict) -> list[list[str]]:
    """The kinds of outputs of every code cell."""
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [[kind for output in cell["outputs"] for kind in output.get("data", {"text": ""})] for cell in codes]


def texts_of(notebook: dict) -> str:
    return "\n".join(str(output) for cell in notebook["cells"] for output in cell.get("outputs", ()))


@pytest.mark.slow
def test_a_simulated_screen(root, notebooks, tmp_path, monkeypatch):
    stored = json.loads((root / "docs/tutorials/simulated_screen.ipynb").read_text())
    monkeypatch.chdir(tmp_path)
    done = notebooks.run(stored)
    assert outputs_of(done) == outputs_of(stored), "store the outputs again: python docs/site/notebooks.py FILE"
    assert "has levelled off" in texts_of(done)


@pytest.mark.slow
def test_real_cells(root, shared, notebooks, tmp_path, monkeypatch):
    stored = json.loads((root / "docs/tutorials/real_cells.ipynb").read_text())
    monkeypatch.setenv("PAPALEXI", str(shared / "data/real/papalexi2021_thp1_crisprko_20729x299_counts.h5ad"))
    monkeypatch.chdir(tmp_path)
    done = notebooks.run(stored)
    assert outputs_of(done) == outputs_of(stored), "store the outputs again: python docs/site/notebooks.py FILE"


def test_tutorials_are_small_and_name_no_path_of_a_machine(root):
    tops = ("home", "root", "Users", "mnt", "opt", "tmp", "var")
    folders = (*(f"/{name}/" for name in tops), "site-packages", f"{root.parent}/")
    for path in Path(root / "docs/tutorials").glob("*.ipynb"):
        text = path.read_text()
        assert len(text) < 300_000, path.name
        assert [name for name in folders if name in text] == [], path.name


def test_outputs_are_text_tables_and_figures(notebooks):
    code = "import pandas as pd\nimport matplotlib.pyplot as plt\nprint('a')\npd.DataFrame({'x': [1]})"
    cells = [code, "plt.plot([1, 2])", "y = 1", "y + 1"]
    done = notebooks.run({"cells": [{"cell_type": "code", "source": cell} for cell in cells]})
    assert outputs_of(done) == [["text", "text/plain", "text/html"], ["image/png"], [], ["text/plain"]]
    with pytest.raises(ZeroDivisionError):
        notebooks.run({"cells": [{"cell_type": "code", "source": "1 / 0"}]})

"""Runs the tutorials and stores their outputs: python docs/site/notebooks.py docs/tutorials/*.ipynb

Plain Python suffices: the code cells are executed one after the other, and the value of a last expression and the open
figures become outputs, small enough for a repository. `tests/test_tutorials.py` runs the cells in the same way.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


def run(notebook: dict) -> dict:
    """The notebook with the outputs of its code cells. An error in a cell is raised."""
    import matplotlib

    matplotlib.use("agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = []
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            cell = cell | {
                "outputs": _run_cell("".join(cell["source"]), names, f"cell {number}"),
                "execution_count": None,
            }
        cells.append(cell)
    return notebook | {"cells": cells}


def _run_cell(code: str, names: dict[str, Any], where: str) -> list[dict]:
    tree = ast.parse(code, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(tree, where, "exec"), names)
        value = None if last is None else eval(compile(ast.Expression(last.value), where, "eval"), names)
    outputs = [{"output_type": "stream", "name": "stdout", "text": printed.getvalue()}] if printed.getvalue() else []
    figures = _figures()
    if value is not None and not figures:
        outputs.append({"output_type": "display_data", "metadata": {}, "data": _data(value)})
    return outputs + figures


def _data(value: Any) -> dict[str, str]:
    html = value._repr_html_() if hasattr(value, "_repr_html_") else None
    return {"text/plain": repr(value)} | ({"text/html": html} if html else {})


def _figures() -> list[dict]:
    """The open figures as PNG; they are closed."""
    import matplotlib.pyplot as plt

    outputs = []
    for number in plt.get_fignums():
        file = io.BytesIO()
        plt.figure(number).savefig(file, format="png", dpi=80)
        image = base64.b64encode(file.getvalue()).decode()
        outputs.append({"output_type": "display_data", "metadata": {}, "data": {"image/png": image}})
    plt.close("all")
    return outputs


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        notebook = run(json.loads(path.read_text()))
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")

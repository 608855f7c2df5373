"""Checks cells, which may be sparse; apart from `checked`, so that tables and figures need no scipy."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from samsvae.evaluation.metrics.checked import checked


def checked_cells(name: str, Y: Any, n_genes: int | str = "G") -> np.ndarray | sparse.csr_matrix:
    """Cells (n, G) as a float64 array, or as a CSR matrix if they are sparse; DataError as for `checked`."""
    if not sparse.issparse(Y):
        return checked(name, Y, ("n", n_genes))
    Y = sparse.csr_matrix(Y, dtype=float)
    checked(name, np.broadcast_to(0.0, Y.shape), ("n", n_genes))
    if Y.nnz:
        checked(f"{name}.data", Y.data, ("nnz",))
    return Y

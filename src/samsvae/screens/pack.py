"""Writes the counts and names of a screen in the format that training reads (arrays.npz)."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
import scipy.sparse as sp

from samsvae.config.vocabulary import UNPERTURBED
from samsvae.files import atomic, verify
from samsvae.screens.counts import BLOCK_BYTES, count_blocks, matrix_shape, real_blocks
from samsvae.screens.hdf5 import open_h5ad, reading
from samsvae.screens.screen import (
    CHUNK,
    COUNT_TYPES,
    controls_of,
    covariates_of,
    members,
    read_tables,
    require,
    text_of,
)

if TYPE_CHECKING:
    from samsvae.data.arrays import Screen


def write_arrays(h5ad: str | Path, npz: str | Path, *, block_bytes: int = BLOCK_BYTES) -> None:
    """Write the training arrays of a screen, which numpy alone can read.

    counts (n, G): the smallest of uint8, int16 and int32 that holds them, or float32. library (n): float32. cells (n).
    genes (G). condition (n): index into conditions (C; sorted, with the control). members (C, P): index into
    perturbations (T), -1 for none. controls: the labels that mean the control, its name first. separator. With
    covariates also: covariates (n, V), codes of their levels; covariate_names (V); covariate_levels (S), the names of
    all levels; covariate_of_level (S), the covariate of each.

    by_dosage: only in a screen without a control whose effects are relative to the zero dosage.

    Memory: the tables and one block of counts. DataError if the screen breaks the contract of `screens.screen`.
    """
    verify([h5ad])
    arrays = _names(read_tables(h5ad))
    shape = len(arrays["cells"]), len(arrays["genes"])
    with open_h5ad(h5ad) as file, atomic(npz) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        x = file["X"]
        require(matrix_shape(x) == shape, h5ad, f"X is {matrix_shape(x)}, but obs and var are {shape} (cells, genes).")
        dtype = _smallest(x, h5ad)
        _add(archive, "counts", shape, dtype, _dense(x, dtype, arrays["cells"], arrays["genes"], h5ad, block_bytes))
        for name, array in arrays.items():
            _add(archive, name, array.shape, array.dtype, [array])


def _names(screen: ad.AnnData) -> dict[str, np.ndarray]:
    """The training arrays except the counts."""
    control, separator = screen.uns["control"], screen.uns["separator"]
    perturbations = list(screen.uns["perturbations"].index)
    number = {name: t for t, name in enumerate(perturbations)}
    label = screen.obs["condition"].astype("category").cat.remove_unused_categories().cat
    conditions, place = np.unique(label.categories.to_numpy(str), return_inverse=True)
    each = [[number[name] for name in members(c, separator, control)] for c in conditions]
    width = max(1, *map(len, each))
    return {
        "library": screen.obs["library_size"].to_numpy(np.float32),
        "cells": screen.obs_names.to_numpy(str),
        "genes": screen.var_names.to_numpy(str),
        "condition": place[label.codes].astype(np.int32),
        "conditions": conditions,
        "members": np.array([m + [-1] * (width - len(m)) for m in each], np.int32),
        "perturbations": np.array(perturbations, str),
        "controls": np.array(controls_of(screen), str),
        "separator": np.array(separator),
        **({"by_dosage": np.array(True)} if screen.uns.get("reference") == UNPERTURBED else {}),
        **_covariates(screen),
    }


def _covariates(screen: ad.AnnData) -> dict[str, np.ndarray]:
    """The arrays of the covariates of a screen; {} without any."""
    names = covariates_of(screen)
    if not names:
        return {}
    each = [np.unique(text_of(screen.obs[name]).to_numpy(str), return_inverse=True) for name in names]
    return {
        "covariates": np.stack([codes for _, codes in each], 1).astype(np.int32),
        "covariate_names": np.array(names),
        "covariate_levels": np.concatenate([levels for levels, _ in each]),
        "covariate_of_level": np.repeat(np.arange(len(names)), [len(levels) for levels, _ in each]),
    }


def arrays_of(screen: ad.AnnData) -> Screen:
    """The training arrays of a screen in memory, the same as `write_arrays` writes."""
    from samsvae.data.arrays import FIELDS, Screen, read_labels  # loads torch, which filters do not need

    x = screen.X
    if sp.issparse(x):
        top = x.max()
        x = x.astype(next(t for t in COUNT_TYPES if top <= np.iinfo(t).max)).toarray()
    names = {"counts": x} | _names(screen)
    return Screen(**{name: names[name] for name in FIELDS}, **read_labels(names, names))


def _add(archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype, blocks: Iterable[np.ndarray]) -> None:
    """Add an array to an npz in blocks of rows; same bytes as np.savez, which needs the complete array in memory."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for block in blocks:
            member.write(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)


def _smallest(x: h5py.Dataset | h5py.Group, what: str | Path) -> type:
    """The dtype of the training counts."""
    if isinstance(x, h5py.Dataset):
        require(x.dtype == np.float32, what, "X must be CSR int32 counts, or dense float32 in a real-valued screen.")
        return np.float32
    with reading(f"{what}: X", x):
        values = x["data"]
        require(values.dtype == np.int32, what, "X must be CSR int32 counts.")
        top = max((int(values[a : a + 4 * CHUNK].max()) for a in range(0, len(values), 4 * CHUNK)), default=0)
    return next(t for t in COUNT_TYPES if top <= np.iinfo(t).max)


def _dense(
    x: h5py.Dataset | h5py.Group, dtype: type, cells: np.ndarray, genes: np.ndarray, what: str | Path, block_bytes: int
) -> Iterator[np.ndarray]:
    """Dense blocks of rows, checked to hold counts, or finite values in a real-valued screen."""
    step = max(1, block_bytes // (4 * len(genes)))
    if isinstance(x, h5py.Dataset):
        yield from real_blocks(x, len(cells), len(genes), f"{what}: X")
        return
    everything = np.arange(len(cells)), np.arange(len(genes))
    for block in count_blocks(x, *everything, cells=cells, genes=genes, what=f"{what}: X", block_bytes=block_bytes):
        for start in range(0, block.shape[0], step):
            yield block[start : start + step].astype(dtype).toarray()

"""Opens the sources of your own screen: an h5ad, an AnnData store in zarr, a 10x .h5 or a 10x folder.

The counts of an h5ad or a zarr store stay there. Every other source is read completely into memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.io
import scipy.sparse as sp
from anndata.io import read_elem

from samsvae.errors import ConfigError, DataError, nearest, some
from samsvae.screens.counts import Counts, sparse_indices, sparse_starts
from samsvae.screens.hdf5 import check_sparse, is_group, one_line, open_h5ad, place_of, reading

#: The files of a 10x folder, by the ends of their names without .gz. Cell Ranger 2 writes genes.tsv.
MATRIX, FEATURES, GENES, BARCODES = "matrix.mtx", "features.tsv", "genes.tsv", "barcodes.tsv"

GENE_EXPRESSION = "Gene Expression"  # the type of feature that the screen keeps


@dataclass(frozen=True)
class Source:
    """A source: its counts, obs, the matching var, and ``read``, which reads the entry at obsm:KEY or uns:KEY.

    DataError of ``read`` if there is no such entry.
    """

    counts: Counts
    obs: pd.DataFrame
    var: pd.DataFrame
    read: Callable[[str], Any]


@contextmanager
def open_source(source: str | Path, counts: str, block_bytes: int) -> Iterator[Source]:
    """The source, with the counts that the option `counts` names.

    DataError if the source is missing, damaged or has an unknown format, ConfigError if `counts` is not allowed.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f"{source}: no such file.")
    if source.suffix == ".h5ad" and not source.is_dir():
        with open_h5ad(source, ("obs", "var")) as file:
            yield _parts_of_file(file, source, counts, block_bytes)
        return
    if _is_zarr(source):
        yield _parts_of_file(_open_zarr(source), source, counts, block_bytes)
        return
    if source.suffix != ".h5" and not source.is_dir():
        raise DataError(f"{source}: not a known format; allowed: .h5ad, .zarr, 10x .h5, a 10x folder with matrix.mtx.")
    if counts != "X":
        raise ConfigError(f"counts: {counts!r} is not allowed for a 10x source; allowed: 'X'.")
    adata = _read_10x_folder(source) if source.is_dir() else _read_10x_h5(source)
    yield parts_of(adata, counts, source)


def parts_of(adata: ad.AnnData, counts: str, source: str | Path) -> Source:
    """The parts of an AnnData in memory, with the counts that the option `counts` names."""
    places = {} if adata.X is None else {"X": adata.X}
    places |= {f"layer:{name}": x for name, x in adata.layers.items()}
    places |= {} if adata.raw is None else {"raw": adata.raw.X}
    x = find_counts(places, counts, source)
    with reading(f"{source}: {counts}"):
        check_sparse(x)
        x = x.tocsr() if sp.issparse(x) else np.asarray(x)
    var = adata.raw.var if counts == "raw" else adata.var
    data = Counts(x, adata.obs_names.astype(str), var.index.astype(str), f"{source}: {counts}")

    def read(place: str) -> Any:
        kind, _, key = place.partition(":")
        return find_entry(adata.obsm if kind == "obsm" else adata.uns, kind, key, source)

    return Source(data, adata.obs.copy(), var, read)


def find_entry(entries: Mapping[str, Any], kind: str, key: str, source: str | Path) -> Any:
    """The entry of obsm or uns (`kind`) that an option names; DataError if there is none."""
    if key not in entries:
        raise DataError(f"{source}: {kind} has no {key!r}.{nearest(key, entries)}")
    return entries[key]


def find_counts(places: Mapping[str, Any], counts: str, source: str | Path) -> Any:
    """The entry of `places` that the option `counts` names; ConfigError or DataError if there is none."""
    if counts in places:
        return places[counts]
    if counts not in ("X", "raw") and not counts.startswith("layer:"):
        raise ConfigError(f"counts: {counts!r} is not allowed; allowed: 'X', 'layer:NAME', 'raw'.")
    if not places:
        raise DataError(f"{source}: has no {counts!r}, which the option counts requests, and no other matrix.")
    raise DataError(f"{source}: has no {counts!r}, which the option counts requests.{nearest(counts, places)}")


# ---- h5ad and zarr -------------------------------------------------------------------------------------------------


def _parts_of_file(file: Any, source: Path, counts: str, block_bytes: int) -> Source:
    """As `parts_of`, with the counts in the open HDF5 file or zarr store."""
    with reading(source):
        layers = {f"layer:{name}": f"layers/{name}" for name in file.get("layers", ())}
        places = {"X": "X", **layers, "raw": "raw/X"}
        places = {name: place for name, place in places.items() if _is_matrix(file, place)}
    place = find_counts(places, counts, source)
    obs, var = (read_frame(file[table], source) for table in ("obs", "raw/var" if counts == "raw" else "var"))
    data = Counts(file[place], obs.index, var.index, f"{source}: {counts}", block_bytes)
    data.check()

    def read(at: str) -> Any:
        kind, _, key = at.partition(":")
        with reading(f"{source}: {kind}"):
            item = find_entry(file.get(kind, {}), kind, key, source)
        with reading(f"{source}: {kind} {key!r}", item):
            return item if kind == "obsm" and not is_group(item) else read_elem(item)  # a dense matrix stays there

    return Source(data, obs, var, read)


def _is_matrix(file: Any, place: str) -> bool:
    """Whether the file has a matrix at this place; a missing one may be written as an empty dataset."""
    return place in file and getattr(file[place], "shape", ()) is not None


def read_frame(element: Any, source: str | Path) -> pd.DataFrame:
    """obs or var, with row names as text."""
    if not is_group(element):
        raise DataError(
            f"{source}: {element.name[1:]} has the format of anndata before 0.7. Rewrite the file with "
            "anndata.read_h5ad(FILE).write_h5ad(NEW)."
        )
    with reading(f"{source}: {element.name[1:]}", element):
        frame = read_elem(element)
        frame.index = frame.index.astype(str)
    return frame


def _is_zarr(source: Path) -> bool:
    """Whether the source is a zarr store (a folder), or is named like one."""
    marks = ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")
    return source.is_dir() and (source.suffix == ".zarr" or any((source / name).is_file() for name in marks))


def _open_zarr(source: Path) -> Any:
    """The group of an AnnData in a zarr store; DataError if it holds none."""
    import zarr  # slow to import, used only for this format

    try:
        store = zarr.open_group(source, mode="r")
        missing = [name for name in ("obs", "var") if name not in store]
        problem = f"it has no {' and no '.join(missing)}" if missing else ""
    except Exception as error:  # zarr raises many types
        problem = one_line(error)
    if problem:
        raise DataError(
            f"{source}: not a readable zarr store of an AnnData ({problem}). Write the AnnData as .h5ad, or again with "
            "write_zarr."
        )
    return store


# ---- 10x formats ---------------------------------------------------------------------------------------------------


def _read_10x_h5(source: Path) -> ad.AnnData:
    import scanpy  # slow to import, used only for this format

    with open_h5ad(source, ()) as file, reading(source, file), warnings.catch_warnings():
        for group in file.values():
            if isinstance(group, h5py.Group) and "indptr" in group:
                starts = sparse_starts(group, group["shape"][1], "cells", place_of(group))
                sparse_indices(group, 0, starts[-1], group["shape"][0], "genes", place_of(group))
        # every 10x reference repeats some symbols
        warnings.filterwarnings("ignore", message=".*names are not unique.*")
        adata = scanpy.read_10x_h5(source)
    adata.var_names_make_unique()
    return adata


def _read_10x_folder(source: Path) -> ad.AnnData:
    """The gene expression in a 10x folder, as CSR; DataError if a file is missing or does not fit the others."""
    matrix, features, barcodes = _files_of_10x(source)
    with reading(f"{source}:", problem="cannot be read"):
        # A gene may be called NA, so no text means a missing value.
        table = pd.read_csv(features, sep="\t", header=None, dtype={1: str}, keep_default_na=False)
        cells = pd.read_csv(barcodes, header=None, dtype=str, keep_default_na=False)[0]
        n_genes, n_cells, stored, *_ = scipy.io.mminfo(matrix)
        if (n_genes, n_cells) != (len(table), len(cells)):
            raise DataError(
                f"{matrix} has {n_genes} rows (genes) and {n_cells} columns (cells), but {features.name} has "
                f"{len(table)} lines and {barcodes.name} has {len(cells)}."
            )
        if stored > n_genes * n_cells:
            raise DataError(f"{matrix} is damaged: it claims {stored:,} entries for {n_genes} genes, {n_cells} cells.")
        x = sp.csr_matrix(scipy.io.mmread(matrix).T)
    names = table[1 if 1 in table else 0].astype(str)
    var = pd.DataFrame({"gene_ids": table[0].to_numpy()}, ad.utils.make_index_unique(pd.Index(names.to_numpy())))
    if not features.name.removesuffix(".gz").endswith(GENES) and 2 in table:
        var["feature_types"] = table[2].to_numpy()
        chosen = (var["feature_types"] == GENE_EXPRESSION).to_numpy()
        if not chosen.any():
            found = some(var["feature_types"].unique())
            raise DataError(f"{features}: column 3 has the types {found}, but no {GENE_EXPRESSION!r}.")
        x, var = x[:, chosen], var[chosen].copy()
    return ad.AnnData(x, pd.DataFrame(index=pd.Index(cells.to_numpy())), var)


def _files_of_10x(folder: Path) -> tuple[Path, Path, Path]:
    """The matrix, the features and the barcodes in a 10x folder, zipped or not; GEO puts a sample's name before each.

    DataError if one is missing, or if there are several samples.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    prefixes = [
        name.removesuffix(".gz").removesuffix(MATRIX) for name in names if name.removesuffix(".gz").endswith(MATRIX)
    ]
    listed = f"its files are {some(names)}" if names else "it has no files"
    if any(name.endswith((".zst", ".xz", ".bz2", ".zip")) for name in names):
        listed += ". Only gzip is read: unpack the others first"
    if not prefixes:
        raise DataError(f"{folder}: cannot be read as a 10x folder: it has no {MATRIX} or {MATRIX}.gz; {listed}.")
    if "" not in prefixes and len(set(prefixes)) > 1:
        raise DataError(
            f"{folder}: has the files of {len(set(prefixes))} samples ({some(sorted(set(prefixes)))}). Put each in a "
            "folder of its own, or join them in one .h5ad."
        )
    prefix = "" if "" in prefixes else prefixes[0]
    old = f"{prefix}{GENES}" in names  # a folder of Cell Ranger 2, which zips nothing

    def find(*stems: str) -> Path:
        """The first of these files, in the form that this version of Cell Ranger writes if both are there."""
        for stem in stems:
            for end in ("", ".gz") if old else (".gz", ""):
                if f"{prefix}{stem}{end}" in names:
                    return folder / f"{prefix}{stem}{end}"
        needed = " or ".join(f"{prefix}{stem}" for stem in stems)
        raise DataError(f"{folder}: cannot be read as a 10x folder: it has no {needed}, zipped or not; {listed}.")

    return find(MATRIX), find(GENES) if old else find(FEATURES, GENES), find(BARCODES)

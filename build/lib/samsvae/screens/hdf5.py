"""Opens HDF5 files that may be damaged or hostile: what they claim is checked before it is read."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import anndata as ad
import h5py
import numpy as np

from samsvae.errors import DataError, SamsvaeError
from samsvae.files import no_room

#: Most bytes that a stored byte may stand for (1,032 in gzip), and the size up to which this is not checked.
RATIO, SMALL = 1100, 1 << 26

#: Most groups and datasets of a file, and most groups in one another.
MOST, DEPTH = 1_000_000, 50

BUILT_IN = (1, 2, 3, 4, 5, 6)  # numbers of filters that pack no closer than gzip; others may

COLLECTION = b"GCOL\x01\0\0\0"  # the start of a collection of text, version 1

REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("number", "<u4")])  # to a text in a collection

Item: TypeAlias = h5py.Dataset | h5py.Group


@contextmanager
def open_h5ad(path: str | Path, needed: Sequence[str] = ("X", "obs", "var")) -> Iterator[h5py.File]:
    """Open an h5ad for reading; DataError if it is missing, damaged or has not all of the parts `needed`.

    Every part is checked for its size and its links, so that reading it takes memory in proportion to the file, and
    no other file is read.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file.")
    with reading(f"{path}:", problem="not a readable HDF5 file"):
        state = path.stat()
        _check_text(path, state.st_size, state.st_mtime_ns)
        file = h5py.File(path, "r")
    with file:
        with reading(path):
            _check_group(file, path, state.st_size, [], iter(range(MOST)))
            missing = [name for name in needed if name not in file]
        if missing:
            raise DataError(f"{path}: not an h5ad file: it has no {' and no '.join(missing)}.")
        yield file


def create_hdf5(path: str | Path) -> h5py.File:
    """A new file whose metadata have checksums, readable by HDF5 1.10 and later; the same content, the same bytes."""
    return h5py.File(path, "w", libver=("v110", "v110"))


def read_anndata(path: str | Path) -> ad.AnnData:
    """Read a complete h5ad into memory; DataError if it is missing or damaged."""
    with open_h5ad(path, ()), reading(path):
        adata = ad.read_h5ad(path)
        matrices = [adata.X, *adata.layers.values(), *adata.obsm.values(), *adata.varm.values()]
        for matrix in matrices:
            check_sparse(matrix)
    return adata


def check_sparse(matrix: object) -> None:
    """ValueError for a sparse matrix in memory with an index out of range, at which scipy would leave its arrays."""
    if hasattr(matrix, "check_format"):
        matrix.check_format(full_check=True)


@contextmanager
def reading(what: str | Path, item: Item | None = None, problem: str = "cannot be read") -> Iterator[None]:
    """Turn any error from reading a file into a DataError that names `what`: the file, and its part if it is known."""
    try:
        yield
    except SamsvaeError:
        raise
    except Exception as error:  # h5py, anndata, numpy and pandas raise many types for a damaged file
        if no_room(error):
            raise
        filters: list[str] = []
        with suppress(Exception):  # a damaged file may not even say how it is compressed
            filters = missing_filters(item)
        if filters:
            raise DataError(
                f"{what} is compressed with HDF5 filter {', '.join(filters)}, which is not installed. Rewrite the file "
                "in an environment that has the package hdf5plugin: import hdf5plugin, then "
                "anndata.read_h5ad(FILE).write_h5ad(NEW, compression='gzip')."
            ) from error
        raise DataError(f"{what} {problem} ({one_line(error)}).") from error


def place_of(item: Item) -> str:
    """'FILE: obs' for messages."""
    return f"{item.file.filename}: {item.name.strip('/')}"


def one_line(error: Exception) -> str:
    """The text of an error on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}..."


def missing_filters(item: Item | None) -> list[str]:
    """Number and name of each compression filter that the datasets in `item` use and that is not installed."""
    datasets = [item] if isinstance(item, h5py.Dataset) else []
    if isinstance(item, h5py.Group):
        item.visititems(lambda _, found: datasets.append(found) if isinstance(found, h5py.Dataset) else None)
    missing = {}
    for dataset in datasets:
        for code, name in _filters(dataset):
            if not h5py.h5z.filter_avail(code):
                missing[code] = f"{code} ({as_text(name)})" if name else str(code)
    return list(missing.values())


def _filters(dataset: h5py.Dataset) -> list[tuple[int, bytes]]:
    """Number and name of each filter of a dataset."""
    created = dataset.id.get_create_plist()
    found = [created.get_filter(i) for i in range(created.get_nfilters())]
    return [(code, name) for code, *_, name in found]


def is_group(item: Any) -> bool:
    """Whether a part of an HDF5 file or of a zarr store is a group rather than an array."""
    return not hasattr(item, "dtype")


def text_attribute(item: Item, *names: str, default: str = "") -> str:
    """The first of the attributes `names` that exists, as text; Julia and R write text that h5py reads as bytes."""
    return next((as_text(item.attrs[name]) for name in names if name in item.attrs), default)


def as_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# ---- what a file claims --------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _check_text(path: Path, size: int, changed: int) -> None:
    """DataError if reading text from the file would never end, as with a sector of zeros in a collection of text.

    Such a collection ("GCOL") is a sequence of objects, which HDF5 follows by their sizes. It has no checksum. The file
    is read once for each change (`size`, time `changed`), at about 1 GB/s.
    """
    with open(path, "rb") as file:
        start, before = 0, b""
        while block := file.read(1 << 20):
            block = before + block
            for found in re.finditer(COLLECTION, block):
                at, here = start + found.start(), file.tell()
                file.seek(at + 8)
                (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
                if length <= size - at:
                    file.seek(at)
                    _check_collection(file.read(length), f"{path}: the text at byte {at:,}")
                file.seek(here)
            before = block[1 - len(COLLECTION) :]
            start = file.tell() - len(before)


def _check_collection(block: bytes, place: str) -> None:
    """DataError if an object in a collection has no size, or one that leads back, in the 64 bits of HDF5."""
    at = 16
    while at + 16 <= len(block):
        number, _, _, length = struct.unpack_from("<HHIQ", block, at)
        step = (16 + (length + 7) % 2**64 // 8 * 8) % 2**64 if number else length  # 0 is the number of free space
        if not 0 < step < 2**63:
            raise DataError(f"{place} is damaged.")
        at += step


def _check_group(group: h5py.Group, path: Path, size: int, above: list[int], left: Iterator[int]) -> None:
    """DataError if a group contains itself or another file, or if a dataset in it claims more than the file holds.

    `size`: of the file, in bytes. `above`: the addresses of the groups that contain this one. `left`: gives an item
    for each part that is still allowed.
    """
    at = h5py.h5o.get_info(group.id).addr
    if at in above or len(above) > DEPTH:
        raise DataError(f"{path}: {group.name[1:]} is damaged: the group contains itself.")
    for name in group:
        if next(left, None) is None:
            raise DataError(f"{path}: has more than {MOST:,} groups and datasets; allowed: fewer.")
        place = f"{path}: {group.name}/{name}".replace(": //", ": ").replace(": /", ": ")
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise DataError(f"{place} is a link to another file, which is not allowed. Copy its content into the file.")
        with reading(place):
            item = group[name]
            if isinstance(item, h5py.Group):
                _check_group(item, path, size, [*above, at], left)
            elif isinstance(item, h5py.Dataset):
                _check_dataset(item, place, size)


def _check_dataset(dataset: h5py.Dataset, place: str, size: int) -> None:
    """DataError if the dataset is in another file, claims more values than the file holds, or lacks some of them."""
    if dataset.is_virtual or dataset.external:
        raise DataError(f"{place} is stored in another file, which is not allowed. Copy its content into the file.")
    if dataset.shape is None:
        return
    claimed, stored = dataset.size * dataset.id.get_type().get_size(), dataset.id.get_storage_size()
    ratio = RATIO if all(code in BUILT_IN for code, _ in _filters(dataset)) else RATIO**2
    if claimed > SMALL and claimed > stored * ratio:
        raise DataError(f"{place} is damaged: it claims {dataset.size:,} values, but holds {stored:,} bytes.")
    if dataset.chunks:
        chunks = math.prod(math.ceil(n / width) for n, width in zip(dataset.shape, dataset.chunks, strict=True))
        if (found := dataset.id.get_num_chunks()) != chunks:
            raise DataError(f"{place} is damaged: it has {found:,} of its {chunks:,} chunks.")
    if h5py.check_vlen_dtype(dataset.dtype) or h5py.check_string_dtype(dataset.dtype):
        letters = sum(int(part["length"].sum(dtype=np.float64)) for part in _references(dataset))
        if letters > size + SMALL:
            raise DataError(f"{place} is damaged: it claims {letters:,} bytes of text, but the file has {size:,}.")


def _references(dataset: h5py.Dataset) -> Iterator[np.ndarray]:
    """The places of the texts of a dataset as they are stored; none for text of fixed length or if compressed.

    Compressed parts have checksums of their own.
    """
    text = h5py.check_string_dtype(dataset.dtype)
    if (text and text.length is not None) or _filters(dataset):
        return
    if dataset.chunks:
        found = [dataset.id.get_chunk_info(i) for i in range(dataset.id.get_num_chunks())]
        parts = [(chunk.byte_offset, chunk.size) for chunk in found]
    else:
        parts = [(dataset.id.get_offset(), dataset.size * REFERENCE.itemsize)]
    with open(dataset.file.filename, "rb") as file:
        for start, length in parts:
            if start is not None:
                file.seek(start)
                stored = file.read(length)
                yield np.frombuffer(stored[: len(stored) // REFERENCE.itemsize * REFERENCE.itemsize], REFERENCE)

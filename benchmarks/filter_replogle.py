"""Speed and memory of the Replogle filter and of packing training arrays, on synthetic files in the published format.

    python benchmarks/filter_replogle.py FOLDER --cells 242500                  # 8 GB of counts, on disk
    python benchmarks/filter_replogle.py FOLDER --sparse                        # the published size, mostly holes
    python benchmarks/filter_replogle.py FOLDER --cells 560000 --keep all       # unfiltered, more than 2^31 values
    python benchmarks/filter_replogle.py FOLDER --sparse --keep all             # unfiltered, memory at the full size
    python benchmarks/filter_replogle.py FOLDER --cells 242500 --form chunks    # gzip chunks, as scPerturb stores them
    python benchmarks/filter_replogle.py FOLDER --cells 242500 --form csr

Each command prints one row per step: seconds, MB/s of the file that is read, MB/s of dd on the same file in the same
state, and the peak of resident memory (VmHWM) of a fresh process. The files are deleted at the end.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
from anndata.io import write_elem

from samsvae.screens.pack import write_arrays
from samsvae.screens.replogle import CONTROL, choose_cells, filter_tables, read_genes, read_pathways

LISTS = Path(__file__).resolve().parents[1] / "resources" / "replogle"
CELLS, GENES, LISTED, CONTROLS, OTHERS = 1_989_578, 8_248, 116_641, 75_328, 9_185
POOL = 2_000  # distinct rows, drawn repeatedly: only the cost of reading and compressing them matters


def lists() -> dict:
    names = {name: read_genes(LISTS / f"{name}.tsv") for name in ("perturbed_genes", "measured_genes")}
    return names | {"pathways": read_pathways(LISTS / "pathways.tsv")}


def make_source(path: Path, cells: int, genes: int, form: str, sparse: bool, keep: str, seed: int = 0) -> None:
    """A file in the published format. The published numbers of cells and genes give the published numbers kept.

    `sparse`: write only the rows that the filter keeps. If it keeps all rows, write one count in each row and the last
    20,000 rows in full. The rest are holes, which read as zeros.
    """
    rng = np.random.default_rng(seed)
    kept = lists()
    measured, perturbed = kept["measured_genes"], kept["perturbed_genes"]
    n_measured = min(len(measured), round(genes * len(measured) / GENES))
    names = [*measured[:n_measured], measured[n_measured - 1]]  # one symbol occurs twice
    names = np.array([*names, *(f"OTHER{i}" for i in range(genes - len(names)))], object)
    rng.shuffle(names)

    # codes of the labels: 0 non-targeting, 1.. the listed genes, then the others; 41 listed genes have two guide pairs
    gene_of = np.array([CONTROL, *perturbed, *(f"TARGET{i}" for i in range(OTHERS))], object)
    share = cells / CELLS
    n_listed, n_controls = round(LISTED * share), round(CONTROLS * share)
    code = np.concatenate(
        [
            np.zeros(n_controls, np.int64),
            1 + np.arange(n_listed) % len(perturbed),
            1 + len(perturbed) + np.arange(cells - n_listed - n_controls) % OTHERS,
        ]
    )
    rng.shuffle(code)
    second = (code >= 1) & (code <= 41) & (rng.random(cells) < 0.5)
    guides = np.array(
        [f"{name}_{strand}_{10_000_000 + i}.23-P1P2" for i, name in enumerate(gene_of) for strand in "+-"]
    )
    pairs = np.array([f"{a}|{b}" for a, b in zip(guides, np.roll(guides, 1), strict=True)], object)

    rows = rng.poisson(rng.lognormal(-0.6, 1.2, genes) * rng.lognormal(0, 0.3, (POOL, 1))).astype(np.float32)
    rows[0, 0] = 1
    with h5py.File(path, "w") as file:
        _write_obs(file.create_group("obs"), rng, gene_of, code, pairs, 2 * code + second)
        _write_var(file.create_group("var"), names)
        if form == "csr":
            _write_csr(file.create_group("X"), rng, rows, cells)
            return
        options = {"chunks": True, "compression": "gzip"} if form == "chunks" else {"fill_time": "never"}
        x = file.create_dataset("X", (cells, genes), np.float32, **options)
        x.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        if sparse:
            x[0] = rows[0]  # sets the offset of the dataset without allocating blocks for the rest
            place = x.id.get_offset()
        else:
            step = x.chunks[0] if x.chunks else POOL
            for start in range(0, cells, step):
                n = min(step, cells - start)
                x[start : start + n] = rows[rng.integers(POOL, size=n)]
    if sparse:  # bypasses HDF5, which would write 64 KiB per row
        whole = (
            np.arange(cells - 10 * POOL, cells) if keep == "all" else choose_cells(gene_of[code], perturbed, 2_000, 0)
        )
        with open(path, "r+b") as file:
            for row in range(cells if keep == "all" else 0):
                os.pwrite(file.fileno(), rows[0, :1].tobytes(), place + row * genes * 4)
            for row in whole:
                os.pwrite(file.fileno(), rows[row % POOL].tobytes(), place + int(row) * genes * 4)
    _to_disk(path)


def _write_obs(obs: h5py.Group, rng, gene_of, gene, pairs, pair) -> None:
    """As anndata 0.7 wrote it: labels are codes that refer to a list of names stored next to them."""
    n = len(gene)
    bases = np.array(list("ACGT"))
    letters = bases[(np.arange(n)[:, None] >> 2 * np.arange(15, -1, -1)) & 3]
    gem = rng.integers(1, 268, n)
    barcode = [f"{''.join(row)}-{g}" for row, g in zip(letters, gem, strict=True)]
    text = h5py.string_dtype()
    obs.create_dataset("cell_barcode", data=np.array(barcode, object), dtype=text)
    categories = obs.create_group("__categories")
    for name, labels, code in (
        ("gene", gene_of, gene),
        ("gene_id", gene_of, gene),
        ("transcript", np.array(["P1P2"], object), np.zeros(n, int)),
        ("gene_transcript", pairs, pair),
        ("sgID_AB", pairs, pair),
    ):
        categories.create_dataset(name, data=labels, dtype=text)
        column = obs.create_dataset(name, data=code.astype(np.int16))
        column.attrs["categories"] = categories[name].ref
    obs.create_dataset("gem_group", data=gem)
    for name in ("mitopercent", "UMI_count", "z_gemgroup_UMI", "core_scale_factor", "core_adjusted_UMI_count"):
        obs.create_dataset(name, data=rng.random(n))
    order = [name for name in obs if name not in ("cell_barcode", "__categories")]
    obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0", "_index": "cell_barcode"})
    obs.attrs["column-order"] = np.array(order, object)


def _write_var(var: h5py.Group, names: np.ndarray) -> None:
    text = h5py.string_dtype()
    var.create_dataset("gene_id", data=np.array([f"ENSG{i:011d}" for i in range(len(names))], object), dtype=text)
    var.create_dataset("gene_name", data=names, dtype=text)
    var.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0", "_index": "gene_id"})
    var.attrs["column-order"] = np.array(["gene_name"], object)


def _write_csr(x: h5py.Group, rng, rows: np.ndarray, cells: int) -> None:
    """float32 values and int32 columns, gzip, with chunk sizes chosen by h5py."""
    there = [np.flatnonzero(row) for row in rows]
    order = rng.integers(POOL, size=cells)
    starts = np.concatenate([[0], np.cumsum([len(there[i]) for i in order])])
    grown = {"maxshape": (None,), "chunks": True, "compression": "gzip", "compression_opts": 1}
    data = x.create_dataset("data", (starts[-1],), np.float32, **grown)
    indices = x.create_dataset("indices", (starts[-1],), np.int32, **grown)
    for start in range(0, cells, POOL):
        part = order[start : start + POOL]
        a, b = starts[start], starts[start + len(part)]
        data[a:b] = np.concatenate([rows[i][there[i]] for i in part])
        indices[a:b] = np.concatenate([there[i] for i in part])
    write_elem(x, "indptr", starts)
    shape = np.array([cells, rows.shape[1]])
    x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})


def _to_disk(path: Path) -> None:
    """Flush the file to disk and drop it from the page cache."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _dd(path: Path) -> float:
    start = time.perf_counter()
    subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=16M"], check=True, capture_output=True)
    return time.perf_counter() - start


def _apart(step: str, source: Path, target: Path, keep: str) -> tuple[float, int]:
    """Run a step in a process of its own: seconds and VmHWM (MiB)."""
    command = [sys.executable, __file__, "--step", step, str(source), str(target), "--keep", keep]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    return float(out[0]), int(out[1])


def _step(step: str, source: Path, target: Path, keep: str) -> None:
    start = time.perf_counter()
    if step == "filter":
        filter_tables(source, target, keep=keep, **lists())
    else:
        write_arrays(source, target)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text().split()
    print(seconds, int(status[status.index("VmHWM:") + 1]) // 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("target", type=Path, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--cells", type=int, default=CELLS)
    parser.add_argument("--genes", type=int, default=GENES)
    parser.add_argument("--form", choices=("contiguous", "chunks", "csr"), default="contiguous")
    parser.add_argument("--sparse", action="store_true", help="write only the rows that the filter keeps")
    parser.add_argument("--keep", choices=("listed", "all"), default="listed")
    options = parser.parse_args()
    if options.step:
        _step(options.step, options.folder, options.target, options.keep)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    source, screen, arrays = (options.folder / name for name in ("source.h5ad", "screen.h5ad", "arrays.npz"))
    try:
        make_source(source, options.cells, options.genes, options.form, options.sparse, options.keep)
        size = source.stat().st_size / 1e6
        on_disk = source.stat().st_blocks * 512 / 1e9
        print(
            f"source: {options.cells:,} x {options.genes:,}, {options.form}, {size / 1e3:.1f} GB, {on_disk:.1f} on disk"
        )
        print("| step | cache | s | MB/s | dd, MB/s | of dd | peak, MiB |\n|---|---|---|---|---|---|---|")
        for cache in ("cold", "warm"):
            if cache == "cold":
                _to_disk(source)
            rate = size / _dd(source)
            if cache == "cold":
                _to_disk(source)
            seconds, peak = _apart("filter", source, screen, options.keep)
            own = size / seconds
            print(
                f"| filter | {cache} | {seconds:.1f} | {own:.0f} | {rate:.0f} | {own / rate:.2f} | {peak} |", flush=True
            )
        seconds, peak = _apart("arrays", screen, arrays, options.keep)
        with h5py.File(screen) as file:
            shape, values = file["X"].attrs["shape"], len(file["X/data"])
        print(f"| arrays | warm | {seconds:.1f} | {screen.stat().st_size / 1e6 / seconds:.0f} | | | {peak} |")
        print(f"screen: {shape[0]:,} x {shape[1]:,}, {values:,} values, {screen.stat().st_size / 1e9:.2f} GB; ", end="")
        print(f"arrays: {arrays.stat().st_size / 1e9:.2f} GB")
    finally:
        for path in (source, screen, arrays):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()

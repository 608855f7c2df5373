"""The ready studies of config/: from a file on a local server, in the format of the published one, to the report."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import yaml

from samsvae.screens.miniature import replogle_source
from samsvae.screens.replogle import read_genes
from samsvae.screens.screen import read_screen
from samsvae.study.configuration import read_study
from samsvae.study.estimate import estimate

STUDIES = ("papalexi2021", "norman2019", "replogle_k562_essential", "replogle_rpe1")

#: Small trainings and scores, in place of those of the configurations.
SMALL = {
    "model": {"n_latent": 6, "width": 16, "embedding_layers": 2, "embedding_width": 16},
    "training": {"steps": 40, "batch_size": 64, "particles": 2, "validation_particles": 2},
    "evaluation": {
        "iwelbo_particles": 5, "bound_particles": 30, "bound_cells": 10, "ate_samples": 40, "effect_draws": 20,
        "pathway_repeats": 1, "pathway_trees": 5, "pathway_permutations": 2, "de_conditions": 2, "de_cells": 30,
    },
    "grid": [
        {"model": ["cpa_vae_corr"], "seed": [0]},
        {"model": ["sams_vae_corr"], "mask_prior": [0.1], "seed": [0]},
    ],
}  # fmt: skip


# ---- miniatures of the published files -----------------------------------------------------------------------------


def counts_of(effects: np.ndarray, row: np.ndarray, seed: int) -> sp.csc_matrix:
    """Counts (n, G), stored by column as in scPerturb's files; `row` (n): the row of `effects`, in log rate."""
    rng = np.random.default_rng(seed)
    rate = np.exp(rng.normal(0, 1, effects.shape[1]) + effects[row])
    return sp.csc_matrix(rng.poisson(600 * rate / rate.sum(1, keepdims=True)).astype(np.float32))


def scperturb(path: Path, x: sp.csc_matrix, obs: pd.DataFrame) -> None:
    """Write a file with the columns that scPerturb adds to obs, and genes indexed by symbol."""
    obs = obs.assign(
        disease="leukemia", cancer=True, tissue_type="cell_line", organism="human", perturbation_type="CRISPR",
        ngenes=x.getnnz(1), ncounts=np.asarray(x.sum(1)).ravel(), percent_mito=1.5, percent_ribo=20.0,
    )  # fmt: skip
    var = pd.DataFrame(index=pd.Index([f"GENE{i}" for i in range(x.shape[1])], name="gene_symbol"))
    ad.AnnData(x, obs, var.assign(ncounts=np.asarray(x.sum(0)).ravel(), ncells=x.getnnz(0))).write_h5ad(path)


def papalexi(path: Path, root: Path) -> None:
    """Labels are guides, three for each target; the control's guides are called control."""
    rng, targets = np.random.default_rng(1), ["ATF2", "IFNGR1", "IFNGR2", "STAT5A", "NFKBIA", "UBE2L6"]
    effects = rng.normal(0, 1, (len(targets) + 1, 50)) * (rng.random((len(targets) + 1, 50)) < 0.3)
    effects[-1] = 0
    row = np.repeat(np.arange(len(targets) + 1), [60] * len(targets) + [140])
    number = rng.integers(1, 4, len(row))
    guide = np.array([f"{([*targets, 'NT'])[t]}g{i}" for t, i in zip(row, number, strict=True)])
    obs = pd.DataFrame(
        {
            "guide_id": pd.Categorical(guide),
            "perturbation": pd.Categorical(np.where(row == len(targets), "control", guide)),
            "hto": pd.Categorical(rng.choice(["rep1-tx", "rep3-tx", "rep4-tx"], len(row))),
            "nperts": (row < len(targets)).astype(int),
        },
        index=[f"l{i % 8 + 1}_{i:05d}" for i in range(len(row))],
    )
    scperturb(path, counts_of(effects, row, 2), obs)


def norman(path: Path, root: Path) -> None:
    """The held-out pairs of the configuration, other pairs of their genes, and every gene alone; labels join with _."""
    rng = np.random.default_rng(3)
    held_out = yaml.safe_load((root / "config/norman2019.yaml").read_text())["settings"]["norman2019"]["split"]
    pairs = [pair.split("_") for pair in held_out["conditions"]]
    genes = sorted({gene for pair in pairs for gene in pair})
    others = [[a, b] for a, b in zip(genes[::5], genes[1::5], strict=False) if sorted([a, b]) not in pairs]
    labels = [*([g] for g in genes), *(pair[::-1] for pair in pairs), *others]  # in the file, parts are not sorted
    single = rng.normal(0, 0.8, (len(genes), 40)) * (rng.random((len(genes), 40)) < 0.3)
    effects = np.array([sum(single[genes.index(g)] for g in label) for label in labels] + [np.zeros(40)])
    row = np.repeat(np.arange(len(labels) + 1), [22] * len(labels) + [150])
    names = ["_".join(label) for label in labels] + ["control"]
    obs = pd.DataFrame(
        {
            "guide_id": pd.Categorical([f"{names[i]}__{names[i]}" for i in row]),
            "perturbation": pd.Categorical([names[i] for i in row]),
            "gemgroup": rng.integers(1, 9, len(row)),
            "good_coverage": True,
            "nperts": [len(labels[i]) if i < len(labels) else 0 for i in row],
        },
        index=pd.Index([f"CELL{i:05d}-1" for i in range(len(row))], name="cell_barcode"),
    )
    scperturb(path, counts_of(effects, row, 4), obs)


def replogle(path: Path, root: Path) -> None:
    """The raw format of the figshare files, with genes that the papers do not measure and perturb."""
    listed = root / "resources/replogle"
    replogle_source(
        path,
        labels=root / "resources/miniature/replogle_labels.tsv",
        measured_genes=read_genes(listed / "measured_genes.tsv"),
        other_genes=read_genes(listed / "perturbed_genes.tsv"),
        seed=5, n_targets=16, cells_per_perturbation=30, n_controls_in_file=120, n_genes=80, n_measured=40,
    )  # fmt: skip


MINIATURES = {"papalexi2021": papalexi, "norman2019": norman}


# ---- a server ------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Sends the file of the server, from the requested byte on; the connection breaks once in the middle."""

    def log_message(self, *args):
        pass

    def do_GET(self):
        body, asked = self.server.body, self.headers.get("Range", "bytes=0-")
        start = int(asked.removeprefix("bytes=").removesuffix("-"))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        whole = self.server.broken
        self.server.broken = self.server.broken or start == 0
        self.wfile.write(body[start:] if whole else body[start : start + len(body) // 2])


@pytest.fixture
def serve(tmp_path):
    """A function that serves the miniature of a study; it returns the source to put into the configuration."""
    servers = []

    def start(name: str, root: Path) -> dict:
        path = tmp_path / "served.h5ad"
        MINIATURES.get(name, replogle)(path, root)
        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        http.body, http.broken, http.daemon_threads = path.read_bytes(), False, True
        path.unlink()
        threading.Thread(target=http.serve_forever, args=[0.01], daemon=True).start()
        servers.append(http)
        digest = hashlib.sha256(http.body).hexdigest()
        url = f"http://127.0.0.1:{http.server_port}/files/1?download=1"
        return {"urls": [url], "size": len(http.body), "checksum": f"sha256:{digest}"}

    yield start
    for http in servers:
        http.shutdown()
        http.server_close()


# ---- tests ---------------------------------------------------------------------------------------------------------


def own(name: str, source: dict, **screen) -> str:
    """A configuration that replaces the source of a study and makes its trainings small."""
    changed = {
        "pathvars": {"results": "results"},
        "runs_per_job": 8,
        "screens": {name: {"source": source, **screen}},
        "settings": {name: SMALL},
    }
    return yaml.safe_dump(changed)


def run(root: Path, where: Path, name: str, override: str, *targets: str) -> Path:
    """Make targets of a study with one command; return its folder of results."""
    (where / "override.yaml").write_text(override)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "Snakefile"), "--cores", "2"]
    command += ["--workflow-profile", str(root / "profiles" / "default"), "--configfile"]
    command += [str(root / "config" / f"{name}.yaml"), str(where / "override.yaml"), "--", *targets]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return where / "results"


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_from_a_download_to_the_data_card(root, tmp_path, serve, name):
    """Two of the studies also go on to the report; the others differ only in their data and splits."""
    whole = name in ("papalexi2021", "replogle_rpe1")
    source = serve(name, root)
    known = source["checksum"]
    if name == "papalexi2021":  # its checksum is not known
        source = {"urls": source["urls"]}
    results = run(root, tmp_path, name, own(name, source), *(["all", "report"] if whole else [f"{name}_data_card"]))
    screen = read_screen(results / "data" / name / "screen.h5ad")
    assert screen.uns["provenance"]["checksum"] == known
    record = results / "sources" / f"{name}.h5ad.sha256"
    assert record.exists() == (name == "papalexi2021")
    names = set(screen.uns["perturbations"].index)
    if name == "papalexi2021":
        assert names == {"ATF2", "IFNGR1", "IFNGR2", "STAT5A", "NFKBIA", "UBE2L6"}
        assert screen.obs["perturbation"].astype(str).str.fullmatch(r"control|\w+g\d").all(), "obs keeps the guides"
    if name == "norman2019":
        split = pd.read_csv(next(results.glob("norman2019/splits/*/*/cells.tsv")), sep="\t", dtype=str)
        tested, seen = (set(split["condition"][split["split"].isin(parts)]) for parts in (["test"], ["train", "val"]))
        assert len(tested - seen) == 32
    if name.startswith("replogle"):
        assert screen.uns["provenance"]["missing_perturbed_genes"] > 0, "the file is smaller than the lists"
    if whole:
        page = (results / "report.html").read_text()
        figures = {path.stem for path in (results / "figures" / name).glob("*.png")}
        assert figures >= {"data_card", "scores", "bound", "masks", "effects", "curves", "worth", "expression"}
        assert all(f'id="{name}.{figure}"' in page for figure in figures)


@pytest.mark.parametrize("name", STUDIES)
def test_the_time_of_a_study_is_estimated_before_the_download(root, tmp_path, monkeypatch, name):
    study = read_study([root / "config" / "config.yaml", root / "config" / f"{name}.yaml"])
    monkeypatch.chdir(tmp_path)
    rate = {"step": 0.1, "validation": 1e-4, "cell": 1e-3, "condition": 1.0}
    (found,), unknown = estimate(study, device="cpu", rate=lambda *_: rate)
    assert unknown == [] and found.trainings in (5, 6) and found.left > 600


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_a_download_of_its_own(root, name):
    """Its source is a download that is verified; no path outside the repository, and no experiment of the papers."""
    study = read_study([root / "config" / "config.yaml", root / "config" / f"{name}.yaml"])
    papers = yaml.safe_load((root / "config" / "config.yaml").read_text())["experiments"]
    assert study.experiments == (name,) and name not in papers
    source = study.screens[name].source
    assert source.sort == "urls" and (source.checksum == "none") == (name == "papalexi2021") == (source.size is None)
    assert all(url.startswith("https://") for url in source.urls)
    assert study.pathvars.folder("results") == f"results/{name}"


def test_no_path_leads_out_of_the_repository(root):
    texts = [*root.glob("*.md"), *(root / "config").glob("*.*"), *(root / "docs").rglob("*.md")]
    assert len(texts) > 20
    assert [str(path) for path in texts if re.search(r"\.\./\.\./|\.\./shared", path.read_text())] == []

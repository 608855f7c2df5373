"""Miniature screens: synthetic source files in the exact format of the published ones, for the demo and the tests.

Counts are gamma-Poisson with log rates that are linear in a latent state. The state has a few dimensions for the cell
and separate dimensions for each pathway (Replogle) or program (Norman), which perturbations shift. Gene and guide names
are real, the cells are synthetic. The same arguments give the same bytes. Letters: n cells, G genes, L latent
dimensions, C conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from samsvae.errors import ConfigError
from samsvae.files import atomic
from samsvae.screens.norman import CONTROL, SEPARATOR
from samsvae.screens.replogle import CONTROL as NON_TARGETING

STATES = 3  # latent dimensions of the cell state

DENSITY = 0.12  # share of the genes that a latent dimension changes

DISPERSION = 4.0  # of the gamma: variance = mean + mean^2 / 4

RESPONDING = 0.85  # share of a perturbation's cells that respond

STATE_SD = 0.3  # of each dimension of the cell state

# Twelve genes of the screen, and sixteen of its pairs of them.
NORMAN_PAIRS = (
    "CBFA2T3+FEV",
    "CBFA2T3+POU3F2",
    "FOXA1+FOXA3",
    "FOXA1+FOXF1",
    "FOXA1+FOXL2",
    "FOXA1+HOXB9",
    "FOXA3+FOXF1",
    "FOXA3+FOXL2",
    "FOXA3+HOXB9",
    "FOXF1+FOXL2",
    "FOXF1+HOXB9",
    "FOXL2+FOXL2NB",
    "FOXL2+HOXB9",
    "FOXL2+POU3F2",
    "FOXL2+ZNF318",
    "PLK4+STIL",
)

NORMAN_GENES = tuple(sorted({gene for pair in NORMAN_PAIRS for gene in pair.split("+")}))

PROGRAMS = 8  # latent dimensions that genes shift in the Norman miniature


def replogle_source(
    path: str | Path,
    *,
    labels: str | Path,
    measured_genes: Sequence[str],
    other_genes: Sequence[str],
    seed: int = 0,
    n_targets: int = 50,
    cells_per_perturbation: int = 45,
    n_controls_in_file: int = 500,
    n_genes: int = 400,
    n_measured: int = 200,
    median_umi: float = 2000.0,
    effect_size: float = 1.0,
) -> None:
    """Write a miniature of K562_gwps_raw_singlecell_01.h5ad: dense float32 counts, and the same obs and var columns.

    labels: a TSV of guide pairs (gene, gene_id, sgID_AB, pathway, listed: whether the filter keeps the gene). The
    miniature has `n_targets` listed genes, spread evenly over the pathways and 'no pathway', and all genes that are not
    listed, whose cells the filter drops. Each pathway has two latent dimensions. cells_per_perturbation: mean number
    of cells; the spread is lognormal, and 25 is the least for the default. `n_measured` of the `n_genes` genes come
    from `measured_genes` (one symbol labels two genes), the others from `other_genes`. median_umi: total counts of a
    cell. effect_size: latent shift of a perturbation of strength 1, in log rate per unit loading; 0.6-1.0 resembles a
    good real screen.

    ConfigError if the lists have too few genes.
    """
    rng = np.random.default_rng(seed)
    table = pd.read_csv(labels, sep="\t", dtype=str, keep_default_na=False)
    pairs = _choose_pairs(table, n_targets)
    genes = _gene_names(rng, measured_genes, other_genes, n_genes, n_measured)
    loadings, effect = _pathway_effects(rng, pairs, n_genes, effect_size)
    effect += np.log(0.2) * (genes["gene_name"].to_numpy() == pairs["gene"].to_numpy()[:, None])  # knock-down

    sizes = _sizes(rng, len(pairs), cells_per_perturbation)
    guide = np.concatenate([np.repeat(np.arange(len(pairs)), sizes), np.full(n_controls_in_file, -1)])
    rng.shuffle(guide)
    effect = np.vstack([effect, np.zeros(n_genes)])  # row -1: non-targeting
    baseline = rng.normal(0, 1, n_genes) + genes.pop("measured").to_numpy()  # measured genes are higher
    counts = _counts(rng, baseline, loadings, effect[guide], median_umi)
    obs = _replogle_obs(rng, pairs, guide, counts.sum(1))
    _write(ad.AnnData(counts.astype(np.float32), obs, _replogle_var(genes, counts)), path)


def _pathway_effects(
    rng: np.random.Generator, pairs: pd.DataFrame, n_genes: int, effect_size: float
) -> tuple[np.ndarray, np.ndarray]:
    """Loadings (L, G), with two latent dimensions per pathway, and the effect of every guide pair (pairs, G), log rate.

    About half of the pairs also have a private effect outside the pathways.
    """
    pathways = sorted(set(pairs["pathway"]) - {""})
    loadings = _loadings(rng, STATES + 2 * len(pathways), n_genes)
    signs = rng.choice((-1.0, 1.0), (len(pathways), 2))
    strengths = rng.lognormal(0, 0.35, len(pairs)) * np.where(rng.random(len(pairs)) < 0.2, 0.25, 1.0)
    shift = np.zeros((len(pairs), len(loadings)))
    for i, pathway in enumerate(pairs["pathway"]):
        if pathway:
            p = pathways.index(pathway)
            shift[i, STATES + 2 * p : STATES + 2 * p + 2] = signs[p] * rng.uniform(0.8, 1.2, 2)
    private = _loadings(rng, len(pairs), n_genes) * 0.5 * (rng.random((len(pairs), 1)) < 0.5)
    return loadings, effect_size * strengths[:, None] * (shift @ loadings + private)


def _replogle_obs(rng: np.random.Generator, pairs: pd.DataFrame, guide: np.ndarray, umi: np.ndarray) -> pd.DataFrame:
    """obs of the published file; `guide` (n): row of `pairs`, -1 for non-targeting; `umi` (n): counts of a cell."""
    n = len(guide)

    def of_guide(column: str, control: str) -> np.ndarray:
        return np.array([*pairs[column], control], dtype=object)[guide]

    control_guides = [f"non-targeting_{i:05d}|non-targeting_{i + 1:05d}" for i in range(0, 40, 2)]
    control_pair = np.array(control_guides, dtype=object)[rng.integers(len(control_guides), size=n)]
    gem_group = rng.integers(1, 5, n)
    factor = rng.uniform(0.8, 1.2, n).astype(np.float32)
    gene = of_guide("gene", NON_TARGETING)
    return pd.DataFrame(
        {
            "gem_group": gem_group,
            "gene": pd.Categorical(gene),
            "gene_id": pd.Categorical(of_guide("gene_id", NON_TARGETING)),
            "transcript": pd.Categorical(np.where(guide < 0, NON_TARGETING, "P1P2")),
            "gene_transcript": pd.Categorical([f"{g}_P1P2" if g != NON_TARGETING else g for g in gene]),
            "sgID_AB": pd.Categorical(np.where(guide < 0, control_pair, of_guide("sgID_AB", ""))),
            "mitopercent": rng.uniform(0.02, 0.2, n).astype(np.float32),
            "UMI_count": umi.astype(np.float32),
            "z_gemgroup_UMI": ((umi - umi.mean()) / umi.std()).astype(np.float32),
            "core_scale_factor": factor,
            "core_adjusted_UMI_count": (umi / factor).astype(np.float32),
        },
        index=pd.Index([f"{b}-{g}" for b, g in zip(_barcodes(n), gem_group, strict=True)], name="cell_barcode"),
    )


def _replogle_var(genes: pd.DataFrame, counts: np.ndarray) -> pd.DataFrame:
    """var of the published file: names, constant places, and statistics of the counts (n, G)."""
    mean, sd = counts.mean(0), counts.std(0, ddof=1)
    start = np.arange(len(genes)) * 10_000
    return genes.assign(
        chr="chr1",
        start=start,
        end=start + 5_000,
        **{"class": "gene_version1"},
        strand="+",
        length=5_000,
        in_matrix=True,
        mean=mean,
        std=sd,
        cv=sd / np.maximum(mean, 1e-9),
        fano=sd**2 / np.maximum(mean, 1e-9),
    )


def norman_source(
    path: str | Path,
    *,
    gene_names: Sequence[str],
    seed: int = 0,
    cells_per_condition: int = 40,
    n_controls: int = 300,
    n_genes: int = 400,
    n_variable: int = 250,
    median_umi: float = 3000.0,
    effect_size: float = 1.0,
) -> None:
    """Write a miniature of the Norman file: X log1p CP10K, layers['counts'], 12 genes alone and in 16 pairs.

    Each gene shifts two of eight programs. The shift of a pair is the sum of both genes' shifts. Every second pair adds
    an interaction, of two types in turn: a shift of a program that neither gene shifts alone, or half of the first
    gene's shift subtracted. The first `n_genes` of `gene_names` are measured, and the `n_variable` genes with the
    largest variance are marked highly_variable.

    uns has two tables in log2 of the rate, averaged over all cells, responding or not: 'miniature_effects' (single
    genes and pairs x G), the effect on each gene, and 'miniature_truth' (pairs x G), the interaction, which is the
    effect of the pair minus the effects of its genes.

    ConfigError if there are fewer than `n_genes` gene names.
    """
    if len(set(gene_names)) < n_genes:
        raise ConfigError(f"n_genes: {n_genes} is not allowed; there are only {len(set(gene_names))} gene names.")
    rng = np.random.default_rng(seed)
    genes = list(dict.fromkeys(gene_names))[:n_genes]
    loadings = _loadings(rng, STATES + PROGRAMS, n_genes)
    single, interaction = _program_shifts(rng)
    shift = single | {pair: sum(single[g] for g in pair.split("+")) + interaction[pair] for pair in NORMAN_PAIRS}
    conditions = [CONTROL, *shift]
    effect = effect_size * np.array([np.zeros(len(loadings)), *shift.values()]) @ loadings  # (C, G)
    code = np.repeat(np.arange(len(conditions)), [n_controls] + [cells_per_condition] * len(shift))
    rng.shuffle(code)
    counts = _counts(rng, rng.normal(0, 1, n_genes), loadings, effect[code], median_umi)

    umi = counts.sum(1)
    x = np.log1p(1e4 * counts / umi[:, None]).astype(np.float32)
    marked = np.zeros(n_genes, bool)
    marked[np.argsort(-x.var(0), kind="stable")[:n_variable]] = True
    log2 = RESPONDING * effect / np.log(2)
    truth = RESPONDING * effect_size / np.log(2) * np.array(list(interaction.values())) @ loadings
    adata = ad.AnnData(
        sp.csr_matrix(x),
        _norman_obs(rng, np.array(conditions, dtype=object)[code], umi),
        pd.DataFrame({"highly_variable": marked}, index=pd.Index(genes, name="gene_symbols")),
        layers={"counts": sp.csr_matrix(counts.astype(np.float32))},
        uns={
            "miniature_truth": pd.DataFrame(truth, index=list(NORMAN_PAIRS), columns=genes),
            "miniature_effects": pd.DataFrame(log2[1:], index=conditions[1:], columns=genes),
        },
    )
    _write(adata, path)


def _program_shifts(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The latent shift (L) of every gene, and the interaction (L) of every pair: 0 for every second pair."""
    n_latent = STATES + PROGRAMS
    single = {}
    for gene in NORMAN_GENES:
        single[gene] = np.zeros(n_latent)
        programs = STATES + rng.choice(PROGRAMS, 2, replace=False)
        single[gene][programs] = rng.choice((-1.0, 1.0), 2) * rng.uniform(0.8, 1.2, 2)
    interaction = {pair: np.zeros(n_latent) for pair in NORMAN_PAIRS}
    for i, pair in enumerate(NORMAN_PAIRS[::2]):
        a, b = (single[gene] for gene in pair.split(SEPARATOR))
        if i % 2:
            interaction[pair] = -0.5 * a
        else:
            free = STATES + np.flatnonzero((a == 0)[STATES:] & (b == 0)[STATES:])
            interaction[pair][rng.choice(free)] = rng.choice((-1.0, 1.0))
    return single, interaction


def _norman_obs(rng: np.random.Generator, condition: np.ndarray, umi: np.ndarray) -> pd.DataFrame:
    """obs of the published file; `condition` (n): labels; `umi` (n): counts of a cell."""
    n = len(condition)
    targets = [label.split(SEPARATOR) if label != CONTROL else [] for label in condition]
    gemgroup = rng.integers(1, 9, n)
    return pd.DataFrame(
        {
            "guide_identity": pd.Categorical([_guide_identity(genes_of) for genes_of in targets]),
            "read_count": umi * 13,
            "UMI_count": umi,
            "coverage": np.full(n, 13.0),
            "gemgroup": gemgroup,
            "good_coverage": np.ones(n, bool),
            "guide_ids": pd.Categorical([",".join(genes_of) for genes_of in targets]),
        }
        | {f"guide_{g}": np.array([g in genes_of for genes_of in targets], np.int64) for g in NORMAN_GENES}
        | {"perturbation_name": pd.Categorical(condition)},
        index=pd.Index([f"{b}-{g}" for b, g in zip(_barcodes(n), gemgroup, strict=True)], name="cell_barcode"),
    )


def _choose_pairs(table: pd.DataFrame, n_targets: int) -> pd.DataFrame:
    """The guide pairs of `n_targets` listed genes, taken in turn from each pathway and 'no pathway', and of all
    unlisted genes."""
    listed = table[table["listed"] == "yes"].drop_duplicates("gene")
    if n_targets > len(listed):
        raise ConfigError(f"n_targets: {n_targets} is not allowed; the labels have only {len(listed)} listed genes.")
    turn = listed.groupby("pathway").cumcount()
    chosen = listed["gene"][turn.sort_values(kind="stable").index[:n_targets]]
    return table[table["gene"].isin(chosen) | (table["listed"] == "no")].reset_index(drop=True)


def _gene_names(rng, measured: Sequence[str], other: Sequence[str], n_genes: int, n_measured: int) -> pd.DataFrame:
    """gene_name and measured, indexed by synthetic gene ids, in random order; the last measured symbol labels two
    genes."""
    measured = list(dict.fromkeys(measured))
    other = [name for name in dict.fromkeys(other) if name not in set(measured)]
    if n_measured > len(measured) + 1 or n_genes - n_measured > len(other):
        raise ConfigError(
            f"n_genes: {n_genes} with n_measured: {n_measured} is not allowed; the lists have only "
            f"{len(measured)} measured and {len(other)} other genes."
        )
    chosen = list(rng.permutation(measured)[: n_measured - 1])
    names = np.array([*chosen, chosen[-1], *rng.permutation(other)[: n_genes - n_measured]], dtype=object)
    order = rng.permutation(n_genes)
    ids = pd.Index([f"ENSG{i:011d}" for i in range(1, n_genes + 1)], name="gene_id")
    return pd.DataFrame({"gene_name": names[order], "measured": order < n_measured}, index=ids)


def _loadings(rng, rows: int, n_genes: int) -> np.ndarray:
    """(rows, G): log rate of a gene per unit of a latent dimension, N(0, 1) for 12 % of the genes, 0 for the others."""
    return rng.normal(0, 1, (rows, n_genes)) * (rng.random((rows, n_genes)) < DENSITY)


def _sizes(rng, n: int, mean: float) -> np.ndarray:
    """Number of cells of each perturbation: lognormal with mean `mean`, at least 5/9 of it."""
    spread = 0.3
    sizes = mean * rng.lognormal(-(spread**2) / 2, spread, n)
    return np.maximum(np.round(sizes), np.ceil(mean * 5 / 9)).astype(int)


def _counts(rng, baseline: np.ndarray, loadings: np.ndarray, effect: np.ndarray, median_umi: float):
    """Gamma-Poisson counts (n, G); `effect` (n, G) is added to the log rates of the cells that respond."""
    n = len(effect)
    state = rng.normal(0, STATE_SD, (n, STATES)) @ loadings[:STATES]
    responds = rng.random((n, 1)) < RESPONDING
    log_rate = baseline + state + effect * responds
    share = np.exp(log_rate - log_rate.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    mean = share * median_umi * rng.lognormal(0, 0.3, (n, 1))
    return rng.poisson(rng.gamma(DISPERSION, mean / DISPERSION))


def _guide_identity(genes: list[str]) -> str:
    """The published label of the guides that target these genes (0, 1 or 2)."""
    first, second = (*genes, "NegCtrl0", "NegCtrl0")[:2]
    pair = f"{first}_{second}" if genes else "NegCtrl10_NegCtrl0"
    return f"{pair}__{pair}"


def _barcodes(n: int) -> list[str]:
    """n distinct sequences of 16 bases: the row number in base 4."""
    return ["".join("ACGT"[(i >> 2 * k) & 3] for k in reversed(range(16))) for i in range(n)]


def _write(adata: ad.AnnData, path: str | Path) -> None:
    with atomic(path) as temporary:
        adata.write_h5ad(temporary)

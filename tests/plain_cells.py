"""Scores of predicted cells of the honest protocol (S6, S7, S9) in plain numpy, scipy and scikit-learn.

No function of the package has a part in them. Letters: n cells, G genes, D tested genes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import norm, rankdata, tiecorrect
from sklearn.metrics import average_precision_score, matthews_corrcoef

#: The scores of differential expression, in the order of `expression`.
EXPRESSION = ("auprc", "auprc_chance", "sign", "mcc", "jaccard", "overlap20", "overlap50", "overlap100")

CELL_METRICS = ("energy_share", "variance_ratio", *EXPRESSION)

Tests = tuple[np.ndarray, np.ndarray, np.ndarray]  # z, q and difference of means, (D,) each


def axes_of(y: np.ndarray) -> np.ndarray:
    """The 20 components of training cells (n, G): (G, 20)."""
    return np.linalg.svd(y - y.mean(0), full_matrices=False)[2][:20].T


def energy(a: np.ndarray, b: np.ndarray) -> float:
    within = [cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (a, b)]
    return 2 * cdist(a, b).mean() - sum(within)


def wilcoxon(y: np.ndarray, control: np.ndarray) -> Tests:
    """Tests of the genes of cells (n, D) against those of control cells."""
    both, n, m = np.concatenate([y, control]), len(y), len(control)
    rank = rankdata(both, axis=0)
    ties = np.array([tiecorrect(column) for column in rank.T])
    spread = np.sqrt(ties * n * m * (n + m + 1) / 12)
    z = np.divide(rank[:n].sum(0) - n * (n + m + 1) / 2, spread, out=np.zeros(len(spread)), where=spread > 0)
    p = 2 * norm.sf(np.abs(z))
    order = np.argsort(p)
    q = np.empty(len(p))
    q[order] = np.minimum.accumulate((p[order] * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
    return z, np.minimum(q, 1), y.mean(0) - control.mean(0)


def expression(truth: Tests, found: Tests, keep: np.ndarray) -> dict[str, float]:
    """Agreement of two tests of a condition over the genes ``keep`` (D,) bool."""
    (z, q, d), (z2, q2, d2) = ([values[keep] for values in tests] for tests in (truth, found))
    true, other, n = q < 0.05, q2 < 0.05, len(z)
    mixed = 0 < true.sum() < n
    tops = [np.argsort(-np.abs(values), kind="stable") for values in (z, z2)]
    either = (true | other).sum()
    scores = [
        average_precision_score(true, np.abs(z2)) if mixed else np.nan,
        true.mean() if mixed else np.nan,
        (np.sign(d) == np.sign(d2))[true].mean() if true.sum() >= 10 else np.nan,
        matthews_corrcoef(true, other) if mixed else np.nan,
        (true & other).sum() / either if either else 1.0,
        *(len({*tops[0][:k]} & {*tops[1][:k]}) / k if n >= k else np.nan for k in (20, 50, 100)),
    ]
    return dict(zip(EXPRESSION, scores, strict=True))


class PlainCells:
    """Cells of a screen: y (n, G), codes into ``names`` (0 the control), and the targets of each condition."""

    def __init__(self, y: np.ndarray, codes: np.ndarray, names: list[str], targets: list[list[int]], split: np.ndarray):
        self.y, self.codes, self.names, self.split = y, codes, names, split
        train = split == "train"
        counts = (y[train & (codes == 0)] > 0).sum(0)
        self.genes = np.flatnonzero(counts >= max(3, 0.01 * (train & (codes == 0)).sum()))
        self.keep = [~np.isin(self.genes, genes) for genes in targets]
        self.place = y @ axes_of(y[train])
        self.rows = {part: [np.flatnonzero((split == part) & (codes == c)) for c in range(len(names))]
                     for part in ("train", "test")}  # fmt: skip

    def test(self, rows: np.ndarray, controls: np.ndarray) -> Tests:
        return wilcoxon(self.y[rows][:, self.genes], self.y[controls][:, self.genes])

    def others(self, c: int, number: int, cells: np.ndarray, repeat: int) -> np.ndarray:
        """Random cells (of these rows) of other perturbations."""
        other = cells[(self.codes[cells] != c) & (self.codes[cells] != 0)]
        rng = np.random.default_rng([0, repeat, zlib.crc32(self.names[c].encode())])
        return rng.choice(other, min(number, len(other)), replace=False)

    def baselines(self, scored: Iterable[int]) -> dict[tuple[str, int], dict[str, tuple[float, float]]]:
        """(baseline, condition) -> metric -> value and weight."""
        test, train = self.rows["test"], self.rows["train"]
        every = np.sort(np.concatenate(train))
        found = {}
        for c in scored:
            truth, weight = self.test(test[c], test[0]), energy(self.place[train[0]], self.place[test[c]])
            spread = self.y[test[c]].var(0, ddof=1).sum()
            ours = {
                "no_change": train[0],
                "mean_of_perturbations": self.others(c, len(test[c]), every, 0),
                "train_mean": train[c],
            }
            for name, rows in ours.items():
                if len(rows) < 2:
                    continue
                ratio = self.y[rows].var(0, ddof=1).sum() / spread
                found[name, c] = {
                    "energy_share": (energy(self.place[rows], self.place[test[c]]), weight),
                    "variance_ratio": (np.log2(ratio), 1.0),
                    **with_weight(expression(truth, self.test(rows, train[0]), self.keep[c])),
                }
            found["ceiling", c] = {"energy_share": (0.0, weight)}
        return found

    def halves(self, scored: Iterable[int]) -> dict[int, dict[str, np.ndarray]]:
        """Condition -> metric -> scores of a replicate and of other perturbed cells, (5, 2)."""
        found: dict[int, dict[str, list]] = {c: {} for c in scored}
        for r in range(5):
            a, b = [], []
            for c, name in enumerate(self.names):
                here = np.flatnonzero(self.codes == c)
                order = np.random.default_rng([0, r, zlib.crc32(name.encode())]).permutation(len(here))
                half = len(here) // 2
                a.append(here[order[:half]])
                b.append(here[order[half : 2 * half]])
            every = np.sort(np.concatenate(b))
            for c in found:
                other = self.others(c, len(b[c]), every, r)
                truth = self.test(a[c], a[0])
                pair = []
                for rows in (b[c], other):
                    scores = {"energy_share": energy(self.place[rows], self.place[a[c]])}
                    pair.append(scores | expression(truth, self.test(rows, b[0]), self.keep[c]))
                for metric in pair[0]:
                    found[c].setdefault(metric, []).append([scores[metric] for scores in pair])
        return {c: {metric: np.array(values) for metric, values in each.items()} for c, each in found.items()}


def with_weight(scores: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    return {name: (value, 1.0) for name, value in scores.items()}

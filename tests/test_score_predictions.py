"""The command score: predictions of any method get the scores, verdicts and figure of the honest protocol."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from small_files import write_files
from test_high_moi import simulate
from test_honest import CONTROL, MADE, SPLIT

from samsvae.cli import main
from samsvae.errors import DataError
from samsvae.evaluation.truth import truth_of
from samsvae.screens.custom import screen_of
from samsvae.screens.pack import arrays_of
from samsvae.study.code_digest import scoring_rules
from samsvae.study.predictions import read_cells, read_effects, with_controls
from samsvae.study.score_predictions import score_predictions
from samsvae.tables import read


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The screen of test_honest and its split as files."""
    folder = tmp_path_factory.mktemp("screen")
    arrays, split = write_files(folder, MADE)
    table = pd.DataFrame({"cell": MADE.cells, "condition": MADE.conditions[MADE.condition], "split": SPLIT})
    table.to_csv(split, sep="\t", index=False)
    return str(arrays), str(split)


@pytest.fixture(scope="module")
def truth():
    return truth_of(MADE, SPLIT)


def predictions(path, values: np.ndarray, genes=None, conditions=None) -> str:
    obs = pd.DataFrame(index=list(MADE.conditions if conditions is None else conditions))
    var = pd.DataFrame(index=list(MADE.genes if genes is None else genes))
    ad.AnnData(values, obs, var).write_h5ad(path)
    return str(path)


def test_a_perfect_and_a_useless_prediction(files, truth, tmp_path, capsys):
    order = np.random.default_rng(0).permutation(len(MADE.genes))
    for name, values, verdict in (
        ("perfect", np.nan_to_num(truth.test.delta), "better than every baseline"),
        ("useless", np.zeros_like(truth.test.delta), "below"),
    ):
        path = predictions(tmp_path / f"{name}.h5ad", values[:, order], genes=MADE.genes[order])
        out = tmp_path / name
        assert main(["score", path, "--arrays", files[0], "--split", files[1], "--out", str(out)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert not any(line.startswith("energy_share") for line in lines)
        assert any(line.startswith(f"nmse_centred, seen conditions: {verdict}") for line in lines)
        assert lines[-1] == str(out / "worth.png") and (out / "worth.png").stat().st_size > 20_000
        reasons = read(out / "worth.tsv").set_index(["model", "metric", "set"])["reason"]
        assert reasons[("prediction", "energy_share", "seen")] == "the file predicts effects, no cells"
        worth = read(out / "worth.tsv").set_index(["model", "metric", "set"])["value"]
        assert worth[("prediction", "discrimination", "seen")] == (1.0 if name == "perfect" else 0.5)
        assert np.isfinite(worth[("shrunk", "nmse_centred", "seen")])
        table = read(out / "worth.tsv")
        assert set(table["rules"]) == {scoring_rules()}
        no_cells = table[(table["model"] == "prediction") & (table["metric"] == "energy_share")]
        assert len(no_cells) and set(no_cells["reason"]) == {"the file predicts effects, no cells"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"genes": ["x", *MADE.genes[1:]]}, "var lacks 1 genes of the screen"),
        ({"conditions": ["x", *MADE.conditions[1:]]}, "conditions that the screen lacks: 'x'"),
        ({"genes": [MADE.genes[1], *MADE.genes[1:]]}, "not unique"),
        ({"value": np.inf}, "X has infinite values"),
        ({"conditions": [f"cell{i}" for i in range(len(MADE.conditions))]}, "If rows are cells, name .* with --cells"),
    ],
)
def test_what_does_not_fit_is_named(truth, tmp_path, change, said):
    values = np.full(truth.test.delta.shape, change.pop("value", 0.0))
    with pytest.raises(DataError, match=said):
        with pytest.warns(UserWarning) if "unique" in said else np.errstate():
            path = predictions(tmp_path / "p.h5ad", values, **change)
        read_effects(path, MADE, MADE.conditions)


def test_a_file_without_predictions_of_scored_conditions_is_named(files, truth, tmp_path):
    path = predictions(tmp_path / "p.h5ad", np.full(truth.test.delta.shape, np.nan))
    with pytest.raises(DataError, match=r"predicts none of the 7 conditions that are scored"):
        score_predictions(path, *files, tmp_path / "out")


def test_a_screen_without_a_control(tmp_path, capsys):
    """Rows are perturbations: the simulated effects beat every baseline, and no score is against a control."""
    adata, true = simulate(0, cells=600, perturbations=10, genes=40)
    screen = arrays_of(screen_of(adata, perturbations="obsm:guides", control=None))
    split = np.random.default_rng(0).choice(["train", "test"], len(screen.cells), p=[0.3, 0.7])
    arrays, cells = map(str, write_files(tmp_path, screen, split))
    order = np.random.default_rng(1).permutation(10)
    names = screen.perturbations[order]
    path, out = predictions(tmp_path / "p.h5ad", true[order], screen.genes, names), tmp_path / "out"
    command = ["--arrays", arrays, "--split", cells, "--out", str(out)]
    assert main(["score", path, *command]) == 0
    *lines, picture = capsys.readouterr().out.splitlines()
    assert picture == str(out / "worth.png")
    assert "nmse_centred, seen conditions: better than every baseline" in lines
    assert not any("_control" in line or "undecided" in line for line in lines)
    worth = read(out / "worth.tsv")
    value = worth[worth["set"] == "seen"].set_index(["model", "metric"])["value"]
    assert value["prediction", "discrimination"] > 0.95 and value["prediction", "nmse_centred"] < 0.2
    against = worth[worth["metric"].str.endswith("_control") & (worth["model"] == "prediction")]
    assert len(against) and set(against["reason"]) == {"the screen has no control"}
    assert main(["score", path, "--cells", "target", *command]) == 1
    assert "has no control, so cells are not scored; give effects of single perturb" in capsys.readouterr().err
    predictions(path, true, screen.genes, ["p00+p01", *names[1:]])
    assert main(["score", path, *command]) == 1
    assert "conditions that the screen lacks: 'p00+p01'" in capsys.readouterr().err
    write_files(tmp_path, screen, np.full(len(split), "train"))
    with pytest.raises(DataError, match=r"cells\.tsv: 0 cells are too few for a regression on 10 perturbations"):
        score_predictions(path, arrays, cells, out)


# ---- cells


def cells_file(path, rows: np.ndarray, *, X=None, genes=None, **obs) -> str:
    """Some cells of the screen as predicted cells; ``obs``: columns that are changed."""
    labels = pd.DataFrame({"target": MADE.conditions[MADE.condition[rows]]} | obs, index=[f"c{i}" for i in rows])
    var = pd.DataFrame(index=MADE.genes if genes is None else genes)
    ad.AnnData(MADE.counts[rows] if X is None else X, labels, var).write_h5ad(path)
    return str(path)


def test_training_cells_as_predicted_cells_score_like_the_baseline(files, tmp_path, capsys):
    rows = np.flatnonzero(SPLIT == "train")
    path, out = cells_file(tmp_path / "a.h5ad", rows), tmp_path / "out"
    assert main(["score", path, "--cells", "target", "--arrays", files[0], "--split", files[1], "--out", str(out)]) == 0
    assert any(line.startswith("energy_share, seen conditions: ") for line in capsys.readouterr().out.splitlines())
    scores = read(out / "worth.tsv").set_index(["metric", "set"])
    ours, theirs = (scores[scores["model"] == name] for name in ("prediction", "train_mean"))
    seen = [key for key in ours.index if key[1] == "seen"]
    assert len(seen) > 20 and {"nmse_centred", "energy_share", "auprc"} <= {metric for metric, _ in seen}
    for column in ("value", "n_conditions"):
        np.testing.assert_allclose(ours.loc[seen, column], theirs.loc[seen, column], rtol=1e-9)


def test_cells_in_any_order_sparse_and_without_controls(tmp_path):
    """The training controls stand in for those of the method."""
    rows = np.flatnonzero(SPLIT == "train")
    control = MADE.condition[rows] == CONTROL
    rows = np.r_[rows[~control], rows[control]]
    genes = np.random.default_rng(0).permutation(len(MADE.genes))
    counts = csr_matrix(MADE.counts[rows[: (~control).sum()]][:, genes])
    path = cells_file(tmp_path / "b.h5ad", rows[: (~control).sum()], X=counts, genes=MADE.genes[genes])
    found = with_controls(read_cells(path, MADE, "target"), MADE, SPLIT, CONTROL)
    for name in ("counts", "library", "condition"):
        np.testing.assert_array_equal(getattr(found, name), getattr(MADE, name)[rows])
    own = read_cells(cells_file(tmp_path / "c.h5ad", rows), MADE, "target")
    assert with_controls(own, MADE, SPLIT, CONTROL) is own


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"column": "targets"}, "obs has no column 'targets' with conditions. Did you mean 'target'"),
        ({"target": ["x", *["gene3"] * 9]}, "conditions that the screen lacks: 'x'"),
        ({"target": [None, *["gene3"] * 9]}, "obs column 'target' is empty for 1 cells"),
        ({"target": ["gene7_2", *["gene3"] * 9]}, "condition 'gene7_2' has a single cell"),
        ({"genes": ["x", *MADE.genes[1:]]}, "var lacks 1 genes of the screen"),
        ({"X": np.full((10, 40), -1.0)}, "X has negative, infinite or missing values"),
        ({"X": np.full((10, 40), np.nan)}, "X has negative, infinite or missing values"),
    ],
)
def test_cells_that_do_not_fit_are_named(tmp_path, change, said):
    column = change.pop("column", "target")
    path = cells_file(tmp_path / "p.h5ad", np.arange(10), **change)
    with pytest.raises(DataError, match=said):
        read_cells(path, MADE, column)


def test_cells_need_a_screen_of_counts(tmp_path):
    path = cells_file(tmp_path / "p.h5ad", np.arange(10))
    with pytest.raises(DataError, match="real values, so cells are not scored; give effects, without --cells"):
        read_cells(path, replace(MADE, counts=MADE.counts.astype(np.float32)), "target")


def test_a_wrong_file_is_one_sentence(files, tmp_path, capsys):
    assert main(["score", str(tmp_path / "no.h5ad"), "--arrays", files[0], "--split", files[1]]) == 1
    assert "no.h5ad" in capsys.readouterr().err

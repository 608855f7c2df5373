"""The command score: predictions of any method get the scores, verdicts and figure of the honest protocol."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from small_files import write_files
from test_honest import MADE, SPLIT

from samsvae.cli import main
from samsvae.errors import DataError
from samsvae.evaluation.truth import truth_of
from samsvae.study.code_digest import scoring_rules
from samsvae.study.score_predictions import read_predictions
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
        assert any(line.startswith(f"nmse_centred, seen conditions: {verdict}") for line in lines)
        assert lines[-1] == str(out / "worth.png") and (out / "worth.png").stat().st_size > 20_000
        worth = read(out / "worth.tsv").set_index(["model", "metric", "set"])["value"]
        assert worth[("prediction", "discrimination", "seen")] == (1.0 if name == "perfect" else 0.5)
        assert np.isfinite(worth[("shrunk", "nmse_centred", "seen")])
        assert set(read(out / "worth.tsv")["rules"]) == {scoring_rules()}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"genes": ["x", *MADE.genes[1:]]}, "var lacks 1 genes of the screen"),
        ({"conditions": ["x", *MADE.conditions[1:]]}, "conditions that the screen lacks: 'x'"),
        ({"genes": [MADE.genes[1], *MADE.genes[1:]]}, "not unique"),
        ({"value": np.inf}, "X has infinite values"),
        ({"value": np.nan}, "predicts none of the"),
    ],
)
def test_what_does_not_fit_is_named(truth, tmp_path, change, said):
    values = np.full(truth.test.delta.shape, change.pop("value", 0.0))
    with pytest.raises(DataError, match=said):
        with pytest.warns(UserWarning) if "unique" in said else np.errstate():
            path = predictions(tmp_path / "p.h5ad", values, **change)
        read_predictions(path, MADE, truth)


def test_a_wrong_file_is_one_sentence(files, tmp_path, capsys):
    assert main(["score", str(tmp_path / "no.h5ad"), "--arrays", files[0], "--split", files[1]]) == 1
    assert "no.h5ad" in capsys.readouterr().err

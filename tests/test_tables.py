"""Tables between rules: written and read again, and collected over many runs."""

from __future__ import annotations

import json
import os

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from samsvae.errors import DataError
from samsvae.evaluation.collect import PATHWAY, collect_histories, collect_scores
from samsvae.files import atomic, write_json, write_table
from samsvae.matrices import read_h5ad, write_h5ad
from samsvae.study.cost import collect_cost
from samsvae.tables import read, write

# ---- reading and writing -------------------------------------------------------------------------------------------


def test_labels_stay_text_and_numbers_numbers(tmp_path):
    table = pd.DataFrame(
        {
            "run": ["000", "1e3", "None"],
            "condition": ["000", "007", "NA"],
            "gene": ["NaN", "nan", "MARCH1"],
            "cell": ["1", "2", "3"],
            "model": ["vae", "null", "x"],
            "split": ["test", "NA", "all"],
            "seed": [0, 1, 2],
            "value": [0.1, np.nan, -1234.56789],
        }
    )
    for number, writer in enumerate((write, lambda t, path: write_table(t.to_dict("records"), path))):
        writer(table, path := tmp_path / f"{number}.tsv")
        pd.testing.assert_frame_equal(read(path), table, check_exact=False, rtol=1e-8)
    assert (tmp_path / "0.tsv").read_bytes() == (tmp_path / "1.tsv").read_bytes()


def test_numbers_keep_nine_digits(tmp_path):
    values = [1 / 3, 1e-12 / 3, 12345678.9, 0.0, -2e30 / 3]
    for path, writer in ((tmp_path / "a", write), (tmp_path / "b", lambda t, p: write_table(t.to_dict("records"), p))):
        writer(pd.DataFrame({"value": values}), path)
        np.testing.assert_allclose(read(path)["value"], values, rtol=5e-9)


def test_a_frame_with_an_index_and_fewer_digits(tmp_path):
    """Tables next to figures have the same format, but an index and 6 digits."""
    table = pd.DataFrame({"x": [1 / 3, np.nan], "name": ["a\tb", ""]}, index=["r1", "r2"])
    write(table, tmp_path / "t.tsv", digits=6, index_label="row")
    assert (tmp_path / "t.tsv").read_bytes() == b'row\tx\tname\nr1\t0.333333\t"a\tb"\nr2\t\t\n'


def test_a_table_of_rows_by_hand(tmp_path):
    rows = [{"run": "a b", "flag": True, "n": 3, "x": 0.5, "none": None}, {"run": "c", "flag": False, "n": 4, "x": 1e9,
             "none": float("nan")}]  # fmt: skip
    write_table(rows, tmp_path / "t.tsv")
    assert (tmp_path / "t.tsv").read_text() == "run\tflag\tn\tx\tnone\na b\tTrue\t3\t0.5\t\nc\tFalse\t4\t1e+09\t\n"


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe\x00a\x00\t", b"a\tb\n1\t2\t3\n4\t5\t6\t7\n"])
def test_files_that_are_no_tables(tmp_path, content):
    path = tmp_path / "t.tsv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.tsv: not a readable table"):
        read(path)


def test_json_has_sorted_keys_and_ends_with_a_line(tmp_path):
    write_json({"b": [1, {"d": 2, "c": None}], "a": "x"}, tmp_path / "new" / "a.json")
    text = (tmp_path / "new" / "a.json").read_text()
    assert json.loads(text) == {"a": "x", "b": [1, {"c": None, "d": 2}]}
    assert text.index('"a"') < text.index('"b"') < text.index('"c"') < text.index('"d"') and text.endswith("}\n")


def test_writers_leave_the_old_file_if_they_fail(tmp_path):
    path = tmp_path / "a.json"
    write_json({"a": 1}, path)
    with pytest.raises(TypeError):
        write_json({"a": object()}, path)
    with pytest.raises(FileNotFoundError), atomic(path):
        pass  # nothing was written
    assert json.loads(path.read_text()) == {"a": 1} and [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_matrices_round_trip_to_the_same_bytes(tmp_path):
    matrix = ad.AnnData(
        np.array([[0.5, np.nan], [1.0, 2.0]]),
        pd.DataFrame({"n_test": [0, 3]}, index=["000", "A+B"]),
        pd.DataFrame(index=["g1", "g2"]),
        layers={"train": np.eye(2)},
        uns={"reference": "", "members": np.array([[0, -1], [0, 1]])},
    )
    for name in ("one", "two"):
        write_h5ad(matrix, tmp_path / name / f"{name}.h5ad")
    assert (tmp_path / "one/one.h5ad").read_bytes() == (tmp_path / "two/two.h5ad").read_bytes()
    found = read_h5ad(tmp_path / "one/one.h5ad")
    np.testing.assert_array_equal(found.X, matrix.X)
    np.testing.assert_array_equal(found.layers["train"], np.eye(2))
    assert found.obs_names.tolist() == ["000", "A+B"] and found.uns["reference"] == ""
    assert np.asarray(found.uns["members"]).tolist() == [[0, -1], [0, 1]]


@pytest.mark.parametrize("content", [None, b"", b"no matrix"])
def test_files_that_are_no_matrices(tmp_path, content):
    path = tmp_path / "m.h5ad"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"m\.h5ad: not a readable h5ad file"):
        read_h5ad(path)


# ---- scores of many runs -------------------------------------------------------------------------------------------


@pytest.fixture
def grid():
    """Two data sets, one of them with two splits; a run of the row 'sams' and two of 'cpa'."""
    return pd.DataFrame(
        {
            "run": ["000", "cpa-1", "cpa-2"],
            "model": ["sams", "cpa", "cpa"],
            "method": ["SAMS-VAE", "CPA-VAE", "CPA-VAE"],
            "inference": ["corr", "mf", "mf"],
            "mask_prior": [0.1, np.nan, np.nan],
            "split_seed": [0, 0, 1],
            "seed": [0, 7, 7],
            "dataset": ["d", "d", "d"],
            "split_name": ["random-split0", "random-split0", "random-split1"],
        }
    )


def score_file(folder, run, value, **more):
    path = folder / "e" / "runs" / run / "scores.tsv"
    rows = [
        {"run": run, "protocol": "published", "metric": "iwelbo", "split": "val", "value": value},
        {"run": run, "protocol": "held-out", "metric": "ate_r2", "split": "test", "value": float("nan")},
    ]
    write_table([row | more for row in rows], path)
    return str(path)


def test_scores_get_the_columns_of_the_grid(grid, tmp_path):
    files = [score_file(tmp_path, run, value) for run, value in (("cpa-2", -3.0), ("000", -1.0))]
    found = collect_scores(grid, files, [], [])
    assert list(found.columns) == [*grid.columns, "protocol", "metric", "split", "value"]
    expected = pd.DataFrame(
        {
            "run": ["cpa-2", "cpa-2", "000", "000"],
            "model": ["cpa", "cpa", "sams", "sams"],
            "mask_prior": [np.nan, np.nan, 0.1, 0.1],
            "split_seed": [1, 1, 0, 0],
            "metric": ["iwelbo", "ate_r2"] * 2,
            "value": [-3.0, np.nan, -1.0, np.nan],
        }
    )
    pd.testing.assert_frame_equal(found[list(expected.columns)], expected, check_dtype=False)
    assert found["value"].dtype == float  # a NaN in the file does not turn the column into text


def test_scores_by_different_rules_are_not_put_together(grid, tmp_path):
    files = [score_file(tmp_path, run, 1.0, rules="00000000001e") for run in ("cpa-2", "000")]
    found = collect_scores(grid, files, [], [])
    assert list(found.columns)[-2:] == ["value", "rules"] and set(found["rules"]) == {"00000000001e"}  # no number
    for other, said in (("00000000002e", "00000000002e"), ("", "unknown")):
        score_file(tmp_path, "000", 1.0, rules=other)
        with pytest.raises(
            DataError, match=rf"'cpa-2' and '000' were made by different rules \(00000000001e and {said}"
        ):
            collect_scores(grid, files, [], [])


def test_pathway_accuracies_become_scores_of_their_run(grid, tmp_path):
    path = tmp_path / "e" / "pathways" / "batch.tsv"
    rows = [
        ("000", "mask", "knn", "accuracy", 0.5),
        ("000", "embedding", "logistic", "balanced_accuracy", 0.25),
        ("not in the grid", "mask", "knn", "accuracy", 0.75),  # a preview has fewer runs than the job had
    ]
    write_table([dict(zip((*PATHWAY, "mean"), row, strict=True)) for row in rows], path)
    found = collect_scores(grid, [score_file(tmp_path, "000", -1.0)], [str(path)], [])
    rows = found[found["metric"].str.contains("pathway")]
    assert rows[["run", "model", "protocol", "metric", "split", "value"]].to_numpy().tolist() == [
        ["000", "sams", "published", "mask_pathway_accuracy/knn", "all", 0.5],
        ["000", "sams", "published", "embedding_pathway_balanced_accuracy/logistic", "all", 0.25],
    ]


def test_baselines_get_the_values_that_all_runs_of_their_split_share(grid, tmp_path):
    files = []
    for split, value in (("random-split0", 0.25), ("random-split1", 0.5)):
        path = tmp_path / "e" / "splits" / "d" / split / "baselines.tsv"
        row = {"model": "additive", "protocol": "published", "metric": "ate_pearson", "split": "all", "value": value}
        write_table([row], path)
        files.append(str(path))
    found = collect_scores(grid, [score_file(tmp_path, "000", -1.0)], [], files)
    first, second = found[found["method"] == "baseline"].to_dict("records")
    assert (first["run"], first["model"], first["inference"]) == ("additive", "additive", "")
    assert (first["value"], first["split_seed"], first["dataset"]) == (0.25, 0, "d")
    assert (second["value"], second["split_seed"], second["split_name"]) == (0.5, 1, "random-split1")
    assert np.isnan(first["mask_prior"]) and np.isnan(first["seed"])  # the two runs of that split differ in these
    assert second["seed"] == 7 and np.isnan(second["mask_prior"])


def test_a_run_that_is_twice_in_the_grid_is_an_error(grid, tmp_path):
    doubled = pd.concat([grid, grid.iloc[:1]])
    with pytest.raises(pd.errors.MergeError):
        collect_scores(doubled, [score_file(tmp_path, "000", -1.0)], [], [])


def test_histories_and_cost(grid, tmp_path):
    for run, steps in (("cpa-1", 4), ("000", 9)):
        rows = [{"run": run, "step": s, "epoch": s, "train_loss": 1.0 / s, "val_loss": 2.0} for s in (1, steps)]
        write_table(rows, tmp_path / run / "history.tsv")
        record = dict.fromkeys(["device", "seconds", "steps_per_second", "peak_memory_mb", "threads", "torch"], 1)
        write_json(record | {"run": run, "steps": steps, "parameters": 10, "config": {}}, tmp_path / run / "run.json")
    found = collect_histories(grid, [tmp_path / run / "history.tsv" for run in ("cpa-1", "000")])
    assert found[["run", "model", "step"]].to_numpy().tolist() == [
        ["cpa-1", "cpa", 1], ["cpa-1", "cpa", 4], ["000", "sams", 1], ["000", "sams", 9],
    ]  # fmt: skip
    cost = collect_cost(grid, [tmp_path / run / "run.json" for run in ("cpa-1", "000")], {})
    assert cost[["run", "method", "steps", "parameters"]].to_numpy().tolist() == [
        ["cpa-1", "CPA-VAE", 4, 10], ["000", "SAMS-VAE", 9, 10],
    ]  # fmt: skip


def test_the_cost_has_what_snakemake_measured_of_the_job(grid, tmp_path):
    """Runs a and b share a job; 000 shared it too but then had one of its own, too short to measure; cpa-1 has none."""
    runs = ["a", "b", "000", "cpa-1"]
    grid = pd.concat([grid, grid.iloc[[0, 0]].assign(run=["a", "b"])], ignore_index=True)
    record = dict.fromkeys(
        ["device", "steps", "seconds", "steps_per_second", "peak_memory_mb", "parameters", "threads", "torch"], 1
    )
    for run in runs:
        write_json(record | {"run": run}, tmp_path / f"{run}.json")
    head = "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
    (tmp_path / "together").mkdir()
    (tmp_path / "together" / "x.0.tsv").write_text(head + "90.5\t0:01:30\t399.07\t872\t290\t320\t0\t1\t50\t46.5\n")
    (tmp_path / "000.tsv").write_text(head + "0.2\t0:00:00\tNA\tNA\tNA\tNA\tNA\tNA\tNA\tNA\n")
    os.utime(tmp_path / "together" / "x.0.tsv", (1, 1))
    benchmarks = {run: [tmp_path / f"{run}.tsv", tmp_path / "together" / "x.0.tsv"] for run in ("a", "000", "b")}
    benchmarks |= {"cpa-1": [tmp_path / "none.tsv"]}
    cost = collect_cost(grid, [tmp_path / f"{run}.json" for run in runs], benchmarks).set_index("run")
    shared = {"job": "together/x.0", "job_seconds": 90.5, "job_cpu_seconds": 46.5, "job_memory_mb": 399.07}
    assert cost.loc["a", list(shared)].to_dict() == cost.loc["b", list(shared)].to_dict() == shared
    assert cost.loc["000", "job_seconds"] == 0.2 and np.isnan(cost.loc["000", "job_memory_mb"])
    assert cost.loc["cpa-1", list(shared)].isna().all()

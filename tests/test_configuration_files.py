"""Configuration files as people write them: what YAML accepts and nobody means, and hostile values for every key."""

from __future__ import annotations

import copy
import datetime
import functools
import json
import logging
import operator
import re
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import yaml

from samsvae.errors import ConfigError
from samsvae.screens.custom import filter_screen
from samsvae.study.configuration import read_config
from samsvae.study.figure_plan import FigurePlan
from samsvae.study.plan import Plan

OWN = """
title: t
experiments: [custom]
pathvars: { results: res }
screens:
  custom:
    kind: custom
    source: s.h5ad
    options: { perturbation_column: guide, control: ctrl }
settings:
  custom:
    screen: custom
    grid:
      - { model: [cond_vae], seed: [0] }
"""


def planned(config: dict, results: str | Path = "results") -> Plan:
    """The plan of a configuration and of its figures."""
    plan = Plan(config, results=results, benchmarks="b")
    FigurePlan(plan, resources="resources").files()
    plan.config_in_force()
    return plan


def changed(*changes: tuple[str, str]) -> str:
    """OWN with texts replaced."""
    text = OWN
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return text


@pytest.fixture
def study(root, tmp_path, monkeypatch):
    """A function that plans the study of a text as the workflow does, read over config/config.yaml."""
    monkeypatch.chdir(tmp_path)

    def of(text: str | bytes) -> Plan:
        path = tmp_path / "own.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        config = read_config([root / "config" / "config.yaml", path])
        return planned(config, results=config["pathvars"]["results"])

    return of


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (changed(("title: t", "title: t\ntitle: u")), r"own\.yaml, line 3: the key 'title' is given twice .*line 2"),
        (changed(("control: ctrl", "control: ctrl, control: b")), r"line 9: the key 'control' is given twice"),
        ('settings:\n  1: {}\n  "1": {}\n', r"line 3: the key '1' is given twice"),
        ("screens:\n  a:\n    separator: |\n    kind: custom\n", r'line 3: separator: \| without quotes .* write "\|"'),
        ("a: >-\nb: 1\n", r'line 1: a: > without quotes .* write ">"'),
        (changed(("seed: [0]", "seed: [010]")), r'line 14: seed: YAML reads 010 as another number .* write "010"'),
        ("a: 1:30", r"line 1: a: YAML reads 1:30 as another number"),
        ("a: [2024-01-01]", r'line 1: a: YAML reads 2024-01-01 .* date.* "2024-01-01" in quotes'),
        ("a: &x\n  b: *x\n", "line 1: an anchor holds a reference to itself"),
        ("a: &x [1, *x]\n", "line 1: an anchor holds a reference to itself"),
        ("title: caf\xe9\n".encode("latin-1"), r"line 1: the byte 0xe9 is not UTF-8. Save the file as UTF-8"),
        ("title: t\n".encode("utf-16"), "line 1: the byte 0x.. is not UTF-8"),
        ("", "must hold a mapping of keys to values, but is empty"),
        ("# nothing\n", "must hold a mapping of keys to values, but is empty"),
        ("- a\n- b\n", "must hold a mapping of keys to values, not 'list'"),
        ("text\n", "must hold a mapping of keys to values, not 'str'"),
        ("title: t\n\texperiments: [a]\n", r"not valid YAML \(.*line 2; indent with spaces, not with tabs\)"),
        ("a: b: c\n", r"not valid YAML \(.*line 1\)"),
        ("a: [1,\nb: 2\n", r"not valid YAML \(.*line \d"),
        ("a: !!python/object:os.system x\n", r"not valid YAML \(.*line 1"),
        ("a: 1\n---\nb: 1\n", r"not valid YAML \(.*another document in line 2"),
        ("a: " + "1" * 5000, "thousands of digits"),
        ("a: 2024-99-99", "a: YAML reads|a date is not valid"),
        ('{\n\t"title": "t",\n\t"title": "u"\n}', "line 3: the key 'title' is given twice"),
    ],
)
def test_a_fault_of_a_file_is_one_sentence_with_file_and_line(study, text, said):
    with pytest.raises(ConfigError) as error:
        study(text)
    message = str(error.value)
    assert "own.yaml" in message and re.search(said, message) and "\n" not in message


def test_anchors_merge_keys_and_a_bom(study):
    text = changed(
        ("title: t", "x-small: &small { n_latent: 3, width: 8 }\nx-list: [1_000, 0x1f]\ntitle: t"),
        ("    grid:", "    model: { <<: *small, width: 9 }\n    grid:"),
    )
    (run,) = study("\ufeff".encode() + text.encode()).runs["custom"].values()
    assert (run.model.n_latent, run.model.width) == (3, 9)


def test_json_with_tabs_is_read_as_by_snakemake(study):
    assert list(study(json.dumps(yaml.safe_load(OWN), indent="\t")).runs["custom"]) == ["cond_vae-seed0"]


def test_a_path_alone_is_the_source(study):
    (run,) = study(OWN).runs["custom"].values()
    assert run.screen.source.path == "s.h5ad" and run.screen.source.sort == "path"
    again = study(changed(("source: s.h5ad", "source: { path: s.h5ad }"))).runs["custom"]
    assert list(again.values()) == [run]


# ---- names, paths and values of the wrong kind ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("control: ctrl", "control: ctrl, genes: [NO, g1]"), "genes: .*NO, ON and YES in quotes"),
        (("control: ctrl", "control: OFF"), "control: False .*NO, ON and YES in quotes"),
        (("control: ctrl", "control: [ctrl, ON]"), r"control\[1\]: True .*in quotes"),
        (("control: ctrl", "control: 1_000"), r'control: 1000 .*numbers or dates in quotes \("0417"\)'),
        (("control: ctrl", "control: 0x1f"), r"control: 31 .*in quotes"),
        (("control: ctrl", "control: ctrl, separator:"), r'separator: None .*in quotes \("#"\)'),
        (("control: ctrl", 'control: ctrl, separator: "+\\n"'), "separator: .* line break"),
        (("column: guide", "column: YES"), "perturbation_column: True .*NO, ON and YES in quotes"),
        (("  custom:\n    screen", "  NO:\n    screen"), "the key False is not text.*NO, ON and YES"),
        (("  custom:\n    screen", "  1.10:\n    screen"), "the key 1.1 is not text.*in quotes"),
        (("experiments: [custom]", "experiments: [ON]"), r"experiments\[0\]: True .*NO, ON and YES"),
        (("results: res", 'results: "res{x}"'), r"pathvars: results: 'res\{x\}' is not allowed.*'\{'"),
        (("results: res", "results: ~/res"), r"results: '~/res' .*Write the complete path"),
        (("results: res", "results: ''"), "results: ''"),
        (("results: res", "results: ' '"), "results: ' '"),
        (("results: res", 'results: "a\\nb"'), r"results: 'a\\nb' .*the character '\\n'"),
        (("results: res", "results: <results>/a"), "results: .*the character '<'"),
        (("results: res", "results: $HOME/a"), "results: .*the character '\\$'"),
        (("results: res", "logs: <resluts>/a, results: res"), "logs: .*the character '<'"),
        (("results: res", "results: /etc/passwd"), r"results: '/etc/passwd' .*/etc/passwd is not a folder"),
        (("results: res", "results: /etc/passwd/res"), r"/etc/passwd is not a folder"),
        (("results: res", f"results: {'x' * 300}"), "255 bytes"),
        (("source: s.h5ad", "source: ~/s.h5ad"), r"source: path: '~/s.h5ad' .*Write the complete path"),
        (("source: s.h5ad", 'source: "s{x}.h5ad"'), r"source: path: .*the character '\{'"),
        (("source: s.h5ad", "source: {path: ~/s.h5ad}"), "Write the complete path"),
        (("source: s.h5ad", "source: 3"), "source: 3 is not allowed. Allowed: text or keys with values"),
        (("control: ctrl", "control: ctrl, annotation: ~/a.csv"), "annotation: .*Write the complete path"),
        (("control: ctrl", "control: ctrl, cell_table: ~/a.csv"), "cell_table: .*Write the complete path"),
        (("control: ctrl", "control: ctrl, genes: ~/a.txt"), "genes: .*Write the complete path"),
        (("    grid", "    split: {kind: file, path: ~/a.csv}\n    grid"), "split: path: .*Write the complete path"),
        (("seed: [0]", "checkpoint: ~/a.ckpt"), "checkpoint: .*Write the complete path"),
        (("control: ctrl", "control: ['']"), r"control: \[''\] is not allowed. Allowed: labels that are not empty"),
        (("seed: [0]", "seed: [4294967296]"), "seed: 4294967296 is not allowed; a seed is 4,294,967,295 at most"),
        (("seed: [0]", "seed: [9223372036854775808]"), "seed: 9223372036854775808 is not allowed"),
        (("seed: [0]", f"seed: [{'9' * 400}]"), "seed: a number of about 40. digits is not allowed"),
        (("seed: [0]", f"learning_rate: {'9' * 400}"), "learning_rate: a number of about 40. digits is not allowed"),
        (("seed: [0]", "learning_rate: .nan"), "learning_rate: nan is not allowed; it must be a number"),
        (("seed: [0]", "learning_rate: NaN"), "learning_rate: 'NaN' is not allowed"),
        (("seed: [0]", "learning_rate: 1e999"), "learning_rate: '1e999' is not allowed"),
        (("seed: [0]", 'counts: ["layer:a/b"]'), r"grid\[0\]\.counts: 'layer:a/b' .*file names"),
        (("seed: [0]", 'perturbation_column: ["a b"]'), "perturbation_column: 'a b' .*file names"),
        (("seed: [0]", 'perturbation_column: ["a{b}"]'), "perturbation_column: .*file names"),
        (("seed: [0]", 'perturbation_column: ["a\\nb"]'), "perturbation_column: .*file names"),
        (("seed: [0]", f"perturbation_column: [{'x' * 250}]"), "the name .* is too long for a file"),
    ],
)
def test_a_value_that_nobody_means_is_one_sentence(study, change, said):
    with pytest.raises(ConfigError) as error:
        study(changed(change))
    assert re.search(said, str(error.value)), str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 900


@pytest.mark.parametrize("name", ["../../x", "/x", "a\nb", "x{}", "", "x" * 101, "é"])
@pytest.mark.parametrize("of", ["settings", "screens"])
def test_names_that_cannot_be_files_are_refused_also_where_no_figure_is_planned(name, of):
    config = yaml.safe_load(OWN)
    config[of][name] = config[of]["custom"]
    with pytest.raises(ConfigError, match=f"{of}: .* is not allowed as a name. Allowed: up to 100 letters"):
        Plan(config, results="results", benchmarks="b")


def test_two_data_sets_of_one_name_are_refused(study):
    text = changed(("seed: [0]", "min_cells: 2")) + (
        "  other:\n    screen: custom-min_cells2\n    grid: [{model: [vae]}]\n"
    )
    text = text.replace("[custom]", "[custom, other]", 1).replace(
        "screens:\n", "screens:\n  custom-min_cells2: {kind: custom, source: t.h5ad}\n"
    )
    with pytest.raises(ConfigError, match="two data sets would be called 'custom-min_cells2'"):
        study(text)


VALUES = [
    True,
    None,
    -1,
    1.5,
    float("nan"),
    10**400,
    2**32,
    2**63,
    1e308,
    "",
    "~",
    "a\nb",
    "{x}",
    "../../x",
    "x" * 4000,
]
VALUES += [
    [],
    {},
    ["x"],
    {"a": 1},
    [None],
    [True],
    [[1]],
    datetime.date(2024, 1, 1),
    "NaN",
    "é",
    b"x",
    {1: 2},
    {True: 1},
]
VALUES += [["x" * 4000] * 40, {"x"}]


def places(part, path=()):
    """The path to every key and value of a configuration; for a list, to the first two items."""
    for key in part if isinstance(part, dict) else range(min(len(part), 2)):
        yield (*path, key)
        if isinstance(part[key], dict | list):
            yield from places(part[key], (*path, key))


def test_any_value_for_any_key_is_allowed_or_one_short_sentence(configuration):
    """Nothing but a ConfigError, whatever a key of the example has as its value."""
    whole, refused = configuration("config.yaml", "custom.example.yaml"), 0
    whole["settings"] = {"custom": whole["settings"]["custom"]}
    whole["screens"] = {"custom": whole["screens"]["custom"]}
    for *way, last in list(places(whole)):
        for value in VALUES:
            config = copy.deepcopy(whole)
            functools.reduce(operator.getitem, way, config)[last] = copy.deepcopy(value)
            try:
                planned(config)
            except ConfigError as error:
                refused += 1
                assert len(str(error)) < 900 and "\n" not in str(error), (way, last, value)
    assert refused > 1000


# ---- the three cases -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("36_separator_pipe", r'separator: \| without quotes begins a block .* write "\|"'),
        ("38_gene_called_NO", r"genes: \[False, 'g1'\].*NO, ON and YES in quotes: YAML reads them as true or false"),
        ("39_results_with_braces", r"pathvars: results: 'res\{x\}' .*\{ \}"),
    ],
)
def test_the_cases(study, shared, name, said):
    path = shared / "cases" / f"{name}.yaml"
    with pytest.raises(ConfigError, match=said):
        study(path.read_text())


@pytest.mark.parametrize("separator", ["", "|"])
def test_labels_that_look_like_combinations_are_named_where_no_separator_is_set(tmp_path, caplog, separator):
    """What is left of the case of the empty separator, for a separator that nobody wrote."""
    labels = ["ctrl", "A", "B", "A|B", "A|ctrl", "C|D", "x-1"] * 2
    obs = pd.DataFrame({"guide": labels}, index=[f"c{i}" for i in range(len(labels))])
    ad.AnnData(np.ones((len(labels), 2), np.float32), obs).write_h5ad(tmp_path / "s.h5ad")
    options = {"perturbation_column": "guide", "control": "ctrl", "separator": separator}
    with caplog.at_level(logging.WARNING):
        filter_screen(tmp_path / "s.h5ad", tmp_path / "screen.h5ad", **options)
    found = [r.getMessage() for r in caplog.records if "look like combinations of other labels" in r.getMessage()]
    assert len(found) == (separator == "")
    assert separator or ("'A|B', 'A|ctrl' look" in found[0] and 'set separator: "|"' in found[0])

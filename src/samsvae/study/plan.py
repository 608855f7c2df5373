"""The plan of a study: its runs, batches and files, looked up by name. Needs no Snakemake.

The rules look files up here with the wildcards of a job (an object with the attributes experiment, run, batch,
dataset, split or screen: those that the rule has). Paths start with the folder of results.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from samsvae.config.grid import Run, batches, grid_table, run_settings, runs
from samsvae.config.screens import ScreenConfig
from samsvae.config.study import Study
from samsvae.config.validate import build
from samsvae.config.vocabulary import MASKED
from samsvae.errors import ConfigError, nearest
from samsvae.study.jobs import SCORED, TRAINED, TRANSFERRED, failed_in

#: Files of a run and of a split, by the names that rules give them. A transfer adds files to both.
RUN_FILES = TRAINED | SCORED
TRANSFER_FILES = TRANSFERRED
SPLIT_FILES = {"effects": "effects.h5ad", "scores": "baselines.tsv", "per_condition": "per_condition.tsv"}
SPLIT_FILES |= {"truth": "truth.npz", "worth": "worth.tsv", "worth_conditions": "worth_conditions.tsv"}

#: A run whose weights come from a checkpoint of the release; its id says so.
IMPORTED = r".*-from_.*"


def alternatives(names: Iterable[str]) -> str:
    """A wildcard constraint that matches these names and nothing else."""
    return "|".join(re.escape(name) for name in sorted(names)) or "(?!)"


def _check_folder(name: str, folder: Path) -> None:
    """ConfigError if a folder of outputs is a file, or is below one."""
    there = next((path for path in (folder, *folder.parents) if os.path.lexists(path)), Path())
    if not there.is_dir():
        raise ConfigError(f"pathvars.{name}: {str(folder)!r} is not allowed: {there} is not a folder. Name another.")


class Plan:
    """Everything the rules need to know about a study.

    ``config``: the merged configuration. ``results`` and ``benchmarks``: the folders of these names. ConfigError if
    the configuration is not allowed.
    """

    def __init__(self, config: Mapping, *, results: str | Path, benchmarks: str | Path):
        self.config = config
        self.results, self.benchmarks = Path(results), Path(benchmarks)
        self.study = build(Study, config)
        _check_folder("results", self.results)
        _check_folder("benchmarks", self.benchmarks)
        self.runs = {name: {run.id: run for run in runs(self.study, name)} for name in self.study.experiments}
        per_job = self.study.runs_per_job
        self.batches = {name: batches(found.values(), per_job) for name, found in self.runs.items()}
        self.batch_of_run = {
            (name, run.id): batch
            for name, found in self.batches.items()
            for batch, together in found.items()
            for run in together
        }
        every = [run for found in self.runs.values() for run in found.values()]
        self.datasets: dict[str, ScreenConfig] = {run.dataset: run.screen for run in every}
        self.screens = {run.dataset: self.study.settings[run.experiment].screen for run in every}
        for run in every:
            if self.datasets[run.dataset] != run.screen:
                raise ConfigError(f"screens: two data sets would be called {run.dataset!r}. Rename one of the screens.")

    def only(self, found: Mapping[str, Sequence[Run]]) -> Plan:
        """The same plan with only these runs, by experiment."""
        plan = copy.copy(self)
        plan.runs = {name: {run.id: run for run in chosen} for name, chosen in found.items()}
        return plan

    # ---- names as wildcard constraints -----------------------------------------------------------------------------

    def datasets_of_kind(self, kind: str) -> str:
        """The data sets of one kind of screen."""
        return alternatives(name for name, screen in self.datasets.items() if screen.kind == kind)

    def screens_from(self, sort: str, kind: str | None = None) -> str:
        """The screens of a kind (or of any) whose source is a miniature, a path or urls."""
        found = self.study.screens.items()
        return alternatives(
            name
            for name, screen in found
            if screen.source and screen.source.sort == sort and kind in (None, screen.kind)
        )

    def with_transfer(self, there: bool = True) -> str:
        """The experiments whose runs are adapted to new perturbations, or the others."""
        return alternatives(name for name in self.runs if bool(self.study.settings[name].transfer) is there)

    def trained_alone(self) -> str:
        """The runs with a job of their own: all, or those that failed in a job that trained several runs.

        A run that failed in such a job gets one of its own in the next call.
        """
        if self.study.runs_per_job == 1:
            return "[^/]+"
        marks = [self.mark(name, batch) for name, found in self.batches.items() for batch in found]
        return alternatives({run for mark in marks for run in failed_in(mark)})

    # ---- look-ups by wildcards -------------------------------------------------------------------------------------

    def experiment(self, name: str) -> dict[str, Run]:
        """The runs of an experiment by id; ConfigError if the configuration does not list it."""
        if name not in self.runs:
            raise ConfigError(f"experiments: {name!r} is not listed in the configuration.{nearest(name, self.runs)}")
        return self.runs[name]

    def run(self, wildcards: Any) -> Run:
        """The run that the wildcards name; for a batch or split, whose runs read the same data, the first."""
        if hasattr(wildcards, "batch"):
            return self.batch(wildcards)[0]
        found = self.experiment(wildcards.experiment)
        if hasattr(wildcards, "split"):
            splits = {f"{run.dataset}/{run.split}": run for run in reversed(found.values())}
            if (asked := f"{wildcards.dataset}/{wildcards.split}") not in splits:
                known = list(reversed(splits))
                raise ConfigError(f"{wildcards.experiment} has no split {asked!r}.{nearest(asked, known)}")
            return splits[asked]
        if wildcards.run not in found:
            raise ConfigError(f"{wildcards.experiment} has no run {wildcards.run!r}.{nearest(wildcards.run, found)}")
        return found[wildcards.run]

    def batch(self, wildcards: Any) -> list[Run]:
        """The runs that are trained together, by the name of their batch."""
        found = self.batches[wildcards.experiment]
        if wildcards.batch not in found:
            raise ConfigError(
                f"{wildcards.experiment} has no batch {wildcards.batch!r}.{nearest(wildcards.batch, found)}"
            )
        return found[wildcards.batch]

    def masked(self, experiment: str, batch: str | None = None) -> list[Run]:
        """The masked runs of an experiment, or of one of its batches; a run that is in no batch is one by itself."""
        found = [run for run in self.experiment(experiment).values() if run.model.mask in MASKED]
        if batch is None:
            return found
        names = self.by_batch(found)
        if batch not in names:
            raise ConfigError(f"{experiment} has no masked runs in a batch {batch!r}.{nearest(batch, names)}")
        return names[batch]

    def by_batch(self, found: Iterable[Run]) -> dict[str, list[Run]]:
        """Runs by the name of their batch; a run that is in none has its own id as name."""
        names: dict[str, list[Run]] = {}
        for run in found:
            names.setdefault(self.batch_of_run.get((run.experiment, run.id), run.id), []).append(run)
        return names

    def source(self, wildcards: Any) -> str:
        """The file that a screen is filtered from: a local path, or the one that was downloaded or simulated."""
        name = self.screens[wildcards.dataset]
        source = self.study.screens[name].source
        assert source is not None  # simulations have no source, and no filter
        return source.path or "" if source.sort == "path" else f"{self.results}/sources/{name}.h5ad"

    def verification(self, wildcards: Any) -> list[str]:
        """The file that marks a local source as verified, if the configuration gives its checksum."""
        name = self.screens[wildcards.dataset]
        source = self.study.screens[name].source
        return [f"{self.results}/sources/{name}.verified"] if source and source.verified else []

    def checksum(self, wildcards: Any) -> str:
        """The checksum that the source of a data set was verified with; '' if there is none."""
        source = self.study.screens[self.screens[wildcards.dataset]].source
        return source.checksum or "" if source and (source.sort == "urls" or source.verified) else ""

    def source_settings(self, wildcards: Any) -> dict[str, object]:
        """Expected size and checksum of a source. A new address alone does not download it again."""
        source = self.study.screens[wildcards.screen].source
        return {"size": source.size, "checksum": source.checksum} if source else {}

    def local_source(self, wildcards: Any) -> str:
        """The path that the configuration gives for a screen."""
        source = self.study.screens[wildcards.screen].source
        return source.path or "" if source else ""

    def miniature_settings(self, wildcards: Any) -> dict[str, object]:
        """The settings of a miniature, sorted, so that a new order of keys does not simulate it again."""
        source = self.study.screens[wildcards.screen].source
        return dict(sorted((source.miniature or {}).items())) if source else {}

    def options(self, wildcards: Any) -> dict[str, object]:
        """The settings of a data set's filter or simulation, as plain values, which Snakemake can compare."""
        options: Any = self.datasets[wildcards.dataset].options  # the dataclass of its kind
        return dataclasses.asdict(options)

    def option_tables(self, wildcards: Any) -> list[str]:
        """The tables that a filter reads next to the counts."""
        options: Any = self.datasets[wildcards.dataset].options
        return options.tables

    def split_settings(self, wildcards: Any) -> dict[str, object]:
        """The settings of a split."""
        return vars(self.run(wildcards).split_config)

    def split_table(self, wildcards: Any) -> list[str]:
        """The split table that a person has written, for a split of kind 'file'."""
        path = self.split_settings(wildcards)["path"]
        return [str(path)] if path else []

    # ---- inputs and params of a run --------------------------------------------------------------------------------

    def arrays(self, wildcards: Any) -> str:
        return self.data_file(self.run(wildcards).dataset, "arrays.npz")

    def screen(self, wildcards: Any) -> str:
        return self.data_file(self.run(wildcards).dataset, "screen.h5ad")

    def split(self, wildcards: Any) -> str:
        return self.split_file(self.run(wildcards), "cells.tsv")

    def reference(self, wildcards: Any) -> str:
        return self.split_file(self.run(wildcards), SPLIT_FILES["effects"])

    def truth(self, wildcards: Any) -> str:
        return self.split_file(self.run(wildcards), SPLIT_FILES["truth"])

    def transfer(self, wildcards: Any) -> dict[str, dict[str, object]] | None:
        """How the runs of an experiment are adapted to new perturbations; None if they are not.

        ``settings``: a TransferConfig as a dict. ``split``: what tables say about the split of the run or batch.
        """
        how = self.study.settings[wildcards.experiment].transfer
        if how is None:
            return None
        run = self.run(wildcards)
        split = {"dataset": run.dataset, "split_name": run.split, "held_out": run.split_config.held_out}
        return {"settings": vars(how), "split": {**split, "new_cells": run.split_config.new_cells}}

    def baselines(self, wildcards: Any) -> list[str]:
        """The scores of new perturbations without a model, if the experiment has a transfer."""
        has = self.study.settings[wildcards.experiment].transfer is not None
        return [self.split_file(self.run(wildcards), "transfer.tsv")] if has else []

    def together(self, wildcards: Any) -> list[str]:
        """The file that marks the batch of a run as finished, if the run is in a batch."""
        batch = self.batch_of_run.get((wildcards.experiment, wildcards.run))
        return [str(self.mark(wildcards.experiment, batch))] if batch else []

    def checkpoint(self, wildcards: Any) -> list[str]:
        """The checkpoint of the release that a run takes its weights from, and the lists of its names that exist."""
        path = self.run(wildcards).checkpoint or ""
        orders = [f"{path}.{kind}.txt" for kind in ("genes", "perturbations")]
        return [path, *(order for order in orders if Path(order).is_file())]

    def training(self, wildcards: Any) -> dict[str, object]:
        """The settings that the training of a run depends on."""
        return run_settings(self.run(wildcards))

    def trainings(self, wildcards: Any) -> list[dict[str, object]]:
        """The settings that the trainings of a batch depend on."""
        return [run_settings(run) for run in self.batch(wildcards)]

    def minutes_of_pathways(self, wildcards: Any) -> int:
        """The time limit for predicting the pathways of a batch: ten minutes, and five for each run."""
        return 10 + 5 * len(self.masked(wildcards.experiment, wildcards.batch))

    def minutes_of_run(self, wildcards: Any) -> int:
        """The time limit of a run. A transfer may train it twice more."""
        return 120 if self.study.settings[wildcards.experiment].transfer is None else 360

    def minutes_together(self, wildcards: Any) -> int:
        """The time limit of a batch: that of its runs one after another."""
        return self.minutes_of_run(wildcards) * len(self.batch(wildcards))

    def evaluation(self, wildcards: Any) -> dict[str, object]:
        experiment = self.study.settings[wildcards.experiment]
        return vars(experiment.evaluation.for_kind(self.study.screens[experiment.screen].kind))

    def is_simulated(self, wildcards: Any) -> bool:
        return self.run(wildcards).screen.kind.startswith("simulate")

    # ---- files -----------------------------------------------------------------------------------------------------

    def data_file(self, dataset: str, file: str) -> str:
        return f"{self.results}/data/{dataset}/{file}"

    def split_file(self, run: Run, file: str) -> str:
        return f"{self.results}/{run.experiment}/splits/{run.dataset}/{run.split}/{file}"

    def run_file(self, run: Run, file: str) -> str:
        return f"{self.results}/{run.experiment}/runs/{run.id}/{file}"

    def mark(self, experiment: str, batch: str) -> Path:
        """The table that says how the runs of a batch ended."""
        return self.results / experiment / "together" / f"{batch}.tsv"

    def files_of(self, run: Run) -> dict[str, str]:
        """The paths of all files of a run that its job writes, by name."""
        transfer = self.study.settings[run.experiment].transfer
        return {
            name: self.run_file(run, file) for name, file in (RUN_FILES | (TRANSFER_FILES if transfer else {})).items()
        }

    def run_files(self, found: Iterable[Run], file: str) -> list[str]:
        return [self.run_file(run, file) for run in found]

    def batch_files(self, found: Iterable[Run], folder: str) -> list[str]:
        """A file of each batch of some runs, in a folder of their experiment."""
        batches = self.by_batch(found).items()
        return [f"{self.results}/{of_batch[0].experiment}/{folder}/{name}.tsv" for name, of_batch in batches]

    def split_files(self, found: Iterable[Run], file: str) -> list[str]:
        """A file of each split that the runs read, once."""
        return list(dict.fromkeys(self.split_file(run, file) for run in found))

    def data_files(self, found: Iterable[Run], file: str) -> list[str]:
        """A file of each data set that the runs read, once."""
        return list(dict.fromkeys(self.data_file(run.dataset, file) for run in found))

    def each_run(self, file: str) -> Callable[[Any], list[str]]:
        """An input function: a file of every run of the experiment that the wildcards name."""
        return lambda wildcards: self.run_files(self.experiment(wildcards.experiment).values(), file)

    def each_split(self, file: str) -> Callable[[Any], list[str]]:
        """An input function: a file of every split of the experiment that the wildcards name."""
        return lambda wildcards: self.split_files(self.experiment(wildcards.experiment).values(), file)

    def each_masked(self, file: str) -> Callable[[Any], list[str]]:
        """An input function: a file of every masked run of the experiment or batch that the wildcards name."""
        return lambda wildcards: self.run_files(
            self.masked(wildcards.experiment, getattr(wildcards, "batch", None)), file
        )

    def masked_screens(self, wildcards: Any) -> list[str]:
        """The screens of the masked runs of the experiment or batch that the wildcards name."""
        found = self.masked(wildcards.experiment, getattr(wildcards, "batch", None))
        return self.data_files(found, "screen.h5ad")

    def benchmarks_of_runs(self, wildcards: Any) -> dict[str, list[str]]:
        """The benchmarks of the runs of the experiment that the wildcards name."""
        return self.benchmarks_of(wildcards.experiment)

    def benchmarks_of(self, name: str) -> dict[str, list[str]]:
        """The benchmarks of the jobs that may have trained each run: its own job, and one that it shared."""
        found = {run: [f"{self.benchmarks}/{name}/train/{run}.tsv"] for run in self.experiment(name)}
        for run, paths in found.items():
            if (name, run) in self.batch_of_run:
                paths.append(f"{self.benchmarks}/{name}/together/{self.batch_of_run[name, run]}.tsv")
        return found

    def grid(self, wildcards: Any) -> list[dict[str, Any]]:
        """The rows of an experiment's grid table."""
        return grid_table(list(self.experiment(wildcards.experiment).values()))

    def tables(self, names: Sequence[str] = ("grid", "scores", "histories", "cost")) -> list[str]:
        """The tables of every experiment."""
        return [f"{self.results}/{experiment}/{name}.tsv" for experiment in self.runs for name in names]

    def transfer_tables(self) -> list[str]:
        """The tables of transfers, of every experiment that has them."""
        found = (name for name in self.runs if self.study.settings[name].transfer)
        return [f"{self.results}/{name}/transfer.tsv" for name in found]

    def config_in_force(self) -> str:
        """The merged configuration, as JSON with sorted keys."""
        texts = json.loads(json.dumps(self.config))  # YAML reads a name like 123 as a number, which cannot be sorted
        return json.dumps(texts, indent=1, sort_keys=True)

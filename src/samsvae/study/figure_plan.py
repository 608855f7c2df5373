"""Which figures every experiment gets, from which files each is drawn, and the names of all targets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from samsvae.config.grid import Run, grid_table, restrict
from samsvae.config.vocabulary import AMOUNT_AXES, MASKED, SEED_AXES
from samsvae.errors import ConfigError, nearest, some
from samsvae.evaluation.selection import shown
from samsvae.figures.registry import FIGURES
from samsvae.study.plan import Plan
from samsvae.study.published_plan import (
    OTHER_TRAINING,
    not_comparable,
    other_training,
    published_files,
    reproductions,
)

#: The methods compared in figures that have no room for every row of the zoo.
COMPARED = ("sams_vae_corr", "cpa_vae_corr", "cond_vae", "svae_plus")
MOST_COMPARED = 4

#: Names that older versions gave to figures of the papers: alias -> experiment and figure.
ALIASES = {"replogle_table1": ("replogle", "scores"), "replogle_de": ("replogle", "expression")}

#: Targets over several experiments: name -> figure, and the beginning of the experiments' names.
ACROSS = {
    "simulation_recovery": ("recovery", "simulation"),
    "training_curves": ("curves", ""),
    "data_cards": ("data_card", ""),
    "transfer": ("transfer", ""),
}

#: Rules, targets and folders of results, whose names no experiment and no figure of an experiment may have.
RESERVED = (
    *("all", "report", "published", "provenance", "cost_table", "write_config", "write_grid", "collect", *ACROSS),
    *("download_source", "verify_source", "make_miniature_replogle", "make_miniature_norman"),
    *("filter_replogle", "filter_norman", "filter_custom", "simulate_sams", "simulate_sparse_shift", "pack_arrays"),
    *("split_cells", "reference_effects", "data_expression", "model_expression"),
    *("pathway_accuracy", "pathway_baseline"),
    *("train", "train_with_transfer", "train_together", "take", "take_with_transfer", "import_checkpoint"),
    *("transfer_baselines", "collect_transfer"),
    *("data", "sources", "figures", "logs", "benchmarks", "preview"),
)


class FigurePlan:
    """The figures of a study.

    ``resources``: the folder with the published tables. ``out``: the folder of figures and of the tables of experiments
    (default: that of the plan's results).
    """

    def __init__(self, plan: Plan, *, resources: str | Path, out: str | Path | None = None):
        self.plan, self.resources, self.out = plan, Path(resources), Path(out or plan.results)
        self.experiments = {name: list(found.values()) for name, found in plan.runs.items()}
        self._restricted = {
            name: restrict(found, plan.study.settings[name].compared) for name, found in self.experiments.items()
        }
        self._check_names()

    # ---- which figures ---------------------------------------------------------------------------------------------

    def features(self, experiment: str) -> set[str]:
        """The ``registry.FEATURES`` that an experiment has, according to its configuration."""
        found = self.experiments[experiment]
        screen = found[0].screen
        options, kind = screen.options, screen.kind
        simulated = kind.startswith("simulate")
        by_dosage = kind == "custom" and not getattr(options, "controls", True)
        control = not (simulated or by_dosage) or kind == "simulate_sams" or getattr(options, "n_controls", 0) > 0
        has = {
            "masks": bool(self.masked(experiment)),
            "combinations": kind == "norman" or bool(getattr(options, "separator", "") and not by_dosage),
            "control": control,
            "reference": control or by_dosage,
            "counts": kind != "simulate_sams",
            "truth": simulated,
            "training": any(run.checkpoint is None for run in found),
            "test": any(run.split_config.has_test_cells(simulated) for run in found),
            "transfer": self.plan.study.settings[experiment].transfer is not None,
        }
        return {name for name, there in has.items() if there}

    def is_annotated(self, experiment: str) -> bool:
        """Whether the perturbations of an experiment's screen have an annotation (pathways)."""
        screen = self.experiments[experiment][0].screen
        return screen.kind == "replogle" or bool(getattr(screen.options, "annotation", None))

    def figures(self, experiment: str) -> list[str]:
        """The figures that an experiment gets, in reading order; none without a run to compare."""
        if not self.restricted(experiment):
            return []
        has = self.features(experiment)
        return [name for name, row in FIGURES.items() if has.issuperset(row.needs)]

    def every(self) -> list[tuple[str, str]]:
        """Experiment and name of every figure of the study."""
        return [(experiment, figure) for experiment in self.experiments for figure in self.figures(experiment)]

    def pictures(self) -> list[str]:
        """The picture of every figure of the study."""
        return [self.picture(*each) for each in self.every()]

    def files(self, figures: Iterable[tuple[str, str]] | None = None) -> list[str]:
        """Every file of some figures (default: of all): picture, PDF and tables. One that was deleted is made again."""
        every = self.every() if figures is None else figures
        return [file for each in every for file in (self.picture(*each), *self.outputs(*each).values())]

    def contents(self) -> list[dict[str, object]]:
        """What the report shows of each experiment, as plain values."""
        return [
            {
                "name": experiment,
                "screen": f"{self.describe_screen(experiment)} {self.describe_training(experiment)}".strip(),
                "runs": len(found),
                "figures": [
                    {"name": figure, "stem": self.stem(experiment, figure), "saved": list(FIGURES[figure].saved)}
                    for figure in self.figures(experiment)
                ],
                "folder": f"{self.out}/{experiment}",
            }
            for experiment, found in self.experiments.items()
        ]

    def reproductions(self) -> list[dict[str, object]]:
        """Each published table with an experiment that repeats it (`published_plan.reproductions`)."""
        return reproductions(self.plan, self.resources, self.out)

    def reproduction_files(self) -> list[str]:
        """The files that the table of published numbers next to ours is made from."""
        return [
            str(source[kind]) for source in self.reproductions() for kind in ("published", "scores") if source[kind]
        ]

    def published(self) -> list[str]:
        """The table of published numbers next to ours; none if no experiment repeats a published table."""
        repeated = any(source["experiment"] for source in self.reproductions())
        return [f"{self.out}/published.tsv"] if repeated else []

    def targets(self) -> dict[str, list[str]]:
        """Every target that stands for figures, and the files behind it."""
        found: dict[str, list[tuple[str, str]]] = {}
        for experiment in self.experiments:
            found[experiment] = [(experiment, figure) for figure in self.figures(experiment)]
        for alias, (experiment, figure) in ALIASES.items():
            if (experiment, figure) in self.every():
                found[alias] = [(experiment, figure)]
        for name, (figure, begins) in ACROSS.items():
            if each := [(e, f) for e, f in self.every() if f == figure and e.startswith(begins)]:
                found[name] = each
        return {name: self.files(figures) for name, figures in found.items()}

    def old_layout(self) -> str:
        """What to do about figures of an earlier version in the folder of results; '' if there are none."""
        folder = self.out / "figures"
        found = sorted(path.name for path in folder.glob("*.png")) if folder.is_dir() else []
        if not found:
            return ""
        tables = " ".join(self.plan.tables(("scores", "histories", "cost")))
        return (
            f"{folder} holds figures of an earlier version ({some(found, 3)}). They are no longer updated: figures are "
            f"now in {folder}/EXPERIMENT/FIGURE.png. The code has moved too, so runs of that version will be trained "
            "again. To keep them, first record them as up to date: snakemake --cores 1 --touch --forceall "
            f"[--configfile ...] -- {tables}. To start over, choose another folder (pathvars: results) or remove the "
            "old figures."
        )

    def _check_names(self) -> None:
        """ConfigError if the name of an experiment, or of one of its figures, is already a target or folder."""
        figures = {f"{experiment}_{figure}": experiment for experiment, figure in self.every()}
        taken = {*RESERVED, *ALIASES}
        if clash := sorted({*taken, *figures}.intersection(self.experiments)):
            raise ConfigError(
                f"experiments: {some(clash)} is already the name of a figure, a target or a folder of results. "
                "Give the experiment another name."
            )
        if clash := sorted(taken.intersection(figures)):
            raise ConfigError(
                f"experiments: {figures[clash[0]]!r} is not allowed as a name, because its figure would be called "
                f"{clash[0]!r}, which is already the name of a rule or target. Give the experiment another name."
            )

    # ---- files of a figure -----------------------------------------------------------------------------------------

    def stem(self, experiment: str, figure: str) -> str:
        return f"{self.out}/figures/{experiment}/{figure}"

    def picture(self, experiment: str, figure: str) -> str:
        return f"{self.stem(experiment, figure)}.png"

    def outputs(self, experiment: str, figure: str) -> dict[str, str]:
        """The PDF of a figure and the tables behind it; the picture is ``picture``."""
        stem = self.stem(experiment, figure)
        tables = {f"data_{name}" if name else "data": name for name in FIGURES[figure].saved}
        named = {key: f"{stem}.{name}.tsv" if name else f"{stem}.tsv" for key, name in tables.items()}
        return {"pdf": f"{stem}.pdf", **named}

    def inputs(self, experiment: str, figure: str) -> dict[str, str | list[str]]:
        """The files that a figure is drawn from, by the arguments of its ``tables``."""
        return {name: FILES[kind](self, experiment) for name, kind in FIGURES[figure].inputs.items()}

    def settings(self, experiment: str, figure: str) -> dict[str, object]:
        """The values that a figure depends on, by the arguments of its ``tables``."""
        return {name: SETTINGS[name](self, experiment) for name in FIGURES[figure].settings}

    def describe_screen(self, experiment: str) -> str:
        """A line about the screen of an experiment: its name and where its cells come from."""
        name = self.plan.study.settings[experiment].screen
        screen = self.plan.study.screens[name]
        if screen.source is None:
            return f"Screen {name}: simulated ({screen.kind.removeprefix('simulate_').replace('_', ' ')})."
        origin = {"miniature": "a synthetic miniature", "path": f"from {screen.source.path}", "urls": "downloaded"}
        return f"Screen {name}: {origin[screen.source.sort]}."

    def describe_training(self, experiment: str) -> str:
        """The settings of an experiment's trainings that are not those of the papers; '' if there are none."""
        if not_comparable(self.plan, experiment) != OTHER_TRAINING:
            return ""
        words = ", ".join(f"{name} {value}" for name, value in other_training(self.plan, experiment).items())
        return f"This is not the published training: {words}."

    def annotated(self, experiment: str, found: Iterable[Run] | None = None) -> list[Run]:
        """The masked runs (of ``found``, or all) whose pathways are predicted.

        None if there is no annotation, or no figure of scores that shows them, because there are no test cells.
        """
        every = self.experiments[experiment] if found is None else found
        shown = self.is_annotated(experiment) and "test" in self.features(experiment)
        return [run for run in every if run.model.mask in MASKED] if shown else []

    def pathway_files(self, experiment: str, found: Iterable[Run] | None = None) -> list[str]:
        """Accuracies of predicting the annotation: a file for each batch of `annotated` runs."""
        return self.plan.batch_files(self.annotated(experiment, found), "pathways")

    def pathway_baselines(self, experiment: str, found: Iterable[Run] | None = None) -> list[str]:
        """The same from the training cells alone: a file for each split of `annotated` runs."""
        return self.plan.split_files(self.annotated(experiment, found), "pathways.tsv")

    def tested(self, wildcards: Any) -> list[Run]:
        """The runs of a batch whose differential expression a figure may show; a run that is in no batch is one."""
        found = self.plan.by_batch(_compared_to_show(self, wildcards.experiment))
        if wildcards.batch not in found:
            near = nearest(wildcards.batch, found)
            raise ConfigError(f"{wildcards.experiment} shows the expression of no batch {wildcards.batch!r}.{near}")
        return found[wildcards.batch]

    # ---- runs that a figure may show -------------------------------------------------------------------------------

    def restricted(self, experiment: str) -> list[Run]:
        """The runs that figures compare: those with the values in the setting ``compared``.

        There are none in a preview before the first of them has finished.
        """
        return self._restricted[experiment]

    def ample(self, experiment: str) -> list[Run]:
        """The runs compared that saw the largest amount of data."""
        found = self.restricted(experiment)
        for axis in AMOUNT_AXES:
            most = max(_values(found, axis), default=None)
            found = [run for run in found if run.axes.get(axis, most) == most]
        return found

    def pinned(self, experiment: str) -> list[Run]:
        """The runs of one data set and split: the largest amount of data, the first seed of draw and split."""
        found = self.ample(experiment)
        for axis in SEED_AXES[1:]:
            first = min(_values(found, axis), default=None)
            found = [run for run in found if run.axes.get(axis, first) == first]
        return [run for run in found if (run.dataset, run.split) == (found[0].dataset, found[0].split)]

    def masked(self, experiment: str) -> list[Run]:
        return [run for run in self.pinned(experiment) if run.model.mask in MASKED]

    def single(self, experiment: str) -> list[Run]:
        """Candidates for a figure of a single run: those of the model in the setting ``shown``, or of every model."""
        return self.of_shown(experiment, self.pinned(experiment))

    def compared(self, found: list[Run]) -> list[Run]:
        """The runs of at most four methods: all, or, if there are more, the four of the papers' figures."""
        rows = list(dict.fromkeys(run.row for run in found))
        if len(rows) > MOST_COMPARED:
            rows = [row for row in COMPARED if row in rows] or rows[:MOST_COMPARED]
        return [run for run in found if run.row in rows]

    def of_shown(self, experiment: str, found: list[Run]) -> list[Run]:
        """The runs of the model in the setting ``shown``; all runs if it is not set."""
        model = self.plan.study.settings[experiment].shown
        return [run for run in found if run.row == model] or found

    def first_seeds(self, found: list[Run]) -> list[Run]:
        """One run of each setting; validation scores decide later which setting is shown."""
        by_id = {run.id: run for run in found}
        return [by_id[run] for run in shown(pd.DataFrame(grid_table(found)))["run"]]

    def one_of(self, kind: str, experiment: str) -> str:
        """The name of the first data set or split of an experiment, and how many there are."""
        first = getattr(self.pinned(experiment)[0], kind)
        many = len({getattr(run, kind) for run in self.experiments[experiment]})
        return first if many == 1 else f"{first} (one of {many})"


def _values(found: Iterable[Run], axis: str) -> list[Any]:
    """The values that runs have on an axis of the grid."""
    return [run.axes[axis] for run in found if axis in run.axes]


def _table(name: str) -> Callable[[FigurePlan, str], str]:
    return lambda figures, experiment: f"{figures.out}/{experiment}/{name}.tsv"


def _runs(select: Callable[[FigurePlan, str], Iterable[Run]], file: str) -> Callable[[FigurePlan, str], list[str]]:
    return lambda figures, experiment: figures.plan.run_files(select(figures, experiment), file)


def _batches(select: Callable[[FigurePlan, str], Iterable[Run]], folder: str) -> Callable[[FigurePlan, str], list[str]]:
    return lambda figures, experiment: figures.plan.batch_files(select(figures, experiment), folder)


def _splits(select: Callable[[FigurePlan, str], Iterable[Run]], file: str) -> Callable[[FigurePlan, str], list[str]]:
    return lambda figures, experiment: figures.plan.split_files(select(figures, experiment), file)


def _data(file: str) -> Callable[[FigurePlan, str], str]:
    return lambda figures, experiment: figures.plan.data_file(figures.pinned(experiment)[0].dataset, file)


def _published(figure: str) -> Callable[[FigurePlan, str], list[str]]:
    return lambda figures, experiment: published_files(figures.plan, figures.resources, experiment, figure)


def _single_to_show(figures: FigurePlan, experiment: str) -> list[Run]:
    return figures.first_seeds(figures.single(experiment))


def _compared(figures: FigurePlan, experiment: str) -> list[Run]:
    return figures.compared(figures.pinned(experiment))


def _compared_to_show(figures: FigurePlan, experiment: str) -> list[Run]:
    return figures.first_seeds(_compared(figures, experiment))


def _every_compared(figures: FigurePlan, experiment: str) -> list[Run]:
    return figures.compared(figures.restricted(experiment))


#: Files by the names that the table of figures gives them.
FILES: dict[str, Callable[[FigurePlan, str], str | list[str]]] = {
    "grid": _table("grid"),
    "score_table": _table("scores"),
    "history_table": _table("histories"),
    "bound_table": _table("bound"),
    "transfer_table": _table("transfer"),
    "worth_table": _table("worth"),
    "worth_conditions_table": _table("worth_conditions"),
    "screen": _data("screen.h5ad"),
    "data_tests": _data("expression_tests.tsv"),
    "split": lambda figures, experiment: figures.plan.split_file(figures.pinned(experiment)[0], "cells.tsv"),
    "references": _splits(FigurePlan.pinned, "effects.h5ad"),
    "ample_conditions": _runs(FigurePlan.ample, "worth_conditions.tsv"),
    "ample_baseline_conditions": _splits(FigurePlan.ample, "worth_conditions.tsv"),
    "masked_scores": _runs(FigurePlan.masked, "scores.tsv"),
    "masked_perturbations": _runs(FigurePlan.masked, "perturbations.h5ad"),
    "masked_pathways": lambda figures, experiment: figures.pathway_files(experiment, figures.masked(experiment)),
    "masked_baselines": lambda figures, experiment: figures.pathway_baselines(experiment, figures.masked(experiment)),
    "single_scores": _runs(FigurePlan.single, "scores.tsv"),
    "single_effects": _runs(_single_to_show, "effects.h5ad"),
    "single_conditions": _runs(_single_to_show, "worth_conditions.tsv"),
    "single_baseline_conditions": _splits(FigurePlan.pinned, "worth_conditions.tsv"),
    "compared_scores": _runs(_compared, "scores.tsv"),
    "compared_effects": _runs(_compared_to_show, "effects.h5ad"),
    "compared_tests": _batches(_compared_to_show, "expression/tests"),
    "compared_agreement": _batches(_compared_to_show, "expression/agreement"),
    "every_compared_scores": _runs(_every_compared, "scores.tsv"),
    "every_compared_effects": _runs(_every_compared, "effects.h5ad"),
    "every_baselines": _splits(_every_compared, "baselines.tsv"),
    "every_reference": _splits(_every_compared, "effects.h5ad"),
    "every_compared_worth": _runs(_every_compared, "worth.tsv"),
    "every_baseline_worth": _splits(_every_compared, "worth.tsv"),
    "published_scores": _published("scores"),
    "published_combinations": _published("combinations"),
}

#: Values by the names of the arguments.
SETTINGS: dict[str, Callable[[FigurePlan, str], object]] = {
    "shown": lambda figures, experiment: figures.plan.study.settings[experiment].shown or "",
    "compared": lambda figures, experiment: dict(figures.plan.study.settings[experiment].compared),
    "comparable": lambda figures, experiment: not_comparable(figures.plan, experiment) == "",
    "dataset": lambda figures, experiment: figures.one_of("dataset", experiment),
    "split_name": lambda figures, experiment: figures.one_of("split", experiment),
}

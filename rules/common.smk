# The study of the configuration as look-up tables, and the functions that rules read them with.
import dataclasses
import json

import pandas as pd

from samsvae.config.study import Study
from samsvae.config.grid import batches, grid_table, run_settings, runs
from samsvae.config.validate import build
from samsvae.study.gpus import notice
from samsvae.study.code_digest import code_of as digest_of
from samsvae.errors import SamsvaeError, nearest
from samsvae.study.jobs import failed_in
from samsvae.evaluation.metrics.selection import shown
from samsvae.study.script import CALL, call_of

try:
    STUDY = build(Study, config)
    RUNS = {name: {run.id: run for run in runs(STUDY, name)} for name in STUDY.experiments}
except SamsvaeError as error:
    raise WorkflowError(f"Configuration: {error}") from None

BATCHES = {name: batches(found.values(), STUDY.runs_per_job) for name, found in RUNS.items()}
BATCH = {(name, run.id): batch for name in BATCHES for batch, found in BATCHES[name].items() for run in found}
DATASETS = {run.dataset: run.screen for found in RUNS.values() for run in found.values()}
SCREENS = {run.dataset: STUDY.settings[name].screen for name in RUNS for run in RUNS[name].values()}

RESULTS, BENCHMARKS = (Path(workflow.pathvars.apply(name)) for name in ("<results>", "<benchmarks>"))

#: Figures, and the experiments that each draws.
FIGURES = {
    "replogle_table1": ("replogle",),
    "replogle_masks": ("replogle",),
    "replogle_effects": ("replogle",),
    "replogle_de": ("replogle",),
    "norman_ood": ("norman_ood",),
    "norman_efficiency": ("norman_efficiency",),
    "simulation_recovery": ("simulation_sams", "simulation_svae"),
    "custom": ("custom",),
    "training_curves": tuple(name for name, found in RUNS.items() if any(not run.checkpoint for run in found.values())),
}
ROOT = Path(workflow.basedir)
RESOURCES = ROOT / "resources"

#: The row whose run is shown where one run is shown, and the rows beside it.
SHOWN = "sams_vae_corr"
BESIDE = ("sams_vae_corr", "cpa_vae_corr", "cond_vae", "svae_plus")
MASKED = ("bernoulli", "beta_bernoulli")

#: A run whose weights come from a checkpoint of the release; its id says so.
IMPORTED = r".*-from_.*"

#: The row without which a figure has nothing to show.
NEEDED = dict.fromkeys(["replogle_masks", "replogle_effects", "replogle_de", "norman_ood", "norman_efficiency"], SHOWN)

#: Chapters of the report in the order in which one reads them, and what the names of their figures begin with.
CHAPTERS = {
    "Data": "",
    "Replogle": "replogle",
    "Norman": "norman",
    "Simulations": "simulation",
    "Own screen": "custom",
    "Training": "",
}

#: Runs that failed where they were trained together. From then on each has a job of its own, which a later call starts.
FAILED = {
    run
    for name in BATCHES
    for batch in BATCHES[name]
    for run in failed_in(RESULTS / name / "together" / f"{batch}.tsv")
}

#: Digests of the code that trains a run and of that which scores it.
RUN_CODES = {
    "training": digest_of("src/samsvae/study/train_run.py", ROOT),
    "scoring": digest_of("src/samsvae/evaluation/run.py", ROOT),
}


def code_of(script):
    """Digest of a script and of every module of the package that it imports: the trigger of a rerun."""
    return digest_of(f"workflow/scripts/{script}.py", ROOT)


def alternatives(names):
    """A wildcard constraint that matches these names and nothing else."""
    return "|".join(re.escape(name) for name in sorted(names)) or "(?!)"


#: Runs with a job of their own, as a wildcard constraint: all, or those that failed together.
ALONE = alternatives(FAILED) if STUDY.runs_per_job > 1 else r"[\w.-]+"


def of_kind(kind):
    """The datasets of a kind of screen, as a wildcard constraint."""
    return alternatives(name for name, screen in DATASETS.items() if screen.kind == kind)


def sources_of(sort, kind=None):
    """The screens of a kind (or of any) whose source is a miniature, a path or urls, as a wildcard constraint."""
    found = STUDY.screens.items()
    return alternatives(
        name for name, screen in found if screen.source and screen.source.sort == sort and kind in (None, screen.kind)
    )


def experiment_runs(name):
    """The runs of an experiment by id; an error that names the allowed ones where it is not chosen."""
    if name not in RUNS:
        raise WorkflowError(f"experiments: {name!r} is not chosen in the configuration.{nearest(name, RUNS)}")
    return RUNS[name]


def batch_of(wildcards):
    """The runs that are trained together, by the name of their batch."""
    found = BATCHES[wildcards.experiment]
    if wildcards.batch not in found:
        raise WorkflowError(
            f"{wildcards.experiment} has no batch {wildcards.batch!r}.{nearest(wildcards.batch, found)}"
        )
    return found[wildcards.batch]


def minutes_together(wildcards):
    """The time that a batch asks for: that of its runs one after the other."""
    return 120 * len(batch_of(wildcards))


def together_of(wildcards):
    """The mark that the batch of a run was worked through, where it is in one."""
    batch = BATCH.get((wildcards.experiment, wildcards.run))
    return [f"<results>/{wildcards.experiment}/together/{batch}.tsv"] if batch else []


def benchmarks_of(wildcards):
    """The benchmarks of the jobs that may have trained each run: its own, and one that it had with others."""
    name = wildcards.experiment
    own = {run: [f"{BENCHMARKS}/{name}/train/{run}.tsv"] for run in RUNS[name]}
    shared = {run: [f"{BENCHMARKS}/{name}/together/{BATCH[name, run]}.tsv"] for run in own if (name, run) in BATCH}
    return {run: own[run] + shared.get(run, []) for run in own}


def run_of(wildcards):
    """The run that the wildcards name; of a batch, whose runs read the same data, the first."""
    found = experiment_runs(wildcards.experiment)
    if hasattr(wildcards, "batch"):
        return batch_of(wildcards)[0]
    if wildcards.run not in found:
        raise WorkflowError(f"{wildcards.experiment} has no run {wildcards.run!r}.{nearest(wildcards.run, found)}")
    return found[wildcards.run]


def source_of(wildcards):
    """The file that a screen is filtered from: a local path, or what was fetched or made."""
    name = SCREENS[wildcards.dataset]
    source = STUDY.screens[name].source
    return source.path if source.sort == "path" else f"<results>/sources/{name}.h5ad"


def verification_of(wildcards):
    """The mark that a local source was verified, where the configuration gives its checksum."""
    name = SCREENS[wildcards.dataset]
    return [f"<results>/sources/{name}.verified"] if STUDY.screens[name].source.verified else []


def arrays_of(wildcards):
    return f"<results>/data/{run_of(wildcards).dataset}/arrays.npz"


def screen_of(wildcards):
    return f"<results>/data/{run_of(wildcards).dataset}/screen.h5ad"


def split_of(wildcards):
    run = run_of(wildcards)
    return f"<results>/{run.experiment}/splits/{run.dataset}/{run.split}/cells.tsv"


def reference_of(wildcards):
    run = run_of(wildcards)
    return f"<results>/{run.experiment}/splits/{run.dataset}/{run.split}/effects.h5ad"


def split_settings(wildcards):
    """The settings of a split: those of the first run that reads it."""
    found = experiment_runs(wildcards.experiment).values()
    splits = {(run.dataset, run.split): run.split_config for run in reversed(list(found))}
    if (wildcards.dataset, wildcards.split) not in splits:
        known = [f"{dataset}/{split}" for dataset, split in splits]
        asked = f"{wildcards.dataset}/{wildcards.split}"
        raise WorkflowError(f"{wildcards.experiment} has no split {asked!r}.{nearest(asked, known)}")
    return vars(splits[wildcards.dataset, wildcards.split])


def written_split(wildcards):
    """The split table that a person has written, for a split of kind 'file'."""
    path = split_settings(wildcards)["path"]
    return [path] if path else []


def options_of(wildcards):
    """The settings of a dataset's filter or simulation, as plain values, which Snakemake can compare."""
    return dataclasses.asdict(DATASETS[wildcards.dataset].options)


def source_settings(wildcards):
    """What a source must be: its size and checksum. Where it is fetched from is no reason to fetch it again."""
    source = STUDY.screens[wildcards.screen].source
    return {"size": source.size, "checksum": source.checksum}


def local_source(wildcards):
    return STUDY.screens[wildcards.screen].source.path


def miniature_settings(wildcards):
    """The settings of a miniature, sorted: the order of keys in a file is no reason to make it anew."""
    return dict(sorted(STUDY.screens[wildcards.screen].source.miniature.items()))


def config_in_force():
    """The merged configuration, as JSON with sorted keys."""
    return json.dumps(config, indent=1, sort_keys=True)


def checksum_of(wildcards):
    """The checksum that the source of a dataset was verified by; '' where there was none."""
    source = STUDY.screens[SCREENS[wildcards.dataset]].source
    return source.checksum or "" if source.sort != "miniature" else ""


def expression_of(wildcards):
    return f"<results>/data/{run_of(wildcards).dataset}/expression_tests.tsv"


def grid_of(wildcards):
    """The rows of an experiment's grid table."""
    return grid_table(experiment_runs(wildcards.experiment).values())


def training_of(wildcards):
    """The settings that the training of a run depends on."""
    return run_settings(run_of(wildcards))


def checkpoint_of(wildcards):
    """The checkpoint of the release that a run takes its weights from, and what lists its names, where it is there."""
    path = run_of(wildcards).checkpoint
    orders = [f"{path}.{kind}.txt" for kind in ("genes", "perturbations")]
    return [path, *(order for order in orders if Path(order).is_file())]


def trainings_of(wildcards):
    """The settings that the trainings of a batch depend on."""
    return [run_settings(run) for run in batch_of(wildcards)]


def is_simulated(wildcards):
    return run_of(wildcards).screen.kind.startswith("simulate")


def each_run(file):
    """An input function: a file of every run of the experiment that the wildcards name."""
    return lambda wildcards: run_files(selected(wildcards.experiment), file)


def each_split(file):
    """An input function: a file of every split of the experiment that the wildcards name."""
    return lambda wildcards: split_files(wildcards.experiment, file)


def evaluation_of(wildcards):
    return vars(STUDY.settings[wildcards.experiment].evaluation)


def selected(name, rows=None, masked=False):
    """The runs of an experiment of some rows of the zoo, or those that have a mask to read; an error for none."""
    found = [
        run
        for run in experiment_runs(name).values()
        if (rows is None or run.row in rows) and (not masked or run.model.mask in MASKED)
    ]
    if not found:
        needed = " or ".join(rows or ["one with a mask"])
        raise WorkflowError(f"settings.{name}.grid: no run of the model that this target shows. Needed: {needed}.")
    return found


def run_files(found, file):
    """A file of each run."""
    return [f"<results>/{run.experiment}/runs/{run.id}/{file}" for run in found]


def table_of(found):
    """The score table of an experiment, where a figure needs all of its runs: it is brought up to date with the figure.

    A figure of some runs trains no others for the sake of the table.
    """
    name = found[0].experiment
    return [f"<results>/{name}/scores.tsv"] if len(found) == len(RUNS[name]) else []


def split_files(name, file):
    """A file of each split of an experiment, once."""
    found = dict.fromkeys((run.dataset, run.split) for run in experiment_runs(name).values())
    return [f"<results>/{name}/splits/{dataset}/{split}/{file}" for dataset, split in found]


def drawn():
    """The figures whose experiments are all chosen."""
    return [name for name, needed in FIGURES.items() if needed and set(needed) <= set(RUNS) and drawable(name)]


def figures_of_study():
    return expand("<results>/figures/{figure}.png", figure=drawn())


def chapter(title):
    """The title of a chapter of the report, with its number among the chapters that the study has."""
    found = [name for name, of in CHAPTERS.items() if not of or any(figure.startswith(of) for figure in drawn())]
    return f"{found.index(title) + 1} {title}" if title in found else title


def data_cards_of_study():
    return expand("<results>/figures/data_card.{experiment}.png", experiment=STUDY.experiments)


def drawable(figure):
    """Whether the grid has the runs that a figure is about: a study of a few rows draws what it can."""
    rows = {run.row for name in FIGURES[figure] for run in RUNS[name].values()}
    return not NEEDED.get(figure) or NEEDED[figure] in rows


def tables_of_experiments():
    return expand(
        "<results>/{experiment}/{table}.tsv",
        experiment=STUDY.experiments,
        table=["grid", "scores", "histories", "cost"],
    )


def pathway_files(wildcards):
    """Pathway accuracies of the masked runs, for the screen that has pathways."""
    name = wildcards.experiment
    annotated = STUDY.screens[STUDY.settings[name].screen].kind == "replogle"
    masked = [run for run in experiment_runs(name).values() if run.model.mask in MASKED]
    return run_files(masked, "pathways.tsv") if annotated else []


def may_be_shown(name, rows):
    """The runs of some rows that a figure may show, one of each setting: which setting, validation scores will say."""
    found = {run.id: run for run in selected(name, rows)}
    return [found[run] for run in shown(pd.DataFrame(grid_table(found.values())))["run"]]


def published_screen(name):
    """Whether an experiment's screen is the papers' own, so that its numbers may be held against theirs."""
    screen = STUDY.settings[name].screen
    return screen in ("replogle", "norman") and STUDY.screens[screen].source.sort != "miniature"


def norman_runs(name):
    """The runs of the Norman figures: one layer of encoder and decoder."""
    return [run for run in selected(name, BESIDE) if run.model.n_layers == 1]


def own_screen_file(file):
    """An input function: a file of the one split of an own screen; an error where its grid has several."""

    def of_split(wildcards):
        found = {(run.dataset, run.split) for run in experiment_runs("custom").values()}
        if len(found) > 1:
            raise WorkflowError(
                "settings.custom.grid: the figure 'custom' compares runs on one split of one screen; "
                f"this grid has {len(found)}. Leave axes of screen and split to other experiments."
            )
        return first_split_file("custom", file)

    return of_split


def first_split_file(name, file):
    """A file of the split that an experiment's first run reads."""
    run = next(iter(experiment_runs(name).values()))
    return f"<results>/{name}/splits/{run.dataset}/{run.split}/{file}"


def first_of(kind):
    """A function of the wildcards: the name of an experiment's first data set or split, and of how many it is."""

    def name(wildcards):
        found = list(dict.fromkeys(getattr(run, kind) for run in experiment_runs(wildcards.experiment).values()))
        return found[0] if len(found) == 1 else f"{found[0]} (first of {len(found)})"

    return name


def dataset_file(name, file):
    """A file of the data set that an experiment reads."""
    return f"<results>/data/{next(iter(experiment_runs(name).values())).dataset}/{file}"

"""The configuration of a study: frozen dataclasses, checked; plain dicts (YAML) in, JSON schema out.

An experiment is a screen, a split and a grid of runs. In a block of the grid a list is an axis, whose values
appear in the ids of the runs, and a scalar is a setting of the whole block.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import types
import typing
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any, Literal

from samsvae.config.model import ModelConfig, TrainingConfig
from samsvae.config.validate import at_least, build, checked, checked_fields, field_names, plain, type_hints
from samsvae.config.vocabulary import ENCODINGS
from samsvae.config.zoo import row
from samsvae.errors import ConfigError, nearest

SCALAR = str | int | float | bool | None


@dataclass(frozen=True)
class Source:
    """Where a screen comes from: a local ``path``, a verified download from ``urls``, or a ``miniature`` made here."""

    path: str | None = None
    urls: tuple[str, ...] = ()
    size: int | None = None
    checksum: str | None = None
    miniature: dict[str, SCALAR] | None = field(
        default=None, metadata={"schema": lambda: (*MINIATURES.values(), types.NoneType)}
    )

    def __post_init__(self):
        if self.path is None and self.miniature is None and not self.urls:
            raise ConfigError("source: give one of path, urls or miniature.")
        at_least(1, self, "size")
        if self.sort == "urls" and not (self.checksum and self.size):
            raise ConfigError("source: a download needs its size and its checksum, as md5:... or sha256:...")
        if self.sort == "path" and self.checksum and not self.size:
            raise ConfigError("source: a checksum needs the size beside it.")
        if self.checksum and not re.fullmatch("md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", self.checksum.lower()):
            raise ConfigError(f"source: the checksum {self.checksum!r} is not md5:(32 digits) or sha256:(64 digits).")

    @property
    def sort(self) -> Literal["miniature", "path", "urls"]:
        """Which of them counts: a later configuration may add one to those of an earlier."""
        return "miniature" if self.miniature is not None else "path" if self.path is not None else "urls"

    @property
    def verified(self) -> bool:
        """Whether a local file is to be verified before it is used."""
        return self.sort == "path" and self.checksum is not None


@dataclass(frozen=True)
class ReplogleMiniature:
    """A made screen in the form of Replogle's (``samsvae.screens.miniature.replogle_source``)."""

    seed: int = 0
    n_targets: int = 50
    cells_per_perturbation: int = 45
    n_controls_in_file: int = 500
    n_genes: int = 400
    n_measured: int = 200
    median_umi: float = 2000.0
    effect_size: float = 1.0

    def __post_init__(self):
        at_least(0, self, "seed", "effect_size")
        at_least(1, self, "n_targets", "cells_per_perturbation", "n_controls_in_file", "n_genes", "median_umi")
        at_least(2, self, "n_measured")  # one symbol labels two genes


@dataclass(frozen=True)
class NormanMiniature:
    """A made screen in the form of Norman's (``samsvae.screens.miniature.norman_source``)."""

    seed: int = 0
    cells_per_condition: int = 40
    n_controls: int = 300
    n_genes: int = 400
    n_variable: int = 250
    median_umi: float = 3000.0
    effect_size: float = 1.0

    def __post_init__(self):
        at_least(0, self, "seed", "effect_size")
        at_least(1, self, "cells_per_condition", "n_controls", "n_genes", "n_variable", "median_umi")


MINIATURES = {"replogle": ReplogleMiniature, "norman": NormanMiniature}


@dataclass(frozen=True)
class ReplogleOptions:
    """Filter of a Replogle screen; ``keep``: the listed cells, controls and genes of the papers, or all of the file."""

    keep: Literal["listed", "all"] = "listed"
    n_controls: int = 2000
    control_seed: int = 0
    published_counts: bool = False

    def __post_init__(self):
        at_least(0, self, "control_seed")
        at_least(1, self, "n_controls")


@dataclass(frozen=True)
class NormanOptions:
    """Filter of the Norman screen; ``genes``: a file with a gene name on each line, in place of the 5,000."""

    genes: str | None = None

    @property
    def tables(self) -> list[str]:
        """The files that the filter reads beside the counts."""
        return [self.genes] if self.genes else []


@dataclass(frozen=True)
class CustomOptions:
    """Filter of a screen of one's own (docs/own-data.md)."""

    perturbation_column: str = "perturbation"
    control: tuple[str, ...] = ("control",)
    separator: str = ""
    counts: str = "X"
    genes: str | int | tuple[str, ...] = "all"
    genes_split: SplitConfig | None = None
    library_size: str = "kept"
    min_cells: int = 1
    unlabelled: Literal["error", "drop"] = "error"
    zero_cells: Literal["error", "drop"] = "error"
    rare: Literal["error", "drop"] = "error"
    annotation: str | None = None
    cell_table: str | None = None
    keep_obs: tuple[str, ...] | None = None

    def __post_init__(self):
        at_least(0, self, "min_cells")
        if isinstance(self.genes, int):
            at_least(1, self, "genes")

    @property
    def tables(self) -> list[str]:
        """The files that the filter reads beside the counts."""
        listed = self.genes if isinstance(self.genes, str) and self.genes != "all" else None
        written = self.genes_split.path if self.genes_split else None
        return [path for path in (self.annotation, self.cell_table, listed, written) if path]


@dataclass(frozen=True)
class SamsOptions:
    """Simulation of the SAMS-VAE paper's release; ``cells`` per perturbation to train on."""

    cells: int = 500
    val_cells: int = 100
    test_cells: int = 100
    n_perturbations: int = 100
    n_features: int = 100
    sim_latents: int = 15
    sim_mask_prob: float = 2 / 15
    data_seed: int = 0

    def __post_init__(self):
        at_least(1, self, "cells", "n_perturbations", "n_features", "sim_latents")
        at_least(0, self, "val_cells", "test_cells", "data_seed")
        if not 0.0 <= self.sim_mask_prob <= 1.0:
            raise ConfigError(f"sim_mask_prob: {self.sim_mask_prob} is not a share. Allowed: 0 to 1.")


@dataclass(frozen=True)
class SparseShiftOptions:
    """Sparse-shift simulation of the SVAE+ paper; ``cells`` per intervention to train on."""

    cells: int = 400
    n_perturbations: int = 100
    n_features: int = 100
    val_cells: int = 50
    test_cells: int = 50
    sim_latents: int = 15
    n_held_out: int = 20
    n_controls: int = 0
    normalisation: Literal["published", "per_cell"] = "published"
    data_seed: int = 0

    def __post_init__(self):
        at_least(1, self, "cells", "n_perturbations", "n_features", "sim_latents")
        at_least(0, self, "val_cells", "test_cells", "n_held_out", "n_controls", "data_seed")


OPTIONS = {
    "replogle": ReplogleOptions,
    "norman": NormanOptions,
    "custom": CustomOptions,
    "simulate_sams": SamsOptions,
    "simulate_sparse_shift": SparseShiftOptions,
}


@dataclass(frozen=True)
class ScreenConfig:
    """A screen: its kind, its source (none for simulations) and the options of its filter or simulation."""

    kind: Literal["replogle", "norman", "custom", "simulate_sams", "simulate_sparse_shift"]
    source: Source | None = None
    options: dict[str, Any] = field(default_factory=dict, metadata={"schema": lambda: tuple(OPTIONS.values())})

    def __post_init__(self):
        object.__setattr__(self, "options", build(OPTIONS[self.kind], self.options, "options"))
        if (self.source is None) != self.kind.startswith("simulate"):
            raise ConfigError(
                f"source: {'not allowed' if self.source else 'needed'} for a screen of kind {self.kind!r}."
            )
        if self.source and self.source.sort == "miniature":
            if self.kind not in MINIATURES:
                allowed = " and ".join(MINIATURES)
                raise ConfigError(f"source.miniature: not allowed for kind {self.kind!r}. Allowed: for {allowed}.")
            given = self.source.miniature
            made = plain(build(MINIATURES[self.kind], given, "source.miniature"))
            # YAML reads 2e3 as text; and no more than is given: a default is no reason to make it anew
            object.__setattr__(self, "source", replace(self.source, miniature={key: made[key] for key in given}))


@dataclass(frozen=True)
class SplitConfig:
    """How cells are split; the kinds are those of ``samsvae.screens.splits``."""

    kind: Literal["random", "norman_ood", "norman_efficiency", "held_out", "given", "file"] = "random"
    test_fraction: float = 0.2
    val_fraction: float = 0.2
    fraction: float = 1.0
    test_pairs: float = 0.25
    conditions: tuple[str, ...] = ()
    combinations_of: tuple[str, ...] = ()
    path: str | None = None
    split_seed: int = 0

    def __post_init__(self):
        at_least(0, self, "split_seed")
        for name in ("test_fraction", "val_fraction", "fraction", "test_pairs"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name}: {getattr(self, name)} is not a fraction. Allowed: 0 to 1.")
        for name, kinds in (("fraction", ("norman_ood", "norman_efficiency")), ("test_pairs", ("norman_ood",))):
            if getattr(self, name) != getattr(SplitConfig, name) and self.kind not in kinds:
                allowed = " and ".join(map(repr, kinds))
                raise ConfigError(f"{name}: a split of kind {self.kind!r} does not read it. Allowed: with {allowed}.")
        if (self.kind == "file") != (self.path is not None):
            raise ConfigError("path: needed for a split of kind 'file', and only there.")
        if (self.kind == "held_out") != bool(self.conditions or self.combinations_of):
            raise ConfigError("conditions or combinations_of: needed for a split of kind 'held_out', and only there.")


@dataclass(frozen=True)
class EvaluationConfig:
    """How a trained model is scored (published protocol by default)."""

    iwelbo_particles: int = 100
    ate_samples: int = 2500
    ate_library: float = 10_000.0
    ate_closed_form: bool = False
    pathway_repeats: int = 10
    pathway_trees: int = 500
    pathway_permutations: int = 20
    de_conditions: int = 4
    de_cells: int = 200

    def __post_init__(self):
        for item in dataclasses.fields(self):
            if not isinstance(getattr(self, item.name), bool) and not getattr(self, item.name) > 0:
                raise ConfigError(f"{item.name}: {getattr(self, item.name)} is not allowed; it must be above 0.")


@dataclass(frozen=True)
class Experiment:
    """A screen, a split and a grid of runs. ``model`` and ``training`` hold for every run; a block's own come after."""

    screen: str
    grid: tuple[dict[str, Any], ...]
    split: SplitConfig = field(default_factory=SplitConfig)
    model: dict[str, SCALAR] = field(default_factory=dict)
    training: dict[str, SCALAR] = field(default_factory=dict)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass(frozen=True)
class PathVars:
    """The folders of all that is made, which Snakemake puts in the place of <results>, <logs> and <benchmarks>."""

    results: str = "results"
    logs: str = "<results>/logs"
    benchmarks: str = "<results>/benchmarks"

    def __post_init__(self):
        for name in field_names(PathVars):
            if not getattr(self, name):
                raise ConfigError(f"{name}: '' is not allowed. Needed: a folder.")

    def folder(self, name: str) -> str:
        """The path of one of them."""
        return getattr(self, name).replace("<results>", self.results)


@dataclass(frozen=True)
class Study:
    """The whole configuration: which experiments to run, their settings, and the screens they read."""

    experiments: tuple[str, ...]
    settings: dict[str, Experiment]
    screens: dict[str, ScreenConfig]
    title: str = "samsvae"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    jobs_per_gpu: int = 1
    runs_per_job: int = 1
    checkpoint_minutes: float = 5.0
    pathvars: PathVars = field(default_factory=PathVars)

    def __post_init__(self):
        if not self.checkpoint_minutes > 0:
            raise ConfigError(f"checkpoint_minutes: {self.checkpoint_minutes} is not allowed; it must be above 0.")
        at_least(1, self, "jobs_per_gpu", "runs_per_job")
        if not self.experiments:
            raise ConfigError(f"experiments: none chosen.{nearest('', self.settings)}")
        for name in self.experiments:
            if name not in self.settings:
                raise ConfigError(f"experiments: no settings for {name!r}.{nearest(name, self.settings)}")
            if (screen := self.settings[name].screen) not in self.screens:
                raise ConfigError(f"settings.{name}.screen: unknown {screen!r}.{nearest(screen, self.screens)}")


@dataclass(frozen=True)
class Run:
    """One training: its id, what it reads and its full settings. ``axes`` are the values the id is made of.

    ``checkpoint``: a file of the SAMS-VAE release whose weights are taken in place of a training.
    """

    id: str
    experiment: str
    row: str
    dataset: str
    split: str
    encoding: str
    model: ModelConfig
    training: TrainingConfig
    screen: ScreenConfig
    split_config: SplitConfig
    axes: dict[str, SCALAR]
    checkpoint: str | None = None


# ---- runs of a grid ------------------------------------------------------------------------------------------------

#: Axes in the order of a run's id, with the word that stands for each; any other axis goes by its own name.
WORDS = {
    "checkpoint": "from_",
    "n_layers": "layers",
    "n_latent": "latents",
    "mask_prior": "alpha",
    "beta_b": "b",
    "mask_penalty": "lambda",
    "kl_weight": "beta",
    "encoding": "",
    "cells": "cells",
    "data_seed": "draw",
    "split_seed": "split",
    "fraction": "frac",
    "seed": "seed",
}


def _word(key: str, value: SCALAR, where: str) -> str:
    if key == "checkpoint":
        return f"{WORDS[key]}{re.sub(r'[^A-Za-z0-9_.]+', '_', PurePath(value).stem)}"
    if "/" in str(value):
        raise ConfigError(
            f"{where}.{key}: {value!r} is not allowed in a grid, whose values become parts of file names."
        )
    return f"{WORDS.get(key, key)}{value}"


def _ordered(keys: typing.Iterable[str]) -> list[str]:
    order = list(WORDS)
    return sorted(keys, key=lambda key: (order.index(key) if key in order else -1, key))


def runs(study: Study, name: str) -> list[Run]:
    """Every run of an experiment, in the order of its grid; ConfigError for an unknown axis or a run named twice."""
    experiment, found = study.settings[name], {}
    screen = study.screens[experiment.screen]
    homes = {
        "options": field_names(type(screen.options)),
        "split": field_names(SplitConfig) - {"kind", "conditions", "combinations_of", "path"},
        "model": field_names(ModelConfig),
        "training": field_names(TrainingConfig),
    }
    known = {"model", "encoding", "checkpoint"}.union(*homes.values())
    checked_fields(ModelConfig, experiment.model, f"settings.{name}.model")
    checked_fields(TrainingConfig, experiment.training, f"settings.{name}.training")
    if not experiment.grid:
        raise ConfigError(f"settings.{name}.grid: it is empty. Needed: blocks, each with a model or a list of models.")
    for number, block in enumerate(experiment.grid):
        where = f"settings.{name}.grid[{number}]"
        for key in block:
            if key not in known:
                raise ConfigError(f"{where}: unknown axis {key!r}.{nearest(key, sorted(known))}")
            if isinstance(block[key], list | tuple) and not block[key]:
                raise ConfigError(f"{where}.{key}: the list is empty, so that the block has no run.")
        if "model" not in block:
            raise ConfigError(f"{where}: no 'model'; give a model or a list of models.")
        axes = {key: value for key, value in block.items() if isinstance(value, list | tuple)}
        axes.setdefault("model", [block["model"]])
        if "checkpoint" in block:  # always in the id, which tells imported weights from trained ones
            axes["checkpoint"] = checked(block["checkpoint"], tuple[str, ...], f"{where}.checkpoint")
        fixed = {key: value for key, value in block.items() if key not in axes}
        for values in itertools.product(*axes.values()):
            chosen = dict(zip(axes, values, strict=True))
            if "checkpoint" in axes and "seed" not in block:  # replicates of a setting, as seeds are
                chosen["seed"] = axes["checkpoint"].index(chosen["checkpoint"])
            run = _run(study, name, where, chosen, fixed, homes)
            if run.id in found:
                raise ConfigError(f"{where}: the run {run.id!r} is there twice; make the blocks differ in an axis.")
            found[run.id] = run
    if len({run.checkpoint is None for run in found.values()}) > 1:
        raise ConfigError(
            f"settings.{name}.grid: some runs have a checkpoint and others are trained, and tables would pool them. "
            "Give those with a checkpoint an experiment of their own."
        )
    return list(found.values())


def _run(study: Study, name: str, where: str, chosen: dict, fixed: dict, homes: dict[str, set[str]]) -> Run:
    experiment = study.settings[name]
    screen = study.screens[experiment.screen]
    every = {**fixed, **chosen}
    named = checked(every["model"], str, f"{where}.model")
    try:
        model = row(named)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None

    def picked(home: str) -> dict:
        return {key: value for key, value in every.items() if key in homes[home] and key != "model"}

    options = build(type(screen.options), {**plain(screen.options), **picked("options")}, where)
    split = build(SplitConfig, {**plain(experiment.split), **picked("split")}, where)
    encoding = every.get("encoding", "sum")
    if encoding not in ENCODINGS:
        raise ConfigError(f"{where}.encoding: {encoding!r} is not known.{nearest(encoding, ENCODINGS)}")
    axes = {key: chosen[key] for key in _ordered(chosen) if key != "model"}
    words = [_word(key, value, where) for key, value in axes.items()]
    # files of one name have one content, so that a block's single values are in the names of data and splits too
    data_words, split_words = (
        [_word(key, every[key], where) for key in _ordered(every) if key in homes[home]]
        for home in ("options", "split")
    )
    return Run(
        id="-".join([every["model"], *words]),
        experiment=name,
        row=every["model"],
        dataset="-".join([experiment.screen, *data_words]),
        split="-".join([split.kind, *split_words]),
        encoding=encoding,
        model=build(ModelConfig, {**experiment.model, **model.model, **picked("model")}, where),
        training=build(TrainingConfig, {**experiment.training, **model.training, **picked("training")}, where),
        screen=replace(screen, options=plain(options)),
        split_config=split,
        axes=axes,
        checkpoint=chosen.get("checkpoint"),
    )


def batches(found: typing.Iterable[Run], size: int) -> dict[str, list[Run]]:
    """Runs that read the same data and split, at most ``size`` together, by a name. {} where ``size`` is 1.

    In the order of the grid, so that runs of one model come together.
    """
    if size == 1:
        return {}
    alike: dict[tuple[str, str], list[Run]] = {}
    for run in found:
        if run.checkpoint is None:
            alike.setdefault((run.dataset, run.split), []).append(run)
    return {
        f"{dataset}.{split}.{at // size}": same[at : at + size]
        for (dataset, split), same in alike.items()
        for at in range(0, len(same), size)
    }


def grid_table(runs: list[Run]) -> list[dict[str, SCALAR]]:
    """A row per run: id, model, method, inference, the axes of the whole experiment, dataset and split."""
    keys = _ordered({key for run in runs for key in run.axes} | {"encoding"})
    rows = []
    for run in runs:
        settings = {**plain(run.screen.options), **plain(run.split_config), **plain(run.training)}
        settings |= {**plain(run.model), "encoding": run.encoding, "checkpoint": run.checkpoint}
        named = {"run": run.id, "model": run.row, "method": row(run.row).method, "inference": row(run.row).inference}
        rows.append({**named, **{key: settings[key] for key in keys}, "dataset": run.dataset, "split_name": run.split})
    return rows


def run_settings(run: Run) -> dict[str, Any]:
    """What the training of a run depends on, as plain values: the params of its rule."""
    own = {"run": run.id, "model": run.row, "encoding": run.encoding}
    return own | {"config": dataclasses.asdict(run.model), "training": dataclasses.asdict(run.training)}


def schema(cls: type = Study) -> dict[str, Any]:
    """The JSON schema of a configuration, for editors and for those who read (config/schema.json)."""
    top = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Configuration of samsvae"}
    return top | _schema_of(cls)


def _schema_of(hint: Any) -> dict[str, Any]:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return {}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema_of(option) for option in args]}
    if origin is Literal:
        return {"enum": list(args)}
    if origin is tuple:
        items = {"type": "array", "items": _schema_of(args[0])}
        return {"anyOf": [items, {"type": "string"}]} if args[0] is str else items
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema_of(args[1])}
    if dataclasses.is_dataclass(hint):
        properties, required = {}, []
        for item in dataclasses.fields(hint):
            properties[item.name] = _schema_of(type_hints(hint)[item.name])
            if "schema" in item.metadata:  # the types behind a field that holds a plain dict
                properties[item.name] = {"anyOf": [_schema_of(kind) for kind in item.metadata["schema"]()]}
            if item.default is not dataclasses.MISSING:
                default = item.default
                properties[item.name]["default"] = list(default) if isinstance(default, tuple) else default
            elif item.default_factory is dataclasses.MISSING:
                required.append(item.name)
        text = {"description": " ".join((hint.__doc__ or "").split())}
        return {"type": "object", **text, "properties": properties, "required": required, "additionalProperties": False}
    names = {int: "integer", float: "number", str: "string", bool: "boolean", types.NoneType: "null"}
    return {"type": names[hint]}

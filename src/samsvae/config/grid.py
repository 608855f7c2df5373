"""The runs of a grid and their ids.

An experiment is a screen, a split and a grid of runs. In a block of the grid, a list is an axis whose values become
part of each run's id, and a scalar is a setting for all runs of the block.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing
from dataclasses import dataclass, replace
from typing import Any

from samsvae.config import first_fit
from samsvae.config.model import ModelConfig
from samsvae.config.run_ids import make_id, order_axes
from samsvae.config.screens import SCALAR, CustomOptions, ScreenConfig
from samsvae.config.splits import SplitConfig
from samsvae.config.study import Study
from samsvae.config.training import TrainingConfig
from samsvae.config.transfer import TransferConfig
from samsvae.config.validate import build, check_path, checked, checked_fields, field_names, plain
from samsvae.config.vocabulary import ENCODINGS
from samsvae.config.zoo import row
from samsvae.errors import ConfigError, nearest, quoted

#: Kinds of splits that the filter of a screen can make, because they need no column of another screen.
SPLIT_IN_FILTER = ("random", "held_out", "held_out_context", "file")


@dataclass(frozen=True)
class Run:
    """One training: its id, its data and its complete settings. ``axes``: the values in the id.

    ``checkpoint``: a file of the SAMS-VAE release whose weights are used instead of a training. ``by_size``: settings
    of the model and the training that are chosen when the training cells are known (`first_fit.by_size`).
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
    by_size: tuple[str, ...] = ()


def runs(study: Study, name: str) -> list[Run]:
    """All runs of an experiment, in the order of its grid; ConfigError for an unknown axis or a repeated id."""
    experiment = study.settings[name]
    screen = study.screens[experiment.screen]
    sections = {
        "options": field_names(type(screen.options)),
        "split": field_names(SplitConfig) - {"kind", "conditions", "combinations_of", "path"},
        "model": field_names(ModelConfig),
        "training": field_names(TrainingConfig),
    }
    checked_fields(ModelConfig, experiment.model, f"settings.{name}.model")
    checked_fields(TrainingConfig, experiment.training, f"settings.{name}.training")
    if not experiment.grid:
        raise ConfigError(f"settings.{name}.grid: it is empty. Needed: blocks, each with a model or a list of models.")
    known = {"model", "encoding", "checkpoint"}.union(*sections.values())
    found: dict[str, Run] = {}
    for number, block in enumerate(experiment.grid):
        where = f"settings.{name}.grid[{number}]"
        _check_block(block, where, known)
        for chosen, fixed in _combinations(block, where):
            run = _run(study, name, where, chosen, fixed, sections)
            if run.id in found:
                raise ConfigError(f"{where}: the run {run.id!r} appears twice; make the blocks differ in an axis.")
            found[run.id] = run
    if len({run.checkpoint is None for run in found.values()}) > 1:
        raise ConfigError(
            f"settings.{name}.grid: some runs have a checkpoint and others are trained, and tables would pool them. "
            "Move the runs with a checkpoint to a separate experiment."
        )
    _check_compared(list(found.values()), experiment.compared, f"settings.{name}.compared", known)
    _check_transfer(list(found.values()), experiment.transfer, f"settings.{name}")
    return list(found.values())


def restrict(found: list[Run], compared: typing.Mapping[str, SCALAR]) -> list[Run]:
    """The runs with these values of the axes of their grid (setting ``compared``); other settings are ignored."""
    return [
        run
        for run, settings in zip(found, grid_table(found), strict=True)
        if all(settings.get(axis, value) == value for axis, value in compared.items())
    ]


def _check_compared(found: list[Run], compared: dict[str, SCALAR], where: str, known: set[str]) -> None:
    """ConfigError for an unknown axis, or if the grid has the axis and none of the runs that are left has the value."""
    for axis, value in compared.items():
        if axis not in known:
            raise ConfigError(f"{where}: unknown axis {quoted(axis)}.{nearest(axis, sorted(known))}")
        left = restrict(found, {axis: value})
        if not left:
            values = {settings[axis] for settings in grid_table(found)}
            raise ConfigError(f"{where}.{axis}: no run has {quoted(value)}.{nearest(value, sorted(values, key=str))}")
        found = left


def _check_transfer(found: list[Run], transfer: TransferConfig | None, where: str) -> None:
    """ConfigError if the runs cannot be adapted to new perturbations as the setting ``transfer`` asks for."""
    if transfer is None:
        return
    transfer.check_models({run.row for run in found}, f"{where}.transfer")
    if imported := [run.checkpoint for run in found if run.checkpoint]:
        raise ConfigError(
            f"{where}.transfer: not allowed with {imported[0]!r} in the grid, because weights of the release were "
            "trained on all perturbations. Remove the checkpoints or the setting."
        )


def _check_block(block: dict[str, Any], where: str, known: set[str]) -> None:
    """ConfigError for an unknown axis, an empty list or a missing model."""
    for key in block:
        if key not in known:
            raise ConfigError(f"{where}: unknown axis {quoted(key)}.{nearest(key, sorted(known))}")
        if isinstance(block[key], list | tuple) and not block[key]:
            raise ConfigError(f"{where}.{key}: the list is empty, so the block has no runs. Give at least one value.")
    if "model" not in block:
        raise ConfigError(f"{where}: no 'model'; give a model or a list of models.")


def _combinations(block: dict[str, Any], where: str) -> typing.Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """For each run of a block, the values of its axes and the fixed settings."""
    axes = {key: value for key, value in block.items() if isinstance(value, list | tuple)}
    axes.setdefault("model", [block["model"]])
    if "checkpoint" in block:  # always in the id, to tell imported weights from trained ones
        axes["checkpoint"] = checked(block["checkpoint"], tuple[str, ...], f"{where}.checkpoint")
        for path in axes["checkpoint"]:
            check_path(f"{where}.checkpoint", path)
    fixed = {key: value for key, value in block.items() if key not in axes}
    for values in itertools.product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        if "checkpoint" in axes and "seed" not in block:  # checkpoints are replicates, like seeds
            chosen["seed"] = axes["checkpoint"].index(chosen["checkpoint"])
        yield chosen, fixed


def _run(study: Study, name: str, where: str, chosen: dict, fixed: dict, sections: dict[str, set[str]]) -> Run:
    """A run of an experiment. ``chosen``: its axes; ``fixed``: the scalars of its block; ``sections``: their keys."""
    experiment = study.settings[name]
    screen = study.screens[experiment.screen]
    settings = {**fixed, **chosen}
    model_name = checked(settings["model"], str, f"{where}.model")
    try:
        model = row(model_name)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None

    def picked(section: str) -> dict[str, Any]:
        return {key: value for key, value in settings.items() if key in sections[section] and key != "model"}

    options = build(type(screen.options), {**plain(screen.options), **picked("options")}, where)
    split = build(SplitConfig, {**plain(experiment.split), **picked("split")}, where)
    name_of_split = split.kind
    if own_screen := isinstance(options, CustomOptions):
        options, split = _genes_on_training_cells(study, experiment.screen, options, split)
    own_model = first_fit.MODEL | first_fit.MODEL_BY_SIZE if own_screen else {}
    own_training = first_fit.TRAINING | first_fit.TRAINING_BY_SIZE if own_screen else {}
    start = first_fit.START | {k: v for k, v in experiment.model.items() if k == "start"} if own_screen else {}
    model_given = {**experiment.model, **model.model, **start, **picked("model")}
    training_given = {**experiment.training, **model.training, **picked("training")}
    by_size = first_fit.TYPICAL.keys() - {*model_given, *training_given}
    config = build(ModelConfig, own_model | model_given, where)
    training = build(TrainingConfig, own_training | training_given, where)
    encoding = settings.get("encoding", "sum")
    if encoding not in ENCODINGS:
        raise ConfigError(f"{where}.encoding: {quoted(encoding)} is not known.{nearest(encoding, ENCODINGS)}")
    axes = {key: chosen[key] for key in order_axes(chosen) if key != "model"}
    # names of data and splits also contain a block's scalars, so that files with one name have one content
    of_data, of_split = (
        {key: value for key, value in settings.items() if key in sections[section]} for section in ("options", "split")
    )
    return Run(
        id=make_id(settings["model"], axes, where),
        experiment=name,
        row=settings["model"],
        dataset=make_id(experiment.screen, of_data, where),
        split=make_id(name_of_split, of_split, where),
        encoding=encoding,
        model=config,
        training=training,
        screen=replace(screen, options=plain(options)),
        split_config=split,
        axes=axes,
        checkpoint=chosen.get("checkpoint"),
        by_size=tuple(sorted(by_size)) if own_screen else (),
    )


def _genes_on_training_cells(
    study: Study, screen: str, options: CustomOptions, split: SplitConfig
) -> tuple[CustomOptions, SplitConfig]:
    """Let the filter split the cells, so that ``genes: auto`` is decided on training cells alone.

    This needs one split for all runs that read the screen. Otherwise nothing changes, and the filter uses all cells.
    """
    readers = [study.settings[name] for name in study.experiments if study.settings[name].screen == screen]
    varied = field_names(SplitConfig) & {key for reader in readers for block in reader.grid for key in block}
    one_split = not varied and all(reader.split == split for reader in readers)
    if options.genes != "auto" or options.genes_split or not one_split or split.kind not in SPLIT_IN_FILTER:
        return options, split
    return replace(options, genes_split=split), SplitConfig(kind="given")


def batches(found: typing.Iterable[Run], size: int) -> dict[str, list[Run]]:
    """Named batches of at most ``size`` runs with the same data and split; {} if ``size`` is 1.

    Runs keep the order of the grid, so that runs of one model stay together.
    """
    if size == 1:
        return {}
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in found:
        if run.checkpoint is None:
            groups.setdefault((run.dataset, run.split), []).append(run)
    return {
        f"{dataset}.{split}.{start // size}": group[start : start + size]
        for (dataset, split), group in groups.items()
        for start in range(0, len(group), size)
    }


def grid_table(runs: list[Run]) -> list[dict[str, SCALAR]]:
    """One row per run: id, model, method, inference, the axes of all runs of the experiment, dataset and split."""
    keys = order_axes({key for run in runs for key in run.axes} | {"encoding"})
    rows = []
    for run in runs:
        settings = {**plain(run.screen.options), **plain(run.split_config), **plain(run.training)}
        settings |= {**plain(run.model), "encoding": run.encoding, "checkpoint": run.checkpoint}
        names = {"run": run.id, "model": run.row, "method": row(run.row).method, "inference": row(run.row).inference}
        rows.append({**names, **{key: settings[key] for key in keys}, "dataset": run.dataset, "split_name": run.split})
    return rows


def run_settings(run: Run) -> dict[str, Any]:
    """Everything that the training of a run depends on, as plain values: the params of its rule.

    A setting that the size of the training cells decides is 'auto'.
    """
    auto = dict.fromkeys(run.by_size, first_fit.AUTO)
    config, training = dataclasses.asdict(run.model), dataclasses.asdict(run.training)
    config |= {name: value for name, value in auto.items() if name in config}
    training |= {name: value for name, value in auto.items() if name in training}
    return {"run": run.id, "model": run.row, "encoding": run.encoding, "config": config, "training": training}

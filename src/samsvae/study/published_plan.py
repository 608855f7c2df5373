"""Which published tables there are, and which experiments of a study repeat them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from samsvae.config.training import TrainingConfig
from samsvae.config.zoo import TABLE_1
from samsvae.study.plan import Plan

#: Published tables: figure, screen (a name that is also its kind), kind of split (None: any with test cells), file.
PUBLISHED = (
    ("scores", "replogle", None, "replogle_table1.tsv"),
    ("combinations", "norman", "norman_ood", "norman_ood.csv"),
    ("combinations", "norman", "norman_efficiency", "norman_data_efficiency.csv"),
)

#: Why scores may not be those of the papers.
MINIATURE, OTHER_DATA, OTHER_TRAINING = "miniature screen", "other data", "other training"

#: The published training of the models in these tables, by screen: where it differs from the defaults.
TRAINING: dict[str, dict[str, Any]] = {"replogle": {}, "norman": {"steps": 30_000, "gradient_clip": 100.0}}

#: Settings of a training that are not part of a published training: they change its speed, or late digits.
TECHNICAL = ("precision", "kernel", "capture", "compile", "seed")


def published_files(plan: Plan, resources: Path, experiment: str, figure: str) -> list[str]:
    """The table of published numbers for a figure of an experiment, if there is one."""
    name = plan.study.settings[experiment].screen
    return [
        str(resources / "published" / file)
        for of_figure, screen, split, file in PUBLISHED
        if (of_figure, screen) == (figure, name) and _repeats(plan, experiment, screen, split)
    ]


def not_comparable(plan: Plan, experiment: str) -> str:
    """Why the scores of an experiment may not be compared with the papers'; '' if screen and training are theirs."""
    name = plan.study.settings[experiment].screen
    screen = plan.study.screens[name]
    if screen.source is not None and screen.source.sort == "miniature":
        return MINIATURE
    own = screen.kind == name and name in {row[1] for row in PUBLISHED}
    return (OTHER_TRAINING if other_training(plan, experiment) else "") if own else OTHER_DATA


def other_training(plan: Plan, experiment: str) -> dict[str, Any]:
    """The settings of a training, and ``start``, that differ from the published ones in any run of Table 1's models.

    Their values are those of the first such run. {} for experiments without a published training.
    """
    published = TRAINING.get(plan.study.settings[experiment].screen)
    if published is None:
        return {}
    theirs = {"start": "published"} | asdict(TrainingConfig(**published))
    found: dict[str, Any] = {}
    for run in plan.runs[experiment].values():
        if run.row in TABLE_1 and run.checkpoint is None:
            ours = {"start": run.model.start} | asdict(run.training)
            found = {key: ours[key] for key in ours if key not in TECHNICAL and ours[key] != theirs[key]} | found
    return found


def reproductions(plan: Plan, resources: Path, out: Path) -> list[dict[str, object]]:
    """Each published table with an experiment that repeats it, as plain values for `study.reproduction`.

    ``scores``: the score table of the experiment in the folder ``out``; '' if no experiment has such a screen and
    split. ``not_comparable``: as above; if there are several experiments, those on the paper's own screen count.
    """
    found: list[dict[str, object]] = []
    for figure, screen, split, file in PUBLISHED:
        same = {name: not_comparable(plan, name) for name in plan.runs if _repeats(plan, name, screen, split)}
        why = next((why for why in ("", OTHER_TRAINING, MINIATURE, OTHER_DATA) if why in same.values()), "")
        for name in [name for name, other in same.items() if other == why] or [""]:
            found.append(
                {
                    "task": split or screen,
                    "figure": figure,
                    "published": str(resources / "published" / file),
                    "experiment": name,
                    "scores": f"{out}/{name}/scores.tsv" if name else "",
                    "compared": dict(plan.study.settings[name].compared) if name else {},
                    "not_comparable": why,
                }
            )
    return found


def _repeats(plan: Plan, experiment: str, screen: str, split: str | None) -> bool:
    """Whether an experiment has a screen and a split of these kinds."""
    run = next(iter(plan.runs[experiment].values()))
    kind = run.split_config.kind
    return run.screen.kind == screen and (kind == split or (split is None and kind != "transfer"))

"""Which published tables there are, and which experiments of a study repeat them."""

from __future__ import annotations

from pathlib import Path

from samsvae.study.plan import Plan

#: Published tables: figure, screen (a name that is also its kind), kind of split (None: any with test cells), file.
PUBLISHED = (
    ("scores", "replogle", None, "replogle_table1.tsv"),
    ("combinations", "norman", "norman_ood", "norman_ood.csv"),
    ("combinations", "norman", "norman_efficiency", "norman_data_efficiency.csv"),
)

#: Why scores may not be those of the papers.
MINIATURE, OTHER_DATA = "miniature screen", "other data"


def published_files(plan: Plan, resources: Path, experiment: str, figure: str) -> list[str]:
    """The table of published numbers for a figure of an experiment, if there is one."""
    name = plan.study.settings[experiment].screen
    return [
        str(resources / "published" / file)
        for of_figure, screen, split, file in PUBLISHED
        if (of_figure, screen) == (figure, name) and _repeats(plan, experiment, screen, split)
    ]


def not_comparable(plan: Plan, experiment: str) -> str:
    """Why the scores of an experiment may not be compared with the papers'; '' if its screen is theirs."""
    name = plan.study.settings[experiment].screen
    screen = plan.study.screens[name]
    if screen.source is not None and screen.source.sort == "miniature":
        return MINIATURE
    own = screen.kind == name and name in {row[1] for row in PUBLISHED}
    return "" if own else OTHER_DATA


def reproductions(plan: Plan, resources: Path, out: Path) -> list[dict[str, object]]:
    """Each published table with an experiment that repeats it, as plain values for `study.reproduction`.

    ``scores``: the score table of the experiment in the folder ``out``; '' if no experiment has such a screen and
    split. ``not_comparable``: as above; if there are several experiments, those on the paper's own screen count.
    """
    found: list[dict[str, object]] = []
    for figure, screen, split, file in PUBLISHED:
        same = {name: not_comparable(plan, name) for name in plan.runs if _repeats(plan, name, screen, split)}
        why = next((why for why in ("", MINIATURE, OTHER_DATA) if why in same.values()), "")
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

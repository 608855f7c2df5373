"""The honest protocol: scores of predicted effects with baselines, ceilings and intervals (docs/evaluation.md).

The truth is the effect in test cells, against test controls; a model's effects are at the depths of these cells, and
baselines read training cells alone. Scores are per condition, so that two predictors can be compared on the conditions
that both predict. Letters: n cells, C conditions (rows by code, NaN where undefined), G genes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
import pandas as pd

from samsvae.data.arrays import Screen
from samsvae.errors import DataError
from samsvae.evaluation.effects_at_depth import effect_draws_at_depth
from samsvae.evaluation.metrics import baselines
from samsvae.evaluation.metrics.agreement import LEAST_RELIABILITY, nmse_terms, pearson
from samsvae.evaluation.metrics.calibration import REPEATS, Calibration, calibrate, calibration
from samsvae.evaluation.metrics.constants import HONEST
from samsvae.evaluation.metrics.coverage import Intervals, coverage, join, normal_intervals, posterior_intervals
from samsvae.evaluation.metrics.discrimination import discrimination
from samsvae.evaluation.metrics.estimates import (
    LEAST_FOR_VARIANCE,
    REFERENCES,
    Effects,
    at_reference,
    centred,
    condition_moments,
    detected,
    effects,
    scored_sets,
)
from samsvae.evaluation.metrics.halves import half_effects, halves
from samsvae.evaluation.metrics.intervals import Interval, bootstrap
from samsvae.evaluation.metrics.reliability import ceiling_perfect, reliability_pooled
from samsvae.models.model import Model

#: The columns of a table of scores by condition: for nmse, ``value`` is the numerator and ``weight`` the denominator.
CONDITIONS = ("metric", "set", "condition", "value", "weight")

#: The columns of a table of scores: a mean over conditions with its interval, or why it is undefined.
SCORES = ("protocol", "metric", "set", "value", "low", "high", "n_conditions", "reason")


class Score(NamedTuple):
    """A score by condition: values (S,), weights (S,) if the mean is a ratio of sums, and why it is undefined."""

    values: np.ndarray
    weights: np.ndarray | None = None
    reason: str = ""

    def mean(self) -> Interval:
        return bootstrap(self.values, over=self.weights)


@dataclass(frozen=True)
class Truth:
    """Observed effects of a screen under one split.

    ``test``, ``train`` and ``every``: effects from these cells, each against its own controls. ``sets``: the scored
    conditions of ``seen``, ``unseen`` and ``all``, (C,) bool; a set of fewer than 3 conditions is missing. ``genes``
    (G,) bool: detected in training controls. ``targets``: genes that the panel targets. ``libraries``: the library
    sizes of every condition's test cells, and of the control's.
    """

    names: np.ndarray
    members: np.ndarray
    test: Effects
    train: Effects
    every: Effects
    sets: dict[str, np.ndarray]
    genes: np.ndarray
    targets: np.ndarray
    libraries: list[np.ndarray]
    control: int

    @property
    def rows(self) -> np.ndarray:
        """The conditions that some set scores, as codes."""
        return np.flatnonzero(np.any(list(self.sets.values()), axis=0))

    @cached_property
    def baselines(self) -> dict[str, np.ndarray]:
        """Effects (C, G) predicted from training cells alone (S4); NaN where a baseline is silent."""
        train = np.isfinite(self.train.delta).all(1)
        delta, shape = self.train.delta, self.train.delta.shape
        if not train.any():
            return {"no_change": baselines.no_change(shape)}
        found = {
            "no_change": baselines.no_change(shape),
            "mean_of_perturbations": baselines.mean_of_perturbations(delta, train),
            "train_mean": delta,
            "shrunk": baselines.shrunk(delta, self.train.se2, train),
            "ridge_pc": baselines.ridge_pc(delta, self.members, train),
        }
        if self.members.shape[1] > 1:
            found["additive"] = baselines.additive(delta, self.members)
            found["matching_mean"] = baselines.matching_mean(delta, self.members, train)
        return found


def truth_of(screen: Screen, split: np.ndarray) -> Truth:
    """The observed effects of a screen under a split (n,).

    DataError, in one sentence, if the split has no effects to score: no control, or fewer than two cells of it in
    training or in test and validation, or fewer than 3 conditions with 10 test cells.
    """
    untreated = np.flatnonzero((screen.members < 0).all(1))
    if not len(untreated):
        raise DataError("the screen has no control cells, against which effects are measured.")
    control, n_conditions = int(untreated[0]), len(screen.conditions)
    moments = {
        name: condition_moments(screen.counts, screen.condition, n_conditions, cells=cells, method=screen.transform)
        for name, cells in {**{s: split == s for s in ("train", "val", "test")}, "every": split != ""}.items()
    }
    tested = moments["test"] if moments["test"].n[control] >= LEAST_FOR_VARIANCE else moments["val"]
    sets = scored_sets(moments["train"].n, moments["test"].n, control=control)
    if not sets:
        raise DataError("fewer than 3 conditions have 10 test cells.")
    if any((rows == sets["all"]).all() for name, rows in sets.items() if name != "all"):
        del sets["all"]  # the same rows under another name
    at_control = screen.condition == control
    controls = "test" if tested is moments["test"] else "val"
    parts = {c: split == ("test" if c != control else controls) for c in range(n_conditions)}
    # real values have no depth
    library = screen.library if screen.transform == "log2" else np.ones(len(split))
    libraries = [library[(screen.condition == c) & part] for c, part in parts.items()]
    if screen.transform == "log2":
        genes = detected(screen.counts, at_control & (split == "train"))
    else:
        genes = np.ones(len(screen.genes), bool)
    return Truth(
        names=screen.conditions,
        members=screen.members,
        test=effects(moments["test"], control=control, controls=tested),
        train=effects(moments["train"], control=control),
        every=effects(moments["every"], control=control),
        sets=sets,
        genes=genes,
        targets=target_genes(screen),
        libraries=libraries,
        control=control,
    )


def target_genes(screen: Screen) -> np.ndarray:
    """Indices of the genes that perturbations target: those with the name of one, or with its part before a '_'."""
    position = {name: g for g, name in enumerate(screen.genes.tolist())}
    found = (position.get(name, position.get(name.partition("_")[0], -1)) for name in screen.perturbations.tolist())
    return np.unique([g for g in found if g >= 0]).astype(int)


def scores(truth: Truth, predicted: np.ndarray) -> Iterator[tuple[str, str, np.ndarray, Score]]:
    """Every score of predicted effects (C, G): metric, set, scored conditions (S,) as codes, and the score.

    A set is scored on the conditions with a prediction. A score that is undefined has a reason.
    """
    known = np.isfinite(predicted).all(1)
    for name, rows in truth.sets.items():
        at = np.flatnonzero(rows & known)
        few = "fewer than 3 conditions are predicted" if len(at) < 3 else ""
        for reference in REFERENCES:
            if few:
                for metric in (f"pearson_{reference}", f"nmse_{reference}"):
                    yield metric, name, at, _undefined(at, few)
                continue
            delta, se2 = at_reference(truth.test, at, reference)
            prediction = centred(predicted[at], reference)
            yield f"pearson_{reference}", name, at, Score(pearson(delta, prediction))
            unreliable = _unreliable(delta, se2)
            error = _undefined(at, unreliable) if unreliable else Score(*nmse_terms(delta, se2, prediction))
            yield f"nmse_{reference}", name, at, error
        every_gene = "every gene is a target" if len(truth.targets) == truth.test.delta.shape[1] else ""
        if few or every_gene:
            yield "discrimination", name, at, _undefined(at, few or every_gene)
        else:  # the last reference is the centred one
            yield "discrimination", name, at, Score(discrimination(delta, prediction, targets=truth.targets))


def _undefined(at: np.ndarray, reason: str) -> Score:
    return Score(np.full(len(at), np.nan), np.full(len(at), np.nan), reason)


def _unreliable(delta: np.ndarray, se2: np.ndarray) -> str:
    """Why errors relative to the size of effects are undefined, or ''."""
    share = reliability_pooled(delta, se2)
    return "" if share >= LEAST_RELIABILITY else f"the pooled reliability of the effects is {share:.2f}, below 0.1"


def ceilings(truth: Truth) -> Iterator[tuple[str, str, np.ndarray, Score]]:
    """The scores of a perfect prediction: metric, set, scored conditions, score (S2)."""
    for name, rows in truth.sets.items():
        at = np.flatnonzero(rows)
        for reference in REFERENCES:
            every, error = at_reference(truth.every, at, reference)
            delta, test_error = at_reference(truth.test, at, reference)
            yield f"pearson_{reference}", name, at, Score(ceiling_perfect(every, error, test_error))
            unreliable = _unreliable(delta, test_error)
            yield f"nmse_{reference}", name, at, _undefined(at, unreliable) if unreliable else Score(np.zeros(len(at)))
        yield "discrimination", name, at, Score(np.ones(len(at)))


def tables(truth: Truth, found: Iterator[tuple[str, str, np.ndarray, Score]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores as two tables: SCORES, and CONDITIONS with the names of conditions."""
    rows: list[dict[str, object]] = []
    parts: list[pd.DataFrame] = []
    for metric, name, at, score in found:
        rows.append(_row(metric, name, score.mean(), score.reason))
        weight = np.ones(len(at)) if score.weights is None else score.weights
        columns = {"metric": metric, "set": name, "condition": truth.names[at], "value": score.values, "weight": weight}
        parts.append(pd.DataFrame(columns))
    each = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(CONDITIONS))
    return pd.DataFrame(rows, columns=list(SCORES)), each


def _row(metric: str, name: str, mean: Interval, reason: str = "") -> dict[str, object]:
    if not reason and not np.isfinite(mean.mean):
        reason = "fewer than 3 conditions with a defined score"
    return dict(zip(SCORES, (HONEST, metric, name, mean.mean, mean.low, mean.high, mean.n, reason), strict=True))


def coverage_rows(intervals: Intervals, name: str) -> pd.DataFrame:
    """Coverage of the intervals of effects in the conditions of a set (S8), as a table of SCORES."""
    rows = [
        _row(
            metric,
            name,
            Interval(value, np.nan, np.nan, len(intervals.u)),
            "" if np.isfinite(value) else "no gene has a standard error above 0",
        )
        for metric, value in coverage(intervals).items()
    ]
    return pd.DataFrame(rows, columns=list(SCORES))


def yardstick(truth: Truth) -> Intervals:
    """The intervals of the training effects with their own errors, by which the coverage of a model is judged (S8)."""
    at = np.flatnonzero(truth.sets.get("seen", np.zeros(len(truth.names), bool)))
    mean, variance, observed, se2 = (
        values[at][:, truth.genes] for values in (truth.train.delta, truth.train.se2, truth.test.delta, truth.test.se2)
    )
    return normal_intervals(mean, variance, observed, se2)


def undefined(reason: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The two tables of a split without effects to score: one row that says why."""
    row = dict(zip(SCORES, (HONEST, "", "", np.nan, np.nan, np.nan, 0, reason), strict=True))
    return pd.DataFrame([row], columns=list(SCORES)), pd.DataFrame(columns=list(CONDITIONS))


def honest_baselines(screen: Screen, split: np.ndarray) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of all baselines and of the ceiling (model ``ceiling``): both tables, with a column model.

    The columns ``drf`` and ``bds`` of the first say what a headline metric is worth on this screen (S9). A split
    without effects to score has one row that says why.
    """
    try:
        truth = truth_of(screen, split)
    except DataError as error:
        first, second = undefined(str(error))
        return first.assign(model="ceiling", drf=np.nan, bds=np.nan), second.assign(model="")
    return baseline_tables(screen, truth)


def baseline_tables(screen: Screen, truth: Truth) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`honest_baselines` of a split with effects to score."""
    every: Mapping[str, Iterator[tuple[str, str, np.ndarray, Score]]] = {
        **{name: scores(truth, predicted) for name, predicted in truth.baselines.items()},
        "ceiling": ceilings(truth),
    }
    found = {name: tables(truth, each) for name, each in every.items()}
    tables_of_scores = [table.assign(model=name) for name, (table, _) in found.items()]
    if "seen" in truth.sets:
        tables_of_scores.append(coverage_rows(yardstick(truth), "seen").assign(model="train_mean"))
    conditions = [table.assign(model=name) for name, (_, table) in found.items()]
    table = pd.concat(tables_of_scores, ignore_index=True)
    try:
        known = calibrations(screen, truth)
    except DataError:  # too few controls for halves
        known = {}
    for name in ("drf", "bds"):
        table[name] = [getattr(known[m], name) if m in known else np.nan for m in table["metric"]]
    return table, pd.concat(conditions, ignore_index=True)


def calibrations(screen: Screen, truth: Truth) -> dict[str, Calibration]:
    """Whether each headline metric tells a replicate from the mean effect on this screen (S9).

    From halves of all cells: per condition, and for the pooled error per repeat. Conditions without two cells in each
    half are left out. {} if fewer than 3 are left.
    """
    half = halves(screen.condition, screen.conditions, repeats=REPEATS)
    pairs = list(
        half_effects(
            screen.counts,
            screen.condition,
            len(screen.conditions),
            half,
            control=truth.control,
            method=screen.transform,
        )
    )
    defined = np.all([np.isfinite(part.delta).all(1) for pair in pairs for part in pair], axis=0)
    rows = np.flatnonzero(np.any(list(truth.sets.values()), axis=0) & defined)
    if len(rows) < 3:
        return {}
    found = {
        "pearson_centred": calibrate(pairs, rows, pearson, reference="centred", higher_is_better=True),
    }
    if len(truth.targets) < len(screen.genes):
        measure = partial(discrimination, targets=truth.targets)
        found["discrimination"] = calibrate(pairs, rows, measure, reference="centred", higher_is_better=True)
    errors = []  # of a replicate, whose own error is subtracted too: it is no part of what it predicts
    for a, b in pairs:
        (delta, se2), (replicate, own) = (at_reference(half, rows, "centred") for half in (a, b))
        error, size = (terms.sum() for terms in nmse_terms(delta, se2 + own, replicate))
        errors.append((error / (size + own.sum()) if size + own.sum() > 0 else np.nan, 1.0))
    positive, negative = (np.array(each)[:, None] for each in zip(*errors, strict=True))
    if np.isfinite(positive).all():
        found["nmse_centred"] = calibration(positive, negative, higher_is_better=False)
    return found


def model_tables(
    model: Model, screen: Screen, split: np.ndarray, dosage: np.ndarray, *, draws: int = 100, cells: int = 6
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of a model, and the coverage of its intervals: both tables.

    ``dosage`` (C, P): indices of the model's perturbations in every condition, padded with T. A model that draws no
    latents of perturbations has no coverage, since its effects have no interval. A split without effects to score has
    one row that says why.
    """
    try:
        truth = truth_of(screen, split)
    except DataError as error:
        return undefined(str(error))
    rows = truth.rows
    predicted = np.full(truth.test.delta.shape, np.nan)
    observed, se2 = (values[rows][:, truth.genes] for values in (truth.test.delta, truth.test.se2))
    uncertain = model.draws_perturbations()

    def use(i: int, effects_drawn: np.ndarray) -> Intervals | None:
        predicted[rows[i]] = effects_drawn.mean(0)
        at = slice(i, i + 1)
        return posterior_intervals(effects_drawn[:, None, truth.genes], observed[at], se2[at]) if uncertain else None

    intervals = effect_draws_at_depth(
        model,
        dosage[rows],
        [truth.libraries[c] for c in rows],
        control=dosage[truth.control],
        control_libraries=truth.libraries[truth.control],
        use=use,
        draws=draws,
        cells=cells,
    )
    table, each = tables(truth, scores(truth, predicted))
    of_condition = {c: part for c, part in zip(rows, intervals, strict=True) if part is not None}
    parts = [
        coverage_rows(join([of_condition[c] for c in np.flatnonzero(at)]), name)
        for name, at in truth.sets.items()
        if of_condition
    ]
    return pd.concat([table, *parts], ignore_index=True), each

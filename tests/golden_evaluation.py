"""Compare our metrics with golden files: python tests/golden_evaluation.py FOLDER

FOLDER holds NAME.input.npz, NAME.expected.tsv and, for screens, NAME.arrays.npz (its README describes them). Every row
and every array is compared; the exit status is 1 if one is missing, unknown, or differs. ``SECTIONS`` gives the rows of
each section, ``ARRAYS`` the arrays; those of distributions come from golden_distributions.py.
"""

from __future__ import annotations

import csv
import math
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import golden_distributions
import numpy as np
from golden_distributions import NO_LONGER, Arrays, Rows
from scipy import sparse

from samsvae.errors import DataError
from samsvae.evaluation.metrics import baselines
from samsvae.evaluation.metrics.agreement import agreement, mse, nmse, pearson, pearson_pooled
from samsvae.evaluation.metrics.calibration import calibrate
from samsvae.evaluation.metrics.discrimination import MEASURES, discrimination
from samsvae.evaluation.metrics.estimates import (
    REFERENCES,
    Effects,
    Moments,
    at_reference,
    centred,
    condition_moments,
    detected,
    effects,
    scored_sets,
    top_train,
)
from samsvae.evaluation.metrics.halves import half_effects, halves
from samsvae.evaluation.metrics.interactions import Interactions, gi_fit, pair_interactions
from samsvae.evaluation.metrics.intervals import bootstrap
from samsvae.evaluation.metrics.reliability import ceiling_perfect, reliability, reliability_pooled

COLUMNS = ("section", "metric", "reference", "predictor", "set", "condition", "value")

#: Relative tolerances. Values below FLOOR are compared as if they were FLOOR: their rounding comes from larger ones.
TOLERANCE, FLOOR = {"S10": 1e-6}, 1e-3

#: Rules of the golden files: fewer test cells than the protocol asks for, and three repeats of the calibration.
LEAST_CELLS, CALIBRATION_REPEATS = 2, 3


#: Genes left out of the discrimination in units. Their README names none; among the pairs of genes that reproduce every
#: value, this one comes first.
UNITS_TARGETS = np.array([0, 3])


class Row(NamedTuple):
    """A number of the expected table, without its section."""

    metric: str
    value: float
    reference: str = ""
    predictor: str = ""
    set: str = ""
    condition: str = ""


class Case:
    """One NAME of a folder: the arrays of its input, and for screens everything that the sections share."""

    def __init__(self, path: Path):
        self.name, self.arrays = path.name.removesuffix(".input.npz"), read_arrays(path)
        self.is_units = "indptr" not in self.arrays
        if not self.is_units:
            self._read_screen(path)

    def _read_screen(self, path: Path) -> None:
        try:
            a = self.arrays
            self.X = sparse.csr_matrix(
                (a["data"], a["indices"].astype(np.int32), a["indptr"]), tuple(int(size) for size in a["shape"])
            )
            self.X.check_format(full_check=True)
            self.conditions, self.condition, self.split = (
                a["conditions"].astype(str),
                a["condition"].astype(int),
                a["split"],
            )
            self.members, self.target = a["members"].astype(int), a["target"].astype(int)
            self.model = np.vstack([np.full((1, self.X.shape[1]), np.nan), a["model"].astype(float)])
        except KeyError as error:
            raise DataError(f"{path}: has no array {error}.") from None
        except (ValueError, IndexError, TypeError) as error:
            raise DataError(f"{path}: its arrays do not fit together ({error}).") from None
        n, size, names = len(self.conditions), self.X.shape, len(a["perturbations"]) if "perturbations" in a else 0
        good = (
            self.condition.shape == self.split.shape == size[:1]
            and self.model.shape == (n, size[1])
            and self.members.shape[:1] == (n,)
            and self.target.shape == (names,)
            and {*np.unique(self.split)} <= {0, 1, 2}
            and all(within(x, low, high) for x, low, high in (
                (self.condition, 0, n), (self.members, -1, names), (self.target, -1, size[1])))
        )  # fmt: skip
        if not good:
            raise DataError(f"{path}: its arrays do not fit together; shapes and codes must be those of the README.")

    def _moments(self, split: int | None) -> Moments:
        cells = None if split is None else self.split == split
        return condition_moments(self.X, self.condition, self.n_conditions, cells=cells)

    @property
    def n_conditions(self) -> int:
        return len(self.conditions)

    @cached_property
    def moments(self) -> dict[str, Moments]:
        return {
            "train": self._moments(0),
            "validation": self._moments(1),
            "test": self._moments(2),
            "all": self._moments(None),
        }

    @property
    def has_test_control(self) -> bool:
        return bool(self.moments["test"].n[0] >= 2)

    @cached_property
    def test(self) -> Effects:
        """Against test controls, or the validation controls if there are none."""
        controls = None if self.has_test_control else self.moments["validation"]
        return effects(self.moments["test"], controls=controls)

    @cached_property
    def train(self) -> Effects:
        return effects(self.moments["train"])

    @cached_property
    def everything(self) -> Effects:
        return effects(self.moments["all"])

    @cached_property
    def trained(self) -> np.ndarray:
        return np.isfinite(self.train.delta).all(1)

    @cached_property
    def sets(self) -> dict[str, np.ndarray]:
        return scored_sets(self.moments["train"].n, self.moments["test"].n, least_cells=LEAST_CELLS)

    @cached_property
    def detected(self) -> np.ndarray:
        return detected(self.X, (self.split == 0) & (self.condition == 0))

    @cached_property
    def predictions(self) -> dict[str, np.ndarray]:
        """Predictor -> effects (C, G) in the order of conditions, NaN where it is silent."""
        d, se2, members, trained = self.train.delta, self.train.se2, self.members, self.trained
        found = {
            "no_change": baselines.no_change(d.shape),
            "mean": baselines.mean_of_perturbations(d, trained),
            "train_mean": d,
            "ridge_pc": baselines.ridge_pc(d, members, trained),
            "shrunk": baselines.shrunk(d, se2, trained),
            "model": self.model,
        }
        if ((members >= 0).sum(1) > 1).any():
            found["additive"] = baselines.additive(d, members)
            found["matching_mean"] = baselines.matching_mean(d, members, trained)
        for values in found.values():
            values[0] = np.nan  # the control is not predicted
        return found

    def scored(self) -> Iterator[tuple[str, str, np.ndarray]]:
        """Predictor, set, and the conditions (C,) bool of the set that it predicts."""
        for predictor, values in self.predictions.items():
            for name, rows in self.sets.items():
                rows = rows & np.isfinite(values).all(1)
                if rows.sum() >= 3:
                    yield predictor, name, rows


def s2(case: Case) -> Iterator[Row]:
    if case.is_units:
        return
    for name, rows in case.sets.items():
        for reference in REFERENCES:
            test, alls = (at_reference(x, rows, reference) for x in (case.test, case.everything))
            yield Row("reliability_pooled", reliability_pooled(*test), reference, set=name)
            # the golden mean counts conditions without a measurable effect as 0
            yield Row("reliability", np.maximum(0, reliability(*test)).mean(), reference, set=name)
            ceiling = ceiling_perfect(*alls, test[1])
            yield Row("ceiling_perfect", ceiling.mean(), reference, set=name)
            if reference == "centred":
                yield from by_condition(
                    "ceiling_perfect", ceiling, case.conditions[rows], reference=reference, set=name
                )
            if (reference, name) == ("centred", "seen"):
                train = at_reference(case.train, rows, reference)
                reached = ceiling * ceiling_perfect(*alls, train[1])  # what the training mean is expected to reach
                yield Row("ceiling_train_mean", reached.mean(), reference, set=name)
    if case.has_test_control and "all" in case.sets:
        half = halves(case.condition, case.conditions, cells=case.split == 2)
        pairs = list(half_effects(case.X, case.condition, case.n_conditions, half))
        for reference in REFERENCES:
            sides = [[centred(half.delta[case.sets["all"]], reference) for half in pair] for pair in pairs]
            each = np.mean([pearson(a, b) for a, b in sides], 0)
            pooled = np.mean([pearson_pooled(a, b) for a, b in sides])
            where = {"reference": reference, "set": "all"}
            yield Row("split_half_mean", each.mean(), **where)
            yield Row("split_half_sb_pooled", 2 * pooled / (1 + pooled), **where)  # by Spearman and Brown
            yield from by_condition("split_half", each, case.conditions[case.sets["all"]], **where)


def s3(case: Case) -> Iterator[Row]:
    if case.is_units:
        yield from by_condition("pearson", pearson(case.arrays["truth"], case.arrays["predicted"]))
        return
    for predictor, name, rows in case.scored():
        where = {"predictor": predictor, "set": name}
        yield Row("n_conditions", rows.sum(), **where)
        for reference in REFERENCES:
            at = where | {"reference": reference}
            found = agreement(case.test, case.predictions[predictor], rows, reference, least_reliability=None)
            each, printed = found.conditions, ("pearson", "cosine", "r2", "mse")[: 4 if reference == "control" else 1]
            for metric in printed:
                yield Row(metric, bootstrap(each[metric]).mean, **at)
            for metric, value in found.pooled.items():
                yield Row(metric, value, **at)
            if reference == "centred":
                interval = bootstrap(each["pearson"])
                yield Row("pearson_low", interval.low, **at)
                yield Row("pearson_high", interval.high, **at)
            if predictor == "model":
                yield from by_condition("pearson", each["pearson"], case.conditions[rows], **at)
            if name == "seen":
                top = top_train(case.train.delta[rows], case.train.se2[rows])
                sides = (case.test.delta[rows], case.predictions[predictor][rows])
                chosen = (np.take_along_axis(centred(x, reference), top, 1) for x in sides)
                yield Row("pearson_top20_train", bootstrap(pearson(*chosen)).mean, **at)


def s4(case: Case) -> Iterator[Row]:
    if case.is_units:
        return
    for predictor, values in case.predictions.items():
        given = values[np.isfinite(values).all(1)]
        yield Row("sum_of_squares", (given**2).sum(), predictor=predictor)
        yield Row("n_conditions", len(given), predictor=predictor)


def s5(case: Case) -> Iterator[Row]:
    if case.is_units:
        truth, predicted = case.arrays["truth"], case.arrays["predicted"]
        for measure in MEASURES:
            yield from by_condition(
                f"discrimination_{measure}", discrimination(truth, predicted, measure=measure, targets=UNITS_TARGETS)
            )
        yield Row("constant_mean", discrimination(truth, np.repeat(predicted[:1], len(truth), 0)).mean())
        return
    for predictor, name, rows in case.scored():
        for reference in REFERENCES:
            sides = (centred(x[rows], reference) for x in (case.test.delta, case.predictions[predictor]))
            truth, predicted = sides
            for measure in MEASURES if reference == "control" else MEASURES[:1]:
                scores = discrimination(truth, predicted, measure=measure, targets=case.target)
                at = {"reference": reference, "predictor": predictor, "set": name}
                yield Row(f"discrimination_{measure}", scores.mean(), **at)
                if (reference, predictor) == ("centred", "model"):
                    yield from by_condition(f"discrimination_{measure}", scores, case.conditions[rows], **at)


def s9(case: Case) -> Iterator[Row]:
    if case.is_units:
        return
    half = halves(case.condition, case.conditions, repeats=CALIBRATION_REPEATS)
    pairs = list(half_effects(case.X, case.condition, case.n_conditions, half))
    rows = np.all([np.isfinite(half.delta).all(1) for pair in pairs for half in pair], 0)

    def discriminated(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
        return discrimination(truth, predicted, targets=case.target)

    for metric, score, reference, higher in (
        ("pearson", pearson, "control", True),
        ("pearson", pearson, "centred", True),
        ("discrimination", discriminated, "centred", True),
        ("mse", mse, "control", False),
    ):
        found = calibrate(pairs, rows, score, reference=reference, higher_is_better=higher)
        for name, value in found._asdict().items():
            yield Row(name, value, predictor=f"{metric} {reference}")


def s12(case: Case) -> Iterator[Row]:
    if case.is_units:
        return
    found = pair_interactions(case.moments["all"], case.members)
    if not len(found.rows):
        return
    yield Row("n_pairs", len(found.rows))
    yield Row("reliability_pooled", reliability_pooled(found.value, found.se2, least=1))
    names = case.conditions[found.rows]
    yield from by_condition("sum_of_squares", (found.value**2).sum(1), names)
    d = case.everything.delta[:, case.detected]
    fit = gi_fit(d[found.rows], d[found.singles[:, 0]], d[found.singles[:, 1]])
    for metric, values in fit._asdict().items():
        yield from by_condition(metric, values, names)
    if case.has_test_control:
        observed, predicted = (pair_interactions(case.moments[cells], case.members) for cells in ("test", "train"))
        both = np.intersect1d(observed.rows, predicted.rows)
        if len(both):
            truth, guess = (kept(x, both) for x in (observed, predicted))
            yield Row("pearson", bootstrap(pearson(truth.value, guess.value), least=1).mean, predictor="train cells")
            value = nmse(truth.value, truth.se2, guess.value, least_reliability=None, least=1)
            yield Row("nmse", value, predictor="train cells")


#: Section -> the rows of a case. Each gives nothing for a case that has no such rows.
SECTIONS: dict[str, Callable[[Case], Iterator[Row]]] = {"S2": s2, "S3": s3, "S4": s4, "S5": s5, "S9": s9, "S12": s12}


def half_cells(case: Case, repeat: int, side: int) -> np.ndarray:
    """Cells of a half, condition by condition."""
    half = halves(case.condition, case.conditions, cells=case.split == 2, repeats=repeat + 1)[repeat]
    order = np.argsort(case.condition, kind="stable")
    return order[half[order] == side]


#: Name of an array -> the array of a case.
ARRAYS: dict[str, Callable[[Case], np.ndarray]] = {
    "delta_test": lambda case: case.test.delta[1:],
    "se2_test": lambda case: case.test.se2[1:],
    "delta_train": lambda case: case.train.delta[1:],
    "ridge_pc": lambda case: case.predictions["ridge_pc"][1:],
    "genes_detected": lambda case: np.flatnonzero(case.detected),
} | {
    f"half{repeat}_{letter}": lambda case, repeat=repeat, side=side: half_cells(case, repeat, side)
    for repeat in range(3)
    for side, letter in enumerate("ab")
}


def by_condition(metric: str, values: np.ndarray, names: np.ndarray | None = None, **at: str) -> Iterator[Row]:
    for i, value in enumerate(values):
        yield Row(metric, value, condition=str(i if names is None else names[i]), **at)


def kept(found: Interactions, rows: np.ndarray) -> Interactions:
    return Interactions(*(values[np.isin(found.rows, rows)] for values in found))


def within(values: np.ndarray, low: int, high: int) -> bool:
    return not values.size or bool(values.min() >= low and values.max() < high)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as npz ({error}).") from None


def read_expected(path: Path) -> dict[tuple[str, ...], float]:
    """(section, metric, reference, predictor, set, condition) -> value."""
    found: dict[tuple[str, ...], float] = {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, delimiter="\t"))
        if not lines or tuple(lines[0]) != COLUMNS:
            raise DataError(f"{path}: its first line must name the columns {', '.join(COLUMNS)}.")
        for number, line in enumerate(lines[1:], 2):
            if len(line) != len(COLUMNS):
                raise DataError(f"{path}, line {number}: has {len(line)} columns instead of {len(COLUMNS)}.")
            if (key := tuple(line[:-1])) in found:
                raise DataError(f"{path}, line {number}: the row {' '.join(key)} stands there twice.")
            found[key] = float(line[-1])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}).") from None
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}, line {number}: {error}.") from None
    return found


class Comparison:
    """What was compared: the worst difference of each section, and failures as lines of text."""

    def __init__(self):
        self.number: dict[str, int] = {}
        self.worst: dict[str, tuple[float, str]] = {}
        self.failures: list[str] = []

    def add(self, section: str, label: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        self.number[section] = self.number.get(section, 0) + ours.size
        if ours.shape != theirs.shape:
            self.failures.append(f"{label}: has shape {theirs.shape}, ours {ours.shape}")
            return
        if (np.isnan(ours) != np.isnan(theirs)).any():
            self.failures.append(f"{label}: NaN on one side only{shown(ours, theirs)}")
            return
        with np.errstate(invalid="ignore"):
            difference = np.where(ours == theirs, 0, np.abs(ours - theirs) / np.maximum(np.abs(theirs), FLOOR))
        worst = float(np.nanmax(difference, initial=0.0))
        if worst >= self.worst.get(section, (-1.0, ""))[0]:
            self.worst[section] = (worst, label)
        if not worst <= TOLERANCE.get(section, 1e-9):
            self.failures.append(f"{label}: relative difference {worst:.1e}{shown(ours, theirs)}")

    def print(self) -> None:
        for section in sorted(self.number, key=lambda name: int(name[1:]) if name[1:].isdigit() else 0):
            worst, label = self.worst.get(section, (math.nan, ""))
            print(f"{section}: {self.number[section]} values, worst relative difference {worst:.1e} ({label})")
        for line in self.failures[:40]:
            print(f"FAILED {line}")
        if len(self.failures) > 40:
            print(f"... and {len(self.failures) - 40} more")
        print(f"{len(self.failures)} failures" if self.failures else "Every value is within its tolerance.")


def shown(ours: np.ndarray, theirs: np.ndarray) -> str:
    return f" (expected {theirs.item():.17g}, ours {ours.item():.17g})" if ours.size == 1 else ""


def functions() -> tuple[dict, dict]:
    """Our sections and arrays, with those of golden_distributions.py."""

    def rows_of(section: Callable[[Arrays], Rows]) -> Callable[[Case], Iterator[Row]]:
        return lambda case: (Row(key[1], value, *key[2:]) for key, value in section(case.arrays).items())

    def array_of(array: Callable[[Arrays], np.ndarray]) -> Callable[[Case], np.ndarray]:
        return lambda case: array(case.arrays)

    return (
        SECTIONS | {name: rows_of(section) for name, section in golden_distributions.SECTIONS.items()},
        ARRAYS | {name: array_of(array) for name, array in golden_distributions.ARRAYS.items()},
    )


def compare(folder: Path, sections: set[str] | None = None) -> Comparison:
    """Compare every NAME of a folder. ``sections``: compare their rows alone, and the arrays that we know."""
    paths = sorted(folder.glob("*.input.npz"))
    if not paths:
        raise DataError(f"{folder}: holds no NAME.input.npz.")
    done = Comparison()
    rows_of, array_of = functions()
    for path in paths:
        case = Case(path)
        start = str(path).removesuffix(".input.npz")
        expected = read_expected(Path(f"{start}.expected.tsv"))
        for section in sorted(sections or {key[0] for key in expected} | set(rows_of)):
            theirs = {k[1:]: value for k, value in expected.items() if k[0] == section and k[:2] not in NO_LONGER}
            ours = rows(case, section, rows_of[section]) if section in rows_of else {}
            for key in theirs | ours:
                label = f"{case.name} {section} {' '.join(part for part in key if part)}"
                if key not in ours or key not in theirs:
                    done.failures.append(f"{label}: {'unknown to us' if key in theirs else 'missing in the file'}")
                else:
                    done.add(section, label, np.array(float(ours[key])), np.array(theirs[key]))
        if not case.is_units:
            arrays = read_arrays(Path(f"{start}.arrays.npz"))
            wanted = {name for name in array_of if case.has_test_control or not name.startswith("half")}
            for name in sorted(set(arrays) | wanted if sections is None else wanted):
                if name not in arrays or name not in array_of:
                    done.failures.append(
                        f"{case.name} array {name}: {'unknown to us' if name in arrays else 'missing'}"
                    )
                else:
                    theirs = arrays[name].astype(float)
                    done.add("arrays", f"{case.name} array {name}", array_of[name](case).astype(float), theirs)
    return done


def rows(case: Case, section: str, of: Callable[[Case], Iterator[Row]]) -> dict[tuple[str, ...], float]:
    """Our values of a section, by the other columns of the expected table."""
    try:
        return {(r.metric, r.reference, r.predictor, r.set, r.condition): r.value for r in map(Row._make, of(case))}
    except (DataError, KeyError, IndexError) as error:
        raise DataError(f"{case.name}: {section} cannot be computed from its arrays ({error}).") from error


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print("usage: python tests/golden_evaluation.py FOLDER", file=sys.stderr)
        return 2
    try:
        done = compare(Path(arguments[0]))
    except DataError as error:
        print(error, file=sys.stderr)
        return 1
    done.print()
    return 1 if done.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

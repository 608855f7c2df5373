"""The settings of screens: their sources, and the options of each kind."""

from __future__ import annotations

import re
import types
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

from samsvae.config.splits import SplitConfig
from samsvae.config.validate import at_least, build, check_path, plain
from samsvae.errors import ConfigError, quoted

SCALAR = str | int | float | bool | None

#: The checksum of a download that nobody publishes (`samsvae.screens.download`).
NO_CHECKSUM = "none"


@dataclass(frozen=True)
class Source:
    """Where a screen comes from: a local ``path``, a verified download from ``urls``, or a synthetic ``miniature``.

    A text stands for a ``path``. ``checksum: none`` says that nobody publishes the checksum of a download; the size may
    then be missing too.
    """

    SHORT: ClassVar[str] = "path"

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
        check_path("path", self.path)
        at_least(1, self, "size")
        if self.sort == "urls" and not (self.checksum == NO_CHECKSUM or (self.checksum and self.size)):
            raise ConfigError(
                "source: a download needs its size and its checksum (md5:... or sha256:...). If nobody publishes them, "
                "write checksum: none."
            )
        if self.verified and not self.size:
            raise ConfigError("source: a checksum also needs the size.")
        known = self.checksum not in (None, NO_CHECKSUM)
        if known and not re.fullmatch("md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}", str(self.checksum).lower()):
            raise ConfigError(
                f"source: the checksum {quoted(self.checksum)} is not valid. "
                "Allowed: md5:(32 digits), sha256:(64 digits), and none for a download."
            )

    @property
    def sort(self) -> Literal["miniature", "path", "urls"]:
        """Which one is used, since a configuration file may add one to those of the file it extends."""
        return "miniature" if self.miniature is not None else "path" if self.path is not None else "urls"

    @property
    def verified(self) -> bool:
        """Whether a local file is verified before it is used."""
        return self.sort == "path" and self.checksum not in (None, NO_CHECKSUM)


@dataclass(frozen=True)
class ReplogleMiniature:
    """A synthetic screen in the format of Replogle's (``samsvae.screens.miniature.replogle_source``)."""

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
    """A synthetic screen in the format of Norman's (``samsvae.screens.miniature.norman_source``)."""

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


MINIATURES: dict[str, type] = {"replogle": ReplogleMiniature, "norman": NormanMiniature}


@dataclass(frozen=True)
class ReplogleOptions:
    """Filter of a Replogle screen. ``keep``: the cells, controls and genes listed by the papers, or all in the file."""

    keep: Literal["listed", "all"] = "listed"
    n_controls: int = 2000
    control_seed: int = 0
    published_counts: bool = False

    def __post_init__(self):
        at_least(0, self, "control_seed")
        at_least(1, self, "n_controls")


@dataclass(frozen=True)
class NormanOptions:
    """Filter of the Norman screen. ``genes``: a file with one gene name per line, instead of the 5,000 genes."""

    genes: str | None = None

    def __post_init__(self):
        check_path("genes", self.genes)

    @property
    def tables(self) -> list[str]:
        """The files that the filter reads in addition to the counts."""
        return [self.genes] if self.genes else []


#: The obs column with the labels, if the options name neither a column nor a matrix.
PERTURBATION_COLUMN = "perturbation"


@dataclass(frozen=True)
class CustomOptions:
    """Filter of your own screen (docs/own-data.md).

    Perturbations are in ``perturbation_column`` (default: perturbation), or in the matrix (cells x guides) that
    ``perturbations`` names; values of ``threshold`` or more mean "received". ``control``: () if the zero dosage is the
    reference of effects.
    """

    perturbation_column: str | None = None
    perturbations: str | None = None
    perturbation_names: str | None = None
    threshold: float = 1.0
    control: tuple[str, ...] | None = ("control",)
    separator: str = ""
    targets: str | None = None
    target_pattern: str | None = None
    guides: Literal["target", "keep"] = "target"
    counts: str = "X"
    genes: str | int | tuple[str, ...] = "auto"
    genes_split: SplitConfig | None = None
    library_size: str = "kept"
    min_cells: int = 1
    unlabelled: Literal["error", "drop"] = "error"
    zero_cells: Literal["error", "drop"] = "error"
    rare: Literal["error", "drop"] = "error"
    annotation: str | None = None
    cell_table: str | None = None
    keep_obs: tuple[str, ...] | None = None
    covariates: tuple[str, ...] = ()

    def __post_init__(self):
        self._check_perturbations()
        # YAML reads the word none as text; a matrix has no label of that name
        absent = self.control is None or (self.perturbations is not None and self.control == ("none",))
        if absent:
            object.__setattr__(self, "control", ())
        if "" in self.controls:
            listed = quoted(list(self.controls))
            raise ConfigError(f"control: {listed} is not allowed. Allowed: labels that are not empty, or null.")
        for name in ("annotation", "cell_table", "targets", *(["genes"] if isinstance(self.genes, str) else [])):
            check_path(name, getattr(self, name))
        self._check_targets()
        if self.separator.splitlines() not in ([], [self.separator]):
            raise ConfigError(f"separator: {quoted(self.separator)} is not allowed: it has a line break.")
        at_least(0, self, "min_cells")
        if twice := sorted({name for name in self.covariates if self.covariates.count(name) > 1}):
            raise ConfigError(f"covariates: {quoted(twice[0])} is listed more than once; list it once.")
        if self.perturbation_column in self.covariates:
            raise ConfigError(
                f"covariates: {quoted(self.perturbation_column)} is the perturbation column, which models read already."
            )
        if isinstance(self.genes, int):
            at_least(1, self, "genes")

    def _check_targets(self) -> None:
        if self.target_pattern is None:
            return
        if self.targets is not None:
            raise ConfigError("targets and target_pattern: give one of them.")
        try:
            groups = re.compile(self.target_pattern).groups
        except re.error as error:
            raise ConfigError(f"target_pattern: {quoted(self.target_pattern)} is not valid ({error}).") from None
        if groups != 1:
            raise ConfigError(
                f"target_pattern: {quoted(self.target_pattern)} has {groups} groups. Needed: one group, in "
                "parentheses, that matches the target, such as '(.+)g[0-9]+'."
            )

    @property
    def controls(self) -> tuple[str, ...]:
        """The labels of the control; () without one."""
        return self.control or ()

    def _check_perturbations(self) -> None:
        for name, kind in (("perturbations", "obsm:"), ("perturbation_names", "uns:")):
            value = getattr(self, name)
            if value is not None and not (value.startswith(kind) and value != kind):
                raise ConfigError(f"{name}: {quoted(value)} is not allowed. Allowed: {kind}KEY.")
        if self.perturbations is not None and self.perturbation_column is not None:
            raise ConfigError(
                f"perturbation_column: {quoted(self.perturbation_column)} is not allowed together with perturbations: "
                f"{quoted(self.perturbations)}. Give the column for labels, or the matrix."
            )
        if self.perturbations is None and self.perturbation_column is None:
            object.__setattr__(self, "perturbation_column", PERTURBATION_COLUMN)
        if self.perturbation_names is not None and self.perturbations is None:
            raise ConfigError("perturbation_names: allowed only with perturbations: obsm:KEY.")
        if not self.threshold > 0:
            raise ConfigError(f"threshold: {self.threshold} is not allowed; it must be above 0.")
        if self.guides == "keep" and self.targets is None and self.target_pattern is None:
            raise ConfigError("guides: 'keep' is allowed only with targets or target_pattern.")

    @property
    def tables(self) -> list[str]:
        """The files that the filter reads in addition to the counts."""
        targets = None if (self.targets or "").startswith("uns:") else self.targets
        listed = self.genes if isinstance(self.genes, str) and self.genes not in ("auto", "all") else None
        written = self.genes_split.path if self.genes_split else None
        return [path for path in (self.annotation, self.cell_table, targets, listed, written) if path]


@dataclass(frozen=True)
class SamsOptions:
    """Simulation as in the SAMS-VAE release. ``cells``: training cells per perturbation."""

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
            raise ConfigError(f"sim_mask_prob: {self.sim_mask_prob} is not a probability. Allowed: 0 to 1.")


@dataclass(frozen=True)
class SparseShiftOptions:
    """Sparse-shift simulation of the SVAE+ paper. ``cells``: training cells per intervention."""

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


OPTIONS: dict[str, type] = {
    "replogle": ReplogleOptions,
    "norman": NormanOptions,
    "custom": CustomOptions,
    "simulate_sams": SamsOptions,
    "simulate_sparse_shift": SparseShiftOptions,
}


@dataclass(frozen=True)
class Expected:
    """The size of a screen as far as it is known before its file is there. Only `samsvae estimate` reads it."""

    cells: int
    genes: int
    perturbations: int
    combinations: int = 0

    def __post_init__(self):
        at_least(1, self, "cells", "genes", "perturbations")
        at_least(0, self, "combinations")


@dataclass(frozen=True)
class ScreenConfig:
    """A screen: its kind, its source (none for simulations) and the options of its filter or simulation."""

    kind: Literal["replogle", "norman", "custom", "simulate_sams", "simulate_sparse_shift"]
    source: Source | None = None
    options: dict[str, Any] = field(default_factory=dict, metadata={"schema": lambda: tuple(OPTIONS.values())})
    expected: Expected | None = None

    def __post_init__(self):
        object.__setattr__(self, "options", build(OPTIONS[self.kind], self.options, "options"))
        if (self.source is None) != self.kind.startswith("simulate"):
            raise ConfigError(
                f"source: {'not allowed' if self.source else 'needed'} for a screen of kind {self.kind!r}."
            )
        if self.source and (given := self.source.miniature) is not None:
            if self.kind not in MINIATURES:
                allowed = " and ".join(MINIATURES)
                raise ConfigError(f"source.miniature: not allowed for kind {self.kind!r}. Allowed: for {allowed}.")
            checked = plain(build(MINIATURES[self.kind], given, "source.miniature"))
            # checked, since YAML reads 2e3 as text; only the given keys, so that a new default does not rerun the rule
            object.__setattr__(self, "source", replace(self.source, miniature={key: checked[key] for key in given}))

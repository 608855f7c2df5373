"""The complete configuration: which experiments to run, their settings, and the screens they read."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from samsvae.config.evaluation import EvaluationConfig
from samsvae.config.screens import SCALAR, ScreenConfig
from samsvae.config.splits import SplitConfig
from samsvae.config.transfer import TransferConfig
from samsvae.config.validate import at_least, check_path, field_names
from samsvae.config.zoo import row
from samsvae.errors import ConfigError, nearest, quoted


@dataclass(frozen=True)
class Experiment:
    """A screen, a split and a grid of runs. ``model`` and ``training`` hold for every run unless a block sets them.

    ``shown``: the model in figures of one model (default: the best on validation data). ``compared``: values of grid
    axes that figures are restricted to, such as n_latent: 100. ``transfer``: how runs are adapted to new perturbations
    (default: not at all).
    """

    screen: str
    grid: tuple[dict[str, Any], ...]
    split: SplitConfig = field(default_factory=SplitConfig)
    model: dict[str, SCALAR] = field(default_factory=dict)
    training: dict[str, SCALAR] = field(default_factory=dict)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    shown: str | None = None
    compared: dict[str, SCALAR] = field(default_factory=dict)
    transfer: TransferConfig | None = None

    def __post_init__(self):
        if self.shown is not None:
            row(self.shown)
        if self.transfer and self.split.kind != "transfer":
            raise ConfigError(
                f"transfer: not allowed with a split of kind {self.split.kind!r}, which has no new perturbations. "
                "Allowed: with split.kind 'transfer'."
            )


@dataclass(frozen=True)
class PathVars:
    """The output folders, which Snakemake substitutes for <results>, <logs> and <benchmarks>."""

    results: str = "results"
    logs: str = "<results>/logs"
    benchmarks: str = "<results>/benchmarks"

    def __post_init__(self):
        for name in field_names(PathVars):  # Snakemake takes {x} for a wildcard, and <x> for another folder
            path = getattr(self, name)
            check_path(name, path if name == "results" else path.replace("<results>", "r"), refused="{}<>$*?")

    def folder(self, name: str) -> str:
        """The path of the folder with this name."""
        return getattr(self, name).replace("<results>", self.results)


@dataclass(frozen=True)
class Study:
    """The complete configuration: which experiments to run, their settings, and the screens they read.

    ``container``: the image that every job runs in, if Snakemake is called with ``--sdm apptainer``.
    """

    experiments: tuple[str, ...]
    settings: dict[str, Experiment]
    screens: dict[str, ScreenConfig]
    title: str = "samsvae"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    jobs_per_gpu: int = 1
    runs_per_job: int = 1
    checkpoint_minutes: float = 5.0
    container: str | None = None
    pathvars: PathVars = field(default_factory=PathVars)

    def __post_init__(self):
        if not self.checkpoint_minutes > 0:
            raise ConfigError(f"checkpoint_minutes: {self.checkpoint_minutes} is not allowed; it must be above 0.")
        at_least(1, self, "jobs_per_gpu", "runs_per_job")
        _check_names("settings", self.settings, "-_")
        _check_names("screens", self.screens, "-_.")
        if not self.experiments:
            raise ConfigError(f"experiments: none is listed.{nearest('', self.settings)}")
        for name in self.experiments:
            if name not in self.settings:
                raise ConfigError(f"experiments: no settings for {quoted(name)}.{nearest(name, self.settings)}")
            if (screen := self.settings[name].screen) not in self.screens:
                raise ConfigError(f"settings.{name}.screen: unknown {quoted(screen)}.{nearest(screen, self.screens)}")
            without = getattr(self.screens[screen].options, "controls", None) == ()
            if without and self.settings[name].split.kind == "transfer":
                raise ConfigError(
                    f"settings.{name}.split: kind 'transfer' is not possible with the screen {screen!r}, which has no "
                    "control: its cells receive several perturbations, new and old ones together."
                )


def _check_names(where: str, names: Iterable[str], also: str) -> None:
    """ConfigError if one of the names cannot be part of the name of a file, with letters, digits and ``also``."""
    for name in names:
        if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9{re.escape(also)}]{{0,99}}", name):
            raise ConfigError(
                f"{where}: {quoted(name)} is not allowed as a name. Allowed: up to 100 letters, digits and "
                f"{' '.join(also)}, with a letter or digit first."
            )

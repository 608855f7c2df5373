"""The settings of a split: which cells are for training, validation and testing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from samsvae.config.validate import at_least, check_path
from samsvae.errors import ConfigError

#: The ways to choose the new interventions of a split of kind 'transfer'.
NEW_BY = ("conditions", "last", "pathway", "strongest")


@dataclass(frozen=True)
class SplitConfig:
    """How cells are split; ``samsvae.screens.splits`` implements the kinds."""

    kind: Literal[
        "random", "norman_ood", "norman_efficiency", "held_out", "held_out_context", "given", "file", "transfer"
    ] = "random"
    test_fraction: float = 0.2
    val_fraction: float = 0.2
    fraction: float = 1.0
    test_pairs: float = 0.25
    conditions: tuple[str, ...] = ()
    combinations_of: tuple[str, ...] = ()
    last: int | None = None
    pathway: str | None = None
    strongest: int | None = None
    new_cells: int | Literal["all"] = 0
    path: str | None = None
    stratified: bool = False
    context_column: str | None = None
    context: str | None = None
    split_seed: int = 0

    def __post_init__(self):
        check_path("path", self.path)
        at_least(0, self, "split_seed")
        at_least(1, self, "last", "strongest")
        for name in ("test_fraction", "val_fraction", "fraction", "test_pairs"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"{name}: {getattr(self, name)} is not a fraction. Allowed: 0 to 1.")
        for name, kinds in (("fraction", ("norman_ood", "norman_efficiency")), ("test_pairs", ("norman_ood",))):
            if getattr(self, name) != getattr(SplitConfig, name) and self.kind not in kinds:
                allowed = " and ".join(map(repr, kinds))
                raise ConfigError(f"{name}: a split of kind {self.kind!r} does not use it. Allowed: with {allowed}.")
        if self.stratified and self.kind != "random":
            raise ConfigError(f"stratified: a split of kind {self.kind!r} does not use it. Allowed: with 'random'.")
        for name in ("context_column", "context"):
            if (self.kind == "held_out_context") != (getattr(self, name) is not None):
                raise ConfigError(f"{name}: required for a split of kind 'held_out_context'; not allowed otherwise.")
        if (self.kind == "file") != (self.path is not None):
            raise ConfigError("path: required for a split of kind 'file'; not allowed otherwise.")
        if (self.kind == "held_out") != bool(self.combinations_of or self.conditions) and self.kind != "transfer":
            raise ConfigError(
                "conditions or combinations_of: required for a split of kind 'held_out'; not allowed otherwise."
            )
        self._check_transfer()

    def _check_transfer(self) -> None:
        ways = {name: getattr(self, name) for name in NEW_BY}
        given = [name for name, value in ways.items() if value not in (None, ())]
        if self.kind == "transfer":
            if self.combinations_of or len(given) != 1:
                found = f"; given: {' and '.join(given)}" if given else ""
                raise ConfigError(f"a split of kind 'transfer' needs exactly one of {', '.join(NEW_BY)}{found}.")
        elif odd := [name for name in given if name != "conditions"] or (["new_cells"] if self.new_cells else []):
            raise ConfigError(f"{odd[0]}: not allowed for a split of kind {self.kind!r}. Allowed: with 'transfer'.")
        if self.new_cells != "all" and self.new_cells < 0:
            raise ConfigError(f"new_cells: {self.new_cells} is not allowed. Allowed: 0 or more, or 'all'.")

    @property
    def held_out(self) -> str:
        """The new interventions in words, as tables name them; '' if there are none."""
        if self.kind != "transfer":
            return ""
        if self.conditions:
            return f"{len(self.conditions)} conditions"
        return self.pathway or (f"last {self.last}" if self.last else f"strongest {self.strongest}")

    def has_test_cells(self, simulated: bool) -> bool:
        """Whether old conditions have test cells whose scores are of interest.

        In a split of kind 'transfer' the old cells are there to be trained on, unless it asks for test cells too.
        """
        return self.kind != "transfer" or (self.test_fraction > 0 and not simulated)

    def of_cells(self) -> dict[str, Any]:
        """The arguments of `samsvae.screens.splits.make_split`: all settings but those of transfers."""
        return {name: value for name, value in vars(self).items() if name not in (*NEW_BY[1:], "new_cells")}

"""Read state dictionaries from Lightning checkpoints without running any code of the file."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

from torch import Tensor

from samsvae.errors import CheckpointError
from samsvae.training.checkpoint import read

#: Modules whose classes a Lightning checkpoint may contain in addition to its weights. They are not imported: an empty
#: object takes the place of each instance.
IGNORED_MODULES = (
    "lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics", "pyro", "omegaconf",
    "sams_vae", "torch.optim", "torch.nn.modules", "numpy", "pandas", "scipy", "anndata", "pathlib", "collections",
    "argparse", "datetime", "decimal", "enum", "typing", "copyreg",
)  # fmt: skip

BUILTINS = {f"{module}.{kind.__name__}": kind for kind in (set, frozenset) for module in ("builtins", "__builtin__")}


class _Nothing:
    """Stands for an object whose class is not loaded: accepts what a pickle does to it and does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


class _Mapping:
    """Stands for a subclass of dict, which a pickle fills item by item: creates a plain OrderedDict."""

    def __new__(cls, *args, **kwargs):
        return OrderedDict()


def _stand_in(name: str) -> type | None:
    """The class to create instead of the class with this full name; None if the file must be refused."""
    if name in BUILTINS:
        return BUILTINS[name]
    if any(name.startswith(f"{module}.") for module in IGNORED_MODULES):
        return _Mapping if name.lower().endswith("dict") else _Nothing
    return None


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dictionary of a Lightning checkpoint (.ckpt), on the CPU. No code of the file runs.

    Everything except the weights (settings, callbacks, optimisers) is ignored. Neither Lightning nor pyro is needed.
    CheckpointError if the file is damaged, is not a Lightning checkpoint, or contains anything that could do harm.
    """
    state: Any = read(path, stand_in=_stand_in).get("state_dict")
    if type(state) not in (dict, OrderedDict) or not all(isinstance(value, Tensor) for value in dict.values(state)):
        raise CheckpointError(f"{path}: has no 'state_dict' of tensors, so it is not a Lightning checkpoint.")
    return dict(state)

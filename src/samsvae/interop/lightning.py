"""State dictionaries from Lightning checkpoints, without running any code of the file."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

from torch import Tensor

from samsvae.errors import CheckpointError
from samsvae.training.checkpoint import read

# ---- files ---------------------------------------------------------------------------------------------------------

#: Modules whose classes a Lightning checkpoint may name beside its weights. They are not imported: what a file makes
#: of them is made of nothing.
PASSED_OVER = (
    "lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "torchmetrics", "pyro", "omegaconf",
    "sams_vae", "torch.optim", "torch.nn.modules", "numpy", "pandas", "scipy", "anndata", "pathlib", "collections",
    "argparse", "datetime", "decimal", "enum", "typing", "copyreg",
)  # fmt: skip

BUILTINS = {f"{module}.{kind.__name__}": kind for kind in (set, frozenset) for module in ("builtins", "__builtin__")}


class _Nothing:
    """Stands for an object whose class is not loaded: takes whatever a pickle does to it, and does nothing."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


class _Mapping:
    """The same for a kind of dict, which a pickle fills item by item: a plain one."""

    def __new__(cls, *args, **kwargs):
        return OrderedDict()


def _stand_in(name: str) -> type | None:
    if name in BUILTINS:
        return BUILTINS[name]
    if any(name.startswith(f"{module}.") for module in PASSED_OVER):
        return _Mapping if name.lower().endswith("dict") else _Nothing
    return None


def load_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dictionary of a Lightning checkpoint (.ckpt), on the CPU. No code of the file runs.

    Objects beside the weights (settings, callbacks, optimisers) are passed over; neither Lightning nor pyro is needed.
    CheckpointError where the file is damaged, is no such file, or asks for anything that could do harm.
    """
    state = read(path, stand_in=_stand_in).get("state_dict")
    if type(state) not in (dict, OrderedDict) or not all(isinstance(value, Tensor) for value in dict.values(state)):
        raise CheckpointError(f"{path}: has no 'state_dict' of tensors, as a Lightning checkpoint has.")
    return dict(state)

"""Fixtures of all tests. Tests use one thread, so that sums are added in the same order on every machine."""

import copy
import importlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

# Set before numpy and torch are imported; processes that tests start inherit them.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["MPLBACKEND"] = "Agg"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the modules with the most slow tests first, so that no process is left alone with them at the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


@pytest.fixture(autouse=True)
def level_of_logs() -> Iterator[None]:
    """Commands lower the level of the package's logs for their process; the next test finds it as it was."""
    log = logging.getLogger("samsvae")
    before = log.level
    yield
    log.setLevel(before)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def benchmark_named(root) -> Iterator[Callable[[str], ModuleType]]:
    """A function that imports a script of benchmarks/, which finds the other scripts there as on the command line."""
    before = list(sys.path)
    sys.path.insert(0, str(root / "benchmarks"))
    yield importlib.import_module
    sys.path[:] = before


@pytest.fixture(scope="session")
def shared(root) -> Path:
    """Real data and golden files: the folder next to the checkout, or SAMSVAE_SHARED. Skips the test without it."""
    folder = Path(os.environ.get("SAMSVAE_SHARED", root.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} (real data; set SAMSVAE_SHARED to its path)")
    return folder


@pytest.fixture(scope="session")
def configuration(root) -> Callable[..., dict]:
    """A function that reads configuration files and merges them in order, as Snakemake does."""
    import yaml
    from snakemake.utils import update_config

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    files: dict[str, dict] = {}  # parsed once: a large file takes a quarter of a second

    def read(*names: str) -> dict:
        merged: dict = {}
        for name in names:
            if name not in files:
                files[name] = yaml.load((root / "config" / name).read_text(), loader)
            update_config(merged, copy.deepcopy(files[name]))
        return merged

    return read

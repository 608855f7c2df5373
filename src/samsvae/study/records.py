"""What runs cost, as it is told: spans of time, the seconds that a run took, the CPU. The standard library alone."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path


def seconds_of(record: Path, settings: Mapping) -> float | None:
    """Seconds that a run took, by its run.json; None where that is not there or is of other settings than these."""
    try:
        found = json.loads(record.read_text())
        same = all(found[key] == value for key, value in settings.items())
        return float(found["seconds"]) if same else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@cache
def cpu_model(told: Path = Path("/proc/cpuinfo")) -> str:
    """The name of this machine's CPU, which Linux tells; elsewhere its architecture."""
    with suppress(OSError):
        if named := re.search(r"^model name\s*:\s*(\S.*)$", told.read_text(), re.MULTILINE):
            return named[1].strip()
    return platform.processor() or platform.machine()

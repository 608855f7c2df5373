"""The study that Snakemake would run with the same configuration files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from snakemake.utils import update_config

from samsvae.config.study import Study
from samsvae.config.validate import build
from samsvae.errors import ConfigError


def read_study(config_files: Sequence[str | Path]) -> Study:
    """The study of these YAML files, merged as Snakemake merges them: values of later files win.

    ConfigError if a file is not YAML or not a mapping, or if a key or value is not allowed; OSError if a file cannot
    be read.
    """
    merged: dict = {}
    for path in config_files:
        update_config(merged, _read_yaml(Path(path)))
    return build(Study, merged)


def _read_yaml(path: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML ({reason}).") from None
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path}: must hold a mapping of keys to values, not {type(content).__name__!r}.")
    return content or {}

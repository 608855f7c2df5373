"""The study that Snakemake would run with the same configuration files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml
from snakemake.utils import update_config

from samsvae.config.study import Study
from samsvae.config.validate import build
from samsvae.errors import ConfigError


def read_config(config_files: Sequence[str | Path]) -> dict:
    """These YAML files, merged as Snakemake merges them: values of later files win.

    ConfigError if a file is not YAML or not a mapping; OSError if it cannot be read.
    """
    merged: dict = {}
    for path in config_files:
        update_config(merged, _read_yaml(Path(path)))
    return merged


def read_study(config_files: Sequence[str | Path]) -> Study:
    """The study that these YAML files describe; ConfigError also if a key or value is not allowed."""
    return build(Study, read_config(config_files))


def _read_yaml(path: Path) -> dict:
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{path}: not valid YAML ({reason}).") from None
    if not isinstance(content, dict | None):
        raise ConfigError(f"{path}: must hold a mapping of keys to values, not {type(content).__name__!r}.")
    return content or {}

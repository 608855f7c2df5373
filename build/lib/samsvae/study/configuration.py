"""The study that Snakemake would run with the same configuration files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from snakemake.utils import update_config

from samsvae.config.study import Study
from samsvae.config.validate import build
from samsvae.errors import ConfigError, quoted

_MERGE, _DATE = "tag:yaml.org,2002:merge", "tag:yaml.org,2002:timestamp"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read_config(config_files: Sequence[str | Path]) -> dict:
    """These YAML files, merged as Snakemake merges them: values of later files win.

    ConfigError if a file is not YAML or not a mapping, or has something that YAML accepts and a person does not mean
    (``_check``); OSError if it cannot be read.
    """
    merged: dict = {}
    for path in config_files:
        update_config(merged, _read_yaml(Path(path)))
    return merged


def extended(default: str | Path, config: Mapping) -> dict:
    """The configuration in a YAML file with the values of ``config`` on top, merged as Snakemake merges them."""
    merged = read_config([default])
    update_config(merged, config)
    return merged


def read_study(config_files: Sequence[str | Path]) -> Study:
    """The study that these YAML files describe; ConfigError also if a key or value is not allowed."""
    return build(Study, read_config(config_files))


def _read_yaml(path: Path) -> dict:
    text = _text(path)
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
        node = loader.get_single_node()
        _check(node, path, set(), set())
        content = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ConfigError(f"{path}: not valid YAML ({_reason(error, text)}).") from None
    except ConfigError:
        raise
    except ValueError:
        raise ConfigError(f"{path}: a date is not valid, or a number has thousands of digits.") from None
    if not isinstance(content, dict):
        what = "but is empty" if content is None else f"not {type(content).__name__!r}"
        raise ConfigError(f"{path}: must hold a mapping of keys to values, {what}.")
    return content


def _reason(error: Exception, text: str) -> str:
    """The line and the reason of an error of YAML."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    said = [(error.context, error.context_mark), (error.problem, error.problem_mark)]
    reason = ": ".join(f"{what}{_line(mark).replace(',', ' in')}" for what, mark in said if what)
    begin = re.match(r"\s*", "".join(text.splitlines()[error.problem_mark.line :][:1]))
    return f"{reason}; indent with spaces, not with tabs" if begin and "\t" in begin.group() else reason


def _text(path: Path) -> str:
    """The text of a file; ConfigError if it is not UTF-8. JSON, which Snakemake accepts, may be indented with tabs."""
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        found = f"the byte 0x{raw[error.start]:02x} is not UTF-8"
        raise ConfigError(f"{path}, line {line}: {found}. Save the file as UTF-8.") from None
    return text.replace("\t", " ") if text.lstrip().startswith("{") else text


def _line(mark: yaml.Mark | None) -> str:
    return f", line {mark.line + 1}" if mark else ""


def _check(node: yaml.Node | None, path: Path, checked: set[int], around: set[int], key: str = "") -> None:
    """ConfigError for what YAML accepts and a person does not mean, with the line.

    These are a key that is given twice, an anchor that holds itself, a block of text without text (``separator: |``),
    and names that are read as other numbers or as dates.
    """
    if node is None or id(node) in checked:
        return
    here = f"{path}{_line(node.start_mark)}"
    if id(node) in around:
        raise ConfigError(f"{here}: an anchor holds a reference to itself. Write the values out.")
    inside = around | {id(node)}
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node, here, key)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check(item, path, checked, inside, key)
    else:
        lines: dict[str, str] = {}
        for name, value in node.value:
            _check(name, path, checked, inside)
            given = str(name.value)
            if given in lines and name.tag != _MERGE:
                at = f"{path}{_line(name.start_mark)}"
                raise ConfigError(f"{at}: the key {quoted(given)} is given twice (also in{lines[given]}). Remove one.")
            lines[given] = _line(name.start_mark).lstrip(",")
            _check(value, path, checked, inside, given)
    checked.add(id(node))


def _check_scalar(node: yaml.ScalarNode, here: str, key: str) -> None:
    text = node.value
    if node.style in ("|", ">") and not text:
        raise ConfigError(
            f"{here}: {key}: {node.style} without quotes begins a block of text, and the block is empty. For the "
            f'character itself write "{node.style}".'
        )
    number = node.tag in _NUMBERS and (":" in text or re.fullmatch("[-+]?0[0-7_]+", text))
    if number or node.tag == _DATE:
        raise ConfigError(
            f'{here}: {key}: YAML reads {text} as another number or as a date. For a name write "{text}" in quotes, '
            "for a number its digits without leading zeros."
        )

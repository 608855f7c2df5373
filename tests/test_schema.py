"""config/schema.json matches the code, and the configurations are valid under it."""

import copy
import dataclasses
import json

import pytest

from samsvae.config.evaluation import EvaluationConfig
from samsvae.config.model import ModelConfig
from samsvae.config.schema import schema
from samsvae.config.screens import MINIATURES, OPTIONS, ScreenConfig, Source
from samsvae.config.splits import SplitConfig
from samsvae.config.study import Experiment, PathVars, Study
from samsvae.config.training import TrainingConfig
from samsvae.config.transfer import TransferConfig

jsonschema = pytest.importorskip("jsonschema")
yaml = pytest.importorskip("yaml")
utils = pytest.importorskip("snakemake.utils")

CONFIGS = ("config.yaml", "core.yaml", "fast.yaml", "demo.yaml", "custom.example.yaml")
CLASSES = (Study, PathVars, Experiment, ScreenConfig, Source, *MINIATURES.values(), *OPTIONS.values())
CLASSES += (SplitConfig, ModelConfig, TrainingConfig, TransferConfig)


def configuration(root, name):
    """A file of config/ merged over config.yaml by Snakemake's own function."""
    merged, over = (yaml.safe_load((root / "config" / file).read_text()) for file in ("config.yaml", name))
    utils.update_config(merged, over)
    return merged


@pytest.fixture(scope="module")
def validator(root):
    kind = jsonschema.Draft202012Validator
    found = json.loads((root / "config/schema.json").read_text())
    kind.check_schema(found)
    return kind(found)


def test_the_file_matches_the_code(root):
    """If not, write json.dumps(samsvae.config.schema.schema(), indent=1) and a line feed to the file."""
    assert (root / "config/schema.json").read_text() == json.dumps(schema(), indent=1) + "\n"


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_are_valid(root, validator, name):
    validator.validate(configuration(root, name))


@pytest.mark.parametrize(
    "place",
    [
        (),
        ("pathvars",),
        ("settings", "replogle"),
        ("settings", "replogle", "split"),
        ("settings", "replogle", "evaluation"),
        ("screens", "replogle"),
        ("screens", "replogle", "source"),
        ("screens", "replogle", "options"),
    ],
)
def test_unknown_keys_are_not_valid(root, validator, place):
    wrong = copy.deepcopy(configuration(root, "config.yaml"))
    inner = wrong
    for key in place:
        inner = inner[key]
    inner["colour"] = 1
    with pytest.raises(jsonschema.ValidationError, match=r"colour|is not valid under any"):
        validator.validate(wrong)


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ((), "device", "gpu"),
        (("screens", "replogle"), "kind", "repogle"),
        (("settings", "replogle", "split"), "test_fraction", "a fifth"),
        (("settings", "replogle"), "grid", {"model": "cond_vae"}),
    ],
)
def test_wrong_values_are_not_valid(root, validator, place, key, value):
    wrong = configuration(root, "config.yaml")
    inner = wrong
    for step in place:
        inner = inner[step]
    inner[key] = value
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(wrong)


def test_every_key_is_described(root):
    """config/README.md names every key of the configuration."""
    text = (root / "config/README.md").read_text()
    keys = {item.name for cls in (*CLASSES, EvaluationConfig) for item in dataclasses.fields(cls)}
    assert [key for key in sorted(keys) if f"`{key}`" not in text and f".{key}`" not in text] == []

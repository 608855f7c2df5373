"""Checkpoints: nothing in them is run as code, and damage is detected."""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import model, screen

from samsvae.config.model import ModelConfig
from samsvae.config.validate import build
from samsvae.config.zoo import ROWS
from samsvae.data.cells import cells_of, encode
from samsvae.errors import CheckpointError, ConfigError
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.evaluation.model_effects import condition_means
from samsvae.models.model import Model
from samsvae.ops.device import usable
from samsvae.training.checkpoint import Checkpoint, load, save

GENES = tuple(f"gene{g}" for g in range(9))
FACTS = {"run": "x-seed0", "encoding": "sum", "training": {"seed": 0, "plate": "epoch"}, "validation_loss": 12.5}


def checkpoint(name: str = "sams_vae_corr", **changes) -> Checkpoint:
    net = model(name, **changes)
    made = screen(pairs=ROWS[name].model.get("effect") != "prior_mean")
    net.fit_inputs(cells_of(made, np.arange(80), encode(made, "sum")))
    return Checkpoint(net.eval(), GENES, ("a", "b", "c", "d"), FACTS)


@pytest.mark.parametrize("name", ROWS)
def test_a_round_trip_changes_nothing(name, tmp_path):
    made = checkpoint(name)
    with torch.no_grad():  # not the initial values
        for i, tensor in enumerate(made.model.state_dict().values()):
            tensor.add_(0.01 * i) if tensor.is_floating_point() else tensor.add_(i)
    save(made, tmp_path / "model.pt")
    found = load(tmp_path / "model.pt")
    assert (found.genes, found.perturbations, found.facts) == (GENES, ("a", "b", "c", "d"), FACTS)
    assert found.model.config == made.model.config and not found.model.training
    data = screen(pairs=ROWS[name].model.get("effect") != "prior_mean")
    cells = cells_of(data, np.arange(120), encode(data, "sum"))
    members = encode(data, "sum").members
    for of in (lambda net: iwelbo(net, cells, particles=3), lambda net: condition_means(net, members, samples=3)):
        np.testing.assert_array_equal(of(found.model), of(made.model))
    save(found, tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == (tmp_path / "model.pt").read_bytes()


def test_files_without_a_floor_of_the_mean_were_trained_with_the_usual_one(tmp_path):
    made = checkpoint("svae_plus_lopez")
    save(made, tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt")
    assert content["config"].pop("mean_floor") == made.model.config.mean_floor == 1e-8
    torch.save(content, tmp_path / "old.pt")
    old = load(tmp_path / "old.pt").model
    assert old.config.mean_floor == old.likelihood.floor == 1e-4
    assert old.decode({"z": torch.zeros(1, 1, 4)}, old.no_cells()).floor == 1e-4


def test_the_same_content_gives_the_same_bytes_from_any_source(tmp_path):
    """Equal strings give the same bytes, whether they are one object (a literal) or several (read from a file)."""
    made = checkpoint("cond_vae")  # embedding: none, mask: none
    facts = FACTS | {"run": "cond_vae", "model": "cond_vae"}
    made = Checkpoint(made.model, GENES, ("gene0", "b", "c", "d"), facts)
    config = build(ModelConfig, json.loads(json.dumps(asdict(made.model.config))))
    other = Model(config, 9, 4)
    other.load_state_dict(made.model.state_dict())
    facts, genes, perturbations = json.loads(json.dumps([facts, GENES, made.perturbations]))
    assert genes[0] is not perturbations[0]
    save(made, tmp_path / "one.pt")
    save(Checkpoint(other, tuple(genes), tuple(perturbations), facts), tmp_path / "two" / "other.pt")
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two" / "other.pt").read_bytes()
    facts["validation_loss"] = 12.0
    save(Checkpoint(other, tuple(genes), tuple(perturbations), facts), tmp_path / "three.pt")
    assert (tmp_path / "one.pt").read_bytes() != (tmp_path / "three.pt").read_bytes()


def test_a_model_that_is_still_training_can_be_saved(tmp_path):
    """Gradients and the training mode are not saved; the weights are those at the time of saving."""
    made = checkpoint("vae")
    made.model.train()
    save(made, tmp_path / "model.pt")
    before = {key: value.clone() for key, value in made.model.state_dict().items()}
    with torch.no_grad():
        made.model.likelihood.log_concentration.add_(1.0)
    found = load(tmp_path / "model.pt").model
    assert not found.training
    for key, value in found.state_dict().items():
        assert torch.equal(value, before[key]), key


# ---- damaged and foreign files -------------------------------------------------------------------------------------


class Hostile:
    """A pickle that creates a folder when it is loaded."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("where", ["plain", "archive", "facts"])
def test_a_foreign_pickle_is_rejected_and_not_run(where, tmp_path):
    path, proof = tmp_path / "model.pt", tmp_path / "proof"
    if where == "plain":
        path.write_bytes(pickle.dumps(Hostile(proof)))
    elif where == "archive":
        torch.save(Hostile(proof), path)
    else:
        made = checkpoint()
        save(Checkpoint(made.model, made.genes, made.perturbations, {"run": Hostile(proof)}), path)
    with pytest.raises(CheckpointError, match=r"model\.pt: not a checkpoint"):
        load(path)
    assert not proof.exists()
    if where != "plain":  # without the check, the folder is created
        torch.load(path, weights_only=False)
        assert proof.exists()


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    """Flip a bit in the middle, inside the weights."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = {"empty": lambda data: b"", "text": lambda data: b"a text\nof two lines\n", "cut": cut, "flipped": flip}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_rejected(damage, tmp_path):
    path = tmp_path / "model.pt"
    save(checkpoint(), path)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(CheckpointError, match=r"model\.pt: not a checkpoint, or damaged") as error:
        load(path)
    assert len(str(error.value).splitlines()) == 1


def test_another_archive_a_folder_and_a_missing_file_are_rejected(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("a.txt", "a")
    for path, what in ((tmp_path / "other.zip", "not a checkpoint"), (tmp_path, "not a checkpoint")):
        with pytest.raises(CheckpointError, match=what) as error:
            load(path)
        assert str(path) in str(error.value)
    with pytest.raises(CheckpointError, match=r"absent\.pt: no such file"):
        load(tmp_path / "absent.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.update(format=2), "format 2 is not known. Allowed: 1"),
        (lambda c: c["weights"].popitem(), "Missing key"),
        (lambda c: c["weights"].update(more=torch.zeros(1)), "Unexpected key"),
        (lambda c: c.update(genes=c["genes"][1:]), "size mismatch"),
        (lambda c: c.update(perturbations=[*c["perturbations"], "e"]), "size mismatch"),
        (lambda c: c["config"].update(n_latent=5), "size mismatch"),
        (lambda c: c["config"].update(n_latent=0), "n_latent"),
        (lambda c: c["config"].update(masks="ones"), "Did you mean 'mask'"),
        (lambda c: c.pop("config"), "config"),
        (lambda c: c.pop("genes"), "genes"),
        (lambda c: c.pop("facts"), "facts"),
        (lambda c: c.update(weights=3), "weights"),
    ],
)
def test_weights_that_do_not_fit_are_rejected(change, said, tmp_path):
    path = tmp_path / "model.pt"
    save(checkpoint(), path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(CheckpointError) as error:
        load(path)
    assert str(path) in str(error.value) and said in str(error.value)


def weight(content, change):
    """Change one of the weights."""
    content["weights"]["decoder.layers.0.weight"] = change(content["weights"]["decoder.layers.0.weight"])


def fact(**changes):
    return lambda c: c["facts"].update(changes)


EACH = dict.fromkeys("abcd", 5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: weight(c, lambda w: w.fill_(float("nan"))), "0.weight' has values that are not finite"),
        (lambda c: weight(c, lambda w: w / 0), "has values that are not finite"),
        (lambda c: weight(c, lambda w: w.to(torch.complex64)), "has the type complex64; allowed: float32"),
        (lambda c: weight(c, lambda w: w.int()), "has the type int32; allowed: float32"),
        (lambda c: weight(c, lambda w: w.double()), "has the type float64; allowed: float32"),
        (lambda c: weight(c, lambda w: w.to_sparse()), "is not a dense tensor"),
        (lambda c: weight(c, lambda w: w[:1, :1].clone().expand(w.shape)), "is not a dense tensor"),
        (lambda c: weight(c, lambda w: "text"), "is not a dense tensor"),
        (lambda c: c["weights"].update({3: torch.zeros(1)}), "Unexpected key: '3'"),
        (lambda c: c["config"].update(n_layers=10_000_000), "ask for 10,000,002 layers, but the file has"),
        (lambda c: c["config"].update(embedding_layers=10_000_000), "ask for 10,000,001 layers, but the file has"),
        (lambda c: c["config"].update(width=10_000_000), "size mismatch"),
        (lambda c: c["config"].update(n_latent=2**40), "size mismatch"),
        (lambda c: c["config"].update(n_latent=2**62), "no model has these sizes: 9 genes"),
        (lambda c: c["config"].update(n_latent=2**70), "it must be 9,223,372,036,854,775,807 or less"),
        (lambda c: c["config"].update(temperature=torch.ones(3, 3)), "config.temperature"),
        (lambda c: c.update(config=3), "config: 3 is not allowed"),
        (lambda c: c.update(format=torch.ones(20, 20)), "format tensor("),
        (lambda c: c.update(format=torch.tensor(1)), "format tensor(1) is not known"),
        (lambda c: c.update(genes=["gene0", *c["genes"][:-1]]), "'genes' has names more than once: 'gene0'"),
        (lambda c: c.update(perturbations=["a", "a", "b", "b"]), "has names more than once: 'a', 'b'"),
        (lambda c: c.update(genes="abcdefghi"), "'genes' is not a list of names"),
        (lambda c: c.update(genes=list(range(9))), "'genes' is not a list of names"),
        (lambda c: c.update(perturbations=["a", "b", "c", ""]), "'perturbations' is not a list of names"),
        (lambda c: c.update(facts=[1]), "'facts' is not a dictionary"),
        (lambda c: c["facts"].pop("encoding"), "fact 'encoding' is missing; allowed: sum or unique"),
        (fact(encoding="summ"), "fact 'encoding' is 'summ'; allowed: sum or unique"),
        (fact(encoding=torch.ones(2)), "allowed: sum or unique"),
        (fact(separator=["+"]), "fact 'separator' is ['+']; allowed: text"),
        (fact(controls="ctrl"), "fact 'controls' is 'ctrl'; allowed: a list of text"),
        (fact(training_cells=EACH | {"a": -1}), "is {'a': -1, 'b': 5, 'c': 5, 'd': 5}; allowed: a whole"),
        (fact(training_cells=EACH | {"a": 1.5}), "allowed: a whole number of at least 0 for each perturbation"),
        (fact(training_cells=EACH | {"e": 1}), "'training_cells' has other names than 'perturbations': 'e'"),
        (fact(training_cells={"a": 1, "b": 1, 3: 1}), "than 'perturbations': '3', 'c', 'd'"),
        (fact(best_step=-1), "fact 'best_step' is -1"),
    ],
)  # fmt: skip
def test_odd_content_is_refused_in_one_sentence(change, said, tmp_path):
    path = tmp_path / "model.pt"
    save(checkpoint(), path)
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(CheckpointError) as error:
        load(path)
    found = str(error.value)
    assert found.startswith(f"{path}: ") and said in found and "\n" not in found and len(found) < 600


def test_repeated_values_are_refused(tmp_path):
    """A file of one layer could claim any number of them."""
    made = checkpoint("cond_vae", n_layers=6)
    save(made, tmp_path / "model.pt")
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    for j in range(2, 6):
        content["weights"][f"decoder.layers.{j}.weight"] = content["weights"]["decoder.layers.1.weight"]
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="the file claims more than it holds"):
        load(tmp_path / "model.pt")


def test_no_memory_is_used_for_a_size_that_only_the_settings_claim(tmp_path):
    path = tmp_path / "model.pt"
    save(checkpoint(n_layers=3), path)
    content = torch.load(path, weights_only=True)
    content["config"]["width"] = 30_000
    torch.save(content, path)
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="size mismatch"):
        load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - usage < 100_000  # KiB


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "gpu", torch.device("cuda")])
def test_a_missing_device_is_not_reported_as_damage(device, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    save(checkpoint(), tmp_path / "model.pt")
    with pytest.raises(ConfigError, match=rf"device: '{device}' is not allowed.*Allowed: cpu\.") as error:
        load(tmp_path / "model.pt", device)
    assert "damaged" not in str(error.value)


def test_available_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [usable(name) for name in ("cpu", "cuda", torch.device("cuda", 1))] == ["cpu", "cuda", "cuda:1"]
    with pytest.raises(ConfigError, match=r"device: .cuda:2. is not allowed\. Allowed: cpu, cuda, cuda:0, cuda:1"):
        usable("cuda:2")


def test_content_other_than_a_dict_is_rejected(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match=r"list\.pt: format 'list' is not known"):
        load(tmp_path / "list.pt")


@pytest.mark.parametrize("name", ["sams_vae_corr", "svae_plus", "cond_vae"])
def test_loading_does_not_import_a_compiler(name, tmp_path):
    """torch imports its compiler for random numbers on the meta device: more than a second for each job."""
    save(checkpoint(name), tmp_path / "model.pt")
    code = "import sys; from samsvae.training.checkpoint import load; load(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "model.pt"], capture_output=True, text=True, check=True
    )
    assert "torch" in done.stdout.split()
    assert "torch._dynamo" not in done.stdout.split()

"""The random state and the default dtype of the caller: a training neither changes nor reads them."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_model import model, screen
from torch.nn import functional

from samsvae.config.training import TrainingConfig
from samsvae.config.zoo import ROWS
from samsvae.data.cells import cells_of, encode
from samsvae.errors import NumericalError
from samsvae.evaluation import model_effects as effects
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.models.networks import MLP
from samsvae.training.loop import train
from samsvae.training.state import Keep, TrainingState

FAST = TrainingConfig(steps=20, batch_size=32, learning_rate=1e-2, particles=2, validation_particles=2)
WITH_DROPOUT = ["svae_plus_lopez", "vae"]


def halves(name: str):
    made, at = screen(120, pairs=ROWS[name].model.get("effect") != "prior_mean"), np.arange(120)
    return tuple(cells_of(made, part, encode(made, "sum")) for part in (at < 80, at >= 80))


def trained(name: str, config: TrainingConfig = FAST, **options) -> dict[str, bytes]:
    parts, net = halves(name), model(name, seed=config.seed)
    net.fit_inputs(parts[0])
    train(net, *parts, config, **options)
    assert all(module.dropout_from is None for module in net.modules() if isinstance(module, MLP))
    return {key: value.numpy().tobytes() for key, value in net.state_dict().items()}


def states() -> tuple:
    return torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())


def as_eager(monkeypatch) -> None:
    """torch.compile traces, but generates no code."""
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compiled(f, backend="aot_eager", **options))


@pytest.mark.parametrize("name", ["sams_vae_corr", "sams_vae_bb", *WITH_DROPOUT])
def test_a_training_neither_changes_nor_reads_the_state_of_the_caller(name):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = states()
        found.append(trained(name))
        assert states() == before
    assert found[0] == found[1]


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_a_compiled_training_sets_the_state_back(name, monkeypatch):
    """Compiled networks can only draw from torch's own generator. The draws are the same."""
    as_eager(monkeypatch)
    torch.manual_seed(3)
    before = states()
    found = trained(name, replace(FAST, steps=4, compile=True))
    assert states() == before
    torch.manual_seed(4)
    assert found == trained(name, replace(FAST, steps=4, compile=True))


def test_also_after_an_error(monkeypatch):
    as_eager(monkeypatch)
    parts = halves("vae")
    counts = parts[0].counts.clone().float()
    counts[17, 4] = float("inf")
    for config in (FAST, replace(FAST, compile=True)):
        net, before = model("vae"), states()
        with pytest.raises(NumericalError, match="cell17"):
            train(net, replace(parts[0], counts=counts), parts[1], config)
        assert states() == before
        assert all(module.dropout_from is None for module in net.modules() if isinstance(module, MLP))


def test_trainings_in_threads_do_not_change_each_other():
    jobs = [(name, replace(FAST, seed=seed)) for name in WITH_DROPOUT for seed in (0, 1)]
    alone = [trained(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            assert list(pool.map(lambda job: trained(*job), jobs)) == alone


def test_dropout_draws_the_bits_of_torch():
    """The results of earlier versions, which seeded torch's own generator, stay the same."""
    net, h = MLP((5,), 16, 1, dropout=0.3), torch.randn(7, 3, 16, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        expected = [functional.dropout(h, 0.3), functional.dropout(h[0], 0.3)]
    net.dropout_from = torch.Generator().manual_seed(11)
    for ours, true in zip([net._drop(h), net._drop(h[0])], expected, strict=True):
        assert ours.numpy().tobytes() == true.numpy().tobytes()
    assert 0.6 < (expected[0] != 0).double().mean() < 0.8


def test_the_saved_state_has_the_generator_of_dropout(tmp_path):
    """A training that is resumed elsewhere draws what it would have drawn."""
    config, name = replace(FAST, steps=9), "svae_plus_lopez"
    expected, saved = trained(name, config), []

    class Recording(Keep):
        def save(self, run: TrainingState) -> None:
            super().save(run)
            saved.append(self.path.read_bytes())

    assert trained(name, config, keep=Recording(tmp_path / "state.pt", "s", every=0.0)) == expected
    kept = torch.load(tmp_path / "state.pt")["noise"]["dropout"]
    start = torch.Generator().manual_seed(config.seed)
    assert kept.shape == start.get_state().shape and not torch.equal(kept, start.get_state())
    for state in saved[::3]:
        torch.rand(5)
        (tmp_path / "state.pt").write_bytes(state)
        assert trained(name, config, keep=Keep(tmp_path / "state.pt", "s")) == expected


def test_a_new_model_leaves_the_state_of_the_caller():
    torch.manual_seed(1)
    before = states()
    first, second = (model("svae_plus_lopez", seed=seed).state_dict() for seed in (1, 2))
    assert states() == before
    assert any((first[key] != second[key]).any() for key in first)


@pytest.fixture
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def results(name: str) -> list[bytes]:
    """The bytes of a training, of the scores and of the effects of a model."""
    parts, net = halves(name), model(name)
    net.fit_inputs(parts[0])
    found = train(net, *parts, replace(FAST, **own(name)))
    members = np.array([[0], [2], [4]])
    values = [
        *net.state_dict().values(),
        *net.perturbation_tables().values(),
        net.posterior_mean(parts[1]),
        iwelbo(net, parts[1], particles=4),
        effects.sample(net, members, samples=5),
        *(effects.condition_means(net, members, samples=20, closed_form=closed) for closed in (False, True)),
        np.array([row["val_loss"] for row in found.history]),
    ]
    return [np.asarray(value).tobytes() for value in values]


def own(name: str) -> dict:
    return {k: v for k, v in ROWS[name].training.items() if k not in ("learning_rate", "batch_size")}


@pytest.fixture(scope="module")
def in_float32() -> dict[str, list[bytes]]:
    return {name: results(name) for name in ROWS}


@pytest.mark.parametrize("name", ROWS)
def test_the_default_dtype_of_the_caller_changes_nothing(name, in_float32, in_float64):
    assert results(name) == in_float32[name]


def test_logistic_noise_of_gpus_is_that_of_cpus():
    """One operation there, five here; also at the edges of the uniform numbers."""
    eps = torch.finfo(torch.float32).eps
    u = torch.cat([torch.tensor([0.0, 1.0, eps, 0.5]), torch.rand(1000, generator=torch.Generator().manual_seed(0))])
    inside = u.clamp(eps, 1.0 - eps)
    torch.testing.assert_close(u.clone().logit_(eps), torch.log(inside) - torch.log1p(-inside), rtol=1e-6, atol=1e-6)

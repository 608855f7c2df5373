"""The training loop: reproducible bytes, the best weights, and messages for losses that are not finite."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import model, screen

from samsvae.config.training import TrainingConfig
from samsvae.config.zoo import ROWS
from samsvae.data import cells as data_of_cells
from samsvae.data.cells import cells_of, encode
from samsvae.errors import ConfigError, DataError, Interrupted, NumericalError
from samsvae.evaluation.iwelbo import iwelbo
from samsvae.evaluation.model_effects import condition_means, effect_draws, sample
from samsvae.models.model import Model
from samsvae.models.noise import Streams
from samsvae.training.loop import train
from samsvae.training.objective import objective
from samsvae.training.optimiser import Adam
from samsvae.training.state import Keep, TrainingState
from samsvae.training.validation import validation_loss

FAST = TrainingConfig(steps=40, batch_size=32, learning_rate=1e-2, particles=2, validation_particles=2)


def halves(*, pairs: bool = True, n: int = 120):
    made = screen(n, pairs=pairs)
    at = np.arange(n)
    return tuple(cells_of(made, part, encode(made, "sum")) for part in (at < 80, at >= 80))


def pairs_for(name: str) -> bool:
    return ROWS[name].model.get("effect") != "prior_mean"


def test_a_library_size_of_zero_names_its_cells():
    """The loss is finite, but its gradient is not, and the next step would blame the learning rates."""
    made = screen()
    made.library[[4, 9]] = 0.0, np.nan
    cells = cells_of(made, np.arange(120), encode(made, "sum"))
    with pytest.raises(DataError, match=r"library size must be above 0, but 2 cells .* 'cell4', 'cell9'\. Remove"):
        train(model("sams_vae_corr"), cells, cells, TrainingConfig(steps=2, batch_size=40))


@pytest.mark.parametrize("name", ROWS)
def test_every_row_learns_under_its_own_training(name):
    parts = halves(pairs=pairs_for(name))
    own = {k: v for k, v in ROWS[name].training.items() if k not in ("learning_rate", "patience")}
    net = model(name)
    net.fit_inputs(parts[0])
    before = validation_loss(net, parts[1], FAST, Streams(9))
    result = train(net, *parts, replace(FAST, steps=150, **own))
    assert result.best_loss == min(row["val_loss"] for row in result.history)
    assert validation_loss(net, parts[1], FAST, Streams(9)) < before


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not():
    runs = []
    for seed in (3, 3, 4):
        parts, net = halves(), model("sams_vae_corr", seed=seed)
        result = train(net, *parts, replace(FAST, seed=seed))
        runs.append((net.state_dict(), result.history))
    for key, value in runs[0][0].items():
        assert value.numpy().tobytes() == runs[1][0][key].numpy().tobytes()
    assert runs[0][1] == runs[1][1]
    assert runs[0][1] != runs[2][1]


def test_the_model_is_left_with_its_best_weights():
    parts, net = halves(), model("cpa_vae_mf")
    config = replace(FAST, learning_rate=0.03, steps=400)  # long enough to overfit 80 cells
    result = train(net, *parts, config)
    assert result.best_step < result.steps
    again = validation_loss(net, parts[1], config, Streams(f"0/validation/{result.best_step}"))
    assert again == pytest.approx(result.best_loss, rel=1e-6)


def test_history_has_a_row_per_epoch_and_the_last_step():
    result = train(model("sams_vae_mf"), *halves(), replace(FAST, steps=7))
    assert [(row["step"], row["epoch"]) for row in result.history] == [(3, 1), (6, 2), (7, 3)]


def test_early_stopping():
    result = train(model("cpa_vae_mf"), *halves(), replace(FAST, learning_rate=0.03, steps=3000, patience=3))
    assert result.steps < 3000


def test_progress_names_speed_and_time_left(caplog):
    with caplog.at_level(logging.INFO):
        train(model("cpa_vae_mf"), *halves(), FAST, report_every=0.0)
    assert "steps/s" in caplog.text and "time left" in caplog.text


def test_a_loss_that_is_not_finite_names_term_step_gene_and_cell():
    parts, net = halves(), model("sams_vae_mf")
    broken = parts[0].counts.clone().float()
    broken[17, 4] = float("inf")
    genes = np.array([f"gene{g}" for g in range(9)])
    with pytest.raises(NumericalError, match=r"(?s)Step \d+.*cell 'cell17'"):
        train(net, replace(parts[0], counts=broken), parts[1], FAST, genes=genes)
    net = model("sams_vae_mf")
    with torch.no_grad():
        net.likelihood.log_concentration[4] = 200.0
    with pytest.raises(NumericalError, match="not finite"):
        train(net, *parts, FAST, genes=genes)


def test_two_perturbations_per_cell_are_rejected_if_they_shift_the_prior_mean():
    with pytest.raises(ConfigError, match="unique"):
        train(model("svae_plus"), *halves(pairs=True), FAST)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"likelihood": "normal"}, True),
        ({"likelihood": "normal_fixed", "input": "log"}, True),
        ({"likelihood": "nb", "input": "standardise"}, True),
        ({"likelihood": "normal", "input": "standardise"}, False),
        ({"likelihood": "normal", "input": "none"}, False),
    ],
)
def test_negative_values_need_a_normal_likelihood_and_an_input_without_logarithm(changes, refused):
    made = screen(pairs=False)
    made = replace(made, counts=np.random.default_rng(0).normal(size=made.counts.shape).astype(np.float32))
    parts = [cells_of(made, part, encode(made, "sum")) for part in (np.arange(120) < 80, np.arange(120) >= 80)]
    net = model("sams_vae_mf", **changes)
    net.fit_inputs(parts[0])
    if refused:
        with pytest.raises(
            ConfigError, match=f"likelihood: '{changes['likelihood']}' with input: .*input: standardise"
        ):
            train(net, *parts, FAST)
    else:
        train(net, *parts, replace(FAST, steps=2))


def test_every_step_plate_and_penalty_by_hand():
    parts = halves(pairs=False)
    net, batch = model("svae_plus", mask_logit_init=0.7), parts[0].batch(slice(0, 10))
    draw = net.draw(batch, Streams(0), 2)
    plain = net.terms(batch, draw)
    probability = torch.sigmoid(torch.tensor(0.7)).item()
    log_beta = 4 * 4 * torch.distributions.Beta(1.0, 2.0).log_prob(torch.tensor(probability)).item()
    expected = -(plain["reconstruction"] + plain["z"]).mean().item() - log_beta / 80 + 10.0 * probability
    config = TrainingConfig(plate="every_step", mask_penalty=10.0)
    assert objective(net, batch, draw, config, n_cells=80)[0].item() == pytest.approx(expected, rel=1e-5)


def step_without_gradient(**changes):
    """Names of the weights that change in a step with zero gradients, so by weight decay alone."""
    net = model("sams_vae_mf")
    before = {name: p.detach().clone().fill_(0.5) for name, p in net.named_parameters()}
    net.load_state_dict(before, strict=False)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    Adam(net, TrainingConfig(weight_decay=0.1, **changes)).step()
    return {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("name", ["beta_vae", "svae", "svae_plus_lopez"])
def test_validation_of_the_terms_of_cells_by_hand(name):
    """No penalty, no prior of pi and no beta: the mean of the Gaussian KL minus log p(x | z)."""
    parts, net = halves(pairs=False), model(name).eval()
    batch = parts[1].batch(slice(None))
    draw = net.draw(batch, Streams(3), 1)
    q, x, mean = draw.guides["z"], batch.x, 0.0
    if name != "beta_vae":
        treated = parts[1].index < 4  # a control has no offset
        mean = draw.values["cell_mask"][0, :, 0] * draw.values["embedding"][parts[1].index[:, 0] % 4] * treated
    kl = 0.5 * (q.scale**2 + (q.loc - mean) ** 2 - 1) - torch.log(q.scale)
    theta, m = torch.exp(net.likelihood.log_concentration), net.decode(draw.values, batch).mean[0]
    nb = torch.distributions.NegativeBinomial(theta, logits=torch.log(m) - torch.log(theta))
    expected = (kl.sum(-1) - nb.log_prob(x).sum(-1)).mean().item()
    config = TrainingConfig(**ROWS[name].training)
    assert validation_loss(net, parts[1], config, Streams(3)) == pytest.approx(expected, rel=1e-5)
    every = validation_loss(net, parts[1], replace(config, validation_terms="all"), Streams(3))
    assert abs(every - expected) > 0.1


def test_weight_decay_on_all_or_on_networks():
    names = {name for name, _ in model("sams_vae_mf").named_parameters()}
    free = {"latents.0.logits", "latents.1.loc", "latents.1.log_scale"}
    assert free < names
    assert step_without_gradient() == names
    assert step_without_gradient(weight_decay_on="networks") == names - free


def test_rates_of_masks_and_embeddings():
    net = model("sams_vae_mf")
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    config = TrainingConfig(learning_rate=0.01, rate_mask=0.2, rate_embedding=0.05, weight_decay=0.0)
    Adam(net, config).step()
    for name, parameter in net.named_parameters():  # Adam's first step equals the rate for any gradient
        rate = 0.2 if "logits" in name else 0.05 if name in ("latents.1.loc", "latents.1.log_scale") else 0.01
        torch.testing.assert_close(before[name] - parameter, torch.full_like(parameter, rate), rtol=1e-4, atol=1e-6)


def test_a_clipped_gradient_makes_smaller_steps_where_adam_can_see_it():
    """Adam undoes a constant factor except for its eps; with a large eps the steps shrink with the norm."""
    moved = {}
    for clip in (None, 1e-3):
        net = model("cpa_vae_mf")
        before = {name: p.detach().clone() for name, p in net.named_parameters()}
        train(net, *halves(), replace(FAST, steps=2, adam_eps=1.0, weight_decay=0.0, gradient_clip=clip))
        moved[clip] = sum((p - before[name]).abs().sum().item() for name, p in net.named_parameters())
    assert moved[1e-3] < 0.01 * moved[None]


def test_a_beta_guide_of_the_mask_probability_learns():
    parts, net = halves(), model("sams_vae_bb", guide_mask_prob="beta")
    before = validation_loss(net, parts[1], FAST, Streams(9))
    train(net, *parts, replace(FAST, steps=150))
    assert validation_loss(net, parts[1], FAST, Streams(9)) < before
    probability = net.perturbation_tables()["mask_probability"]
    assert probability.std() > 0.01 and ((probability > 0) & (probability < 1)).all()
    torch.testing.assert_close(
        probability, torch.distributions.Beta(net.latents[0].log_a.exp(), net.latents[0].log_b.exp()).mean.detach()
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("weight_z", -1.0),
        ("extra_share", -0.1),
        ("steps", 0),
        ("learning_rate", 0.0),
        ("seed", -1),
        ("seed", 2**32),
        ("seed", 2**70),
        ("weight_decay", -1.0),
        ("adam_beta1", 1.0),
    ],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(ConfigError, match=name):
        TrainingConfig(**{name: value})


def test_an_extra_share_needs_plate_weights():
    with pytest.raises(ConfigError, match="extra_share"):
        TrainingConfig(extra_share=0.1, plate="every_step")


def test_a_saturated_mask_probability_is_finite():
    parts = halves(pairs=False)
    net = model("svae_plus", mask_logit_init=40.0)
    assert np.isfinite(validation_loss(net, parts[1], FAST, Streams(0)))


def test_a_last_batch_of_one_cell_is_rejected_with_batch_norm():
    made = screen(121, pairs=False)
    data = cells_of(made, np.arange(81), encode(made, "sum"))
    with pytest.raises(ConfigError, match="batch_size: 16 leaves a last batch of one of the 81"):
        train(model("vae"), data, data, replace(FAST, batch_size=16))


@pytest.mark.parametrize(
    ("n", "batch_size", "said"),
    [(80, 1, "there is batch_size: 1"), (1, 32, "there is only one training cell"), (81, 16, "set last_batch: drop")],
)
def test_batch_norm_needs_two_cells_in_every_step(n, batch_size, said):
    made = screen(121, pairs=False)
    data = cells_of(made, np.arange(n), encode(made, "sum"))
    with pytest.raises(ConfigError, match=said):
        train(model("vae"), data, data, replace(FAST, batch_size=batch_size))


def test_one_cell_is_validated_and_scored_with_batch_norm():
    made = screen(121, pairs=False)
    data, one = (cells_of(made, np.arange(n), encode(made, "sum")) for n in (81, 1))
    net = model("vae")
    result = train(net, data, one, replace(FAST, batch_size=16, last_batch="drop", drop_below=2))
    assert np.isfinite(result.best_loss) and torch.isfinite(iwelbo(net, one, particles=3)).all()


# ---- the last batch of an epoch ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "last"),
    [
        ({}, 16),
        ({"last_batch": "drop"}, 0),
        ({"last_batch": "drop", "drop_below": 16}, 16),
        ({"last_batch": "drop", "drop_below": 17}, 0),
        ({"last_batch": "drop", "batch_size": 80}, 80),
        ({"last_batch": "drop", "batch_size": 512}, 80),  # the only batch is never left out
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_the_last_batch_is_kept_or_left_out(changes, last, streamed, monkeypatch):
    if streamed:
        monkeypatch.setattr(data_of_cells, "READ_LATE", 100)
    parts, seen = halves(), []
    assert parts[0].streamed == streamed
    advance = TrainingState.advance
    monkeypatch.setattr(
        TrainingState, "advance", lambda run, at, *counts: seen.append(at.tolist()) or advance(run, at, *counts)
    )
    config = replace(FAST, **{"epochs": 3, **changes})
    result = train(model("cpa_vae_mf"), *parts, config)
    full = [min(config.batch_size, 80)] * (80 // config.batch_size)
    sizes = [*full, last] if last and last < 80 else full or [80]
    assert [len(at) for at in seen] == 3 * sizes
    assert (result.steps, result.history[-1]["epoch"]) == (3 * len(sizes), 3)
    epochs = [{cell for at in seen[e * len(sizes) : (e + 1) * len(sizes)] for cell in at} for e in range(3)]
    assert all(len(epoch) == sum(sizes) for epoch in epochs)
    if not last:  # other cells are left out in each epoch, and all take part
        assert epochs[0] != epochs[1] != epochs[2] and set.union(*epochs) == set(range(80))


def test_keep_and_a_last_batch_that_is_large_enough_have_the_same_bytes():
    found = []
    for changes in ({}, {"last_batch": "drop", "drop_below": 16}, {"last_batch": "drop"}):
        net = model("sams_vae_mf", seed=3)
        train(net, *halves(), replace(FAST, **changes))
        found.append(bytes_of(net))
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drop_below": 3}, "drop_below: needs last_batch: drop"),
        ({"last_batch": "drop", "drop_below": 1}, r"drop_below: 1 is not allowed; it must lie in \[2, batch_size = 32"),
        ({"last_batch": "drop", "drop_below": 33}, "drop_below: 33 is not allowed"),
    ],
)
def test_drop_below_that_means_nothing(changes, said):
    with pytest.raises(ConfigError, match=said):
        replace(FAST, **changes)


def test_patience_waits_for_the_end_of_the_warm_up():
    config = replace(FAST, steps=60, learning_rate=1e-6, warmup_epochs=15, patience=2)  # nothing gets better
    result = train(model("cpa_vae_mf"), *halves(), config)
    assert result.history[-1]["epoch"] > 15


# ---- extremes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "others"), [(10.0, {}), (1e30, {"rate_mask": 0.5, "rate_embedding": 2.0})])
@pytest.mark.parametrize("name", ["sams_vae_corr", "svae_plus"])
def test_rates_that_are_too_high_are_named(name, rate, others):
    parts = halves(pairs=pairs_for(name))
    net = model(name)
    net.fit_inputs(parts[0])
    with pytest.raises(NumericalError) as error:
        train(net, *parts, replace(FAST, learning_rate=rate, **others))
    mask, embedding = (others.get(key, rate) for key in ("rate_mask", "rate_embedding"))
    rates = f"learning_rate: {rate}, rate_mask: {mask}, rate_embedding: {embedding}"
    assert str(error.value).endswith(f"Lower the learning rates ({rates}).")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("counts", float("nan"), "The counts of cell 'cell17' are not finite."),
    ],
)
def test_odd_cells_are_named_instead_of_the_rates(field, value, said):
    parts = halves()
    values = getattr(parts[0], field).clone().float()
    values[17] = value
    with pytest.raises(NumericalError) as error:
        train(model("sams_vae_mf"), replace(parts[0], **{field: values}), parts[1], replace(FAST, batch_size=8))
    assert str(error.value).endswith(said)


def test_a_library_of_zero_has_finite_gradients():
    """The mean is then the floor, whatever the logits are."""
    parts, net = halves(), model("sams_vae_mf")
    batch = parts[0].batch(slice(0, 10))
    batch.library[3] = 0.0
    loss, _ = objective(net, batch, net.draw(batch, Streams(0), 2), FAST, n_cells=80)
    loss.backward()
    assert torch.isfinite(loss) and all(torch.isfinite(p.grad).all() for p in net.parameters())


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 139 GiB")


@pytest.mark.parametrize("many", [10**12, 10**20])
def test_more_particles_than_memory_are_named(many):
    said = rf"training: there is not enough memory.*Lower particles \({many}\) or batch_size \(32\)"
    with pytest.raises(ConfigError, match=said):
        train(model("sams_vae_mf"), *halves(), replace(FAST, particles=many))
    said = rf"validation: there is not enough memory.*Lower validation_particles \({many}\) or batch_size \(32;"
    with pytest.raises(ConfigError, match=said):
        train(model("sams_vae_mf"), *halves(), replace(FAST, steps=2, validation_particles=many))


def test_a_full_gpu_is_named_in_training_and_scores(monkeypatch):
    parts, net = halves(), model("sams_vae_mf").eval()
    members = np.array([[0, 4]])
    with pytest.raises(
        ConfigError, match=r"effects: there is not enough memory for an array of \d+ bytes. Lower draws"
    ):
        effect_draws(net, members, against=np.array([4, 4]), draws=10**8, cells=10**5)
    for name in ("draw", "draw_shared", "predict"):
        monkeypatch.setattr(Model, name, lambda *a, **k: (_ for _ in ()).throw(FULL))
    for work, call in {
        "training": lambda: train(net, *parts, FAST),
        "IWELBO": lambda: iwelbo(net, parts[1]),
        "effects": lambda: condition_means(net, members),
        "samples": lambda: sample(net, members, samples=5),
    }.items():
        with pytest.raises(ConfigError, match=f"^{work}: there is not enough memory for an array of 20.00 MiB. [A-Z]"):
            call()


@pytest.mark.parametrize("name", ["svae_plus_lopez", "sams_vae_corr"])
def test_the_largest_seed_trains(name):
    """numpy's and scikit-learn's seeds have 32 bits, torch's 64."""
    parts, most = halves(pairs=pairs_for(name)), 2**32 - 1
    assert train(model(name, seed=most), *parts, replace(FAST, steps=3, seed=most)).steps == 3


# ---- interrupted and resumed ---------------------------------------------------------------------------------------


class Kill:
    """A clock that sends the process a signal at its n-th call."""

    def __init__(self, n: int, number: int = signal.SIGTERM):
        self.left, self.number = n, number

    def __call__(self) -> float:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(self.number)
        return float(-self.left)


def bytes_of(net) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in net.state_dict().items()}


LAST = {"sams_vae_corr": {"last_batch": "drop"}}


@pytest.mark.parametrize("name", ["sams_vae_corr", "svae_plus_lopez", "vae"])
def test_a_training_that_is_killed_repeatedly_ends_with_the_same_bytes(name, tmp_path):
    """With dropout, batch norm, warm-up, patience and sparse validation, killed every few steps."""
    parts = halves(pairs=pairs_for(name))
    own = {k: v for k, v in ROWS[name].training.items() if k not in ("learning_rate", "batch_size")}
    config = replace(FAST, **own, steps=41, validation_every=2, seed=5, **LAST.get(name, {}))

    def fresh():
        net = model(name, seed=5)
        net.fit_inputs(parts[0])
        return net

    whole = fresh()
    result = train(whole, *parts, config)
    keep, kills = Keep(tmp_path / "state.pt", "stamp"), 0
    for n in (7, 3, 12, 4, 6, 5, 1000):
        net = fresh()
        try:
            again = train(net, *parts, config, keep=keep, clock=Kill(n))
        except Interrupted as error:
            kills += 1
            assert "stopped by SIGTERM at step" in str(error) and "a rerun continues from there" in str(error)
    assert kills == 6
    assert bytes_of(net) == bytes_of(whole)
    assert again.history == result.history and (again.best_step, again.steps) == (result.best_step, result.steps)


def test_a_training_resumes_from_the_state_of_any_step(tmp_path):
    """As after kill -9: the last saved state, from any step, leads to the same result."""
    parts, config = halves(), replace(FAST, steps=13)
    whole = model("sams_vae_mf")
    train(whole, *parts, config)
    states: list[bytes] = []

    class Recording(Keep):
        def save(self, run):
            super().save(run)
            states.append(self.path.read_bytes())

    train(model("sams_vae_mf"), *parts, config, keep=Recording(tmp_path / "state.pt", "s", every=0.0))
    assert len(states) == 13
    for state in states:
        (tmp_path / "state.pt").write_bytes(state)
        net = model("sams_vae_mf")
        train(net, *parts, config, keep=Keep(tmp_path / "state.pt", "s"))
        assert bytes_of(net) == bytes_of(whole)


def test_a_signal_during_validation_stops_the_training(tmp_path, monkeypatch):
    parts, config = halves(), replace(FAST, steps=9)
    whole = model("sams_vae_mf")
    train(whole, *parts, config)
    calls = []

    def stop_once(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)  # in this thread, at once; a background job of a shell ignores SIGINT
        return validation_loss(*args, **kwargs)

    monkeypatch.setattr("samsvae.training.state.validation_loss", stop_once)
    keep = Keep(tmp_path / "state.pt", "s")
    with pytest.raises(Interrupted, match="SIGTERM at step 6 of 9"):
        train(model("sams_vae_mf"), *parts, config, keep=keep)
    net = model("sams_vae_mf")
    train(net, *parts, config, keep=keep)
    assert bytes_of(net) == bytes_of(whole)


def test_a_damaged_state_or_one_with_another_stamp_is_ignored(tmp_path, caplog):
    parts, config = halves(), replace(FAST, steps=9)
    whole = model("sams_vae_mf")
    train(whole, *parts, config)
    path = tmp_path / "state.pt"
    with pytest.raises(Interrupted):
        train(model("sams_vae_mf"), *parts, replace(config, seed=3), keep=Keep(path, "other"), clock=Kill(9))
    state = path.read_bytes()
    flipped = state[: len(state) // 2] + bytes([state[len(state) // 2] ^ 1]) + state[len(state) // 2 + 1 :]
    for data, said in ((state, "other code, settings or data"), (flipped, "damaged"), (b"", "damaged")):
        path.write_bytes(data)
        net = model("sams_vae_mf")
        caplog.clear()
        with caplog.at_level(logging.INFO):
            train(net, *parts, config, keep=Keep(path, "mine"))
        assert said in caplog.text and "resumed" not in caplog.text
        assert bytes_of(net) == bytes_of(whole)


def test_a_signal_without_a_state_file_is_reported_and_handlers_are_restored(tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="its state was not saved"):
        train(model("sams_vae_mf"), *halves(), FAST, clock=Kill(9))
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_training_imports_no_computer_algebra():
    """A gradient given to `backward` makes torch import sympy: half a second and 30 MB for each training."""
    code = (
        "import sys; from test_training import FAST, halves, model, train; from dataclasses import replace\n"
        "train(model('sams_vae_corr'), *halves(), replace(FAST, steps=4)); print(*sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert "torch" in done.stdout.split() and "sympy" not in done.stdout.split()

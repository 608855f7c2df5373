"""What a fit says about itself: the numbers by hand, the words, and where they are written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_model import model, screen

from samsvae.data.cells import cells_of, encode
from samsvae.models.start import initialise, intercept_only
from samsvae.training.checkpoint import Checkpoint, screen_facts
from samsvae.training.state import Trained
from samsvae.training.verdict import Verdict, last_improvement, verdict

GOOD = {
    "levelled_off": True, "improvement": 0.0, "validation_loss": 186.8, "intercept_only": 190.8, "latents": 30,
    "active_latents": 12, "masks_undecided": 0.02, "few_cells": {},
}  # fmt: skip


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([10.0] * 9, None),  # too few
        ([10.0, 4.0, 3.0, 2.0, 1.5, 1.2, 1.1, 1.05, 1.0, 0.0], 0.105),  # the best before the last two is 1.05
        ([10.0, *[0.0] * 9], 0.0),
        ([10.0, 5.0, *[1.0] * 6, 2.0, 3.0], 0.0),  # worse at the end
        ([1.0, *[2.0] * 9], 0.0),  # never better than the first
    ],
)
def test_improvement_of_the_last_fifth(losses, expected):
    assert last_improvement(losses) == (None if expected is None else pytest.approx(expected))


def test_the_numbers_of_a_verdict():
    made = screen(120)
    cells = [cells_of(made, part, encode(made, "sum")) for part in (np.arange(80), np.arange(80, 120))]
    net = model("sams_vae_corr", mean_floor=0.5)
    initialise(net, cells[0])
    net.eval()
    result = Trained(5, 50.0, 10, 1.0, [{"val_loss": loss} for loss in [60.0, *[50.0] * 11]])
    number = {"a": 15, "b": 30, "c": 0, "d": 25}
    found = verdict(net, result, *cells, number)
    assert found.levelled_off is True and found.improvement == 0.0 and found.validation_loss == 50.0
    assert found.intercept_only == -intercept_only("nb", *cells, floor=0.5)
    assert found.masks_undecided == 1.0  # an untrained mask has the probability 1/2
    z = net.posterior_mean(cells[1]).numpy()
    assert found.active_latents == (z.var(0) > 0.01).sum() and found.latents == 4
    assert found.few_cells == {"a": 15}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "12 of 30 latents are active."),
        ({}, "The validation loss has levelled off."),
        ({}, "186.80 nats per cell, is below that of an intercept-only model, 190.80."),
        ({"levelled_off": None, "improvement": None}, "too few to tell"),
        ({"levelled_off": False, "improvement": 0.05}, "the last fifth of the validations brought 5.0% of its drop."),
        ({"validation_loss": 191.0}, "is not below that of an intercept-only model, 190.80: "),
        ({"masks_undecided": 0.4}, "40% of the mask probabilities are between 0.25 and 0.75"),
        ({"active_latents": 0}, "0 of 30 latents are active. The model ignores them"),
        ({"active_latents": 30}, "More of them (n_latent) may fit better."),
        ({"few_cells": {"A": 3, "B": 12}}, "Perturbations with fewer than 20 training cells: 'A', 'B'."),
    ],
)  # fmt: skip
def test_words(change, words):
    assert words in " ".join(Verdict(**{**GOOD, **change}).words())


def test_the_rows_of_perturbations_without_training_cells_are_empty():
    made = screen(60)
    without = made.condition != 1  # no cell with b
    facts = screen_facts(made, encode(made, "sum"), cells_of(made, without, encode(made, "sum")))
    for name in ("sams_vae_corr", "svae_plus"):
        net = model(name)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        tables = Checkpoint(net, tuple(made.genes), tuple(made.perturbations), facts).tables()
        for table in tables.values():
            assert torch.isnan(table).all(1).tolist() == [False, True, False, False]
        assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())

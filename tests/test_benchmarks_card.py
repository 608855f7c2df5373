"""The benchmark of a card, on a CPU: that stacked runs are those alone, and that its command goes through."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import MagicMock

import pytest
import torch
from tape import Tape

from samsvae.training import steps


@pytest.fixture(scope="module")
def card(benchmark_named):
    return benchmark_named("card")


@pytest.mark.parametrize("clip", [None, 20.0])
def test_stacked_runs_are_those_that_are_trained_one_by_one(card, clip, monkeypatch):
    # stacked runs draw for all perturbations
    monkeypatch.setattr(steps, "only_own_perturbations", lambda cells, config: False)
    cells = card.made("toy", torch.device("cpu"))
    config = replace(card.shared("toy", cells.device), gradient_clip=clip, rate_mask=0.01)
    models = [card.model_of("toy", cells, seed) for seed in range(3)]
    for model, prior in zip(models, (-4.0, -2.0, 1.0), strict=True):
        model.latents[0].prior_logit.fill_(prior)
    stack = card.Stacked(models, [5, 6, 7], cells, config)
    alone = [
        card.TrainingState(model, replace(config, seed=seed), cells, cells)
        for model, seed in zip(models, (5, 6, 7), strict=True)
    ]
    before = {name: p.clone() for name, p in stack.model.named_parameters()}
    for at in torch.stack([torch.randperm(len(cells)) for _ in models])[:, : 6 * config.batch_size].chunk(6, 1):
        losses = stack.advance(at)
        for run, own in zip(alone, at, strict=True):
            run.advance(own)
        assert losses.tolist() == pytest.approx([run.losses[-1] for run in alone], rel=1e-6)
    assert len({run.losses[-1] for run in alone}) == 3
    for row, run in enumerate(alone):
        for name, p in run.model.named_parameters():
            moved = p - before[name][row]
            assert moved.norm() > 0
            assert (stack.model.get_parameter(name)[row] - p).norm() < 1e-3 * moved.norm(), name


def test_stacked_steps_that_are_captured_are_those_that_come(card, monkeypatch):
    cells = card.made("toy", torch.device("cpu"))
    config, weights = card.shared("toy", cells.device), []
    at = [card.some_cells(cells, config, 2) for _ in range(6)]
    for make in (None, Tape):
        monkeypatch.setattr(sys.modules["stacked"], "graphs", lambda device, make=make: make)
        stack = card.Stacked([card.model_of("toy", cells, seed) for seed in range(2)], [0, 1], cells, config)
        losses = [stack.advance(each).tolist() for each in at]
        weights.append((losses, [p.tolist() for p in stack.model.parameters()]))
    assert len(stack.advance.captured) == 1 and Tape.made[-1].replays == 4
    assert weights[0] == weights[1]


def test_a_loss_that_is_not_finite_changes_no_weight(card):
    cells = card.made("toy", torch.device("cpu"))
    models = [card.model_of("toy", cells, seed) for seed in range(2)]
    stack = card.Stacked(models, [0, 1], cells, card.shared("toy", cells.device))
    stack.model.latents[0].prior_logit[1] = torch.nan
    before = [p.clone() for p in stack.model.parameters()]
    stack.advance(card.some_cells(cells, stack.config, 2))
    assert all(torch.equal(a, b) for a, b in zip(before, stack.model.parameters(), strict=True))


def test_several_runs_at_once_and_the_reason_where_a_way_fails(card, monkeypatch, capsys):
    def out_of_memory(*_):
        raise torch.OutOfMemoryError("there is no room\nfor this")

    cells = card.made("toy", torch.device("cpu"))
    config = card.shared("toy", cells.device)
    monkeypatch.setattr(card, "stacked", out_of_memory)
    card.together("toy", cells, config)
    said = capsys.readouterr().out.splitlines()
    assert said[2].split()[:2] == ["1", "processes:"] and float(said[2].split()[2]) > 0
    assert all(line.endswith("stacked: failed (there is no room)") for line in said[2:4])
    assert said[4].endswith("processes")
    monkeypatch.undo()
    assert card.stacked("toy", cells, config, 2, 0.1) > 0


def test_runs_on_streams_take_turns(card, monkeypatch):
    """With streams that only count."""
    streams = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda: streams.append(MagicMock()) or streams[-1])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "main")
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(stream.entered()))
    cells = card.made("toy", torch.device("cpu"))
    assert card.on_streams("toy", cells, card.shared("toy", cells.device), 2, 0.1) > 0
    turns = [stream.entered.call_count for stream in streams]
    assert len(turns) == 2 and turns[0] == turns[1] > 1


def test_a_process_that_fails_is_told(card, monkeypatch):
    cells = card.made("toy", torch.device("cpu"))
    with pytest.raises(RuntimeError, match="it said why above"):
        card.in_processes("none", cells, card.shared("toy", cells.device), 2, 0.1)


def test_rows_say_what_happens(card):
    assert list(card.rows(cuda=False, compiled=False)) == ["as they come", "as they come, bf16"]
    found = card.rows(cuda=True, compiled=True)
    assert list(found)[:4] == ["as they come", "captured", "captured, tf32", "captured, bf16"]
    assert found["captured, bf16, compiled"] == {"precision": "bf16", "compile": True} and len(found) == 7

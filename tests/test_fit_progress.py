"""The progress of a fit: a bar in terminals and notebooks, lines elsewhere, nothing if it is not wanted."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from simulated_cells import SHORT, simulated

from samsvae import fit
from samsvae.fit_progress import BAR, LINES, show_progress

HOW = {"perturbation": "guide", "control": "control", "separator": "+"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def stderr(kind: str, monkeypatch) -> io.StringIO:
    """Replace stderr for the test. (In a fixture, pytest would replace it again.)"""
    found = Terminal() if kind == "terminal" else io.StringIO()
    monkeypatch.setattr(sys, "stderr", found)
    if kind == "notebook":
        monkeypatch.setitem(sys.modules, "ipykernel", logging)
    return found


@pytest.mark.parametrize("kind", ["terminal", "notebook"])
def test_a_bar_reaches_the_last_step(kind, monkeypatch):
    stream = stderr(kind, monkeypatch)
    fit(simulated(200), **HOW, **SHORT | {"steps": 30})
    assert "30/30" in stream.getvalue() and "loss=" in stream.getvalue() and "steps/s" not in stream.getvalue()
    assert "The validation loss" in stream.getvalue() or "validations" in stream.getvalue()  # the verdict stays


def test_elsewhere_lines_of_the_log(monkeypatch):
    stream = stderr("file", monkeypatch)
    fit(simulated(200), **HOW, **SHORT | {"steps": 30})
    assert "step 30/30" in stream.getvalue() and "\r" not in stream.getvalue()


@pytest.mark.parametrize("kind", ["terminal", "file"])
def test_quiet(kind, monkeypatch):
    stream = stderr(kind, monkeypatch)
    before = logging.getLogger("samsvae").handlers[:]
    fit(simulated(200), **HOW, progress=False, **SHORT | {"steps": 30})
    assert stream.getvalue() == "" and logging.getLogger("samsvae").handlers == before


def test_the_weights_do_not_depend_on_the_bar(monkeypatch):
    """A bar reads the losses more often."""
    stderr("terminal", monkeypatch)
    first = fit(simulated(200), **HOW, **SHORT | {"steps": 30}).checkpoint.model.state_dict()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    second = fit(simulated(200), **HOW, progress=False, **SHORT | {"steps": 30}).checkpoint.model.state_dict()
    assert all((first[name] == value).all() for name, value in second.items())


@pytest.mark.parametrize(("kind", "seconds"), [("terminal", BAR), ("file", LINES)])
def test_an_error_closes_the_bar(kind, seconds, monkeypatch):
    stderr(kind, monkeypatch)
    handlers = logging.getLogger("samsvae").handlers[:]
    with pytest.raises(KeyError), show_progress(True) as every:
        assert every == seconds
        logging.getLogger("samsvae.x").info("step %d/%d  %.1f steps/s  loss %.3f", 3, 9, 1.0, 2.5)
        raise KeyError
    assert logging.getLogger("samsvae").handlers == handlers

"""The precision of matrix products on GPUs: which is used, and that it is restored."""

from __future__ import annotations

import json

import pytest
import torch
from small_files import outputs
from small_model import model

from samsvae.config.training import TrainingConfig
from samsvae.ops import precision as products
from samsvae.ops.precision import MOST_BIAS, precision, tf32_bias, used_precision
from samsvae.study import records
from samsvae.training.checkpoint import HISTORY, Checkpoint
from samsvae.training.state import Trained

GPU, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def rounds(monkeypatch):
    """GPUs that round the operands of tf32 products."""
    monkeypatch.setattr(products, "tf32_bias", lambda device: 1e-6)


@pytest.fixture
def cuts(monkeypatch):
    """GPUs that cut bits off."""
    monkeypatch.setattr(products, "tf32_bias", lambda device: 7e-4)


def test_the_precision_of_products_on_gpus_is_restored(rounds):
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with precision("tf32", GPU):
        assert matmul.fp32_precision == "tf32"
        with precision("float32", GPU):
            assert matmul.fp32_precision == "ieee"
    assert matmul.fp32_precision == before
    with precision("tf32", CPU):
        assert matmul.fp32_precision == before


def test_a_gpu_that_cuts_bits_off_uses_float32(cuts):
    with precision("tf32", GPU):
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    assert used_precision("tf32", GPU) == "float32" and used_precision("bf16", GPU) == "bf16"


def test_studies_ask_for_tf32_and_cpus_compute_in_float32(rounds):
    assert TrainingConfig().precision == "tf32"
    assert used_precision("tf32", CPU) == "float32" and used_precision("tf32", GPU) == "tf32"


def in_ten_bits(values: torch.Tensor, rounding: bool) -> torch.Tensor:
    """Values with ten bits after the first."""
    fraction, exponent = torch.frexp(values)
    scaled = fraction * 2.0**11
    return torch.ldexp(torch.round(scaled) if rounding else torch.trunc(scaled), exponent - 11)


@pytest.mark.parametrize("rounding", [True, False])
def test_the_error_of_products_tells_rounding_from_cutting(rounding, monkeypatch, caplog):
    multiply, first = torch.mm, []

    def tf32(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if a.dtype == torch.float64:
            return multiply(a, b)
        first.append(torch.backends.cuda.matmul.fp32_precision)
        return multiply(in_ten_bits(a, rounding), in_ten_bits(b, rounding))

    monkeypatch.setattr(torch, "mm", tf32)
    monkeypatch.setattr(products, "TRIED", ((64, 400, 64), (64, 400, 67)))
    bias = tf32_bias.__wrapped__(CPU)
    assert first == ["tf32", "tf32"]
    assert bias < 1e-5 if rounding else 5e-4 < bias < 1e-3
    assert ("using float32 instead" in caplog.text) == (bias > MOST_BIAS) == (not rounding)


@pytest.mark.parametrize(("gpus", "used"), [("rounds", "tf32"), ("cuts", "float32")])
def test_the_record_of_a_run_on_a_gpu_says_which_was_used(gpus, used, request, monkeypatch, tmp_path):
    request.getfixturevalue(gpus)
    monkeypatch.setattr(records, "record", lambda settings, *rest: dict(settings))
    history = [dict(zip(HISTORY, (2, 1, 0.75, 0.5), strict=True))]
    trained = Trained(best_step=2, best_loss=0.5, steps=2, seconds=1.0, history=history)
    settings, out = {"run": "r", "training": {"precision": "tf32"}}, outputs(tmp_path)
    checkpoint = Checkpoint(model("cond_vae"), tuple("ghijklmno"), ("a", "b", "c", "d"), {})
    records.write_run(settings, checkpoint, trained, "cuda", out)
    assert json.loads(out["run"].read_text()) == settings | {"products": used}

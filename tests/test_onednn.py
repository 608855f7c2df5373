"""Products by oneDNN are used if they are exact, and the setting is restored."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from samsvae.ops import onednn as cpu

SETTINGS = torch.backends.mkldnn.matmul


@pytest.fixture(autouse=True)
def measured_again():
    cpu.exact_products.cache_clear()
    yield
    cpu.exact_products.cache_clear()


def test_products_agree_with_float64_to_float32_rounding():
    a, b = torch.randn(300, 400), torch.randn(400, 200)
    before = SETTINGS.fp32_precision
    with cpu.fast_products():
        ours = a @ b
    exact = a.double() @ b.double()
    assert ((ours - exact).norm() / exact.norm()).item() < 1e-6
    assert SETTINGS.fp32_precision == before


def test_the_setting_is_not_changed_on_a_cpu_that_rounds_to_bf16(monkeypatch):
    rounded = torch.Tensor.__matmul__

    def bf16(a, b):
        return rounded(a.bfloat16().float(), b.bfloat16().float()) if a.dtype == torch.float32 else rounded(a, b)

    monkeypatch.setattr(torch.Tensor, "__matmul__", bf16)
    before = SETTINGS.fp32_precision
    assert not cpu.exact_products()
    with cpu.fast_products():
        assert SETTINGS.fp32_precision == before


@pytest.mark.parametrize(
    ("width", "genes", "halved", "library"),
    [
        (64, 200, False, "MKL"),
        (100, 100, False, "MKL"),
        (128, 299, False, "oneDNN"),
        (400, 1187, False, "oneDNN"),
        (32, 100, True, "MKL"),
        (64, 200, True, "oneDNN"),
    ],
)
def test_the_size_of_a_model_and_the_cpu_choose_the_library(monkeypatch, width, genes, halved, library):
    """On most CPUs, the demo and the simulations are below the limit, the smallest real screen and the papers' models
    above it."""
    monkeypatch.setattr(cpu, "exact_products", lambda: True)
    monkeypatch.setattr(cpu, "halved_by_mkl", lambda: halved)
    assert cpu.library_of_products(width, genes) == library
    used = []
    model = SimpleNamespace(config=SimpleNamespace(width=width), input_mean=torch.zeros(genes))
    cpu.fast_cpu(lambda model: used.append(SETTINGS.fp32_precision))(model)
    assert (used == ["bf16"]) == (library == "oneDNN")
    monkeypatch.setattr(cpu, "exact_products", lambda: False)
    assert cpu.library_of_products(width, genes) == "MKL"


@pytest.mark.parametrize(
    ("vendor", "family", "halved"),
    [("AuthenticAMD", "26", True), ("AuthenticAMD", "25", False), ("GenuineIntel", "26", False), ("", "", False)],
)
def test_amd_cpus_from_zen_5_on_are_halved_by_mkl(tmp_path, vendor, family, halved):
    info = tmp_path / "cpuinfo"
    info.write_text("".join(f"vendor_id\t: {vendor}\ncpu family\t: {family}\nflags\t\t: fpu\n\n" for _ in range(2)))
    assert cpu.halved_by_mkl(info) == halved
    assert not cpu.halved_by_mkl(tmp_path / "none")


def test_the_setting_is_restored_after_an_error(monkeypatch):
    monkeypatch.setattr(cpu, "exact_products", lambda: True)
    before = SETTINGS.fp32_precision
    with pytest.raises(ZeroDivisionError), cpu.fast_products():
        assert SETTINGS.fp32_precision == "bf16"
        1 / 0  # noqa: B018
    assert SETTINGS.fp32_precision == before


def test_blocks_of_two_threads_share_the_setting(monkeypatch):
    """The first block may end before the second: the second keeps the setting, and then it is restored."""
    monkeypatch.setattr(cpu, "exact_products", lambda: True)
    before = SETTINGS.fp32_precision
    first, second = cpu.fast_products(), cpu.fast_products()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert SETTINGS.fp32_precision == "bf16"
    second.__exit__(None, None, None)
    assert SETTINGS.fp32_precision == before

"""The fused softmax and negative binomial: Triton's interpreter and torch's operations against torch.distributions."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from samsvae.ops import softmax_nb as kernels
from samsvae.ops.softmax_nb import softmax_nb

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# particles, cells, genes, dtypes of logits and counts, floor of the mean; one, two and several blocks of genes
CASES = {
    "one block": (3, 5, 9, torch.float32, torch.int16, 1e-4),
    "several blocks": (2, 3, 1187, torch.float32, torch.float32, 1e-4),
    "one cell": (5, 1, 256, torch.float32, torch.int32, 1e-8),
    "many genes": (1, 3, 2100, torch.float32, torch.int16, 0.5),
    "bf16": (2, 4, 300, torch.bfloat16, torch.int16, 1e-4),
}


def made(particles, cells, genes, kind, counts, floor=1e-4):
    """logits, library, theta (from 1e-2 to 1e6), x (0 to a few hundred), the weights of a sum, and the floor."""
    stream = torch.Generator().manual_seed(genes)
    logits = (3.0 * torch.randn(particles, cells, genes, generator=stream)).to(kind)
    library = 100.0 + 1e4 * torch.rand(cells, generator=stream)
    theta = 10.0 ** (8.0 * torch.rand(genes, generator=stream) - 2.0)
    x = torch.poisson(10.0 ** (4.0 * torch.rand(cells, genes, generator=stream) - 2.0), generator=stream)
    return logits, library, theta, x.to(counts), torch.rand(particles, cells, generator=stream) + 0.5, floor


def truth(logits, library, theta, x, weight, floor):
    """Value and gradients in float64 from torch.distributions, without the terms that do not contain the mean."""
    logits, theta = (value.double().requires_grad_() for value in (logits, theta))
    x = x.double()
    mean = library.double()[:, None] * torch.softmax(logits, -1) + floor
    whole = torch.distributions.NegativeBinomial(theta, logits=torch.log(mean) - torch.log(theta)).log_prob(x)
    gammas = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1.0) - x * torch.log(theta)
    value = (whole - gammas).sum(-1)
    return value.detach(), *torch.autograd.grad((value * weight.double()).sum(), (logits, theta))


def check(found, case):
    rough = 1e-2 if case[0].dtype == torch.bfloat16 else 1e-5  # bf16 gradients have three digits
    for ours, true, most in zip(found, truth(*case), (1e-6, rough, 1e-5), strict=True):
        assert ours.shape == true.shape and torch.isfinite(ours).all()
        assert ((ours.double() - true).norm() / true.norm()).item() < most
    # by gene, on the scale of the trained parameter: d/dlog theta, relative to the largest
    ours, true = found[2].double() * case[2], truth(*case)[2] * case[2]
    assert ((ours - true).abs().max() / true.abs().max()).item() < 1e-4


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """Results of the kernels in the interpreter, by case; the interpreter is chosen when Triton is imported."""
    folder = tmp_path_factory.mktemp("kernels")
    cases = {name: made(*sizes) for name, sizes in CASES.items()}
    torch.save(list(cases.values()), folder / "cases.pt")
    script = [
        sys.executable,
        str(Path(__file__).with_name("triton_interpreter.py")),
        folder / "cases.pt",
        folder / "found.pt",
    ]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        name: (case, found) for (name, case), found in zip(cases.items(), torch.load(folder / "found.pt"), strict=True)
    }


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_against_torch_distributions(interpreted, name):
    case, found = interpreted[name]
    check(found, case)
    assert (found[0].dtype, found[1].dtype, found[2].dtype) == (torch.float32, case[0].dtype, torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_torch_is_used_without_triton(name):
    case = made(*CASES[name])
    logits, theta = case[0].requires_grad_(), case[2].requires_grad_()
    value = softmax_nb(logits, case[1], theta, case[3], case[5])
    found = value.detach(), *torch.autograd.grad((value * case[4]).sum(), (logits, theta))
    check(found, (*(part.detach() for part in case[:5]), case[5]))


def test_gradients_equal_finite_differences():
    logits, library, theta, x, *_ = made(2, 3, 5, torch.float64, torch.int16)
    theta = (theta.double() % 10 + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: softmax_nb(a, library.double(), b, x, 1e-4), (logits.requires_grad_(), theta)
    )


@pytest.mark.parametrize(
    ("genes", "forward", "backward"),
    [
        (9, (32, 1), (32, 1)),
        (100, (128, 1), (128, 2)),
        (1187, (256, 2), (256, 4)),
        (2100, (256, 2), (128, 2)),
        (5000, (1024, 8), (256, 4)),
        (8248, (256, 2), (128, 2)),
    ],
)
def test_blocks_and_warps_by_the_number_of_genes(genes, forward, backward):
    """The backward pass has two values per thread: as many warps as a GPU can hold at the papers' sizes."""
    assert kernels.geometry(genes, kernels.FORWARD_GENES, kernels.FORWARD_VALUES) == forward
    assert kernels.geometry(genes, kernels.BACKWARD_GENES, kernels.BACKWARD_VALUES) == backward


class FakeKernels:
    """Stand-ins for the kernels, which record the device that is current when they are launched."""

    def __init__(self):
        self.current = None
        self.launched: list[tuple[str, object]] = []
        self.forward, self.backward = (self.Kernel(self, name) for name in ("forward", "backward"))

    class Kernel:
        def __init__(self, kernels, name):
            self.kernels, self.name = kernels, name

        def __getitem__(self, grid):
            return self.launch

        def launch(self, *arguments, num_warps):
            self.kernels.launched.append((self.name, self.kernels.current))
            for tensor in (part for part in arguments if isinstance(part, torch.Tensor)):
                tensor.fill_(0)

    @contextlib.contextmanager
    def device_of(self, tensor):
        self.current = tensor.device
        yield
        self.current = None


@pytest.fixture
def fake(monkeypatch):
    import samsvae.ops

    made = FakeKernels()
    monkeypatch.setattr(samsvae.ops, "triton_softmax_nb", made, raising=False)
    monkeypatch.setattr(torch.cuda, "device_of", made.device_of)
    monkeypatch.setattr(kernels, "_TRIED", set())
    monkeypatch.setattr(kernels, "_USABLE", {"cpu": True})
    return made


def test_kernels_are_launched_on_the_device_of_their_tensors(fake):
    """Triton launches on the current GPU, which is the first one unless torch is told otherwise."""
    kernels.try_out(torch.device("cpu"))
    assert fake.launched == [("forward", torch.device("cpu")), ("backward", torch.device("cpu"))]
    logits, library, theta, x, *_ = made(2, 3, 5, torch.float32, torch.int16)
    logits.requires_grad_()
    softmax_nb(logits, library, theta, x, 1e-4).sum().backward()
    assert fake.launched[2:] == fake.launched[:2]


@pytest.mark.parametrize("broken", ["forward", "backward"])
def test_the_trial_run_tries_both_kernels(fake, broken, monkeypatch, caplog):
    def fails(*arguments, num_warps):
        raise OSError("no compiler")

    monkeypatch.setattr(getattr(fake, broken), "launch", fails)
    kernels.try_out(torch.device("cpu"))
    assert not kernels.has_triton("cpu") and "no compiler" in caplog.text


COMPILE = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from samsvae.ops import softmax_nb as nb
from samsvae.ops import triton_softmax_nb as triton_nb

pointers = {{"logits_at": "*{kind}", "d_logits_at": "*{kind}", "x_at": "*{counts}"}}
forward, there = nb.geometry({genes}, nb.FORWARD_GENES, nb.FORWARD_VALUES)
backward, back = nb.geometry({genes}, nb.BACKWARD_GENES, nb.BACKWARD_VALUES)
for kernel, fixed, warps in (
    (triton_nb.forward, {{"BLOCK": forward}}, there),
    (triton_nb.backward, {{"CELLS": nb.CELLS, "BLOCK": backward}}, back),
):
    names = kernel.arg_names
    kinds = {{name: pointers.get(name, "*fp32" if name.endswith("_at") else "i32") for name in names}}
    kinds |= {{"floor": "fp32"}} | dict.fromkeys(fixed, "constexpr")
    made = triton.compile(
        ASTSource(kernel, kinds, constexprs=fixed), target=GPUTarget("cuda", 90, 32), options={{"num_warps": warps}}
    )
    assert made.metadata.num_warps == warps
    assert "sm_90" in made.asm["ptx"] and made.asm["cubin"]
    assert "lg2.approx" not in made.asm["ptx"]  # its error near log 1 = 0 would be multiplied by theta
"""


@needs_triton
@pytest.mark.parametrize(("kind", "counts", "genes"), [("fp32", "i16", 1187), ("bf16", "fp32", 100)])
def test_the_kernel_compiles_for_a_gpu_on_a_machine_without_one(kind, counts, genes, tmp_path):
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "TRITON_CACHE_DIR": str(tmp_path),
    }
    environment.pop("TRITON_INTERPRET", None)
    script = tmp_path / "compile.py"
    script.write_text(COMPILE.format(kind=kind, counts=counts, genes=genes))
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]

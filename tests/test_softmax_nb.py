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
from samsvae.ops import triton_trial
from samsvae.ops.softmax_nb import softmax_nb

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# particles, cells, genes, dtypes of logits and counts, floor of the mean; one, two and several blocks of genes
CASES = {
    "one block": (3, 5, 9, torch.float32, torch.int16, 1e-4),
    "several blocks": (2, 3, 1187, torch.float32, torch.float32, 1e-4),
    "one cell": (5, 1, 256, torch.float32, torch.int32, 1e-8),
    "many genes": (1, 3, 2100, torch.float32, torch.int16, 0.5),
    "no cells": (2, 0, 9, torch.float32, torch.int16, 1e-4),
    "bf16": (2, 4, 300, torch.bfloat16, torch.int16, 1e-4),
}

#: Counts and concentrations of every gene, the same for all cells.
EXTREME = {
    "zeros": (0.0, 1.0),
    "ones, theta 1e-3": (1.0, 1e-3),
    "ones, theta 1e6": (1.0, 1e6),
    "small": (3.0, 0.2),
    "at the shift": (4.0, 4.0),
    "large, theta 1e-2": (30_000.0, 1e-2),
    "large": (30_000.0, 10.0),
    "fractions": (0.5, 0.7),
}

KERNELS = ("gammas", "forward", "backward")


def made(particles, cells, genes, kind, counts, floor=1e-4):
    """product, bias, library, theta (from 1e-2 to 1e6), x (0 to a few hundred), weights of a sum, and the floor."""
    stream = torch.Generator().manual_seed(genes)
    product = (3.0 * torch.randn(particles, cells, genes, generator=stream)).to(kind)
    bias = torch.randn(genes, generator=stream)
    library = 100.0 + 1e4 * torch.rand(cells, generator=stream)
    theta = 10.0 ** (8.0 * torch.rand(genes, generator=stream) - 2.0)
    x = torch.poisson(10.0 ** (4.0 * torch.rand(cells, genes, generator=stream) - 2.0), generator=stream)
    return product, bias, library, theta, x.to(counts), torch.rand(particles, cells, generator=stream) + 0.5, floor


def extreme(count, concentration):
    """A case whose counts and concentrations are all alike, one per cent apart."""
    product, bias, _, _, x, weight, floor = made(2, 3, 40, torch.float32, torch.float32)
    library, apart = torch.full((3,), 40.0 * max(count, 1.0)), 1.0 + 0.01 * torch.rand(40)
    return product, bias, library, concentration * apart, torch.full_like(x, count), weight, floor


def truth(product, bias, library, theta, x, weight, floor):
    """Value and gradients in float64 from torch.distributions."""
    given = product, bias, theta = tuple(value.detach().double().requires_grad_() for value in (product, bias, theta))
    mean = library.double()[:, None] * torch.softmax(product + bias, -1) + floor
    logits = torch.log(mean) - torch.log(theta)
    value = torch.distributions.NegativeBinomial(theta, logits=logits, validate_args=False).log_prob(x.double()).sum(-1)
    return value.detach(), *torch.autograd.grad((value * weight.double()).sum(), given)


def check(found, case):
    rough = 1e-2 if case[0].dtype == torch.bfloat16 else 1e-5  # bf16 gradients have three digits
    for ours, true, most in zip(found, truth(*case), (1e-6, rough, 1e-5, 1e-5), strict=True):
        assert ours.shape == true.shape and torch.isfinite(ours).all()
        assert (ours.double() - true).norm() <= most * true.norm()
    # by gene, on the scale of the trained parameter: d/dlog theta, relative to the largest
    ours, true = found[3].double() * case[3], truth(*case)[3] * case[3]
    assert (ours - true).abs().max() <= 1e-5 * true.abs().max()


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """Results of the kernels in the interpreter, by case; the interpreter is chosen when Triton is imported."""
    folder = tmp_path_factory.mktemp("kernels")
    cases = {name: made(*sizes) for name, sizes in CASES.items()} | {name: extreme(*at) for name, at in EXTREME.items()}
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
    assert [part.dtype for part in found] == [torch.float32, case[0].dtype, torch.float32, torch.float32]


@needs_triton
def test_rows_of_the_gradient_are_aligned(interpreted):
    """cuBLAS has its fast products for rows that start at multiples of 16 bytes; 1,187 genes in float32 would not."""
    for gradient in (found[1] for _, found in interpreted.values() if found[1].numel()):
        assert gradient.stride(-1) == 1 and all(n * gradient.element_size() % 16 == 0 for n in gradient.stride()[:-1])


@needs_triton
@pytest.mark.parametrize("name", EXTREME)
def test_gamma_terms_of_extreme_counts_and_concentrations(interpreted, name):
    """Errors of 1e-6, or of the rounding of terms that cancel: log x! in the value, x in theta times its gradient."""
    case, (value, _, _, d_theta) = interpreted[name]
    exact, _, _, exact_d_theta = truth(*case)
    theta, x, weight = (case[at].double() for at in (3, 4, 5))
    terms = torch.lgamma(x + 1.0).sum(-1)
    assert ((value.double() - exact).abs() <= 1e-6 * exact.abs() + 2e-7 * terms).all()
    error, true = ((d * theta).abs().max() for d in (d_theta.double() - exact_d_theta, exact_d_theta))
    assert error <= 1e-6 * true + 5e-7 * (weight[..., None] * x).sum((0, 1)).max()


@needs_triton
def test_float32_operations_of_torch_lose_digits_where_theta_is_large(interpreted):
    """Why the kernels have their own gamma functions: 1e-5 against 1e-7 with concentrations up to a million."""
    case, found = interpreted["several blocks"]
    exact = truth(*case)[0]
    plain, ours = (
        (value.double() - exact).norm() / exact.norm() for value in (softmax_nb(*case[:5], case[6]), found[0])
    )
    assert ours < 3e-7 and plain > 1e-5


@pytest.mark.parametrize("name", CASES)
def test_torch_is_used_without_triton(name):
    """In float64, since torch's gamma functions in float32 are not exact enough for concentrations of a million."""
    case = made(*CASES[name])
    given = product, bias, theta = [part.clone().requires_grad_() for part in (case[0], case[1], case[3].double())]
    value = softmax_nb(product, bias, case[2], theta, case[4], case[6])
    check((value.detach(), *torch.autograd.grad((value * case[5]).sum(), given)), case)


def test_gradients_equal_finite_differences():
    product, bias, library, theta, x, *_ = made(2, 3, 5, torch.float64, torch.int16)
    given = product, bias.double(), theta.double() % 10 + 0.5
    assert torch.autograd.gradcheck(
        lambda a, b, c: softmax_nb(a, b, library.double(), c, x, 1e-4), [part.requires_grad_() for part in given]
    )


@pytest.mark.parametrize(
    ("genes", "forward", "backward", "gammas"),
    [
        (9, (32, 1), (32, 1), (32, 1)),
        (100, (128, 1), (128, 2), (128, 4)),
        (1187, (256, 2), (256, 4), (256, 8)),
        (2100, (256, 2), (128, 2), (256, 8)),
        (5000, (1024, 8), (256, 4), (1024, 32)),
        (8248, (256, 2), (128, 2), (256, 8)),
    ],
)
def test_blocks_and_warps_by_the_number_of_genes(genes, forward, backward, gammas):
    """The backward pass has two values per thread: as many warps as a GPU can hold at the papers' sizes."""
    assert kernels.geometry(genes, kernels.FORWARD_GENES, kernels.FORWARD_VALUES) == forward
    assert kernels.geometry(genes, kernels.BACKWARD_GENES, kernels.BACKWARD_VALUES) == backward
    assert kernels.geometry(genes, kernels.FORWARD_GENES, kernels.GAMMA_VALUES) == gammas


class FakeKernels:
    """Stand-ins for the kernels, which record the device that is current when they are launched."""

    def __init__(self):
        self.current = None
        self.launched: list[tuple[str, object]] = []
        self.gammas, self.forward, self.backward = (self.Kernel(self, name) for name in KERNELS)

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
    monkeypatch.setattr(triton_trial, "_TRIED", set())
    monkeypatch.setattr(triton_trial, "_FAILED", set())
    monkeypatch.setattr(triton_trial, "_USABLE", {"cpu": True})
    monkeypatch.setattr(triton_trial, "_TRIALS", {kernels.KERNELS: kernels._trial})
    return made


def test_kernels_are_launched_on_the_device_of_their_tensors(fake):
    """Triton launches on the current GPU, which is the first one unless torch is told otherwise."""
    triton_trial.try_out(torch.device("cpu"))
    assert fake.launched == [(name, torch.device("cpu")) for name in KERNELS]
    product, bias, library, theta, x, *_ = made(2, 3, 5, torch.float32, torch.int16)
    softmax_nb(product.requires_grad_(), bias, library, theta, x, 1e-4).sum().backward()
    assert fake.launched[3:] == fake.launched[:3]


@pytest.mark.parametrize("broken", KERNELS)
def test_the_trial_run_tries_all_kernels(fake, broken, monkeypatch, caplog):
    def fails(*arguments, num_warps):
        raise OSError("no compiler")

    monkeypatch.setattr(getattr(fake, broken), "launch", fails)
    triton_trial.try_out(torch.device("cpu"))
    assert not triton_trial.has_triton("cpu", kernels.KERNELS) and "no compiler" in caplog.text


COMPILE = """
import re
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from samsvae.ops import softmax_nb as nb
from samsvae.ops import triton_softmax_nb as triton_nb

pointers = {{"product_at": "*{kind}", "d_product_at": "*{kind}", "x_at": "*{counts}"}}
forward, there = nb.geometry({genes}, nb.FORWARD_GENES, nb.FORWARD_VALUES)
gammas, more = nb.geometry({genes}, nb.FORWARD_GENES, nb.GAMMA_VALUES)
backward, back = nb.geometry({genes}, nb.BACKWARD_GENES, nb.BACKWARD_VALUES)
for kernel, fixed, warps in (
    (triton_nb.gammas, {{"BLOCK": gammas}}, more),
    (triton_nb.forward, {{"BLOCK": forward}}, there),
    (triton_nb.backward, {{"CELLS": nb.CELLS, "BLOCK": backward}}, back),
):
    names = kernel.arg_names
    kinds = {{name: pointers.get(name, "*fp32" if name.endswith("_at") else "i32") for name in names}}
    kinds |= {{"floor": "fp32"}} if "floor" in names else {{}}
    kinds |= dict.fromkeys(fixed, "constexpr")
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

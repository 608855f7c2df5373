"""The compiled likelihood of counts against scipy, differences of scipy's values and torch.distributions in float64."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import special, stats
from small_model import model, screen

from samsvae.config.training import TrainingConfig
from samsvae.data.cells import cells_of, encode
from samsvae.errors import ConfigError
from samsvae.models.softmax_nb import SoftmaxNegativeBinomial
from samsvae.ops import c_code, cpu_negative_binomial
from samsvae.ops.cpu_negative_binomial import fits, kernel, resolve_kernel, softmax_nb
from samsvae.ops.precision import precision
from samsvae.study.code_digest import code_of
from samsvae.training.loop import train
from samsvae.training.state import Keep

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")

#: The exponent of ten of the smallest theta; each gene has its own, up to ten times as large.
THETAS = [-6, -2, 0, 2, 5, 8]


def case(theta=0, particles=2, n=7, genes=45, seed=0):
    """product, bias, library, theta, x in float32: a cell without counts, and counts up to hundreds or thousands."""
    stream = torch.Generator().manual_seed(seed)
    x = torch.poisson(10 ** (4.5 * torch.rand(n, genes, generator=stream) - 2), generator=stream)
    x[0], x[1, :4] = 0.0, torch.tensor([63.0, 64.0, 65.0, 400.0 if theta < 0 else 4000.0])
    bias = torch.log(x.mean(0) + 0.1)
    product = torch.randn(particles, n, genes, generator=stream)
    return product, bias, x.sum(1), 10.0 ** (theta + torch.rand(genes, generator=stream)), x


def scipy_value(product, bias, library, theta, x, floor):
    mean = special.softmax(product + bias, -1) * library[:, None] + floor
    return stats.nbinom.logpmf(x, theta, theta / (theta + mean)).sum(-1)


def relative(a, b):
    a, b = (torch.as_tensor(part).double() for part in (a, b))
    return ((a - b).norm() / b.norm()).item()


def truth(product, bias, library, theta, x, floor, weight):
    """Value and gradients in float64 by torch.distributions."""
    product, bias, theta = (part.detach().double().requires_grad_() for part in (product, bias, theta))
    mean = library.double()[:, None] * torch.softmax(product + bias, -1) + floor
    p = torch.distributions.NegativeBinomial(theta, logits=torch.log(mean) - torch.log(theta))
    value = p.log_prob(x.double()).sum(-1)
    return value.detach(), *torch.autograd.grad((value * weight).sum(), (product, bias, theta))


def ours(product, bias, library, theta, x, floor, weight):
    given = [part.clone().requires_grad_() for part in (product, bias, theta)]
    value = softmax_nb(given[0], given[1], library, given[2], x, floor)
    return value.detach(), *torch.autograd.grad((value * weight).sum(), given)


@needs_compiler
@pytest.mark.parametrize("floor", [1e-4, 1e-8, 0.3])
@pytest.mark.parametrize("theta", THETAS)
def test_the_value_is_the_sum_of_the_densities_of_scipy(theta, floor):
    parts = case(theta)
    exact = scipy_value(*(part.double().numpy() for part in parts), floor)
    if theta == 8:  # scipy loses digits where theta / (theta + mean) is nearly 1: the Poisson limit
        mean = special.softmax((parts[0] + parts[1]).double().numpy(), -1) * parts[2].double().numpy()[:, None] + floor
        exact = stats.poisson(mean).logpmf(parts[4].numpy()).sum(-1)
    assert relative(softmax_nb(*parts, floor), exact) < (1e-5 if theta < 8 else 1e-4)


@needs_compiler
@pytest.mark.parametrize("theta", THETAS[:-1])
def test_gradients_are_those_of_torch_distributions(theta):
    parts, weight = case(theta), torch.rand(2, 7) + 0.5
    found, exact = ours(*parts, 1e-4, weight), truth(*parts, 1e-4, weight)
    assert [relative(*pair) < 1e-5 for pair in zip(found[:3], exact[:3], strict=True)] == [True] * 3
    assert relative(found[3], exact[3]) < 1e-4


@needs_compiler
def test_gradients_are_differences_of_the_values_of_scipy():
    """The kernel in float32 against central differences in float64, for some entries of every argument."""
    product, bias, library, theta, x = case(particles=1, n=3, genes=6)
    found = ours(product, bias, library, theta, x, 1e-4, torch.ones(1, 3))[1:]
    given = [part.double().numpy() for part in (product, bias, library, theta, x)]
    for place, ours_ in zip((0, 1, 3), found, strict=True):
        size, differences = np.abs(ours_.numpy()).max(), []
        for at in np.ndindex(given[place].shape):
            values = []
            for sign in (1, -1):
                moved = [part.copy() for part in given]
                moved[place][at] += sign * 1e-4
                values.append(scipy_value(*moved, 1e-4).sum())
            differences.append((values[0] - values[1]) / 2e-4)
        assert np.abs(np.ravel(ours_) - differences).max() < 1e-4 * size


@needs_compiler
def test_arrays_may_be_anywhere_in_memory_and_masked_genes_add_what_the_floor_gives():
    """Slices with strides; the first gene has the logit -inf in all cells, and a cell the library size 0."""
    parts, weight = case(), torch.rand(2, 7) + 0.5
    parts[1][0], parts[2][3] = -torch.inf, 0.0
    wide = [torch.stack([part] * 2, -1)[..., 0] for part in parts]
    assert not wide[0].is_contiguous()
    found, exact = ours(*wide, 1e-4, weight), truth(*parts, 1e-4, weight)
    assert all(torch.isfinite(part).all() for part in found)
    assert found[1][..., 0].abs().max() == 0.0 == found[2][0] and found[1][:, 3].abs().max() == 0.0
    assert relative(found[0], exact[0]) < 1e-5
    assert relative(found[3], exact[3]) < 1e-5
    assert relative(found[1][..., 1:], exact[1][..., 1:]) < 1e-5


@needs_compiler
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_number_that_is_not_finite_is_not_hidden(place, bad):
    parts = case()
    parts[place][..., 4] = bad
    assert not torch.isfinite(softmax_nb(*parts, 1e-4)).all()


@needs_compiler
def test_products_in_bf16_are_read_as_they_are_and_their_gradient_is_rounded():
    product, *rest = case()
    rough, weight = product.bfloat16(), torch.rand(2, 7) + 0.5
    found, single = ours(rough, *rest, 1e-4, weight), ours(rough.float(), *rest, 1e-4, weight)
    for at in (0, 2, 3):
        assert torch.equal(found[at], single[at])
    assert torch.equal(found[1], single[1].bfloat16())


@needs_compiler
def test_the_number_of_threads_does_not_change_a_byte(monkeypatch):
    parts, weight = case(n=13, genes=101), torch.rand(2, 13)
    expected = ours(*parts, 1e-4, weight)
    monkeypatch.setattr(cpu_negative_binomial, "PER_THREAD", 1)
    for threads in (2, 3, 64):
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        for a, b in zip(ours(*parts, 1e-4, weight), expected, strict=True):
            assert torch.equal(a, b)


@needs_compiler
def test_the_likelihood_uses_it_for_whole_counts_in_float32(monkeypatch):
    product, bias, library, theta, x = case()
    likelihood = SoftmaxNegativeBinomial(product, library, theta, 1e-4, bias)
    assert fits(product, theta, x) and fits(product.bfloat16(), theta, x)
    with kernel("plain"):
        assert not fits(product, theta, x)
        plain = likelihood.log_likelihood(x)
    assert not fits(product.double(), theta.double(), x.double())
    assert not fits(product, theta, x + 0.5) and not fits(product, theta, x - 1.0)
    assert torch.equal(likelihood.log_likelihood(x), softmax_nb(product, bias, library, theta, x, 1e-4))
    assert relative(likelihood.log_likelihood(x), plain) < 1e-5
    assert relative(likelihood.log_likelihood(x + 0.5), likelihood.log_prob(x + 0.5).sum(-1)) < 1e-5
    alone = SoftmaxNegativeBinomial(product[1], library, theta, 1e-4, bias)  # no axis of particles
    assert torch.equal(alone.log_likelihood(x), likelihood.log_likelihood(x)[1])
    none = SoftmaxNegativeBinomial(product[:, :0], library[:0], theta, 1e-4, bias)
    assert none.log_likelihood(x[:0]).shape == (2, 0)
    without = SoftmaxNegativeBinomial(product, library, theta)
    assert relative(without.log_likelihood(x), without.log_prob(x).sum(-1)) < 1e-4


@needs_compiler
@pytest.mark.parametrize(("name", "most"), [("float32", 1e-5), ("bf16", 1e-3)])
def test_a_model_has_the_loss_and_the_gradients_of_torch_operations(name, most):
    net, h, library = model("cond_vae", genes=80), torch.randn(3, 20, 16), torch.full((20,), 500.0)
    x, found = torch.poisson(torch.full((20, 80), 6.0)), []
    for chosen in ("plain", "compiled"):
        with kernel(chosen), precision(name, h.device):
            value = net.likelihood(h, library).log_likelihood(x)
        found.append((value.detach(), *torch.autograd.grad(value.sum(), list(net.likelihood.parameters()))))
    plain, compiled = found
    assert relative(compiled[0], plain[0]) < min(most, 1e-5)  # the same rounding of the product
    assert max(relative(a, b) for a, b in zip(compiled[1:], plain[1:], strict=True)) < most


# ---- building --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "samsvae"


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "code.c"
    path.write_text("int answer(void) { return 42; }\n")
    return path


@needs_compiler
def test_code_is_built_once_and_then_needs_no_compiler(cache, source, monkeypatch):
    assert c_code.build(source).answer() == 42
    (built,) = cache.iterdir()
    assert cache.stat().st_mode & 0o777 == 0o700 and built.name.startswith("code-")
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    assert c_code.build(source).answer() == 42
    source.write_text("int answer(void) { return 43; }\n")
    with pytest.raises(OSError, match="no C compiler 'no-such-compiler' was found"):
        c_code.build(source)
    monkeypatch.setenv("CC", "cc -DANSWER=43")  # with options
    source.write_text("int answer(void) { return ANSWER; }\n")
    assert c_code.build(source).answer() == 43


@needs_compiler
def test_processes_and_threads_may_build_at_the_same_time(cache, source):
    code = (
        f"from pathlib import Path; from samsvae.ops.c_code import build; print(build(Path({str(source)!r})).answer())"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    command = [sys.executable, "-c", code, str(source)]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert {library.answer() for library in pool.map(c_code.build, [source] * 8)} == {42}
    assert [process.communicate(timeout=60)[0].strip() for process in started] == ["42"] * 4
    assert len(list(cache.iterdir())) == 1


@needs_compiler
def test_another_cpu_or_source_is_built_anew(cache, source, tmp_path):
    c_code.build(source)
    for text in ("model name : x\nflags : sse\n", "model name : x\nflags : sse avx\n"):
        (tmp_path / "cpuinfo").write_text(text)
        c_code.build(source, tmp_path / "cpuinfo")
    source.write_text("int answer(void) { return 43; }\n")
    assert c_code.build(source).answer() == 43
    assert len(list(cache.iterdir())) == 4


@needs_compiler
@pytest.mark.parametrize("how", ["a file", "open to others", "damaged"])
def test_a_cache_that_cannot_be_used_is_not_needed(cache, source, how):
    if how == "a file":
        cache.parent.write_text("")
    elif how == "open to others":
        cache.mkdir(parents=True)
        cache.chmod(0o777)
    else:
        c_code.build(source)
        (built,) = cache.iterdir()
        built.unlink()  # the loaded one stays in memory
        built.write_bytes(b"not a library")
    assert c_code.build(source).answer() == 42
    assert how != "open to others" or not list(cache.iterdir())


@needs_compiler
def test_an_error_of_the_compiler_is_one_line(cache, source):
    source.write_text("int answer(void) { return }\n")
    with pytest.raises(OSError, match=r"failed with exit status 1: .*error"):
        c_code.build(source)
    assert list(cache.iterdir()) == []


@pytest.fixture
def looked_up_again():
    cpu_negative_binomial._code.cache_clear()
    yield
    cpu_negative_binomial._code.cache_clear()


@pytest.mark.parametrize("problem", ["no compiler", "no answer", "wrong numbers"])
def test_without_working_code_torch_is_used_and_the_log_says_why(problem, looked_up_again, monkeypatch, caplog):
    def fails(source):
        raise OSError("no C compiler") if problem == "no compiler" else subprocess.TimeoutExpired("cc", 120)

    if problem == "wrong numbers":
        monkeypatch.setattr(cpu_negative_binomial, "build", lambda source: None)
        monkeypatch.setattr(cpu_negative_binomial, "_error", lambda code: 0.5)
    else:
        monkeypatch.setattr(cpu_negative_binomial, "build", fails)
    with caplog.at_level(logging.INFO):
        assert resolve_kernel("auto") == resolve_kernel("plain") == "plain"
    reason = {"no compiler": "no C compiler", "no answer": "timed out after 120", "wrong numbers": "wrong by 5e-01"}
    assert reason[problem] in caplog.text and len(caplog.records) == 1
    with pytest.raises(ConfigError, match=rf"kernel: 'compiled' does not work here \(.*{reason[problem]}.*\). Allowed"):
        resolve_kernel("compiled")


def test_c_code_counts_in_the_digest_of_code(tmp_path):
    package = tmp_path / "src" / "samsvae"
    package.mkdir(parents=True)
    for name in ("__init__", "fast", "other"):
        (package / f"{name}.py").write_text("")
    (tmp_path / "script.py").write_text("import samsvae.fast\n")
    digests = [code_of("script.py", tmp_path)]
    for name in ("fast", "other"):
        (package / f"{name}.c").write_text("int a;\n")
        digests.append(code_of("script.py", tmp_path))
    assert digests[0] != digests[1] == digests[2]


# ---- trainings -------------------------------------------------------------------------------------------------------


def parts_of(n=60):
    made = screen(n)
    return [cells_of(made, part, encode(made, "sum")) for part in (np.arange(n) < 40, np.arange(n) >= 40)]


def trained(keep=None, steps=6, name="cond_vae", **settings):
    parts, net = parts_of(), model(name)
    net.fit_inputs(parts[0])
    config = TrainingConfig(steps=steps, batch_size=20, particles=2, **settings)
    return train(net, *parts, config, keep=keep, clock=iter(range(10**6)).__next__), net


@needs_compiler
def test_a_training_records_its_kernel_and_both_lead_to_the_same_weights():
    (plain, first), (compiled, second) = trained(kernel="plain"), trained()
    assert (plain.kernel, compiled.kernel) == ("plain", "compiled")
    assert not torch.equal(first.likelihood.mean.weight, second.likelihood.mean.weight)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_likelihood_without_counts_has_no_kernel():
    made = parts_of()
    net = model("cond_vae", likelihood="poisson")
    net.fit_inputs(made[0])
    assert train(net, *made, TrainingConfig(steps=2, batch_size=20)).kernel is None


@needs_compiler
def test_a_training_goes_on_with_the_kernel_that_it_was_begun_with(tmp_path, monkeypatch):
    keep = Keep(tmp_path / "state.pt", "s", every=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(cpu_negative_binomial, "_code", lambda: (None, "no C compiler"))
        expected = trained(steps=12)
        trained(keep)
    found = trained(keep, steps=12)  # `auto`, now with a compiler
    assert found[0].kernel == "plain"
    for a, b in zip(found[1].parameters(), expected[1].parameters(), strict=True):
        assert torch.equal(a, b)


@needs_compiler
def test_a_training_is_not_resumed_without_its_kernel(tmp_path, monkeypatch):
    keep = Keep(tmp_path / "state.pt", "s", every=0.0)
    trained(keep)
    message = r"saved with kernel: compiled, but here kernel: {} gives plain; continue .* or delete the file"
    with pytest.raises(ConfigError, match=message.format("plain")):
        trained(keep, kernel="plain")
    monkeypatch.setattr(cpu_negative_binomial, "_code", lambda: (None, "no C compiler"))
    with pytest.raises(ConfigError, match=message.format("auto")):
        trained(keep)
    with pytest.raises(ConfigError, match="does not work here"):
        trained(kernel="compiled")

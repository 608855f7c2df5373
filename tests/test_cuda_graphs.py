"""Captured steps against plain steps: the same bytes in every situation of a training."""

from __future__ import annotations

import contextlib
import inspect
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from fake_cuda_graph import Tape
from small_model import model, screen

from samsvae.config.training import TrainingConfig
from samsvae.config.zoo import ROWS
from samsvae.data import cells as data
from samsvae.data import streaming
from samsvae.data.cells import cells_of, encode
from samsvae.data.streaming import batches
from samsvae.errors import Interrupted, NumericalError
from samsvae.models import softmax_nb
from samsvae.models.noise import Streams
from samsvae.ops import cpu_negative_binomial, triton_trial
from samsvae.ops import cuda_graphs as capture
from samsvae.ops.cuda_graphs import WARM, Steps
from samsvae.ops.precision import precision
from samsvae.training import diagnosis, state
from samsvae.training import steps as training_steps
from samsvae.training.loop import train
from samsvae.training.objective import objective
from samsvae.training.state import Keep
from samsvae.training.validation import validation_loss

FAST = TrainingConfig(steps=25, batch_size=32, learning_rate=1e-2, particles=2, validation_particles=2)


def halves(name: str = "sams_vae_corr"):
    pairs = ROWS[name].model.get("effect") != "prior_mean"
    made, at = screen(120, pairs=pairs), np.arange(120)
    return tuple(cells_of(made, part, encode(made, "sum")) for part in (at < 80, at >= 80))


def fresh(name: str, parts, **changes):
    net = model(name, seed=5, **changes)
    net.fit_inputs(parts[0])
    return net


def bytes_of(net) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in net.state_dict().items()}


@pytest.fixture(autouse=True)
def as_on_a_gpu():
    """Switch off CPU shortcuts that read the numbers of a batch, since captured steps cannot wait for values."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (training_steps, diagnosis):
            patch.setattr(module, "only_own_perturbations", lambda cells, config: False)
        patch.setattr(softmax_nb._GammaTerms, "places", staticmethod(lambda x: (None, None)))
        patch.setattr(cpu_negative_binomial, "_code", lambda: (None, "not on a GPU"))
        yield


@pytest.fixture(autouse=True)
def no_capture_failed(monkeypatch):
    monkeypatch.setattr(capture._Failed, "reason", "")


@pytest.fixture
def tapes(monkeypatch):
    """Trainings on the CPU behave as on a GPU: steps are captured, and losses are read later."""
    monkeypatch.setattr(Tape, "made", [])
    monkeypatch.setattr(state, "graphs", lambda device: Tape)
    return Tape.made


def own(name: str) -> dict:
    """The training settings of a row of the zoo, without learning rate and batch size."""
    return {k: v for k, v in ROWS[name].training.items() if k not in ("learning_rate", "batch_size")}


# ---- captured and plain steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ROWS)
def test_a_captured_training_has_the_bytes_of_a_plain_one(name, tapes, monkeypatch):
    """Batches of 32, 32 and 16 of 80 cells, validation, dropout, batch norm, warm-up."""
    parts = halves(name)
    config = replace(FAST, **own(name), gradient_clip=5.0)
    net = fresh(name, parts)
    result = train(net, *parts, config)
    assert sorted(tape.replays for tape in tapes) == [8 - WARM, 9 - WARM, 17 - WARM]
    assert all(parameter.grad is None for parameter in net.parameters())
    made = len(tapes)
    monkeypatch.undo()
    plain = fresh(name, parts)
    expected = train(plain, *parts, config)
    assert len(tapes) == made
    assert bytes_of(net) == bytes_of(plain)
    assert result.history == expected.history and result.best_step == expected.best_step


def test_a_beta_guide_is_captured(tapes, monkeypatch):
    parts = halves()
    net, plain = (fresh("sams_vae_bb", parts, guide_mask_prob="beta") for _ in range(2))
    train(net, *parts, FAST)
    assert len(tapes) == 3
    monkeypatch.undo()
    train(plain, *parts, FAST)
    assert bytes_of(net) == bytes_of(plain)


def test_capture_never_captures_nothing(tapes):
    train(fresh("cpa_vae_mf", halves()), *halves(), replace(FAST, capture="never"))
    assert tapes == []


def test_a_state_read_onto_a_gpu_leaves_the_order_of_cells_on_the_host():
    """Reading a state puts all its tensors on one device; the order is needed on the host."""

    class OnGpu:
        def cpu(self) -> torch.Tensor:
            return order

    run, order = state.TrainingState(fresh("cpa_vae_mf", halves()), FAST, *halves()), torch.arange(80).flip(0)
    run.restore(run.state() | {"permutation": OnGpu()})
    assert run.permutation is order


def test_steps_that_cannot_be_captured_run_eagerly(tapes, monkeypatch, caplog):
    def waits(*args, **kwargs):
        loss, terms = objective(*args, **kwargs)
        return loss * float(loss.item() != 0), terms

    monkeypatch.setattr(training_steps, "objective", waits)
    net, plain = (fresh("cpa_vae_mf", halves()) for _ in range(2))
    result = train(net, *halves(), FAST)
    assert len(tapes) == 1 and "could not be captured" in caplog.text
    expected = train(plain, *halves(), replace(FAST, capture="never"))
    assert bytes_of(net) == bytes_of(plain) and result.history == expected.history


@pytest.mark.parametrize("error", [RuntimeError("no"), torch.OutOfMemoryError("full"), TypeError("a bug")])
def test_nothing_is_captured_after_a_failed_capture(error, tapes, monkeypatch, caplog):
    """Not even by a step that was ready to be captured: a failed capture leaves torch's allocator in its state."""
    for name, value in {"CUDAGraph": None, "graph_pool_handle": lambda: "pool"}.items():
        monkeypatch.setattr(torch.cuda, name, value)
    gpu = torch.device("cuda")
    assert capture.graphs(gpu) is not None
    parts = halves()
    net, plain, later = (fresh("cpa_vae_mf", parts) for _ in range(3))
    ready = Steps(lambda values: values.sum(), Streams(0), Tape)
    with monkeypatch.context() as patch:
        patch.setattr(Tape, "record", lambda tape, work: (_ for _ in ()).throw(error))
        if isinstance(error, TypeError):
            with pytest.raises(TypeError, match="a bug"):
                train(net, *parts, FAST)
        else:
            train(net, *parts, FAST)
            train(plain, *parts, replace(FAST, capture="never"))
            assert bytes_of(net) == bytes_of(plain) and caplog.text.count("could not be captured") == 1
    assert capture.graphs(gpu) is None
    made = len(tapes)
    train(later, *parts, FAST)
    assert [ready(torch.full((2,), float(i))).item() for i in range(6)] == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    assert len(tapes) == made == 1 and caplog.text.count("could not be captured") <= 1


def test_captured_steps_match_sums_by_hand():
    """Running sums of inputs of two shapes; every result has its own memory."""
    total, noise = torch.zeros(()), Streams(0)

    def step(values: torch.Tensor) -> torch.Tensor:
        total.add_(values.sum() + 0.0 * noise("z", "normal", (1,)).sum())
        return total * 1.0

    steps = Steps(step, noise, Tape)
    given = [torch.full((2 + i % 2,), float(i)) for i in range(12)]
    found = [steps(values) for values in given]
    assert [each.item() for each in found] == np.cumsum([i * (2 + i % 2) for i in range(12)]).tolist()
    assert len(steps.captured) == 2 and set(steps.times.values()) == {6}
    untouched = Streams(0)
    for _ in range(12):
        untouched("z", "normal", (1,))
    assert torch.equal(noise("z", "normal", (3,)), untouched("z", "normal", (3,)))


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16"}, {"objective": "iwelbo"}])
@pytest.mark.parametrize("name", ["sams_vae_corr", "svae_plus"])
def test_a_compiled_step_draws_the_same_noise(name, changes, monkeypatch):
    """It is traced and split into forward and backward as for any backend, but no code is generated."""
    compiled, calls = torch.compile, []

    def trace(function, **options):
        calls.append(options)
        return compiled(function, backend="aot_eager", **options)

    parts, config = halves(name), replace(FAST, steps=7, adam_eps=1e-3, **changes)
    plain, net = fresh(name, parts), fresh(name, parts)
    expected = train(plain, *parts, config)
    assert calls == []
    monkeypatch.setattr(torch, "compile", trace)
    result = train(net, *parts, replace(config, compile=True))
    assert calls == [{"dynamic": False, "fullgraph": True}] * 2  # of steps and of validations
    for ours, true in zip(result.history, expected.history, strict=True):
        assert ours == pytest.approx(true, rel=1e-5)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[key], rtol=1e-3, atol=1e-4)


# ---- losses that are not finite ------------------------------------------------------------------------------------


def with_an_odd_cell(parts, at: int = 17):
    counts = parts[0].counts.clone().float()
    counts[at, 4] = float("inf")
    return replace(parts[0], counts=counts)


@pytest.mark.parametrize("name", ["sams_vae_corr", "cond_vae"])
def test_the_step_with_a_loss_that_is_not_finite_is_found_afterwards(name, tapes, monkeypatch):
    """The step, its cell and the weights before it are found, although captured steps followed."""
    parts = halves(name)
    parts, config = (with_an_odd_cell(parts), parts[1]), replace(FAST, batch_size=8, seed=1)
    said, weights = [], []
    for captured in (True, False):
        if not captured:
            monkeypatch.undo()
        net = model(name, seed=5)  # the input is not standardised: the moments would not be finite
        with pytest.raises(NumericalError, match=r"(?s)Step 7: .*cell 'cell17'") as error:
            train(net, *parts, config, genes=np.array([f"gene{g}" for g in range(9)]))
        said.append(str(error.value))
        weights.append({name: p.detach().numpy().tobytes() for name, p in net.named_parameters()})
        assert all(torch.isfinite(p).all() for p in net.parameters())
    assert [tape.replays for tape in tapes] == [10 - WARM]
    assert said[0] == said[1] and weights[0] == weights[1]


def test_weights_that_broke_are_named(tapes):
    """The loss is finite but a gradient is not; the next step reports the weights."""
    parts = halves()
    net = model("sams_vae_corr", seed=5)
    net.likelihood.mean.bias.register_hook(lambda grad: grad / 0.0)
    with pytest.raises(NumericalError, match=r"Step 2: the weights 'likelihood\.mean\.bias'"):
        train(net, *parts, FAST)


def test_a_validation_that_is_not_finite_names_the_cell():
    parts = halves()
    net, config = model("sams_vae_corr", seed=5), replace(FAST, validation_particles=3)
    with pytest.raises(NumericalError, match=r"In validation: .*'cell9'"):
        validation_loss(net, with_an_odd_cell(parts, 9), config, Streams(1))


# ---- interrupted and resumed ---------------------------------------------------------------------------------------


class Kill:
    """A clock that sends the process a signal at its n-th call."""

    def __init__(self, n: int):
        self.left = n

    def __call__(self) -> float:
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGTERM)
        return float(-self.left)


@pytest.mark.parametrize("name", ["sams_vae_corr", "vae"])
def test_a_captured_training_resumes_to_the_same_bytes(name, tapes, monkeypatch, tmp_path):
    parts = halves(name)
    config = replace(FAST, **own(name), steps=30, validation_every=2)
    keep = Keep(tmp_path / "state.pt", "stamp", every=5.0)
    for n in (14, 3, 17, 1000):
        net = fresh(name, parts)
        try:
            result = train(net, *parts, config, keep=keep, clock=Kill(n))
        except Interrupted as error:
            assert "stopped by SIGTERM at step" in str(error)
    monkeypatch.undo()
    whole = fresh(name, parts)
    expected = train(whole, *parts, config)
    assert bytes_of(net) == bytes_of(whole) and result.history == expected.history


def test_a_state_saved_at_any_time_leads_to_the_same_result(tapes, tmp_path):
    parts, states = halves(), []

    class Recording(Keep):
        def save(self, run):
            super().save(run)
            states.append(self.path.read_bytes())

    path = tmp_path / "state.pt"
    whole = fresh("sams_vae_mf", parts)
    train(whole, *parts, FAST, keep=Recording(path, "s", every=3.0), clock=Kill(10**9))
    assert len(states) > 3
    for content in states:
        path.write_bytes(content)
        net = fresh("sams_vae_mf", parts)
        train(net, *parts, FAST, keep=Keep(path, "s"))
        assert bytes_of(net) == bytes_of(whole)


def test_losses_are_read_once_per_epoch(tapes, monkeypatch):
    unread = []
    read = state.TrainingState.read

    def counted(run):
        if run.unread:
            unread.append(len(run.unread))
        read(run)

    monkeypatch.setattr(state.TrainingState, "read", counted)
    train(fresh("cpa_vae_mf", halves()), *halves(), FAST)
    assert unread == [3] * 8 + [1]


# ---- counts that stay on the host ----------------------------------------------------------------------------------


@pytest.fixture
def small_memory(monkeypatch):
    monkeypatch.setattr(data, "READ_LATE", 100)


@pytest.mark.parametrize("captured", [False, True])
def test_streamed_counts_give_the_same_bytes(captured, monkeypatch):
    parts = halves()
    plain = fresh("sams_vae_corr", parts)
    expected = train(plain, *parts, FAST)
    monkeypatch.setattr(data, "READ_LATE", 100)
    if captured:
        monkeypatch.setattr(state, "graphs", lambda device: Tape)
    parts = halves()
    assert parts[0].streamed and parts[1].streamed
    net = fresh("sams_vae_corr", parts)
    assert train(net, *parts, FAST).history == expected.history
    assert bytes_of(net) == bytes_of(plain)


@pytest.mark.parametrize("start", [0, 2, 3])
def test_streamed_batches(small_memory, start):
    cells, order = halves()[0], torch.randperm(80, generator=torch.Generator().manual_seed(1))
    found = [(at.clone(), counts.clone()) for at, counts in batches(cells, order, 32, start=start)]
    assert [len(at) for at, _ in found] == [32, 32, 16][start:]
    for (at, counts), expected in zip(found, order.split(32)[start:], strict=True):
        assert torch.equal(at, expected) and torch.equal(counts, cells.counts[at])
        assert torch.equal(cells.batch(at, counts).x, cells.batch(at).x)


def test_a_batch_is_gathered_by_several_threads(small_memory, monkeypatch):
    readers = []
    read = streaming._Slot._read
    monkeypatch.setattr(streaming._Slot, "_read", lambda *a: readers.append(threading.get_ident()) or read(*a))
    monkeypatch.setattr(streaming, "LEAST", 5)
    cells, order = halves()[0], torch.randperm(80, generator=torch.Generator().manual_seed(1))
    for at, counts in batches(cells, order, 30):
        assert torch.equal(counts, cells.counts[at])
    assert len(readers) == 4 + 4 + 4 and 1 < len(set(readers)) <= streaming.THREADS


def test_a_stream_that_is_closed_early_ends_its_threads(small_memory):
    before = threading.active_count()
    stream = batches(halves()[0], torch.arange(80), 16)
    next(stream)
    stream.close()
    assert threading.active_count() == before


# ---- precision -----------------------------------------------------------------------------------------------------


def test_bf16_is_close_but_not_equal():
    """A product in bfloat16 has a relative error of 2^-8; sums of many products have less."""
    parts = halves()
    net = fresh("sams_vae_corr", parts)
    found = {}
    for name in ("float32", "bf16"):
        net.zero_grad()
        with precision(name, torch.device("cpu")):
            batch = parts[0].batch(slice(0, 40))
            loss, _ = objective(net, batch, net.draw(batch, Streams(3), 4), FAST, n_cells=80)
            loss.backward()
        found[name] = loss.item(), {key: p.grad.clone() for key, p in net.named_parameters()}
        assert all(p.grad.dtype == torch.float32 for p in net.parameters())
    exact, rough = found["float32"], found["bf16"]
    assert 0 < abs(rough[0] - exact[0]) < 1e-2 * abs(exact[0])
    for key in ("likelihood.mean.weight", "likelihood.log_concentration"):
        error = ((rough[1][key] - exact[1][key]).norm() / exact[1][key].norm()).item()
        assert 0 < error < 0.05


def test_bf16_trains_and_ends_with_the_training():
    parts = halves()
    net, config = fresh("sams_vae_corr", parts), replace(FAST, steps=150, precision="bf16")
    before = validation_loss(net, parts[1], config, Streams(9))
    train(net, *parts, config)
    assert validation_loss(net, parts[1], config, Streams(9)) < before
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32}
    a = torch.randn(3, 400)
    assert torch.equal(torch.nn.functional.linear(a, a), (a @ a.T))


def test_a_graph_is_captured_on_the_current_stream_with_its_generators(monkeypatch):
    """The calls to torch.cuda, checked against their signatures; their effect on a GPU is not tested here."""
    calls, real = [], inspect.signature(torch.cuda.graph.__init__)

    class Graph:
        def register_generator_state(self, generator):
            calls.append(generator)

        def replay(self):
            calls.append("replay")

    @contextlib.contextmanager
    def recording(*args, **options):
        bound = real.bind(None, *args, **options).arguments
        calls.append((type(bound["cuda_graph"]), bound["pool"], bound["stream"], bound["capture_error_mode"]))
        yield
        calls.append("end")

    for name, value in {
        "CUDAGraph": Graph,
        "graph": recording,
        "current_stream": lambda: "stream",
        "graph_pool_handle": lambda: "pool",
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    generators = [torch.Generator(), torch.Generator()]
    graph = capture.graphs(torch.device("cuda"))(generators)
    assert graph.record(lambda: calls.append("work") or 7) == 7
    graph.replay()
    assert calls == [*generators, (Graph, "pool", "stream", "thread_local"), "work", "end", "replay"]


def test_nothing_is_captured_without_a_gpu():
    assert capture.graphs(torch.device("cpu")) is None


# ---- devices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("triton", [True, False])
@pytest.mark.parametrize("name", ROWS)
def test_a_step_stays_on_its_device(name, triton, monkeypatch):
    """On the meta device, which has no values: no step mixes in host tensors or reads a value."""
    monkeypatch.setitem(triton_trial._USABLE, "meta", triton)
    monkeypatch.setattr(triton_trial, "_TRIED", {"meta"})
    parts, config, asked = halves(name), replace(FAST, **own(name)), []
    net = model(name).to("meta")
    cells = replace(parts[0], **{k: v.to("meta") for k, v in vars(parts[0]).items() if isinstance(v, torch.Tensor)})

    def noise(latent: str, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
        asked.append(latent)
        return torch.randn(shape, device="meta")

    warmup = torch.ones((), dtype=torch.float64, device="meta")
    for mode in (True, False):
        net.train(mode)
        loss = training_steps.batch_loss(net, cells, config, noise, particles=2, size=32, n_cells=80, warmup=warmup)
        value = loss(torch.arange(32, device="meta"))
        value.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        assert value.is_meta and all(parameter.grad.is_meta for parameter in net.parameters())
    assert net.names[-1] in asked

"""Repeated steps of work: run as plain Python or, on a GPU, captured once in a CUDA graph and replayed.

A step of a small model launches a few hundred kernels of some microseconds each, and Python launches them more slowly
than the GPU runs them. A graph launches all of them at once. It reads and writes fixed addresses, so a step takes its
inputs from tensors that stay alive, changes weights and moments in place, and draws from registered generators, whose
state the graph reads again at every replay.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Protocol

import torch
from torch import Tensor

#: Plain steps of a shape before it is captured. They are real steps; they load kernels and create library handles.
WARM = 2

#: The host checks every so many steps how far the GPU is. It stays less than twice as many steps ahead, so that it
#: reacts to signals in time.
AHEAD = 64


class Generators(Protocol):
    """Random generators by name, on one device (``samsvae.models.noise.Streams`` is one)."""

    generators: dict[str, torch.Generator]
    device: torch.device


class _Failed:
    """The reason why a capture failed in this process, if one did.

    It leaves torch's allocator as during a capture, and a second capture would start from there.
    """

    reason = ""


class NotCaptured(RuntimeError):
    """A step cannot be captured. The noise streams are in an undefined state, so the training must start over."""


class CudaGraph:
    """A function captured on the current stream. Each ``replay`` overwrites the tensor that ``record`` returned.

    ``pool``: the memory pool, shared by graphs that never run at the same time and are freed together. ``generators``:
    the generators that the function draws from, besides torch's own. Each replay advances them as the function would.
    """

    def __init__(self, pool, generators: Iterable[torch.Generator]):
        self.pool = pool
        self.graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self.graph.register_generator_state(generator)

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        """Capture the work without running it; return the tensor that will hold its result."""
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(self.graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
            return work()

    def replay(self) -> None:
        self.graph.replay()


#: Creates a graph from the generators that its work draws from.
Graphs = Callable[[Iterable[torch.Generator]], CudaGraph]


def graphs(device: torch.device) -> Graphs | None:
    """How work is captured on a device, in one memory pool; None if it has no graphs, or a capture failed before."""
    if device.type != "cuda" or _Failed.reason:
        return None
    return partial(CudaGraph, torch.cuda.graph_pool_handle())


class Steps:
    """Calls ``step(*inputs)``, which returns a scalar, many times on tensors of a few shapes, in any order.

    The step must not wait for the GPU, and it changes tensors in place only. ``noise``: the streams that it draws from.
    ``make``: how a graph is created; None never captures. NotCaptured is raised if a capture fails; after that,
    nothing is captured in this process.
    """

    def __init__(self, step: Callable[..., Tensor], noise: Generators, make: Graphs | None = None):
        self.step, self.noise, self.make = step, noise, make
        self.times: Counter[tuple] = Counter()  # calls so far, by the shapes of the inputs
        self.captured: dict[tuple, tuple[tuple[Tensor, ...], CudaGraph, Tensor]] = {}
        self.marks: deque[torch.cuda.Event] = deque()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The result of the step, in its own memory; on a GPU the step may still be running."""
        shapes = tuple(tuple(each.shape) for each in inputs)
        self.times[shapes] += 1
        self._wait()
        if self.make is None or self.times[shapes] <= WARM:
            return self.step(*inputs)
        if shapes not in self.captured:
            if _Failed.reason:  # of another run in this process
                return self.step(*inputs)
            self.captured[shapes] = self._capture(self.make, inputs)
        buffers, graph, out = self.captured[shapes]
        for buffer, given in zip(buffers, inputs, strict=True):
            buffer.copy_(given)
        graph.replay()
        return out.clone()

    def _capture(self, make: Graphs, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], CudaGraph, Tensor]:
        """Buffers for inputs of these shapes, the graph that reads them, and the tensor that will hold its result."""
        buffers = tuple(each.clone() for each in inputs)
        graph = make(self.noise.generators.values())
        try:
            return buffers, graph, graph.record(lambda: self.step(*buffers))
        except Exception as error:
            cause = error.__context__ or error  # ending a failed capture raises again: the cause is the context
            _Failed.reason = f"A step could not be captured in a CUDA graph ({cause})."
            if not isinstance(error, RuntimeError):
                raise
            raise NotCaptured(_Failed.reason) from error

    def _wait(self) -> None:
        """Let the GPU catch up if the host is far ahead, without letting the GPU run out of work."""
        if self.noise.device.type != "cuda" or self.times.total() % AHEAD:
            return
        mark = torch.cuda.Event(blocking=True)
        mark.record()
        self.marks.append(mark)
        if len(self.marks) > 1:
            self.marks.popleft().synchronize()


@cache
def stream_of(device: torch.device, work: str) -> torch.cuda.Stream:
    """The stream for a kind of work on a GPU, always the same: torch has few, and libraries reserve memory for each."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def on_one_stream(device: torch.device) -> Iterator[None]:
    """Within the block, a GPU works on a separate stream, since nothing can be captured on the default stream."""
    if device.type != "cuda":
        yield
        return
    stream, before = stream_of(device, "steps"), torch.cuda.current_stream(device)
    stream.wait_stream(before)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        before.wait_stream(stream)

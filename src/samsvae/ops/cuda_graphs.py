"""One step of work after another: as they come, or on a card captured once in a CUDA graph and replayed.

A step of a small model is some hundred kernels of a few microseconds each, which Python launches more slowly than the
card runs them. A graph is launched at once. It reads and writes fixed addresses: so a step takes its inputs from
tensors that stay, changes weights and moments in place, and draws from generators whose state the graph reads anew.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from typing import Protocol

import torch
from torch import Tensor

#: Steps of a shape that run as they come before it is captured: real steps, which load kernels and make handles.
WARM = 2

#: Steps after which the host looks how far the card is: it stays less than twice as many ahead, and so hears signals.
AHEAD = 64


class Generators(Protocol):
    """Random generators by name, on one device (``samsvae.models.noise.Streams`` is one)."""

    generators: dict[str, torch.Generator]
    device: torch.device


class NotCaptured(RuntimeError):
    """A step cannot be captured. The streams of noise are left halfway: there is no going on from here."""


class CudaGraph:
    """The work of a function, captured on the current stream. What it returns is filled anew by each ``replay``.

    ``pool`` of memory: one for graphs that never run at once and die together. ``generators``: those that the function
    draws from, beside torch's own. Each replay goes on in their streams as the function itself would.
    """

    def __init__(self, pool, generators: Iterable[torch.Generator]):
        self.pool = pool
        self.graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self.graph.register_generator_state(generator)

    def record(self, work: Callable[[], Tensor]) -> Tensor:
        """Capture the work, which is not done by that, and give its result to be."""
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(self.graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
            return work()

    def replay(self) -> None:
        self.graph.replay()


#: From generators to something that records work and replays it, as CudaGraph does.
Graphs = Callable[[Iterable[torch.Generator]], CudaGraph]


def graphs(device: torch.device) -> Graphs | None:
    """How work is captured on a device, in one pool of memory; None where it cannot be."""
    return partial(CudaGraph, torch.cuda.graph_pool_handle()) if device.type == "cuda" else None


class Steps:
    """Calls ``step(*inputs)``, which gives a scalar, on tensors of a few shapes, in any order, many times.

    The step may not wait for the card, and keeps what it changes at fixed addresses. ``noise``: the streams it draws
    from. ``make``: how it is captured, or NotCaptured where that fails; without, every step runs as it comes.
    """

    def __init__(self, step: Callable[..., Tensor], noise: Generators, make: Graphs | None = None):
        self.step, self.noise, self.make = step, noise, make
        self.times: Counter[tuple] = Counter()
        self.captured: dict[tuple, tuple[tuple[Tensor, ...], CudaGraph, Tensor]] = {}
        self.marks: deque[torch.cuda.Event] = deque()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """What the step gives, in memory of its own; on a card it may not be done yet."""
        shapes = tuple(tuple(each.shape) for each in inputs)
        self.times[shapes] += 1
        self._wait()
        if self.make is None or self.times[shapes] <= WARM:
            return self.step(*inputs)
        if shapes not in self.captured:
            held = tuple(each.clone() for each in inputs)
            graph = self.make(self.noise.generators.values())
            try:
                self.captured[shapes] = held, graph, graph.record(lambda: self.step(*held))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # the end of a capture that has failed raises one of its own
                why = error.__context__ or error
                raise NotCaptured(f"A step could not be captured in a CUDA graph ({why}).") from error
        held, graph, out = self.captured[shapes]
        for mine, given in zip(held, inputs, strict=True):
            mine.copy_(given)
        graph.replay()
        return out.clone()

    def _wait(self) -> None:
        """Let the card catch up where the host is far ahead, without letting it run dry."""
        if self.noise.device.type != "cuda" or self.times.total() % AHEAD:
            return
        mark = torch.cuda.Event(blocking=True)
        mark.record()
        self.marks.append(mark)
        if len(self.marks) > 1:
            self.marks.popleft().synchronize()


@cache
def stream_of(device: torch.device, work: str) -> torch.cuda.Stream:
    """The one stream of a kind of work on a card: torch has few, and libraries keep memory for each."""
    return torch.cuda.Stream(device)


@contextlib.contextmanager
def on_one_stream(device: torch.device) -> Iterator[None]:
    """Work on one stream of its own on a card: nothing can be captured on the stream that is there by default."""
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

"""The batches of an epoch, in order, from counts on the device or on the host.

If the counts are too large for a GPU, a few threads gather the next batch in page-locked memory while the GPU works on
the current one, and a separate stream copies it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from samsvae.data.cells import Cells, FileRows
from samsvae.ops.cuda_graphs import stream_of

#: Threads that gather a batch, and the least number of cells for each: reading pages of a file waits for the disk.
THREADS, LEAST = 4, 64


def batches(cells: Cells, order: Tensor, size: int, *, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
    """Positions (n',) on the device, ``size`` at a time (fewer in the last batch), starting at batch ``start``.

    If the counts are not on the device, the counts (n', G) of the batch follow; they are valid until the next batch is
    requested. Both are arguments for ``Cells.batch``. ``order`` (n,): all positions, on the host.
    """
    parts = order.to(cells.device).split(size)[start:]
    if not cells.streamed:
        yield from ((part,) for part in parts)
        return
    hosts = order.split(size)[start:]
    if not hosts:
        return
    slots = [_Slot(cells, min(size, len(order))) for _ in range(2)]
    with ThreadPoolExecutor(THREADS) as threads:
        pending = slots[0].gather(threads, hosts[0])
        for number, part in enumerate(parts):
            for each in pending:
                each.result()
            slot = slots[number % 2]
            if number + 1 < len(parts):
                pending = slots[(number + 1) % 2].gather(threads, hosts[number + 1])
            yield part, slot.copy(len(part))
            slot.used()


class _Slot:
    """Memory for a batch on the host and on the device; two slots take turns."""

    def __init__(self, cells: Cells, size: int):
        shape, dtype = (size, cells.counts.shape[1]), cells.counts.dtype
        self.counts, self.on_gpu = cells.counts, cells.device.type == "cuda"
        self.host = torch.empty(shape, dtype=dtype, pin_memory=self.on_gpu)
        self.on_device = torch.empty(shape, dtype=dtype, device=cells.device) if self.on_gpu else self.host
        if self.on_gpu:
            self.stream = stream_of(cells.device, "copies")
            self.copied, self.free = torch.cuda.Event(blocking=True), torch.cuda.Event()
            self.used()  # after earlier work that used this memory

    def gather(self, threads: ThreadPoolExecutor, at: Tensor) -> list[Future[None]]:
        """Let threads read the cells at some positions on the host."""
        size = max(LEAST, -(-len(at) // THREADS))
        return [threads.submit(self._read, part, number * size) for number, part in enumerate(at.split(size))]

    def _read(self, at: Tensor, start: int) -> None:
        """Read cells to the rows of the host memory from ``start`` on."""
        if self.on_gpu:
            self.copied.synchronize()  # the copy before last has left the page-locked memory
        counts = self.counts
        source, rows = (counts.source, counts.rows[at]) if isinstance(counts, FileRows) else (counts, at)
        torch.index_select(source, 0, rows, out=self.host[start : start + len(at)])

    def copy(self, n: int) -> Tensor:
        """The gathered counts of n cells on the device; the current stream waits for the copy."""
        if self.on_gpu:
            self.stream.wait_event(self.free)
            with torch.cuda.stream(self.stream):
                self.on_device[:n].copy_(self.host[:n], non_blocking=True)
                self.copied.record()
            torch.cuda.current_stream(self.on_device.device).wait_event(self.copied)
        return self.on_device[:n]

    def used(self) -> None:
        """Free the slot once the steps launched so far are done."""
        if self.on_gpu:
            self.free.record(torch.cuda.current_stream(self.on_device.device))

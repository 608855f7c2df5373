"""The batches of an epoch, in order: of cells on the device, or of counts that stay on the host.

Where counts are too many for a card, a thread gathers the next batch into page-locked memory while the card is at the
present one, and the copy runs on a stream of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from samsvae.data.cells import Cells, FileRows
from samsvae.ops.cuda_graphs import stream_of


def batches(cells: Cells, order: Tensor, size: int, *, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
    """Positions (n',) on the device, ``size`` at a time and the last fewer, from batch ``start`` on.

    With them go the counts (n', G) where those are not on the device, good until the next batch is asked for: what
    ``Cells.batch`` takes. ``order`` (n,) are the positions, on the host.
    """
    parts = order.to(cells.device).split(size)[start:]
    if not cells.streamed:
        yield from ((part,) for part in parts)
        return
    hosts = order.split(size)[start:]
    if not hosts:
        return
    slots = [_Slot(cells, min(size, len(order))) for _ in range(2)]
    with ThreadPoolExecutor(1) as thread:
        ahead = thread.submit(slots[0].gather, hosts[0])
        for number, part in enumerate(parts):
            ahead.result()
            slot = slots[number % 2]
            if number + 1 < len(parts):
                ahead = thread.submit(slots[(number + 1) % 2].gather, hosts[number + 1])
            yield part, slot.copy(len(part))
            slot.used()


class _Slot:
    """Room for a batch on the host and on the device: one of two that take turns."""

    def __init__(self, cells: Cells, size: int):
        shape, kind = (size, cells.counts.shape[1]), cells.counts.dtype
        self.counts, self.on_card = cells.counts, cells.device.type == "cuda"
        self.host = torch.empty(shape, dtype=kind, pin_memory=self.on_card)
        self.there = torch.empty(shape, dtype=kind, device=cells.device) if self.on_card else self.host
        if self.on_card:
            self.stream = stream_of(cells.device, "copies")
            self.copied, self.free = torch.cuda.Event(blocking=True), torch.cuda.Event()
            self.free.record()  # whatever had this memory before

    def gather(self, at: Tensor) -> None:
        """Read the cells at some positions, on the host (in the thread)."""
        if self.on_card:
            self.copied.synchronize()  # the copy before last has left the page-locked memory
        counts = self.counts
        source, rows = (counts.source, counts.rows[at]) if isinstance(counts, FileRows) else (counts, at)
        torch.index_select(source, 0, rows, out=self.host[: len(at)])

    def copy(self, n: int) -> Tensor:
        """What was gathered, on the device; the present stream waits for it."""
        if self.on_card:
            self.stream.wait_event(self.free)
            with torch.cuda.stream(self.stream):
                self.there[:n].copy_(self.host[:n], non_blocking=True)
                self.copied.record()
            torch.cuda.current_stream().wait_event(self.copied)
        return self.there[:n]

    def used(self) -> None:
        """The steps launched so far were the last to read it."""
        if self.on_card:
            self.free.record()

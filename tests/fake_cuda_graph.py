"""A CPU substitute for a CUDA graph: it records the operations of a function and repeats them.

As on a GPU, recording changes no tensor, Python numbers become constants of the record, and a replay reads and writes
the recorded tensors. Waiting for a value, or drawing from a generator that was not registered, is an error.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "equal", "is_nonzero"}


def tensors(values) -> list[torch.Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def place(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Tape(TorchDispatchMode):
    made: ClassVar[list[Tape]] = []

    def __init__(self, generators):
        super().__init__()
        self.generators = list(generators)
        self.calls: list[tuple] = []
        self.own: set[int] = set()
        self.outside: dict[int, tuple] = {}
        self.replays = 0
        Tape.made.append(self)

    def record(self, work):
        states = [generator.get_state() for generator in self.generators], torch.get_rng_state()
        try:
            with self:
                return work()
        finally:
            for storage, content in self.outside.values():
                storage.copy_(content)
            for generator, state in zip(self.generators, states[0], strict=True):
                generator.set_state(state)
            torch.set_rng_state(states[1])

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in WAITS:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        if isinstance(generator := kwargs.get("generator"), torch.Generator):
            known = {each._cdata for each in self.generators}
            assert generator._cdata in known, "a generator that was not registered"
        given = dict(zip((spec.name for spec in func._schema.arguments), args, strict=False)) | kwargs
        changes = [
            tensor
            for spec in func._schema.arguments
            if spec.alias_info is not None and spec.alias_info.is_write
            for tensor in tensors(given.get(spec.name))
        ]
        if func.overloadpacket.__name__ == "native_batch_norm":  # changes its moments without declaring it
            changes += tensors(args[3:5])
        for tensor in changes:
            if place(tensor) not in self.own | self.outside.keys():
                storage = tensor.untyped_storage()
                self.outside[place(tensor)] = storage, storage.clone()
        out = func(*args, **kwargs)
        given = {place(tensor) for tensor in tensors((args, kwargs))}
        fresh = [tensor for tensor in tensors(out) if place(tensor) not in given]
        self.own |= {place(tensor) for tensor in fresh}
        if fresh or changes:  # views need no replay
            self.calls.append((func, args, kwargs, [place(each) not in given for each in tensors(out)], out))
        else:
            self.calls.append((None, args, kwargs, [], out))  # kept alive
        return out

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for func, args, kwargs, fresh, out in self.calls:
            if func is not None:
                for new, before, anew in zip(tensors(func(*args, **kwargs)), tensors(out), fresh, strict=True):
                    if anew:
                        before.copy_(new)

"""The memory that a computation really takes."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class _Live(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.known: set[int] = set()
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Storages of inputs are not counted: they were there before.
        for x in pytree.tree_leaves((args, kwargs)):
            if isinstance(x, torch.Tensor):
                self._know(x.untyped_storage())
        out = func(*args, **(kwargs or {}))
        for x in pytree.tree_leaves(out):
            if isinstance(x, torch.Tensor):
                self._add(x.untyped_storage())
        self.peak = max(self.peak, self.now)
        return out

    def _know(self, storage: torch.UntypedStorage) -> None:
        # Only while it lives: another storage may get its address.
        key = storage._cdata
        if key not in self.known:
            self.known.add(key)
            weakref.finalize(storage, self.known.discard, key)

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or size == 0:
            return
        self.known.add(key)
        self.now += size
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def peak_bytes(job: Callable[[], Any]) -> int:
    """Measure the most bytes that tensors made by `job` hold at one moment, its result included.

    What a single operation uses inside itself is not seen. Inputs and weights are not counted.
    """
    with _Live() as live:
        result = job()
        del result
    return live.peak

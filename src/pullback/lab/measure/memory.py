"""Bytes of the tensors that live at once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pullback.lab.measured import Measured

__all__ = ["peak_memory"]


def peak_memory(call: Callable[[], Any], *, of: str = "", device: torch.device | str = "cpu") -> Measured:
    """Return the largest number of bytes that tensors made inside ``call`` take at one time.

    What a graph keeps for its backward pass counts, what was there before does not. On the CPU storages of torch are
    counted as they come and go, but neither temporaries within one operation of torch nor arrays of compiled kernels;
    on a CUDA device its allocator is asked.

    Args:
        call: what to measure; it is called once.
        of: the arm, in the label of the number.
        device: on which the tensors are made.

    Returns:
        Bytes.

    Example:
        >>> int(peak_memory(lambda: torch.zeros(1000) + torch.ones(1000)))
        12000
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        most = torch.cuda.max_memory_allocated(device) - before
    else:
        with _Storages() as storages:
            call()
        most = storages.most
    return Measured(most, "peak memory", of, unit="bytes")


_FRESH = (torch.ops.aten.lift_fresh.default,)
"""What ``torch.tensor`` calls on the tensor it has just made."""


class _Storages(TorchDispatchMode):
    """Counts the bytes of the storages that operations return, each until it is released."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._live = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = [] if function in _FRESH else [tensor.untyped_storage() for tensor in _tensors((args, kwargs))]
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if not any(storage is other for other in given):  # views of what was there before are no new memory
                self._track(storage)
        return result

    def _track(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self._live += size
        self.most = max(self.most, self._live)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self._live -= size


def _tensors(tree: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.layout == torch.strided]

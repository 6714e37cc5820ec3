"""What a forward pass keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pullback.core.checks import check_callable

__all__ = ["SavedBytes", "saved_bytes"]


@dataclass(frozen=True)
class SavedBytes:
    """Memory kept for the backward pass.

    Attributes:
        total: bytes of all storages saved, each counted once, without parameters and module buffers.
        count: number of storages.
        by_operation: bytes by the autograd node that saved them first, as ``{"ReluBackward0": 4096}``; a saved
            tensor that was an input of the graph is listed under the shape and dtype, as ``"input (4, 8)
            torch.float32"``.
        output: what the function returned.
    """

    total: int
    count: int
    by_operation: dict[str, int]
    output: Any


def saved_bytes(fn: Callable[..., Any], *args: Any, exclude: tuple[Tensor, ...] = (), **kwargs: Any) -> SavedBytes:
    """Run ``fn`` once and measure the bytes that autograd keeps for its backward pass.

    ``sum over distinct storages s saved by saved_tensors_hooks of bytes(s)``, with leaves that are ``nn.Parameter``
    and the tensors of ``exclude`` left out: those exist anyway. A view counts with its whole storage, since it keeps
    it alive.

    Args:
        fn: any callable; a module's parameters and buffers are excluded.
        *args: its positional arguments.
        exclude: tensors whose storages do not count (such as the inputs).
        **kwargs: its keyword arguments.

    Returns:
        A :class:`SavedBytes`.

    Raises:
        TypeError: ``fn`` is not callable.

    Example:
        >>> x = torch.zeros(4, 8, requires_grad=True)
        >>> saved_bytes(torch.exp, x).total  # exp keeps its output, 32 floats
        128
        >>> saved_bytes(torch.nn.Linear(8, 2), x.detach()).total  # the weight's gradient needs the input
        128

    References:
        Bhatia, Dangel (2024), Lowering PyTorch's memory consumption for selective differentiation, arXiv 2404.12406.
    """
    check_callable("fn", fn)
    known: list[Tensor] = list(exclude)
    if isinstance(fn, nn.Module):
        known += [*fn.parameters(), *fn.buffers()]
    excluded = {t.untyped_storage().data_ptr() for t in known}
    sizes: dict[int, tuple[int, str]] = {}
    alive: list[Tensor] = []  # keeps every storage alive, so that an address is not used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        base = tensor._base if tensor._base is not None else tensor
        if address not in excluded and not isinstance(base, nn.Parameter) and address not in sizes:
            name = (
                tensor.grad_fn.name() if tensor.grad_fn is not None else f"input {tuple(tensor.shape)} {tensor.dtype}"
            )
            sizes[address] = (storage.nbytes(), name)
            alive.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = fn(*args, **kwargs)
    by_operation: dict[str, int] = {}
    for size, name in sizes.values():
        by_operation[name] = by_operation.get(name, 0) + size
    return SavedBytes(sum(size for size, _ in sizes.values()), len(sizes), by_operation, output)

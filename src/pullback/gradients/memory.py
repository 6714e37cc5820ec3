"""What a forward pass keeps for its backward pass."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from pullback.core.checks import check_callable

__all__ = ["SavedBytes", "saved_bytes"]

_TORCH = os.path.dirname(torch.__file__) + os.sep
_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep
_PROGRAMS = (_PACKAGE + "systems" + os.sep, _PACKAGE + "demo" + os.sep)
"""Parts of this package that use it as anybody does."""


@dataclass(frozen=True)
class SavedBytes:
    """Memory kept for the backward pass.

    Attributes:
        total: bytes of all storages saved, each counted once, without parameters and module buffers.
        count: number of storages.
        by_operation: bytes by the autograd node that saved them first, as ``{"ReluBackward0": 4096}``; a saved
            tensor that was an input of the graph is listed under the shape and dtype, as ``"input (4, 8)
            torch.float32"``.
        by_layer: bytes by the module during whose ``forward`` they were saved first, as ``{"encoder.0": 4096}``: the
            innermost one, by its name in ``fn``, by its class where it is no part of ``fn``, ``""`` outside of all.
        by_line: bytes by the line that called, outside of torch and of this package, as ``{"train.py:12": 4096}``
            with the file's full path.
        output: what the function returned.
    """

    total: int
    count: int
    by_operation: dict[str, int]
    by_layer: dict[str, int]
    by_line: dict[str, int]
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
        >>> model = nn.Sequential(nn.Linear(8, 2), nn.Tanh())
        >>> saved_bytes(model, x.detach()).by_layer  # the weight's gradient needs the input; tanh keeps its output
        {'0': 128, '1': 32}

    References:
        Bhatia, Dangel (2024), Lowering PyTorch's memory consumption for selective differentiation, arXiv 2404.12406.
    """
    check_callable("fn", fn)
    known: list[Tensor] = list(exclude)
    names: dict[nn.Module, str] = {}
    if isinstance(fn, nn.Module):
        known += [*fn.parameters(), *fn.buffers()]
        names = {module: name for name, module in fn.named_modules()}
    excluded = {t.untyped_storage().data_ptr() for t in known}
    seen: set[int] = set()
    alive: list[Tensor] = []  # keeps every storage alive, so that an address is not used twice
    operations, layers, lines = Counter[str](), Counter[str](), Counter[str]()
    running: list[nn.Module] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        base = tensor._base if tensor._base is not None else tensor
        if address not in excluded and not isinstance(base, nn.Parameter) and address not in seen:
            seen.add(address)
            alive.append(tensor.detach())
            leaf = f"input {tuple(tensor.shape)} {tensor.dtype}"
            operations[leaf if tensor.grad_fn is None else tensor.grad_fn.name()] += storage.nbytes()
            layer = "" if not running else names.get(running[-1], type(running[-1]).__name__)
            layers[layer] += storage.nbytes()
            lines[_calling_line(sys._getframe(1))] += storage.nbytes()
        return tensor

    with _followed(running), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = fn(*args, **kwargs)
    return SavedBytes(operations.total(), len(seen), dict(operations), dict(layers), dict(lines), output)


@contextmanager
def _followed(running: list[nn.Module]) -> Iterator[None]:
    """Keep the modules whose ``forward`` is under way, the innermost last."""

    def enter(module: nn.Module, inputs: Any) -> None:
        running.append(module)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        running.pop()

    hooks = nn.modules.module
    with ExitStack() as stack:
        stack.enter_context(hooks.register_module_forward_pre_hook(enter))
        stack.enter_context(hooks.register_module_forward_hook(leave, always_call=True))
        yield


def _calling_line(frame: FrameType | None) -> str:
    """Name the innermost line that is neither torch's nor of this package."""
    while frame is not None and frame.f_back is not None and _inside(frame.f_code.co_filename):
        frame = frame.f_back
    assert frame is not None
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def _inside(file: str) -> bool:
    return file.startswith(_TORCH) or (file.startswith(_PACKAGE) and not file.startswith(_PROGRAMS))

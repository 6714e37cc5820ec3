"""The names of torch's insides that audit relies on, each with what it is for: all of them, and nowhere else.

``tests/audit/test_private_names.py`` says what each must do, for every release from the oldest that ``pyproject.toml``
allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import eager_transforms

__all__ = ["function_of", "is_wrapped", "own_parameters", "replace_func_grad", "unseen", "unwrap", "view_base"]

is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
"""Whether a transform of ``torch.func`` (``grad``, ``vmap``, ``jvp``) stands around a tensor: it has no memory then."""

unseen = torch._C.DisableTorchFunction
"""A context in which modes and subclasses see no call: audit measures without recording itself."""


def unwrap(tensor: Tensor) -> Tensor:
    """Return the tensor one transform further in."""
    inner: Tensor = torch._C._functorch.get_unwrapped(tensor)
    return inner


def view_base(tensor: Tensor) -> Tensor | None:
    """Return the tensor that this one is a view of, ``None`` where it is none."""
    return tensor._base


def function_of(context: Any) -> Any:
    """Return the custom Function whose context this is, ``None`` where it is no context."""
    return getattr(type(context), "_forward_cls", None) or getattr(context, "_forward_cls", None)


def own_parameters(module: nn.Module) -> Iterable[nn.Parameter | None]:
    """Return the parameters of a module itself, without those of its children: on every call, so without a copy."""
    return module._parameters.values()


def replace_func_grad(replacement: Callable[..., Any]) -> Callable[..., Any]:
    """Replace the step of ``torch.func.grad`` and ``vjp`` that differentiates; return the one before.

    It is ``(outputs, inputs, ...) -> gradients`` and goes past ``torch.autograd.grad``, so that no mode sees it.
    """
    former: Callable[..., Any] = eager_transforms._autograd_grad
    eager_transforms._autograd_grad = replacement
    return former

"""Transforms of ``torch.func``, forward mode and compilation, as a block meets them: is one running, may it look?"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["below_transforms", "can_look", "is_transformed", "kept_property", "physical", "transform_running"]

T = TypeVar("T")


def transform_running() -> bool:
    """Return whether a transform of ``torch.func`` or a level of forward mode is under way.

    Example:
        >>> transform_running(), torch.func.vmap(lambda x: x + transform_running())(torch.zeros(1)).item()
        (False, 1.0)
    """
    return _in_functorch() or torch.autograd.forward_ad._current_level >= 0


def is_transformed(x: Tensor) -> bool:
    """Return whether ``x`` passes through a transform or a compiled graph: a compiled kernel cannot take it.

    Under forward mode that is a tensor with a tangent; a constant beside it is an ordinary tensor.

    Example:
        >>> is_transformed(torch.zeros(2)), torch.func.vmap(lambda x: x + is_transformed(x))(torch.zeros(1)).item()
        (False, 1.0)
    """
    return (
        torch.compiler.is_compiling() or _in_functorch() or torch.autograd.forward_ad.unpack_dual(x).tangent is not None
    )


def can_look(x: Tensor) -> bool:
    """Return whether Python may branch on the values of ``x``: it is not wrapped by a transform, nothing is compiled.

    Example:
        >>> can_look(torch.zeros(2)), torch.func.vmap(lambda x: x + can_look(x))(torch.zeros(1)).item()
        (True, 0.0)
    """
    return not (torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x))


def physical(x: Tensor) -> Tensor:
    """Return the tensor below every transform of ``torch.func``: under vmap, the whole batch.

    Example:
        >>> torch.func.vmap(lambda x: x + physical(x).numel())(torch.zeros(3)).tolist()
        [3.0, 3.0, 3.0]
    """
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def below_transforms() -> Any:
    """Return a context in which :func:`physical` tensors are ordinary ones: they can be read as arrays.

    Example:
        >>> def read(x):
        ...     with below_transforms():
        ...         total = float(physical(x).detach().numpy().sum())
        ...     return x + total
        >>> torch.func.vmap(read)(torch.ones(2)).tolist()
        [3.0, 3.0]
    """
    return torch._C._DisableFuncTorch()


class kept_property(cached_property[T]):
    """A :class:`functools.cached_property` of indices or constants that outlives the transform which asks for it first.

    Inside of ``torch.func`` every new tensor belongs to the transform that runs; kept beyond it, it would be a wrapper
    without content. Here it is computed below all transforms.

    Example:
        >>> class Grid:
        ...     @kept_property
        ...     def places(self):
        ...         return torch.arange(3)
        >>> grid = Grid()
        >>> _ = torch.func.jvp(lambda x: x * grid.places, (torch.ones(3),), (torch.ones(3),))
        >>> grid.places.tolist()
        [0, 1, 2]
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        @wraps(compute)
        def below(self: Any) -> T:
            with below_transforms():
                return compute(self)

        super().__init__(below)


def _in_functorch() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None

"""The variables of a bilevel problem, tensors, nestings of them or modules alike, and objectives of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from pullback.core.shapes import Tensor
from pullback.implicit.arguments import check_function

__all__ = ["Function", "Objective", "Variables", "check_optimizer", "gradient", "length", "pull_back"]


@dataclass(frozen=True)
class Variables:
    """One variable of a problem as a list of tensors.

    Attributes:
        name: for messages.
        value: what the user gave.
        leaves: its tensors; of a module, the parameters that require a gradient.
        structure: the nesting in which tensors that belong to it are returned: its own; of a module, a dictionary with
            the names of its parameters.
    """

    name: str
    value: Any
    leaves: list[Tensor]
    structure: pytree.TreeSpec

    @staticmethod
    def of(name: str, value: Any) -> Variables:
        """Return the variable called ``name``; raise unless it consists of floating tensors."""
        if isinstance(value, nn.Module):
            tree: Any = {key: p for key, p in value.named_parameters() if p.requires_grad}
            if not tree:
                raise ValueError(f"{name} must have at least one parameter that requires grad, got {value!r}")
        else:
            tree = value
        leaves, structure = pytree.tree_flatten(tree)
        if not leaves:
            raise ValueError(f"{name} must hold at least one tensor, got {value!r}")
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                got = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
                raise TypeError(f"{name} must be a module, a floating tensor or a nesting of such tensors, got {got}")
        return Variables(name, value, leaves, structure)

    def live(self) -> list[Tensor]:
        """Return the tensors as leaves of a new graph, which share their memory."""
        return [leaf.detach().requires_grad_() for leaf in self.leaves]

    def tree(self, leaves: Sequence[Tensor]) -> Any:
        """Return tensors that belong to the variable in its structure."""
        return pytree.tree_unflatten(list(leaves), self.structure)

    def like(self, name: str, value: Any) -> list[Tensor]:
        """Return the tensors of ``value``, an argument called ``name`` that must look like the variable."""
        leaves, structure = pytree.tree_flatten(value)
        if structure != self.structure:
            raise ValueError(f"{name} must have the structure of {self.name}, {self.structure}, got {structure}")
        for leaf, own in zip(leaves, self.leaves, strict=True):
            if not isinstance(leaf, Tensor) or leaf.shape != own.shape or leaf.dtype != own.dtype:
                got = (tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else type(leaf).__name__
                wanted = (tuple(own.shape), own.dtype)
                raise ValueError(f"{name} must have the shapes and dtypes of {self.name}: {wanted}, got {got}")
        return leaves

    @torch.no_grad()
    def assign(self, leaves: Sequence[Tensor]) -> None:
        """Write tensors into those of the variable."""
        for own, leaf in zip(self.leaves, leaves, strict=True):
            own.copy_(leaf)


class Function:
    """A function of variables, called with lists of tensors in their place.

    Args:
        name: for messages.
        function: of the values of ``variables``.
        variables: its arguments.
    """

    def __init__(self, name: str, function: Callable[..., Any], *variables: Variables) -> None:
        check_function(name, function)
        self.name, self._function, self._variables = name, function, variables
        modules = {v.name: v.value for v in variables if isinstance(v.value, nn.Module)}
        self._holder = _Holder(function, modules) if modules else None

    def __call__(self, *leaves: Sequence[Tensor]) -> Any:
        """Return the value."""
        trees = {v.name: v.tree(tensors) for v, tensors in zip(self._variables, leaves, strict=True)}
        if self._holder is None:
            return self._function(*trees.values())
        place = "held.{}.{}".format
        put = {place(name, key): t for name in self._holder.held for key, t in trees[name].items()}
        return functional_call(self._holder, put, tuple(trees.items()))


class Objective(Function):
    """A function of variables whose value is one number."""

    def __call__(self, *leaves: Sequence[Tensor]) -> Tensor:
        """Return the value; raise unless it is one floating number."""
        value = super().__call__(*leaves)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
            got = (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{self.name} must return a floating tensor with one element, got {got}")
        return value.reshape(())


class _Holder(nn.Module):
    """A function whose arguments are modules, so that ``functional_call`` puts tensors in their parameters' place."""

    def __init__(self, function: Callable[..., Any], modules: dict[str, nn.Module]) -> None:
        super().__init__()
        self.held = nn.ModuleDict(modules)
        self.given = (function,)  # in a tuple: a function that is itself a module is none of the arguments

    def forward(self, *trees: tuple[str, Any]) -> Any:
        held = dict(self.held)
        return self.given[0](*(held.get(name, tree) for name, tree in trees))


def check_optimizer(name: str, optimizer: Any, variables: Variables) -> None:
    """Raise unless ``optimizer`` is one and holds every tensor of ``variables``."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"{name} must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = sum(id(leaf) not in held for leaf in variables.leaves)
    if missing:
        raise ValueError(
            f"{name} must hold every tensor of {variables.name}; {missing} of {len(variables.leaves)} are not in it"
        )


def gradient(
    name: str, value: Tensor, x: Sequence[Tensor], y: Sequence[Tensor], *, create_graph: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradient of the objective called ``name`` in ``x`` and ``y``; raise if ``y`` has no part in it."""
    leaves = [*x, *y]
    found: Sequence[Tensor | None] = [None] * len(leaves)
    if value.requires_grad:
        found = torch.autograd.grad(value, leaves, create_graph=create_graph, allow_unused=True)
    if all(g is None for g in found[len(x) :]):
        raise ValueError(f"{name} must depend on y, but it has no gradient in any tensor of y")
    filled = [torch.zeros_like(leaf) if g is None else g for g, leaf in zip(found, leaves, strict=True)]
    return filled[: len(x)], filled[len(x) :]


def pull_back(outputs: Sequence[Tensor], leaves: Sequence[Tensor], cotangents: Sequence[Tensor]) -> list[Tensor]:
    """Return the product of ``cotangents`` with the Jacobian of ``outputs``, whose graph is kept for the next one."""
    kept = [i for i, output in enumerate(outputs) if output.requires_grad]
    if not kept:  # linear in everything
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(
        torch.autograd.grad(
            [outputs[i] for i in kept],
            leaves,
            [cotangents[i] for i in kept],
            retain_graph=True,
            materialize_grads=True,
        )
    )


def length(leaves: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm of all entries together."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(leaf) for leaf in leaves]))

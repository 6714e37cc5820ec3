"""Many small networks of one shape, trained at once as a batch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from torch import nn

from pullback.core.checks import check_callable, check_floating, check_integer
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor

__all__ = ["BestMembers", "MLPEnsemble"]


class MLPEnsemble(nn.Module):
    r"""Multilayer perceptrons side by side: each layer of all of them is one batched product.

    The members share nothing. Of a sum of their losses each has the gradient of its own, so that one optimizer trains
    all: deep ensembles, seeds, folds, a grid of weights.

    Args:
        members: their number, >= 1.
        sizes: of the input, the hidden layers and the output, each >= 1.
        activation: of every hidden layer, elementwise.
        generator: of the initial weights, uniform within one over the square root of a layer's input, as torch's.

    Raises:
        TypeError: a number is no integer, the activation cannot be called.
        ValueError: one is out of range, there are fewer than two sizes.

    Example:
        >>> ensemble = MLPEnsemble(5, (3, 16, 2))
        >>> ensemble(torch.zeros(5, 7, 3)).shape, ensemble(torch.zeros(7, 3)).shape
        (torch.Size([5, 7, 2]), torch.Size([5, 7, 2]))
        >>> ensemble.member(0, torch.zeros(7, 3)).shape
        torch.Size([7, 2])

    References:
        Lakshminarayanan, Pritzel, Blundell (2017), Simple and scalable predictive uncertainty estimation using deep
        ensembles.
    """

    def __init__(
        self,
        members: int,
        sizes: tuple[int, ...],
        *,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_callable("activation", activation)
        check_integer("members", members, 1)
        self.activation = activation
        if len(sizes) < 2:
            raise ValueError(f"sizes must be those of an input and an output at least, got {sizes}")
        for size in sizes:
            check_integer("sizes", size, 1)
        self.weight, self.bias = nn.ParameterList(), nn.ParameterList()
        device = drawing_device(generator, torch.device("cpu"))
        for fan, out in itertools.pairwise(sizes):
            for layer, rows in ((self.weight, fan), (self.bias, 1)):
                drawn = torch.rand(members, rows, out, generator=generator, device=device)
                layer.append((2 * drawn.cpu() - 1) / math.sqrt(fan))

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "members rows out"]:
        """Return the output of every member.

        Args:
            x: ``[members, rows, in]``, or ``[rows, in]`` for all.

        Raises:
            TypeError: ``x`` is no floating tensor.
            ValueError: it has another shape.
        """
        members, size = self.weight[0].shape[:2]
        if check_floating("x", x).ndim == 2:
            x = x.expand(members, *x.shape)
        if x.ndim != 3 or (x.shape[0], x.shape[2]) != (members, size):
            raise ValueError(f"x must have shape [{members}, rows, {size}] or [rows, {size}], got {tuple(x.shape)}")
        for k, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            x = torch.baddbmm(bias, self.activation(x) if k else x, weight)
        return x

    def member(self, index: int, x: Float[Tensor, "rows in"]) -> Float[Tensor, "rows out"]:
        """Return the output of one member.

        Args:
            index: of the member.
            x: ``[rows, in]``.

        Raises:
            TypeError: ``index`` is no integer, ``x`` no floating tensor.
            ValueError: there is no such member, ``x`` has another shape.
        """
        check_integer("index", index, 0, len(self.weight[0]) - 1)
        if check_floating("x", x).ndim != 2 or x.shape[1] != self.weight[0].shape[1]:
            raise ValueError(f"x must have shape [rows, {self.weight[0].shape[1]}], got {tuple(x.shape)}")
        for k, (weight, bias) in enumerate(zip(self.weight, self.bias, strict=True)):
            x = torch.addmm(bias[index], self.activation(x) if k else x, weight[index])
        return x


class BestMembers:
    """Early stopping for each member by itself: the weights with which its validation loss was least.

    Args:
        ensemble: whose members are kept.

    Attributes:
        least: ``[members]`` the least losses so far.

    Raises:
        TypeError: ``ensemble`` is no :class:`MLPEnsemble`.

    Example:
        >>> ensemble = MLPEnsemble(2, (1, 1))
        >>> best, first = BestMembers(ensemble), ensemble.bias[0].detach().clone()
        >>> best.update(torch.tensor([1.0, 1.0]))
        >>> with torch.no_grad():
        ...     _ = ensemble.bias[0].zero_()
        >>> best.update(torch.tensor([2.0, 0.5]))  # worse for one, better for the other
        >>> best.restore()
        >>> torch.equal(ensemble.bias[0][0], first[0]), float(ensemble.bias[0][1])
        (True, 0.0)
    """

    def __init__(self, ensemble: MLPEnsemble) -> None:
        if not isinstance(ensemble, MLPEnsemble):
            raise TypeError(f"ensemble must be an MLPEnsemble, got {type(ensemble).__name__}")
        self.ensemble = ensemble
        self.kept = [parameter.detach().clone() for parameter in ensemble.parameters()]
        self.least = torch.full((len(self.kept[0]),), math.inf, device=self.kept[0].device)

    @torch.no_grad()
    def update(self, loss: Float[Tensor, "members"]) -> None:
        """Keep the members whose loss is less than ever before.

        Args:
            loss: ``[members]`` on validation data.

        Raises:
            TypeError: ``loss`` is no floating tensor.
            ValueError: it has another shape.
        """
        if check_floating("loss", loss).shape != self.least.shape:
            raise ValueError(f"loss must have shape {tuple(self.least.shape)}, got {tuple(loss.shape)}")
        better = loss < self.least
        self.least.copy_(torch.where(better, loss, self.least))
        for old, new in zip(self.kept, self.ensemble.parameters(), strict=True):
            old.copy_(torch.where(better[:, None, None], new, old))

    @torch.no_grad()
    def restore(self) -> None:
        """Give the members their best weights."""
        for new, old in zip(self.ensemble.parameters(), self.kept, strict=True):
            new.copy_(old)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what :meth:`load_state_dict` takes."""
        return {"least": self.least, **{f"kept {k}": kept for k, kept in enumerate(self.kept)}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where a saved state ended."""
        for name, own in self.state_dict().items():
            own.copy_(state[name])

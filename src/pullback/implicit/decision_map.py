"""A network from observations to a decision that is feasible whatever its weights are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from pullback.core.checks import check_choice, check_floating, check_integer
from pullback.core.shapes import Float, Tensor
from pullback.implicit.arguments import check_function

__all__ = ["DecisionMap"]

POOLS = ("mean", "none")


class DecisionMap(nn.Module):
    r"""A decision from observations: :math:`a = F(\rho(\frac1n \sum_i \phi(x_i)))` or :math:`F(\rho(x_1, ..., x_n))`.

    The first does not depend on the order of the observations, as the posterior of exchangeable ones does not, and
    takes any number of them; the second reads them in their order. :math:`\phi` and :math:`\rho` have two hidden layers
    each of ReLU units (:math:`\rho` one after a mean). F makes the decision feasible: a scaled sigmoid for a box,
    :func:`~pullback.implicit.projection_simplex`, a solver such as :func:`~pullback.implicit.economic_dispatch`.
    Trained on the mean of ``cost(a, y)`` it tends to the Bayes action of the posterior, whatever prior the data have.

    Args:
        features: numbers of an observation.
        actions: numbers that F gets.
        hidden: units of a hidden layer.
        pool: ``"mean"`` or ``"none"``.
        count: n, for ``pool="none"``.
        feasible: F, from ``[*batch, actions]`` to the decision; the identity by default.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a size is no integer, ``feasible`` no function.
        ValueError: a size is < 1, ``pool`` is unknown, ``count`` is missing or given for a mean.

    Example:
        >>> buy = DecisionMap(1, 1, feasible=lambda z: 1 + 10 * z.sigmoid(), generator=torch.Generator().manual_seed(0))
        >>> demands = torch.tensor([[3.0], [7.0], [2.0]])
        >>> torch.allclose(buy(demands), buy(demands.flip(0)))
        True

    References:
        Zaheer et al. (2017), Deep sets, theorem 2. Rychener, Kuhn, Sutter (2023), End-to-end learning for stochastic
        optimization, sections 3 and 5.
    """

    def __init__(
        self,
        features: int,
        actions: int,
        *,
        hidden: int = 32,
        pool: str = "mean",
        count: int | None = None,
        feasible: Callable[[Tensor], Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.features, self.actions = check_integer("features", features, 1), check_integer("actions", actions, 1)
        check_integer("hidden", hidden, 1)
        check_choice("pool", pool, POOLS)
        self.pool, self.count = pool, count
        if feasible is not None:
            check_function("feasible", feasible)
        self.feasible = feasible
        if pool == "mean":
            if count is not None:
                raise ValueError(f"count must be None for a mean, which takes any number, got {count}")
            self.encoder: nn.Module = nn.Sequential(*_layers(features, hidden), *_layers(hidden, hidden))
            self.head = nn.Sequential(*_layers(hidden, hidden), nn.Linear(hidden, actions))
        else:
            if count is None:
                raise ValueError("count, the number of observations, must be given for pool 'none'")
            self.encoder = nn.Flatten(-2)
            width = features * check_integer("count", count, 1)
            self.head = nn.Sequential(*_layers(width, hidden), *_layers(hidden, hidden), nn.Linear(hidden, actions))
        if generator is not None:
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    for parameter in layer.parameters():
                        bound = layer.in_features**-0.5
                        nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, x: Float[Tensor, "*batch n features"]) -> Tensor:
        """Return the decision of observations ``[*batch, n, features]``: what F makes of ``[*batch, actions]``.

        Raises:
            TypeError: ``x`` is no floating tensor.
            ValueError: it has another shape.
        """
        wanted = "n" if self.count is None else self.count
        if (
            check_floating("x", x).ndim < 2
            or x.shape[-1] != self.features
            or not x.shape[-2]
            or self.count not in (None, x.shape[-2])
        ):
            raise ValueError(f"x must have shape [*, {wanted}, {self.features}], got {tuple(x.shape)}")
        encoded = self.encoder(x)
        scores: Tensor = self.head(encoded.mean(-2) if self.pool == "mean" else encoded)
        return scores if self.feasible is None else self.feasible(scores)


def _layers(inputs: int, outputs: int) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(inputs, outputs), nn.ReLU()

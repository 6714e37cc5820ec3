"""The newsvendor: how much to buy of what is worthless tomorrow, before the demand is known."""

from __future__ import annotations

import torch

from pullback.core.checks import check_broadcast, check_floating, check_positive, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.implicit.probabilities import check_law

__all__ = ["newsvendor_action", "newsvendor_cost"]


def newsvendor_cost(
    action: Float[Tensor, "*#shape"], demand: Float[Tensor, "*#shape"], *, cost: float, revenue: float
) -> Float[Tensor, "*shape"]:
    r"""Return what buying ``action`` pieces costs, less what selling them brings: ``cost a - revenue min(a, demand)``.

    Args:
        action: ``[*shape]`` pieces bought, any number.
        demand: ``[*shape]`` pieces that could be sold; broadcast against each other. Where both are equal the
            derivative is the mean of those on both sides.
        cost: price of a piece when it is bought, > 0.
        revenue: price of a piece when it is sold, > ``cost``, in the same unit.

    Returns:
        ``[*shape]`` in that unit; negative is a gain.

    Raises:
        TypeError: action or demand are no floating tensors or of different dtypes.
        ValueError: shapes do not fit, a price is not > 0, ``revenue`` does not exceed ``cost``.

    Example:
        >>> newsvendor_cost(torch.tensor([2.0, 4.0]), torch.tensor(3.0), cost=5.0, revenue=7.0)
        tensor([-4., -1.])

    References:
        Arrow, Harris, Marschak (1951), Optimal inventory policy.
    """
    _check_prices(cost, revenue)
    check_same_dtype(action=check_floating("action", action), demand=check_floating("demand", demand))
    check_broadcast(action=tuple(action.shape), demand=tuple(demand.shape))
    # Split into what is sold and what is not, so that no term is larger than the result by much.
    unsold = torch.maximum(action - demand, torch.zeros_like(action))
    return (cost - revenue) * torch.minimum(action, demand) + cost * unsold


def newsvendor_action(
    law: Float[Tensor, "*batch n"],
    demand: Float[Tensor, "n"] | None = None,
    *,
    cost: float,
    revenue: float,
) -> Float[Tensor, "*batch"]:
    r"""Return the best action under a law of the demand: its quantile at ``(revenue - cost) / revenue``.

    .. math:: a^* = \min \Big\{ d_j : \sum_{i \le j} p_i \ge \frac{\text{revenue} - \text{cost}}{\text{revenue}} \Big\}
              \in \arg\min_a \sum_i p_i\, (\text{cost}\, a - \text{revenue} \min(a, d_i))

    With a posterior predictive law it is the Bayes action, with an empirical one that of empirical risk minimisation.
    It is one of the demands, piecewise constant in the law: no gradient.

    Args:
        law: ``[*batch, n]`` probabilities of the demands, >= 0, of sum one.
        demand: ``[n]`` the demands, increasing; ``1, ..., n`` by default.
        cost: price of a piece when it is bought, > 0.
        revenue: price of a piece when it is sold, > ``cost``.

    Returns:
        ``[*batch]`` the smallest of the best actions.

    Raises:
        TypeError: ``law`` or ``demand`` is no floating tensor, or their dtypes differ.
        ValueError: the law has negative entries or another sum than one, demands do not increase or are of another
            number, a price is not > 0, ``revenue`` does not exceed ``cost``.

    Example:
        >>> newsvendor_action(torch.tensor([0.25, 0.25, 0.5]), cost=5.0, revenue=7.0)
        tensor(2.)

    References:
        Rychener, Kuhn, Sutter (2023), End-to-end learning for stochastic optimization, section 5.
    """
    _check_prices(cost, revenue)
    if not check_floating("law", law).ndim or not law.shape[-1]:
        raise ValueError(f"law must have a last dimension of at least one demand, got {tuple(law.shape)}")
    check_law("law", law)
    if demand is None:
        demand = torch.arange(1, law.shape[-1] + 1, dtype=law.dtype, device=law.device)
    check_same_dtype(law=law, demand=check_floating("demand", demand))
    if demand.shape != law.shape[-1:]:
        raise ValueError(f"demand must have shape {tuple(law.shape[-1:])}, got {tuple(demand.shape)}")
    if can_look(demand) and not bool((demand[1:] > demand[:-1]).all()):
        raise ValueError("demand must increase")
    below = law.detach().double().cumsum(-1)
    # A quantile that a sum of probabilities meets exactly is not missed by rounding.
    reached = below / below[..., -1:] >= (revenue - cost) / revenue - 1e-12
    return demand[reached.to(torch.uint8).argmax(-1)]


def _check_prices(cost: float, revenue: float) -> None:
    check_positive("cost", cost)
    check_positive("revenue", revenue)
    if not revenue > cost:
        raise ValueError(f"revenue must exceed cost, got {revenue} and {cost}")

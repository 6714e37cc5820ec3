"""Markets of single items: equilibrium prices, choices by what is shown of the items, and what congestion costs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pullback.core.checks import (
    check_broadcast,
    check_finite,
    check_floating,
    check_positive,
    check_range,
    check_same_dtype,
    check_scalar,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.transport import assignment

__all__ = ["Market", "congestion", "equilibrium_prices", "welfare_proxy"]


def equilibrium_prices(values: Float[Tensor, "*batch n m"], *, position: float = 0.5) -> Float[Tensor, "*batch m"]:
    r"""Return competitive equilibrium prices of ``m`` single items for ``n`` consumers who want one each.

    At such prices every consumer gets an item that he likes best, ``v_ij - p_j``, or none where nothing is worth its
    price, and an item that nobody gets costs nothing: the duals of the assignment of the greatest total value. Where it
    gives item ``s`` to consumer ``i``, ``p_s - p_j <= v_is - v_ij`` and ``0 <= p_s <= v_is``. From these bounds follow
    the tight ones ``p_k - p_j <= D_jk``, by shortest paths, with place 0 for none at price 0:

    ==========  ====================================================================================================
    least       ``p_k = -D_k0``: all items are as cheap as they can be, at once
    greatest    ``p_k = D_0k``
    centre      the mean over ``j`` of the prices ``D_jk - D_j0`` and ``D_0j - D_kj``
    ==========  ====================================================================================================

    At the ends, and on the line between them, consumers may like two items equally. Not so at the centre, if that can
    be avoided: whoever chooses freely there gets what he wants, and the total is the greatest.

    Args:
        values: ``[*batch, n, m]`` what an item is worth to a consumer; a negative one is as good as 0.
        position: in [0, 1], from the least prices (0, best for consumers) over the centre (1/2) to the greatest (1).

    Returns:
        ``[*batch, m]`` prices >= 0 in the unit of the values; differentiable, piecewise linear.

    Raises:
        TypeError: ``values`` is no floating tensor.
        ValueError: ``values`` has fewer than two dimensions, no consumer or no item, or is not finite; ``position`` is
            out of range.

    Example:
        >>> values = torch.tensor([[5.0, 2.0], [4.0, 3.0]])
        >>> equilibrium_prices(values, position=0.0), equilibrium_prices(values, position=1.0)
        (tensor([1., 0.]), tensor([5., 3.]))

    References:
        Shapley, Shubik (1971), The assignment game I: the core. Demange, Gale, Sotomayor (1986), Multi-item auctions.
    """
    if check_floating("values", values).ndim < 2 or 0 in values.shape[-2:]:
        raise ValueError(f"values must have shape (..., consumers, items), at least 1 each, got {tuple(values.shape)}")
    check_range("position", position, 0, 1)
    if can_look(values):
        check_finite("values", values)
    worth = (values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).relu()
    _, matched = _greatest(worth)
    own = (matched * worth).sum(-2)  # of the items, to whom gets them
    taken, served = matched.sum(-2) > 0, matched.sum(-1) > 0
    # farthest[j, k] is the bound of p_k - p_j; the last place is none
    between = torch.where(taken.unsqueeze(-2), own.unsqueeze(-2) - (matched.mT @ worth).mT, torch.inf)
    refused = -torch.where(served.unsqueeze(-1), 0.0, worth).amax(-2)
    farthest = torch.cat([between, own.unsqueeze(-2)], -2)
    farthest = torch.cat([farthest, torch.cat([refused, torch.zeros_like(refused[..., :1])], -1).unsqueeze(-1)], -1)
    for k in range(farthest.shape[-1]):  # shortest paths (Floyd, Warshall)
        farthest = torch.minimum(farthest, farthest[..., :, k : k + 1] + farthest[..., k : k + 1, :])
    least, greatest = -farthest[..., :-1, -1], farthest[..., -1, :-1]
    upwards = (farthest - farthest[..., -1:])[..., :-1].mean(-2)
    downwards = (farthest[..., -1:, :] - farthest)[..., :-1, :].mean(-1)
    centre = (upwards + downwards) / 2
    if position < 0.5:
        return torch.lerp(least, centre, 2 * position).relu().to(values.dtype)
    return torch.lerp(centre, greatest, 2 * position - 1).relu().to(values.dtype)


def _greatest(worth: Tensor) -> tuple[Tensor, Tensor]:
    """Return the greatest total value ``[*batch]`` and who gets what ``[*batch, n, m]``."""
    found = assignment(worth.detach(), maximize=True)
    n, m = worth.shape[-2:]
    places = found.rows * m + found.columns
    matched = torch.zeros_like(worth).flatten(-2).scatter(-1, places, 1.0).unflatten(-1, (n, m))
    return (matched * worth).sum((-2, -1)), matched


def congestion(choices: Float[Tensor, "*batch n choices"]) -> Float[Tensor, "*batch m"]:
    r"""Return how many more consumers choose an item than can have it: ``max(0, sum_i y_ij - 1)``.

    Args:
        choices: ``[*batch, n, m + 1]`` a distribution of each consumer over the items and, last, none of them.

    Returns:
        ``[*batch, m]``; of choices that are soft, that of the expected numbers.

    Raises:
        TypeError: ``choices`` is no floating tensor.
        ValueError: ``choices`` has fewer than two dimensions or none of them is an item.

    Example:
        >>> congestion(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
        tensor([1., 0.])

    References:
        Nahum, Noti, Parkes, Rosenfeld (2024), Decongestion by representation, section 3.
    """
    return (_check_choices(choices)[..., :-1].sum(-2) - 1).relu()


def welfare_proxy(
    choices: Float[Tensor, "*#batch n choices"], prices: Float[Tensor, "*#batch m"], *, tradeoff: float = 0.5
) -> Float[Tensor, "*batch"]:
    r"""Return a score of choices that knows prices alone, and rises with the welfare where values are hidden.

    .. math::

        (1 - a) \sum_{ij} y_{ij} p_j - a \sum_j \max(0, \textstyle\sum_i y_{ij} - 1) - a \sum_i y_{i0}

    Who chooses an item thinks it worth its price at least; who finds it taken, or chooses none, gets nothing.

    Args:
        choices: ``[*#batch, n, m + 1]`` a distribution of each consumer over the items and, last, none of them.
        prices: ``[*#batch, m]`` >= 0, broadcast with the choices, in units in which values are at most about 1.
        tradeoff: ``a`` in [0, 1]: 0 counts what is selected alone, 1 what is congested and not chosen alone.

    Returns:
        ``[*batch]``, differentiable in both.

    Raises:
        TypeError: an argument is no floating tensor, or the dtypes differ.
        ValueError: the shapes do not fit, a price is negative or not finite, ``tradeoff`` is out of range.

    Example:
        >>> welfare_proxy(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), torch.tensor([0.5, 0.5]))
        tensor(0.)

    References:
        Nahum, Noti, Parkes, Rosenfeld (2024), Decongestion by representation, equation 8.
    """
    _check_choices(choices)
    check_floating("prices", prices)
    check_same_dtype(choices=choices, prices=prices)
    check_range("tradeoff", tradeoff, 0, 1)
    if not prices.ndim or prices.shape[-1] != choices.shape[-1] - 1:
        raise ValueError(f"prices must have shape (..., {choices.shape[-1] - 1}), got {tuple(prices.shape)}")
    check_broadcast(choices=tuple(choices.shape[:-2]), prices=tuple(prices.shape[:-1]))
    _check_prices(prices)
    demand = choices[..., :-1].sum(-2)
    lost = congestion(choices).sum(-1) + choices[..., -1].sum(-1)
    return (1 - tradeoff) * (demand * prices).sum(-1) - tradeoff * lost


@dataclass(frozen=True)
class Market:
    r"""Single items at given prices, and consumers who see a part of their features and choose one each.

    Consumer ``i`` values item ``j`` at ``v_ij = b_i . x_j``. Shown the features of a mask ``z`` in ``{0, 1}^d`` he
    chooses the item of the greatest ``b_i . (z * x_j) - p_j``, or none where that is not above 0. An item that several
    choose goes to one of them by a fair lot; the others get none. The welfare is the sum of the values ``v_ij``, all
    features counted, of what is allocated; prices are transfers.

    Attributes:
        features: ``[m, d]`` of the items, floating.
        prices: ``[*#batch, m]`` >= 0, one row a market.
        preferences: ``[*#batch, n, d]`` the ``b_i`` of its consumers, broadcast with the prices.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: the shapes do not fit, or a price is negative or not finite.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> market = Market(features, torch.tensor([0.5, 0.5]), torch.tensor([[3.0, 2.0], [3.0, 1.0]]))
        >>> masks = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
        >>> market.welfare(masks)  # both want the first, of which one gets 3; both want the second
        tensor([3.0000, 3.0000, 1.5000])

    References:
        Nahum, Noti, Parkes, Rosenfeld (2024), Decongestion by representation, section 3.
    """

    features: Float[Tensor, "m d"]
    prices: Float[Tensor, "*#batch m"]
    preferences: Float[Tensor, "*#batch n d"]

    def __post_init__(self) -> None:
        for name in ("features", "prices", "preferences"):
            check_floating(name, getattr(self, name))
        check_same_dtype(features=self.features, prices=self.prices, preferences=self.preferences)
        if self.features.ndim != 2:
            raise ValueError(f"features must have shape (items, d), got {tuple(self.features.shape)}")
        m, d = self.features.shape
        if self.preferences.ndim < 2 or self.preferences.shape[-1] != d:
            raise ValueError(f"preferences must have shape (..., consumers, {d}), got {tuple(self.preferences.shape)}")
        if not self.prices.ndim or self.prices.shape[-1] != m:
            raise ValueError(f"prices must have shape (..., {m}), got {tuple(self.prices.shape)}")
        check_broadcast(preferences=tuple(self.preferences.shape[:-2]), prices=tuple(self.prices.shape[:-1]))
        _check_prices(self.prices)

    def values(self, mask: Float[Tensor, "*#batch d"] | None = None) -> Float[Tensor, "*batch n m"]:
        """Return what items are worth to consumers, or seem to be worth under a mask for each market.

        Args:
            mask: ``[*#batch, d]``, broadcast with the markets; ``masks[:, None]`` tries each mask in each market.
        """
        if mask is None:
            return self.preferences @ self.features.T
        d = self.features.shape[1]
        if not check_floating("mask", mask).ndim or mask.shape[-1] != d:
            raise ValueError(f"mask must have shape (..., {d}), got {tuple(mask.shape)}")
        check_same_dtype(mask=mask, preferences=self.preferences)
        markets = torch.broadcast_shapes(self.preferences.shape[:-2], self.prices.shape[:-1])
        check_broadcast(mask=tuple(mask.shape[:-1]), markets=tuple(markets))
        return (self.preferences * mask.unsqueeze(-2)) @ self.features.T

    def choices(
        self, mask: Float[Tensor, "*#batch d"] | None = None, *, temperature: Scalar = 0.0
    ) -> Float[Tensor, "*batch n choices"]:
        """Return what consumers choose under masks: zeros and ones, or a softmax of what they seem to gain.

        Args:
            mask: ``[*#batch, d]``, as for :meth:`values`.
            temperature: >= 0 in the unit of the values; 0 is the choice itself, without gradient.

        Returns:
            ``[*batch, n, m + 1]``, the last of them none.
        """
        gains = self.values(mask) - self.prices.unsqueeze(-2)
        alternatives = torch.cat([gains, torch.zeros_like(gains[..., :1])], -1)
        if check_scalar("temperature", temperature, zero=True) == 0:
            best = torch.where(gains.amax(-1) > 0, gains.argmax(-1), gains.shape[-1])
            return torch.nn.functional.one_hot(best, alternatives.shape[-1]).to(gains.dtype)
        highest = alternatives.detach().amax(-1, keepdim=True)
        return torch.softmax((alternatives - highest) / temperature, -1)

    def allocate(
        self, choices: Float[Tensor, "*batch n choices"], generator: torch.Generator
    ) -> Int[Tensor, "*batch n"]:
        """Draw who gets what he has chosen: the index of the item, -1 for none.

        Args:
            choices: ``[*batch, n, m + 1]`` zeros and ones, as of :meth:`choices`.
            generator: of the lots.
        """
        wanted = _check_choices(choices)[..., :-1]
        device = drawing_device(generator, wanted)
        lots = torch.rand(wanted.shape[:-1], generator=generator, device=device, dtype=torch.float64).to(wanted.device)
        drawn = torch.where(wanted > 0, lots.unsqueeze(-1), -1.0)
        wins = (drawn == drawn.amax(-2, keepdim=True)) & (wanted > 0)
        return torch.where(wins.any(-1), wins.int().argmax(-1), -1)

    def welfare(self, mask: Float[Tensor, "*#batch d"] | None = None) -> Float[Tensor, "*batch"]:
        """Return the expected welfare of each market under masks, over all lots."""
        wanted = self.choices(mask)[..., :-1]
        shares = wanted / wanted.sum(-2, keepdim=True).clamp(min=1)
        return (shares * self.values()).sum((-2, -1))

    def optimum(self) -> Float[Tensor, "*batch"]:
        """Return the greatest welfare of any allocation."""
        return _greatest(self.values().relu())[0]


def _check_choices(choices: Tensor) -> Tensor:
    if check_floating("choices", choices).ndim < 2 or choices.shape[-1] < 2:
        raise ValueError(f"choices must have shape (..., consumers, items + 1), got {tuple(choices.shape)}")
    return choices


def _check_prices(prices: Tensor) -> None:
    if can_look(prices) and prices.numel():
        check_positive("prices", prices, zero=True)

"""Auctions as games: values are drawn, bid functions meet, and at an equilibrium nobody gains by another bid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.markets.auctions import Outcome, first_price

__all__ = ["AuctionGame", "BestResponseGap", "BidNetwork", "best_response_gap", "first_price_equilibrium"]

Strategy = Callable[[Tensor], Tensor]
"""A bid function: values ``[*batch]`` to bids ``[*batch]``."""


@dataclass(frozen=True)
class AuctionGame:
    r"""An auction in which each bidder knows what the item is worth to himself, and of the others how that is drawn.

    Values ``v`` come from the prior, bidder ``i`` bids ``b_i = strategy_i(v_i)``, and with the mechanism's allocation
    ``x`` and payments ``p`` his utility is ``u_i = x_i(b) v_i - p_i(b)``.

    Attributes:
        prior: takes how many and a generator to values ``[count, bidders]`` >= 0.
        mechanism: takes bids ``[*batch, bidders]`` and ``temperature=`` to an :class:`Outcome`, such as
            :func:`first_price`.
        bidders: >= 1.

    Raises:
        TypeError: ``prior`` or ``mechanism`` cannot be called, or ``bidders`` is no integer.
        ValueError: ``bidders`` < 1.

    Example:
        >>> game = AuctionGame(lambda count, generator: torch.rand(count, 2, generator=generator))
        >>> game.utilities(lambda v: v / 2, torch.tensor([[0.5, 0.75]]))
        tensor([[0.0000, 0.3750]])

    References:
        Krishna (2009), Auction theory, chapter 2.
    """

    prior: Callable[[int, torch.Generator], Tensor]
    mechanism: Callable[..., Outcome] = first_price
    bidders: int = 2

    def __post_init__(self) -> None:
        check_callable("prior", self.prior)
        check_callable("mechanism", self.mechanism)
        check_integer("bidders", self.bidders, 1)

    def sample(self, count: int, generator: torch.Generator) -> Float[Tensor, "count bidders"]:
        """Draw values of all bidders.

        Raises:
            TypeError: the prior returns no floating tensor.
            ValueError: the prior returns another shape.
        """
        check_integer("count", count, 1)
        values = check_floating("values of the prior", self.prior(count, generator))
        if values.shape != (count, self.bidders):
            raise ValueError(f"prior must return shape {(count, self.bidders)}, got {tuple(values.shape)}")
        return values

    def bids(
        self,
        strategies: Strategy | Sequence[Strategy],
        values: Float[Tensor, "*batch bidders"],
        *,
        learner: int | None = None,
    ) -> Float[Tensor, "*batch bidders"]:
        """Return the bids of all; where there is a ``learner``, only his have a gradient.

        Args:
            strategies: one for all bidders or a sequence of one for each.
            values: ``[*batch, bidders]``.
            learner: index of a bidder.
        """
        if check_floating("values", values).ndim < 1 or values.shape[-1] != self.bidders:
            raise ValueError(f"values must have shape (..., {self.bidders}), got {tuple(values.shape)}")
        if learner is not None:
            check_integer("learner", learner, 0, self.bidders - 1)
        each = each_strategy(strategies, self.bidders)
        columns = []
        for i, strategy in enumerate(each):
            with torch.set_grad_enabled(torch.is_grad_enabled() and learner in (None, i)):
                bid = check_floating("bids of a strategy", strategy(values[..., i]))
            if bid.shape != values.shape[:-1]:
                raise ValueError(f"strategy must return {tuple(values.shape[:-1])}, got {tuple(bid.shape)}")
            columns.append(bid)
        return torch.stack(columns, -1)

    def utilities(
        self,
        strategies: Strategy | Sequence[Strategy],
        values: Float[Tensor, "*batch bidders"],
        *,
        temperature: Scalar = 0.0,
        learner: int | None = None,
    ) -> Float[Tensor, "*batch bidders"]:
        """Return what each bidder gains.

        Args:
            strategies: one for all bidders or a sequence of one for each.
            values: ``[*batch, bidders]``.
            temperature: >= 0 of the mechanism; 0 is the auction itself.
            learner: index of the only bidder whose bids have a gradient; ``None`` for all.

        Returns:
            ``[*batch, bidders]`` in the unit of the values.
        """
        outcome = self.mechanism(self.bids(strategies, values, learner=learner), temperature=temperature)
        return outcome.allocation * values - outcome.payment


class BestResponseGap(NamedTuple):
    """How much a bidder can gain by another bid.

    Attributes:
        gap: mean over his values of what the best bid gains more than his own; 0 at an equilibrium.
        values: ``[v]`` his values, drawn from the prior.
        bids: ``[v]`` what he bids.
        best: ``[v]`` the best bids of the grid, or his own where none is better.
        utility: mean over his values of what he gains now.
    """

    gap: float
    values: Float[Tensor, " v"]
    bids: Float[Tensor, " v"]
    best: Float[Tensor, " v"]
    utility: float


def best_response_gap(
    game: AuctionGame,
    strategies: Strategy | Sequence[Strategy],
    *,
    bidder: int = 0,
    samples: int = 4096,
    grid: int = 256,
    highest: float | None = None,
    generator: torch.Generator,
) -> BestResponseGap:
    r"""Measure how far strategies are from an equilibrium: what one bidder gains by his best answer to the others.

    In the hard auction, with the others' bids ``b_{-i}`` drawn ``samples`` times, a bid ``b`` of value ``v`` is worth
    ``U(b, v) = v E x_i(b, b_{-i}) - E p_i(b, b_{-i})``; the gap is ``E_v [max_b U(b, v) - U(beta_i(v), v)]`` with ``b``
    from a grid on ``[0, highest]`` and the bids in use. Values of different bidders are taken to be independent. The
    maximum of noisy means is a little too large: by less than the standard error of a mean, ``O(samples^-1/2)``.

    Args:
        game: with a mechanism for one bid each.
        strategies: one for all bidders or a sequence of one for each.
        bidder: whose gap.
        samples: draws of the others' values, >= 1.
        grid: bids that are tried, >= 2, and values of the bidder.
        highest: the largest bid that is tried; ``None``: the largest value or bid that was drawn.
        generator: of the values.

    Returns:
        :class:`BestResponseGap`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is out of range.

    Example:
        >>> game = AuctionGame(lambda count, generator: torch.rand(count, 2, generator=generator))
        >>> draw = torch.Generator().manual_seed(0)
        >>> best_response_gap(game, lambda v: v / 2, generator=draw).gap < 0.003  # the equilibrium
        True
        >>> round(best_response_gap(game, lambda v: v, generator=draw).gap, 2)  # v^2 / 4 in the mean
        0.08

    References:
        Bichler, Fichtl, Heidekrueger, Kohring, Sutterer (2021), Learning equilibria in symmetric auction games using
        artificial neural networks, equation 5.
    """
    if not isinstance(game, AuctionGame):
        raise TypeError(f"game must be an AuctionGame, got {type(game).__name__}")
    check_integer("bidder", bidder, 0, game.bidders - 1)
    check_integer("samples", samples, 1)
    check_integer("grid", grid, 2)
    if highest is not None:
        check_positive("highest", highest)
    with torch.no_grad():
        others = game.bids(strategies, game.sample(samples, generator))
        values = game.sample(grid, generator)[:, bidder].sort().values
        bids = each_strategy(strategies, game.bidders)[bidder](values)
        top = highest if highest is not None else float(torch.stack([values.max(), bids.max(), others.max()]).max())
        tried = torch.linspace(0, top, grid, dtype=values.dtype, device=values.device)
        shares, prices = [], []
        for part in torch.cat([tried, bids]).split(max(1, 2**20 // samples)):
            profiles = others.expand(len(part), *others.shape).clone()
            profiles[..., bidder] = part[:, None]
            outcome = game.mechanism(profiles, temperature=0.0)
            shares.append(outcome.allocation[..., bidder].mean(1))
            prices.append(outcome.payment[..., bidder].mean(1))
        share, price = torch.cat(shares), torch.cat(prices)
        now = values * share[grid:] - price[grid:]
        best = (values[:, None] * share[:grid] - price[:grid]).max(1)
        better = best.values > now
        gap = torch.where(better, best.values - now, 0).mean()
    return BestResponseGap(
        float(gap), values, bids, torch.where(better, tried[best.indices], bids), utility=float(now.mean())
    )


def first_price_equilibrium(
    cdf: Callable[[Tensor], Tensor], values: Float[Tensor, "*shape"], bidders: int, *, points: int = 1025
) -> Float[Tensor, "*shape"]:
    r"""Return the symmetric equilibrium bids of a first-price auction with independent values.

    ``b(v) = v - int_0^v F(t)^(n-1) dt / F(v)^(n-1)``, the expected highest value of the others given that it is below
    ``v``; by the trapezoidal rule. Where nobody has a lower value, ``b(v) = v``.

    Args:
        cdf: ``F``, the distribution function of a value, elementwise, on values >= 0.
        values: ``[*shape]`` >= 0.
        bidders: ``n >= 2``.
        points: of the rule, >= 2; the error falls with their square.

    Returns:
        ``[*shape]`` bids, in the unit of the values, differentiable.

    Raises:
        TypeError: ``cdf`` cannot be called or returns no floating tensor, ``values`` is no floating tensor.
        ValueError: ``bidders`` or ``points`` is out of range, a value is negative or not finite (not checked under
            ``torch.func`` transforms and ``torch.compile``), or ``cdf`` changes the shape.

    Example:
        >>> first_price_equilibrium(lambda v: v, torch.tensor([0.2, 0.8]), 4)  # (n - 1) / n v
        tensor([0.1500, 0.6000])

    References:
        Krishna (2009), Auction theory, proposition 2.2.
    """
    check_callable("cdf", cdf)
    check_floating("values", values)
    check_integer("bidders", bidders, 2)
    check_integer("points", points, 2)
    if can_look(values) and values.numel():
        check_positive("values", values, zero=True)
    wide = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    fractions = torch.linspace(0, 1, points, dtype=wide.dtype, device=wide.device)
    below = check_floating("result of cdf", cdf(wide.unsqueeze(-1) * fractions))
    if below.shape != (*values.shape, points):
        raise ValueError(f"cdf must return the shape of its argument, got {tuple(below.shape)}")
    here = below[..., -1:]
    ratio = torch.where(here > 0, below / torch.where(here > 0, here, 1.0), 0.0) ** (bidders - 1)
    return (wide * (1 - torch.trapezoid(ratio, fractions, dim=-1))).to(values.dtype)


class BidNetwork(nn.Module):
    """A bid function as a small network: values through layers of SELUs to a bid > 0 by a softplus.

    Args:
        hidden: units of each hidden layer, >= 1 each.
        generator: of the initial weights; torch's default one if ``None``.

    Raises:
        TypeError: a number of units is no integer.
        ValueError: a number of units is < 1.

    Example:
        >>> strategy = BidNetwork(generator=torch.Generator().manual_seed(0))
        >>> strategy(torch.rand(5, 3)).shape
        torch.Size([5, 3])

    References:
        Bichler et al. (2021), Learning equilibria in symmetric auction games using artificial neural networks, methods:
        two layers of ten.
    """

    def __init__(self, hidden: Sequence[int] = (10, 10), *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        sizes = [1, *(check_integer("hidden", units, 1) for units in hidden), 1]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layer = nn.utils.skip_init(nn.Linear, before, after)
            with torch.no_grad():
                for parameter in (layer.weight, layer.bias):
                    parameter.uniform_(-(before**-0.5), before**-0.5, generator=generator)
            layers += [layer, nn.SELU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, values: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return bids > 0 of values, in the same unit."""
        return nn.functional.softplus(self.layers(values.unsqueeze(-1))).squeeze(-1)


def each_strategy(strategies: Any, bidders: int) -> list[Strategy]:
    """Return one strategy a bidder.

    Raises:
        TypeError: a strategy cannot be called.
        ValueError: there are more or fewer than bidders.
    """
    each = list(strategies) if isinstance(strategies, Sequence | nn.ModuleList) else [strategies] * bidders
    for strategy in each:
        check_callable("strategies", strategy)
    if len(each) != bidders:
        raise ValueError(f"strategies must be one or {bidders}, got {len(each)}")
    return each

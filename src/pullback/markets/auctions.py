"""Sealed-bid auctions: who gets the item and what they pay, hard or with a smoothed allocation that has a gradient."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_floating, check_integer, check_positive, check_scalar
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.discrete import soft_topk

__all__ = ["Outcome", "first_price", "second_price", "smooth_allocation", "uniform_price"]


class Outcome(NamedTuple):
    """What an auction decides.

    Attributes:
        allocation: ``[*batch, bidders]`` the share of each bidder, or the probability to win.
        payment: ``[*batch, bidders]`` what each pays in expectation, in the unit of the bids.
    """

    allocation: Float[Tensor, "*batch n"]
    payment: Float[Tensor, "*batch n"]


def smooth_allocation(
    bids: Float[Tensor, "*batch n"], *, temperature: Scalar = 0.01, hard: bool = False
) -> Float[Tensor, "*batch n"]:
    r"""Return the shares ``softmax(bids / temperature)`` of one item; at temperature 0 the highest bid wins it.

    The hard allocation is a step function of the bids: a gradient through it sees what a bid costs and not what it
    wins, and lowers every bid to nothing. The smoothed one has a gradient of size ``1 / temperature`` where two bids
    are close, and gives up at most ``temperature * log(n)`` of the highest bid: ``sum_i x_i b_i >= max b - t log n``.

    Args:
        bids: ``[*batch, n]`` finite, >= 0, n >= 1.
        temperature: >= 0 in the unit of the bids, a number or a differentiable tensor without dimensions; 0 is the hard
            allocation with gradient 0.
        hard: return the hard allocation with the gradient of the smoothed one. Equal highest bids share the item, as if
            a fair lot decided between them.

    Returns:
        ``[*batch, n]`` in [0, 1], sums to 1 over the bidders.

    Raises:
        TypeError: ``bids`` is no floating tensor, or ``temperature`` no number.
        ValueError: a bid is negative or not finite (not checked under ``torch.func`` transforms and
            ``torch.compile``), there is no bidder, ``temperature`` is negative, not finite or has dimensions.

    Example:
        >>> smooth_allocation(torch.tensor([0.50, 0.51, 0.30])).mul(100).round().tolist()
        [27.0, 73.0, 0.0]
        >>> smooth_allocation(torch.tensor([0.5, 0.5, 0.3]), temperature=0.0)
        tensor([0.5000, 0.5000, 0.0000])

    References:
        Kohring, Pieroth, Bichler (2023), Enabling first-order gradient-based learning for equilibrium computation in
        markets, section 4.
    """
    _check_bids(bids)
    number = check_scalar("temperature", temperature, zero=True)
    wide = bids.float() if bids.dtype in (torch.float16, torch.bfloat16) else bids
    highest = wide.detach().amax(-1, keepdim=True)
    winners = (wide.detach() == highest).to(wide.dtype)
    shares = winners / winners.sum(-1, keepdim=True)
    if number is not None and number < 1024 * torch.finfo(wide.dtype).tiny:  # its inverse has no finite slope
        return replace_gradient(shares, torch.sign(wide)).to(bids.dtype)
    # What is far below the highest bid has no share at all; left out, it cannot overflow.
    scale = torch.as_tensor(temperature, dtype=wide.dtype, device=wide.device)
    gap = wide - highest
    near = gap.detach() > -750 * scale.detach()
    soft = torch.softmax((torch.where(near, gap, 0.0) / scale).masked_fill(~near, -torch.inf), -1)
    return (replace_gradient(shares, soft) if hard else soft).to(bids.dtype)


def first_price(bids: Float[Tensor, "*batch n"], *, temperature: Scalar = 0.0, hard: bool = False) -> Outcome:
    r"""Sell one item to the highest bid, at that bid: ``payment_i = x_i max_j b_j``.

    Smoothed, the shares ``x`` are those of :func:`smooth_allocation` and the price stays the hard one, shared by them.

    Args:
        bids: ``[*batch, n]`` finite, >= 0, n >= 1.
        temperature: >= 0, of the allocation; 0 is the auction itself.
        hard: the hard allocation with the gradient of the smoothed one.

    Returns:
        :class:`Outcome`.

    Raises:
        TypeError: as :func:`smooth_allocation`.
        ValueError: as :func:`smooth_allocation`.

    Example:
        >>> first_price(torch.tensor([0.2, 0.6, 0.5])).payment
        tensor([0.0000, 0.6000, 0.0000])

    References:
        Kohring, Pieroth, Bichler (2023), section 4. Krishna (2009), Auction theory, section 2.3.
    """
    shares = smooth_allocation(bids, temperature=temperature, hard=hard)
    return Outcome(shares, shares * bids.amax(-1, keepdim=True))


def second_price(bids: Float[Tensor, "*batch n"], *, temperature: Scalar = 0.0, hard: bool = False) -> Outcome:
    r"""Sell one item to the highest bid, at the second highest: bidding what it is worth is the best answer to all.

    Smoothed, the shares ``x`` are those of :func:`smooth_allocation` and the price stays the hard one, shared by them.

    Args:
        bids: ``[*batch, n]`` finite, >= 0, n >= 2.
        temperature: >= 0, of the allocation; 0 is the auction itself.
        hard: the hard allocation with the gradient of the smoothed one.

    Returns:
        :class:`Outcome`.

    Raises:
        TypeError: as :func:`smooth_allocation`.
        ValueError: as :func:`smooth_allocation`, or fewer than two bidders.

    Example:
        >>> second_price(torch.tensor([0.2, 0.6, 0.5])).payment
        tensor([0.0000, 0.5000, 0.0000])

    References:
        Vickrey (1961), Counterspeculation, auctions, and competitive sealed tenders. Kohring, Pieroth, Bichler (2023),
        section 4.
    """
    _check_bids(bids, least=2)
    shares = smooth_allocation(bids, temperature=temperature, hard=hard)
    return Outcome(shares, shares * bids.topk(2, -1).values[..., 1:])


def uniform_price(
    bids: Float[Tensor, "*batch n"], units: int, *, temperature: Scalar = 0.0, hard: bool = False
) -> Outcome:
    r"""Sell ``units`` equal items, one to each of the highest bids, all at the highest bid that loses.

    ``payment_i = x_i b_(units + 1)``, with the shares of :func:`~pullback.discrete.soft_topk`, a logistic function of
    the bid over a threshold, which sum to ``units``.

    Args:
        bids: ``[*batch, n]`` finite, >= 0, n > units.
        units: items for sale, >= 1.
        temperature: >= 0, of the allocation; 0 is the auction itself, in which the first of equal bids wins.
        hard: the hard allocation with the gradient of the smoothed one.

    Returns:
        :class:`Outcome`.

    Raises:
        TypeError: as :func:`smooth_allocation`, or ``units`` is no integer.
        ValueError: as :func:`smooth_allocation`, or ``units`` is out of range.

    Example:
        >>> uniform_price(torch.tensor([0.2, 0.6, 0.5]), 2).payment
        tensor([0.0000, 0.2000, 0.2000])

    References:
        Krishna (2009), Auction theory, section 12.2.
    """
    _check_bids(bids, least=2)
    check_integer("units", units, 1, bids.shape[-1] - 1)
    shares = soft_topk(bids, units, temperature=temperature, scale=None, hard=hard)
    return Outcome(shares, shares * bids.topk(units + 1, -1).values[..., units:])


def _check_bids(bids: Tensor, least: int = 1) -> None:
    if not check_floating("bids", bids).ndim or bids.shape[-1] < least:
        raise ValueError(f"bids must have shape (..., bidders), bidders >= {least}, got {tuple(bids.shape)}")
    if can_look(bids) and bids.numel():
        check_positive("bids", bids, zero=True)

"""Economic dispatch: which generators run, and how much, to meet a demand at the least cost."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_broadcast, check_floating, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.implicit.arguments import positive

__all__ = ["Dispatch", "economic_dispatch"]


class Dispatch(NamedTuple):
    """Set-points of generators.

    Attributes:
        power: ``[*batch, n]`` of each generator, in 0..capacity.
        price: ``[*batch]`` cost of the last unit of power, in cost per power.
        shortage: ``[*batch]`` >= 0, demand above all capacity.
    """

    power: Float[Tensor, "*batch n"]
    price: Float[Tensor, "*batch"]
    shortage: Float[Tensor, "*batch"]


def economic_dispatch(
    demand: Float[Tensor, "*#batch"],
    cost: Float[Tensor, "*#batch n"],
    capacity: Float[Tensor, "*#batch n"],
    *,
    curvature: float | Float[Tensor, "..."] = 0.0,
) -> Dispatch:
    r"""Return the powers that meet a demand at the least cost.

    .. math:: \min_g\ \sum_i c_i g_i + \tfrac{\gamma_i}{2} g_i^2 \quad
              \text{subject to}\ \sum_i g_i = \text{demand},\ 0 \le g_i \le \text{capacity}_i

    The linear programme (``curvature=0``) is the merit order: generators run from the cheapest upwards, and the last
    one takes up a change of the demand. With a curvature every generator below its capacity whose cost is under the
    price :math:`\lambda` runs at :math:`(\lambda - c_i) / \gamma_i`. Both are exact, in closed form once it is known
    who runs, and differentiable almost everywhere; powers of the linear programme do not depend on the costs.

    Args:
        demand: ``[*batch]`` power that is wanted, net of what costs nothing; where negative, nothing runs. Beyond all
            capacity everything runs and the rest is ``shortage``.
        cost: ``[*batch, n]`` or ``[n]`` of a unit of power.
        capacity: ``[*batch, n]`` or ``[n]``, >= 0.
        curvature: rise of a generator's cost with its power: 0, or > 0 for each of them, a number or a tensor that
            broadcasts against ``[*batch, n]``.

    Returns:
        :class:`Dispatch`.

    Raises:
        TypeError: an argument is no floating tensor, or dtypes differ.
        ValueError: shapes do not fit, there is no generator, a capacity is negative, a curvature is out of range.

    Example:
        >>> cost, capacity = torch.tensor([20.0, 10.0, 50.0]), torch.tensor([2.0, 3.0, 1.0])
        >>> economic_dispatch(torch.tensor(4.0), cost, capacity)
        Dispatch(power=tensor([1., 3., 0.]), price=tensor(20.), shortage=tensor(0.))

    References:
        Wood, Wollenberg, Sheble (2013), Power generation, operation and control, chapter 3.
    """
    for name, value in (("demand", demand), ("cost", cost), ("capacity", capacity)):
        check_floating(name, value)
        if name != "demand" and (not value.ndim or not value.shape[-1]):
            raise ValueError(f"{name} must have a last dimension of at least one generator, got {tuple(value.shape)}")
    check_same_dtype(demand=demand, cost=cost, capacity=capacity)
    shape = check_broadcast(
        **{"demand[..., None]": (*demand.shape, 1), "cost": tuple(cost.shape), "capacity": tuple(capacity.shape)}
    )
    c, room = cost.double().expand(shape), capacity.double().expand(shape)
    if can_look(capacity) and not bool((capacity >= 0).all()):
        raise ValueError(f"capacity must be >= 0 everywhere, got minimum {capacity.min().item()}")
    wanted = demand.double().expand(shape[:-1])
    total = room.sum(-1)
    met = torch.where(wanted > total, total, torch.where(wanted > 0, wanted, 0.0))
    shortage = torch.where(wanted > total, wanted - total, 0.0)
    if not isinstance(curvature, Tensor) and curvature == 0:
        power, price = _merit_order(met, c, room)
    else:
        power, price = _curved(met, c, room, positive("curvature", curvature, c, shape).expand(shape))
    return Dispatch(power.to(cost.dtype), price.to(cost.dtype), shortage.to(cost.dtype))


def _merit_order(met: Tensor, cost: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """Fill generators from the cheapest upwards; the price is that of the last one that runs."""
    order = cost.detach().argsort(dim=-1, stable=True)
    there = room.gather(-1, order)
    left = met[..., None] - (there.cumsum(-1) - there)
    filled = torch.where(left > there, there, torch.where(left > 0, left, 0.0))  # the last one takes up a change
    places = torch.arange(cost.shape[-1], device=cost.device)
    last = torch.where(filled.detach() > 0, places, 0).amax(-1, keepdim=True)
    price = cost.gather(-1, order).gather(-1, last)[..., 0]
    return filled.gather(-1, order.argsort(-1)), price


def _curved(met: Tensor, cost: Tensor, room: Tensor, rise: Tensor) -> tuple[Tensor, Tensor]:
    """Find the piece of the supply curve, linear in the price between 2n bends, on which it is the demand."""
    full = cost + rise * room
    bends = torch.cat([cost, full], -1).detach()[..., :, None]
    low, high, slope = (x.detach()[..., None, :] for x in (cost, full, rise))
    supply = ((torch.minimum(bends, high) - low).clamp(min=0) / slope).sum(-1)
    reached = supply < met.detach()[..., None] * (1 - 1e-14)  # where a piece ends it is the one below
    bend = torch.where(reached, bends[..., 0], -torch.inf).amax(-1, keepdim=True)
    bend = torch.maximum(bend, cost.detach().amin(-1, keepdim=True))
    filled = full.detach() <= bend
    part = (cost.detach() <= bend) & ~filled
    weight = torch.where(part, 1 / rise, 0.0)
    need = met - torch.where(filled, room, 0.0).sum(-1)
    flat = ~part.any(-1)  # no generator takes up a change: all run in full
    price = (need + (weight * cost).sum(-1)) / torch.where(flat, 1.0, weight.sum(-1))
    ending = torch.where(full.detach() == bend, full, 0.0).sum(-1) / (full.detach() == bend).sum(-1).clamp(min=1)
    price = torch.where(flat, ending, price)
    power = torch.where(part, (price[..., None] - cost) / rise, torch.where(filled, room, 0.0))
    return power, price

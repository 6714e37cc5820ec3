"""Rectified flows: from a coupling to one that costs less, by the flow of its mean velocity."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import func, nn

from pullback.core.checks import check_callable, check_floating, check_integer
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import transform_running
from pullback.dynamics import odeint
from pullback.transport.convex_costs import ConvexCost, PowerCost
from pullback.transport.interpolants import Interpolant, interpolated_at, linear_interpolant, points_of

__all__ = ["Coupling", "PotentialVelocity", "conjugate_flow_loss", "rectify", "straightness"]

Potential = Callable[[Tensor, Tensor], Tensor]
"""``f(t, x)`` from times ``[*batch, 1]`` and points ``[*batch, d]`` to ``[*batch]``, each point by itself."""
Velocity = Callable[[Tensor, Tensor], Tensor]
"""``v(t, x)`` from times ``[*batch, 1]`` and points ``[*batch, d]`` to ``[*batch, d]``, each point by itself."""


class Coupling(NamedTuple):
    """Pairs of points.

    Attributes:
        z0: ``[*batch, d]`` the points at time 0.
        z1: ``[*batch, d]`` where the flow carries them by time 1.
    """

    z0: Float[Tensor, "*batch d"]
    z1: Float[Tensor, "*batch d"]


class PotentialVelocity(nn.Module):
    r"""The velocity :math:`v(t,x)=\nabla c^*(\nabla_xf(t,x))` of a potential f: that of a flow optimal for a cost c.

    For :math:`c(z)=|z|^2/2` it is the gradient of f. Train it with :func:`conjugate_flow_loss`, follow it with
    :func:`rectify`; it is a field of :func:`pullback.dynamics.odeint`.

    Args:
        potential: ``f(t, x)`` from times ``[*batch, 1, ...]`` and points ``[*batch, *event]`` to ``[*batch]``, each
            point by itself; smooth: a network without kinks.
        cost: with ``conjugate_gradient``, such as :class:`PowerCost`.
        event_ndim: how many dimensions are one point: 1 for vectors, 3 for images.

    Raises:
        TypeError: ``potential`` is no module and cannot be called.
        ValueError: ``cost`` has no conjugate; the potential does not return one number a point.

    Example:
        >>> velocity = PotentialVelocity(lambda t, x: t.squeeze(-1) * x.square().sum(-1) / 2)
        >>> velocity(torch.tensor([[0.5]]), torch.tensor([[1.0, 2.0]])).detach()
        tensor([[0.5000, 1.0000]])

    References:
        Liu (2022), Rectified flow: a marginal preserving approach to optimal transport, equation 9.
    """

    def __init__(
        self, potential: nn.Module | Potential, cost: ConvexCost | None = None, *, event_ndim: int = 1
    ) -> None:
        super().__init__()
        check_callable("potential", potential)
        self.potential = potential
        self.cost = _checked_cost(cost)
        self.event_ndim = check_integer("event_ndim", event_ndim, 1)

    def forward(self, t: Float[Tensor, "..."], x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the velocity at times ``[*batch, 1, ...]``, or one time for all, and points ``[*batch, *event]``."""
        slope = _slope(self.potential, t, x, self.event_ndim)
        return self.cost.conjugate_gradient(points_of(slope, self.event_ndim)).reshape(x.shape)


def conjugate_flow_loss(
    potential: nn.Module | Potential,
    x0: Float[Tensor, "*shape"],
    x1: Float[Tensor, "*shape"],
    *,
    cost: ConvexCost | None = None,
    t: Float[Tensor, "..."] | None = None,
    interpolant: Interpolant = linear_interpolant,
    event_ndim: int = 1,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    r"""Return :math:`E\,[c^*(\nabla f_t(x_t))-\dot x_t\cdot\nabla f_t(x_t)+c(\dot x_t)]`, the c-rectified objective.

    It is >= 0, and 0 where :math:`\dot x_t=\nabla c^*(\nabla f_t(x_t))` for all pairs: only for a coupling that is
    optimal for c, if the distributions have no gaps (Hertrich, Chambolle, Delon, 2025). The flow of its minimiser keeps
    the marginals and costs no more than the coupling did, under c. For
    :math:`c(z)=|z|^2/2` it is :math:`E|\nabla f_t(x_t)-\dot x_t|^2/2`.

    Args:
        potential: ``f(t, x)``, see :class:`PotentialVelocity`.
        x0: ``[*batch, *event]`` points.
        x1: ``[*batch, *event]`` their partners.
        cost: of a displacement, strictly convex, with its conjugate; ``None``: ``PowerCost(2)``.
        t: times in [0, 1], see :func:`linear_interpolant`; ``None``: drawn uniformly, one for each pair.
        interpolant: the path between partners; the theory is that of straight ones.
        event_ndim: how many dimensions are one point.
        generator: source of the times.

    Returns:
        A scalar >= 0, up to rounding where p is not 2.

    Raises:
        TypeError: ``potential`` or ``interpolant`` cannot be called, a point is no floating tensor.
        ValueError: ``cost`` has no conjugate, ``x0`` and ``x1`` differ in shape or are empty, ``t`` does not fit or
            lies outside [0, 1], the potential does not return one number a point.

    Example:
        >>> x0 = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> shift = torch.tensor([1.0, 2.0])
        >>> conjugate_flow_loss(lambda t, x: x @ shift, x0, x0 + shift).item() < 1e-10  # a translation is optimal
        True

    References:
        Liu (2022), Rectified flow: a marginal preserving approach to optimal transport, equation 11. Hertrich,
        Chambolle, Delon (2025), On the relation between rectified flows and optimal transport.
    """
    check_callable("potential", potential)
    cost = _checked_cost(cost)
    t, (x, moves) = interpolated_at(x0, x1, t, interpolant, event_ndim, generator)
    slope, moves = (points_of(part, event_ndim) for part in (_slope(potential, t, x, event_ndim), moves))
    if isinstance(cost, PowerCost) and cost.p == 2:
        return (slope - moves).square().sum(-1).mean() / 2
    return (cost.conjugate(slope) - (moves * slope).sum(-1) + cost.value(moves)).mean()


def rectify(
    velocity: nn.Module | Velocity,
    x0: Float[Tensor, "*shape"],
    *,
    steps: int | None = 50,
    method: str = "rk4",
    reverse: bool = False,
    event_ndim: int = 1,
    adjoint: str = "checkpoint",
) -> Coupling:
    r"""Return the coupling :math:`(Z_0,Z_1)` of the flow :math:`\dot Z_t=v(t,Z_t)`.

    With a velocity that minimises :func:`flow_matching_loss` for a coupling, it has the marginals of that coupling and
    no higher cost, for every convex cost. Doing this again, with the new coupling, straightens the paths.

    Args:
        velocity: ``v(t, x)``, a field of :func:`pullback.dynamics.odeint`.
        x0: ``[*batch, *event]`` points to start from.
        steps: of equal length from 0 to 1; ``None``: the method chooses them (adaptive methods).
        method, adjoint: of :func:`pullback.dynamics.odeint`.
        reverse: the points are those at time 1; the flow is followed back to time 0.
        event_ndim: how many dimensions are one point.

    Returns:
        :class:`Coupling`, differentiable in the points and in the parameters of the velocity.

    Raises:
        TypeError: ``velocity`` cannot be called, ``x0`` is no floating tensor.
        ValueError: an option is out of range; the velocity has another shape.
        ConvergenceError: the flow could not be followed.

    Example:
        >>> turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> z0, z1 = rectify(lambda t, x: x @ turn * torch.pi / 2, torch.tensor([[1.0, 0.0]]))
        >>> torch.allclose(z1, torch.tensor([[0.0, 1.0]]), atol=1e-4)
        True

    References:
        Liu, Gong, Liu (2023), Flow straight and fast, algorithm 1.
    """
    way = _followed(velocity, x0, [1.0, 0.0] if reverse else [0.0, 1.0], steps, method, event_ndim, adjoint)
    return Coupling(way[-1], way[0]) if reverse else Coupling(way[0], way[-1])


def straightness(
    velocity: nn.Module | Velocity,
    x0: Float[Tensor, "*shape"],
    *,
    steps: int = 50,
    method: str = "rk4",
    event_ndim: int = 1,
) -> Float[Tensor, ""]:
    r"""Return :math:`\int_0^1E\,|v(t,Z_t)-(Z_1-Z_0)|^2\,dt` along the flow: 0 where all paths are straight.

    One Euler step then is exact. The integral is taken by Simpson's rule at the ends and the middles of the steps.

    Args:
        velocity: ``v(t, x)``, a field of :func:`pullback.dynamics.odeint`.
        x0: ``[*batch, *event]`` points to start from, at least one.
        steps: of equal length, >= 1.
        method: of :func:`pullback.dynamics.odeint`.
        event_ndim: how many dimensions are one point; the square is summed over them.

    Returns:
        A scalar >= 0, the mean over the points; in units of squared length.

    Raises:
        TypeError, ValueError, ConvergenceError: as :func:`rectify`.

    Example:
        >>> straightness(lambda t, x: 2 * t.expand_as(x), torch.zeros(1, 1))  # the integral of (2 t - 1)^2
        tensor(0.3333)

    References:
        Liu, Gong, Liu (2023), Flow straight and fast, section 2.2.
    """
    check_integer("steps", steps, 1)
    check_floating("x0", x0)
    times = torch.linspace(0, 1, 2 * steps + 1, dtype=x0.dtype, device=x0.device)
    way = _followed(velocity, x0, times.tolist(), 2 * steps, method, event_ndim, "checkpoint")
    mean = way[-1] - way[0]
    ones = [1] * event_ndim
    off = [
        points_of(velocity(t.reshape(ones).expand(*x.shape[: x.ndim - event_ndim], *ones), x) - mean, event_ndim)
        for t, x in zip(times, way, strict=True)
    ]
    weights = times.new_tensor([1.0, *[4.0, 2.0] * (steps - 1), 4.0, 1.0]) / (6 * steps)
    squares = torch.stack([part.square().sum(-1).mean() for part in off])
    return (weights * squares).sum()


def _checked_cost(cost: ConvexCost | None) -> ConvexCost:
    if cost is None:
        return PowerCost(2)
    missing = [name for name in ("value", "conjugate", "conjugate_gradient") if not hasattr(cost, name)]
    if missing:
        raise ValueError(f"cost must have {', '.join(missing)}, as PowerCost has, got {cost!r}")
    return cost


def _slope(potential: Potential, t: Tensor, x: Tensor, event_ndim: int) -> Tensor:
    """The gradient of the potential in x, also where gradients are switched off."""
    batch = x.shape[: x.ndim - event_ndim]

    def total(points: Tensor) -> Tensor:
        found = potential(t, points)
        if not isinstance(found, Tensor) or found.shape != batch:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"potential must return a tensor of shape {tuple(batch)}, got {got}")
        return found.sum()

    if transform_running() or torch.compiler.is_compiling():
        result: Tensor = func.grad(total)(x)
        return result
    differentiated = torch.is_grad_enabled()
    with torch.enable_grad():  # torch.func would refuse the hooks of an adjoint
        points = x.view_as(x) if differentiated and x.requires_grad else x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(total(points), points, create_graph=differentiated, materialize_grads=True)
    return slope


def _followed(
    velocity: Velocity, x0: Tensor, times: list[float], steps: int | None, method: str, event_ndim: int, adjoint: str
) -> Tensor:
    """The states ``[times, *batch, *event]``."""
    check_callable("velocity", velocity)
    check_integer("event_ndim", event_ndim, 1)
    if check_floating("x0", x0).ndim < event_ndim or not x0.numel():
        raise ValueError(f"x0 must hold points of {event_ndim} dimensions, at least one, got shape {tuple(x0.shape)}")
    length = None if steps is None else 1 / check_integer("steps", steps, 1)
    batch_ndim = x0.ndim - event_ndim
    way: Tensor = odeint(velocity, x0, times, method=method, step=length, adjoint=adjoint, batch_ndim=batch_ndim).y
    return way

"""What trajectories that should cross between basins, and come back, ask of the force along them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, func

from pullback.core.checks import check_callable, check_floating, check_integer
from pullback.core.shapes import Float, Int
from pullback.dynamics.basins import Approach, Basin, approach
from pullback.dynamics.trajectories import trajectory_adjoint

__all__ = ["CrossingAdjoints", "crossing_adjoints"]


class CrossingAdjoints(NamedTuple):
    """Adjoints of the way to another basin and of the way back, and where trajectories came.

    Attributes:
        positions: ``[steps, 2 n, d]`` places: of the way there of all trajectories, then of the way back.
        adjoints: ``[steps, 2 n, d]`` derivative of the sum of both losses in the force at each place.
        there: how near trajectories came to their goals.
        home: how near they came to where they are from, afterwards.
    """

    positions: Float[Tensor, "steps m d"]
    adjoints: Float[Tensor, "steps m d"]
    there: Approach
    home: Approach


def crossing_adjoints(
    force: Callable[[Tensor], Tensor],
    positions: Float[Tensor, "frames n d"],
    basins: Sequence[Basin],
    origin: Int[Tensor, "n"],
    goal: Int[Tensor, "n"],
    *,
    steps: int,
    step: float,
    mass: float | Tensor = 1.0,
    friction: float = 1.0,
    partial: bool = True,
    p: float = 0.05,
    descriptors: Callable[[Tensor], Tensor] | None = None,
) -> CrossingAdjoints:
    r"""Return what reversible crossings ask of the force: reach the goal, then come back to the origin.

    The loss of a trajectory is the squared distance of its frame N nearest to the goal, 0 inside it, and, where it gets
    inside, that of its later frame nearest to the origin. Each is taken back over ``steps`` frames by
    :func:`trajectory_adjoint`; what returns is for :func:`minibatch_parameter_gradient`.

    Args:
        force: F, with the bias, of the positions, each row by itself.
        positions: ``[frames, n, d]`` of every step of :func:`underdamped_langevin`.
        basins: two at least, in the space of the descriptors, apart from each other.
        origin: ``[n]`` the basin that each trajectory is from.
        goal: ``[n]`` the basin that it shall reach.
        steps: how many frames back, at most ``frames - 2``.
        step: of time, as in the path, as are ``mass`` and ``friction``.
        mass: see there.
        friction: see there.
        partial: whether positions are constants in :math:`x+sv`.
        p: of :meth:`Basin.inside`.
        descriptors: from ``[..., d]`` to ``[..., k]``, where distances are taken; the positions themselves by default.

    Returns:
        :class:`CrossingAdjoints`.

    Raises:
        TypeError: something cannot be called, is not floating, or not of integers.
        ValueError: shapes do not fit, an option is out of range, basins overlap, or positions are not finite.

    Example:
        >>> left, right = (Basin(torch.tensor([m]), torch.tensor([[100.0]])) for m in (0.0, 2.0))
        >>> path = torch.tensor([0.0, 0.1, 0.5, 1.0, 0.7]).view(-1, 1, 1)
        >>> zero, one = torch.tensor([0]), torch.tensor([1])
        >>> found = crossing_adjoints(torch.zeros_like, path, (left, right), zero, one, steps=1, step=0.5)
        >>> found.there.frame.item(), found.adjoints.flatten().tolist()
        (3, [-0.5, 0.0])

    References:
        Sipka, Dietschreit, Grajciar, Gomez-Bombarelli (2023), Differentiable simulations for enhanced sampling of rare
        events, arXiv 2301.03480, section 3.
    """
    check_integer("steps", steps, 1)
    if check_floating("positions", positions).ndim != 3 or not positions.shape[1]:
        raise ValueError(f"positions must have shape (frames, n, d) with n >= 1, got {tuple(positions.shape)}")
    last = len(positions) - 1
    if steps >= last:
        raise ValueError(f"steps must be below the number of frames after the first, {last}, got {steps}")
    positions, seen = positions.detach(), positions.detach()
    if descriptors is not None:
        check_callable("descriptors", descriptors)
        with torch.no_grad():
            seen = descriptors(positions)
    there = approach(seen, basins, goal, first=steps + 1, p=p)
    home = approach(seen, basins, origin, first=(there.frame + 1).clamp(max=last), p=p)
    wanted = torch.cat([there.cotangent, torch.where(there.arrived[:, None], home.cotangent, 0.0)])
    frames, twice = torch.cat([there.frame, home.frame]), positions.repeat(1, 2, 1)
    if descriptors is not None:
        at = twice.gather(0, frames[None, :, None].expand(1, *twice.shape[1:]))[0]
        wanted = func.vjp(descriptors, at)[1](wanted)[0].detach()
    words = {"step": step, "mass": mass, "friction": friction, "partial": partial}
    found = trajectory_adjoint(force, twice, wanted, start=frames, steps=steps, **words)  # type: ignore[arg-type]
    return CrossingAdjoints(found.positions, found.adjoints, there, home)

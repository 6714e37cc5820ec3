"""Langevin dynamics of masses, its adjoint along a path without a graph, and the potential of Mueller and Brown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import func

from pullback.core.checks import (
    check_callable,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_shape,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int, Tensor
from pullback.core.transforms import can_look

__all__ = [
    "Trajectory",
    "TrajectoryAdjoint",
    "minibatch_parameter_gradient",
    "muller_brown",
    "muller_brown_force",
    "trajectory_adjoint",
    "underdamped_langevin",
]


_NARROW, _AT_ONCE = 8, 64
_MULLER_BROWN = (  # height, a, b, c, centre
    (-200.0, -1.0, 0.0, -10.0, 1.0, 0.0),
    (-100.0, -1.0, 0.0, -10.0, 0.0, 0.5),
    (-170.0, -6.5, 11.0, -6.5, -0.5, 1.5),
    (15.0, 0.7, 0.6, 0.7, -1.0, 1.0),
)


class Trajectory(NamedTuple):
    """A path of masses.

    Attributes:
        positions: ``[frames, *batch, d]``, the start first.
        velocities: ``[frames, *batch, d]``.
    """

    positions: Float[Tensor, "frames *batch d"]
    velocities: Float[Tensor, "frames *batch d"]


class TrajectoryAdjoint(NamedTuple):
    """What a path's end feels of a force along it, last frame first.

    Attributes:
        adjoints: ``[steps, *batch, d]`` derivative in the force at each of ``positions``.
        positions: ``[steps, *batch, d]`` of the frames before the chosen one, going back.
    """

    adjoints: Float[Tensor, "steps *batch d"]
    positions: Float[Tensor, "steps *batch d"]


def underdamped_langevin(
    force: Callable[[Tensor], Tensor],
    position: Float[Tensor, "*batch d"],
    velocity: Float[Tensor, "*batch d"],
    *,
    mass: float | Tensor = 1.0,
    friction: float = 1.0,
    temperature: float = 1.0,
    step: float,
    steps: int,
    save_every: int = 1,
    detach_position: bool = False,
    generator: torch.Generator | None = None,
) -> Trajectory:
    r"""Move masses: :math:`x'=x+sv` and :math:`v'=v+s(F(x')/m-\gamma v)+\sqrt{2\gamma Ts/m}\,\xi`.

    For steps well below :math:`1/\gamma` and the periods of the force the law
    :math:`e^{-U/T-mv^2/2T}` is kept up to O(s). With ``detach_position`` the gradient does not go through the x of
    :math:`x+sv`, only through velocities: it is no longer the derivative of the path, but what is left does not grow
    along unstable directions as fast.

    Args:
        force: F, from positions ``[*batch, d]`` to the same shape, each row by itself.
        position: ``[*batch, d]`` where the path begins.
        velocity: ``[*batch, d]``.
        mass: m > 0, a number or a tensor that broadcasts to ``[d]``.
        friction: :math:`\gamma\ge0`, one over time.
        temperature: T >= 0, in units of the energy.
        step: s > 0.
        steps: >= 1.
        save_every: every how many steps a frame is kept; must divide ``steps``.
        detach_position: see above.
        generator: source of the noise.

    Returns:
        :class:`Trajectory` of ``steps / save_every + 1`` frames.

    Raises:
        TypeError: the force cannot be called; tensors that are not floating, or of two dtypes.
        ValueError: shapes that do not fit, an option out of range, or a path that became NaN or infinite.

    Example:
        >>> x, v = torch.ones(1, 2), torch.zeros(1, 2)
        >>> path = underdamped_langevin(lambda x: -x, x, v, friction=0.0, temperature=0.0, step=0.5, steps=2)
        >>> path.positions[:, 0, 0].tolist()
        [1.0, 1.0, 0.75]

    References:
        Sipka, Dietschreit, Grajciar, Gomez-Bombarelli (2023), Differentiable simulations for enhanced sampling of rare
        events, arXiv 2301.03480, section 3.
    """
    check_callable("force", force)
    check_same_dtype(position=check_floating("position", position), velocity=check_floating("velocity", velocity))
    if velocity.shape != position.shape or position.ndim < 1:
        raise ValueError(
            f"velocity must have the shape of position {tuple(position.shape)}, got {tuple(velocity.shape)}"
        )
    weight = _mass(mass, position)
    check_positive("friction", friction, zero=True)
    check_positive("temperature", temperature, zero=True)
    check_positive("step", step)
    check_integer("steps", steps, 1)
    check_integer("save_every", save_every, 1)
    if steps % save_every:
        raise ValueError(f"save_every must divide steps {steps}, got {save_every}")
    spread = math.sqrt(2 * friction * temperature * step) / weight.sqrt()
    device = drawing_device(generator, position)
    x, v, frames = position, velocity, [(position, velocity)]
    for number in range(1, steps + 1):
        x = (x.detach() if detach_position else x) + step * v
        pushed = _force(force, x)
        v = v + step * (pushed / weight - friction * v)
        if friction and temperature:
            drawn = torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
            v = v + spread * drawn
        if number % save_every == 0:
            frames.append((x, v))
    found = Trajectory(*(torch.stack(part) for part in zip(*frames, strict=True)))
    if can_look(found.positions) and not all(bool(torch.isfinite(part[-1]).all()) for part in found):
        raise ValueError(f"step must be smaller: the path became NaN or infinite with {step}")
    return found


def trajectory_adjoint(
    force: Callable[[Tensor], Tensor],
    positions: Float[Tensor, "frames *batch d"],
    cotangent: Float[Tensor, "*batch d"],
    *,
    start: int | Int[Tensor, "*batch"],
    steps: int,
    step: float,
    mass: float | Tensor = 1.0,
    friction: float = 1.0,
    partial: bool = True,
) -> TrajectoryAdjoint:
    r"""Return the derivative of a loss of one frame in the forces at the frames before it.

    With g the ``cotangent`` at frame N and J the derivative of the force, going back from
    :math:`a_{N-1}=s^2g/m`,

    .. math:: a_{i-1}=(1-\gamma s)a_i+\frac sm\,r_i,\qquad r_i=r_{i+1}+s\,J(x_i)^Ta_i,\qquad r_N=s\,g,

    where :math:`r_{i+1}` is left out for ``partial``, which is the gradient of the path with ``detach_position``. The
    gradient in parameters of the force is that of :math:`\sum_iF(x_i)\cdot a_i` with x and a as constants. No graph is
    kept: the memory is that of the result. The frames are known before a is: of up to 8 coordinates J is taken at 64
    frames at once, so that what goes back step by step are small products.

    Args:
        force: F of :func:`underdamped_langevin`.
        positions: ``[frames, *batch, d]``, of every step.
        cotangent: ``[*batch, d]`` g, derivative of the loss in the position of frame N.
        start: N, a number or ``[*batch]``, the chosen frame of each path.
        steps: how many frames back, in 1..N - 1; the path does not feel the force at its first frame.
        step: s > 0, as in the path.
        mass: as in the path.
        friction: as in the path.
        partial: whether positions are constants in :math:`x+sv`.

    Returns:
        :class:`TrajectoryAdjoint`.

    Raises:
        TypeError: the force cannot be called; tensors that are not floating, or of two dtypes; ``start`` no integer.
        ValueError: shapes that do not fit, an option out of range, ``steps`` not below ``start``, positions not finite.

    Example:
        >>> path, g = torch.zeros(4, 1, 1), torch.ones(1, 1)
        >>> found = trajectory_adjoint(lambda x: -x, path, g, start=3, steps=2, step=0.5, friction=0.0)
        >>> found.adjoints.flatten().tolist()
        [0.25, 0.1875]

    References:
        Sipka, Dietschreit, Grajciar, Gomez-Bombarelli (2023), arXiv 2301.03480, section 3.
    """
    check_callable("force", force)
    check_same_dtype(positions=check_floating("positions", positions), cotangent=check_floating("cotangent", cotangent))
    if positions.ndim < 2 or cotangent.shape != positions.shape[1:]:
        raise ValueError(f"cotangent must have shape {tuple(positions.shape[1:])}, got {tuple(cotangent.shape)}")
    check_positive("step", step)
    check_positive("friction", friction, zero=True)
    check_integer("steps", steps, 1)
    check_finite("positions", positions)
    weight = _mass(mass, cotangent)
    frame = torch.as_tensor(start, device=positions.device)
    if frame.is_floating_point() or frame.dtype == torch.bool:
        raise TypeError(f"start must hold integers, got {frame.dtype}")
    frame = frame.expand(cotangent.shape[:-1])
    low, high = int(frame.min()), int(frame.max())
    if low <= steps or high >= len(positions):
        raise ValueError(
            f"start must be in steps + 1..{len(positions) - 1} for steps {steps}, got {low} to {high}: the path does "
            "not feel the force at its first frame"
        )
    with torch.no_grad():
        a, r = step**2 * cotangent / weight, step * cotangent
        back = torch.arange(1, steps + 1, device=positions.device).reshape(-1, *[1] * frame.ndim)
        places = positions.detach().gather(0, (frame - back)[..., None].expand(steps, *cotangent.shape))
        narrow, adjoints = cotangent.shape[-1] <= _NARROW, []
        for number in range(steps):
            adjoints.append(a)
            if number == steps - 1:
                break
            if narrow:
                if number % _AT_ONCE == 0:
                    jacobians = _jacobians(force, places[number : min(number + _AT_ONCE, steps - 1)])
                turned = step * (a[..., None, :] @ jacobians[number % _AT_ONCE]).squeeze(-2)
            else:
                with torch.enable_grad():
                    pull = func.vjp(lambda z: _force(force, z), places[number])[1]
                turned = step * pull(a)[0].detach()
            r = turned if partial else r + turned
            a = (1 - friction * step) * a + step / weight * r
    return TrajectoryAdjoint(torch.stack(adjoints), places)


def minibatch_parameter_gradient(
    force: Callable[[Tensor], Tensor],
    positions: Float[Tensor, "steps *batch d"],
    adjoints: Float[Tensor, "steps *batch d"],
    *,
    batch: int,
    generator: torch.Generator | None = None,
) -> Iterator[Float[Tensor, ""]]:
    r"""Yield losses whose gradients are shares of that of a path: one pass over its trajectories, in random order.

    Of a random subset of the n trajectories the loss is :math:`\frac nm\sum_iF(x_i)\cdot a_i`, m of them in the subset,
    with x and a as constants: the mean of its gradients is that of all. Each is evaluated when it is asked for, so that
    an optimizer may step in between and many steps are taken with one simulation.

    Args:
        force: F with parameters, of the positions, each row by itself; forces without parameters may be left out.
        positions: ``[steps, *batch, d]`` of :func:`trajectory_adjoint`.
        adjoints: of the same shape.
        batch: m >= 1 trajectories at once, at most as many as there are.
        generator: of the order.

    Returns:
        An iterator over ``ceil(n / m)`` losses, tensors without dimensions.

    Raises:
        TypeError: the force cannot be called; tensors that are not floating, or of two dtypes.
        ValueError: shapes differ, or ``batch`` is out of range.

    Example:
        >>> stiffness = torch.tensor(2.0, requires_grad=True)
        >>> x, a = torch.ones(3, 4, 1), torch.full((3, 4, 1), 0.5)
        >>> for loss in minibatch_parameter_gradient(lambda x: -stiffness * x, x, a, batch=2):
        ...     print(loss.item(), torch.autograd.grad(loss, stiffness)[0].item())
        -12.0 -6.0
        -12.0 -6.0

    References:
        Sipka, Dietschreit, Grajciar, Gomez-Bombarelli (2023), arXiv 2301.03480, section 3 (graph mini-batching).
    """
    check_callable("force", force)
    check_same_dtype(positions=check_floating("positions", positions), adjoints=check_floating("adjoints", adjoints))
    if positions.ndim < 3 or adjoints.shape != positions.shape:
        raise ValueError(
            "positions and adjoints must have one shape (steps, *batch, d), got "
            f"{tuple(positions.shape)} and {tuple(adjoints.shape)}"
        )
    x, a = positions.detach().flatten(1, -2), adjoints.detach().flatten(1, -2)
    check_integer("batch", batch, 1, x.shape[1])
    device = drawing_device(generator, positions)
    order = torch.randperm(x.shape[1], generator=generator, device=device).to(x.device)

    def losses() -> Iterator[Tensor]:
        for chosen in order.split(batch):
            given = x[:, chosen]
            yield len(order) / len(chosen) * (_force(force, given) * a[:, chosen]).sum()

    return losses()


def muller_brown(x: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    r"""Return the potential of Mueller and Brown: three wells along a bent valley.

    :math:`U=\sum_kA_k\exp(a_k(x-x_k)^2+b_k(x-x_k)(y-y_k)+c_k(y-y_k)^2)`. Its minima are
    -146.70 at (-0.558, 1.442), -108.17 at (0.623, 0.028) and -80.77 at (-0.050, 0.467).

    Args:
        x: ``[*batch, 2]``, of interest in [-1.5, 1.2] x [-0.3, 2]; the fourth term grows without bound elsewhere.

    Returns:
        ``[*batch]``.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``x`` has another shape, or the potential is too large there for its dtype.

    Example:
        >>> round(float(muller_brown(torch.tensor([-0.558, 1.442]))), 1)
        -146.7

    References:
        Mueller, Brown (1979), Location of saddle points and minimum energy paths by a constrained simplex optimization
        procedure.
    """
    check_shape("x", check_floating("x", x), (2,))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    terms = []
    for height, a, b, c, x_k, y_k in _MULLER_BROWN:
        u, w = wide[..., 0] - x_k, wide[..., 1] - y_k
        terms.append(height * torch.exp(a * u * u + b * u * w + c * w * w))
    total = (terms[0] + terms[1] + terms[2] + terms[3]).to(x.dtype)
    if can_look(total) and not bool(torch.isfinite(total).all()):
        raise ValueError(f"x must be where the potential is finite in {x.dtype}, got up to {x.abs().max().item()}")
    return total


def muller_brown_force(x: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 2"]:
    r"""Return minus the gradient of :func:`muller_brown`, in closed form: a fraction of the time of its derivative.

    With :math:`e_k` the k-th term of the potential, u and w the distances from its centre,
    :math:`F=-\sum_ke_k\,(2a_ku+b_kw,\;b_ku+2c_kw)`.

    Args:
        x: ``[*batch, 2]``, as for the potential.

    Returns:
        ``[*batch, 2]``.

    Raises:
        TypeError: ``x`` is not floating.
        ValueError: ``x`` has another shape, or the force is too large there for its dtype.

    Example:
        >>> bool(muller_brown_force(torch.tensor([0.623, 0.028])).norm() < 0.5)
        True

    References:
        Mueller, Brown (1979), Location of saddle points and minimum energy paths by a constrained simplex optimization
        procedure.
    """
    check_shape("x", check_floating("x", x), (2,))
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    height, a, b, c, x_k, y_k = torch.tensor(_MULLER_BROWN, dtype=wide.dtype, device=x.device).unbind(1)
    u, w = wide[..., :1] - x_k, wide[..., 1:] - y_k
    slope_u, slope_w = 2 * a * u + b * w, b * u + 2 * c * w
    term = -height * torch.exp((slope_u * u + slope_w * w) / 2)
    found = torch.stack([(term * slope_u).sum(-1), (term * slope_w).sum(-1)], -1).to(x.dtype)
    if can_look(found) and not bool(torch.isfinite(found).all()):
        raise ValueError(f"x must be where the force is finite in {x.dtype}, got up to {x.abs().max().item()}")
    return found


def _jacobians(force: Callable[[Tensor], Tensor], places: Tensor) -> Tensor:
    """``[frames, *batch, d, d]`` derivative of each component of the force (rows) in each coordinate."""
    with torch.enable_grad():
        pushed, pull = func.vjp(lambda z: _force(force, z), places)[:2]
        rows = [
            pull(torch.eye(pushed.shape[-1]).to(pushed)[d].expand(pushed.shape))[0] for d in range(pushed.shape[-1])
        ]
    return torch.stack([row.detach() for row in rows], -2)


def _mass(mass: float | Tensor, like: Tensor) -> Tensor:
    weight = torch.as_tensor(mass, dtype=like.dtype, device=like.device)
    if weight.ndim > 1 or (weight.ndim == 1 and weight.shape[0] not in (1, like.shape[-1])):
        raise ValueError(f"mass must be a number or have shape ({like.shape[-1]},), got {tuple(weight.shape)}")
    if can_look(weight) and not bool((weight > 0).all()):
        raise ValueError(f"mass must be > 0, got {weight.min().item()}")
    return weight


def _force(force: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    pushed = force(x)
    if not isinstance(pushed, Tensor) or pushed.shape != x.shape:
        got = tuple(pushed.shape) if isinstance(pushed, Tensor) else type(pushed).__name__
        raise ValueError(f"force must return a tensor of shape {tuple(x.shape)}, got {got}")
    return pushed

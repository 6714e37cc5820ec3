"""Masses joined by springs that contract on command, above a ground: soft robots with exact gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pullback.core.checks import (
    check_broadcast,
    check_callable,
    check_choice,
    check_floating,
    check_integer,
    check_positive,
    check_range,
    check_same_dtype,
    check_shape,
)
from pullback.core.shapes import Float, Int
from pullback.core.transforms import can_look, is_transformed
from pullback.kernels.mass_spring import mass_spring

__all__ = ["MassSpring", "SpringMotion", "VoxelRobot", "voxel_robot"]

_SOFTENING = 1e-4
"""Lengths are ``sqrt(|d|^2 + 1e-8)``: a spring whose ends meet has a gradient."""

_FALLING = -1e-4
"""Speed above which a mass on the ground rests."""

_SUNK = 1e-3
"""By how much a start may be below the ground: masses that creep below it without falling, and rounding."""

_KINDS = (torch.float32, torch.float64)

METHODS = ("auto", "compiled", "reference")


class SpringMotion(NamedTuple):
    """A simulated motion.

    Attributes:
        positions: ``[steps + 1, *batch, n, 2]``.
        velocities: ``[steps + 1, *batch, n, 2]``.
        controls: ``[steps, *batch, m]``, what the springs were told.
    """

    positions: Tensor
    velocities: Tensor
    controls: Tensor


class MassSpring(nn.Module):
    r"""Unit masses joined by damped springs whose rest lengths are commanded, in a plane above a ground.

    A step from (x, v), with :math:`d = x_a - x_b` along each spring, :math:`l = |d|`, :math:`\hat d = d / l` and a
    command u:

    .. math:: v^+ = e^{-\gamma h} v + h g + \sum_{\text{springs}} \mp h \big( k (l - l_0 (1 + \alpha u))
              + c\, (v_a - v_b) \cdot \hat d \big) \hat d, \qquad x^+ = x + h v^+ .

    (Velocities first: the step is symplectic without damping.) A mass that would pass the ground moves with
    :math:`v^+` until the time of impact and with the velocity after it for the rest of the step: the vertical one is 0,
    the horizontal one loses ``friction`` times the vertical one, not below 0. Without the time of impact the gradient
    of where a mass lands would be wrong however short the steps are.

    Args:
        anchors: ``[m, 2]`` integers, the masses at the ends of each spring.
        rest: ``[m]`` rest lengths > 0 [m].
        stiffness: ``[m]``, or a number, > 0 [N/m, as masses are 1 kg].
        actuation: ``[m]``, or a number, in [0, 1): the share of its length by which a command of 1 lengthens a spring.
        gravity: vertical acceleration [m/s^2].
        ground: its height [m]; None for none.
        friction: Coulomb's coefficient >= 0; None: a mass that meets the ground sticks for the step.
        drag: >= 0 [1/s].
        dashpot: >= 0 [1/s], damping along the springs.

    Raises:
        TypeError: ``anchors`` are not integers.
        ValueError: shapes do not fit, a spring joins a mass with itself, a number is out of range.

    Example:
        >>> spring = MassSpring(torch.tensor([[0, 1]]), torch.tensor([1.0]), 0.5, gravity=0.0, ground=None)
        >>> x = torch.tensor([[0.0, 0.0], [1.1, 0.0]])
        >>> motion = spring.simulate(x, torch.zeros(2, 2), torch.zeros(628, 1), dt=0.01)  # a period, 2 pi sqrt(1/2k)
        >>> round(motion.positions[314, 1, 0].item(), 2), round(motion.positions[628, 1, 0].item(), 2)
        (1.0, 1.1)

    References:
        Hu, Anderson, Li, Sun, Carr, Ragan-Kelley, Durand (2020), DiffTaichi, arXiv 1910.00935, section 5 and appendix;
        Fang et al. (2022), Complex locomotion skill learning via differentiable physics, arXiv 2206.02341.
    """

    anchors: Tensor
    rest: Tensor
    stiffness: Tensor
    actuation: Tensor

    def __init__(
        self,
        anchors: Int[Tensor, "m 2"],
        rest: Float[Tensor, "m"],
        stiffness: float | Float[Tensor, "m"],
        actuation: float | Float[Tensor, "m"] = 0.0,
        *,
        gravity: float = -1.8,
        ground: float | None = 0.0,
        friction: float | None = 0.4,
        drag: float = 0.0,
        dashpot: float = 0.0,
    ) -> None:
        super().__init__()
        if anchors.dtype != torch.int64:
            raise TypeError(f"anchors must be int64, got {anchors.dtype}")
        check_shape("anchors", anchors, (None, 2))
        if anchors.numel() and bool((anchors < 0).any() | (anchors[:, 0] == anchors[:, 1]).any()):
            raise ValueError("anchors must join two different masses, numbered from 0")
        check_floating("rest", rest)
        per_spring = {"rest": rest}
        for name, value in (("stiffness", stiffness), ("actuation", actuation)):
            given = value if isinstance(value, Tensor) else torch.full_like(rest, value)
            per_spring[name] = given
        for name, value in per_spring.items():
            if value.shape != anchors.shape[:1]:
                raise ValueError(f"{name} must have shape ({len(anchors)},), got {tuple(value.shape)}")
        check_positive("rest", rest)
        check_positive("stiffness", per_spring["stiffness"])
        if not bool(((per_spring["actuation"] >= 0) & (per_spring["actuation"] < 1)).all()):
            raise ValueError("actuation must be in [0, 1)")
        check_positive("drag", drag, zero=True)
        check_positive("dashpot", dashpot, zero=True)
        if friction is not None:
            check_positive("friction", friction, zero=True)
        if not math.isfinite(gravity):
            raise ValueError(f"gravity must be finite, got {gravity}")
        self.register_buffer("anchors", anchors)
        for name, value in per_spring.items():
            self.register_buffer(name, value)
        self.gravity, self.drag, self.dashpot = gravity, drag, dashpot
        self.ground = -math.inf if ground is None else float(ground)
        self.friction = friction
        self.nodes = int(anchors.max()) + 1 if anchors.numel() else 0

    def step(
        self,
        x: Float[Tensor, "*#batch n 2"],
        v: Float[Tensor, "*#batch n 2"],
        u: Float[Tensor, "*#batch m"],
        *,
        dt: float = 0.004,
        method: str = "auto",
    ) -> tuple[Tensor, Tensor]:
        """Return positions and velocities ``[*batch, n, 2]`` after one step; arguments as :meth:`simulate` takes."""
        motion = self.simulate(x, v, u[None], dt=dt, method=method)
        return motion.positions[1], motion.velocities[1]

    def simulate(
        self,
        x: Float[Tensor, "*#batch n 2"],
        v: Float[Tensor, "*#batch n 2"],
        controls: Float[Tensor, "steps *#batch m"] | Callable[[int, Tensor, Tensor], Tensor],
        steps: int | None = None,
        *,
        dt: float = 0.004,
        hold: int = 1,
        method: str = "auto",
    ) -> SpringMotion:
        """Simulate from positions and velocities under controls.

        Args:
            x: ``[*batch, n, 2]`` positions [m].
            v: ``[*batch, n, 2]`` velocities [m/s].
            controls: ``[steps, *batch, m]``, or ``controls(t, x, v)`` of the number of the step and the state, which
                returns ``[*batch, m]``.
            steps: their number, where ``controls`` is a function.
            dt: > 0 [s], below :meth:`stable_step`.
            hold: steps for which each command of a function stands, >= 1: it is asked at 0, ``hold``, 2 ``hold`` ...
            method: "compiled" by numba (CPU, single or double precision, outside of transforms of torch.func),
                "reference" in torch, equal to rounding; "auto" takes the former where it can.

        Returns:
            A :class:`SpringMotion`, differentiable in all tensors and in the buffers of the springs.

        Raises:
            RuntimeError: "compiled" cannot be had.
            ValueError: shapes do not fit; masses start below the ground (listed); a state is not finite (the step and
                the mass are named).
        """
        check_positive("dt", dt)
        check_choice("method", method, METHODS)
        check_start(self, x, v)
        if isinstance(controls, Tensor):
            check_floating("controls", controls)
            check_same_dtype(x=x, controls=controls)
            check_shape("controls", controls, (len(self.rest),))
            if controls.ndim < 2:
                raise ValueError("controls must have shape [steps, *batch, m], got one dimension")
            if steps is not None and steps != len(controls):
                raise ValueError(f"controls are those of {len(controls)} steps, got steps = {steps}")
            motion = self._run(x, v, controls, dt, method)
        else:
            check_callable("controls", controls)
            check_integer("steps", steps, 1)
            check_integer("hold", hold, 1)
            motion = self._closed(x, v, controls, steps or 0, dt, hold, method)
        check_motion(motion, dt)
        return motion

    def energy(self, x: Float[Tensor, "*#batch n 2"], v: Float[Tensor, "*#batch n 2"]) -> Float[Tensor, "*batch"]:
        """Return kinetic, elastic (without commands) and gravitational energy, from the ground or 0 [J]."""
        check_shape("x", x, (None, 2))
        check_shape("v", v, (None, 2))
        _, length = self._along(x)
        base = self.ground if math.isfinite(self.ground) else 0.0
        kinetic = 0.5 * v.square().sum((-2, -1))
        elastic = 0.5 * (self.stiffness * (length - self.rest).square()).sum(-1)
        return kinetic + elastic - self.gravity * (x[..., 1] - base).sum(-1)

    def stable_step(self, x: Float[Tensor, "n 2"]) -> float:
        r"""Return a time step up to which small motions around x stay bounded: :math:`h^2 \omega^2 + 2 h \delta = 4`.

        :math:`\omega^2` and :math:`\delta` are the largest eigenvalues of stiffness and of damping by the dashpots.
        """
        check_shape("x", x, (None, 2))
        if x.ndim != 2:
            raise ValueError(f"x must have shape (n, 2), got {tuple(x.shape)}")
        direction = self._along(x.detach().double())[0]
        rows = x.new_zeros(len(self.rest), *x.shape, dtype=torch.float64)
        springs = torch.arange(len(rows), device=x.device)
        rows[springs, self.anchors[:, 0]] = direction
        rows[springs, self.anchors[:, 1]] = -direction
        rows = rows.flatten(1)
        if not len(rows):
            return math.inf
        top = torch.linalg.eigvalsh(rows.T @ (self.stiffness.detach().double()[:, None] * rows))[-1].item()
        damping = self.dashpot * torch.linalg.eigvalsh(rows.T @ rows)[-1].item()
        return (math.sqrt(damping * damping + 4 * top) - damping) / top

    def _along(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Directions and lengths of the springs."""
        apart = x[..., self.anchors[:, 0], :] - x[..., self.anchors[:, 1], :]
        length = (apart.square().sum(-1) + _SOFTENING**2).sqrt()
        return apart / length[..., None], length

    def _closed(
        self, x: Tensor, v: Tensor, controls: Callable[..., Tensor], steps: int, dt: float, hold: int, method: str
    ) -> SpringMotion:
        positions, velocities, given = [], [], []
        for t in range(0, steps, hold):
            u = controls(t, x, v)
            check_shape("the result of controls", u, (len(self.rest),))
            moved = self._run(x, v, u.expand(min(hold, steps - t), *u.shape), dt, method)
            x, v = moved.positions[-1], moved.velocities[-1]
            positions.append(moved.positions[bool(t) :])
            velocities.append(moved.velocities[bool(t) :])
            given.append(moved.controls)
        return SpringMotion(torch.cat(positions), torch.cat(velocities), torch.cat(given))

    def _run(self, x: Tensor, v: Tensor, u: Tensor, dt: float, method: str) -> SpringMotion:
        batch = check_broadcast(x=tuple(x.shape[:-2]), v=tuple(v.shape[:-2]), controls=tuple(u.shape[1:-1]))
        x, v = x.expand(*batch, *x.shape[-2:]), v.expand(*batch, *v.shape[-2:])
        u = u.reshape(len(u), *[1] * (len(batch) - u.ndim + 2), *u.shape[1:]).expand(len(u), *batch, u.shape[-1])
        given = (x, v, u, self.rest, self.stiffness)
        possible = (
            not any(map(is_transformed, given)) and x.device.type == "cpu" and x.dtype in _KINDS and mass_spring()
        )
        if method == "compiled" and not possible:
            raise RuntimeError("compiled steps need numba, the CPU, single or double precision and no transform")
        if method == "reference" or not possible:
            return SpringMotion(*self._plain(dt, x, v, u), u)
        x_rows, v_rows = (t.reshape(batch.numel(), *t.shape[-2:]) for t in (x, v))
        commands = u.reshape(len(u), batch.numel(), u.shape[-1])
        positions, velocities = _Compiled.apply(self, dt, x_rows, v_rows, commands, *given[3:])
        shape = (len(u) + 1, *x.shape)
        return SpringMotion(positions.reshape(shape), velocities.reshape(shape), u)

    def _plain(self, dt: float, x: Tensor, v: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        positions, velocities = [x], [v]
        decay, a, b = math.exp(-self.drag * dt), self.anchors[:, 0], self.anchors[:, 1]
        pull = torch.tensor([0.0, dt * self.gravity], dtype=x.dtype, device=x.device)
        for commands in u:
            direction, length = self._along(x)
            speed = ((v[..., a, :] - v[..., b, :]) * direction).sum(-1)
            excess = length - self.rest * (1 + self.actuation * commands)
            push = (-dt * (self.stiffness * excess + self.dashpot * speed))[..., None] * direction
            free = (decay * v + pull).index_add(-2, a, push).index_add(-2, b, -push)
            x, v = self._land(dt, x, free)
            positions.append(x)
            velocities.append(v)
        return torch.stack(positions), torch.stack(velocities)

    def _land(self, dt: float, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Move with the velocities ``v`` for a step, up to the ground and along it."""
        moved = x + dt * v
        if math.isinf(self.ground):
            return moved, v
        height, fall = x[..., 1], v[..., 1]
        meets = (moved[..., 1] < self.ground) & (fall < _FALLING)
        flies = meets & (height > self.ground)
        impact = torch.where(flies, (self.ground - height) / torch.where(flies, fall, 1.0), 0.0)
        along = v[..., 0]
        if self.friction is None:
            slid = torch.zeros_like(along)
        else:
            left = (along.abs() + self.friction * fall).clamp_min(0)
            slid = torch.where(along >= 0, left, -left)
        after = torch.stack([slid, torch.zeros_like(slid)], -1)
        beside = x[..., 0] + impact * along + (dt - impact) * slid
        below = torch.where(flies, self.ground, height)
        landed = torch.stack([beside, below], -1)
        return torch.where(meets[..., None], landed, moved), torch.where(meets[..., None], after, v)


class _Compiled(torch.autograd.Function):
    """The compiled steps, and the plain ones where a second derivative is wanted."""

    @staticmethod
    def forward(ctx: Any, body: MassSpring, dt: float, x: Tensor, v: Tensor, u: Tensor, *springs: Tensor) -> Any:
        kernels = mass_spring()
        assert kernels is not None
        positions, velocities = (t.new_empty(len(u) + 1, *t.shape) for t in (x, v))
        positions[0], velocities[0] = x, v
        network = arrays(*[u.new_empty(0, 0, 0), u.new_empty(0, 0), u.new_empty(0, 0), u.new_empty(0)])
        network += arrays(*[u.new_empty(0, 0, 0)] * 3)
        told, *rest = arrays(u, *springs, body.actuation, body.anchors)
        ctx.fixed = (told, network, *rest, kernel_numbers(body, dt), (1, 0))
        kernels[0](*ctx.fixed, positions.numpy(), velocities.numpy())
        ctx.body, ctx.dt = body, dt
        ctx.save_for_backward(x, v, u, *springs, positions, velocities)
        return positions, velocities

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        x, v, u, rest, stiffness, positions, velocities = ctx.saved_tensors
        body = ctx.body
        if torch.is_grad_enabled():  # A derivative of this derivative is wanted: it is that of the plain steps.
            inputs = [t for t in (x, v, u, rest, stiffness) if t.requires_grad]
            found = iter(
                torch.autograd.grad(
                    body._plain(ctx.dt, x, v, u), inputs, cotangents, create_graph=True, allow_unused=True
                )
            )
            return None, None, *(next(found) if t.requires_grad else None for t in (x, v, u, rest, stiffness))
        kernels = mass_spring()
        assert kernels is not None
        grads = [t.clone(memory_format=torch.contiguous_format) for t in cotangents]
        grads += [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (u, rest, stiffness)]
        of_x, of_v, of_u, *of_springs = arrays(*grads)
        kernels[1](*ctx.fixed, *arrays(positions, velocities), of_x, of_v, of_u, *ctx.fixed[1][:4], *of_springs)
        return None, None, grads[0][0], grads[1][0], *grads[2:]


def check_start(body: MassSpring, x: Tensor, v: Tensor) -> None:
    """Refuse states that are not those of the body's masses, above its ground."""
    for name, value in (("x", x), ("v", v)):
        check_floating(name, value)
        check_shape(name, value, (None, 2))
    if x.shape[-2] < body.nodes or v.shape[-2] != x.shape[-2]:
        raise ValueError(
            f"x and v must hold the same masses, at least {body.nodes}, got {x.shape[-2]} and {v.shape[-2]}"
        )
    check_same_dtype(x=x, v=v, rest=body.rest)
    if can_look(x) and bool((x[..., 1] < body.ground - _SUNK).any()):
        below = (x[..., 1] < body.ground - _SUNK).reshape(-1, x.shape[-2]).any(0).nonzero()[:, 0].tolist()
        raise ValueError(f"masses must start at or above the ground at {body.ground:g}, these do not: {below}")


def check_motion(motion: SpringMotion, dt: float) -> None:
    """Refuse a motion that is not finite."""
    x, v = motion.positions.detach(), motion.velocities.detach()
    if not can_look(x) or bool(x.sum().isfinite() & v.sum().isfinite()):
        return
    wrong = ~(x.isfinite() & v.isfinite()).all(-1)
    if bool(wrong.any()):
        place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"the state is not finite from step {place[0]} on, first at mass {place[-1]}: "
            f"dt = {dt} is too long for these springs (see stable_step), or the start or controls are not finite"
        )


def kernel_numbers(body: MassSpring, dt: float, scale: float = 1.0) -> tuple[float, ...]:
    """Return what the compiled steps take as ``numbers``."""
    friction = -1.0 if body.friction is None else body.friction
    given = (dt, math.exp(-body.drag * dt), body.gravity, body.ground, friction, body.dashpot, _SOFTENING**2, scale)
    return tuple(map(float, given))


def arrays(*tensors: Tensor) -> tuple[Any, ...]:
    """Return tensors on the CPU as contiguous arrays."""
    return tuple(t.detach().resolve_neg().contiguous().numpy() for t in tensors)


class VoxelRobot(NamedTuple):
    """A robot of square cells: ``MassSpring(*robot[1:])`` simulates it from ``robot.positions``.

    Attributes:
        positions: ``[n, 2]`` corners of the cells [m], the lowest at height 0, the leftmost at 0.
        anchors: ``[m, 2]`` int64.
        rest: ``[m]`` lengths of the springs.
        stiffness: ``[m]``.
        actuation: ``[m]``, 0 for springs that obey no command.
    """

    positions: Tensor
    anchors: Tensor
    rest: Tensor
    stiffness: Tensor
    actuation: Tensor


def voxel_robot(
    mask: Tensor,
    *,
    size: float = 0.05,
    stiffness: float = 3000.0,
    actuation: float = 0.15,
    actuated: str = "all",
) -> VoxelRobot:
    """Return the masses and springs of a robot made of square cells: sides and both diagonals of every cell.

    Args:
        mask: ``[rows, columns]`` booleans, the top row first: where there is a cell.
        size: of a cell, > 0 [m].
        stiffness: of the springs, > 0.
        actuation: in [0, 1), of the springs that obey commands.
        actuated: which do: "all", "sides", "vertical" or "diagonal" ones.

    Raises:
        ValueError: ``mask`` is no matrix or has no cell, a number is out of range.

    Example:
        >>> robot = voxel_robot(torch.tensor([[True, True, True], [True, False, True]]))
        >>> len(robot.positions), len(robot.rest)
        (12, 26)

    References:
        Fang et al. (2022), Complex locomotion skill learning via differentiable physics, arXiv 2206.02341, section 4.
    """
    check_choice("actuated", actuated, ("all", "sides", "vertical", "diagonal"))
    check_positive("size", size)
    check_positive("stiffness", stiffness)
    check_range("actuation", actuation, 0, 1)
    if mask.ndim != 2 or mask.dtype != torch.bool or not bool(mask.any()):
        raise ValueError(f"mask must be a matrix of booleans with a cell, got {mask.dtype}, shape {tuple(mask.shape)}")
    cells = [(len(mask) - 1 - row, column) for row, column in mask.nonzero().tolist()]
    corners = sorted({(i + di, j + dj) for i, j in cells for di in (0, 1) for dj in (0, 1)})
    number = {corner: k for k, corner in enumerate(corners)}
    kinds: dict[tuple[int, int], str] = {}
    for i, j in cells:
        a, b, c, d = (number[i + di, j + dj] for di, dj in ((0, 0), (0, 1), (1, 0), (1, 1)))
        kinds |= {(a, b): "horizontal", (c, d): "horizontal", (a, c): "vertical", (b, d): "vertical"}
        kinds |= {(a, d): "diagonal", (b, c): "diagonal"}
    chosen = {
        "all": ("horizontal", "vertical", "diagonal"),
        "sides": ("horizontal", "vertical"),
        "vertical": ("vertical",),
        "diagonal": ("diagonal",),
    }[actuated]
    anchors = torch.tensor(sorted(kinds))
    positions = torch.tensor([[j * size, i * size] for i, j in corners])
    positions = positions - positions.amin(0)
    rest = torch.linalg.vector_norm(positions[anchors[:, 0]] - positions[anchors[:, 1]], dim=-1)
    moves = torch.tensor([kinds[tuple(pair)] in chosen for pair in anchors.tolist()])
    return VoxelRobot(positions, anchors, rest, torch.full_like(rest, stiffness), actuation * moves.to(rest))

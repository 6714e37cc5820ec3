"""A robot of springs steered by a periodic controller: the closed loop, compiled, with exact gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import (
    check_broadcast,
    check_choice,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_shape,
)
from pullback.core.shapes import Float
from pullback.core.transforms import is_transformed
from pullback.dynamics.locomotion import PeriodicController
from pullback.dynamics.mass_spring import (
    METHODS,
    MassSpring,
    SpringMotion,
    arrays,
    check_motion,
    check_start,
    kernel_numbers,
)
from pullback.kernels.mass_spring import mass_spring

__all__ = ["steer"]


def steer(
    body: MassSpring,
    controller: PeriodicController,
    x: Float[Tensor, "*#batch n 2"],
    v: Float[Tensor, "*#batch n 2"],
    goals: Float[Tensor, "steps *#batch goals"],
    *,
    dt: float = 0.004,
    hold: int = 1,
    scale: float = 0.2,
    noise: Float[Tensor, "controls *#batch m"] | None = None,
    method: str = "auto",
) -> SpringMotion:
    r"""Simulate a body whose springs a controller commands: it sees the clock, the shape and the goal.

    .. math:: u_t = \mathrm{clip}\big(\pi(t,\ (x_t - \bar x_t) / s,\ g_t) + \epsilon_t,\ -1,\ 1\big)

    It is ``body.simulate`` with a function that calls the controller, whose loop the compiled form runs without torch.

    Args:
        body: of n masses and m springs.
        controller: with 2 n states and m outputs; its clock counts steps, from 0.
        x: ``[*batch, n, 2]`` positions [m].
        v: ``[*batch, n, 2]`` velocities [m/s].
        goals: ``[steps, *batch, goals]``, scaled for the controller; those of the steps at which it is asked count.
        dt: > 0 [s].
        hold: steps for which a command stands, >= 1.
        scale: s > 0 [m].
        noise: ``[ceil(steps / hold), *batch, m]``, added to the commands to explore.
        method: "compiled" by numba (CPU, single or double precision, outside of transforms of torch.func),
            "reference" in torch, equal to rounding; "auto" takes the former where it can.

    Returns:
        A :class:`SpringMotion`, differentiable in states, goals, noise, weights and the buffers of the springs.

    Raises:
        RuntimeError: "compiled" cannot be had.
        TypeError: dtypes differ, or ``body`` or ``controller`` is none.
        ValueError: shapes do not fit, a number is out of range, or as :meth:`MassSpring.simulate` raises.

    Example:
        >>> from pullback.dynamics import voxel_robot
        >>> robot = voxel_robot(torch.tensor([[True, True], [True, False]]))
        >>> body = MassSpring(*robot[1:], dashpot=50.0)
        >>> controller = PeriodicController(2 * len(robot.positions), 1, len(robot.rest))
        >>> still = torch.zeros_like(robot.positions)
        >>> motion = steer(body, controller, robot.positions, still, torch.ones(20, 1), hold=5)
        >>> motion.positions.shape, motion.controls.shape
        (torch.Size([21, 8, 2]), torch.Size([20, 16]))

    References:
        Fang et al. (2022), Complex locomotion skill learning via differentiable physics, arXiv 2206.02341, section 3.
    """
    for name, value, kind in (("body", body, MassSpring), ("controller", controller, PeriodicController)):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
    check_positive("dt", dt)
    check_positive("scale", scale)
    check_integer("hold", hold, 1)
    check_choice("method", method, METHODS)
    springs = len(body.rest)
    if controller.second.out_features != springs:
        raise ValueError(f"controller must have {springs} outputs, got {controller.second.out_features}")
    check_shape("x", check_floating("x", x), (controller.states // 2, 2))
    check_shape("v", check_floating("v", v), (controller.states // 2, 2))
    check_shape("goals", check_floating("goals", goals), (controller.goals,))
    if goals.ndim < 2 or not len(goals):
        raise ValueError(f"goals must have shape [steps, *batch, goals] with steps >= 1, got {tuple(goals.shape)}")
    steps, asked = len(goals), -(-len(goals) // hold)
    if noise is None:
        noise = goals.new_zeros(asked, springs)
    check_shape("noise", check_floating("noise", noise), (springs,))
    if noise.ndim < 2 or len(noise) != asked:
        raise ValueError(f"noise must have an entry for each of the {asked} commands, got {tuple(noise.shape)}")
    check_same_dtype(x=x, v=v, goals=goals, noise=noise, weight=controller.first.weight, rest=body.rest)
    batch = check_broadcast(
        x=tuple(x.shape[:-2]),
        v=tuple(v.shape[:-2]),
        goals=tuple(goals.shape[1:-1]),
        noise=tuple(noise.shape[1:-1]),
    )
    check_start(body, x, v)
    drive = controller.drive(range(0, steps, hold), goals[::hold])
    inward = controller.first.weight[:, controller.waves : controller.waves + controller.states].T
    network = (_rows(drive, batch), inward, controller.second.weight.T, controller.second.bias, _rows(noise, batch))
    rows = [t.expand(*batch, *t.shape[-2:]).reshape(batch.numel(), *t.shape[-2:]) for t in (x, v)]
    given = (*rows, *network, body.rest, body.stiffness)
    kinds = (torch.float32, torch.float64)
    possible = not any(map(is_transformed, given)) and x.device.type == "cpu" and x.dtype in kinds and mass_spring()
    if method == "compiled" and not possible:
        raise RuntimeError("compiled steps need numba, the CPU, single or double precision and no transform")
    options = (steps, dt, hold, scale, controller.activation == "sin")
    if method == "reference" or not possible:
        found = _plain(body, options, rows[0], rows[1], *network)
    else:
        found = _Steered.apply(body, options, *given)
    positions, velocities, u = (t.reshape(len(t), *batch, *t.shape[2:]) for t in found)
    motion = SpringMotion(positions, velocities, u.repeat_interleave(hold, 0)[:steps])
    check_motion(motion, dt)
    return motion


def _rows(t: Tensor, batch: torch.Size) -> Tensor:
    """``[k, *batch, n]`` with one batch dimension."""
    t = t.reshape(len(t), *[1] * (len(batch) - t.ndim + 2), *t.shape[1:])
    return t.expand(len(t), *batch, t.shape[-1]).reshape(len(t), batch.numel(), t.shape[-1])


def _plain(
    body: MassSpring,
    options: tuple[int, float, int, float, bool],
    x: Tensor,
    v: Tensor,
    drive: Tensor,
    inward: Tensor,
    outward: Tensor,
    offset: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    steps, dt, hold, scale, sines = options
    bend = torch.sin if sines else torch.tanh

    def command(t: int, x: Tensor, v: Tensor) -> Tensor:
        seen = ((x - x.mean(-2, keepdim=True)) / scale).flatten(-2)
        hidden = bend(drive[t // hold] + seen @ inward)
        return (bend(hidden @ outward + offset) + noise[t // hold]).clamp(-1, 1)

    motion = body.simulate(x, v, command, steps, dt=dt, hold=hold, method="reference")
    return motion.positions, motion.velocities, motion.controls[::hold]


class _Steered(torch.autograd.Function):
    """The compiled loop, and the plain one where a second derivative is wanted."""

    @staticmethod
    def forward(ctx: Any, body: MassSpring, options: Any, x: Tensor, v: Tensor, *given: Tensor) -> Any:
        kernels = mass_spring()
        assert kernels is not None
        steps, dt, hold, scale, sines = options
        drive, _, _, _, noise, rest, stiffness = given
        positions, velocities = (t.new_empty(steps + 1, *t.shape) for t in (x, v))
        positions[0], velocities[0] = x, v
        u = torch.empty_like(noise, memory_format=torch.contiguous_format)
        layers = torch.empty_like(drive, memory_format=torch.contiguous_format), torch.empty_like(u)
        springs = arrays(rest, stiffness, body.actuation, body.anchors)
        ctx.fixed = (arrays(*given[:5], *layers), *springs, kernel_numbers(body, dt, scale), (hold, int(sines)))
        kernels[0](u.numpy(), *ctx.fixed, positions.numpy(), velocities.numpy())
        ctx.body, ctx.options = body, options
        ctx.save_for_backward(x, v, *given, positions, velocities, u)
        return positions, velocities, u

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        *inputs, positions, velocities, u = ctx.saved_tensors
        if torch.is_grad_enabled():  # A derivative of this derivative is wanted: it is that of the plain steps.
            wanted = [t for t in inputs if t.requires_grad]
            found = _plain(ctx.body, ctx.options, *inputs[:7])
            grads = iter(torch.autograd.grad(found, wanted, cotangents, create_graph=True, allow_unused=True))
            return None, None, *(next(grads) if t.requires_grad else None for t in inputs)
        kernels = mass_spring()
        assert kernels is not None
        of_x, of_v, of_u = (t.clone(memory_format=torch.contiguous_format) for t in cotangents)
        shaped = [inputs[place] for place in (2, 3, 4, 5, 7, 8)]
        others = [torch.zeros_like(t, memory_format=torch.contiguous_format) for t in shaped]
        kernels[1](*arrays(u), *ctx.fixed, *arrays(positions, velocities, of_x, of_v, of_u, *others))
        return None, None, of_x[0], of_v[0], *others[:4], of_u, *others[4:]

"""One controller for many goals of a moving robot: periodic networks, schedules of goals and windowed losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

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

__all__ = [
    "PeriodicController",
    "actuation_loss",
    "crawl_loss",
    "goal_schedule",
    "height_loss",
    "pose_loss",
    "velocity_loss",
]


class PeriodicController(nn.Module):
    r"""A network of sines that is told the phase of a clock, the state and, many times over, the goal.

    .. math:: u = \sin(W_2 \sin(W_1 [\sin(2 \pi t / T + 2 \pi j / J)_{j<J},\ s,\ g, \dots, g] + b_1) + b_2)

    A goal of two numbers beside forty of state would be drowned; repeated, its weight in the sum is that of the state.

    Args:
        states: size of s.
        goals: size of g, scaled by the caller to about [-1, 1].
        outputs: size of u.
        hidden: units of the hidden layer.
        waves: J >= 1.
        period: T > 0, in the units of t.
        repeat: how often the goal is repeated, >= 1.
        activation: "sin", or "tanh" to compare.
        generator: of the weights, uniform within :math:`\pm \sqrt{6 / \text{fan in}}`; biases start at 0.

    Raises:
        ValueError: a size is out of range, or ``activation`` unknown.

    Example:
        >>> controller = PeriodicController(4, 1, 3, period=100.0)
        >>> u = controller(0.0, torch.zeros(5, 4), torch.ones(5, 1))
        >>> u.shape, bool((u.abs() <= 1).all())
        (torch.Size([5, 3]), True)

    References:
        Fang et al. (2022), Complex locomotion skill learning via differentiable physics, arXiv 2206.02341, section 3.
    """

    def __init__(
        self,
        states: int,
        goals: int,
        outputs: int,
        *,
        hidden: int = 64,
        waves: int = 10,
        period: float = 100.0,
        repeat: int = 30,
        activation: str = "sin",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.states = check_integer("states", states, 0)
        self.goals = check_integer("goals", goals, 1)
        check_integer("outputs", outputs, 1)
        check_integer("hidden", hidden, 1)
        check_integer("waves", waves, 1)
        check_positive("period", period)
        self.repeat = check_integer("repeat", repeat, 1)
        check_choice("activation", activation, ("sin", "tanh"))
        self.activation = activation
        self.waves, self.period = waves, period
        self.first = nn.Linear(waves + states + goals * repeat, hidden)
        self.second = nn.Linear(hidden, outputs)
        with torch.no_grad():
            for layer in (self.first, self.second):
                bound = math.sqrt(6 / layer.in_features)
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.zero_()

    def forward(
        self, t: float, state: Float[Tensor, "*#batch states"], goal: Float[Tensor, "*#batch goals"]
    ) -> Float[Tensor, "*batch outputs"]:
        """Return commands in [-1, 1] at time ``t``, ``[*batch, outputs]``."""
        check_shape("state", check_floating("state", state), (self.states,))
        check_shape("goal", check_floating("goal", goal), (self.goals,))
        check_same_dtype(state=state, goal=goal, weight=self.first.weight)
        check_broadcast(state=tuple(state.shape[:-1]), goal=tuple(goal.shape[:-1]))
        inward = self.first.weight[:, self.waves : self.waves + self.states]
        bend = torch.sin if self.activation == "sin" else torch.tanh
        return bend(self.second(bend(self.drive([t], goal[None])[0] + state @ inward.T)))

    def drive(
        self, times: Sequence[float], goals: Float[Tensor, "times *batch goals"]
    ) -> Float[Tensor, "times *batch hidden"]:
        """Return what clock, goal and bias add up to in each hidden unit, at all times at once.

        The weights of a goal's copies are added before they meet it.
        """
        check_shape("goals", check_floating("goals", goals), (self.goals,))
        if goals.ndim < 2 or len(goals) != len(times):
            raise ValueError(f"goals must have one entry for each of {len(times)} times, got {tuple(goals.shape)}")
        # Angles in double precision: a clock may run for a million steps.
        turns = torch.tensor([math.fmod(t, self.period) / self.period for t in times], dtype=torch.float64)
        angles = 2 * math.pi * (turns[:, None] + torch.arange(self.waves, dtype=torch.float64) / self.waves)
        phases = angles.sin().to(goals)
        clock, told = self.first.weight[:, : self.waves], self.first.weight[:, self.waves + self.states :]
        ticks = phases @ clock.T + self.first.bias
        ticks = ticks.reshape(len(goals), *[1] * (goals.ndim - 2), -1)
        return ticks + goals @ told.reshape(len(told), self.goals, self.repeat).sum(-1).T


def goal_schedule(
    batch: int,
    steps: int,
    *,
    ranges: Sequence[tuple[float, float]],
    period: int = 500,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "steps batch goals"]:
    """Return goals that change every ``period`` steps, each uniform in its range, independent of the others.

    Args:
        batch: sequences, >= 1.
        steps: >= 1.
        ranges: (low, high) of each goal.
        period: steps between changes, >= 1; the last goal may stand for fewer.
        generator: of the draws.

    Raises:
        ValueError: a number is out of range, no goal, a range the wrong way round.

    Example:
        >>> goals = goal_schedule(2, 5, ranges=[(-1.0, 1.0)], period=3, generator=torch.Generator().manual_seed(0))
        >>> goals.shape, bool((goals[0] == goals[2]).all()), bool((goals[2] == goals[3]).any())
        (torch.Size([5, 2, 1]), True, False)
    """
    check_integer("batch", batch, 1)
    check_integer("steps", steps, 1)
    check_integer("period", period, 1)
    if not ranges or not all(low <= high and math.isfinite(high - low) for low, high in ranges):
        raise ValueError(f"ranges must be pairs (low, high) of finite numbers, low <= high, got {ranges}")
    low, high = torch.tensor(ranges, dtype=torch.get_default_dtype()).unbind(-1)
    device = "cpu" if generator is None else generator.device
    draws = torch.rand(-(-steps // period), batch, len(ranges), generator=generator, device=device)
    return (low.to(device) + (high - low).to(device) * draws).repeat_interleave(period, 0)[:steps]


def velocity_loss(
    center: Float[Tensor, "times *batch"],
    target: Float[Tensor, "steps *batch"],
    *,
    window: int = 100,
    period: int = 500,
) -> Float[Tensor, "*batch"]:
    r"""Return the mean of :math:`(c_{t} - c_{t-w} - g_{t-1})^2` over the times a whole window after a change of goal.

    A gait moves to and fro within its cycle: the distance over a window of a cycle is its velocity, the velocity of an
    instant is not. Windows that began under another goal do not count.

    Args:
        center: ``[steps + 1, *batch]`` horizontal place of the centre.
        target: ``[steps, *batch]`` wanted displacement in a window.
        window: w in 1..period.
        period: steps between changes of the goal, >= 1; the first goal begins at time 0.

    Raises:
        ValueError: shapes do not fit, or no whole window fits into the steps.

    Example:
        >>> walk = torch.arange(5.0)
        >>> velocity_loss(walk, torch.full((4,), 2.0), window=2, period=4).item()
        0.0
    """
    steps = _check_pair("center", center, target)
    check_integer("period", period, 1)
    check_integer("window", window, 1, period)
    if window > steps:
        raise ValueError(f"window must be at most the {steps} steps, got {window}")
    times = torch.arange(window, steps + 1, device=center.device)
    times = times[(times - 1) % period + 1 >= window]
    return (center[times] - center[times - window] - target[times - 1]).square().mean(0)


def height_loss(
    lowest: Float[Tensor, "times *batch"],
    target: Float[Tensor, "steps *batch"],
    *,
    period: int = 500,
    least: float = 0.1,
) -> Float[Tensor, "*batch"]:
    r"""Return the mean over periods of :math:`(\max_t y_t - h)^2`, where a jump of :math:`h` > ``least`` is wanted.

    Args:
        lowest: ``[steps + 1, *batch]`` height of the lowest mass.
        target: ``[steps, *batch]`` wanted height; that at the beginning of a period counts.
        period: of the jumps, >= 1; the last may be shorter.
        least: below which no jump is wanted.

    Raises:
        ValueError: shapes do not fit, a number is out of range.

    Example:
        >>> height_loss(torch.tensor([0.0, 0.25, 0.5, 0.25]), torch.full((3,), 0.75), period=3).item()
        0.0625
    """
    steps = _check_pair("lowest", lowest, target)
    check_integer("period", period, 1)
    if not math.isfinite(least):
        raise ValueError(f"least must be finite, got {least}")
    starts = range(0, steps, period)
    tops = torch.stack([lowest[a + 1 : a + period + 1].amax(0) for a in starts])
    wanted = target[::period]
    return torch.where(wanted > least, tops - wanted, 0.0).square().mean(0)


def crawl_loss(
    highest: Float[Tensor, "times *batch"], crawling: Float[Tensor, "steps *batch"], *, ceiling: float = 0.0
) -> Float[Tensor, "*batch"]:
    r"""Return the mean over the steps of :math:`c_t \max(y_{t+1} - y_0, 0)^2`: who crawls keeps its highest mass low.

    Args:
        highest: ``[steps + 1, *batch]`` height of the highest mass [m].
        crawling: ``[steps, *batch]`` c in [0, 1], how much crawling is wanted.
        ceiling: y_0 [m], below which no height is too much.

    Raises:
        ValueError: shapes do not fit, ``ceiling`` is not finite.

    Example:
        >>> crawl_loss(torch.tensor([0.0, 0.25, 0.75]), torch.ones(2), ceiling=0.25).item()
        0.125
    """
    _check_pair("highest", highest, crawling, "crawling")
    if not math.isfinite(ceiling):
        raise ValueError(f"ceiling must be finite, got {ceiling}")
    return (crawling * (highest[1:] - ceiling).clamp_min(0).square()).mean(0)


def pose_loss(
    positions: Float[Tensor, "times *batch n d"],
    pose: Float[Tensor, "n d"],
    *,
    period: int = 500,
    anchored: bool = False,
) -> Float[Tensor, "*batch"]:
    r"""Return the mean over whole periods of :math:`\sum_i |x_i - \bar x - (p_i - \bar p)|^2` at their ends.

    A robot that is to jump again and again must come back to the pose from which it jumps.

    Args:
        positions: ``[steps + 1, *batch, n, d]`` of the masses [m].
        pose: ``[n, d]``, p [m].
        period: of the jumps, in 1..steps.
        anchored: compare with the place of the pose too, not with its shape alone.

    Raises:
        ValueError: shapes do not fit, ``period`` is out of range.

    Example:
        >>> pose = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
        >>> moved = torch.stack([pose, pose, pose + 3.0])
        >>> pose_loss(moved, pose, period=1).item(), pose_loss(moved, pose, period=2, anchored=True).item()
        (0.0, 36.0)
    """
    check_floating("positions", positions)
    check_same_dtype(positions=positions, pose=check_floating("pose", pose))
    if pose.ndim != 2 or positions.ndim < 3 or len(positions) < 2 or positions.shape[-2:] != pose.shape:
        raise ValueError(
            "positions must have shape [steps + 1, *batch, n, d] and pose [n, d] with steps >= 1, "
            f"got {tuple(positions.shape)} and {tuple(pose.shape)}"
        )
    check_integer("period", period, 1, len(positions) - 1)
    off = positions[period::period] - pose
    if not anchored:
        off = off - off.mean(-2, keepdim=True)
    return off.square().sum((-2, -1)).mean(0)


def actuation_loss(
    controls: Float[Tensor, "steps *batch m"], target: Float[Tensor, "steps *batch"], *, scale: float = 0.08
) -> Float[Tensor, "*batch"]:
    r"""Return the mean of :math:`\max(|u| - \sqrt{|v| / v_1}, 0)`: slow goals must be reached with small commands.

    Args:
        controls: ``[steps, *batch, m]``, u.
        target: ``[steps, *batch]`` wanted displacements, v.
        scale: v_1 > 0, from which on commands of 1 are free.

    Raises:
        ValueError: shapes do not fit, ``scale`` not positive.

    Example:
        >>> actuation_loss(torch.tensor([[1.0, -0.25]]), torch.tensor([0.02])).item()
        0.25
    """
    check_positive("scale", scale)
    check_floating("controls", controls)
    check_floating("target", target)
    check_same_dtype(controls=controls, target=target)
    if controls.ndim < 2 or controls.shape[:-1] != target.shape or not controls.numel():
        raise ValueError(
            f"controls must have shape [steps, *batch, m] and target [steps, *batch], got {tuple(controls.shape)} "
            f"and {tuple(target.shape)}"
        )
    size = target.abs() / scale
    free = torch.where(size > 0, torch.where(size > 0, size, 1.0).sqrt(), 0.0)
    return (controls.abs() - free[..., None]).clamp_min(0).mean((0, -1))


def _check_pair(name: str, value: Tensor, target: Tensor, other: str = "target") -> int:
    check_same_dtype(**{name: check_floating(name, value), other: check_floating(other, target)})
    if not target.ndim or not len(target) or value.shape != (len(target) + 1, *target.shape[1:]):
        raise ValueError(
            f"{name} must have shape [steps + 1, *batch] and {other} [steps, *batch] with steps >= 1, "
            f"got {tuple(value.shape)} and {tuple(target.shape)}"
        )
    return len(target)

r"""Online-to-nonconvex conversion: a learner of moves makes a method for losses with kinks and without convexity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_integer, check_positive
from pullback.core.random import drawing_device

__all__ = ["HorizonPlan", "OnlineToNonconvex", "horizon_plan"]

Learner = Literal["ogd", "optimistic"]


class HorizonPlan(NamedTuple):
    """What the theorem takes for a number of gradients.

    Attributes:
        horizon: ``T``, gradients in an epoch.
        epochs: ``K``.
        length: ``D``, the greatest length of a move.
        lr: ``eta``, step size of the learner.
        bound: on the expected norm of an epoch's mean gradient.
    """

    horizon: int
    epochs: int
    length: float
    lr: float
    bound: float


def horizon_plan(calls: int, radius: float, lipschitz: float, gap: float) -> HorizonPlan:
    r"""Return the horizon with which :class:`OnlineToNonconvex` spends a number of gradients best.

    .. math:: T = \min(\lceil (G N \delta / \Delta)^{2/3} \rceil, \lfloor N / 2 \rfloor), \quad K = \lfloor N/T \rfloor,
        \quad D = \delta / T, \quad \eta = D / (G \sqrt T), \qquad
        \mathbb E \frac1K \sum_k \Big| \frac1T \sum_t \nabla F(w_t^k) \Big| \le \frac{\Delta}{\delta K} +
        \frac{2 G}{\sqrt T}

    The bound is ``O((G^2 Delta / (N delta))^{1/3})``. It adds what the epoch's best fixed move would gain, the regret
    ``D G sqrt T`` of the learner and the noise of the mean, ``D G sqrt T`` again.

    Args:
        calls: ``N`` >= 4, stochastic gradients.
        radius: ``delta`` > 0, how far the points of an epoch may be from their mean.
        lipschitz: ``G`` > 0, ``G^2`` a bound on the mean square of a stochastic gradient's norm.
        gap: ``Delta`` > 0, the first loss less the least one.

    Returns:
        The plan; ``T`` is at least 2.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.

    Example:
        >>> plan = horizon_plan(8000, radius=0.1, lipschitz=1.0, gap=0.8)
        >>> plan.horizon, plan.epochs, plan.length
        (100, 80, 0.001)
        >>> round(plan.bound, 6)  # 0.8 / (0.1 * 80) + 2 / 10
        0.3

    References:
        Cutkosky, Mehta, Orabona (2023), Optimal stochastic non-smooth non-convex optimization through
        online-to-non-convex conversion, section 3. The bound is the line of its proof before constants are rounded.
    """
    check_integer("calls", calls, 4)
    for name, value in (("radius", radius), ("lipschitz", lipschitz), ("gap", gap)):
        check_positive(name, value)
    ideal = lipschitz / gap * radius * calls
    horizon = max(2, min(math.ceil(round(ideal ** (2 / 3), 9)), calls // 2))  # rounded: 100.00000000000001 is 100
    epochs, length = calls // horizon, radius / horizon
    bound = gap / radius / epochs + 2 * lipschitz / math.sqrt(horizon)
    return HorizonPlan(horizon, epochs, length, length / lipschitz / math.sqrt(horizon), bound)


class OnlineToNonconvex(torch.optim.Optimizer):
    r"""Descent by an online learner of bounded moves, with gradients taken at a random point of each move.

    .. math:: x_n = x_{n-1} + \Delta_n, \quad w_n = x_{n-1} + s_n \Delta_n, \quad s_n \sim U[0, 1], \qquad
        \Delta_{n+1} = \Pi_{|\Delta| \le D} (\Delta_n - \eta g_n)

    The parameters are ``w_n``, where the next gradient ``g_n`` is taken: one a step, and nothing to call besides
    ``step()``. For any loss with a gradient almost everywhere ``E <grad F(w_n), Delta_n> = F(x_n) - F(x_{n-1})``, kinks
    or not, so the regret of the learner bounds how large the mean gradient of an epoch can stay. Each epoch of
    ``horizon`` steps begins with ``Delta = 0``; its points are within ``radius`` of their mean, as
    ``D = radius / horizon``. ``output()`` is that mean, for an epoch drawn at random or the last one. Within an
    epoch this is momentum without decay, clipped: a long horizon is near to SGD with momentum.

    A group's ``lr`` is ``D``, so that schedulers shorten the moves. ``eta`` is ``D / (lipschitz sqrt T)``; without
    ``lipschitz`` it is ``D`` over the root of the sum of the epoch's squared gradient norms so far. Norms are over all
    parameters of a group together. The learner ``"optimistic"`` takes the last gradient for the next one,
    ``Delta_{n+1} = Pi(v_{n+1} - eta g_n)`` with ``v_{n+1} = Pi(v_n - eta g_n)``: for smooth losses.

    Args:
        params: parameters, or dictionaries of parameter groups.
        radius: ``delta`` > 0, in units of the parameters; a number, or a tensor that broadcasts against the batch.
        horizon: ``T`` >= 2, steps in an epoch, see :func:`horizon_plan`.
        lipschitz: ``G`` > 0, or ``None``.
        learner: ``"ogd"`` or ``"optimistic"``.
        random_scaling: ``False``: ``s_n = 1``, as ordinary methods do, without guarantee.
        batch_ndim: leading dimensions that all parameters share and that count problems, each with its own norms and
            ``s_n``: for ensembles in one tensor.
        generator: of ``s_n`` and of the epoch that ``output`` returns. Its state is the caller's to save.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or the shape of a parameter does not begin as that of the others.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = OnlineToNonconvex([w], radius=0.5, horizon=50, generator=torch.Generator().manual_seed(0))
        >>> for _ in range(1000):
        ...     optimizer.zero_grad()
        ...     w.abs().sum().backward()
        ...     optimizer.step()
        >>> optimizer.output("last")[0].abs().max().item() < 0.1
        True

    References:
        Cutkosky, Mehta, Orabona (2023), Optimal stochastic non-smooth non-convex optimization through
        online-to-non-convex conversion, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        radius: float | Tensor,
        horizon: int,
        lipschitz: float | None = None,
        learner: Learner = "ogd",
        random_scaling: bool = True,
        batch_ndim: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        self.generator = generator
        options = {"radius": radius, "horizon": horizon, "lipschitz": lipschitz, "learner": learner, "steps": 0}
        super().__init__(params, {**options, "random_scaling": random_scaling, "batch_ndim": batch_ndim})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its options are checked like those of the optimizer."""
        options = {**self.defaults, **param_group}
        check_positive("radius", options["radius"])
        check_integer("horizon", options["horizon"], 2)
        if options["lipschitz"] is not None:
            check_positive("lipschitz", options["lipschitz"])
        check_choice("learner", options["learner"], get_args(Learner))
        if not isinstance(options["random_scaling"], bool):
            raise TypeError(f"random_scaling must be True or False, got {type(options['random_scaling']).__name__}")
        check_integer("batch_ndim", options["batch_ndim"], 0)
        super().add_param_group({"lr": options["radius"] / options["horizon"], **param_group})
        group = self.param_groups[-1]
        shapes = {tuple(p.shape[: group["batch_ndim"]]) for p in group["params"]}
        if len(shapes) > 1 or len(next(iter(shapes))) < group["batch_ndim"]:
            raise ValueError(f"the first {group['batch_ndim']} sizes of all parameters must agree, got {shapes}")
        if isinstance(group["radius"], Tensor):
            torch.broadcast_to(group["radius"], next(iter(shapes)))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Hand the gradients that are there to the learner, and go where the next ones are wanted.

        Args:
            closure: evaluates the loss again, with its gradients.

        Returns:
            What ``closure`` returns.

        Raises:
            RuntimeError: a gradient is sparse, or a parameter is complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            params = [p for p in group["params"] if p.grad is not None and p.numel()]
            for index, p in enumerate(params):
                if p.grad.is_sparse or p.is_complex():
                    kind = "complex parameters" if p.is_complex() else "sparse gradients"
                    raise RuntimeError(f"OnlineToNonconvex takes no {kind}, got parameter {index} of group {number}")
                if not self.state[p]:
                    names = ("move", "mean", "last", "random") + ("base",) * (group["learner"] == "optimistic")
                    self.state[p].update({name: torch.zeros_like(p) for name in names}, origin=p.detach().clone())
            if params:
                self._step(group, params)
        return loss

    def _step(self, group: dict[str, Any], params: list[Any]) -> None:
        states, lead, horizon = [self.state[p] for p in params], group["batch_ndim"], group["horizon"]
        origins, moves, means = ([state[name] for state in states] for name in ("origin", "move", "mean"))
        done = group["steps"] % horizon + 1
        torch._foreach_add_(means, torch._foreach_sub(params, means), alpha=1 / done)
        torch._foreach_add_(origins, moves)
        gradients = [p.grad for p in params]
        rate, most = self._rate(group, gradients, states[0], done), group["lr"]
        pulls = [g * _over(rate, g, lead) for g in gradients]
        bases = [state.get("base", state["move"]) for state in states]
        torch._foreach_sub_(bases, pulls)
        _clip(bases, most, lead)
        if group["learner"] == "optimistic":
            torch._foreach_copy_(moves, torch._foreach_sub(bases, pulls))
            _clip(moves, most, lead)
        group["steps"] += 1
        if done == horizon:
            self._end_epoch(group["steps"] // horizon, states)
        scale = self._draw(params[0].shape[:lead], params[0]) if group["random_scaling"] else 1.0
        for p, origin, move in zip(params, origins, moves, strict=True):
            p.copy_(origin + move * _over(scale, move, lead))

    def _rate(self, group: dict[str, Any], gradients: list[Tensor], state: dict[str, Tensor], done: int) -> Any:
        if group["lipschitz"] is not None:
            return group["lr"] / (group["lipschitz"] * math.sqrt(group["horizon"]))
        length = _length(gradients, group["batch_ndim"])
        state["squares"] = length if done == 1 else torch.hypot(state["squares"], length)
        return group["lr"] / torch.where(state["squares"] == 0, 1, state["squares"])

    def _end_epoch(self, epochs: int, states: list[dict[str, Tensor]]) -> None:
        # Each epoch is as likely as the others in the end.
        kept = epochs == 1 or float(self._draw((), states[0]["mean"])) < 1 / epochs
        for state in states:
            state["last"].copy_(state["mean"])
            if kept:
                state["random"].copy_(state["mean"])
            for name in {"move", "base", "mean"} & state.keys():
                state[name].zero_()

    def _draw(self, shape: Any, like: Tensor) -> Tensor:
        drawn = torch.rand(shape, generator=self.generator, device=drawing_device(self.generator, like))
        return drawn.to(like)

    def output(self, epoch: Literal["random", "last"] = "random") -> list[Tensor]:
        """Return the mean of the points of an epoch that is over.

        Args:
            epoch: ``"random"``, the one the guarantee is of, or ``"last"``.

        Returns:
            A tensor for each parameter, in their order; a parameter that never had a gradient itself.

        Raises:
            ValueError: ``epoch`` is neither.
            RuntimeError: no epoch is over yet.
        """
        check_choice("epoch", epoch, ("random", "last"))
        for number, group in enumerate(self.param_groups):
            if group["steps"] < group["horizon"]:
                raise RuntimeError(
                    f"output() needs an epoch of {group['horizon']} steps, group {number} took {group['steps']}"
                )
        params = [p for group in self.param_groups for p in group["params"]]
        return [(self.state[p][epoch] if self.state[p] else p.detach()).clone() for p in params]


def _over(value: Any, x: Tensor, lead: int) -> Any:
    """Return ``value``, one for each problem, in a shape that broadcasts against ``x``."""
    if not isinstance(value, Tensor):
        return value
    return value.to(x).expand(x.shape[:lead]).reshape(x.shape[:lead] + (1,) * (x.ndim - lead))


def _clip(parts: list[Tensor], radius: Any, lead: int) -> None:
    length = _length(parts, lead)
    bound = radius.to(length) if isinstance(radius, Tensor) else radius
    factor = (bound / torch.where(length == 0, 1, length)).clamp(max=1)
    for part in parts:
        part.mul_(_over(factor, part, lead))


def _length(parts: list[Tensor], lead: int) -> Tensor:
    """Return the norm over all parts of each problem; squares are taken at ordinary size."""
    rows = [part.reshape(*part.shape[:lead], -1) for part in parts]
    largest = rows[0].abs().amax(-1)
    for row in rows[1:]:
        largest = torch.maximum(largest, row.abs().amax(-1))
    unit = torch.where(largest > 0, largest, 1)
    return unit * sum((row / unit[..., None]).square().sum(-1) for row in rows).sqrt()  # type: ignore[union-attr]

"""Maps that carry one cloud of points onto another at the least cost."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_callable, check_integer, check_positive, check_tensor
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look
from pullback.transport.costs import Cost, check_clouds
from pullback.transport.divergence import MongeGap, SinkhornDivergence, monge_gap, sinkhorn_divergence

__all__ = ["FittedMap", "TransportMapFit", "fit_transport_map", "unexplained_variance"]


class FittedMap(NamedTuple):
    """A trained map and what its training recorded.

    Attributes:
        map: the module, in place.
        fitting: ``[steps]`` Sinkhorn divergence between the images and the target.
        gap: ``[steps]`` Monge gap of the map; NaN without regularization.
    """

    map: nn.Module
    fitting: Float[Tensor, "steps"]
    gap: Float[Tensor, "steps"]


class TransportMapFit:
    r"""Training of a map of any architecture: :math:`\min_T S_\varepsilon(T\#\mu,\nu)+\lambda\,M^c_\varepsilon(T)`.

    The Sinkhorn divergence, for squared distances, carries the source onto the target; among all maps that do, the
    Monge gap prefers those that are optimal for the cost c. Adam, the step size falling to 0 on a cosine. Where all
    points are used in each step, potentials start from those of the last one.

    Args:
        map: from points ``[n, d]`` to points ``[n, d]``; trained in place, best begun near the identity.
        source: ``[n, d]`` points.
        target: ``[m, d]`` points.
        cost: of the Monge gap, see :func:`pairwise_cost`.
        regularization: lambda >= 0; without it any map that fits will do.
        relative_epsilon: > 0, as a part of the mean cost of each problem.
        steps: of Adam.
        lr: step size at the beginning, > 0.
        batch: points of each cloud a step, drawn without replacement; ``None``: all.
        max_iterations: sweeps at most a problem and step, enough for potentials that start near. With ``batch`` they do
            not: 30 leave residuals near 0.1 where ``relative_epsilon`` is 0.02, and values right to some percent.
        tolerance: > 0, of the residual of a problem.
        generator: source of the draws of batches.

    Attributes:
        taken: steps taken.

    Raises:
        TypeError, ValueError: arguments of another kind or out of range.

    Example:
        >>> x = torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
        >>> fit = TransportMapFit(torch.nn.Linear(1, 1), x, 3 * x + 1, steps=2)
        >>> fit.step()
        >>> fit.taken, fit.finished
        (1, False)

    References:
        Uscidda, Cuturi (2023), The Monge gap: a regularizer to learn all transport maps, equation 8.
    """

    def __init__(
        self,
        map: nn.Module,
        source: Float[Tensor, "n d"],
        target: Float[Tensor, "m d"],
        *,
        cost: Cost = "sqeuclidean",
        regularization: float = 1.0,
        relative_epsilon: float = 0.05,
        steps: int = 300,
        lr: float = 1e-2,
        batch: int | None = None,
        max_iterations: int = 30,
        tolerance: float = 1e-3,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(map, nn.Module):
            raise TypeError(f"map must be a torch.nn.Module, got {type(map).__name__}")
        check_tensor("source", source)
        check_tensor("target", target)
        check_clouds(source, target)
        check_positive("regularization", regularization, zero=True)
        for name, value in (("relative_epsilon", relative_epsilon), ("lr", lr), ("tolerance", tolerance)):
            check_positive(name, value)
        self.steps, self.taken = check_integer("steps", steps, 1), 0
        if batch is not None:
            check_integer("batch", batch, 1, min(len(source), len(target)))
        self.map, self._source, self._target, self._cost = map, source.detach(), target.detach(), cost
        self._regularization, self._batch, self._generator = regularization, batch, generator
        self._options: dict[str, Any] = {
            "relative_epsilon": relative_epsilon,
            "max_iterations": check_integer("max_iterations", max_iterations, 1),
            "tolerance": tolerance,
        }
        self._lr, self._optimizer = lr, torch.optim.Adam(map.parameters(), lr=lr)
        self._history: dict[str, list[float]] = {"fitting": [], "gap": []}
        self._starts: dict[str, Tensor] = {}

    @property
    def finished(self) -> bool:
        """Whether all steps were taken."""
        return self.taken >= self.steps

    def step(self) -> None:
        """Take one step of Adam; nothing happens once all were taken."""
        if self.finished:
            return
        x, y = (self._drawn(points) for points in (self._source, self._target))
        image = self.map(x)
        last = self._starts if self._batch is None else {}
        near = (last["g"], last["of_x"], last["of_y"]) if last else None
        fitting = sinkhorn_divergence(image, y, start=near, **self._options)
        loss, gap = fitting.value, None
        if self._regularization:
            gap = monge_gap(x, image, cost=self._cost, start=last.get("gap"), **self._options)
            loss = loss + self._regularization * gap.value
        for group in self._optimizer.param_groups:
            group["lr"] = self._lr * (1 + math.cos(math.pi * self.taken / self.steps)) / 2
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self._remember(fitting, gap)
        self.taken += 1

    def result(self) -> FittedMap:
        """Return the map and what was recorded so far."""
        return FittedMap(self.map, *(torch.tensor(self._history[name]) for name in ("fitting", "gap")))

    def state_dict(self) -> dict[str, Any]:
        """Return all that the steps change."""
        return {
            "map": self.map.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "taken": self.taken,
            "history": {name: list(values) for name, values in self._history.items()},
            "starts": dict(self._starts),
            "generator": None if self._generator is None else self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from the state of a training of the same map with the same points."""
        self.map.load_state_dict(state["map"])
        self._optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # torch would share its tensors
        self.taken, self._starts = int(state["taken"]), dict(state["starts"])
        self._history = {name: list(values) for name, values in state["history"].items()}
        if self._generator is not None and state["generator"] is not None:
            self._generator.set_state(state["generator"])

    def _drawn(self, points: Tensor) -> Tensor:
        if self._batch is None:
            return points
        device = drawing_device(self._generator, points)
        order = torch.randperm(len(points), generator=self._generator, device=device)
        return points[order[: self._batch].to(points.device)]

    def _remember(self, fitting: SinkhornDivergence, gap: MongeGap | None) -> None:
        self._history["fitting"].append(float(fitting.value.detach()))
        self._history["gap"].append(math.nan if gap is None else float(gap.value.detach()))
        if self._batch is None:
            self._starts = {"g": fitting.g, "of_x": fitting.of_x, "of_y": fitting.of_y}
            if gap is not None:
                self._starts["gap"] = gap.g


def fit_transport_map(
    map: nn.Module, source: Float[Tensor, "n d"], target: Float[Tensor, "m d"], **options: Any
) -> FittedMap:
    """Train a map that carries the source onto the target at the least cost.

    Args:
        map, source, target: see :class:`TransportMapFit`, which takes the same training step by step.
        **options: of :class:`TransportMapFit`: cost, regularization, relative_epsilon, steps, lr, batch, generator.

    Returns:
        :class:`FittedMap`.

    Raises:
        TypeError, ValueError: arguments of another kind or out of range.

    Example:
        >>> x, line = torch.linspace(-1, 1, 10).unsqueeze(-1), torch.nn.Linear(1, 1)
        >>> _ = torch.nn.init.eye_(line.weight)
        >>> found = fit_transport_map(line, x, 3 * x + 1, lr=0.2, steps=50)
        >>> abs(line.weight.item() - 3) < 0.3, abs(line.bias.item() - 1) < 0.1
        (True, True)

    References:
        Uscidda, Cuturi (2023), The Monge gap: a regularizer to learn all transport maps.
    """
    fit = TransportMapFit(map, source, target, **options)
    while not fit.finished:
        fit.step()
    return fit.result()


def unexplained_variance(
    map: Callable[[Tensor], Tensor], reference_map: Callable[[Tensor], Tensor], x: Float[Tensor, "*batch n d"]
) -> Float[Tensor, "*batch"]:
    r"""Return the L2-UVP, :math:`100\,E|T(x)-T^*(x)|^2/\mathrm{Var}\,T^*(x)`, in percent.

    100 is what the best constant map has.

    Args:
        map: T, from points to points of any shape that the reference has too.
        reference_map: the optimal map.
        x: ``[*batch, n, d]`` samples of the source, n >= 2.

    Returns:
        ``[*batch]``.

    Raises:
        TypeError: a map cannot be called.
        ValueError: the images differ in shape or have no coordinates, those of the reference are one point, or x is
            not ``[*batch, n, d]`` with n >= 2.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> unexplained_variance(lambda x: x + 0.5, lambda x: x, x)
        tensor(25.)

    References:
        Korotin, Li, Genevay, Solomon, Filippov, Burnaev (2021), Do neural optimal transport solvers work?, section 5.1.
    """
    check_callable("map", map)
    check_callable("reference_map", reference_map)
    if check_tensor("x", x).ndim < 2 or x.shape[-2] < 2:
        raise ValueError(f"x must have shape (..., n, d) with n >= 2, got {tuple(x.shape)}")
    image, wanted = map(x), reference_map(x)
    if image.shape != wanted.shape:
        raise ValueError(f"map must return the shape of the reference, {tuple(wanted.shape)}, got {tuple(image.shape)}")
    if not wanted.shape[-1]:
        raise ValueError("reference_map must return points with at least one coordinate")
    wide, exact = image.double(), wanted.double()
    around = exact - exact.mean(-2, keepdim=True)
    unit = around.detach().abs().amax((-2, -1), keepdim=True)
    if can_look(unit) and not bool((unit > 0).all()):
        raise ValueError("reference_map must not be constant: its images have no variance")
    error, spread = (((wide - exact) / unit), around / unit)
    return (100 * error.square().sum(-1).mean(-1) / spread.square().sum(-1).mean(-1)).to(image.dtype)

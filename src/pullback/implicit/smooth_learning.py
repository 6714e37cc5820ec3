"""Functions with the least Lipschitz constant on a manifold: a weight a point, moved to where they are steep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from pullback.core.checks import check_integer
from pullback.core.shapes import Float, Tensor
from pullback.implicit.arguments import check_number
from pullback.implicit.multipliers import Multipliers
from pullback.implicit.point_cloud import PointCloudGraph, gradient_energy
from pullback.implicit.projections import projection_simplex
from pullback.implicit.variables import Function, Variables, check_optimizer

__all__ = ["SmoothManifoldLearning", "SmoothState"]


class SmoothState(NamedTuple):
    """Where a step of :class:`SmoothManifoldLearning` began.

    Attributes:
        step: how many steps were taken before.
        loss: on the labelled points, no dimensions.
        energy: ``[n]``, the squared gradient at each point.
        multipliers: ``[n]``, >= 0, of sum 1.
        price: multiplier of the bound on the loss.
        lipschitz: the estimate of the Lipschitz constant, ``sqrt(sum_i multiplier_i energy_i)``: at a solution it is
            the root of the largest energy.
    """

    step: int
    loss: Float[Tensor, ""]
    energy: Float[Tensor, "n"]
    multipliers: Float[Tensor, "n"]
    price: Float[Tensor, ""]
    lipschitz: Float[Tensor, ""]


class SmoothManifoldLearning:
    r"""Learn the function of least Lipschitz constant on a manifold, by a primal and a dual step at a time.

    ``min_{f, rho} rho^2`` subject to ``loss(f) <= loss_bound`` and ``|grad f(z_i)|^2 <= rho^2`` at every point. In
    ``rho`` the Lagrangian is linear, ``rho^2 (1 - sum_i lambda_i)``: the multipliers of the gradients have sum 1, and
    what is left is manifold regularisation with a weight a point,

    ``L(f, lambda, mu) = sum_i lambda_i e_i + mu (loss(f) - loss_bound)``

    with the :func:`gradient_energy` ``e``. A step moves ``f`` down, ``mu`` by ``loss_lr`` times the slack of the loss,
    and ``lambda`` to the projection of ``lambda + dual_lr e / max e`` onto the simplex: weight gathers where ``f`` is
    steepest.

    Args:
        fit: ``fit(x)``, the loss on the labelled points (one number) and the function at all points (``[n]`` or
            ``[n, c]``), from one evaluation.
        x: what is learned: a module, which is handed to ``fit`` as such, a floating tensor or a nesting of them.
        graph: of :func:`point_cloud_laplacian`, over all points.
        loss_bound: >= 0.
        optimizer: over the tensors of ``x``.
        dual_lr: >= 0, step size of ``lambda``; 0 keeps it at ``1 / n``, plain manifold regularisation at that loss.
        loss_lr: >= 0, step size of ``mu``.
        warm_up: >= 0, steps before ``lambda`` moves.
        initial: >= 0, the first ``mu``.

    Attributes:
        taken: how many steps were taken.
        multipliers: ``[n]``, ``lambda``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is out of range, or the optimizer lacks a tensor of ``x``.

    Example:
        >>> from pullback.implicit import point_cloud_laplacian
        >>> z = torch.linspace(0, 1, 21)[:, None]  # 0 at one end, 1 at the other: the smoothest is the straight line
        >>> values = z[:, 0] ** 2
        >>> learner = SmoothManifoldLearning(
        ...     lambda f: ((f[0] ** 2 + (f[-1] - 1) ** 2), f),
        ...     values,
        ...     point_cloud_laplacian(z, scale=1e-3, neighbours=2),
        ...     loss_bound=1e-4,
        ...     optimizer=torch.optim.Adam([values], lr=0.01),
        ...     dual_lr=0.01,
        ...     loss_lr=10.0,
        ...     initial=10.0,
        ... )
        >>> for _ in range(500):
        ...     state = learner.step()
        >>> bool((values - z[:, 0]).abs().max() < 0.05)
        True

    References:
        Cervino, Chamon, Haeffele, Vidal, Ribeiro (2023), Learning globally smooth functions on manifolds, algorithm 1.
    """

    def __init__(
        self,
        fit: Callable[[Any], tuple[Tensor, Tensor]],
        x: Any,
        graph: PointCloudGraph,
        *,
        loss_bound: float,
        optimizer: Optimizer,
        dual_lr: float,
        loss_lr: float,
        warm_up: int = 0,
        initial: float = 1.0,
    ) -> None:
        if not isinstance(graph, PointCloudGraph):
            raise TypeError(f"graph must be a PointCloudGraph, got {type(graph).__name__}")
        check_number("loss_bound", loss_bound, zero=True)
        check_number("dual_lr", dual_lr, zero=True)
        check_number("loss_lr", loss_lr, zero=True)
        check_number("initial", initial, zero=True)
        check_integer("warm_up", warm_up, 0)
        self._x = Variables.of("x", x)
        check_optimizer("optimizer", optimizer, self._x)
        self._fit = Function("fit", fit, self._x)
        self._graph, self._optimizer = graph, optimizer
        self._bound, self._dual_lr, self._warm_up = loss_bound, dual_lr, warm_up
        self._price = Multipliers(1, lr=loss_lr, initial=initial).to(graph.degree)
        self.multipliers = torch.full_like(graph.degree, 1 / len(graph.degree))
        self.taken = 0

    def step(self) -> SmoothState:
        """Move the function, then both kinds of multipliers.

        Raises:
            ValueError: ``fit`` does not return one number and one value for each point; the loss is NaN, as a mean over
                no labelled points is.
            InfeasibleError: ``mu`` became infinite.
        """
        with torch.enable_grad():
            live = self._x.live()
            found = self._fit(live)
            if not isinstance(found, tuple) or len(found) != 2 or not all(isinstance(part, Tensor) for part in found):
                raise ValueError("fit must return a pair of tensors, the loss and the values at all points")
            loss, values = found
            if loss.numel() != 1:
                raise ValueError(f"fit must return a loss of one element, got shape {tuple(loss.shape)}")
            loss = loss.reshape(())
            if bool(loss.isnan()):
                raise ValueError("fit must return a loss that is a number, got NaN: no labelled points, or large steps")
            energy = gradient_energy(values, self._graph)
            lagrangian = (self.multipliers * energy).sum() + self._price((loss - self._bound).reshape(1))
            slopes = torch.autograd.grad(lagrangian, live, allow_unused=True)
        loss, energy = loss.detach(), energy.detach()
        dual = (self.multipliers * energy).sum()
        state = SmoothState(
            self.taken, loss, energy, self.multipliers.clone(), self._price.values[0].clone(), dual.sqrt()
        )
        for leaf, slope in zip(self._x.leaves, slopes, strict=True):
            leaf.grad = slope
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._price.ascend((loss - self._bound).reshape(1))
        steepest = energy.max()
        if self.taken >= self._warm_up and self._dual_lr and steepest > 0:
            self.multipliers = projection_simplex(self.multipliers + self._dual_lr * energy / steepest)
        self.taken += 1
        return state

    def state_dict(self) -> dict[str, Any]:
        """Return all that a step changes: what is learned, the optimizer, the multipliers and the count."""
        return {
            "x": [leaf.detach() for leaf in self._x.leaves],
            "optimizer": self._optimizer.state_dict(),
            "multipliers": self.multipliers,
            "price": self._price.values,
            "taken": self.taken,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`."""
        self._x.assign(state["x"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.multipliers = state["multipliers"].clone()
        self._price.values.copy_(state["price"])
        self.taken = state["taken"]

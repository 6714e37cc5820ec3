"""The dual of a multiclass SVM: a problem over a product of simplices, whose solution three conditions describe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import grad

from pullback.core.checks import check_choice, check_floating, check_integer, check_same_dtype, check_shape
from pullback.core.shapes import Float, Tensor
from pullback.implicit import optimality
from pullback.implicit.iteration import Map
from pullback.implicit.optimality import Conditions, KKTPoint
from pullback.implicit.projections import projection_simplex
from pullback.implicit.roots import custom_fixed_point, custom_root
from pullback.implicit.solvers import minimize

__all__ = ["MulticlassSVM"]


@dataclass(frozen=True)
class MulticlassSVM:
    r"""The dual problem of Crammer and Singer's multiclass SVM, whose unknown has one point of the simplex a sample.

    With features ``X``, one-hot labels ``Y`` and regularisation ``r > 0`` the weights are ``W = X^T (Y - D) / r``, and
    ``D`` minimises ``r |W|^2 / 2 + <D, Y>`` over matrices whose rows are in the simplex.

    Attributes:
        features: ``[n, d]`` one row a sample, floating.
        targets: ``[n, k]`` one-hot labels of the same dtype.

    Raises:
        TypeError: features that are no floating tensor, targets of another dtype.
        ValueError: other shapes.

    Example:
        >>> features = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
        >>> svm = MulticlassSVM(features, torch.eye(2, dtype=torch.float64))
        >>> r = torch.tensor(1.0, dtype=torch.float64)
        >>> dual = svm.solve(svm.uniform(), r)  # the margin is 1: scores of 1/2 and -1/2
        >>> svm.weights(dual, r).mul(100).round().tolist()
        [[50.0, -50.0]]

    References:
        Crammer, Singer (2001), On the algorithmic implementation of multiclass kernel-based vector machines; Blondel et
        al. (2022), Efficient and modular implicit differentiation, section 4.1.
    """

    features: Float[Tensor, "n d"]
    targets: Float[Tensor, "n k"]

    def __post_init__(self) -> None:
        check_floating("features", self.features)
        check_shape("features", self.features, (None, None))
        check_same_dtype(features=self.features, targets=self.targets)
        check_shape("targets", self.targets, (len(self.features), None))

    def uniform(self) -> Float[Tensor, "n k"]:
        """Return the centres of the simplices, where a solver starts."""
        return torch.full_like(self.targets, 1 / self.targets.shape[-1])

    def curvature(self) -> Float[Tensor, ""]:
        """Return the largest eigenvalue of ``X X^T``; that of the objective's Hessian is this divided by ``r``."""
        return torch.linalg.matrix_norm(self.features, 2) ** 2

    def weights(self, dual: Float[Tensor, "n k"], regularisation: Float[Tensor, ""]) -> Float[Tensor, "d k"]:
        """Return the weights of a dual point."""
        return self.features.T @ (self.targets - dual) / regularisation

    def objective(self, dual: Float[Tensor, "n k"], regularisation: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """Return what the dual solution minimises."""
        return regularisation * (self.weights(dual, regularisation) ** 2).sum() / 2 + (dual * self.targets).sum()

    def solve(
        self, init: Float[Tensor, "n k"], regularisation: Float[Tensor, ""], *, tolerance: float = 1e-8
    ) -> Float[Tensor, "n k"]:
        """Return the dual solution, found by accelerated projected gradients from ``init``.

        Raises:
            ConvergenceError: the projected gradient does not fall to ``tolerance`` within 20 000 iterations.
        """
        solution = minimize(
            self.objective,
            init,
            regularisation,
            prox=lambda y, step, r: projection_simplex(y),
            tolerance=tolerance,
            max_iterations=20_000,
            check=True,
        )
        return solution.value

    def iterate(
        self, init: Float[Tensor, "n k"], regularisation: Float[Tensor, ""], steps: int
    ) -> Float[Tensor, "n k"]:
        """Return the dual after that many accelerated projected gradients: where unrolled, each is differentiated."""
        check_integer("steps", steps, 0)
        update, dual, point, momentum = self.projected_gradient(regularisation.detach()), init, init, 1.0
        for _ in range(steps):
            new = update(point, regularisation)
            following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            dual, point, momentum = new, new + (momentum - 1) / following * (new - dual), following
        return dual

    def projected_gradient(self, regularisation: Float[Tensor, ""]) -> Conditions:
        """Return the map of ``(dual, r)`` whose fixed point is the solution, its step the inverse of the curvature."""
        step = (regularisation / self.curvature()).item()
        return optimality.projected_gradient(self.objective, lambda y, r: projection_simplex(y), step=step)

    def mirror_descent(self, regularisation: Float[Tensor, ""]) -> Conditions:
        """Return the map of mirror descent with the entropy, with that step."""
        step = (regularisation / self.curvature()).item()
        # The solution has exact zeros, where the logarithm needs a floor.
        floor = torch.finfo(self.features.dtype).tiny
        back, log = (lambda y, r: y.softmax(-1)), (lambda y: y.clamp(min=floor).log())
        return optimality.mirror_descent(self.objective, back, log, step=step)

    def differentiable(
        self,
        dual: Float[Tensor, "n k"],
        regularisation: Float[Tensor, ""],
        condition: str = "projected gradient",
        *,
        tolerance: float = 1e-9,
        max_iterations: int | None = None,
    ) -> Float[Tensor, "n k"]:
        """Return a solution with its derivative in the regularisation, whatever found it.

        Args:
            dual: the solution.
            regularisation: ``r``, which gets the derivative.
            condition: ``"projected gradient"``, ``"mirror descent"`` or ``"KKT"``: what the solution satisfies. The
                derivative is the same; the linear system of KKT has ``2 k + 1`` unknowns a sample instead of ``k``.
            tolerance, max_iterations: of the linear solve, see :func:`~pullback.implicit.linear_solve`.

        Raises:
            ValueError: another condition.
        """
        check_choice("condition", condition, ("projected gradient", "mirror descent", "KKT"))
        limits: dict[str, Any] = {"tolerance": tolerance, "max_iterations": max_iterations}
        if condition == "KKT":
            kkt = optimality.kkt(self.objective, lambda y, r: y.sum(-1, keepdim=True) - 1, lambda y, r: -y)
            point: KKTPoint = custom_root(kkt, **limits)(self.multipliers)(dual, regularisation)
            return point.primal
        fixed = self.projected_gradient(regularisation.detach())
        precondition: Map | None = None
        if condition == "mirror descent":
            # The map scales the gradient by the dual, whose entries differ ten thousandfold: divided by them again, the
            # linear system is conditioned like that of the projected gradient.
            fixed, scale = self.mirror_descent(regularisation.detach()), torch.where(dual > 0, dual, 1).flatten()
            precondition = scale.reciprocal().mul
        decorate = custom_fixed_point(fixed, preconditioner=precondition, **limits)
        solution: Tensor = decorate(lambda init, r: init)(dual, regularisation)
        return solution

    def multipliers(self, dual: Float[Tensor, "n k"], regularisation: Float[Tensor, ""]) -> KKTPoint:
        """Return a solution with its multipliers: of ``sum = 1``, one a row, and of ``dual >= 0``."""
        slope, inside = grad(self.objective)(dual, regularisation), dual > 0
        level = -(slope * inside).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True)
        return KKTPoint(dual, level, torch.where(inside, 0, (slope + level).clamp(min=0)))

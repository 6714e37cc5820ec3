r"""Optimality conditions ``F(x, *theta) = 0`` and fixed-point maps ``T(x, *theta) = x`` built from objectives.

Each takes functions of ``(x, *theta)`` and returns one, for :func:`~pullback.implicit.custom_root` (``stationary``,
``kkt``) or :func:`~pullback.implicit.custom_fixed_point` (the others). Objectives return a scalar, or one value a
problem for batches of independent problems (they are summed). ``x`` is a tensor or any nesting of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree

from pullback.core.numerics import solve
from pullback.core.rows import Rows
from pullback.core.shapes import Tensor
from pullback.core.transforms import can_look
from pullback.implicit.arguments import check_function, check_number

__all__ = [
    "Conditions",
    "KKTPoint",
    "block_proximal",
    "kkt",
    "mirror_descent",
    "newton",
    "projected_gradient",
    "proximal_gradient",
    "stationary",
]

Function = Callable[..., Any]


@dataclass(frozen=True)
class Conditions:
    """A function of ``(x, *theta)`` that is zero, or returns ``x``, at the solution.

    Attributes:
        function: the function.
        symmetric: whether its Jacobian in ``x`` is symmetric, which allows conjugate gradients.
    """

    function: Function
    symmetric: bool = False

    def __call__(self, x: Any, *theta: Any) -> Any:
        """Return the function's value."""
        return self.function(x, *theta)


class KKTPoint(NamedTuple):
    """Primal and dual variables of a constrained problem.

    Attributes:
        primal: ``x``.
        equality: multipliers ``nu`` of ``H(x) = 0``, shaped like ``H(x)``; empty without equalities.
        inequality: multipliers ``lam >= 0`` of ``G(x) <= 0``, shaped like ``G(x)``; empty without inequalities.
    """

    primal: Any
    equality: Tensor
    inequality: Tensor


def stationary(objective: Function) -> Conditions:
    r"""Return ``F = grad_x f(x, *theta)``, the condition of an unconstrained minimum.

    Args:
        objective: ``f(x, *theta)``, a scalar or one value a problem.

    Returns:
        ``F``, with a symmetric Jacobian (the Hessian).

    Example:
        >>> stationary(lambda x, a: ((x - a) ** 2).sum())(torch.tensor([1.0]), torch.tensor([3.0]))
        tensor([-4.])

    References:
        Blondel et al. (2022), equation 4.
    """
    check_function("objective", objective)
    return Conditions(_gradient(objective), symmetric=True)


def kkt(objective: Function, equality: Function | None = None, inequality: Function | None = None) -> Conditions:
    r"""Return the Karush-Kuhn-Tucker conditions of ``min f(x) s.t. H(x) = 0, G(x) <= 0``.

    .. math:: F(x, \nu, \lambda) = (\nabla f + H'^T \nu + G'^T \lambda,\; H(x),\; \lambda \odot G(x))

    Args:
        objective: ``f(x, *theta)``.
        equality: ``H(x, *theta)``, a tensor.
        inequality: ``G(x, *theta)``, a tensor.

    Returns:
        ``F(point, *theta)`` on :class:`KKTPoint`, returning a :class:`KKTPoint` of the residuals.

    Raises:
        ValueError: there is no constraint; use :func:`stationary`.

    Example:
        >>> conditions = kkt(lambda x, a: ((x - a) ** 2).sum() / 2, equality=lambda x, a: x.sum()[None] - 1)
        >>> none = torch.zeros(0)
        >>> conditions(KKTPoint(torch.tensor([0.0, 1.0]), torch.tensor([2.0]), none), torch.tensor([2.0, 3.0])).primal
        tensor([0., 0.])

    References:
        Blondel et al. (2022), equation 6.
    """
    if equality is None and inequality is None:
        raise ValueError("kkt needs equality or inequality; without constraints use stationary")
    check_function("objective", objective)
    for name, constraint in (("equality", equality), ("inequality", inequality)):
        if constraint is not None:
            check_function(name, constraint)

    def lagrangian(x: Any, point: KKTPoint, *theta: Any) -> Tensor:
        value = torch.as_tensor(objective(x, *theta)).sum()
        if equality is not None:
            value = value + (point.equality * equality(x, *theta)).sum()
        if inequality is not None:
            value = value + (point.inequality * inequality(x, *theta)).sum()
        return value

    def conditions(point: KKTPoint, *theta: Any) -> KKTPoint:
        x = point.primal
        return KKTPoint(
            torch.func.grad(lagrangian)(x, point, *theta),
            point.equality if equality is None else equality(x, *theta),
            point.inequality if inequality is None else point.inequality * inequality(x, *theta),
        )

    return Conditions(conditions)


def projected_gradient(objective: Function, projection: Function, *, step: float = 1.0) -> Conditions:
    r"""Return ``T = proj(x - step * grad f(x, *theta), *theta)``.

    Args:
        objective: ``f(x, *theta)``.
        projection: ``proj(y, *theta)`` on the feasible set, such as ``lambda y, *theta: projection_simplex(y)``.
        step: > 0; the fixed point and its derivative do not depend on it.

    Returns:
        ``T``.

    Example:
        >>> from pullback.implicit import projection_box
        >>> T = projected_gradient(lambda x, a: ((x - a) ** 2).sum() / 2, lambda y, a: projection_box(y))
        >>> T(torch.tensor([1.0, 0.5]), torch.tensor([3.0, 0.5]))
        tensor([1.0000, 0.5000])

    References:
        Blondel et al. (2022), equation 9.
    """
    check_function("projection", projection)
    return proximal_gradient(objective, lambda y, _step, *theta: projection(y, *theta), step=step)


def proximal_gradient(objective: Function, prox: Function, *, step: float = 1.0) -> Conditions:
    r"""Return ``T = prox(x - step * grad f(x, *theta), step, *theta)``, the condition of a minimum of ``f + g``.

    Args:
        objective: the smooth part ``f(x, *theta)``.
        prox: ``prox(y, step, *theta)`` of ``step * g``, such as ``lambda y, step, lam: prox_lasso(y, step * lam)``.
        step: > 0.

    Returns:
        ``T``.

    References:
        Blondel et al. (2022), equation 7.
    """
    check_function("objective", objective)
    check_function("prox", prox)
    check_number("step", step)
    gradient = _gradient(objective)

    def map(x: Any, *theta: Any) -> Any:
        return prox(_descend(x, gradient(x, *theta), step), step, *theta)

    return Conditions(map)


def mirror_descent(
    objective: Function,
    projection: Function | None = None,
    mapping: Callable[[Tensor], Tensor] | None = None,
    *,
    step: float = 1.0,
) -> Conditions:
    r"""Return ``T = proj_phi(grad phi(x) - step * grad f(x, *theta), *theta)``, a step in the geometry of ``phi``.

    The default is the entropy on the simplex (last dimension): ``grad phi = log`` and ``proj_phi = softmax``.

    Args:
        objective: ``f(x, *theta)``.
        projection: ``proj_phi(y, *theta)``, from the dual to the feasible set.
        mapping: ``grad phi``.
        step: > 0.

    Returns:
        ``T``. For the entropy ``x`` must be >= 0 with an entry > 0 in each row; derivatives in ``x`` need
        every entry > 0.

    Raises:
        ValueError: only one of ``projection`` and ``mapping`` is given; when called, ``x`` is not as the entropy needs.

    References:
        Blondel et al. (2022), equation 13; Beck, Teboulle (2003).
    """
    if (projection is None) != (mapping is None):
        raise ValueError("projection and mapping must be given together (or neither, for the entropy on the simplex)")
    check_function("objective", objective)
    check_number("step", step)
    gradient = _gradient(objective)
    dual: Callable[[Tensor], Tensor] = mapping or torch.log
    back: Function = projection or (lambda y, *theta: torch.softmax(y, -1))

    def map(x: Tensor, *theta: Any) -> Any:
        if mapping is None and can_look(x) and not bool(((x >= 0).all(-1) & (x > 0).any(-1)).all()):
            raise ValueError(
                "x must be >= 0 with an entry > 0 in each row, where the entropy on the simplex is defined"
            )
        return back(dual(x) - step * gradient(x, *theta), *theta)

    return Conditions(map)


def block_proximal(objective: Function, proxes: Sequence[Function], steps: Sequence[float]) -> Conditions:
    r"""Return one proximal gradient step in each block, ``T_j = prox_j(x_j - step_j * grad_j f(x), step_j, *theta)``.

    Args:
        objective: ``f(blocks, *theta)``, ``blocks`` a tuple of tensors.
        proxes: one ``prox_j(y, step, *theta)`` a block.
        steps: one step a block, > 0.

    Returns:
        ``T`` on tuples of blocks.

    Raises:
        ValueError: ``proxes`` and ``steps`` differ in length; when called, the number of blocks differs.

    References:
        Blondel et al. (2022), equation 15.
    """
    if len(proxes) != len(steps):
        raise ValueError(f"proxes and steps must be of one length, got {len(proxes)} and {len(steps)}")
    check_function("objective", objective)
    for step in steps:
        check_number("steps", step)
    gradient = _gradient(objective)

    def map(x: tuple[Tensor, ...], *theta: Any) -> tuple[Tensor, ...]:
        if len(x) != len(proxes):
            raise ValueError(f"x must have one block a prox, {len(proxes)}, got {len(x)}")
        slopes = gradient(x, *theta)
        return tuple(
            prox(block - step * slope, step, *theta)
            for block, slope, prox, step in zip(x, slopes, proxes, steps, strict=True)
        )

    return Conditions(map)


def newton(function: Function, *, step: float = 1.0) -> Conditions:
    r"""Return Newton's map ``T = x - step * [dG/dx]^{-1} G(x, *theta)`` of a root of ``G``.

    Args:
        function: ``G(x, *theta)``, with the structure and the shapes of ``x``; one system over all entries.
        step: > 0.

    Returns:
        ``T``. Its Jacobian at the root is ``(1 - step) I``, so the linear system of its derivative is trivial.

    Raises:
        TypeError: (when called) ``x`` holds something else than floating tensors.
        ValueError: (when called) ``function`` returns another shape than ``x``, or its Jacobian is singular there.

    Example:
        >>> newton(lambda x, a: x**2 - a)(torch.tensor([3.0, 1.0]), torch.tensor([4.0, 1.0]))
        tensor([2.1667, 1.0000])

    References:
        Blondel et al. (2022), equation 14.
    """

    check_function("function", function)
    check_number("step", step)

    def map(x: Any, *theta: Any) -> Any:
        rows = Rows.of(x, 0)

        def flat(vector: Tensor) -> Tensor:
            value = function(rows.unpack(vector[None]), *theta)
            rows.check(value, "function")
            return rows.pack(value)[0]

        vector = rows.pack(x)[0]
        if not rows.size:
            return x
        try:
            move = solve(torch.func.jacrev(flat)(vector), flat(vector)[:, None])
        except torch.linalg.LinAlgError as error:
            raise ValueError("function must have a regular Jacobian at x; it is singular there") from error
        return rows.unpack((vector - step * move[:, 0])[None])

    return Conditions(map)


def _gradient(objective: Function) -> Function:
    def total(x: Any, *theta: Any) -> Tensor:
        value: Tensor = objective(x, *theta)
        return value.sum()

    return torch.func.grad(total)


def _descend(x: Any, gradient: Any, step: float) -> Any:
    return pytree.tree_map(lambda a, g: a - step * g, x, gradient)

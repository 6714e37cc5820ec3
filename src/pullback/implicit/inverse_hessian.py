"""Products with the inverse Hessian of a function, from products with the Hessian."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch

from pullback.core.checks import check_choice, check_integer
from pullback.core.errors import ConvergenceError
from pullback.core.rows import Rows
from pullback.core.shapes import Tensor
from pullback.implicit.arguments import check_function, check_number
from pullback.implicit.linear_solve import LinearOptions, Operator, default_tolerance, solve_system
from pullback.implicit.solution import Reason, Solution, raise_unless_converged
from pullback.implicit.variables import Objective, Variables, gradient, length, pull_back

__all__ = ["InverseMethod", "check_inverse_options", "inverse_hessian_product", "solve_hessian"]

InverseMethod = Literal["neumann", "cg", "identity", "exact"]
GROWTH = 10.0
"""By how much a Neumann series may grow before it is called divergent; a Hessian with a few negative eigenvalues, as of
a network before its minimum, stays well below with the steps that train it."""


def inverse_hessian_product(
    lower: Callable[[Any], Tensor],
    y: Any,
    vector: Any,
    *,
    method: InverseMethod = "neumann",
    terms: int | None = None,
    scale: float | None = None,
    damping: float = 0.0,
    tolerance: float | None = None,
    check: bool = False,
) -> Solution:
    r"""Return ``(H + damping I)^{-1} v`` with the Hessian ``H`` of a function, of which only products are taken.

    ======================  =====================================================  ==================================
    method                  value                                                  products with ``H``
    ======================  =====================================================  ==================================
    ``"neumann"``           ``scale sum_{j < terms} (I - scale H)^j v``            ``terms``
    ``"identity"``          ``scale v``, the first of these terms                  0
    ``"cg"``                at most ``terms`` steps of conjugate gradients         ``terms + 1``
    ``"exact"``             dense up to 512 unknowns, above it ``"cg"``            as many as unknowns
    ======================  =====================================================  ==================================

    ``"cg"`` needs ``H + damping I`` positive definite: where ``H`` is singular, damping. The Neumann series converges
    for ``0 < scale * eig(H) < 2``. Cut off, it is the derivative of ``terms`` steps of gradient descent of length
    ``scale`` that are unrolled at the minimum. The graph of one gradient is kept and used for all products, so memory
    does not depend on ``terms``.

    Args:
        lower: ``lower(y)``, one number, twice differentiable.
        y: where ``H`` is taken: a floating tensor, a nesting of them, or a module (its parameters that require grad).
        vector: structured like ``y``; of a module, a dictionary by names of parameters.
        method: as above.
        terms: >= 1, of the series (default 20; the paper's count of products is one less) or steps of ``"cg"``
            (default: until ``tolerance`` is reached, at most ten times the number of unknowns).
        scale: > 0, for ``"neumann"``, which needs one (the step size of descent on ``lower`` is a good one), and for
            ``"identity"`` (default 1).
        damping: >= 0, added to the diagonal of ``H``; not for ``"identity"``.
        tolerance: converged when ``|v - (H + damping I) value| <= tolerance * |v|``; default 1e-10 in float64, 1e-5 in
            float32. A method that is cut off ends before.
        check: raise when it did not converge.

    Returns:
        ``Solution`` without derivatives: ``value`` like ``vector``; ``residual``, the norm of
        ``v - (H + damping I) value`` (NaN for ``"identity"``, which takes no product); ``iterations``, ``reason`` and
        ``converged``.

    Raises:
        TypeError: ``lower`` cannot be called, ``y`` holds other things than floating tensors, or an option is no
            number.
        ValueError: an unknown method, an option that is missing, out of range or not one of the method, ``lower`` that
            does not depend on ``y``, ``vector`` that does not look like ``y``.
        ConvergenceError: the Neumann series grew tenfold or to infinity: ``scale`` is too large; or ``check`` is set
            and the method did not converge. It carries the ``Solution``.

    Example:
        >>> curvature = torch.tensor([1.0, 4.0], dtype=torch.float64)
        >>> found = inverse_hessian_product(
        ...     lambda y: (curvature * y**2).sum() / 2, curvature, curvature, method="neumann", scale=0.25, terms=100
        ... )
        >>> [round(v, 4) for v in found.value.tolist()], bool(found.converged), int(found.iterations)
        ([1.0, 1.0], True, 100)

    References:
        Lorraine, Vicol, Duvenaud (2020), Optimizing millions of hyperparameters by implicit differentiation, equation
        5 and theorem 2.
        Pedregosa (2016), Hyperparameter optimization with approximate gradient: conjugate gradients.
        Luketina, Berglund, Greff, Raiko (2016), Scalable gradient-based tuning: the identity.
    """
    check_function("lower", lower)
    variables = Variables.of("y", y)
    right = variables.like("vector", vector)
    options = check_inverse_options(method, terms, scale, damping, tolerance)
    with torch.enable_grad():
        live = variables.live()
        _, slope = gradient("lower", Objective("lower", lower, variables)(live), [], live, create_graph=True)
    solution = solve_hessian(slope, live, [v.detach() for v in right], **options)
    if check:
        raise_unless_converged("inverse_hessian_product", solution)
    return solution._replace(value=variables.tree(solution.value))


def check_inverse_options(
    method: str, terms: int | None, scale: float | None, damping: float | None, tolerance: float | None
) -> dict[str, Any]:
    """Return the options of a product with the inverse Hessian, each checked, as :func:`solve_hessian` takes them."""
    check_choice("method", method, get_args(InverseMethod))
    if terms is not None:
        check_integer("terms", terms, 1)
    if scale is not None:
        check_number("scale", scale)
    if tolerance is not None:
        check_number("tolerance", tolerance)
    damping = 0.0 if damping is None else damping
    check_number("damping", damping, zero=True)
    if method == "neumann":
        if scale is None:
            raise ValueError(
                "method 'neumann' needs scale, a number > 0 below 2 / (largest eigenvalue of the Hessian): "
                "the step size with which gradient descent on lower converges"
            )
        terms = 20 if terms is None else terms
    elif method == "identity":
        _refuse(method, terms=terms, tolerance=tolerance, damping=damping or None)
        scale = 1.0 if scale is None else scale
    else:
        _refuse(method, scale=scale, terms=terms if method == "exact" else None)
    return {"method": method, "terms": terms, "scale": scale, "damping": damping, "tolerance": tolerance}


def _refuse(method: str, **options: Any) -> None:
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name} is no option of method {method!r}, got {value}")


def solve_hessian(
    slope: Sequence[Tensor],
    live: Sequence[Tensor],
    right: Sequence[Tensor],
    *,
    method: str,
    terms: Any = None,
    scale: Any = None,
    damping: float = 0.0,
    tolerance: float | None = None,
) -> Solution:
    """Solve ``(H + damping I) value = right``, lists of tensors all, with the options of :func:`check_inverse_options`.

    ``H`` is the Jacobian of ``slope``, a gradient with its graph, in ``live``.
    """

    def product(vector: Sequence[Tensor]) -> list[Tensor]:
        found = pull_back(slope, live, vector)
        return [h + damping * v for h, v in zip(found, vector, strict=True)] if damping else found

    if method == "identity":
        return _identity(right, scale)
    if method == "neumann":
        return _neumann(product, right, terms, scale, tolerance)
    rows = Rows.of(list(right), 0, "y")

    def on_row(v: Tensor) -> Tensor:
        return rows.pack(product(rows.unpack(v[None])))[0]

    operator = Operator(lambda: on_row, lambda: on_row, symmetric=True)
    kind = "cg" if method == "cg" else "auto"
    options = LinearOptions(method=kind, tolerance=tolerance, max_iterations=terms)
    solution = solve_system(operator, rows.pack(list(right))[0], (), options)
    return solution._replace(value=rows.unpack(solution.value[None]))


def _identity(right: Sequence[Tensor], scale: float) -> Solution:
    count = torch.zeros((), dtype=torch.int64, device=right[0].device)
    unknown = torch.full((), torch.nan, dtype=right[0].dtype, device=right[0].device)
    return Solution([scale * v for v in right], unknown, count, count + Reason.MAX_ITERATIONS)


def _neumann(
    product: Callable[[Sequence[Tensor]], list[Tensor]],
    right: Sequence[Tensor],
    terms: int,
    scale: float,
    tolerance: float | None,
) -> Solution:
    gap = list(right)  # v - H value after so many terms: (I - scale H)^j v
    total = [torch.zeros_like(v) for v in right]
    for _ in range(terms):
        total = [torch.add(t, g, alpha=scale) for t, g in zip(total, gap, strict=True)]
        gap = [torch.sub(g, h, alpha=scale) for g, h in zip(gap, product(gap), strict=True)]
    start, residual = length(right), length(gap)
    tolerance = default_tolerance(residual.dtype) if tolerance is None else tolerance
    iterations = torch.full((), terms, dtype=torch.int64, device=residual.device)
    grown = not bool(residual <= GROWTH * start)  # NaN too
    reason = Reason.DIVERGED if grown else Reason.CONVERGED if residual <= tolerance * start else Reason.MAX_ITERATIONS
    solution = Solution(total, residual, iterations, torch.full_like(iterations, reason))
    if grown:
        raise ConvergenceError(
            f"inverse_hessian_product: the Neumann series diverged, its terms grew from {float(start):.3g} to "
            f"{float(residual):.3g} in {terms} of them: scale {scale:.3g} is too large (at most 2 / the largest "
            "eigenvalue of the Hessian), or the Hessian has a negative eigenvalue; take a smaller scale, or damping",
            solution,
        )
    return solution

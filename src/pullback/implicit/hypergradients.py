"""The gradient of an outer objective through the solution of an inner problem, by a choice of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch

from pullback.core.checks import check_choice, check_integer, check_range
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Float, Tensor
from pullback.implicit.arguments import check_number
from pullback.implicit.inverse_hessian import InverseMethod, check_inverse_options, solve_hessian
from pullback.implicit.solution import Solution, raise_unless_converged
from pullback.implicit.variables import Objective, Variables, gradient, pull_back

__all__ = ["Hypergradient", "HypergradientMethod", "hypergradient"]

HypergradientMethod = Literal["neumann", "cg", "identity", "exact", "direct", "unrolled", "truncated", "bda"]


class Hypergradient(NamedTuple):
    """What :func:`hypergradient` returns.

    Attributes:
        gradient: in ``x``, structured like it; of a module, a dictionary by names of parameters.
        value: the outer objective at ``x`` and the inner point below, no dimensions.
        y: the inner point at which it was taken, structured as ``gradient`` is: the one that was given or, of methods
            that take inner steps, the last one.
        solution: of the linear system in the Hessian of the inner objective, with its residual; ``None`` of methods
            that solve none.
    """

    gradient: Any
    value: Float[Tensor, ""]
    y: Any
    solution: Solution | None


def hypergradient(
    upper: Callable[[Any, Any], Tensor],
    lower: Callable[[Any, Any], Tensor],
    x: Any,
    y: Any,
    *,
    method: HypergradientMethod = "neumann",
    terms: int | None = None,
    scale: float | None = None,
    damping: float | None = None,
    tolerance: float | None = None,
    steps: int | None = None,
    mix: float | None = None,
    check: bool = False,
) -> Hypergradient:
    r"""Return ``d/dx upper(x, y*(x))`` where ``y*(x)`` minimises ``lower(x, .)``.

    By the implicit function theorem, with all derivatives at ``(x, y)``,

    ``d upper / dx = D_x upper - (D_xy lower) (D_yy lower + damping I)^{-1} D_y upper``.

    ================  ========================================================================================
    method            the response of ``y``
    ================  ========================================================================================
    ``"neumann"``     the inverse by a series of ``terms`` products, see :func:`inverse_hessian_product`
    ``"identity"``    the inverse by ``scale I``: the first term
    ``"cg"``          the inverse by at most ``terms`` conjugate gradients, to ``tolerance``
    ``"exact"``       the inverse by elimination up to 512 unknowns, above it by conjugate gradients
    ``"direct"``      none: ``D_x upper`` alone
    ``"unrolled"``    through ``steps`` steps ``y <- y - scale D_y lower``, from ``y``
    ``"truncated"``   the same, through the last ``terms`` of them
    ``"bda"``         through ``steps`` steps along ``m_k D_y upper + (1 - m_k) D_y lower``, ``m_k = mix / (k + 1)``,
                      which among many inner minima lead to the one that ``upper`` wants
    ================  ========================================================================================

    The first five take ``y`` for the minimum: be near. They keep the graph of one gradient of each objective, however
    long the way to ``y`` was; the others keep one a step. Objectives may draw a minibatch at each call: ``lower`` is
    called once for all products of a hypergradient.

    Args:
        upper: ``upper(x, y)``, one number.
        lower: ``lower(x, y)``, one number, twice differentiable.
        x: outer variable: a floating tensor, a nesting of them, or a module, which is handed to the objectives as such
            (its parameters that require grad are the variable).
        y: inner variable, likewise; nothing is written into it.
        method: as above.
        terms: >= 1, of the series (default 20), conjugate gradients (default: until ``tolerance``), or steps that are
            differentiated (default 1).
        scale: > 0, step size of the inner descent; ``"neumann"`` and all that take steps need it.
        damping: >= 0, for ``"neumann"``, ``"cg"`` and ``"exact"``; default 0.
        tolerance: of the linear system, relative; default 1e-10 in float64, 1e-5 in float32.
        steps: >= 1, default 20.
        mix: in [0, 1], default 0.5.
        check: raise when the linear system did not converge.

    Returns:
        ``Hypergradient``, without derivatives.

    Raises:
        TypeError: an objective cannot be called, a variable holds other things than floating tensors.
        ValueError: an unknown method, an option that is missing, out of range or not one of the method; an objective
            that returns no single number; ``upper`` or ``lower`` does not depend on ``y``.
        ConvergenceError: the Neumann series or the inner steps diverged (``scale`` is too large), or ``check`` is set
            and the system did not converge.

    Example:
        >>> data = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> def lower(decay, w):
        ...     return ((w - data) ** 2).sum() / 2 + decay * (w**2).sum() / 2
        >>> decay = torch.tensor(1.0, dtype=torch.float64)
        >>> found = hypergradient(lambda decay, w: w.sum(), lower, decay, data / 2, method="exact")
        >>> round(found.gradient.item(), 4)  # w* = data / (1 + decay)
        -0.75

    References:
        Lorraine, Vicol, Duvenaud (2020), Optimizing millions of hyperparameters by implicit differentiation,
        algorithms 2 and 3.
        Pedregosa (2016): conjugate gradients. Franceschi, Donini, Frasconi, Pontil (2017): unrolled. Shaban, Cheng,
        Hatch, Boots (2019): truncated. Liu, Mu, Yuan, Zeng, Zhang (2020), A generic first-order algorithmic framework
        for bi-level programming beyond lower-level singleton: aggregated descent.
    """
    outer, inner = Variables.of("x", x), Variables.of("y", y)
    objectives = Objective("upper", upper, outer, inner), Objective("lower", lower, outer, inner)
    check_choice("method", method, get_args(HypergradientMethod))
    given = {"terms": terms, "scale": scale, "damping": damping, "tolerance": tolerance, "steps": steps, "mix": mix}
    for name, value in given.items():
        if value is not None and name not in _OPTIONS[method]:
            raise ValueError(f"{name} is no option of method {method!r}, which has {_OPTIONS[method]}, got {value}")
    with torch.enable_grad():
        if method in get_args(InverseMethod):
            options = check_inverse_options(method, terms, scale, damping, tolerance)
            found = _implicit(*objectives, outer, inner, options)
        elif method == "direct":
            found = _implicit(*objectives, outer, inner, None)
        else:
            found = _unrolled(*objectives, outer, inner, **_check_steps(method, given))
    if check and found.solution is not None:
        raise_unless_converged("hypergradient", found.solution)
    return found


_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "neumann": ("terms", "scale", "damping", "tolerance"),
    "identity": ("scale",),
    "cg": ("terms", "damping", "tolerance"),
    "exact": ("damping", "tolerance"),
    "direct": (),
    "unrolled": ("steps", "scale"),
    "truncated": ("steps", "terms", "scale"),
    "bda": ("steps", "scale", "mix"),
}


def _check_steps(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    if given["scale"] is None:
        raise ValueError(f"method {method!r} needs scale, the step size of its inner descent, a number > 0")
    check_number("scale", given["scale"])
    steps = check_integer("steps", 20 if given["steps"] is None else given["steps"], 1)
    kept = steps
    if method == "truncated":
        kept = check_integer("terms", 1 if given["terms"] is None else given["terms"], 1, steps)
    mix = 0.0
    if method == "bda":
        mix = 0.5 if given["mix"] is None else given["mix"]
        check_range("mix", mix, 0, 1)
    return {"steps": steps, "scale": given["scale"], "kept": kept, "mix": mix}


def _implicit(
    upper: Objective, lower: Objective, outer: Variables, inner: Variables, options: Mapping[str, Any] | None
) -> Hypergradient:
    """Solve with the Hessian at ``y``; without ``options``, take the direct part alone."""
    x, y = outer.live(), inner.live()
    value = upper(x, y)
    direct, right = gradient("upper", value, x, y)
    solution = None
    if options is not None:
        _, slope = gradient("lower", lower(x, y), [], y, create_graph=True)
        solution = solve_hessian(slope, y, right, **options)
        direct = [d - m for d, m in zip(direct, pull_back(slope, x, solution.value), strict=True)]
        solution = solution._replace(value=inner.tree(solution.value))
    return Hypergradient(outer.tree(direct), value.detach(), inner.tree([v.detach() for v in y]), solution)


def _unrolled(
    upper: Objective,
    lower: Objective,
    outer: Variables,
    inner: Variables,
    *,
    steps: int,
    scale: float,
    kept: int,
    mix: float,
) -> Hypergradient:
    """Take ``steps`` inner steps and differentiate through the last ``kept``."""
    x, y = outer.live(), inner.live()
    fixed = [v.detach() for v in x]
    for k in range(steps):
        through = k >= steps - kept
        here = x if through else fixed
        share = mix / (k + 1)
        value = lower(here, y)
        if share:
            value = torch.lerp(value, upper(here, y), share)
        _, slope = gradient("lower", value, [], y, create_graph=through)
        y = [torch.sub(v, g, alpha=scale) for v, g in zip(y, slope, strict=True)]
        if not through:
            y = [v.detach().requires_grad_() for v in y]
    if not all(bool(torch.isfinite(v).all()) for v in y):
        raise ConvergenceError(
            f"hypergradient: y became infinite or NaN in {steps} inner steps; take a smaller scale than {scale:.3g}",
            inner.tree([v.detach() for v in y]),
        )
    value = upper(x, y)
    direct, _ = gradient("upper", value, x, y)
    return Hypergradient(outer.tree(direct), value.detach(), inner.tree([v.detach() for v in y]), None)

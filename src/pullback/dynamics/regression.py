"""Weighted regression in a class of functions, and how far the class may still disagree outside of the data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch

from pullback.core.checks import check_broadcast, check_callable, check_floating, check_same_dtype, check_scalar
from pullback.core.choices import check_choice
from pullback.core.errors import ConvergenceError
from pullback.core.numerics import solve
from pullback.core.shapes import Bool, Float, Scalar, Tensor
from pullback.core.transforms import can_look

__all__ = ["Regression", "d2_divergence", "estimate_variance", "weighted_regression"]

Class = Callable[[Tensor, Tensor], Tensor]
DivergenceMethod = Literal["linear", "gradient", "search", "ensemble"]
RegressionMethod = Literal["linear", "levenberg_marquardt"]
STEPS, RADIUS = 60, 0.5
"""Of the search: steps, and how far both members of a pair may be from the fit. With 0.5 they differ by at most 1."""


class Regression(NamedTuple):
    """What :func:`weighted_regression` returns.

    Attributes:
        params: ``[*batch, p]`` of the best function.
        residual: ``[*batch, n]``, its values less the targets.
        converged: ``[*batch]`` whether the slope of the sum of squares is 0 there; a linear one always is.
    """

    params: Float[Tensor, "*batch p"]
    residual: Float[Tensor, "*batch n"]
    converged: Bool[Tensor, "*batch"]


def d2_divergence(
    points: Float[Tensor, "*#batch m d"],
    data: Float[Tensor, "*#batch n d"],
    *,
    function: Class | None = None,
    params: Float[Tensor, "..."] | None = None,
    variance: Float[Tensor, "*#batch n"] | None = None,
    ridge: Scalar = 1.0,
    method: str = "linear",
) -> Float[Tensor, "*batch m"]:
    r"""Return by how much two functions of a class can still differ at a point while they agree on the data.

    .. math:: D^2(z) = \sup_{f_1,f_2} \frac{(f_1(z)-f_2(z))^2}{\sum_k (f_1(z_k)-f_2(z_k))^2/\sigma_k^2+\lambda} .

    Where the parameters of the two differ by at most 1, this is :math:`\phi^T(\sum_k\phi_k\phi_k^T/\sigma_k^2+
    \lambda I)^{-1}\phi` for linear functions :math:`f=\phi^T\theta`: what is seen twice as precisely counts twice.

    Args:
        points: where to tell, ``[*batch, m, d]``.
        data: what was seen, ``[*batch, n, d]``, n >= 0.
        function: ``f(params, inputs)``, values ``[n]`` of inputs ``[n, d]``, by functions that torch can differentiate
            under ``vmap``; by default linear, of which ``points`` and ``data`` are the features.
        params: ``[*batch, p]`` of the fit (of a module: ``parameters_to_vector``), or ``[members, p]`` for an ensemble.
            ``"search"`` and ``"ensemble"`` have no batch dimensions.
        variance: > 0, ``[*batch, n]`` of the noise at the data, infinite for none seen; by default 1.
        ridge: lambda >= 0.
        method: ``"linear"``: exact, without a function; ``"gradient"``: the same with the gradients of the function
            at ``params`` as features, exact where it is linear in its parameters; ``"search"``: the largest ratio
            that gradient ascent finds among pairs at most 0.5 away from ``params``, a lower bound, from the pair that
            is best for the gradients; not differentiated; ``"ensemble"``: the largest ratio among the pairs of an
            ensemble.

    Returns:
        ``[*batch, m]``, >= 0.

    Raises:
        TypeError: a tensor of another kind, a ``function`` that cannot be called or has no gradient.
        ValueError: shapes that do not fit, an option out of range.
        ConvergenceError: ``ridge`` is 0, or lost beside the data, which do not decide all parameters.

    Example:
        >>> data = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> d2_divergence(torch.eye(2), data).tolist()
        [0.25, 0.5]
        >>> d2_divergence(torch.eye(2), data, variance=torch.tensor([1.0, 1.0, 1.0, 1 / 3])).tolist()
        [0.25, 0.25]

    References:
        Di, Zhao, He, Gu (2024), Pessimistic nonlinear least-squares value iteration for offline reinforcement learning;
        Gentile, Wang, Zhang (2022), Achieving minimax rates in pool-based batch active learning.
    """
    check_choice("method", method, get_args(DivergenceMethod))
    points, data = check_floating("points", points), check_floating("data", data)
    check_same_dtype(points=points, data=data)
    check_scalar("ridge", ridge, zero=True)
    if points.ndim < 2 or data.ndim < 2 or points.shape[-1] != data.shape[-1]:
        raise ValueError(
            f"points and data must have shapes (..., m, d) and (..., n, d), got {tuple(points.shape)} and "
            f"{tuple(data.shape)}"
        )
    seen = data.new_ones(data.shape[:-1]) if variance is None else _noise("variance", variance, data)
    if method == "linear":
        if function is not None:
            raise ValueError("method must be 'gradient', 'search' or 'ensemble' with a function, got 'linear'")
        return _elliptic(points, data, seen, ridge)[0]
    function, params = _checked(function, params, data, members=method == "ensemble")
    if method != "gradient" and points.ndim + data.ndim + seen.ndim > 5:
        raise ValueError(f"points and data must have shapes (m, d) and (n, d) for {method!r}, got batch dimensions")
    if method == "ensemble":
        here, there = (torch.stack([_values(function, p, x) for p in params]) for x in (points, data))
        first, second = torch.triu_indices(len(params), len(params), 1, device=params.device)
        gap = ((here[first] - here[second]).square(), ((there[first] - there[second]).square() / seen).sum(-1))
        return (gap[0] / (gap[1][:, None] + ridge)).amax(0)
    if method == "search" and params.ndim != 1:
        raise ValueError(f"params must have shape (p,) for 'search', got {tuple(params.shape)}")
    at, on = _jacobian(function, params, points), _jacobian(function, params, data)
    squares, directions = _elliptic(at, on, seen, ridge)
    if method == "gradient":
        return squares
    return _search(function, params.detach(), points.detach(), data.detach(), seen.detach(), ridge, directions.detach())


def weighted_regression(
    inputs: Float[Tensor, "*#batch n d"],
    targets: Float[Tensor, "*#batch n"],
    *,
    function: Class | None = None,
    params: Float[Tensor, "*#batch p"] | None = None,
    weights: Float[Tensor, "*#batch n"] | None = None,
    ridge: Scalar = 1.0,
    method: str = "linear",
) -> Regression:
    r"""Return the function of least weighted squares, :math:`\sum_k w_k(f(z_k)-y_k)^2+\lambda|\theta-\theta_0|^2`.

    Weights are one over the variance of the noise. Derivatives are those of the solution (those of Levenberg and
    Marquardt in a weight exist where it is > 0).

    Args:
        inputs: ``[*batch, n, d]``.
        targets: ``[*batch, n]``.
        function: ``f(params, inputs)``, values ``[n]`` of inputs ``[n, d]``, under ``vmap`` where there are batch
            dimensions; by default linear, of which ``inputs`` are the features.
        params: theta_0 ``[*batch, p]``, where to start and what the ridge draws to; 0 without a function.
        weights: >= 0, ``[*batch, n]``; by default 1.
        ridge: lambda >= 0.
        method: ``"linear"`` solves once: exact where the function is linear in its parameters;
            ``"levenberg_marquardt"`` for any other one.

    Raises:
        TypeError: a tensor of another kind, a ``function`` that cannot be called.
        ValueError: shapes that do not fit, an option out of range.
        ConvergenceError: ``ridge`` is 0, or lost beside the data, which do not decide all parameters.

    Example:
        >>> x, y = torch.tensor([[1.0], [1.0]]), torch.tensor([0.0, 4.0])
        >>> weighted_regression(x, y, weights=torch.tensor([3.0, 1.0]), ridge=0.0).params.tolist()
        [1.0]
    """
    from pullback.implicit import least_squares  # solves what few need

    check_choice("method", method, get_args(RegressionMethod))
    inputs, targets = check_floating("inputs", inputs), check_floating("targets", targets)
    check_same_dtype(inputs=inputs, targets=targets)
    number = check_scalar("ridge", ridge, zero=True)
    if inputs.ndim < 2 or targets.ndim < 1 or targets.shape[-1] != inputs.shape[-2]:
        raise ValueError(
            f"inputs and targets must have shapes (..., n, d) and (..., n), got {tuple(inputs.shape)} and "
            f"{tuple(targets.shape)}"
        )
    check_broadcast(inputs=inputs.shape[:-2], targets=targets.shape[:-1])
    precision = inputs.new_ones(inputs.shape[:-1]) if weights is None else _noise("weights", weights, inputs, zero=True)
    if function is None:
        if method != "linear":
            raise ValueError(f"method must be 'linear' without a function, got {method!r}")
        found = _normal_equations(inputs, targets, precision, ridge)
        return Regression(found, (inputs @ found[..., None])[..., 0] - targets, _always(found))
    function, start = _checked(function, params, inputs, members=False)
    if method == "linear":
        features = _jacobian(function, start, inputs)
        found = start + _normal_equations(features, targets - _values(function, start, inputs), precision, ridge)
        return Regression(found, _values(function, found, inputs) - targets, _always(found))

    def residual(theta: Tensor, inputs: Tensor, targets: Tensor, precision: Tensor, start: Tensor) -> list[Tensor]:
        fit = precision.sqrt() * (_values(function, theta, inputs) - targets)
        return [fit] if number == 0 else [fit, torch.as_tensor(ridge).to(theta).sqrt() * (theta - start)]

    batch = torch.broadcast_shapes(start.shape[:-1], inputs.shape[:-2], targets.shape[:-1], precision.shape[:-1])
    start = start.expand(*batch, -1)
    solution = least_squares(residual, start, inputs, targets, precision, start, batch_ndim=len(batch))
    return Regression(solution.value, _values(function, solution.value, inputs) - targets, solution.converged)


def estimate_variance(
    first_moment: Float[Tensor, "*#batch"], second_moment: Float[Tensor, "*#batch"], *, floor: Scalar
) -> Float[Tensor, "*batch"]:
    r"""Return the conditional variance of two regressions, :math:`\max(E[y^2]-E[y]^2, \mathrm{floor})`.

    Args:
        first_moment: estimates of the mean of targets, ``[*batch]``.
        second_moment: of the mean of their squares, ``[*batch]``; it may be less than the square of the other.
        floor: > 0, the least variance: no weight of a regression is larger than one over it.

    Raises:
        TypeError: a tensor of another kind.
        ValueError: shapes that do not fit, ``floor`` <= 0.

    Example:
        >>> estimate_variance(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), floor=0.05).tolist()
        [2.0, 0.05000000074505806]
    """
    first, second = check_floating("first_moment", first_moment), check_floating("second_moment", second_moment)
    check_same_dtype(first_moment=first, second_moment=second)
    check_broadcast(first_moment=first.shape, second_moment=second.shape)
    check_scalar("floor", floor)
    spread = second - first.square()
    return torch.maximum(spread, torch.as_tensor(floor, dtype=spread.dtype, device=spread.device))


def _always(params: Tensor) -> Bool[Tensor, "*batch"]:
    return torch.ones(params.shape[:-1], dtype=torch.bool, device=params.device)


def _noise(name: str, value: Tensor, inputs: Tensor, *, zero: bool = False) -> Tensor:
    """``value``, one number a row of the inputs, none of them negative, or 0 unless ``zero``."""
    check_floating(name, value)
    check_same_dtype(data=inputs, **{name: value})
    if value.ndim < 1 or value.shape[-1] != inputs.shape[-2]:
        raise ValueError(f"{name} must have shape (..., {inputs.shape[-2]}), got {tuple(value.shape)}")
    check_broadcast(data=inputs.shape[:-2], **{name: value.shape[:-1]})
    if can_look(value) and value.numel():
        least = float(value.detach().amin())
        if not (least >= 0 if zero else least > 0):
            raise ValueError(f"{name} must be {'>=' if zero else '>'} 0, got {least}")
    return value


def _checked(
    function: Class | None, params: Tensor | None, inputs: Tensor, *, members: bool
) -> tuple[Class, Float[Tensor, "..."]]:
    check_callable("function", function)
    params = check_floating("params", params)
    if params.ndim < 1 or (members and (params.ndim != 2 or len(params) < 2)):
        shape = "(members >= 2, p)" if members else "(..., p)"
        raise ValueError(f"params must have shape {shape}, got {tuple(params.shape)}")
    check_same_dtype(params=params, inputs=inputs)
    if not members:
        check_broadcast(params=params.shape[:-1], inputs=inputs.shape[:-2])
    assert function is not None
    return function, params


def _values(function: Class, params: Tensor, inputs: Tensor) -> Tensor:
    """Values ``[*batch, n]``, checked."""
    if params.ndim > 1 or inputs.ndim > 2:
        return _over_batch(lambda p, x: _values(function, p, x), params, inputs)
    values = function(params, inputs)
    if not isinstance(values, Tensor):
        raise TypeError(f"function must return a torch.Tensor, got {type(values).__name__}")
    if values.shape != inputs.shape[:1]:
        raise ValueError(f"function must return shape ({len(inputs)},), got {tuple(values.shape)}")
    return values


def _over_batch(what: Callable[[Tensor, Tensor], Tensor], params: Tensor, inputs: Tensor) -> Tensor:
    batch = torch.broadcast_shapes(params.shape[:-1], inputs.shape[:-2])
    params = params.expand(*batch, -1).flatten(0, -2)
    inputs = inputs.expand(*batch, -1, -1).flatten(0, -3)
    found: Tensor = torch.func.vmap(what)(params, inputs)
    return found.unflatten(0, batch)


def _jacobian(function: Class, params: Tensor, inputs: Tensor) -> Float[Tensor, "*batch n p"]:
    """The gradient of each value, ``[*batch, n, p]``, in one pass backwards for the rows of the inputs."""
    if params.ndim > 1 or inputs.ndim > 2:
        return _over_batch(lambda p, x: _jacobian(function, p, x), params, inputs)

    def one(params: Tensor, row: Tensor) -> Tensor:
        value = _values(function, params, row[None])[0]
        if not value.is_floating_point():
            raise TypeError(f"function must return floating values that have a gradient, got {value.dtype}")
        return value

    found: Tensor = torch.func.vmap(torch.func.grad(one), (None, 0))(params, inputs)
    return found


def _gram(data: Tensor, precision: Tensor, ridge: Scalar) -> Float[Tensor, "*batch d d"]:
    # products of halves leave their range, and what is left of a ridge is lost beside them
    wide = torch.promote_types(data.dtype, torch.float32)
    data, precision = data.to(wide), precision.to(wide)
    return data.mT @ (data * precision[..., None]) + ridge * torch.eye(data.shape[-1], dtype=wide, device=data.device)


def _solve(gram: Tensor, right: Tensor, ridge: Scalar) -> Tensor:
    if can_look(gram) and check_scalar("ridge", ridge, zero=True) == 0:
        values = torch.linalg.eigvalsh(gram.detach())
        smallest, largest = values[..., 0], values[..., -1]
        if bool((smallest <= 10 * gram.shape[-1] * torch.finfo(gram.dtype).eps * largest).any()):
            raise ConvergenceError("with ridge 0 the data must decide all parameters, got a singular matrix of squares")
    try:
        return solve(gram, right)
    except torch.linalg.LinAlgError as error:
        raise ConvergenceError("the ridge is lost beside the squares of the data: scale features to size 1") from error


def _elliptic(points: Tensor, data: Tensor, variance: Tensor, ridge: Scalar) -> tuple[Tensor, Tensor]:
    """Squared norms in the inverse matrix of squares, and ``[*batch, m, d]`` that matrix times the points."""
    check_broadcast(points=points.shape[:-2], data=data.shape[:-2])
    gram = _gram(data, variance.to(torch.promote_types(data.dtype, torch.float32)).reciprocal(), ridge)
    directions = _solve(gram, points.mT.to(gram.dtype), ridge).mT
    return (points.to(gram.dtype) * directions).sum(-1).clamp_min(0).to(points.dtype), directions.to(points.dtype)


def _normal_equations(features: Tensor, targets: Tensor, weights: Tensor, ridge: Scalar) -> Float[Tensor, "*batch d"]:
    gram = _gram(features, weights, ridge)
    right = features.mT.to(gram.dtype) @ (weights * targets).to(gram.dtype)[..., None]
    return _solve(gram, right, ridge)[..., 0].to(features.dtype)


def _search(
    function: Class,
    center: Tensor,
    points: Tensor,
    data: Tensor,
    variance: Tensor,
    ridge: Scalar,
    directions: Float[Tensor, "m p"],
) -> Float[Tensor, "m"]:
    """Ascent of all points at once: a step that does not raise the ratio is halved, one that does is doubled."""

    def ratio(pair: Tensor, point: Tensor) -> Tensor:
        first, second = center + pair[0], center + pair[1]
        gap = _values(function, first, point[None])[0] - _values(function, second, point[None])[0]
        seen = (_values(function, first, data) - _values(function, second, data)).square() / variance
        return gap.square() / (seen.sum() + ridge)

    def inside(pairs: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(pairs, dim=-1, keepdim=True)
        return pairs * (RADIUS / size.clamp_min(RADIUS))

    climb = torch.func.vmap(torch.func.grad_and_value(ratio))
    size = torch.linalg.vector_norm(directions, dim=-1, keepdim=True).clamp_min(torch.finfo(center.dtype).tiny)
    half = RADIUS * directions / size
    pairs, step = torch.stack([half, -half], 1), torch.full_like(points[:, 0], 0.1)
    slope, best = climb(pairs, points)
    for _ in range(STEPS):
        length = torch.linalg.vector_norm(slope, dim=(1, 2), keepdim=True).clamp_min(torch.finfo(center.dtype).tiny)
        trial = inside(pairs + step[:, None, None] * slope / length)
        other, value = climb(trial, points)
        up = value > best
        pairs, slope = (torch.where(up[:, None, None], new, old) for new, old in ((trial, pairs), (other, slope)))
        best, step = torch.where(up, value, best), torch.where(up, 2 * step, step / 2)
    return best

"""Reports on many objectives: who is hurt by a direction, how far from stationary, what an aggregator promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_floating, check_integer, check_positive
from pullback.core.random import drawing_device
from pullback.core.shapes import Float
from pullback.optim.aggregation import refuse_bad_rows, shortest_in_hull
from pullback.optim.upgrad import check_gramian

__all__ = [
    "AggregatorProperties",
    "Conflict",
    "ParetoStationarity",
    "conflict",
    "pareto_stationarity",
    "properties_of",
]


class Conflict(NamedTuple):
    """How gradients agree with a direction and with each other.

    Attributes:
        cosines: ``[*batch, m]`` between each gradient and the direction; 0 where one of both is 0. Negative: a step
            against the direction raises that objective.
        hurt: ``[*batch]`` share of the objectives with a negative cosine.
        pairs: ``[*batch]`` share of the pairs of gradients whose inner product is negative; 0 for one objective.
    """

    cosines: Tensor
    hurt: Tensor
    pairs: Tensor


class ParetoStationarity(NamedTuple):
    """How far a point is from Pareto stationarity.

    Attributes:
        norm: ``[*batch]`` length of the shortest convex combination of the gradients; 0 at Pareto-stationary points.
        relative: ``[*batch]`` the same over the length of the longest gradient, in [0, 1].
        weights: ``[*batch, m]`` of that combination.
    """

    norm: Tensor
    relative: Tensor
    weights: Tensor


class AggregatorProperties(NamedTuple):
    """The largest violations of the three properties of an aggregator that were found, over random Jacobians.

    Attributes:
        conflict: ``max_i -(J A(J))_i / |J|^2``, >= 0 (spectral norm): 0 where no objective is hurt.
        conflicting: share of the Jacobians with a violation above 1e-6.
        linearity: distance of ``A(diag(a + b) J)`` from ``A(diag(a) J) + A(diag(b) J)`` over the sum of their
            lengths: 0 where the aggregator is linear in the scales of the gradients.
        span: distance of ``A(J)`` from the span of the gradients over its length. Here and above a length of less than
            a thousandth of ``|J|`` counts as that: a direction that vanishes is made of rounding.
    """

    conflict: float
    conflicting: float
    linearity: float
    span: float


def conflict(jacobian: Float[Tensor, "*batch m n"], direction: Float[Tensor, "*batch n"]) -> Conflict:
    """Measure how a direction and the gradients agree.

    Args:
        jacobian: ``[*batch, m, n]``, row i the gradient of objective i.
        direction: ``[*batch, n]``, of which a step goes along the negative.

    Returns:
        Cosines, the share of objectives that are hurt, the share of conflicting pairs; not differentiated.

    Raises:
        TypeError: a tensor is not floating.
        ValueError: shapes do not match, or a number is not finite.

    Example:
        >>> gradients = torch.tensor([[1.0, 0.0], [-2.0, 2.0]])
        >>> conflict(gradients, gradients.mean(0)).hurt
        tensor(0.5000)

    References:
        Quinton, Rey (2024), arXiv 2406.16232, definition 1; Yu et al. (2020), Gradient surgery, definition 1.
    """
    check_floating("jacobian", jacobian)
    check_floating("direction", direction)
    if jacobian.ndim < 2 or direction.shape != (*jacobian.shape[:-2], jacobian.shape[-1]):
        raise ValueError(
            f"jacobian and direction must have shapes (..., m, n) and (..., n), got {tuple(jacobian.shape)} and "
            f"{tuple(direction.shape)}"
        )
    refuse_bad_rows(jacobian)
    if not bool(torch.isfinite(direction).all()):
        raise ValueError("direction must be finite")
    rows = torch.nn.functional.normalize(_ordinary(jacobian.detach()), dim=-1, eps=1e-300)
    way = torch.nn.functional.normalize(_ordinary(direction.detach()[..., None, :]), dim=-1, eps=1e-300)
    cosines = (rows @ way.mT)[..., 0]
    m = rows.shape[-2]
    above = torch.ones(m, m, dtype=torch.bool, device=rows.device).triu(1)
    pairs = ((rows @ rows.mT < 0) & above).sum((-2, -1)) / max(m * (m - 1) / 2, 1)
    dtype = jacobian.dtype
    return Conflict(cosines.to(dtype), (cosines < 0).double().mean(-1).to(dtype), pairs.to(dtype))


def pareto_stationarity(gramian: Float[Tensor, "*batch m m"]) -> ParetoStationarity:
    r"""Measure how far from Pareto-stationary: the shortest convex combination of the gradients.

    ``min_{w >= 0, sum w = 1} |J^T w|``, exactly, from ``G = J J^T``. Where it is 0, no direction improves all.

    Args:
        gramian: ``[*batch, m, m]`` inner products of gradients.

    Returns:
        The length, the same over that of the longest gradient, and the weights; not differentiated. Rounding leaves
        about the square root of the precision of the longest.

    Raises:
        TypeError: ``gramian`` is not floating.
        ValueError: it is not square, not finite, or clearly no Gramian.

    Example:
        >>> gradients = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])  # opposite: stationary
        >>> pareto_stationarity(gradients @ gradients.T).weights
        tensor([0.7500, 0.2500])

    References:
        Desideri (2012), Multiple-gradient descent algorithm for multiobjective optimization, theorem 2.2.
    """
    check_gramian(gramian)
    largest = gramian.detach().abs().amax((-2, -1), keepdim=True)
    plain = (gramian.detach() / torch.where(largest > 0, largest, 1)).double()
    weights = shortest_in_hull(plain)
    relative = (weights[..., None, :] @ plain @ weights[..., None])[..., 0, 0].clamp(min=0).sqrt()
    longest = plain.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt()
    norm = relative * largest[..., 0, 0].double().sqrt()
    relative = relative / torch.where(longest > 0, longest, 1)
    return ParetoStationarity(*(t.to(gramian.dtype) for t in (norm, relative, weights)))


def properties_of(
    aggregator: Callable[[Tensor], Tensor],
    *,
    objectives: int = 4,
    dimensions: int = 8,
    count: int = 1000,
    decades: float = 2.0,
    dependent: float = 0.25,
    generator: torch.Generator | None = None,
) -> AggregatorProperties:
    r"""Try the three properties of an aggregator on random Jacobians: no conflict, linear under scaling, weighted.

    Rows are normal, of lengths over some orders of magnitude; in a part of the Jacobians one row is a combination of
    two others, or the negative of one. Scales of rows are drawn the same way.

    Args:
        aggregator: maps a stack of Jacobians ``[k, m, n]`` to directions ``[k, n]``. It is called on ``J`` and three
            scaled copies.
        objectives: m >= 1.
        dimensions: n >= 1.
        count: of Jacobians, >= 1.
        decades: orders of magnitude over which the lengths of rows are spread, and the their new scales, >= 0.
        dependent: share of those with dependent rows, in [0, 1].
        generator: of the draws.

    Returns:
        The largest violations, in double precision.

    Raises:
        TypeError: ``aggregator`` cannot be called or returns no tensor.
        ValueError: a number is out of range, or ``aggregator`` returns another shape.

    Example:
        >>> draws = torch.Generator().manual_seed(0)
        >>> found = properties_of(lambda jacobian: jacobian.mean(-2), generator=draws)
        >>> found.conflicting > 0.2, found.linearity < 1e-12, found.span < 1e-12
        (True, True, True)

    References:
        Quinton, Rey (2024), arXiv 2406.16232, definitions 1 to 3, table 1.
    """
    check_callable("aggregator", aggregator)
    for name, value in (("objectives", objectives), ("dimensions", dimensions), ("count", count)):
        check_integer(name, value, 1)
    check_positive("decades", decades, zero=True)
    if not 0 <= dependent <= 1:
        raise ValueError(f"dependent must be in [0, 1], got {dependent}")
    device = drawing_device(generator, torch.device("cpu"))

    def scales() -> Tensor:
        exponents = torch.rand((count, objectives, 1), generator=generator, device=device, dtype=torch.float64)
        return 10 ** (decades * (exponents - 0.5))

    shape = (count, objectives, dimensions)
    jacobian = torch.randn(shape, generator=generator, device=device, dtype=torch.float64)
    chosen = torch.rand(count, generator=generator, device=device) < dependent
    if objectives > 1:
        jacobian[chosen, -1] = -jacobian[chosen, 0]
    if objectives > 2:
        jacobian[chosen, -1] += jacobian[chosen, 1] * chosen[chosen].cumsum(0).remainder(2)[:, None]
    jacobian = jacobian * scales()
    first, second = scales(), scales()
    found = [_directions(aggregator, j) for j in (jacobian, first * jacobian, second * jacobian)]
    together = _directions(aggregator, (first + second) * jacobian)
    size = torch.linalg.matrix_norm(jacobian, 2).square()
    worst = ((-(jacobian @ found[0][..., None])[..., 0]).amax(-1) / size).clamp(min=0)
    apart = torch.linalg.vector_norm(found[1] + found[2] - together, dim=-1)
    basis = torch.linalg.svd(jacobian, full_matrices=False)
    inside = torch.where(basis.S.ge(1e-10 * basis.S[:, :1]), (basis.Vh @ found[0][..., None])[..., 0], 0)
    outside = torch.linalg.vector_norm(found[0] - (inside[:, None] @ basis.Vh)[:, 0], dim=-1)
    lengths = [torch.linalg.vector_norm(d, dim=-1) for d in (*found, together)]
    floor = 1e-3 * size.sqrt()
    return AggregatorProperties(
        float(worst.max()),
        float((worst > 1e-6).double().mean()),
        float((apart / torch.maximum(lengths[1] + lengths[2] + lengths[3], floor)).max()),
        float((outside / torch.maximum(lengths[0], floor)).max()),
    )


def _directions(aggregator: Callable[[Tensor], Tensor], jacobian: Tensor) -> Tensor:
    found = aggregator(jacobian)
    if not isinstance(found, Tensor):
        raise TypeError(f"aggregator must return a tensor, got {type(found).__name__}")
    if found.shape != (len(jacobian), jacobian.shape[-1]):
        wanted = (len(jacobian), jacobian.shape[-1])
        raise ValueError(f"aggregator must return shape {wanted}, got {tuple(found.shape)}")
    return found.double()


def _ordinary(x: Tensor) -> Tensor:
    """Rows in double precision, brought to ordinary size: no square overflows or vanishes."""
    x = x.double()
    largest = x.abs().amax(-1, keepdim=True) if x.shape[-1] else x.new_ones(())
    return x / torch.where(largest > 0, largest, 1)

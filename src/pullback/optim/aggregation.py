"""Aggregators of Jacobian descent: from the gradients of m objectives to one direction.

Each is a small function from a Gramian to weights, with its paper; what they promise is measured by
:func:`~pullback.optim.properties_of`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_floating, check_positive
from pullback.core.random import drawing_device
from pullback.core.shapes import Float
from pullback.optim.upgrad import Normalization, check_gramian, check_preference, normalized, solve, upgrad_weights

__all__ = ["Aggregation", "Aggregator", "aggregate", "aggregation_weights"]

Aggregator = Literal["upgrad", "mean", "mgda", "dualproj", "pcgrad", "cagrad", "imtl", "aligned", "nash", "graddrop"]
"""The methods of :func:`aggregate`."""


class Aggregation(NamedTuple):
    """A direction that stands for many gradients.

    Attributes:
        direction: ``[*batch, n]``; a step goes along its negative.
        weights: ``[*batch, m]`` with ``direction = J^T weights``; ``None`` for ``"graddrop"``, which has none.
    """

    direction: Tensor
    weights: Tensor | None


def aggregate(
    jacobian: Float[Tensor, "*batch m n"],
    *,
    method: Aggregator = "upgrad",
    preference: Float[Tensor, "*#batch m"] | None = None,
    regularization: float = 1e-4,
    normalize: Normalization = "trace",
    radius: float = 0.5,
    generator: torch.Generator | None = None,
) -> Aggregation:
    r"""Make one direction of the gradients of m objectives.

    ============  ========================================================================  ==========================
    method        direction                                                                 promises
    ============  ========================================================================  ==========================
    ``upgrad``    mean of the gradients, each projected on ``C = {d : J d >= 0}``           no conflict, linear, span
    ``mean``      mean of the gradients                                                     linear, span
    ``mgda``      shortest vector in their convex hull                                      no conflict, span
    ``dualproj``  their mean, projected on ``C``                                            no conflict, span
    ``pcgrad``    sum of the gradients, each projected on the planes of those it conflicts  span
                  with, one after the other in random order
    ``cagrad``    best worst slope within ``radius |mean|`` of the mean                     span
    ``imtl``      equal projections on all normed gradients                                 span
    ``aligned``   mean of the principal components, scaled to the smallest                  span
    ``nash``      ``G w = 1 / w``: the bargain after which no other raises the product of   no conflict, span
                  gains
    ``graddrop``  sum of the entries of one sign, drawn by entry                            none
    ============  ========================================================================  ==========================

    No conflict: ``J d >= 0``. Linear: scaling one gradient scales its share. Span: a weighted sum of the gradients.

    ``J J^T`` takes most of the time: 75 to 90 % of it for 8 to 64 gradients of 10^6 entries. In training
    :func:`~pullback.optim.loss_gramian` comes to the same without ``J``.

    Args:
        jacobian: ``[*batch, m, n]``, row i the gradient of objective i.
        method: of the table.
        preference: ``[*batch, m]`` >= 0, for ``upgrad``, ``mean``, ``dualproj`` and ``aligned``; ``None``: ``1 / m``.
        regularization: of ``upgrad`` and ``dualproj``, see :func:`~pullback.optim.upgrad_weights`.
        normalize: of these two, see there.
        radius: of ``cagrad``, in [0, 1).
        generator: of the order of ``pcgrad`` and the draws of ``graddrop``.

    Returns:
        The direction and its weights, which carry no gradient.

    Raises:
        TypeError: ``jacobian`` is no floating tensor.
        ValueError: a row of ``jacobian`` is not finite, ``method`` is unknown, or another argument is out of range.

    Example:
        >>> gradients = torch.tensor([[1.0, 0.0], [-2.0, 2.0]])
        >>> for method in ("mean", "mgda", "upgrad"):
        ...     print(method, (gradients @ aggregate(gradients, method=method).direction).gt(-1e-3).tolist())
        mean [False, True]
        mgda [True, True]
        upgrad [True, True]

    References:
        See :func:`aggregation_weights`. Chen et al. (2020), Just pick a sign, arXiv 2010.06808, algorithm 1
        (``graddrop``).
    """
    check_choice("method", method, get_args(Aggregator))
    check_floating("jacobian", jacobian)
    if jacobian.ndim < 2 or jacobian.shape[-2] == 0:
        raise ValueError(f"jacobian must have shape (..., m, n) with m >= 1, got {tuple(jacobian.shape)}")
    if method == "graddrop":
        refuse_bad_rows(jacobian)
        return Aggregation(_graddrop(jacobian, generator), None)
    wide = jacobian.detach().to(torch.promote_types(jacobian.dtype, torch.float32))
    gramian, scale = wide @ wide.mT, wide.new_ones(())
    squares = gramian.diagonal(dim1=-2, dim2=-1)
    if not bool((torch.isfinite(squares) & (squares > 100 * torch.finfo(wide.dtype).tiny)).all()):
        refuse_bad_rows(jacobian)  # or squares overflow or vanish: they are taken at ordinary size
        scale = wide.abs().amax((-2, -1), keepdim=True) if wide.shape[-1] else wide.new_ones(1, 1)
        scale = torch.where(scale > 0, scale, 1)
        gramian = (wide / scale) @ (wide / scale).mT
    weights = aggregation_weights(
        gramian,
        method=method,
        preference=preference,
        regularization=regularization,
        normalize=normalize,
        radius=radius,
        generator=generator,
    )
    if method == "nash":
        weights = weights / (scale[..., 0] if scale.ndim else scale)
    direction = (weights[..., None, :] @ wide)[..., 0, :]
    return Aggregation(direction.to(jacobian.dtype), weights.to(jacobian.dtype))


@torch.no_grad()
def aggregation_weights(
    gramian: Float[Tensor, "*batch m m"],
    *,
    method: Aggregator = "upgrad",
    preference: Float[Tensor, "*#batch m"] | None = None,
    regularization: float = 1e-4,
    normalize: Normalization = "trace",
    radius: float = 0.5,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch m"]:
    """Return the weights of :func:`aggregate` from inner products of the gradients alone.

    Args:
        gramian: ``[*batch, m, m]`` symmetric, positive semidefinite.
        method: as in :func:`aggregate`; ``"graddrop"`` needs the gradients themselves.
        preference: as there.
        regularization: as there.
        normalize: as there.
        radius: as there.
        generator: as there.

    Returns:
        ``[*batch, m]`` weights. They carry no gradient; those of :func:`~pullback.optim.upgrad_weights` do.

    Raises:
        TypeError: ``gramian`` is no floating tensor.
        ValueError: it is no Gramian, or an argument is out of range.

    Example:
        >>> aggregation_weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]), method="mgda")
        tensor([0.8000, 0.2000])

    References:
        Quinton, Rey (2024), arXiv 2406.16232 (``upgrad``). Desideri (2012), Multiple-gradient descent algorithm
        (``mgda``). Lopez-Paz, Ranzato (2017), Gradient episodic memory, equation 11 (``dualproj``). Yu et al. (2020),
        Gradient surgery, algorithm 1 (``pcgrad``). Liu et al. (2021), Conflict-averse gradient descent, equation 5
        (``cagrad``). Liu et al. (2021), Towards impartial multi-task learning, equation 5 (``imtl``). Senushkin et al.
        (2023), Independent component alignment, equation 17 (``aligned``). Navon et al. (2022), Multi-task learning as
        a bargaining game, claim 3.1 (``nash``).
    """
    check_choice("method", method, get_args(Aggregator))
    if method == "graddrop":
        raise ValueError("method 'graddrop' needs the gradients, not their inner products: use aggregate")
    check_gramian(gramian)
    check_positive("regularization", regularization, zero=True)
    if not 0 <= radius < 1:
        raise ValueError(f"radius must be in [0, 1), got {radius}")
    wanted = gramian.new_full(gramian.shape[-1:], 1 / gramian.shape[-1]) if preference is None else preference
    check_preference(wanted, gramian)
    if method == "upgrad":
        return upgrad_weights(gramian, preference=wanted, regularization=regularization, normalize=normalize)
    largest = gramian.abs().amax((-2, -1), keepdim=True)
    plain = (gramian / torch.where(largest > 0, largest, 1)).to(torch.float64)
    plain = (plain + plain.mT) / 2
    if method == "pcgrad":
        weights = _pcgrad(plain, generator)
    elif method == "cagrad":
        weights = _cagrad(plain, radius)
    elif method == "dualproj":
        weights = _dualproj(gramian, regularization, normalize, wanted.double())
    else:
        weights = _PLAIN[method](plain, wanted.double())
    # Those of Nash's bargain have the dimension of 1 / |g|: they are scaled back.
    if method == "nash":
        weights = weights / torch.where(largest > 0, largest, 1)[..., 0].double().sqrt()
    return weights.to(gramian.dtype)


def refuse_bad_rows(jacobian: Tensor) -> None:
    """Name the first objective whose gradient is not finite."""
    bad = ~torch.isfinite(jacobian).all(-1)
    if bool(bad.any()):
        raise ValueError(f"jacobian must be finite, but the gradient of objective {bad.nonzero()[0][-1].item()} is not")


def shortest_in_hull(gramian: Tensor) -> Tensor:
    """Return the weights ``[*batch, m]`` of the shortest convex combination, of a Gramian in double precision.

    ``min_{w in simplex} w . G w`` is ``min_{z >= 0} z . (G + 1 1^T) z / 2 - 1 . z`` with ``w = z / sum z``: both have
    the conditions ``G w >= s 1``, with equality where ``w > 0``.
    """
    scaled, _ = normalized(gramian, 0.0, "trace")
    z = solve(scaled + 1, -torch.ones_like(scaled[..., :1, :]))[..., 0, :]
    return z / z.sum(-1, keepdim=True)


def _mean(gramian: Tensor, preference: Tensor) -> Tensor:
    return preference.expand(gramian.shape[:-1])


def _mgda(gramian: Tensor, preference: Tensor) -> Tensor:
    return shortest_in_hull(gramian)


def _dualproj(gramian: Tensor, regularization: float, normalize: Normalization, preference: Tensor) -> Tensor:
    cosines, lengths = normalized(gramian, regularization, normalize)
    least = (preference * lengths)[..., None, :]
    return (least + solve(cosines, least @ cosines))[..., 0, :] / lengths


def _pcgrad(gramian: Tensor, generator: torch.Generator | None) -> Tensor:
    """Rows ``w_i`` of the weights of every projected gradient, each with an order of its own."""
    m = gramian.shape[-1]
    own = gramian.diagonal(dim1=-2, dim2=-1)
    weights = torch.eye(m, dtype=gramian.dtype, device=gramian.device).expand(gramian.shape).clone()
    device = drawing_device(generator, gramian)
    keys = torch.rand(gramian.shape, generator=generator, device=device, dtype=torch.float64)
    order = keys.to(gramian.device).argsort(-1)
    itself = torch.arange(m, device=gramian.device)
    for place in range(m):
        other = order[..., place]  # [*batch, m], of each row
        slope = (weights @ gramian).gather(-1, other[..., None])[..., 0]
        size = own[..., None, :].expand(gramian.shape).gather(-1, other[..., None])[..., 0]
        conflicts = (slope < 0) & (other != itself) & (size > 0)
        taken = torch.where(conflicts, slope / torch.where(size > 0, size, 1), 0)
        weights = weights.scatter_add(-1, other[..., None], -taken[..., None])
    return weights.sum(-2)


def _cagrad(gramian: Tensor, radius: float) -> Tensor:
    """Solve ``min_{w in simplex} w . G 1/m + k |J^T w|``, ``k = radius |g_0|``, by bisection of ``t = |J^T w|``.

    ``|v| = min_t (|v|^2 / t + t) / 2``: for a given ``t``, ``w`` is shortest in the hull of ``g_i + (t / k) g_0``. The
    problem is convex in ``w`` and ``t`` together, so that ``t - |J^T w(t)|`` changes its sign once.
    """
    m = gramian.shape[-1]
    with_mean = gramian.mean(-1)
    mean = with_mean.mean(-1, keepdim=True)[..., None]
    mean = torch.where(mean > 1e-20, mean, 0)  # below it is the rounding of G, whose entries are about 1
    bound = radius * mean.sqrt()[..., 0]  # [*batch, 1]
    low = torch.zeros_like(bound)
    high = gramian.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True).sqrt()
    weights = torch.full_like(with_mean, 1 / m)
    safe = torch.where(bound > 0, bound, 1)
    length = torch.zeros_like(bound)
    for _ in range(40):
        middle = (low + high) / 2
        share = (middle / safe)[..., None]
        weights = shortest_in_hull(
            gramian + share * (with_mean[..., None] + with_mean[..., None, :]) + share.square() * mean
        )
        length = (weights[..., None, :] @ gramian @ weights[..., None])[..., 0].clamp(min=0).sqrt()
        low, high = torch.where(length > middle, middle, low), torch.where(length > middle, high, middle)
    added = torch.where((bound > 0) & (length > 0), bound / torch.where(length > 0, length, 1), 0)
    return 1 / m + added * weights


def _imtl(gramian: Tensor, preference: Tensor) -> Tensor:
    lengths = gramian.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    v = (torch.linalg.pinv(gramian, hermitian=True, rtol=1e-10) @ lengths[..., None])[..., 0]
    total = v.sum(-1, keepdim=True)
    return torch.where(total.abs() > 1e-12, v / torch.where(total.abs() > 1e-12, total, 1), 0)


def _aligned(gramian: Tensor, preference: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(gramian)
    kept = values > 1e-10 * values[..., -1:].clamp(min=0) * gramian.shape[-1]
    smallest = torch.where(kept, values, torch.inf).amin(-1, keepdim=True)
    scale = torch.where(kept, (smallest / torch.where(kept, values, 1)).sqrt(), 0)
    inner = (vectors.mT @ preference.expand(gramian.shape[:-1])[..., None])[..., 0]
    return (vectors @ (scale * inner)[..., None])[..., 0]


def _nash(gramian: Tensor, preference: Tensor) -> Tensor:
    """Solve ``G w = 1 / w`` as the minimum of the self-concordant ``w . G w / 2 - sum log w``, by damped Newton."""
    eye = torch.eye(gramian.shape[-1], dtype=gramian.dtype, device=gramian.device)
    matrix = gramian + 1e-10 * eye
    w = torch.ones_like(gramian[..., 0]) / matrix.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True).sqrt()
    for _ in range(100):
        slope = (matrix @ w[..., None])[..., 0] - 1 / w
        move = torch.linalg.solve(w[..., None] * matrix * w[..., None, :] + eye, (w * slope)[..., None])[..., 0]
        decrement = (move * w * slope).sum(-1, keepdim=True).clamp(min=0).sqrt()
        w = w * (1 - move / torch.where(decrement > 0.25, 1 + decrement, 1))
        if bool((decrement < 1e-12).all()):
            break
    return w


_PLAIN: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": _mean,
    "mgda": _mgda,
    "imtl": _imtl,
    "aligned": _aligned,
    "nash": _nash,
}


def _graddrop(jacobian: Tensor, generator: torch.Generator | None) -> Tensor:
    """The probability of the positive sign is its share of the sum of magnitudes."""
    largest = jacobian.abs().amax(-2, keepdim=True)
    part = jacobian / torch.where(largest > 0, largest, 1)
    positive = (1 + part.sum(-2) / part.abs().sum(-2).clamp(min=torch.finfo(part.dtype).tiny)) / 2
    device = drawing_device(generator, jacobian)
    draws = torch.rand(positive.shape, generator=generator, device=device).to(positive)
    keep = torch.where((draws < positive)[..., None, :], jacobian > 0, jacobian < 0)
    return torch.where(keep, jacobian, 0).sum(-2)

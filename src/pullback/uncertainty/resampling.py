"""Resampling of weighted particles, and what each way of it makes of the gradient."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pullback import transport
from pullback.core.checks import (
    check_broadcast,
    check_choice,
    check_floating,
    check_integer,
    check_range,
    check_same_dtype,
    check_scalar,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.core.transforms import can_look

__all__ = ["DegenerateWeights", "Resampled", "ancestors", "check_particles", "check_weights", "drawn_again", "resample"]

_SCHEMES = ("systematic", "stratified", "multinomial")
_METHODS = (*_SCHEMES, "soft", "stop-gradient", "transport")


class DegenerateWeights(ValueError):
    """No particle has any weight; the message says where that happened."""


class Resampled(NamedTuple):
    """Particles after resampling.

    Attributes:
        points: ``[*batch, m, d]``.
        log_weights: ``[*batch, m]`` logarithms of weights with the sum of the given ones (``"soft"``: in expectation).
        indices: ``[*batch, m]`` which particle each one was; ``None`` for ``"transport"``, where each is a mean of all.
    """

    points: Float[Tensor, "*batch m d"]
    log_weights: Float[Tensor, "*batch m"]
    indices: Int[Tensor, "*batch m"] | None


def resample(
    points: Float[Tensor, "*#batch n d"],
    log_weights: Float[Tensor, "*#batch n"],
    *,
    method: str = "systematic",
    count: int | None = None,
    scheme: str = "systematic",
    mixture: float = 0.5,
    epsilon: Scalar = 0.1,
    generator: torch.Generator | None = None,
) -> Resampled:
    r"""Replace weighted particles by (almost) equally weighted ones that stand for the same law.

    Sums over the new particles are unbiased: :math:`E\sum_j w'_j f(x'_j)=\sum_i w_i f(x_i)` for every f, with
    :math:`\sum_j w'_j=\sum_i w_i=:W` (but for ``"soft"``, whose sum varies; and ``"transport"``, which is no draw, is
    exact for linear f and shrinks the cloud). What they do to derivatives:

    ``"systematic"``, ``"stratified"``, ``"multinomial"``: ancestors :math:`a_j\sim w/W`, :math:`w'_j=W/m`. The weights
    lose their derivative, all that depends on them afterwards is biased.

    ``"stop-gradient"``: the same values; :math:`w'_j=(W/m)\,p_{a_j}/\mathrm{stop}(p_{a_j})`, :math:`p=w/W`. To first
    order the derivative of an unbiased sum (such as the evidence of a particle filter) is unbiased; its variance grows
    with the number of resamplings. The derivative of the logarithm is that of the sum over the sum.

    ``"soft"``: :math:`a_j\sim q=\alpha p+(1-\alpha)/n`, :math:`w'_j=(W/m)\,p_{a_j}/q_{a_j}`: a part of the derivative,
    for a larger variance of the values.

    ``"transport"``: :math:`x'_j=n\sum_i P_{ij}x_i` with the entropic plan P from p to 1/n on squared distances. All is
    differentiable and nothing is drawn; larger epsilon pulls the particles to their mean.

    Args:
        points: ``[*batch, n, d]``.
        log_weights: ``[*batch, n]`` logarithms of weights of any sum; -inf for none.
        method: one of these.
        count: m >= 1 new particles; n by default, and for ``"transport"`` always.
        scheme: how ``"soft"`` and ``"stop-gradient"`` draw: ``"systematic"`` (one uniform for all; least variance),
            ``"stratified"`` (one for each, in its m-th part) or ``"multinomial"`` (independently).
        mixture: :math:`\alpha` in 0..1 of ``"soft"``; 1 draws from the weights.
        epsilon: > 0 of ``"transport"``, as a part of the mean squared distance of the points; a number or a tensor
            without dimensions.
        generator: of the draws.

    Returns:
        :class:`Resampled`.

    Raises:
        TypeError: points or log_weights are no floating tensors, or of different dtypes.
        ValueError: shapes do not fit, an option is out of range, a weight is NaN or infinite.
        DegenerateWeights: all weights of a row are zero.

    Example:
        >>> points, weights = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0.5, 0.5, 0.0])
        >>> found = resample(points, weights.log(), count=4, generator=torch.Generator().manual_seed(0))
        >>> found.points.flatten(), found.log_weights.exp()
        (tensor([0., 0., 1., 1.]), tensor([0.2500, 0.2500, 0.2500, 0.2500]))

    References:
        Douc, Cappe, Moulines (2005), Comparison of resampling schemes for particle filtering. Scibior, Wood (2021),
        Differentiable particle filtering without modifying the forward pass, section 4 (stop-gradient). Karkus, Hsu,
        Lee (2018), Particle filter networks, section 4.2 (soft). Corenflos, Thornton, Deligiannidis, Doucet (2021),
        Differentiable particle filtering via entropy-regularized optimal transport, section 3 (transport).
    """
    batch = check_particles(points, log_weights)
    check_choice("method", method, _METHODS)
    check_choice("scheme", scheme, _SCHEMES)
    check_range("mixture", mixture, 0.0, 1.0)
    check_scalar("epsilon", epsilon)
    n = points.shape[-2]
    m = n if count is None else check_integer("count", count, 1)
    check_weights(log_weights)
    points, log_weights = points.expand(*batch, *points.shape[-2:]), log_weights.expand(*batch, n)
    if method == "transport":
        if m != n:
            raise ValueError(f"count must be {n}, the number of points, for transport, got {m}")
        return _transported(points, log_weights, epsilon)
    return drawn_again(points, log_weights, method, m, scheme, mixture, generator)


def drawn_again(
    points: Tensor,
    log_weights: Tensor,
    method: str,
    m: int,
    scheme: str,
    mixture: float,
    generator: torch.Generator | None,
    *,
    normalised: bool = False,
) -> Resampled:
    """:func:`resample` for the methods that draw, its arguments looked at before; ``normalised``: the weights' sum is
    one, whatever they depend on.
    """
    n = points.shape[-2]
    wide = log_weights.to(torch.promote_types(log_weights.dtype, torch.float32))
    if normalised:
        log_p, share = wide, wide.new_full((*wide.shape[:-1], 1), -math.log(m))
    else:
        total = wide.logsumexp(-1, keepdim=True)
        log_p = wide - total
        share = total - math.log(m)
    if method == "soft" and mixture < 1:
        even = log_p.new_full((), math.log1p(-mixture) - math.log(n))
        log_q = torch.logaddexp(log_p + math.log(mixture), even) if mixture > 0 else even.expand_as(log_p)
        indices = ancestors(log_q, m, scheme=scheme, generator=generator)
        kept = share + (log_p - log_q).gather(-1, indices)
    else:
        drawn = method if method in _SCHEMES else scheme
        indices = ancestors(log_p, m, scheme=drawn, generator=generator)
        kept = share.expand(indices.shape)
        if method == "stop-gradient":
            log_own = log_p.gather(-1, indices)
            kept = kept + (log_own - log_own.detach())
    chosen = points.gather(-2, indices.unsqueeze(-1).expand(*indices.shape, points.shape[-1]))
    return Resampled(chosen, kept.to(log_weights.dtype), indices)


def ancestors(
    log_weights: Tensor, count: int, *, scheme: str = "systematic", generator: torch.Generator | None = None
) -> Tensor:
    """Draw indices ``[*batch, count]`` so that index i comes ``count w_i / W`` times on average; no gradient.

    Computed in double precision, so that weights of any dtype are drawn with their own probabilities; a weight of zero
    is never drawn. ``"systematic"`` and ``"stratified"`` draws are in increasing order.

    Example:
        >>> weights = torch.tensor([0.5, 0.0, 0.25, 0.25])
        >>> ancestors(weights.log(), 8, generator=torch.Generator().manual_seed(0)).tolist()
        [0, 0, 0, 0, 2, 2, 3, 3]
    """
    levels = log_weights.detach().double().softmax(-1).cumsum(-1)
    device = drawing_device(generator, log_weights)
    shape = (*log_weights.shape[:-1], 1 if scheme == "systematic" else count)
    u = torch.rand(shape, dtype=torch.float64, device=device, generator=generator).to(levels.device)
    if scheme != "multinomial":
        u = (u + torch.arange(count, dtype=torch.float64, device=u.device)) / count
    end = levels[..., -1:]
    # Index i is drawn where levels[i - 1] <= u < levels[i]: an empty interval, of weight zero, never.
    u = torch.minimum(u * end, torch.nextafter(end, torch.zeros_like(end)))
    return torch.searchsorted(levels.contiguous(), u.contiguous(), right=True)


def check_particles(points: Tensor, log_weights: Tensor) -> torch.Size:
    """Raise unless these are particles ``[*#batch, n, d]`` with log weights ``[*#batch, n]``; return the batch.

    Example:
        >>> check_particles(torch.zeros(2, 3, 1), torch.zeros(3))
        torch.Size([2])
    """
    if check_floating("points", points).ndim < 2 or not points.shape[-2]:
        raise ValueError(f"points must have shape [*batch, n, d] with n >= 1, got {tuple(points.shape)}")
    if check_floating("log_weights", log_weights).shape[-1:] != points.shape[-2:-1]:
        raise ValueError(f"log_weights must have shape (..., {points.shape[-2]}), got {tuple(log_weights.shape)}")
    check_same_dtype(points=points, log_weights=log_weights)
    return check_broadcast(points=tuple(points.shape[:-2]), log_weights=tuple(log_weights.shape[:-1]))


def check_weights(log_weights: Tensor, where: str = "") -> None:
    """Raise where a log weight is NaN or +inf, or all of a row are -inf; not looked at under transforms."""
    if not can_look(log_weights) or not log_weights.numel():
        return
    top = log_weights.detach().amax(-1)
    if bool(top.isfinite().all()):
        return
    if bool((top.isnan() | (top == torch.inf)).any()):
        raise ValueError(f"log_weights must be finite or -inf, got {top[~top.isfinite()][0].item()}{where}")
    row = [int(i) for i in (top == -torch.inf).nonzero()[0]]
    place = f" in row {tuple(row)}" if row else ""
    raise DegenerateWeights(
        f"no particle has any weight{place}{where}: wider proposals, or more particles, may reach where the weight is"
    )


def _transported(points: Tensor, log_weights: Tensor, epsilon: Scalar) -> Resampled:
    n = points.shape[-2]
    wide = torch.promote_types(points.dtype, torch.float32)
    total = log_weights.to(wide).logsumexp(-1, keepdim=True)
    mass = (log_weights.to(wide) - total).exp()
    x = points.to(wide)
    size = x.detach().abs().flatten(-2).amax(-1)[..., None, None] if x.shape[-1] else x.sum((-2, -1), keepdim=True)
    near = x / torch.where(size > 0, size, 1)  # squares of its entries are finite
    near = near - near.mean(-2, keepdim=True)
    square = 2 * near.square().sum(-1, keepdim=True).mean(-2, keepdim=True)  # the mean squared distance of all pairs
    apart = square > torch.finfo(wide).eps ** 2
    cost = transport.pairwise_cost(near, near) / torch.where(apart, square, 1)
    plan = transport.sinkhorn(
        cost, mass / mass.sum(-1, keepdim=True), torch.full_like(mass, 1 / n), epsilon=epsilon, check=True
    ).plan
    even = (total - math.log(n)).expand(log_weights.shape)
    return Resampled((n * plan.mT @ x).to(points.dtype), even.to(log_weights.dtype), None)

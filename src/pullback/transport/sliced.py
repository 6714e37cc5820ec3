"""Optimal transport of clouds along lines: the mean over directions of what it costs on each."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_broadcast, check_integer, check_same_dtype
from pullback.core.random import unit_vectors
from pullback.core.shapes import Float, Tensor
from pullback.transport.costs import check_clouds
from pullback.transport.masses import masses
from pullback.transport.one_dimensional import matching, wasserstein_1d

__all__ = ["MaxSliced", "max_sliced_wasserstein", "sliced_wasserstein"]


def sliced_wasserstein(
    x: Float[Tensor, "*#batch n d"],
    y: Float[Tensor, "*#batch m d"],
    a: Float[Tensor, "*#batch n"] | None = None,
    b: Float[Tensor, "*#batch m"] | None = None,
    *,
    p: float = 2.0,
    projections: int = 128,
    directions: Float[Tensor, "*#batch l d"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Return :math:`SW_p^p=\frac1L\sum_l W_p^p(\langle\theta_l,x\rangle,\langle\theta_l,y\rangle)`.

    Directions :math:`\theta_l` are drawn anew in each call, independent and uniform on the sphere, the same for all
    problems of a batch: an unbiased estimate of the mean over the sphere. O(L (n + m) log(n + m)), differentiable in
    points, masses and directions.

    Args:
        x: ``[*batch, n, d]`` points.
        y: ``[*batch, m, d]`` points.
        a: ``[*batch, n]`` masses >= 0; uniform by default.
        b: ``[*batch, m]`` masses >= 0 of the same sum.
        p: >= 1, of the cost ``|x - y|**p``.
        projections: L, how many directions to draw, >= 1.
        directions: ``[*batch, L, d]`` those to use, as they are (of length 1, for the sliced distance), in place of
            drawn ones: with the same ones the p-th root is a (pseudo)metric, triangle inequality included.
        generator: of the draws.

    Returns:
        ``[*batch]`` the p-th power of the distance (of unit mass where no masses are given); take the root for the
        distance. float16 and bfloat16 are computed in float32.

    Raises:
        TypeError: ``x`` or ``y`` is no floating tensor, or the dtypes differ.
        ValueError: there are no points, a point is not finite, ``p`` or ``projections`` < 1, masses are negative or of
            different sums, or shapes do not fit.

    Example:
        >>> x, shift = torch.randn(100, 2), torch.tensor([3.0, 4.0])
        >>> axes = torch.eye(2)
        >>> sliced_wasserstein(x, x + shift, directions=axes)  # the mean of 3**2 and 4**2
        tensor(12.5000)

    References:
        Bonneel, Rabin, Peyre, Pfister (2015), Sliced and Radon Wasserstein barycenters of measures, section 3.
    """
    check_clouds(x, y)
    lines = _lines(x, y, projections, directions, generator)
    wide = lines.dtype
    a, b = (_rows(name, w, x, wide) for name, w in (("a", a), ("b", b)))
    return wasserstein_1d(lines @ x.to(wide).mT, lines @ y.to(wide).mT, a, b, p=p).mean(-1).to(x.dtype)


class MaxSliced(NamedTuple):
    """Transport along the direction in which two clouds differ most.

    Attributes:
        value: ``[*batch]`` the p-th power of the distance.
        direction: ``[*batch, d]`` of length 1, without gradient.
    """

    value: Float[Tensor, "*batch"]
    direction: Float[Tensor, "*batch d"]


def max_sliced_wasserstein(
    x: Float[Tensor, "*#batch n d"],
    y: Float[Tensor, "*#batch m d"],
    a: Float[Tensor, "*#batch n"] | None = None,
    b: Float[Tensor, "*#batch m"] | None = None,
    *,
    p: float = 2.0,
    projections: int = 16,
    steps: int = 20,
    directions: Float[Tensor, "*#batch l d"] | None = None,
    generator: torch.Generator | None = None,
) -> MaxSliced:
    r"""Return :math:`\max_{|\theta|=1}W_p^p(\langle\theta,x\rangle,\langle\theta,y\rangle)` by ascent.

    Of ``projections`` random directions each goes ``steps`` times along the slope
    :math:`\int p|\delta|^{p-1}\mathrm{sgn}(\delta)(x-y)`, delta the signed distance of a matched pair: first in ever
    smaller steps, then to the slope itself, which at a smooth maximum is the direction; the best one passed is taken. A
    lower bound of the maximum, found by local search. The value is differentiated with the direction held, which is
    exact at a maximum.

    Args:
        x: ``[*batch, n, d]`` points.
        y: ``[*batch, m, d]`` points.
        a: ``[*batch, n]`` masses >= 0; uniform by default.
        b: ``[*batch, m]`` masses >= 0 of the same sum.
        p: >= 1, of the cost ``|x - y|**p``.
        projections: starts to draw, >= 1.
        steps: of ascent, >= 0; 0 takes the best start.
        directions: ``[*batch, L, d]`` starts in place of drawn ones, of any length > 0.
        generator: of the draws.

    Returns:
        :class:`MaxSliced`.

    Raises:
        TypeError: ``x`` or ``y`` is no floating tensor, or the dtypes differ.
        ValueError: as :func:`sliced_wasserstein`, or ``steps`` < 0.

    Example:
        >>> x, shift = torch.randn(50, 3), torch.tensor([0.0, 3.0, 4.0])
        >>> found = max_sliced_wasserstein(x, x + shift, generator=torch.Generator().manual_seed(0))
        >>> round(found.value.item(), 1)  # of a shift, its length squared
        25.0

    References:
        Deshpande, Hu, Sun, Pyrros, Siddiqui, Koyejo, Zhao, Forsyth, Schwing (2019), Max-sliced Wasserstein distance and
        its use for GANs, section 4.
    """
    check_clouds(x, y)
    check_integer("steps", steps, 0)
    line = _lines(x, y, projections, directions, generator).detach()
    wide, dtype = line.dtype, x.dtype
    a, b = (_rows(name, w, x, wide) for name, w in (("a", a), ("b", b)))
    points, others = x.to(wide), y.to(wide)
    line = line / line.square().sum(-1, keepdim=True).sqrt()
    found = _along(points.detach(), others.detach(), a, b, line, p)
    best, most = line.expand(*found.value.shape, line.shape[-1]), found.value
    for k in range(steps):
        way = found.slope / found.slope.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-30)
        line = line + way / (1 + k / 2) if k < steps // 2 else way
        line = line / line.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-30)
        found = _along(points.detach(), others.detach(), a, b, line, p)
        better = found.value > most
        best, most = torch.where(better.unsqueeze(-1), line, best), torch.maximum(found.value, most)
    index = most.argmax(-1, keepdim=True).unsqueeze(-1)
    direction = best.gather(-2, index.expand(*index.shape[:-1], best.shape[-1]))
    value = wasserstein_1d(direction @ points.mT, direction @ others.mT, a, b, p=p).squeeze(-1)
    return MaxSliced(value.to(dtype), direction.squeeze(-2).to(dtype))


class _Along(NamedTuple):
    """Transport along lines ``[..., l]``, and its slope along them ``[..., l, d]``."""

    value: Tensor
    slope: Tensor


def _along(x: Tensor, y: Tensor, a: Tensor | None, b: Tensor | None, lines: Tensor, p: float) -> _Along:
    s, t = lines @ x.mT, lines @ y.mT
    batch = torch.broadcast_shapes(s.shape[:-1], t.shape[:-1])
    s, t = s.expand(*batch, s.shape[-1]), t.expand(*batch, t.shape[-1])
    same = a is None and b is None and s.shape[-1] == t.shape[-1]
    sizes = (s.shape[-1], t.shape[-1])
    both = (None, None) if same else masses(a, b, sizes=sizes, batch=batch, like=s, what="x")
    matched = matching(s, t, *(None if w is None else w.detach() for w in both))
    difference = s.gather(-1, matched.of_x) - t.gather(-1, matched.of_y)
    pull = matched.share * difference.abs() ** (p - 1) * difference.sign()
    there, back = (torch.zeros_like(u).scatter_add(-1, i, pull) for u, i in ((s, matched.of_x), (t, matched.of_y)))
    return _Along((pull * difference).sum(-1), there @ x - back @ y)


def _lines(
    x: Tensor, y: Tensor, projections: int, directions: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """Return the directions ``[..., l, d]``, given or drawn, in the precision of the projections."""
    wide = torch.promote_types(x.dtype, torch.float32)
    if directions is None:
        check_integer("projections", projections, 1)
        return unit_vectors(projections, x.shape[-1], generator=generator, like=x).to(wide)
    check_same_dtype(x=x, directions=directions)
    if directions.ndim < 2 or directions.shape[-1] != x.shape[-1] or directions.shape[-2] == 0:
        raise ValueError(f"directions must have shape (..., l, {x.shape[-1]}), got {tuple(directions.shape)}")
    check_broadcast(x=tuple(x.shape[:-2]), y=tuple(y.shape[:-2]), directions=tuple(directions.shape[:-2]))
    return directions.to(wide)


def _rows(name: str, masses: Tensor | None, x: Tensor, wide: torch.dtype) -> Tensor | None:
    """Return masses, if there are any, with a dimension for the lines."""
    if masses is None:
        return None
    check_same_dtype(**{"x": x, name: masses})
    if masses.ndim < 1:
        raise ValueError(f"{name} must have shape (..., points), got {tuple(masses.shape)}")
    return masses.unsqueeze(-2).to(wide)

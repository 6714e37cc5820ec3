"""Optimal transport of clouds along lines: the mean over directions of what it costs on each."""

from __future__ import annotations

import torch

from pullback.core.checks import check_broadcast, check_integer, check_same_dtype
from pullback.core.random import unit_vectors
from pullback.core.shapes import Float, Tensor
from pullback.transport.costs import check_clouds
from pullback.transport.one_dimensional import wasserstein_1d

__all__ = ["sliced_wasserstein"]


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

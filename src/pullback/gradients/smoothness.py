"""How fast a gradient changes around a point, and whether that grows with the gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_callable, check_finite, check_floating, check_integer
from pullback.core.shapes import Float

__all__ = ["LocalSmoothness", "RelaxedSmoothness", "fit_smoothness", "local_smoothness"]


class LocalSmoothness(NamedTuple):
    """The smoothness of a loss near a point.

    Attributes:
        value: largest change of the gradient per length of a step, no dimensions.
        gradient_norm: at the point, no dimensions.
    """

    value: Float[Tensor, ""]
    gradient_norm: Float[Tensor, ""]


class RelaxedSmoothness(NamedTuple):
    """A line through local smoothnesses against norms of gradients.

    Attributes:
        constant: ``[*batch]``, :math:`L_0`, the smoothness where the gradient is 0.
        slope: ``[*batch]``, :math:`L_1`, what each unit of the gradient's norm adds.
        t: ``[*batch]``, the slope in units of its standard error; infinite where the points are on a line.
    """

    constant: Float[Tensor, "*batch"]
    slope: Float[Tensor, "*batch"]
    t: Float[Tensor, "*batch"]


def local_smoothness(
    loss: Callable[[dict[str, Tensor]], Tensor],
    parameters: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    *,
    points: int = 5,
) -> LocalSmoothness:
    r"""Measure the smoothness of a loss along a step ``d``, such as the next one of an optimizer.

    .. math:: \hat L(w) = \max_{k = 1 \ldots K} \frac{\|\nabla f(w + \frac{k}{K} d) - \nabla f(w)\|}{\|\frac{k}{K} d\|}

    For a quadratic loss that is at most its largest curvature, wherever ``w`` is. Of recurrent networks it grows with
    :math:`\|\nabla f(w)\|`: then no step size of plain descent is right everywhere, and clipped or normalised steps
    are faster. :func:`fit_smoothness` tells the two cases apart from many points.

    Args:
        loss: maps parameters by name to a scalar; of a module, ``lambda p: criterion(functional_call(module, p, x))``.
            The same data at every call.
        parameters: floating tensors by name; left unchanged.
        direction: ``d``, tensors of the same names and shapes, in all not 0.
        points: ``K``, >= 1; each takes a gradient.

    Returns:
        A :class:`LocalSmoothness`.

    Raises:
        TypeError: ``loss`` is not callable, a parameter is not floating.
        ValueError: ``direction`` is 0 or not shaped like ``parameters``, or the loss is no scalar.

    Example:
        >>> curvatures = torch.tensor([1.0, 5.0])
        >>> here, step = {"x": torch.tensor([3.0, 1.0])}, {"x": torch.tensor([0.0, -0.1])}
        >>> found = local_smoothness(lambda p: (curvatures * p["x"] ** 2).sum() / 2, here, step)
        >>> round(found.value.item(), 3), round(found.gradient_norm.item(), 3)
        (5.0, 5.831)

    References:
        Zhang, He, Sra, Jadbabaie (2020), Why gradient clipping accelerates training: a theoretical justification for
        adaptivity, section 5 and appendix H.
    """
    check_callable("loss", loss)
    check_integer("points", points, 1)
    for name, tensor in parameters.items():
        check_floating(f"parameters[{name!r}]", tensor)
    if {n: d.shape for n, d in direction.items()} != {n: p.shape for n, p in parameters.items()} or not parameters:
        came, wanted = ({n: tuple(t.shape) for n, t in given.items()} for given in (direction, parameters))
        raise ValueError(f"direction must be shaped like parameters, {wanted}, got {came}")
    step = {name: direction[name].detach().to(p) for name, p in parameters.items()}
    length = _norm(list(step.values()))
    if not bool(length > 0) or not bool(torch.isfinite(length)):
        raise ValueError(f"direction must have a length that is finite and > 0, got {length.item()}")
    here = _gradient(loss, parameters)
    changes = []
    for k in range(1, points + 1):
        there = _gradient(loss, {name: p.detach() + k / points * step[name] for name, p in parameters.items()})
        changes.append(_norm([b - a for a, b in zip(here, there, strict=True)]) / (k / points * length))
    return LocalSmoothness(torch.stack(changes).max(), _norm(here))


def fit_smoothness(
    smoothness: Float[Tensor, "*batch n"], gradient_norm: Float[Tensor, "*batch n"]
) -> RelaxedSmoothness:
    r"""Fit :math:`\hat L_i = L_0 + L_1 \|\nabla f(w_i)\|` by least squares.

    A loss is :math:`(L_0, L_1)`-smooth where its curvature is below such a line; :math:`L_1 = 0` is ordinary
    smoothness. The standard error takes points for independent: take them some steps apart.

    Args:
        smoothness: ``[*batch, n]``, ``n`` >= 3, of :func:`local_smoothness`.
        gradient_norm: ``[*batch, n]``, not all equal.

    Returns:
        A :class:`RelaxedSmoothness`.

    Raises:
        TypeError: an argument is not floating.
        ValueError: the shapes differ, fewer than 3 points, a number that is not finite, or norms that are all equal.

    Example:
        >>> norms = torch.tensor([0.0, 1.0, 2.0, 3.0])
        >>> found = fit_smoothness(torch.tensor([1.0, 3.1, 4.9, 7.0]), norms)
        >>> [round(v.item(), 2) for v in found]
        [1.03, 1.98, 46.67]

    References:
        Zhang, He, Sra, Jadbabaie (2020), Why gradient clipping accelerates training, definition 1.
    """
    check_floating("smoothness", smoothness)
    check_floating("gradient_norm", gradient_norm)
    if smoothness.shape != gradient_norm.shape or smoothness.ndim < 1 or smoothness.shape[-1] < 3:
        raise ValueError(
            "smoothness and gradient_norm must have the same shape with at least 3 points, "
            f"got {tuple(smoothness.shape)} and {tuple(gradient_norm.shape)}"
        )
    check_finite("smoothness", smoothness)
    check_finite("gradient_norm", gradient_norm)
    y, x = smoothness.detach().double(), gradient_norm.detach().double()
    middle, level = x.mean(-1, keepdim=True), y.mean(-1, keepdim=True)
    spread = ((x - middle) ** 2).sum(-1)
    if not bool((spread > 0).all()):
        raise ValueError("gradient_norm must not be the same at all points")
    slope = ((x - middle) * (y - level)).sum(-1) / spread
    constant = level[..., 0] - slope * middle[..., 0]
    left = ((y - constant[..., None] - slope[..., None] * x) ** 2).sum(-1) / (x.shape[-1] - 2)
    t = slope / (left / spread).sqrt()
    return RelaxedSmoothness(*(v.to(smoothness.dtype) for v in (constant, slope, t)))


def _gradient(loss: Callable[[dict[str, Tensor]], Tensor], parameters: Mapping[str, Tensor]) -> list[Tensor]:
    with torch.enable_grad():
        leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        value = loss(leaves)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"loss must return a scalar, got {shape}")
        if not value.requires_grad:
            return [torch.zeros_like(p) for p in leaves.values()]
        return list(torch.autograd.grad(value.sum(), list(leaves.values()), materialize_grads=True))


def _norm(tensors: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors]))

"""Distances between persistence diagrams, with the gradient of the matched bars."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_floating, check_integer, check_same_dtype, check_shape
from pullback.core.shapes import Float
from pullback.core.transforms import physical
from pullback.kernels.bottleneck import bottleneck
from pullback.kernels.transport import assign
from pullback.topology.pairing import as_array
from pullback.topology.persistence import Diagram

__all__ = ["bottleneck_distance", "diagram_wasserstein"]


def bottleneck_distance(
    a: Diagram | Float[Tensor, "*batch m 2"], b: Diagram | Float[Tensor, "*batch k 2"]
) -> Float[Tensor, "*batch"]:
    r"""Return :math:`\min_\pi \max_{x} \lVert x - \pi(x) \rVert_\infty` over matchings of two diagrams.

    A bar that has no partner is matched with the diagonal, at half its length. Bars without end are matched among each
    other, by birth; where their numbers differ the distance is infinite. Exact. The gradient is that of the pair that
    realises the maximum (one of them, where several do).

    Args:
        a, b: diagrams: of :func:`persistence`, or ``[*batch, m, 2]`` births and deaths, ``birth <= death``, deaths may
            be infinite. The same batch in both.

    Returns:
        ``[*batch]``, in the units of the filtration.

    Raises:
        TypeError: a diagram is neither, or the dtypes differ.
        ValueError: the batches differ, a birth is not finite or above its death.

    Example:
        >>> bottleneck_distance(torch.tensor([[0.0, 4.0], [1.0, 2.0]]), torch.tensor([[0.0, 5.0]]))
        tensor(1.)

    References:
        Cohen-Steiner, Edelsbrunner, Harer (2007), Stability of persistence diagrams.
    """
    results, batch, dtype = [], *_same_batch(a, b)
    for x, y in zip(_elements("a", a), _elements("b", b), strict=True):
        finite_x, finite_y, ends = _split(x, y, "a", "b")
        parts = [x.new_zeros(1), ends]
        _, i, j = bottleneck(as_array(finite_x), as_array(finite_y))
        if i >= 0 and j >= 0:
            parts.append(torch.linalg.vector_norm(finite_x[i] - finite_y[j], ord=math.inf).reshape(1))
        elif i >= 0 or j >= 0:
            alone = finite_x[i] if i >= 0 else finite_y[j]
            parts.append(0.5 * (alone[1:] - alone[:1]))
        every = torch.cat(parts)
        results.append(every[every.detach().argmax()])
    return torch.stack(results).to(dtype).view(batch)


def diagram_wasserstein(
    a: Diagram | Float[Tensor, "*batch m 2"],
    b: Diagram | Float[Tensor, "*batch k 2"],
    *,
    p: float = 2.0,
    q: float = 2.0,
    method: str = "exact",
    lines: int = 50,
) -> Float[Tensor, "*batch"]:
    r"""Return the Wasserstein distance of two diagrams, each with the diagonal added.

    .. math:: W_p(a, b) = \Bigl(\min_\pi \sum_x \lVert x - \pi(x) \rVert_q^p\Bigr)^{1/p}

    ``method="exact"`` solves the assignment; a bar may be matched with its nearest point of the diagonal. Sliced, each
    diagram gets the other one's points of the diagonal, both are projected on ``lines`` directions evenly spread over
    the half circle, and the mean over directions replaces the sum: :math:`\bigl(\frac1L \sum_l \sum_i |s_{li} -
    t_{li}|^p\bigr)^{1/p}` of sorted projections. The gradient is that of the matched pairs, 0 where the distance is 0.

    Args:
        a, b: as in :func:`bottleneck_distance`. Sliced, all deaths are finite.
        p: >= 1, exponent of the sum.
        q: >= 1, may be infinite, norm in the plane; exact alone.
        method: ``"exact"`` or ``"sliced"``.
        lines: directions of ``"sliced"``.

    Returns:
        ``[*batch]``, in the units of the filtration.

    Raises:
        TypeError, ValueError: as :func:`bottleneck_distance`; ``p`` or ``q`` below 1, unknown method, no lines, or an
            infinite death in a sliced distance.

    Example:
        >>> a = torch.tensor([[0.0, 4.0], [1.0, 2.0]], requires_grad=True)
        >>> distance = diagram_wasserstein(a, torch.tensor([[0.0, 5.0]]))
        >>> round(distance.item() ** 2, 4)  # 1 along the deaths, and (2 - 1)^2 / 2 to the diagonal
        1.5

    References:
        Cohen-Steiner, Edelsbrunner, Harer, Mileyko (2010), Lipschitz functions have L_p-stable persistence.
        Carriere, Cuturi, Oudot (2017), Sliced Wasserstein kernel for persistence diagrams, definition 3.1.
    """
    check_choice("method", method, ("exact", "sliced"))
    check_integer("lines", lines, 1)
    for name, value in (("p", p), ("q", q)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} must be a number >= 1, got {type(value).__name__}")
        if not value >= 1 or (name == "p" and math.isinf(value)):
            raise ValueError(f"{name} must be >= 1{' and finite' * (name == 'p')}, got {value}")
    results, batch, dtype = [], *_same_batch(a, b)
    for x, y in zip(_elements("a", a), _elements("b", b), strict=True):
        finite_x, finite_y, ends = _split(x, y, "a", "b")
        if method == "sliced":
            if len(ends):
                raise ValueError("a and b must have finite deaths for method 'sliced'")
            results.append(_norm(_slices(finite_x, finite_y, lines), p, lines))
            continue
        results.append(_norm(torch.cat([ends, _matched(finite_x, finite_y, p, q)]), p, 1))
    return torch.stack(results).to(dtype).view(batch)


def _same_batch(a: Diagram | Tensor, b: Diagram | Tensor) -> tuple[tuple[int, ...], torch.dtype]:
    shapes = []
    for name, bars in (("a", a), ("b", b)):
        if isinstance(bars, Diagram):
            check_same_dtype(birth=bars.birth, death=bars.death)
            shapes.append(tuple(bars.degenerate.shape))
            continue
        check_shape(name, check_floating(name, bars), (None, 2))
        if physical(bars).shape != bars.shape:
            raise ValueError(
                f"{name} must not be mapped over by vmap, as values decide on the matching; give it the batch"
            )
        shapes.append(tuple(bars.shape[:-2]))
    first, second = (bars.birth if isinstance(bars, Diagram) else bars for bars in (a, b))
    check_same_dtype(a=first, b=second)
    if shapes[0] != shapes[1]:
        raise ValueError(f"a and b must have the same batch, got {shapes[0]} and {shapes[1]}")
    if not math.prod(shapes[0]):
        raise ValueError(f"a and b must have at least one element, got a batch of shape {shapes[0]}")
    return shapes[0], first.dtype


def _elements(name: str, bars: Diagram | Tensor) -> list[Tensor]:
    """The points ``[m, 2]`` of each element, in at least single precision."""
    if isinstance(bars, Diagram):
        points = torch.stack([bars.birth, bars.death], -1)
        elements = [points[bars.batch == i] for i in range(bars.degenerate.numel())]
    else:
        points = bars
        elements = list(bars.reshape(math.prod(bars.shape[:-2]), *bars.shape[-2:]))
    birth, death = points.detach().unbind(-1)
    if not bool((torch.isfinite(birth) & (death >= birth)).all()):
        raise ValueError(f"{name} must have finite births, none above its death, and no NaN")
    return [e.to(torch.promote_types(e.dtype, torch.float32)) for e in elements]


def _split(x: Tensor, y: Tensor, *names: str) -> tuple[Tensor, Tensor, Tensor]:
    """Return the finite bars of both, and the differences between the births of the others, infinite if one is left."""
    finite = [bars[torch.isfinite(bars[:, 1])] for bars in (x, y)]
    births = [bars[~torch.isfinite(bars[:, 1]), 0].sort().values for bars in (x, y)]
    if len(births[0]) != len(births[1]):
        return finite[0], finite[1], x.new_full((1,), math.inf)
    return finite[0], finite[1], (births[0] - births[1]).abs()


def _matched(x: Tensor, y: Tensor, p: float, q: float) -> Tensor:
    """Return the costs of the best matching: of the pairs of bars, then of those that the diagonal takes.

    A pair is worth what it saves against two visits to the diagonal; a matching that may leave bars over and saves most
    is an assignment of ``m`` rows and ``k`` columns, whose pairs that save nothing are none.
    """
    alone_x, alone_y = (0.5 * 2 ** (1 / q) * (bars[:, 1] - bars[:, 0]) for bars in (x, y))
    if not len(x) or not len(y):
        return torch.cat([alone_x, alone_y])
    first, second = as_array(x), as_array(y)
    gaps = np.abs(first[:, None] - second)
    if q == 2:
        between = np.hypot(gaps[..., 0], gaps[..., 1])
    else:
        between = gaps.max(-1) if math.isinf(q) else (gaps**q).sum(-1) ** (1 / q)
    costs = (between, as_array(alone_x)[:, None], as_array(alone_y))
    largest = max(float(cost.max()) for cost in costs) or 1.0
    pair, one, other = ((cost / largest) ** p for cost in costs)
    worth = np.minimum(pair - one - other, 0)
    if len(x) <= len(y):
        i, j = np.arange(len(x)), assign(worth[None])[0][0]
    else:
        i, j = assign(worth.T[None])[0][0], np.arange(len(y))
    taken = worth[i, j] < 0
    own, partner = (torch.from_numpy(index[taken]).to(x.device) for index in (i, j))
    left_x, left_y = (torch.ones(len(bars), dtype=torch.bool, device=x.device) for bars in (x, y))
    left_x[own], left_y[partner] = False, False
    return torch.cat([torch.linalg.vector_norm(x[own] - y[partner], ord=q, dim=-1), alone_x[left_x], alone_y[left_y]])


def _slices(x: Tensor, y: Tensor, lines: int) -> Tensor:
    both = [torch.cat([own, other.mean(-1, keepdim=True).expand(-1, 2)]) for own, other in ((x, y), (y, x))]
    angles = (torch.arange(lines, dtype=torch.float64, device=x.device) + 0.5) * (math.pi / lines) - math.pi / 2
    directions = torch.stack([angles.cos(), angles.sin()]).to(x.dtype)
    first, second = ((points @ directions).sort(0).values for points in both)
    return (first - second).abs().flatten()


def _norm(distances: Tensor, p: float, count: int) -> Tensor:
    """The p-norm over the ``count``-th root, with gradient 0 at 0."""
    largest = distances.detach().amax() if len(distances) else distances.new_zeros(())
    if not bool(largest > 0) or not bool(torch.isfinite(largest)):
        return distances.sum() * (0 if not bool(largest > 0) else 1)
    total = (distances / largest).pow(p).sum() / count
    return largest * total.pow(1 / p)

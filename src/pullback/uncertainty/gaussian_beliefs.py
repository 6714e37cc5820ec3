"""Belief propagation between Gaussian variables: exact on trees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_same_dtype
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look

__all__ = ["Edges", "GaussianBeliefs", "check_graph", "gaussian_belief_propagation"]

Edges = Sequence[tuple[int, int]]
"""Pairs of nodes, each pair once, in either order."""


class GaussianBeliefs(NamedTuple):
    """Marginals of a Gaussian graphical model.

    Attributes:
        means: ``[*batch, n]``; where messages settle, right on any graph.
        variances: ``[*batch, n]``; right on trees, too small on graphs with loops.
        residual: ``[*batch]`` the largest change of a message in the last sweep; 0 on trees.
    """

    means: Float[Tensor, "*batch n"]
    variances: Float[Tensor, "*batch n"]
    residual: Float[Tensor, "*batch"]


def gaussian_belief_propagation(
    precision: Float[Tensor, "*#batch n n"],
    potential: Float[Tensor, "*#batch n"],
    graph: Edges,
    *,
    iterations: int | None = None,
) -> GaussianBeliefs:
    r"""Pass messages along the edges of :math:`p(x)\propto\exp(-\tfrac12x^TJx+h^Tx)`.

    .. math:: J_{i\to j}=-\frac{J_{ij}^2}{J_{ii}+\sum_{k\ne j}J_{k\to i}},\qquad
        h_{i\to j}=-\frac{J_{ij}\,(h_i+\sum_{k\ne j}h_{k\to i})}{J_{ii}+\sum_{k\ne j}J_{k\to i}}

    All messages at once, as often as the longest path needs. Differentiable through all sweeps.

    Args:
        precision: J ``[*batch, n, n]`` symmetric, positive definite; zero where there is no edge.
        potential: h ``[*batch, n]``.
        graph: edges as pairs of nodes.
        iterations: sweeps >= 1; n by default, which is enough for every tree.

    Returns:
        :class:`GaussianBeliefs`. float16 and bfloat16 are computed in float32.

    Raises:
        TypeError: precision or potential is no floating tensor, or of different dtypes; an edge is no pair of integers.
        ValueError: shapes do not fit, an edge names an unknown node or stands twice, J has an entry without an edge, a
            message has no positive precision.

    Example:
        >>> chain = torch.tensor([[2.0, -1.0, 0.0], [-1.0, 2.0, -1.0], [0.0, -1.0, 2.0]])
        >>> found = gaussian_belief_propagation(chain, torch.tensor([1.0, 0.0, 0.0]), [(0, 1), (1, 2)])
        >>> found.means, found.variances
        (tensor([0.7500, 0.5000, 0.2500]), tensor([0.7500, 1.0000, 0.7500]))

    References:
        Weiss, Freeman (2001), Correctness of belief propagation in Gaussian graphical models of arbitrary topology.
    """
    if check_floating("precision", precision).ndim < 2 or precision.shape[-1] != precision.shape[-2]:
        raise ValueError(f"precision must have shape [*batch, n, n], got {tuple(precision.shape)}")
    n = precision.shape[-1]
    if check_floating("potential", potential).shape[-1:] != (n,):
        raise ValueError(f"potential must have shape [*batch, {n}], got {tuple(potential.shape)}")
    check_same_dtype(precision=precision, potential=potential)
    batch = check_broadcast(precision=tuple(precision.shape[:-2]), potential=tuple(potential.shape[:-1]))
    edges = check_graph(graph, n)
    sweeps = n if iterations is None else check_integer("iterations", iterations, 1)
    wide = torch.promote_types(precision.dtype, torch.float32)
    j, h = precision.to(wide).expand(*batch, n, n), potential.to(wide).expand(*batch, n)
    if can_look(j):
        _check_precision(precision, edges)
    source = torch.tensor([a for a, b in edges] + [b for a, b in edges], device=j.device, dtype=torch.long)
    target = source.roll(len(edges)) if edges else source
    back = torch.arange(2 * len(edges), device=j.device).roll(len(edges))
    into = torch.zeros(n, 2 * len(edges), dtype=wide, device=j.device)
    into = into.scatter(0, target[None], 1.0)
    own, coupling = j.diagonal(dim1=-2, dim2=-1), j[..., source, target]
    to_j = torch.zeros_like(coupling)
    to_h, change = to_j, to_j
    for _ in range(sweeps):
        sharp = (own + to_j @ into.mT)[..., source] - to_j[..., back]
        if can_look(sharp) and not bool((sharp > 0).all()):
            raise ValueError(f"precision must be positive definite: a message has the precision {float(sharp.min()):g}")
        pull = (h + to_h @ into.mT)[..., source] - to_h[..., back]
        new_j, new_h = -coupling.square() / sharp, -coupling * pull / sharp
        change = torch.maximum((new_j - to_j).abs(), (new_h - to_h).abs()).detach()
        to_j, to_h = new_j, new_h
    total = own + to_j @ into.mT
    residual = change.amax(-1) if edges else total.detach().sum(-1) * 0
    found = ((h + to_h @ into.mT) / total, 1 / total, residual)
    return GaussianBeliefs(*(x.to(precision.dtype) for x in found))


def check_graph(graph: Edges, n: int) -> list[tuple[int, int]]:
    """Return the edges as pairs of integers of ``0..n-1``, or raise.

    Example:
        >>> check_graph([(0, 3)], 2)
        Traceback (most recent call last):
        ValueError: graph must join nodes in 0..1, got (0, 3)
    """
    edges: list[tuple[int, int]] = []
    for edge in graph:
        pair = tuple(edge)
        if len(pair) != 2:
            raise ValueError(f"graph must hold pairs of nodes, got {pair}")
        for node in pair:
            if isinstance(node, bool) or not isinstance(node, int):
                raise TypeError(f"graph must hold integers, got {type(node).__name__}")
        if not all(0 <= node < n for node in pair) or pair[0] == pair[1]:
            raise ValueError(f"graph must join nodes in 0..{n - 1}, got {pair}")
        if pair in edges or pair[::-1] in edges:
            raise ValueError(f"graph must name an edge once, got {pair} again")
        edges.append((pair[0], pair[1]))
    return edges


def _check_precision(precision: Tensor, edges: list[tuple[int, int]]) -> None:
    j = precision.detach()
    n = j.shape[-1]
    size = j.abs().amax() if j.numel() else 0.0
    if bool((~j.isfinite()).any()):
        raise ValueError("precision must be finite")
    if bool(((j - j.mT).abs() > 100 * torch.finfo(j.dtype).eps * size).any()):
        raise ValueError("precision must be symmetric")
    allowed = torch.eye(n, dtype=torch.bool, device=j.device)
    for a, b in edges:
        allowed[a, b] = allowed[b, a] = True
    if bool((j * ~allowed != 0).any()):
        where = tuple(int(i) for i in (j * ~allowed != 0).nonzero()[0][-2:])
        raise ValueError(f"precision must be zero where graph has no edge, got a coupling of nodes {where}")

"""The tree over variables that keeps most of what they tell about each other."""

from __future__ import annotations

import torch

from pullback.core.checks import check_choice, check_finite, check_integer, check_positive, check_tensor
from pullback.core.shapes import Int, Shaped, Tensor
from pullback.kernels.persistence import spanning_tree

__all__ = ["chow_liu_tree"]

_KINDS = ("binary", "categorical", "gaussian")
_ROWS = 4096
"""Rows whose one-hot codes are held at a time."""


def chow_liu_tree(
    data: Shaped[Tensor, "n variables"],
    *,
    kind: str = "binary",
    categories: int | None = None,
    smoothing: float = 0.01,
) -> Int[Tensor, "variables"]:
    r"""Return the tree whose distribution :math:`\prod_v p(x_v\mid x_{\mathrm{parent}(v)})` has most likelihood.

    It is the spanning tree with the largest sum of mutual informations
    :math:`I_{uv}=\sum_{a,b}p(a,b)\log\frac{p(a,b)}{p(a)p(b)}` (of normal variables
    :math:`-\tfrac12\log(1-r_{uv}^2)`), directed away from its centre, so that it is as shallow as it can be.

    Args:
        data: ``[n, variables]`` of at least two rows: 0 and 1 (any dtype); integers 0..categories - 1; or real numbers.
        kind: ``"binary"``, ``"categorical"`` or ``"gaussian"``.
        categories: of ``"categorical"``; by default the largest value + 1.
        smoothing: >= 0, count that is added for each pair of values; without it, pairs that were never seen count 0.

    Returns:
        ``[variables]`` the parent of each variable, -1 for the root (of two centres the one with the smaller number).

    Raises:
        TypeError: ``data`` is no tensor or, for ``"categorical"``, not of integers.
        ValueError: it has another shape, a value outside of its kind, a constant column of ``"gaussian"``.

    Example:
        >>> first = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 0, 1])
        >>> second, third = first.clone(), first.clone()
        >>> second[0], third[:2] = 1, 1 - first[:2]
        >>> chow_liu_tree(torch.stack([first, second, third], 1))  # a chain; its middle is the root
        tensor([ 1, -1,  1])

    References:
        Chow, Liu (1968), Approximating discrete probability distributions with dependence trees, equation 11.
    """
    check_choice("kind", kind, _KINDS)
    check_positive("smoothing", smoothing, zero=True)
    if check_tensor("data", data).ndim != 2 or data.shape[0] < 2 or data.shape[1] < 1:
        raise ValueError(f"data must have shape [n >= 2, variables >= 1], got {tuple(data.shape)}")
    data = data.detach()
    information = _gaussian(data) if kind == "gaussian" else _discrete(data, kind, categories, smoothing)
    lengths = information.max() - information  # Prim's algorithm reads off the diagonal
    edges = spanning_tree(lengths.unsqueeze(0))[0][0].tolist()
    return torch.tensor(_rooted(data.shape[1], edges), device=data.device)


def _gaussian(data: Tensor) -> Tensor:
    check_finite("data", data)
    centred = data.double() - data.double().mean(0)
    lengths = centred.square().sum(0).sqrt()
    if not bool((lengths > 0).all()):
        raise ValueError(f"data must vary in every column, column {int((lengths <= 0).nonzero()[0])} is constant")
    unit = centred / lengths
    return -0.5 * torch.log1p(-(unit.T @ unit).square().clamp(max=1 - 1e-15))


def _discrete(data: Tensor, kind: str, categories: int | None, smoothing: float) -> Tensor:
    if kind == "categorical" and data.is_floating_point():
        raise TypeError(f"data must hold integers for categorical, got {data.dtype}")
    if kind == "binary":
        if not bool(((data == 0) | (data == 1)).all()):
            raise ValueError("data must hold 0 and 1 for binary")
        c = 2
    else:
        c = int(data.max()) + 1 if categories is None else check_integer("categories", categories, 2)
        if int(data.min()) < 0 or int(data.max()) >= c:
            raise ValueError(f"data must hold 0..{c - 1} for categorical, got {int(data.min())}..{int(data.max())}")
    n, v = data.shape
    joint = torch.full((v * c, v * c), smoothing, dtype=torch.float64, device=data.device)
    for rows in data.long().split(_ROWS):
        codes = torch.nn.functional.one_hot(rows, c).flatten(1).double()
        joint += codes.T @ codes
    joint = joint.view(v, c, v, c).transpose(1, 2) / (n + smoothing * c * c)
    marginal = joint.sum(-1)[:, 0] if v == 1 else _marginals(joint)
    product = marginal[:, None, :, None] * marginal[None, :, None, :]
    ratio = torch.where(joint > 0, joint / product.clamp(min=1e-300), 1)
    return (joint * ratio.log()).sum((-1, -2))


def _marginals(joint: Tensor) -> Tensor:
    """Of each variable, from a pair with another one: those with itself are smoothed off their diagonal."""
    v = len(joint)
    other = (torch.arange(v, device=joint.device) + 1) % v
    return joint[torch.arange(v, device=joint.device), other].sum(-1)


def _rooted(count: int, edges: list[list[int]]) -> list[int]:
    """Direct a tree away from its centre."""
    near: list[list[int]] = [[] for _ in range(count)]
    for a, b in edges:
        near[a].append(b)
        near[b].append(a)
    end = _walk(near, 0)[1][-1]  # the node farthest from any is an end of a longest path
    before, order = _walk(near, end)
    path = [order[-1]]
    while path[-1] != end:
        path.append(before[path[-1]])
    middle = len(path) // 2
    root = path[middle] if len(path) % 2 else min(path[middle - 1], path[middle])
    return _walk(near, root)[0]


def _walk(near: list[list[int]], start: int) -> tuple[list[int], list[int]]:
    """Return parents and the order of a breadth-first walk."""
    parents, order = [-1] * len(near), [start]
    for node in order:
        for other in near[node]:
            if other != parents[node]:
                parents[other] = node
                order.append(other)
    return parents, order

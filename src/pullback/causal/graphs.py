"""Directed graphs as adjacency matrices: ``A[i, j] != 0`` means ``i -> j``."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import (
    check_broadcast,
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_scalar,
    check_tensor,
)
from pullback.core.shapes import Bool, Float, Int, Num, Tensor

__all__ = [
    "EdgeMetrics",
    "ThresholdedDAG",
    "descendants",
    "edge_metrics",
    "find_cycle",
    "is_acyclic",
    "random_dag",
    "threshold_to_dag",
    "topological_order",
]


def check_square(name: str, value: Tensor, *, batch: bool = True) -> int:
    """Return ``d`` of a tensor ``[*batch, d, d]`` (``[d, d]`` without ``batch``), else raise ``ValueError``."""
    shape = tuple(check_tensor(name, value).shape)
    if len(shape) < 2 or shape[-1] != shape[-2] or (len(shape) > 2 and not batch):
        wanted = "(..., d, d)" if batch else "(d, d)"
        raise ValueError(f"{name} must have shape {wanted}, got {shape}")
    return shape[-1]


def random_dag(
    nodes: int,
    edges: int,
    *,
    kind: str = "er",
    batch: tuple[int, ...] = (),
    generator: torch.Generator | None = None,
) -> Bool[Tensor, "*batch d d"]:
    """Draw random directed acyclic graphs, their nodes in random order.

    Args:
        nodes: number of nodes ``d >= 1``.
        edges: expected number of arcs (``"er"``, ``"bipartite"``), or for ``"scale-free"`` the total number aimed at:
            every new node sends ``round(edges / nodes)`` arcs. At most the number of ordered pairs the kind allows.
        kind: ``"er"`` every pair of the order is an arc with equal probability; ``"scale-free"`` preferential
            attachment (a new node picks earlier ones with probability proportional to their degree + 1);
            ``"bipartite"`` arcs only from the first half of the order to the second.
        batch: leading shape of the result.
        generator: source of the random draws.

    Returns:
        ``[*batch, d, d]`` boolean adjacency matrices.

    Raises:
        ValueError: sizes out of range, unknown kind.

    Example:
        >>> graph = random_dag(5, 5, generator=torch.Generator().manual_seed(0))
        >>> graph.shape, bool(is_acyclic(graph))
        (torch.Size([5, 5]), True)

    References:
        Zheng, Aragam, Ravikumar, Xing (2018), DAGs with NO TEARS, section 5 (the ER and SF designs).
    """
    check_choice("kind", kind, ["er", "scale-free", "bipartite"])
    check_integer("nodes", nodes, 1)
    check_integer("edges", edges, 0)
    for size in batch:
        check_integer("a size of batch", size, 0)
    device = None if generator is None else generator.device
    pairs = torch.ones(nodes, nodes, device=device).triu(1)
    if kind == "bipartite":
        half = nodes // 2
        pairs[half:] = 0
        pairs[:, :half] = 0
    possible = int(pairs.sum())
    if edges > possible:
        raise ValueError(f"edges must be at most {possible} for {nodes} nodes and kind {kind!r}, got {edges}")
    shape = (*batch, nodes, nodes)
    if kind == "scale-free":
        upper = _preferential(nodes, max(1, round(edges / nodes)) if edges else 0, batch, generator)
    else:
        upper = (torch.rand(shape, generator=generator, device=device) < edges / max(possible, 1)) & pairs.bool()
    place = torch.rand((*batch, nodes), generator=generator, device=device).argsort(-1)
    rows = place.unsqueeze(-1).expand(shape)
    columns = place.unsqueeze(-2).expand(shape)
    return upper.gather(-2, rows).gather(-1, columns)


def _preferential(
    nodes: int, arcs: int, batch: tuple[int, ...], generator: torch.Generator | None
) -> Bool[Tensor, "*batch d d"]:
    count = int(torch.Size(batch).numel())
    device = None if generator is None else generator.device
    upper = torch.zeros(count, nodes, nodes, dtype=torch.bool, device=device)
    for node in range(1, nodes):
        chosen = min(arcs, node)
        if chosen == 0:
            continue
        degree = upper.sum(-1) + upper.sum(-2)
        weights = (degree[:, :node] + 1).float()
        targets = torch.multinomial(weights, chosen, replacement=False, generator=generator)
        upper[:, :node, node] = torch.zeros_like(upper[:, :node, node]).scatter(-1, targets, True)
    return upper.reshape(*batch, nodes, nodes)


def topological_order(adjacency: Num[Tensor, "d d"] | Bool[Tensor, "d d"]) -> Int[Tensor, " d"]:
    """Return the nodes in an order in which every arc points forward (ties by index).

    Raises:
        ValueError: the graph has a cycle (it is named).

    Example:
        >>> topological_order(torch.tensor([[0, 0], [1, 0]])).tolist()
        [1, 0]
    """
    check_square("adjacency", adjacency, batch=False)
    arcs = (adjacency != 0).tolist()
    nodes = len(arcs)
    parents = [sum(arcs[i][j] for i in range(nodes)) for j in range(nodes)]
    ready = [j for j in range(nodes) if parents[j] == 0]
    order: list[int] = []
    while ready:
        node = min(ready)
        ready.remove(node)
        order.append(node)
        for child in range(nodes):
            if arcs[node][child]:
                parents[child] -= 1
                if parents[child] == 0:
                    ready.append(child)
    if len(order) < nodes:
        raise ValueError(f"adjacency has the cycle {' -> '.join(map(str, find_cycle(adjacency) or []))}")
    return torch.tensor(order, dtype=torch.int64)


def find_cycle(adjacency: Num[Tensor, "d d"] | Bool[Tensor, "d d"]) -> list[int] | None:
    """Return one directed cycle as a list of nodes (first repeated at the end), or ``None`` for an acyclic graph.

    Example:
        >>> find_cycle(torch.tensor([[0, 1], [1, 0]]))
        [0, 1, 0]
    """
    check_square("adjacency", adjacency, batch=False)
    arcs = (adjacency != 0).tolist()
    nodes = len(arcs)
    alive = set(range(nodes))
    while True:  # Peel off nodes without a parent or without a child; what remains is cyclic.
        kept = {i for i in alive if any(arcs[i][j] for j in alive) and any(arcs[j][i] for j in alive)}
        if kept == alive:
            break
        alive = kept
    if not alive:
        return None
    path = [min(alive)]
    while True:
        following = next(j for j in sorted(alive) if arcs[path[-1]][j])
        if following in path:
            return [*path[path.index(following) :], following]
        path.append(following)


def descendants(adjacency: Num[Tensor, "d d"] | Bool[Tensor, "d d"]) -> Bool[Tensor, "d d"]:
    """Say from which node a directed path, of one arc at least, leads to which: the transitive closure.

    Args:
        adjacency: ``[d, d]``, not zero at ``[i, j]`` for the arc ``i -> j``; may have cycles.

    Returns:
        ``[d, d]`` bool.

    Example:
        >>> descendants(torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]])).sum(1).tolist()
        [2, 1, 0]
    """
    check_square("adjacency", adjacency, batch=False)
    reached = (adjacency != 0).float()
    for _ in range(max(len(reached) - 1, 1).bit_length()):
        reached = ((reached + reached @ reached) > 0).float()
    return reached > 0


def is_acyclic(adjacency: Num[Tensor, "*batch d d"] | Bool[Tensor, "*batch d d"]) -> Bool[Tensor, "*batch"]:
    """Say for every graph of a batch whether it has no directed cycle.

    A graph is acyclic exactly if repeatedly removing the nodes without a parent removes all; done ``d`` times at once.

    Example:
        >>> is_acyclic(torch.tensor([[[0, 1], [1, 0]], [[0, 1], [0, 0]]])).tolist()
        [False, True]
    """
    check_square("adjacency", adjacency)
    arcs = (adjacency != 0).float()
    alive = torch.ones(arcs.shape[:-1], device=arcs.device)
    for _ in range(arcs.shape[-1]):
        has_parent = (alive.unsqueeze(-2) @ arcs).squeeze(-2) > 0
        alive = alive * has_parent
    return ~(alive > 0).any(-1)


class ThresholdedDAG(NamedTuple):
    """What :func:`threshold_to_dag` returns.

    Attributes:
        graph: ``[*batch, d, d]`` booleans without a cycle.
        threshold: ``[*batch]`` arcs with ``|weight| > threshold`` are in the graph.
    """

    graph: Bool[Tensor, "*batch d d"]
    threshold: Float[Tensor, "*batch"]


def threshold_to_dag(weights: Float[Tensor, "*batch d d"]) -> ThresholdedDAG:
    """Drop the weakest arcs until no cycle is left: the smallest threshold that gives a DAG, by bisection.

    Args:
        weights: ``[*batch, d, d]``, without NaN.

    Returns:
        :class:`ThresholdedDAG`; the threshold is 0 or the size of one of the weights.

    Raises:
        TypeError: not a floating tensor.
        ValueError: not square, or NaN among the weights.

    Example:
        >>> dag = threshold_to_dag(torch.tensor([[0.0, 0.9], [-0.2, 0.0]]))
        >>> dag.graph.tolist(), round(dag.threshold.item(), 1)
        ([[False, True], [False, False]], 0.2)
    """
    nodes = check_square("weights", check_floating("weights", weights))
    check_finite("weights", weights)
    size = weights.abs()
    if bool(is_acyclic(size).all()):
        return ThresholdedDAG(size > 0, size.new_zeros(size.shape[:-2]))
    candidates = torch.cat([size.new_zeros(*size.shape[:-2], 1), size.flatten(-2).sort(-1).values], -1)
    low = torch.zeros(size.shape[:-2], dtype=torch.int64, device=size.device)
    high = torch.full_like(low, nodes * nodes)  # above the largest weight no arc is left
    while bool((low < high).any()):
        middle = (low + high) // 2
        threshold = candidates.gather(-1, middle.unsqueeze(-1))
        acyclic = is_acyclic(size > threshold.unsqueeze(-1))
        low, high = torch.where(acyclic, low, middle + 1), torch.where(acyclic, middle, high)
    threshold = candidates.gather(-1, low.unsqueeze(-1))
    return ThresholdedDAG(size > threshold.unsqueeze(-1), threshold.squeeze(-1))


class EdgeMetrics(NamedTuple):
    """How well an estimated graph matches the true one, each ``[*batch]``.

    Attributes:
        shd: structural Hamming distance: arcs to add, remove or reverse (a reversed arc counts once).
        tpr: share of the true arcs that were found in the right direction.
        fdr: share of the estimated arcs that are absent or reversed in the truth (0 where nothing was estimated).
        auc: area under the ROC curve of ``|weight|`` as a score for "is an arc", over the ordered pairs.
    """

    shd: Tensor
    tpr: Tensor
    fdr: Tensor
    auc: Tensor


def edge_metrics(
    truth: Num[Tensor, "*#batch d d"] | Bool[Tensor, "*#batch d d"],
    estimate: Num[Tensor, "*#batch d d"] | Bool[Tensor, "*#batch d d"],
    *,
    threshold: float = 0.3,
) -> EdgeMetrics:
    """Compare estimated weights, or a graph, with a true graph.

    Args:
        truth: ``[*batch, d, d]`` non-zero where there is an arc.
        estimate: ``[*batch, d, d]`` weights; ``|weight| > threshold`` is an arc. Of a graph (no floating tensor), what
            is not zero. The diagonal is ignored. The batches broadcast.
        threshold: in the unit of the weights, >= 0.

    Returns:
        :class:`EdgeMetrics`.

    Raises:
        ValueError: shapes differ or the matrices are not square.

    Example:
        >>> truth = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]])
        >>> metrics = edge_metrics(truth, torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.0, 0.8], [0.0, 0.0, 0.0]]))
        >>> metrics.shd.item(), metrics.tpr.item(), metrics.fdr.item()
        (1, 0.5, 0.5)

    References:
        Zheng, Aragam, Ravikumar, Xing (2018), appendix D.2.
    """
    check_scalar("threshold", threshold, zero=True)
    check_tensor("truth", truth)
    if not check_tensor("estimate", estimate).is_floating_point():
        estimate, threshold = (estimate != 0).float(), 0.0
    check_finite("estimate", check_floating("estimate", estimate))
    nodes = truth.shape[-1:]
    if truth.ndim < 2 or estimate.ndim < 2 or {*truth.shape[-2:], *estimate.shape[-2:]} != {*nodes}:
        raise ValueError(
            f"truth and estimate must be square matrices of one shape, got {tuple(truth.shape)} and "
            f"{tuple(estimate.shape)}"
        )
    batch = check_broadcast(truth=tuple(truth.shape[:-2]), estimate=tuple(estimate.shape[:-2]))
    truth, estimate = truth.expand(*batch, *nodes, *nodes), estimate.expand(*batch, *nodes, *nodes)
    off = ~torch.eye(truth.shape[-1], dtype=torch.bool, device=truth.device)
    true, found = (truth != 0) & off, (estimate.abs() > threshold) & off
    # A pair of nodes is in one of four states; it is wrong at most once.
    wrong_pairs = ((true != found) | (true.mT != found.mT)) & off
    hits = (true & found).sum((-2, -1))
    tpr = hits / true.sum((-2, -1)).clamp(min=1)
    fdr = 1 - hits / found.sum((-2, -1)).clamp(min=1)
    fdr = torch.where(found.sum((-2, -1)) == 0, torch.zeros_like(fdr), fdr)
    scores, labels = estimate.abs()[..., off], true[..., off]
    return EdgeMetrics(wrong_pairs.sum((-2, -1)) // 2, tpr, fdr, _area_under_roc(scores, labels))


def _area_under_roc(scores: Tensor, labels: Tensor) -> Tensor:
    """Mann-Whitney: probability that an arc scores higher than a non-arc, ties counted half."""
    ordered = scores.sort(-1).values
    below = torch.searchsorted(ordered.contiguous(), scores.contiguous(), right=False)
    through = torch.searchsorted(ordered.contiguous(), scores.contiguous(), right=True)
    rank = (below + through + 1) / 2
    positive, total = labels.sum(-1), labels.shape[-1]
    statistic = (rank * labels).sum(-1) - positive * (positive + 1) / 2
    return statistic / (positive * (total - positive)).clamp(min=1)

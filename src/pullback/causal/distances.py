"""How far an estimated graph is from the true one in what it says about interventions, and how well it ranks arcs."""

from __future__ import annotations

import torch

from pullback.causal.graphs import check_square, find_cycle, is_acyclic
from pullback.core.checks import check_finite, check_floating, check_tensor
from pullback.core.shapes import Bool, Float, Int, Num, Tensor

__all__ = ["edge_auprc", "structural_intervention_distance", "varsortability"]


def structural_intervention_distance(
    truth: Num[Tensor, "d d"] | Bool[Tensor, "d d"], estimate: Num[Tensor, "d d"] | Bool[Tensor, "d d"]
) -> Int[Tensor, ""]:
    r"""Count the ordered pairs ``(i, j)`` for which the estimate answers "what does setting ``i`` do to ``j``" wrongly.

    The estimate answers by adjusting for its parents of ``i``, and "nothing" where ``j`` is one of them. The first is
    right if no adjusted node is a descendant of a node on a causal path from ``i`` to ``j`` in the truth and the
    adjusted nodes block every path from ``i`` to ``j`` that is not causal; the second if ``j`` is no descendant of
    ``i``.

    Args:
        truth, estimate: ``[d, d]`` acyclic, non-zero where there is an arc.

    Returns:
        A whole number in ``0 .. d (d - 1)``; 0 for the truth itself and for every graph that has its arcs and more.

    Raises:
        ValueError: shapes differ, a graph has a cycle (it is named).

    Example:
        >>> chain = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0]])
        >>> structural_intervention_distance(chain, chain.mT).item()
        6

    References:
        Peters, Buehlmann (2015), Structural Intervention Distance, definition 2 and proposition 6; Perkovic et al.
        (2015), the adjustment criterion.
    """
    graphs = []
    for name, graph in (("truth", truth), ("estimate", estimate)):
        check_square(name, check_tensor(name, graph), batch=False)
        if not bool(is_acyclic(graph)):
            raise ValueError(f"{name} has the cycle {' -> '.join(map(str, find_cycle(graph) or []))}")
        graphs.append((graph != 0).cpu())
    if graphs[0].shape != graphs[1].shape:
        raise ValueError(
            f"truth and estimate must have one shape, got {tuple(truth.shape)} and {tuple(estimate.shape)}"
        )
    arcs, guess = graphs
    nodes = len(arcs)
    descends = _reachable(arcs)
    children = [arcs[node].nonzero()[:, 0].tolist() for node in range(nodes)]
    parents = [arcs[:, node].nonzero()[:, 0].tolist() for node in range(nodes)]
    wrong = 0
    for i in range(nodes):
        adjusted = guess[:, i]
        held = set(adjusted.nonzero()[:, 0].tolist())
        for j in range(nodes):
            if j == i:
                continue
            if j in held:
                wrong += bool(descends[i, j])
                continue
            between = descends[i] & descends[:, j]
            between[i] = False  # descendants of i from which j is reached, j itself among them
            forbidden = descends[between].any(0)
            if bool((forbidden & adjusted).any()):
                wrong += 1
                continue
            first = {int(node) for node in between.nonzero()[:, 0] if arcs[i, node]}
            wrong += j in _connected(i, held, children, parents, first, descends)
    return torch.tensor(wrong, device=truth.device)


def _reachable(arcs: Tensor) -> Tensor:
    """Say from which node a directed walk leads to which, no step included."""
    nodes = len(arcs)
    reached = arcs.float() + torch.eye(nodes)
    for _ in range(max(nodes - 1, 1).bit_length()):
        reached = (reached @ reached).clamp(max=1)
    return reached > 0


def _connected(
    start: int, held: set[int], children: list[list[int]], parents: list[list[int]], cut: set[int], descends: Tensor
) -> set[int]:
    """Return what is d-connected to ``start`` given ``held``, with the arcs from it to ``cut`` removed."""
    opened = {node for node in range(len(children)) if any(descends[node, h] for h in held)}  # as colliders
    seen: set[tuple[int, bool]] = set()
    # A state is a node and whether the walk came to it along an arc's direction.
    waiting = [(node, True) for node in children[start] if node not in cut] + [(node, False) for node in parents[start]]
    while waiting:
        node, forward = waiting.pop()
        if (node, forward) in seen or node == start:
            continue
        seen.add((node, forward))
        if forward:
            if node not in held:
                waiting += [(child, True) for child in children[node]]
            if node in opened:
                waiting += [(parent, False) for parent in parents[node]]
        elif node not in held:
            waiting += [(child, True) for child in children[node]] + [(parent, False) for parent in parents[node]]
    return {node for node, _ in seen} - held


def edge_auprc(
    truth: Num[Tensor, "*batch d d"] | Bool[Tensor, "*batch d d"], scores: Float[Tensor, "*batch d d"]
) -> Float[Tensor, "*batch"]:
    r"""Return the area under the precision-recall curve of scores for "is an arc", over the ordered pairs.

    :math:`\sum_k (R_k - R_{k-1}) P_k` over the distinct scores, largest first: precision ``P`` and recall ``R`` of the
    pairs that score at least as much.

    Args:
        truth: ``[*batch, d, d]`` non-zero where there is an arc; the diagonal is ignored.
        scores: ``[*batch, d, d]``, such as edge probabilities or ``|weights|``.

    Returns:
        ``[*batch]`` in [0, 1]; NaN where the truth has no arc. Chance is the share of the pairs that are arcs.

    Raises:
        ValueError: shapes differ, not square, scores that are not finite.

    Example:
        >>> truth = torch.tensor([[0, 1], [0, 0]])
        >>> edge_auprc(truth, torch.tensor([[0.0, 0.2], [0.7, 0.0]])).item()
        0.5

    References:
        Davis, Goadrich (2006); Manning, Raghavan, Schuetze (2008), section 8.4 (average precision).
    """
    check_tensor("truth", truth)
    check_finite("scores", check_floating("scores", scores))
    check_square("scores", scores)
    if truth.shape != scores.shape:
        raise ValueError(f"truth and scores must have one shape, got {tuple(truth.shape)} and {tuple(scores.shape)}")
    off = ~torch.eye(truth.shape[-1], dtype=torch.bool, device=truth.device)
    ordered, index = scores[..., off].to(torch.promote_types(scores.dtype, torch.float32)).sort(-1, descending=True)
    hits = (truth != 0)[..., off].gather(-1, index).to(ordered)
    found = hits.cumsum(-1)
    # Equal scores enter together: every pair takes precision and recall at the last of its ties.
    last = torch.searchsorted((-ordered).contiguous(), (-ordered).contiguous(), right=True)
    precision = found.gather(-1, last - 1) / last
    return ((hits * precision).sum(-1) / found[..., -1]).to(scores.dtype)


def varsortability(
    covariance: Float[Tensor, "*batch d d"], graph: Num[Tensor, "*batch d d"] | Bool[Tensor, "*batch d d"]
) -> Float[Tensor, "*batch"]:
    r"""Return how often the variance grows from cause to effect, over all directed paths of a graph.

    .. math:: v = \frac{\sum_{k=1}^{d-1} \sum_{i \to j \in A^k} [\sigma_i < \sigma_j] + \tfrac12[\sigma_i = \sigma_j]}
        {\sum_{k=1}^{d-1} \sum_{i \to j \in A^k} 1}

    where :math:`A^k` has an entry for every pair that some path of length ``k`` joins. Near 1, sorting the variables by
    variance orders them causally, and least-squares learners win by the scale of the data alone; near 1/2 the variances
    say nothing.

    Args:
        covariance: ``[*batch, d, d]``; the diagonal is read.
        graph: ``[*batch, d, d]`` acyclic, non-zero where there is an arc.

    Returns:
        ``[*batch]`` in [0, 1]; NaN for a graph without arcs.

    Raises:
        ValueError: shapes differ, not square.

    Example:
        >>> varsortability(torch.diag(torch.tensor([1.0, 2.0])), torch.tensor([[0, 1], [0, 0]])).item()
        1.0

    References:
        Reisach, Seiler, Weichwald (2021), Beware of the Simulated DAG!, equation 2.
    """
    nodes = check_square("covariance", check_floating("covariance", covariance))
    check_square("graph", check_tensor("graph", graph))
    if covariance.shape != graph.shape:
        raise ValueError(
            f"covariance and graph must have one shape, got {tuple(covariance.shape)} and {tuple(graph.shape)}"
        )
    variance = covariance.diagonal(dim1=-2, dim2=-1).to(torch.promote_types(covariance.dtype, torch.float32))
    cause, effect = variance.unsqueeze(-1), variance.unsqueeze(-2)
    # Variances that agree to rounding are equal: standardised data have no order by scale.
    tie = (cause - effect).abs() <= 1e-9 * torch.maximum(cause, effect)
    grows = torch.where(tie, 0.5, (cause < effect).to(variance))
    arcs = (graph != 0).to(variance)
    walks, right, all_paths = arcs, variance.new_zeros(variance.shape[:-1]), variance.new_zeros(variance.shape[:-1])
    for _ in range(nodes - 1):
        right = right + (walks * grows).sum((-2, -1))
        all_paths = all_paths + walks.sum((-2, -1))
        walks = (walks @ arcs).clamp(max=1)
    return (right / all_paths).to(covariance.dtype)

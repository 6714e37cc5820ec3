"""How far an estimated graph is from the true one in what it says about interventions, and how well it ranks arcs."""

from __future__ import annotations

import torch

from pullback.causal.graphs import check_square, find_cycle, is_acyclic
from pullback.core.checks import check_broadcast, check_finite, check_floating, check_tensor
from pullback.core.shapes import Bool, Float, Int, Num, Tensor

__all__ = ["edge_auprc", "structural_intervention_distance", "varsortability"]

_LARGEST = 2**23
"""Entries of the table of walks that are held at once."""


def structural_intervention_distance(
    truth: Num[Tensor, "*#batch d d"] | Bool[Tensor, "*#batch d d"],
    estimate: Num[Tensor, "*#batch d d"] | Bool[Tensor, "*#batch d d"],
) -> Int[Tensor, "*batch"]:
    r"""Count the ordered pairs ``(i, j)`` for which the estimate answers "what does setting ``i`` do to ``j``" wrongly.

    The estimate answers by adjusting for its parents of ``i``, and "nothing" where ``j`` is one of them. The first is
    right if no adjusted node is a descendant of a node on a causal path from ``i`` to ``j`` in the truth and the
    adjusted nodes block every path from ``i`` to ``j`` that is not causal; the second if ``j`` is no descendant of
    ``i``.

    Args:
        truth, estimate: ``[*batch, d, d]`` acyclic, non-zero where there is an arc; the batches broadcast.

    Returns:
        ``[*batch]`` whole numbers in ``0 .. d (d - 1)``; 0 for the truth itself and for every graph that has its arcs
        and more.

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
        nodes = check_square(name, check_tensor(name, graph))
        acyclic = is_acyclic(graph)
        if not bool(acyclic.all()):
            first = graph.reshape(-1, nodes, nodes)[int((~acyclic.reshape(-1)).nonzero()[0])]
            raise ValueError(f"{name} has the cycle {' -> '.join(map(str, find_cycle(first) or []))}")
        graphs.append(graph != 0)
    if truth.shape[-1] != estimate.shape[-1]:
        raise ValueError(
            f"truth and estimate must have one number of nodes, got {tuple(truth.shape)} and {tuple(estimate.shape)}"
        )
    batch = check_broadcast(truth=tuple(truth.shape[:-2]), estimate=tuple(estimate.shape[:-2]))
    arcs, guess = (graph.expand(*batch, nodes, nodes).reshape(-1, nodes, nodes) for graph in graphs)
    together = max(1, _LARGEST // max(1, 4 * nodes**3))
    parts = zip(arcs.split(together), guess.to(arcs.device).split(together), strict=True)
    wrong = [_wrong_answers(*part) for part in parts]
    return torch.cat(wrong).view(batch) if wrong else torch.zeros(batch, dtype=torch.int64, device=arcs.device)


def _wrong_answers(arcs: Tensor, guess: Tensor) -> Tensor:
    """Count the pairs ``(i, j)`` that graphs ``guess [b, d, d]`` answer wrongly; indices are ``b``, ``i``, ``j``."""
    nodes = arcs.shape[-1]
    descends = _closed(arcs)
    held = guess.mT  # what i is adjusted for
    itself = torch.eye(nodes, dtype=torch.bool, device=arcs.device)
    # Descendants of i from which j is reached, j itself among them; what descends from these must not be adjusted for.
    between = descends.unsqueeze(-2) & descends.mT.unsqueeze(-3) & ~itself.unsqueeze(-2)
    forbidden = _follow(between, descends.unsqueeze(-3))
    clash = (forbidden & held.unsqueeze(-2)).any(-1)
    # A walk from i that is not causal, as states: a node and whether it was reached along an arc's direction.
    opened = _follow(held, descends.mT)  # as colliders
    goes = ~held & ~itself
    turns = opened & ~itself
    forward, back = arcs.unsqueeze(-3), arcs.mT.unsqueeze(-3)
    steps = torch.cat(
        [
            torch.cat([goes.unsqueeze(-1) & forward, turns.unsqueeze(-1) & back], -1),
            torch.cat([goes.unsqueeze(-1) & forward, goes.unsqueeze(-1) & back], -1),
        ],
        -2,
    )
    starts = torch.cat([arcs.unsqueeze(-2) & ~between, arcs.mT.unsqueeze(-2).expand_as(between)], -1)
    seen = _follow(starts, _closed(steps)).unflatten(-1, (2, nodes)).any(-2)
    connected = seen.diagonal(dim1=-2, dim2=-1)
    wrong = torch.where(held, descends, clash | connected) & ~itself
    return wrong.sum((-2, -1))


def _follow(sets: Tensor, leads: Tensor) -> Tensor:
    """Return what the members of sets ``[*, m, k]`` lead to by ``leads [*, k, l]``."""
    return sets.float() @ leads.float() > 0


def _closed(steps: Tensor) -> Tensor:
    """Say from which of ``k`` states a walk leads to which, no step included."""
    states = steps.shape[-1]
    reached = steps.float() + torch.eye(states, device=steps.device)
    for _ in range(max(states - 1, 1).bit_length()):
        reached = (reached @ reached).clamp(max=1)
    return reached > 0


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

"""A draw whose log-probability carries the gradient (the score-function estimator), judged by summand of the loss.

In ``-(log_prob(a) * advantage)`` the draw ``a`` needs no gradient. In ``alpha * log_prob(a) - critic(s, a)`` it does:
the log-probability is a term of its own (an entropy), and what the critic says about ``a`` is lost.
"""

from __future__ import annotations

from pullback.audit.judge.deliberate import READS
from pullback.audit.trace import operations as ops
from pullback.audit.trace.graph import TraceGraph
from pullback.audit.trace.records import Node, Origin

__all__ = ["is_reward", "is_score_function"]

_PRODUCTS = frozenset("mul mul_ __mul__ __rmul__ div true_divide __truediv__".split())


def is_score_function(
    graph: TraceGraph, members: list[int], meets: list[tuple[Node, Node]], harmless: set[int]
) -> bool:
    """Whether the gradient of every summand that a draw enters is carried by the draw's log-probability.

    Args:
        graph: the trace.
        members: the draws of one line.
        meets: where their values meet the graph again: nodes without and with gradient.
        harmless: of the latter those that need no gradient for another reason, a target's say.
    """
    origin = graph.tracer.origins[members[0]]
    scores = {live.index for dead, live in meets if _scored(graph, origin, dead, live)}
    if not scores:
        return False
    others = {live.index for _, live in meets if live.op != "broadcast_tensors"} - scores - harmless
    weighted = _left(graph, members)
    loose: list[tuple[int, set[int]]] = []
    for factor in _factors(graph):
        inside = graph.upstream([factor], live=True)
        if scores & inside:
            weighted = weighted or _weighted(graph, origin, members, scores & inside, inside)
        elif others & inside:
            loose.append((factor, others & inside))
    # A layer that learns from the draws (a critic, a model of what follows) compares what it makes of them with data.
    return all(weighted and _compares(graph, factor, entries) for factor, entries in loose)


def is_reward(graph: TraceGraph, meets: list[tuple[Node, Node]]) -> bool:
    """Whether a value only weights the log-probability of a draw."""
    if not meets or not all(live.op in _PRODUCTS for _, live in meets):
        return False
    scores: set[int] = set()
    for index, origin in enumerate(graph.tracer.origins):
        if origin.code == "cut.sampling":
            found = graph.merges(index, origin.node)
            scores |= {live.index for dead, live in found if _scored(graph, origin, dead, live)}
    below = graph.downstream(scores)
    return bool(scores) and all(any(p in below and graph.nodes[p].live for p in live.parents) for _, live in meets)


def _factors(graph: TraceGraph) -> set[int]:
    """Return the summands of the losses that are no sums themselves."""
    found: set[int] = set()
    for event in graph.events:
        for index in graph.summands(event) if event.live else ():
            node = graph.nodes[index]
            product = node.op in _PRODUCTS and len(node.parents) > 1
            if node.op not in ops.LINEAR or node.straight or product:
                found.add(index)
    return found


def _left(graph: TraceGraph, members: list[int]) -> bool:
    """Whether the draw left for the world, which returns a reward."""
    drawn = set(members)
    return any(drawn & graph.nodes[e.node].origins for e in graph.tracer.exits)


def _weighted(graph: TraceGraph, origin: Origin, members: list[int], scores: set[int], inside: set[int]) -> bool:
    """Whether the log-probability is multiplied by something that is no constant: a reward, an advantage."""
    own = graph.leaves(graph.upstream(origin.sources))  # behind the spread, by which the density itself divides
    below = graph.downstream(scores) & inside
    for index in below:
        node = graph.nodes[index]
        if node.op not in _PRODUCTS:
            continue
        for parent in node.parents:
            partner = graph.nodes[parent]
            if parent in below or parent in scores or not any(p in below or p in scores for p in node.parents):
                continue
            if set(members) & partner.origins:
                return True
            made_of = graph.upstream([parent])
            single = all(graph.nodes[i].size == 1 for i in made_of if graph.nodes[i].leaf is not None)
            if partner.size > 1 and not single and not graph.leaves(made_of) <= own:
                return True
    return False


def _compares(graph: TraceGraph, factor: int, entries: set[int]) -> bool:
    between = graph.downstream(entries) & graph.upstream([factor], live=True)
    residual = ops.RESIDUAL - {"sub", "rsub"}
    return any(graph.nodes[i].op in ops.LOSSES or graph.nodes[i].op.strip("_") in residual for i in between)


def _scored(graph: TraceGraph, origin: Origin, dead: Node, live: Node) -> bool:
    """The sample meets the parameters of its own distribution again: its log-probability."""
    sources = graph.upstream(origin.sources, live=True)
    related = {n for s in origin.sources for n in graph.upstream([s], live=True) if graph.nodes[n].leaf is None}
    partners = [graph.nodes[p] for p in live.parents if p != dead.index and graph.nodes[p].live]
    if live.op in READS | {"nll_loss", "cross_entropy", "sub", "rsub"}:
        if any(p.index in related or graph.upstream([p.index]) & related for p in partners if p.leaf is None):
            return True
        # a later pass over stored observations: the same layers give the probability of the same draw again
        layers = graph.leaves(sources)
        again = [graph.leaves(graph.upstream([p.index], live=True)) for p in partners if p.leaf is None]
        return bool(layers) and live.op in READS and any(layers <= leaves for leaves in again)
    return live.op == "binary_cross_entropy_with_logits" and any(graph.upstream([p.index]) & related for p in partners)

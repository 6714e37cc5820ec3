"""Tell a gradient that was stopped on purpose from one that was lost.

Stopping a gradient is right for targets (a teacher, a target network, pseudo labels), for a generator's samples
while the discriminator learns, and for samples whose log-probability carries the gradient (the score-function
estimator). Each has a shape in the trace that a lost gradient does not have.
"""

from __future__ import annotations

from pullback.audit.judge.deliberate import (
    DIVISIONS,
    FILLS,
    GUARDED,
    GUARDS,
    NEAR_POLE,
    PICKS,
    READS,
    kind_of,
)
from pullback.audit.judge.samples import is_reward, is_score_function
from pullback.audit.trace import operations as ops
from pullback.audit.trace.graph import TraceGraph
from pullback.audit.trace.records import Node, Origin

__all__ = ["guards", "intended", "lost_feature", "selects", "wasted"]


def intended(graph: TraceGraph, members: list[int], *, starved: bool) -> str:
    """Return why a stop is meant, or an empty string.

    Args:
        graph: the trace.
        members: indices of the stops of one line.
        starved: whether it leaves a tensor without gradient that is known to be trained (named by the caller, or
            held by an optimizer that took a step): then no target and no sample is an excuse.
    """
    index, origin = members[0], graph.tracer.origins[members[0]]
    meets = graph.merges(index, origin.node)
    if not meets:
        return ""
    kind = kind_of(origin.code)
    if kind.drawn or origin.op in ops.SAMPLERS:
        targets = {live.index for dead, live in meets if _target(graph, dead, live)}
        return "score function" if is_score_function(graph, members, meets, targets) else ""
    if index in graph.tracer.handled:
        return "straight-through"
    if is_reward(graph, meets):
        return "reward"
    if starved:
        return ""
    if all(_target(graph, dead, live) for dead, live in meets):
        return "target"
    if kind.sample and all(
        _target(graph, dead, live) or _sample(graph, set(members), dead, live) for dead, live in meets
    ):
        return "sample"
    if kind.found and (any(_choice(graph, origin, dead, live) for dead, live in meets) or _values_used(graph, origin)):
        return "choice"
    if kind.found and _said(graph, index, origin.node):
        return "detached"
    return ""


def wasted(graph: TraceGraph, members: list[int]) -> bool:
    """Whether a detached value was computed for layers that get it from nowhere else, as a code for its decoder.

    Not so where the value itself is used with its gradient too (a probe on features), where the layers made the value
    (truncated backpropagation), or where they also take other data (a discriminator).
    """
    for index in members:
        origin = graph.tracer.origins[index]
        meets = graph.merges(index, origin.node)
        if not kind_of(origin.code).value or not meets or _shared(graph, origin):
            return False
        if not all(_feature(graph, members, dead, live) for dead, live in meets):
            return False
    return True


def lost_feature(graph: TraceGraph, members: list[int]) -> bool:
    """Whether positions, truth values or whole numbers, found for nothing else, enter a layer as its input."""
    for index in members:
        origin = graph.tracer.origins[index]
        meets = graph.merges(index, origin.node)
        if _shared(graph, origin) or not any(_feature(graph, members, dead, live) for dead, live in meets):
            return False
    return True


def selects(graph: TraceGraph, index: int) -> bool:
    """Whether a mask selects what enters the loss, and what it selects carries its own gradient.

    It fills or picks entries, or it weights losses, one a sample, or the very values that it compares (hard examples,
    confident pseudo labels); then it may also be counted for a mean.
    """
    meets = graph.merges(index, graph.tracer.origins[index].node)
    chosen = [_selected(graph, graph.tracer.origins[index], dead, live) for dead, live in meets]
    return (any(chosen) or not meets) and all(
        c or live.op in DIVISIONS for c, (_, live) in zip(chosen, meets, strict=True)
    )


def _selected(graph: TraceGraph, origin: Origin, dead: Node, live: Node) -> bool:
    if live.op in FILLS:
        return True
    partners = _partners(graph, dead, live)
    if len(partners) != 1:
        return False
    (partner,) = partners
    own = partner.index in origin.sources or any(partner.index in graph.nodes[s].parents for s in origin.sources)
    if live.op == "where":
        return own
    weighted = live.op in ops.PRODUCTS and (own or partner.op in ops.LOSSES)
    return weighted and graph.leaves(graph.upstream(origin.sources)) <= graph.leaves(graph.upstream([partner.index]))


def guards(graph: TraceGraph, origin: Origin) -> bool:
    """Whether a comparison only keeps a singular operation (a root, a logarithm, an angle) away from its pole.

    It compares with a number at a pole (near zero, near one), and a mask made of it replaces values before or after
    such an operation.
    """
    threshold = graph.nodes[origin.node].values
    meets = graph.merges(graph.tracer.origins.index(origin), origin.node)
    if threshold is None or min(abs(threshold[0]), abs(abs(threshold[0]) - 1.0)) > NEAR_POLE:
        return False
    return bool(meets) and all(live.op in GUARDS and _near_pole(graph, live) for _, live in meets)


def _near_pole(graph: TraceGraph, live: Node, hops: int = 4) -> bool:
    """Whether a singular operation stands a few steps before or behind a node."""
    for neighbours in (lambda i: graph.children[i], lambda i: graph.nodes[i].parents):
        level = {live.index}
        for _ in range(hops):
            level = {n for i in level for n in neighbours(i) if n in graph.reached and graph.nodes[n].live}
            if any(graph.nodes[n].op in GUARDED for n in level):
                return True
    return False


def _shared(graph: TraceGraph, origin: Origin) -> bool:
    """Whether what was cut is also used with its gradient, or is a trained tensor itself.

    So it is where the one value that it was computed from, since the last layer, is used so: a rotation found from a
    vector turns that vector.
    """
    if any(graph.nodes[s].leaf is not None for s in origin.sources):
        return True
    near = _without_layers(graph, origin.sources)
    roots = [n for n in near if graph.nodes[n].op in ops.WEIGHTED or not near.intersection(graph.nodes[n].parents)]
    users = {c for n in (*origin.sources, *(roots if len(roots) == 1 else ())) for c in graph.children[n]} - near
    return any(graph.nodes[c].live and c in graph.reached for c in users)


def _without_layers(graph: TraceGraph, start: tuple[int, ...]) -> set[int]:
    """Return the values, trained tensors left out, that a value was computed from since the last layer."""
    found: set[int] = set()
    stack = list(start)
    while stack:
        index = stack.pop()
        node = graph.nodes[index]
        if index in found or not node.live or node.leaf is not None:
            continue
        found.add(index)
        if node.op not in ops.WEIGHTED:
            stack += node.parents
    return found


def _feature(graph: TraceGraph, members: list[int], dead: Node, live: Node) -> bool:
    """A layer takes the value that did not make it and sees no data otherwise, or a product (attention) does."""
    if live.op not in ops.WEIGHTED:
        return False
    origin = graph.tracer.origins[members[0]]
    made_by = graph.leaves(graph.upstream(origin.sources))
    partners = _partners(graph, dead, live)
    weights = {p.index for p in partners if p.leaf is not None}
    if not weights:
        return bool(graph.leaves(graph.upstream(p.index for p in partners)) & made_by)
    return not weights & made_by and not _sample(graph, set(members), dead, live)


def _said(graph: TraceGraph, index: int, start: int) -> bool:
    """Someone wrote ``detach`` behind a value that has no gradient anyway: a statement of intent."""
    for node in graph.downstream([start]) & graph.reached:
        if graph.nodes[node].op in ("detach", "get data") and index in graph.nodes[node].origins:
            return not graph.nodes[node].live
    return False


def _partners(graph: TraceGraph, dead: Node, live: Node) -> list[Node]:
    return [graph.nodes[p] for p in live.parents if p != dead.index and graph.nodes[p].live]


def _target(graph: TraceGraph, dead: Node, live: Node) -> bool:
    """The value is compared with a prediction, and what follows only reduces the comparison to a number."""
    partners = [p for p in _partners(graph, dead, live) if (p.has_data and p.leaf is None) or (p.leaf and p.has_data)]
    if not partners:
        return False
    if live.op in ops.LOSSES:
        return True
    if live.op in READS and not dead.live and not graph.nodes[dead.index].live:
        # log_prob[range(n), labels]: the labels of a negative log-likelihood
        return any(p.op == "log_softmax" for p in partners)
    if live.op in ("mul", "__mul__") and any("log" in p.op for p in partners):  # soft labels: -(target * log_prob)
        return True
    if live.op not in ("sub", "rsub", "__rsub__", "__sub__"):
        return False
    later = graph.downstream([live.index]) & graph.reached
    return not any(graph.nodes[n].op in ops.WEIGHTED and n != live.index for n in later)


def _sample(graph: TraceGraph, members: set[int], dead: Node, live: Node) -> bool:
    """The layer that takes the value also takes real data elsewhere: a discriminator, a contrastive encoder."""
    weights = [p for p in _partners(graph, dead, live) if p.leaf is not None]
    for weight in weights:
        for user in graph.tracer.consumed.get(weight.index, ()):
            node = graph.nodes[user]
            if user != live.index and user in graph.reached and not members & node.origins and node.has_data:
                return True
    return False


def _values_used(graph: TraceGraph, origin: Origin) -> bool:
    """``topk`` and its like: the values beside the positions are used and carry the gradient."""
    sibling = graph.nodes[origin.node - 1] if origin.node else None
    same = sibling is not None and sibling.op == origin.op and sibling.site == origin.site and sibling.live
    return origin.op in ops.SPLIT_INDICES and same and sibling is not None and sibling.index in graph.reached


def _choice(graph: TraceGraph, origin: Origin, dead: Node, live: Node) -> bool:
    """Positions pick from the very values they were found in: the picked values carry the gradient."""
    if live.op not in PICKS:
        return False
    related = set(origin.sources) | {p for s in origin.sources for p in graph.nodes[s].parents}
    related = {r for r in related if graph.nodes[r].leaf is None}
    return any(p.index in related for p in _partners(graph, dead, live))

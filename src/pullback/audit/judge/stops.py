"""Cuts and steps whose value flows into a loss: which of them are faults."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from pullback.audit.judge.deliberate import HIDDEN_SHARE, REMAINDERS, kind_of
from pullback.audit.judge.intent import guards, intended, lost_feature, selects, wasted
from pullback.audit.judge.ledger import SILENT, Ledger
from pullback.audit.judge.verdicts import site_key
from pullback.audit.trace import operations as ops
from pullback.audit.trace.records import Origin
from pullback.audit.trace.sites import Site, in_block, place

__all__ = ["find_stops"]


def find_stops(ledger: Ledger) -> None:
    """Cuts and steps whose value flows into a loss."""
    graph = ledger.graph
    flowing: set[int] = set()
    dead_losses: set[int] = set()
    for event in graph.events:
        assert event.node is not None
        flowing |= ledger.nodes[event.node].origins
        if not event.live:
            dead_losses |= ledger.nodes[event.node].origins
    terms = [(event, graph.summands(event)) for event in graph.events]
    groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for index in sorted(flowing):
        origin = ledger.tracer.origins[index]
        region = origin.region if kind_of(origin.code).region else 0
        key = (origin.code, region) if region else (origin.code, origin.site.code, origin.site.instruction)
        groups[key].append(index)
    starving = {i for i in flowing if _leaves_of(ledger, [i]) & ledger.dead}
    followers = {i for i in starving if _follows(ledger, ledger.tracer.origins[i])}
    starving -= followers if ledger.dead <= _leaves_of(ledger, sorted(starving - followers)) else set()
    for members in groups.values():
        _stop(ledger, members, dead_losses, terms, starving)


def _stop(ledger: Ledger, members: list[int], dead_losses: set[int], terms: list[Any], starving: set[int]) -> None:
    graph = ledger.graph
    leaves = _leaves_of(ledger, members)
    if not leaves:
        return
    dead = leaves & ledger.dead
    # Of a block without gradients the line that costs something: not the teacher's that stands in front of it.
    origin = ledger.tracer.origins[_costliest(ledger, members, dead)]
    code = _code(ledger, origin)
    kind = kind_of(code)
    anew = not set(members) - ledger.tracer.handled  # torch.func differentiates the detached value anew
    fatal = bool(dead_losses & set(members)) and not anew
    evidence: dict[str, Any] = {"parameters without gradient": [ledger.name_of(i) for i in sorted(dead)][:20]}
    gap = ledger.verdicts.gaps.get(site_key(origin.site, origin.op))
    if gap is not None:
        evidence["hidden share of the derivative"] = gap
    meant = "" if fatal else intended(graph, members, starved=bool(dead) and ledger.certain)
    if dead and not fatal and not meant and _lost_elsewhere(ledger, members, dead, starving):
        meant = intended(graph, members, starved=False)
    if dead and not fatal and not meant and kind.said and _not_stepped(ledger, members, dead, starving):
        meant = "the pass of another optimizer"
    if dead and not fatal and not meant and _stored(ledger, members, dead, starving):
        meant = "stored"
    if dead and not fatal and not meant and starving.isdisjoint(members):
        meant = "moving average"
    term = any(_is_term(ledger, m, events, starving) for m in members for events in terms)
    if dead and not fatal and not meant and not term and kind.said:
        constant = {
            i for i in starving - set(members) if any(_is_term(ledger, i, events, starving) for events in terms)
        }
        if constant and dead <= _leaves_of(ledger, sorted(constant)):
            meant = "a constant term of the loss takes the gradient"
    if code.startswith("zero.") and not fatal:
        visited = [ledger.nodes[ledger.tracer.origins[m].node] for m in members]
        if not any(n.cotangent for n in visited) and not dead:
            return
    inner = code == "cut.create_graph" and dead <= _leaves_of(
        ledger, [i for i in starving if ledger.tracer.origins[i].code != code]
    )
    if inner and dead:
        severity = "info"  # first order on purpose: another stop takes the gradient away
    elif fatal or (term and meant not in ("score function", "sample")):
        severity = "error"
    elif dead:
        frozen = kind.said and all(ledger.tracer.leaves[i].frozen for i in dead) and len(dead) < len(ledger.trained)
        severity = "info" if meant or frozen else "error"
    elif meant:
        severity = "info"
    elif kind.drawn or (code == "cut.create_graph" and all(_is_residual(ledger, m) for m in members)):
        severity = "error"
    elif gap is not None:
        chosen = kind.mask and selects(graph, members[0])
        chosen = chosen or (kind.mask and all(guards(graph, ledger.tracer.origins[m]) for m in members))
        broken = bool(ledger.tracer.not_finite)  # then no slope of the loss says anything
        severity = "error" if gap > HIDDEN_SHARE and not broken and not kind.said and not chosen else "info"
    elif kind.feature and lost_feature(graph, members):
        severity = "error"
    elif (code.startswith("zero.") and not _wraps(ledger, members)) or wasted(ledger.graph, members):
        severity = "warning"
    else:
        severity = "info"
    matters = ledger.verdicts.matters.get(site_key(origin.site, origin.op))
    if matters is not None:
        evidence["loss moves with its input"] = matters
    if origin.relaxed:
        evidence["under relaxed"] = True
    if severity == "error" and kind.relaxable and not origin.relaxed:
        evidence.update(ledger.verdicts.relaxed)
    if meant:
        evidence["intended"] = meant
    opening = _opening(ledger, origin) if kind_of(code).region else None
    if opening is not None:
        where = place(origin.site.code, origin.site.instruction, origin.site.line)
        evidence["first operation without gradient"] = f"{where.file}:{where.line}"
    added = ledger.add(code, opening or origin.site, origin.op, severity, evidence)
    if added is not None and severity == "error":
        ledger.charge(dead, added)
    elif added is None or meant or severity == "info":
        for leaf in dead:
            ledger.blame.setdefault(leaf, added) if added else ledger.blame.setdefault(leaf, SILENT)


def _costliest(ledger: Ledger, members: list[int], dead: set[int]) -> int:
    if len(members) == 1 or not kind_of(ledger.tracer.origins[members[0]].code).region:
        return members[0]
    starving = (m for m in members if _leaves_of(ledger, [m]) & dead)
    return next(starving, next((m for m in members if _leaves_of(ledger, [m])), members[0]))


def _opening(ledger: Ledger, origin: Origin) -> Site | None:
    """Return the line that switched gradients off where the operation itself stands elsewhere: in a helper."""
    opening = ledger.tracer.regions.site(origin.region)
    return None if opening is None or in_block(opening, origin.site) else opening


def _leaves_of(ledger: Ledger, members: list[int]) -> set[int]:
    """Return the trained tensors that reach a stop along live values."""
    sources = [s for m in members for s in ledger.tracer.origins[m].sources]
    return ledger.graph.leaves(ledger.graph.upstream(sources, live=True)) & ledger.trained


def _lost_elsewhere(ledger: Ledger, members: list[int], dead: set[int], starving: set[int]) -> bool:
    """Whether another loss, or a stop that looks like no target and no sample, explains the missing gradients."""
    graph = ledger.graph
    found: set[int] = set()
    for event in graph.events:
        if event.live and event.node is not None and not set(members) & ledger.nodes[event.node].origins:
            found |= graph.leaves(graph.upstream([event.node], live=True))
    for rival in ledger.tracer.handled - set(members):  # detached inside a straight-through sum
        if ledger.tracer.origins[rival].node in graph.reached and dead <= _leaves_of(ledger, [rival]):
            return True
    for rival in starving - set(members):
        if kind_of(ledger.tracer.origins[rival].code).departs:
            continue  # an action that left for the world
        if ledger.tracer.origins[rival].site != ledger.tracer.origins[members[0]].site and not dead <= found:
            found |= set() if intended(graph, [rival], starved=False) else _leaves_of(ledger, [rival])
    return dead <= found


def _follows(ledger: Ledger, origin: Origin) -> bool:
    """Whether a stop only writes trained tensors into another one in place: a teacher that follows its student."""
    if any(ledger.nodes[s].leaf is None for s in origin.sources):
        return False
    made = [origin.op] if origin.op.endswith("_") else [ledger.nodes[c].op for c in ledger.graph.children[origin.node]]
    return bool(made) and all(op.endswith("_") and not op.endswith("__") for op in made)


def _not_stepped(ledger: Ledger, members: list[int], dead: set[int], starving: set[int]) -> bool:
    """Whether no pass that a stop enters steps what it starves, and another stop enters those that do."""
    graph, nodes = ledger.graph, ledger.nodes
    if ledger.optimizers is None:
        return False
    rivals = starving - set(members)
    explained: set[int] = set()
    for event in graph.events:
        stepped = ledger.optimizers.stepped_after(event.number)
        if stepped is None or event.node is None:
            return False
        wanted = {leaf for leaf in dead if id(ledger.tracer.leaves[leaf].reference()) in stepped}
        if wanted and set(members) & nodes[event.node].origins:
            return False
        for rival in rivals & nodes[event.node].origins:
            explained |= wanted & _leaves_of(ledger, [rival])
    return dead <= explained


def _stored(ledger: Ledger, members: list[int], dead: set[int], starving: set[int]) -> bool:
    """Whether the value left as a number and came back as data (an action, the probability it had then).

    So only if another stop, which is not in front of this one, explains the missing gradients.
    """
    origins, nodes = ledger.tracer.origins, ledger.nodes
    departed = {o for e in ledger.tracer.exits if e.linked for o in nodes[e.node].origins}
    if not set(members) <= departed:
        return False
    before = {o for m in members for s in origins[m].sources for o in nodes[s].origins}
    rivals = starving - set(members) - before - departed
    return any(dead <= _leaves_of(ledger, [r]) for r in rivals)


def _code(ledger: Ledger, origin: Origin) -> str:
    """A detach on the way to NumPy or to a number on the same line is that exit."""
    if not kind_of(origin.code).to_python:
        return origin.code
    for exit_ in ledger.tracer.exits:
        if exit_.linked and exit_.site.line == origin.site.line and exit_.site.code is origin.site.code:
            return "cut.numpy" if exit_.op in ("numpy", "__array__") else "cut.item"
    return origin.code


def _is_term(ledger: Ledger, member: int, event_terms: Any, starving: set[int]) -> bool:
    """Whether a summand of the loss is constant because of this stop, and not because of another one behind it."""
    event, summands = event_terms
    if not event.live or member not in ledger.nodes[event.node].origins:
        return False
    joined = {c for i in summands for c in ledger.graph.children[i] if c in summands and ledger.nodes[c].op in ops.SUMS}
    origin = ledger.tracer.origins[member]
    # Nobody builds a tensor anew to add it to a loss, even if it is also a target.
    target_too = any(live.index not in joined for _, live in ledger.graph.merges(member, origin.node))
    if target_too and origin.code != "cut.rebuild":
        return False
    for index in summands:
        if member not in ledger.nodes[index].origins or ledger.nodes[index].straight:
            continue
        if any(_takes_over(ledger, member, rival, starving) for rival in ledger.nodes[index].origins - {member}):
            continue
        joins = [c for c in ledger.graph.children[index] if c in summands and ledger.nodes[c].op in ops.SUMS]
        joins = [c for c in joins if ledger.graph.downstream([c]) & ledger.graph.ancestry_of(event.node) <= summands]
        if any(ledger.nodes[c].live for c in joins) and not _learns(ledger, index):
            return True
    return False


def _is_residual(ledger: Ledger, member: int) -> bool:
    """Whether a derivative enters the loss itself, as in a differential equation's residual, and not through a layer
    (an adversarial example, a step of an inner loop) or as the weight of something that has a gradient.
    """
    graph, nodes = ledger.graph, ledger.nodes
    losses = {event.node for event in graph.events if event.live}
    stack, seen = [ledger.tracer.origins[member].node], set()
    while stack:
        index = stack.pop()
        if index in losses:
            return True
        if index in seen:
            continue
        seen.add(index)
        for child in graph.children[index]:
            node = nodes[child]
            scaled = node.op in ops.LINEAR - ops.SUMS and len(node.parents) > 1
            weight = scaled and not nodes[index].live and any(nodes[p].live for p in node.parents)
            plain = node.op in ops.LINEAR | ops.LOSSES or node.op.strip("_") in ops.RESIDUAL
            moved = not node.live and (node.op in ops.VIEWS or node.op == "detach")
            if child in graph.reached and (plain or moved) and not weight:
                stack.append(child)
    return False


def _takes_over(ledger: Ledger, member: int, rival: int, starving: set[int]) -> bool:
    """Whether ``rival`` is to blame for the constant term that both flow into.

    It is if it leaves parameters without gradient and ``member`` does not, or if ``member``'s value had met the graph
    again before ``rival`` cut it.
    """
    origins, nodes = ledger.tracer.origins, ledger.nodes
    if rival in starving and member not in starving:
        return origins[rival].site != origins[member].site
    return any(nodes[s].live and member in nodes[s].origins for s in origins[rival].sources)


def _learns(ledger: Ledger, index: int) -> bool:
    """Whether a gradient from this node reaches a trained tensor without passing a step."""
    steps = {o.node for o in ledger.tracer.origins if o.code.startswith("zero.") or ledger.nodes[o.node].live}
    seen: set[int] = set()
    stack = [index]
    while stack:
        current = stack.pop()
        if current in seen or not ledger.nodes[current].live or current in steps:
            continue
        if current in ledger.trained:
            return True
        seen.add(current)
        stack += ledger.nodes[current].parents
    return False


def _wraps(ledger: Ledger, members: list[int]) -> bool:
    """``x - floor(x)`` and interpolation weights: the step only moves the origin of a remainder."""
    for member in members:
        origin = ledger.tracer.origins[member]
        for child in ledger.graph.children[origin.node]:
            node = ledger.nodes[child]
            if node.op in REMAINDERS and set(node.parents) & set(origin.sources):
                return True
    return False

"""Parameters that are trained and get nothing: what an optimizer steps in vain, and what no other finding explains."""

from __future__ import annotations

import dis
from collections import Counter, defaultdict
from collections.abc import Iterator
from types import CodeType
from typing import Any

from torch import Tensor, nn

from pullback.audit.judge.ledger import Ledger
from pullback.audit.trace.optimizers import Held, Optimizers
from pullback.audit.trace.records import Leaf
from pullback.audit.trace.sites import Site

__all__ = ["find_cleared", "find_stale", "find_starved", "find_unregistered"]


def find_stale(ledger: Ledger, optimizers: Optimizers) -> None:
    """Find optimizers whose tensors were replaced after they were built, while the new ones get the gradients.

    An unused part of a model is no fault, nor is a network that gets gradients which nobody asked for: it takes both,
    tensors that are stepped in vain and others in their place.
    """
    orphans = [leaf for leaf in ledger.tracer.leaves.values() if leaf.norm and not _is_held(optimizers, leaf)]
    for stepped in optimizers.stepped:
        vain = [h for h in stepped.starved() if _is_vain(ledger, h)]
        newer = [leaf for leaf in orphans if leaf.parameter and _age(optimizers, leaf) > stepped.born]
        lost = [h for h in vain if not h.owned] if newer else []
        if not lost and _same_shapes([tuple(h.tensor.shape) for h in vain], [leaf.shape for leaf in newer or orphans]):
            lost = vain
        if not lost and len(vain) == len(stepped.held) and all(h.steps > 1 and not h.written for h in vain):
            # Copies of all that it holds are used in its place, and may have an optimizer of their own.
            fed = [leaf for leaf in ledger.tracer.leaves.values() if leaf.norm and leaf.parameter]
            newer = [leaf for leaf in fed if _age(optimizers, leaf) > stepped.born]
            vain = [h for h in vain if not h.fed]
            lost = vain if _same_shapes([tuple(h.tensor.shape) for h in vain], [leaf.shape for leaf in newer]) else []
        if not lost:
            continue
        site = stepped.made or stepped.stepped
        name = type(stepped.optimizer).__name__
        evidence = {
            "tensors stepped without a gradient": [_shown(ledger, h.tensor) for h in lost][:20],
            "tensors with a gradient that nothing steps": [_described(ledger, o) for o in newer or orphans][:20],
        }
        count = f"{len(lost)} of {len(stepped.held)}"
        finding = ledger.add("cut.optimizer", site, name, "error", evidence, count=count)
        if finding is None:
            continue
        for held in lost:
            ledger.blame_tensor(held.tensor, finding)
        _replacements(ledger, optimizers, newer)


def _is_vain(ledger: Ledger, held: Held) -> bool:
    """Whether the program has no use for a tensor any more; what it uses and starves is another's fault."""
    return bool(held.fed) or ledger.leaf_of(held.tensor) not in ledger.graph.reached


def _replacements(ledger: Ledger, optimizers: Optimizers, newer: list[Leaf]) -> None:
    """Name the line that made the tensors which get the gradients instead."""
    sites: dict[tuple[CodeType, int], tuple[Site, list[Leaf]]] = {}
    for leaf in newer:
        tensor = leaf.reference()
        site = None if tensor is None else optimizers.made_at(tensor)
        if site is not None:
            sites.setdefault((site.code, site.line), (site, []))[1].append(leaf)
    if sites:
        site, leaves = max(sites.values(), key=lambda entry: len(entry[1]))
        evidence = {"tensors": [_described(ledger, leaf) for leaf in leaves][:20]}
        ledger.add("cut.unstepped", site, "Parameter", "warning", evidence)


def find_unregistered(ledger: Ledger, optimizers: Optimizers) -> None:
    """Find layers in a plain list of a module that is trained: they get gradients, and ``parameters()`` lacks them.

    One that was put into evaluation is hidden there on purpose.
    """
    orphans: dict[int, Leaf] = {}
    for leaf in ledger.tracer.leaves.values():
        tensor = leaf.reference()
        if tensor is not None and leaf.norm and not leaf.frozen and not optimizers.is_held(tensor):
            orphans[id(tensor)] = leaf
    sites: dict[tuple[CodeType, int], tuple[Site, str, list[Leaf]]] = {}
    for root in optimizers.modules.values() if orphans else ():
        if not any(optimizers.is_held(p) for p in root.parameters()):
            continue
        for owner in root.modules():
            for name, container in vars(owner).items():
                for tensor in _in_plain(container) if not name.startswith("_") else ():
                    found = orphans.pop(id(tensor), None)
                    site = None if found is None else _assigned(owner, name) or optimizers.made_at(tensor)
                    if found is not None and site is not None:
                        entry = sites.setdefault((site.code, site.line), (site, f"{type(owner).__name__}.{name}", []))
                        entry[2].append(found)
    for site, where, leaves in sites.values():
        evidence = {"kept in": where, "tensors": [_described(ledger, leaf) for leaf in leaves][:20]}
        ledger.add("cut.unregistered", site, "Parameter", "error", evidence, name=where)


def _assigned(owner: nn.Module, name: str) -> Site | None:
    """Return the line of the constructor that first assigns an attribute."""
    code = getattr(type(owner).__init__, "__code__", None)
    if code is None:
        return None
    for step in dis.get_instructions(code):
        if step.opname == "STORE_ATTR" and step.argval == name and step.positions and step.positions.lineno:
            return Site(code, step.offset, step.positions.lineno, None)
    return None


def _in_plain(container: Any) -> Iterator[Tensor]:
    """Yield the trained tensors of the modules in a list, tuple or dictionary, and those that it holds itself."""
    if isinstance(container, dict):
        container = list(container.values())
    if not isinstance(container, list | tuple):
        return
    for item in container:
        if isinstance(item, nn.Module):
            yield from item.parameters()
        elif isinstance(item, nn.Parameter):
            yield item
        else:
            yield from _in_plain(item)


def find_cleared(ledger: Ledger, optimizers: Optimizers) -> None:
    """Find optimizers that step after every gradient was set to ``None``: zero_grad between backward and step."""
    for stepped in optimizers.stepped:
        held = [h for h in stepped.held.values() if h.steps]
        if stepped.steps < 2 or any(h.fed for h in held):
            continue
        had = [h.tensor for h in held if (leaf := ledger.leaf_of(h.tensor)) is not None and _norm(ledger, leaf)]
        if had:
            evidence = {"tensors": [_shown(ledger, t) for t in had][:20], "steps": stepped.steps}
            name = type(stepped.optimizer).__name__
            ledger.add("unused.gradient", stepped.stepped, f"{name}.step", "error", evidence)


def find_starved(ledger: Ledger) -> None:
    """Give every parameter that is used, trained and without gradient the last stop on its way, if nothing else has."""
    lost: dict[int, list[int]] = defaultdict(list)
    excused = {i for i in ledger.blame if ledger.certain and ledger.excused(i)}
    for leaf in sorted(ledger.dead - (set(ledger.blame) - excused)):
        record = ledger.tracer.leaves[leaf]
        if record.norm is not None or record.frozen:
            continue
        ends = _ends(ledger, leaf)
        if ends:
            lost[max(ends)].append(leaf)
    codes = {o.node: (o.code, o.site) for o in ledger.tracer.origins}
    for end, leaves in lost.items():
        node = ledger.nodes[end]
        code, site = codes.get(end, ("cut.operation", node.site))
        evidence = {"parameters without gradient": [ledger.name_of(i) for i in leaves][:20]}
        ledger.charge(leaves, ledger.add(code, site, node.op, "error", evidence))


def _ends(ledger: Ledger, leaf: int) -> set[int]:
    """Return the values without gradient that were made from values with one, downstream of a tensor; empty if the
    gradient has a way from a loss to the tensor.
    """
    seen: set[int] = set()
    ends: set[int] = set()
    losses = {e.node for e in ledger.graph.events if e.live}
    stack = [leaf]
    while stack:
        index = stack.pop()
        if index in seen:
            continue
        seen.add(index)
        if index in losses:
            return set()
        for child in ledger.graph.children[index]:
            if child in ledger.graph.reached:
                (stack.append if ledger.nodes[child].live else ends.add)(child)
    return ends


def _is_held(optimizers: Optimizers, leaf: Leaf) -> bool:
    return optimizers.is_held(leaf.reference())


def _age(optimizers: Optimizers, leaf: Leaf) -> int:
    tensor = leaf.reference()
    return -1 if tensor is None else optimizers.born(tensor)


def _same_shapes(vain: list[tuple[int, ...]], found: list[tuple[int, ...]]) -> bool:
    return bool(vain) and not Counter(vain) - Counter(found)


def _norm(ledger: Ledger, leaf: int) -> float | None:
    return ledger.tracer.leaves[leaf].norm


def _shown(ledger: Ledger, tensor: Tensor) -> str:
    return ledger.name_of_tensor(tensor)


def _described(ledger: Ledger, leaf: Leaf) -> str:
    return ledger.name_of(leaf.node)

"""Gradients that meet with opposite signs and cancel exactly, though the values do not.

Sums, differences and detached copies are followed symbolically (:mod:`pullback.audit.trace.sums`): of each value ``b``
that a node is a sum of, the factor with which its gradient passes and the factor with which it enters detached. With
``q = x + (code - x).detach()`` the residual ``x - q`` is ``0 x + x.detach() - code.detach()``: nothing passes back.
"""

from __future__ import annotations

from pullback.audit.judge.ledger import Ledger
from pullback.audit.trace.records import Node
from pullback.audit.trace.sites import place

__all__ = ["find_cancels"]

_LAYOUT = frozenset(
    "permute transpose movedim moveaxis swapaxes reshape view flatten unflatten squeeze unsqueeze".split()
)
_COMPARED = frozenset("mse_loss l1_loss smooth_l1_loss huber_loss".split())
_DIFFERENCES = frozenset("sub sub_ rsub __sub__ __rsub__ add add_ __add__ __radd__".split())
_MOST_LAYOUT = 4
_Form = dict[int, tuple[float, float]]


def find_cancels(ledger: Ledger) -> None:
    """Find sums and comparisons through which no gradient passes because their two sides are one value."""
    for node in ledger.nodes:
        if not node.live or node.index not in ledger.graph.reached or node.cotangent == 0.0:
            continue
        if node.op in _DIFFERENCES and node.linear is not None:
            form = _same_layout(ledger, node.linear)
        elif node.op in _COMPARED and len(node.parents) == 2:
            form = _difference(ledger, *node.parents)
        else:
            continue
        lost = [b for b, (live, dead) in form.items() if live == 0.0 and dead != 0.0 and _passes(ledger, node, b)]
        if not lost:
            continue
        alone = not any(live for live, _ in form.values())
        base = ledger.nodes[lost[0]]
        name = "one value"
        evidence: dict[str, object] = {}
        if base.site is not None:
            where = place(base.site.code, base.site.instruction, base.site.line)
            name = f"the result of {base.op.strip('_')} in line {where.line}"
            evidence["value"] = f"{where.file}:{where.line}"
        ledger.add("zero.cancels", node.site, node.op, "error" if alone else "warning", evidence, name=name)


def _passes(ledger: Ledger, node: Node, base: int) -> bool:
    """Whether a trained tensor is behind a value, and both sides of the node would have passed a gradient to it."""
    if not ledger.graph.leaves(ledger.graph.upstream([base], live=True)) & ledger.trained:
        return False
    sides = [_same_layout(ledger, _form(ledger, p)) for p in node.parents if ledger.nodes[p].live]
    return sum(bool(side.get(base, (0.0, 0.0))[0]) for side in sides) > 1


def _form(ledger: Ledger, index: int) -> _Form:
    node = ledger.nodes[index]
    return node.linear or {index: (1.0, 0.0) if node.live else (0.0, 1.0)}


def _difference(ledger: Ledger, first: int, second: int) -> _Form:
    total: _Form = {}
    for sign, index in ((1.0, first), (-1.0, second)):
        for base, (live, dead) in _form(ledger, index).items():
            old = total.get(base, (0.0, 0.0))
            total[base] = (old[0] + sign * live, old[1] + sign * dead)
    return _same_layout(ledger, total)


def _same_layout(ledger: Ledger, form: _Form) -> _Form:
    """Follow values that were permuted or reshaped, summed, and brought back to their shape."""
    total: _Form = {}
    for base, factors in form.items():
        inner, moves = _unmoved(ledger, base)
        outer = ledger.nodes[base].shape
        parts = ledger.nodes[inner].linear if moves else None
        spread = {}
        for part, (live, dead) in (parts or {}).items():
            source, back = _unmoved(ledger, part)
            if not back or ledger.nodes[source].shape != outer:
                if live:
                    break
                source = part  # enters detached: where it came from does not matter
            spread[source] = (factors[0] * live, factors[0] * dead + factors[1] * (live + dead))
        else:
            if parts:
                for source, (live, dead) in spread.items():
                    old = total.get(source, (0.0, 0.0))
                    total[source] = (old[0] + live, old[1] + dead)
                continue
        old = total.get(base, (0.0, 0.0))
        total[base] = (old[0] + factors[0], old[1] + factors[1])
    return total


def _unmoved(ledger: Ledger, index: int) -> tuple[int, int]:
    """Return the value that a chain of permutations and reshapes started from, and how many there were."""
    for moves in range(_MOST_LAYOUT):
        node = ledger.nodes[index]
        if node.op not in _LAYOUT or len(node.parents) != 1:
            return index, moves
        index = node.parents[0]
    return index, _MOST_LAYOUT

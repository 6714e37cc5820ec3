"""Hooks on the autograd graph: norms of cotangents in and out, and the first that is not finite."""

from __future__ import annotations

import math
from typing import Any, Protocol

from torch import Tensor

from pullback.audit.trace.norms import finite, norm_of, vanished
from pullback.audit.trace.private import is_wrapped, unseen
from pullback.audit.trace.records import Event, Node, NotFinite

__all__ = ["CotangentHook", "graph_functions", "spoils"]


class Watch(Protocol):
    """Who collects what the hooks see."""

    stopped: bool
    events: list[Event]
    not_finite: list[NotFinite]


class CotangentHook:
    """Called after an autograd function ran, with the cotangents that left it and those that came in."""

    __slots__ = ("function", "leaves", "node", "outermost", "tracer")

    def __init__(self, tracer: Watch, node: Node, function: str, leaves: tuple[bool, ...], outermost: bool) -> None:
        self.tracer = tracer
        self.node = node
        self.function = function
        self.leaves = leaves
        self.outermost = outermost

    def __call__(self, leaving: Any, arriving: Any) -> None:
        """Measure; autograd calls this with the gradients of the inputs and of the outputs."""
        if self.tracer.stopped:
            return
        with unseen():
            self._measure(leaving, arriving)

    def _measure(self, leaving: Any, arriving: Any) -> None:
        node = self.node
        norm_in = _norm(arriving)
        if norm_in is None:
            return
        if self.outermost:
            node.cotangent = norm_in if node.cotangent is None else max(node.cotangent, norm_in)
        norms = [_norm((g,)) for g in leaving]
        if math.isfinite(norm_in) and any(n is not None and not math.isfinite(n) for n in norms):
            self._not_finite(leaving, arriving)
            return
        if not math.isfinite(norm_in):
            return
        passed = [n for n, leaf in zip(norms, self.leaves, strict=False) if n is not None and not leaf]
        passed = passed or [n for n in norms if n is not None]
        if not any(norms):
            dtype = next(g.dtype for g in arriving if g is not None)
            node.zero_out += not vanished(norm_in, dtype)
        elif passed and norm_in > 0:
            node.gain_log += math.log(max(max(passed), 1e-300) / norm_in)
            node.gain_count += 1

    def _not_finite(self, leaving: Any, arriving: Any) -> None:
        spoilt = spoils(leaving, arriving)
        if spoilt is not None:
            what, masked = spoilt
            event = len(self.tracer.events) - 1
            self.tracer.not_finite.append(NotFinite(self.node.index, self.function, masked, what, event))


def spoils(leaving: Any, arriving: Any) -> tuple[str, bool] | None:
    """Return what a function made of finite cotangents, if not finite ones, and whether those it came from are zero."""
    if any(g is not None and finite(g) for g in arriving):
        return None
    for gradient in leaving:
        what = finite(gradient) if gradient is not None else ""
        if what:
            bad = ~gradient.isfinite()
            given = next((g for g in arriving if g is not None and g.shape == gradient.shape), None)
            return what, given is not None and not bool(given[bad].any())
    return None


def _norm(tensors: Any) -> float | None:
    total: float | None = None
    for tensor in tensors:
        if tensor is None or is_wrapped(tensor):
            continue
        norm = norm_of(tensor)
        total = norm if total is None else math.hypot(total, norm)
    return total


def graph_functions(tensor: Tensor, tracer: object) -> tuple[list[int], list[Tensor]]:
    """Return the traced nodes and the leaf tensors that the graph of ``tensor`` is connected to."""
    nodes: list[int] = []
    leaves: list[Tensor] = []
    seen: set[Any] = set()
    stack: list[Any] = [tensor.grad_fn]
    while stack:
        function = stack.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        owner = function.metadata.get("pullback", (None, 0))
        if owner[0] is tracer and owner[1] is not None:
            nodes.append(owner[1])
        elif function.name() == "torch::autograd::AccumulateGrad":
            leaves.append(function.variable)
        else:
            stack += [f for f, _ in function.next_functions]
    return nodes, leaves

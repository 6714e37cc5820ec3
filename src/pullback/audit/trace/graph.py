"""Questions to a trace: what lies upstream, downstream and between."""

from __future__ import annotations

from collections.abc import Iterable

from pullback.audit.trace import operations as ops
from pullback.audit.trace.records import Event, Node
from pullback.audit.trace.tracer import Tracer

__all__ = ["TraceGraph"]


class TraceGraph:
    """The trace as a graph of values, with the ancestors of every loss worked out once."""

    def __init__(self, tracer: Tracer) -> None:
        self.nodes = tracer.nodes
        self.tracer = tracer
        self.children: list[list[int]] = [[] for _ in self.nodes]
        for node in self.nodes:
            for parent in node.parents:
                self.children[parent].append(node.index)
        self.events = [e for e in tracer.events if e.node is not None]
        self.ancestry = [self.upstream([e.node]) for e in self.events if e.node is not None]
        self._of = {e.node: inside for e, inside in zip(self.events, self.ancestry, strict=True)}
        self.reached: set[int] = set().union(*self.ancestry)

    def ancestry_of(self, loss: int) -> set[int]:
        """Return everything that a loss depends on, itself included."""
        return self._of[loss]

    def upstream(self, start: Iterable[int], *, live: bool = False) -> set[int]:
        """Return the nodes that ``start`` depends on (themselves included); with ``live``, only along gradients."""
        seen: set[int] = set()
        stack = [i for i in start if not live or self.nodes[i].live]
        while stack:
            index = stack.pop()
            if index in seen:
                continue
            seen.add(index)
            stack += [p for p in self.nodes[index].parents if not live or self.nodes[p].live]
        return seen

    def downstream(self, start: Iterable[int]) -> set[int]:
        """Return the nodes that depend on ``start``, themselves included."""
        seen: set[int] = set()
        stack = list(start)
        while stack:
            index = stack.pop()
            if index not in seen:
                seen.add(index)
                stack += self.children[index]
        return seen

    def leaves(self, nodes: Iterable[int]) -> set[int]:
        """Return those of ``nodes`` that are trained tensors."""
        return {i for i in nodes if i in self.tracer.leaves}

    def summands(self, event: Event) -> set[int]:
        """Return the nodes that enter the loss as terms: sums, means and products with what is not trained."""
        found: set[int] = set()
        stack = [event.node] if event.node is not None else []
        while stack:
            index = stack.pop()
            if index in found:
                continue
            found.add(index)
            node = self.nodes[index]
            if node.op not in ops.LINEAR or node.straight:
                continue
            parents = list(node.parents)
            product = any(word in node.op for word in ("mul", "div"))
            if product and len(parents) > 1:
                continue
            stack += parents
        return found

    def merges(self, origin: int, start: int) -> list[tuple[Node, Node]]:
        """Return (dead node, live node) where an origin's value first meets the graph again, on the way to a loss."""
        found: list[tuple[Node, Node]] = []
        seen: set[int] = set()
        stack = [start]
        while stack:
            index = stack.pop()
            if index in seen:
                continue
            seen.add(index)
            for child in self.children[index]:
                node = self.nodes[child]
                if child not in self.reached or origin not in node.origins:
                    continue
                if node.live and not self.nodes[index].live:
                    found.append((self.nodes[index], node))
                else:
                    stack.append(child)
        return found

"""Values that leave the tensor world as Python numbers or arrays, and those that come back."""

from __future__ import annotations

import sys
import weakref
from types import CodeType
from typing import Any, NamedTuple

from torch import Tensor

from pullback.audit.trace import operations as ops
from pullback.audit.trace.custom import function_call
from pullback.audit.trace.decisions import decision_at
from pullback.audit.trace.numbers import origin_of, traced
from pullback.audit.trace.passes import BackwardPasses
from pullback.audit.trace.private import is_wrapped, unseen
from pullback.audit.trace.records import Exit, Origin
from pullback.audit.trace.sites import behind_relaxed, locate, place

__all__ = ["Departures"]

MOST_VALUES = 4096
"""Elements of a list that are looked at."""


class _Decided(NamedTuple):
    """The last truth value that Python decided on."""

    code: CodeType
    lines: tuple[tuple[int, int], ...]
    node: int
    told: bool = False


class Departures(BackwardPasses):
    """Records exits, and finds the nodes behind numbers that come back as arguments."""

    def __init__(self, libraries: bool, steps: int | None, sample: bool) -> None:
        super().__init__(libraries, steps, sample)
        self.exits: list[Exit] = []
        self._exit_visits: dict[tuple[Any, int, str], int] = {}
        self._arrays: list[int] = []
        self._numbers: dict[float, int] = {}
        self._compared: dict[int, weakref.ref[Tensor]] = {}
        self._decision: _Decided | None = None

    def python_values(self, name: str, args: Any, kwargs: Any, frame: Any) -> list[int]:
        """Return the nodes behind Python numbers and arrays among the arguments."""
        found = self._decided(name, args, frame)
        stack: list[Any] = [*args, *kwargs.values()]
        while stack:
            value = stack.pop()
            if isinstance(value, float | int):
                nodes = origin_of(value)
                if not nodes and type(value) is float and value in self._numbers:
                    nodes = (self._numbers[value],)
                found += nodes
            elif isinstance(value, list | tuple):
                stack += value[:MOST_VALUES]
            elif isinstance(value, slice):
                stack += [v for v in (value.start, value.stop, value.step) if v is not None]
            elif type(value).__module__ == "numpy" and (name in ops.REBUILDS or name == "__array_wrap__"):
                code = locate(sys._getframe(2), self.libraries).code
                recent = [n for n in self._arrays if n >= self._event_start]
                near = [n for n in recent if (s := self.nodes[n].site) is not None and s.code is code]
                found += near or recent
        for index in found:
            self._link(index)
        return found

    def _decided(self, name: str, args: Any, frame: Any) -> list[int]:
        """The decision under which a number is written into a tensor: ``keep[i] = 0.0 if p[i] > 0 else 1.0``."""
        decided = self._decision
        if decided is None or name not in ops.WRITES_NUMBERS or type(args[-1]) not in (bool, int, float):
            return []
        inside = frame.f_code is decided.code and any(a <= frame.f_lineno <= b for a, b in decided.lines)
        if not inside:
            return []
        if not decided.told:  # from here on the decision is what cuts, whatever it was made from
            node = self.nodes[decided.node]
            assert node.site is not None
            self.origins.append(Origin(node.index, "control-flow.branch", node.op, node.site, node.parents))
            node.origins = frozenset({len(self.origins) - 1})
            self._decision = decided._replace(told=True)
        return [decided.node]

    def rebuilt(self, tensor: Tensor, frame: Any) -> int | None:
        """Return a node for a tensor made from numbers that left the graph, as ``torch.Tensor(h.tolist())``."""
        if not self._numbers or not tensor.is_floating_point() or not tensor.numel():
            return None
        known = self._compared.get(id(tensor))
        if known is not None and known() is tensor:
            return None
        if is_wrapped(tensor) or tensor.is_sparse or tensor.is_meta:
            return None
        with unseen():
            values = tensor.detach().reshape(-1)[:64].tolist()
        parents = [self._numbers[v] for v in values if v in self._numbers]
        if not parents or any(v not in self._numbers and not float(v).is_integer() for v in values):
            self._compared[id(tensor)] = weakref.ref(tensor)
            return None
        node = self.new_node("Tensor", locate(frame, self.libraries), tuple(dict.fromkeys(parents)))
        node.origins = frozenset().union(*(self.nodes[p].origins for p in node.parents))
        for parent in node.parents:
            self._link(parent)
        self.remember(tensor, node.index, inplace=False)
        return node.index

    def drop_dead(self) -> None:
        """Forget tensors that are gone."""
        super().drop_dead()
        self._compared = {k: v for k, v in self._compared.items() if v() is not None}

    def _link(self, index: int) -> None:
        for exit_ in self.exits:
            if exit_.node == index:
                exit_.linked = True

    def _remember_numbers(self, values: Any, index: int) -> None:
        stack = [values]
        left = MOST_VALUES
        while stack and left:
            value = stack.pop()
            if isinstance(value, list):
                stack += value
            elif type(value) is float:
                left -= 1
                if not value.is_integer():
                    self._numbers[value] = index

    def leave(self, name: str, func: Any, args: Any, kwargs: Any, frame: Any, parent: int, live: bool) -> Any:
        """Run a call whose result is a Python or NumPy value, and record it."""
        out = func(*args, **kwargs)
        site = locate(frame, self.libraries)
        key = (site.code, site.instruction, name)
        visit = self._exit_visits[key] = self._exit_visits.get(key, -1) + 1
        node = self.new_node(name, site, (parent,))
        node.origins = self.nodes[parent].origins
        node.has_data = self.nodes[parent].has_data
        direct = site.code is behind_relaxed(frame).f_code
        exit_ = Exit(node.index, name, site, parent, visit, live, node.origins, direct)
        self.exits.append(exit_)
        if live and function_call(frame) is None:
            code = "cut.item" if name in ("item", "tolist", "__float__") else "cut.number"
            self.origins.append(Origin(node.index, code, name, site, (parent,)))
            node.origins = node.origins | {len(self.origins) - 1}
        if name == "__bool__" and direct:
            lines = decision_at(place(site.code, site.instruction, site.line)).lines
            self._decision = _Decided(site.code, lines, node.index)
        if name in ("numpy", "__array__"):
            self._arrays.append(node.index)
        elif name in ("item", "tolist"):
            self._remember_numbers(out, node.index)
            return traced(out, (node.index,))
        elif name == "__float__" and abs(out) not in (0.0, 1.0, 0.5, 2.0):
            self._numbers[out] = node.index
        return out

"""Values that leave the tensor world as Python numbers or arrays, and those that come back."""

from __future__ import annotations

import sys
from typing import Any

from pullback.audit import operations as ops
from pullback.audit.numbers import origin_of, traced
from pullback.audit.passes import BackwardPasses
from pullback.audit.records import Exit, Origin
from pullback.audit.sites import function_apply, locate

__all__ = ["Departures"]


class Departures(BackwardPasses):
    """Records exits, and finds the nodes behind numbers that come back as arguments."""

    def __init__(self, libraries: bool, steps: int | None) -> None:
        super().__init__(libraries, steps)
        self.exits: list[Exit] = []
        self._exit_visits: dict[tuple[Any, int, str], int] = {}
        self._arrays: list[int] = []
        self._numbers: dict[float, int] = {}

    def python_values(self, name: str, args: Any, kwargs: Any) -> list[int]:
        """Return the nodes behind Python numbers and arrays among the arguments."""
        found: list[int] = []
        stack: list[Any] = [*args, *kwargs.values()]
        while stack:
            value = stack.pop()
            if isinstance(value, float | int):
                nodes = origin_of(value)
                if not nodes and type(value) is float and value in self._numbers:
                    nodes = (self._numbers[value],)
                found += nodes
            elif isinstance(value, list | tuple) and len(value) <= 4096:
                stack += value
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

    def _link(self, index: int) -> None:
        for exit_ in self.exits:
            if exit_.node == index:
                exit_.linked = True

    def leave(self, name: str, func: Any, args: Any, kwargs: Any, frame: Any, parent: int, live: bool) -> Any:
        """Run a call whose result is a Python or NumPy value, and record it."""
        out = func(*args, **kwargs)
        site = locate(frame, self.libraries)
        key = (site.code, site.instruction, name)
        visit = self._exit_visits[key] = self._exit_visits.get(key, -1) + 1
        node = self.new_node(name, site, (parent,))
        node.origins = self.nodes[parent].origins
        node.has_data = self.nodes[parent].has_data
        direct = site.code is frame.f_code
        exit_ = Exit(node.index, name, site, parent, visit, live, node.origins, direct)
        self.exits.append(exit_)
        if live and function_apply(frame) is None:
            code = "cut.item" if name in ("item", "tolist", "__float__") else "cut.number"
            self.origins.append(Origin(node.index, code, name, site, (parent,)))
            node.origins = node.origins | {len(self.origins) - 1}
        if name in ("numpy", "__array__"):
            self._arrays.append(node.index)
        elif name in ("item", "tolist"):
            return traced(out, (node.index,))
        elif name == "__float__" and abs(out) not in (0.0, 1.0, 0.5, 2.0):
            self._numbers[out] = node.index
        return out

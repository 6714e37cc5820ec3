"""Backward passes in a trace: which value was differentiated, and what the results of autograd.grad are."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback.audit.trace.norms import finite
from pullback.audit.trace.private import is_wrapped, unseen
from pullback.audit.trace.ranges import values_of
from pullback.audit.trace.records import NO_ORIGINS, Event, NotFinite, Origin, tensors_in
from pullback.audit.trace.sites import Site, locate
from pullback.audit.trace.tensor_table import TensorTable

__all__ = ["BackwardPasses", "StopTracing"]


INNER = 16
"""Calls of ``torch.autograd.grad`` from one line, and of ``backward`` in an inner loop, that count as one step."""


class StopTracing(BaseException):
    """Raised in the user's script when the wanted number of steps was audited."""


class BackwardPasses(TensorTable):
    """A tensor table that also records what is differentiated.

    Args:
        libraries: as of :class:`TensorTable`.
        sample: as of :class:`TensorTable`.
        steps: after this many backward passes from one line, stop recording and raise :class:`StopTracing`.
    """

    def __init__(self, libraries: bool, steps: int | None, sample: bool) -> None:
        super().__init__(libraries, sample)
        self.steps = steps
        self.impure = False
        self.finished = False
        self.waits: Callable[[], bool] = lambda: False
        """Whether an optimizer has still to step: inner loops come before the outer one."""
        self._event_start = 0
        self._passes: dict[tuple[Any, int], int] = {}

    def differentiate(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Record a backward pass around the call that makes it."""
        site = locate(sys._getframe(2), self.libraries)
        outputs = list(tensors_in(args[:1] or kwargs.get("tensors", kwargs.get("outputs", ()))))
        keeps_graph = bool(kwargs.get("create_graph", len(args) > 4 and args[4]))
        wrapped = any(is_wrapped(t) for t in outputs)
        self.impure |= name == "backward"
        if (name == "backward" or not keeps_graph) and not wrapped:
            key = (site.code, site.instruction)
            self._passes[key] = self._passes.get(key, 0) + 1
            most = None if self.steps is None else self.steps * (INNER if name == "grad" else 1)
            if most is not None and self._passes[key] > most * (INNER if name == "backward" and self.waits() else 1):
                self.stopped = self.finished = True
                raise StopTracing
            if self.sampling.light:
                return self._unrecorded(name, key, site, func, args, kwargs, outputs)
            for output in outputs:
                self.note_loss(output, site)
        self.inner_pass = name == "grad"
        try:
            result = func(*args, **kwargs)
        finally:
            self.inner_pass = False
        if name == "grad" and not self.sampling.light:
            self._gradients(site, args, kwargs, outputs, result, keeps_graph, wrapped)
        if (name == "backward" or not keeps_graph) and not wrapped:
            self.sampling.settled |= self.broken or not all(event.finite for event in self.events[-len(outputs) :])
            self.sampling.finish(key)
        self.drop_dead()
        return result

    def _unrecorded(
        self, name: str, key: Any, site: Site, func: Any, args: Any, kwargs: Any, outputs: list[Tensor]
    ) -> Any:
        """Run a backward pass that is not recorded; if it is not in order, record what broke it."""
        sampling = self.sampling
        with unseen():
            bad = not sampling.settled and any(finite(output) for output in outputs)
        if bad:
            self._spoilt_result(site)
        self.inner_pass = name == "grad"
        try:
            result = func(*args, **kwargs)
        finally:
            self.inner_pass = False
        if self.broken and not sampling.settled:
            self._spoilt_cotangent(site)
        sampling.skipped += not self.events or self.events[-1].number != sampling.passes + 1
        sampling.finish(key)
        return result

    def _spoilt_result(self, site: Site) -> None:
        """Record the operation of this pass that made the first bad number, which reached the loss."""
        self.sampling.settled = True
        found = self.sampling.first_result()
        if found is None:
            return
        where, name, what, args = found
        node = self.new_node(name, where, ())
        node.live = node.first_bad = True
        node.forward = what
        node.values = values_of(name, args)
        self.events.append(Event(node.index, True, False, self._event_start, site, number=self.sampling.passes + 1))

    def _spoilt_cotangent(self, site: Site) -> None:
        """Record the operation of this pass whose backward made the first bad cotangent, and what it met."""
        self.sampling.settled = True
        found = self.sampling.first_cotangent()
        if found is None:
            return
        glance, what, masked = found
        made = self.sampling.first_result()
        node = self.new_node(glance.name, glance.site, ())
        node.live = True
        node.values = values_of(glance.name, self.sampling.arguments_at(glance))
        if made is not None and made[2] == "nan":
            source = self.new_node(made[1], made[0], ())
            source.live = source.first_bad = True
            source.forward = made[2]
            node.parents = (source.index,)
        self.events.append(Event(node.index, True, True, self._event_start, site, number=self.sampling.passes + 1))
        self.not_finite.append(NotFinite(node.index, glance.function, masked, what, len(self.events) - 1))

    def note_loss(self, output: Tensor, site: Site) -> None:
        """Take ``output`` as the value that is differentiated by the pass that follows."""
        index, live = self.lookup(output)
        with unseen(), torch.no_grad():
            wrapped = is_wrapped(output)
            good = wrapped or not finite(output)
        number = self.sampling.passes + 1
        self.events.append(Event(index, live, good, self._event_start, site, number=number))
        self._event_start = len(self.nodes)

    @property
    def steps_seen(self) -> int:
        """How many values were differentiated, in passes that were recorded and in others."""
        return len(self.events) + self.sampling.skipped

    @property
    def events_seen(self) -> bool:
        """Whether a backward pass went through anything that requires grad."""
        return any(event.live for event in self.events)

    def note_nothing(self, site: Site) -> None:
        """Record that the program returned no tensor at all."""
        self.events.append(Event(None, False, True, self._event_start, site))

    def _gradients(
        self, site: Site, args: Any, kwargs: Any, outputs: list[Tensor], result: Any, keeps: bool, wrapped: bool
    ) -> None:
        """Give the results of ``torch.autograd.grad`` their place in the trace."""
        inputs = list(tensors_in(args[1:2] or kwargs.get("inputs", ())))
        known = [self.lookup(t)[0] for t in [*outputs, *inputs]]
        parents = tuple(dict.fromkeys(p for p in known if p is not None))
        node = self.new_node("autograd.grad", site, parents)
        node.live = keeps or wrapped
        node.has_data = True
        node.origins = frozenset().union(*(self.nodes[p].origins for p in parents)) if keeps or wrapped else NO_ORIGINS
        if not node.live and parents:
            self.origins.append(Origin(node.index, "cut.create_graph", "autograd.grad", site, parents))
            node.origins = frozenset({len(self.origins) - 1})
        for gradient in tensors_in(result):
            self._known[id(gradient)] = (weakref.ref(gradient), node.index)

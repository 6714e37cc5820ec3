"""Which node of the trace a tensor is, by weak reference: new leaves, views, wrappers of torch.func, unseen origins."""

from __future__ import annotations

import math
import sys
import weakref
from typing import Any

from torch import Tensor, nn

from pullback.audit.trace.cotangents import CotangentHook, graph_functions
from pullback.audit.trace.norms import norm_of
from pullback.audit.trace.private import is_wrapped, unseen, unwrap, view_base
from pullback.audit.trace.records import Event, Leaf, Node, NotFinite, Origin
from pullback.audit.trace.sampling import Glance, Sampling, is_harmless
from pullback.audit.trace.sites import Site, locate
from pullback.relax import SoftTensor

__all__ = ["TensorTable"]


class TensorTable:
    """The nodes of a trace and the tensors that stand for them; no tensor is kept alive.

    Args:
        libraries: blame lines of installed libraries instead of the user's line that called them.
        sample: record the first passes and some later ones, and look at the others only where they are not in order.
    """

    def __init__(self, libraries: bool, sample: bool) -> None:
        super().__init__()
        self.libraries = libraries
        self.nodes: list[Node] = []
        self.origins: list[Origin] = []
        self.leaves: dict[int, Leaf] = {}
        self.events: list[Event] = []
        self.mutated: dict[int, Any] = {}
        self.not_finite: list[NotFinite] = []
        self.stopped = False
        self.handled: set[int] = set()
        self.reentrant = False
        self.inner_pass = False
        self.sampling = Sampling(sample)
        self.broken = False
        """Whether a gradient arrived that is not finite."""
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._shared: dict[int, tuple[weakref.ref[Tensor], weakref.ref[Tensor], str]] = {}
        self._handles: list[Any] = []
        self._eval: dict[int, bool] = {}
        self._reborn: set[tuple[Any, int, frozenset[int]]] = set()

    def new_node(self, name: str, site: Site | None, parents: tuple[int, ...]) -> Node:
        """Append a node."""
        node = Node(len(self.nodes), name, site, parents)
        self.nodes.append(node)
        return node

    def lookup(self, tensor: Tensor) -> tuple[int | None, bool]:
        """Return the node of a tensor (``None`` for data) and whether it carries a gradient."""
        live = tensor.requires_grad
        index = self.index_of(tensor)
        if is_wrapped(tensor):
            return self._lookup_wrapped(tensor, index)
        base = view_base(tensor)
        if base is not None:
            of_base = self.index_of(base)
            if of_base is not None and (index is None or of_base > index):
                index = of_base
        if index is None and live:
            index = self.new_leaf(tensor) if tensor.is_leaf else self._untraced(tensor)
        if index is not None and live and not self.nodes[index].live and tensor.is_leaf:
            index = self.new_leaf(tensor, index)  # detach().requires_grad_(): trained anew from here
        if index is not None and live and not self.nodes[index].live:
            self._revive(self.nodes[index])
            self.hook(tensor, self.nodes[index])
        return index, live

    def _revive(self, output: Node) -> None:
        """A custom Function attached its backward after its forward, all operations of one call, was recorded."""
        stack = [output]
        while stack:
            node = stack.pop()
            node.live = True
            node.origins = frozenset(o for o in node.origins if self.origins[o].code != "cut.custom")
            above = (self.nodes[parent] for parent in node.parents)
            stack += [p for p in above if not p.live and (p.op, p.site) == (output.op, output.site)]

    def _lookup_wrapped(self, tensor: Tensor, index: int | None) -> tuple[int | None, bool]:
        """Look up a tensor inside torch.func: the outermost level that is known, or starts a gradient of its own."""
        levels = [tensor]
        while is_wrapped(levels[-1]):
            levels.append(unwrap(levels[-1]))
        live = any(level.requires_grad for level in levels)
        if index is not None:
            return index, live
        for depth, level in enumerate(levels):
            index = self.index_of(level)
            if index is not None:
                return index, live
            if level.requires_grad and level.is_leaf:
                inner = next((i for i in map(self.index_of, levels[depth + 1 :]) if i is not None), None)
                if inner is not None:
                    self.handled |= self.nodes[inner].origins
                return self.new_leaf(level, inner), live
        return (self._untraced(levels[-1]) if levels[-1].grad_fn is not None else None), live

    def index_of(self, tensor: Tensor) -> int | None:
        """Return the node that a tensor stands for, ``None`` for data."""
        entry = self._known.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def behind_soft(self, tensor: Tensor) -> int | None:
        """Return the node of what a soft tensor of :func:`pullback.relaxed` depends on."""
        if not isinstance(tensor, SoftTensor):
            return None
        with unseen():
            value = tensor.depends_on()
        return None if value is None else self.lookup(value)[0]

    def remember(self, tensor: Tensor, index: int, inplace: bool) -> None:
        """Let a tensor (and, after a write, the one that it is a view of) stand for a node."""
        self._known[id(tensor)] = (weakref.ref(tensor), index)
        base = view_base(tensor)
        if base is not None and inplace:
            self._known[id(base)] = (weakref.ref(base), index)

    def _forget(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and view_base(tensor) is None and not tensor.requires_grad:
            self.mutated.setdefault(id(tensor), weakref.ref(tensor))

    def share(self, alias: Tensor, source: Tensor, by: str) -> None:
        """Note that ``alias`` (made by ``detach`` or ``data``) has the memory of ``source``."""
        self._shared[id(alias)] = (weakref.ref(alias), weakref.ref(source), by)

    def drop_dead(self) -> None:
        """Forget tensors that are gone."""
        self._known = {k: v for k, v in self._known.items() if v[0]() is not None}
        self._shared = {k: v for k, v in self._shared.items() if v[0]() is not None}

    def write_through(self, target: Tensor, site: Site, live_parents: tuple[int, ...]) -> None:
        """After a write into ``h.data`` or ``h.detach()``: ``h`` has the written value, and no gradient to it."""
        for tensor in (target, view_base(target)):
            alias, source, by = self._shared.get(id(tensor), (None, None, ""))
            if tensor is None or alias is None or source is None or alias() is not tensor:
                continue
            owner = source()
            written = self.index_of(target)
            if owner is None or written is None or isinstance(owner, nn.Parameter):
                continue
            if owner.is_leaf and owner.requires_grad:
                continue
            before = self.index_of(owner)
            node = self.new_node(by, site, (written,) if before in (None, written) else (before, written))
            node.live = owner.requires_grad
            node.size, node.shape = owner.numel(), tuple(owner.shape)
            node.origins = frozenset().union(*(self.nodes[p].origins for p in node.parents))
            if live_parents:
                code = "cut.data" if by == "get data" else "cut.detach"
                self.origins.append(Origin(node.index, code, by, site, live_parents))
                node.origins = node.origins | {len(self.origins) - 1}
            self.remember(owner, node.index, inplace=True)

    def reborn(self, parameter: Tensor, data: Tensor, frame: Any) -> None:
        """Record a parameter made from a value that was computed from data, or at every step: its gradient ends there.

        One that is made once from another is a new start for it.
        """
        index, live = self.lookup(data)
        if index is None or not live or self.nodes[index].leaf is not None:
            return
        site = locate(frame, self.libraries)
        made = (site.code, site.instruction, self._leaves_above(index))
        if not self.nodes[index].has_data and made not in self._reborn:
            self._reborn.add(made)
            return
        leaf = self.new_leaf(parameter, index)
        self.origins.append(Origin(leaf, "cut.rebuild", "Parameter", site, (index,)))
        self.nodes[leaf].origins = self.nodes[leaf].origins | {len(self.origins) - 1}

    def _leaves_above(self, index: int) -> frozenset[int]:
        """Return the trained tensors that a value was computed from."""
        seen: set[int] = set()
        stack = [index]
        while stack:
            current = stack.pop()
            if current not in seen:
                seen.add(current)
                stack += self.nodes[current].parents
        return frozenset(seen & self.leaves.keys())

    def new_leaf(self, tensor: Tensor, parent: int | None = None) -> int:
        """Make a node for a trained tensor, whose gradient is measured from now on."""
        if parent is None and self.nodes:
            parent = self._alias(tensor)
        node = self.new_node("leaf", None, () if parent is None else (parent,))
        if parent is not None:
            node.origins = self.nodes[parent].origins
        node.live = True
        node.has_data = not isinstance(tensor, nn.Parameter)
        node.size, node.shape = tensor.numel(), tuple(tensor.shape)
        leaf = Leaf(node.index, tuple(tensor.shape), isinstance(tensor, nn.Parameter), weakref.ref(tensor))
        leaf.frozen = self._eval.get(id(tensor), False)
        node.leaf = leaf
        self.leaves[node.index] = leaf
        self._known[id(tensor)] = (weakref.ref(tensor), node.index)
        if not is_wrapped(tensor):

            def received(gradient: Tensor | None, leaf: Leaf = leaf) -> None:
                if gradient is None:  # a custom Function that returned None for this input
                    return
                with unseen():
                    norm = norm_of(gradient)
                self.broken |= not math.isfinite(norm)
                if self.inner_pass:
                    leaf.inner = math.hypot(leaf.inner or 0.0, norm)
                else:
                    leaf.norm = math.hypot(leaf.norm or 0.0, norm)

            self._handles.append(tensor.register_hook(received))
        return node.index

    def _alias(self, tensor: Tensor) -> int | None:
        """Return the node whose memory a new leaf shares, as ``nn.Parameter(h)`` does."""
        if is_wrapped(tensor) or not tensor.numel() or tensor.is_sparse:
            return None
        address = tensor.data_ptr()
        for reference, index in self._known.values():
            other = reference()
            if other is None or other is tensor or self.nodes[index].leaf is not None:
                continue
            if is_wrapped(other) or other.is_sparse:
                continue
            if other.numel() == tensor.numel() and other.data_ptr() == address:
                return index
        return None

    def _untraced(self, tensor: Tensor) -> int:
        """Make a node for a tensor of unseen origin from what its autograd graph is connected to."""
        parents, leaves = graph_functions(tensor, self)
        found = dict.fromkeys([*parents, *(self.lookup(leaf)[0] for leaf in leaves)])
        node = self.new_node(
            "unsampled" if self.sampling.glanced else "untraced",
            locate(sys._getframe(2), self.libraries),
            tuple(p for p in found if p is not None),
        )
        node.live = True
        node.has_data = True
        node.origins = frozenset().union(*(self.nodes[p].origins for p in node.parents))
        self._known[id(tensor)] = (weakref.ref(tensor), node.index)
        self.hook(tensor, node)
        return node.index

    def glance(self, tensor: Tensor, site: Site, name: str) -> None:
        """Keep the cotangents of the autograd functions that made a tensor, if they are not watched yet."""
        stack: list[Any] = [tensor.grad_fn]
        while stack:
            function = stack.pop()
            kind = "" if function is None else function.name()
            if not kind or kind == _ACCUMULATE:
                continue
            metadata: Any = function.metadata
            if metadata.get("pullback", (None,))[0] is self:
                continue
            metadata["pullback"] = (self, None)
            if not is_harmless(kind):
                function.register_hook(Glance(self.sampling, site, name, kind))
            stack += [f for f, _ in function.next_functions]

    def hook(self, tensor: Tensor, node: Node) -> None:
        """Measure the cotangents of the autograd functions that made a tensor and were not hooked yet."""
        if is_wrapped(tensor) or tensor.grad_fn is None:
            return
        stack = [tensor.grad_fn]
        outermost = True
        while stack:
            function = stack.pop()
            metadata: Any = function.metadata
            if metadata.get("pullback", (None,))[0] is self:
                continue
            metadata["pullback"] = (self, node.index)
            self.reentrant |= function.name() == "CheckpointFunctionBackward"
            following = [f for f, _ in function.next_functions]
            leaves = tuple(_is_parameter(f) for f in following)
            function.register_hook(CotangentHook(self, node, function.name(), leaves, outermost))
            outermost = False
            stack += [f for f in following if f is not None and f.name() != _ACCUMULATE]


_ACCUMULATE = "torch::autograd::AccumulateGrad"


def _is_parameter(function: Any) -> bool:
    """Whether a branch of the graph leads to a parameter and nothing else, perhaps through a transpose or a view."""
    for _ in range(4):
        if function is None:
            return False
        if function.name() == _ACCUMULATE:
            return isinstance(function.variable, nn.Parameter)
        following = function.next_functions
        if len(following) != 1 or function.name().rstrip("0123456789") not in _VIEWS:
            return False
        function = following[0][0]
    return False


_VIEWS = {
    f"{name}Backward" for name in ("T", "Transpose", "Permute", "View", "Unsqueeze", "Squeeze", "Expand", "Numpy_T")
}

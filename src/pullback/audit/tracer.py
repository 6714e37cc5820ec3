"""Records what a program computes, line by line, while it runs: which values depend on the trained ones, where the
graph is left, and (through hooks on the graph) what happens to the cotangents on the way back.

No tensor is kept alive: nodes hold numbers, tensors are known by weak reference only.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import eager_transforms
from torch.overrides import TorchFunctionMode

from pullback.audit import operations as ops
from pullback.audit.backward import CotangentHook, checked, finite, graph_functions, norm_of
from pullback.audit.custom import CustomCall, copied
from pullback.audit.numbers import origin_of, traced
from pullback.audit.sites import Site, function_apply, locate

__all__ = ["Event", "Exit", "Leaf", "Node", "Origin", "Tracer"]

MAX_NODES = 200_000
_NO_ORIGINS: frozenset[int] = frozenset()


class Node:
    """One traced operation (or leaf); ``parents`` are indices of the nodes whose values it used."""

    __slots__ = (
        "constant",
        "cotangent",
        "first_bad",
        "forward",
        "gain_count",
        "gain_log",
        "has_data",
        "index",
        "kinks",
        "leaf",
        "linear",
        "live",
        "op",
        "origins",
        "parents",
        "scale",
        "shape",
        "site",
        "size",
        "straight",
        "values",
        "zero_out",
    )

    def __init__(self, index: int, op: str, site: Site | None, parents: tuple[int, ...]) -> None:
        self.index = index
        self.op = op
        self.site = site
        self.parents = parents
        self.origins: frozenset[int] = _NO_ORIGINS
        self.live = False
        self.has_data = False
        self.leaf: Leaf | None = None
        self.linear: dict[int, tuple[float, float]] | None = None
        self.straight = False
        self.constant = False
        self.forward = ""
        self.kinks = 0
        self.size = 0
        self.shape: tuple[int, ...] = ()
        self.scale = 0.0
        self.cotangent: float | None = None
        self.gain_log = 0.0
        self.gain_count = 0
        self.zero_out = 0
        self.first_bad = False
        self.values: tuple[float, float, float] | None = None


@dataclass
class Leaf:
    """A trained tensor: a leaf of the graph that requires grad."""

    node: int
    shape: tuple[int, ...]
    parameter: bool
    reference: Any
    name: str = ""
    norm: float | None = None
    frozen: bool = False
    gradient: Tensor | None = None


@dataclass
class Origin:
    """A place where the gradient stops: ``node`` holds the value without (useful) gradient."""

    node: int
    code: str
    op: str
    site: Site
    sources: tuple[int, ...]
    """Nodes of the inputs that still carried a gradient."""
    region: int = 0


@dataclass
class Exit:
    """A traced value that became a Python or NumPy value."""

    node: int
    op: str
    site: Site
    source: int
    visit: int
    live: bool
    upstream: frozenset[int]
    direct: bool
    """Whether the user's own frame asked for it, not a library on the way."""
    linked: bool = False


@dataclass
class Event:
    """One backward pass."""

    node: int | None
    live: bool
    finite: bool
    first: int
    """Index of the first node that belongs to this pass alone."""
    site: Site
    leaves: set[int] = field(default_factory=set)


@dataclass
class NotFinite:
    """An autograd function that turned a finite cotangent into one that is not."""

    node: int
    function: str
    masked: bool
    what: str


def tensors_in(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item, depth - 1)
    elif depth and isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item, depth - 1)


def unwrapped(tensor: Tensor) -> tuple[Tensor, bool]:
    """Return the tensor below torch.func's wrappers, and whether any level requires grad."""
    live = tensor.requires_grad
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
        live = live or tensor.requires_grad
    return tensor, live


class StopTracing(BaseException):
    """Raised in the user's script when the wanted number of steps was audited."""


class Tracer(TorchFunctionMode):
    """A torch function mode that records; results and random stream of the program are unchanged.

    Args:
        libraries: blame lines of installed libraries instead of the user's line that called them.
        steps: after this many backward passes from one line, stop recording and raise :class:`StopTracing` at the next
            (``None``: record all).
    """

    def __init__(self, *, libraries: bool = False, steps: int | None = None) -> None:
        super().__init__()
        self.libraries = libraries
        self.steps = steps
        self.nodes: list[Node] = []
        self.origins: list[Origin] = []
        self.exits: list[Exit] = []
        self.events: list[Event] = []
        self.leaves: dict[int, Leaf] = {}
        self.not_finite: list[NotFinite] = []
        self.consumed: dict[int, list[int]] = {}
        self.mutated: dict[int, Any] = {}
        self.custom_calls: dict[Any, CustomCall] = {}
        self.impure = False
        self.names: dict[int, str] = {}
        self._modules: set[int] = set()
        self.handled: set[int] = set()
        self.reentrant = False
        self.notes: list[str] = []
        self.stopped = False
        self.finished = False
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._exit_visits: dict[tuple[Any, int, str], int] = {}
        self._arrays: list[int] = []
        self._numbers: dict[float, int] = {}
        self._regions = 0
        self._was_enabled = True
        self._event_start = 0
        self._passes: dict[tuple[Any, int], int] = {}
        self._handles: list[Any] = []
        self._eval: dict[int, bool] = {}

    def _from_numpy(self, array: Any) -> Tensor:
        """Stand in for ``torch.from_numpy``, which no mode can see."""
        out: Tensor = self._real_from_numpy(array)
        if not self.stopped:
            frame = sys._getframe(1)
            parents = self._python_values("from_numpy", (array,), {})
            if parents:
                site = locate(frame, self.libraries)
                self._outputs(
                    "from_numpy", site, frame, [out], parents, [], False, torch.is_grad_enabled(), (array,), {}
                )
        return out

    def _func_grad(self, outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Stand in for the step of torch.func that differentiates, which asks autograd nothing if no path is left."""
        if not self.stopped:
            site = locate(sys._getframe(1), self.libraries)
            for output in tensors_in(outputs):
                self.note_loss(output, site)
        result = self._real_func_grad(outputs, inputs, *args, **kwargs)
        for tensor, gradient in zip(tensors_in(inputs), tensors_in(result), strict=False):
            index = self._index(tensor)
            if index in self.leaves:
                inner = unwrapped(gradient)[0]
                with torch._C.DisableTorchFunction(), torch.no_grad():
                    self.leaves[index].norm = _norm(inner)
        return result

    def __enter__(self) -> Tracer:
        self._real_from_numpy = torch.from_numpy
        torch.from_numpy = self._from_numpy  # type: ignore[assignment]
        self._real_func_grad = eager_transforms._autograd_grad
        eager_transforms._autograd_grad = self._func_grad
        self._handles.append(nn.modules.module.register_module_forward_pre_hook(self._entering))
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        torch.from_numpy = self._real_from_numpy
        eager_transforms._autograd_grad = self._real_func_grad
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _entering(self, module: nn.Module, _inputs: Any) -> None:
        if id(module) not in self._modules:
            self._modules.add(id(module))
            for name, parameter in module.named_parameters():
                self.names.setdefault(id(parameter), f"{type(module).__name__}.{name}")
        for own in module._parameters.values():
            if own is not None:
                self._eval[id(own)] = self._eval.get(id(own), True) and not module.training

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = ops.operation_name(func)
        if self.stopped:
            if self.finished and name == "backward":
                raise StopTracing
            return func(*args, **kwargs)
        if name in ("backward", "grad") and getattr(func, "__module__", "").startswith("torch"):
            return self._differentiate(name, func, args, kwargs)
        if getattr(func, "__module__", None) == "torch.nn.init":
            return func(*args, **kwargs)
        if name in ops.IGNORED or (name.startswith("get ") and name[4:] not in ops.VALUE_GETTERS) or name[:4] == "set ":
            return func(*args, **kwargs)
        return self._record(name, func, args, kwargs, sys._getframe(1))

    def _record(self, name: str, func: Any, args: Any, kwargs: Any, frame: Any) -> Any:
        enabled = torch.is_grad_enabled()
        if enabled:
            self._was_enabled = True
        elif self._was_enabled:
            self._was_enabled = False
            self._regions += 1
        parents: list[int] = []
        live_parents: list[int] = []
        has_data = False
        signs: list[int | None] = []
        for tensor in tensors_in((args, kwargs) if kwargs else args):
            index, live = self._lookup(tensor)
            signs.append(index)
            if index is None:
                has_data = True
                continue
            if index not in parents:
                parents.append(index)
                if live:
                    live_parents.append(index)
        parents += [n for n in self._python_values(name, args, kwargs) if n not in parents]
        if not parents:
            out = func(*args, **kwargs)
            if args and (name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))):
                self._forget(args[0])
            return out
        if name in ops.EXITS:
            return self._exit(name, func, args, kwargs, frame, parents[0], bool(live_parents))
        inplace = name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name in _INPLACE
        inplace = inplace and bool(args) and isinstance(args[0], Tensor)
        if inplace:
            target = args[0]
            if target.is_leaf and target.requires_grad and not enabled:
                self.impure = True
                return func(*args, **kwargs)
            if signs and signs[0] is None and id(target) not in self.mutated:
                self.mutated[id(target)] = weakref.ref(target)
        if name == "batch_norm":
            for buffer in tensors_in(args[1:3]):
                self.mutated.setdefault(id(buffer), weakref.ref(buffer))
        out = func(*args, **kwargs)
        if len(self.nodes) > MAX_NODES:
            self.stopped = True
            self.notes.append(f"recording stopped after {MAX_NODES} operations")
            return out
        applied = None if enabled else function_apply(frame)
        site = locate(frame if applied is None else applied.f_back or frame, self.libraries)
        if applied is not None:
            name = self._custom(applied, site)
        outputs = [args[0]] if inplace else list(tensors_in(out))
        if isinstance(kwargs.get("out"), Tensor):
            outputs = [kwargs["out"]]
        self._outputs(name, site, frame, outputs, parents, live_parents, has_data, enabled, args, kwargs, inplace)
        return out

    def _outputs(
        self,
        name: str,
        site: Site,
        frame: Any,
        outputs: list[Tensor],
        parents: list[int],
        live_parents: list[int],
        has_data: bool,
        enabled: bool,
        args: Any,
        kwargs: Any,
        inplace: bool = False,
    ) -> None:
        """Make a node for the outputs that carry a gradient and one for those that do not."""
        split: dict[bool, list[Tensor]] = {True: [], False: []}
        for tensor in outputs:
            _, live = unwrapped(tensor)
            split[live and (tensor.is_floating_point() or tensor.is_complex())].append(tensor)
        for live in (True, False):
            if not split[live]:
                continue
            node = self._node(name, site, tuple(parents))
            node.live = live
            node.has_data = has_data or any(self.nodes[p].has_data for p in parents)
            upstream: frozenset[int] = frozenset().union(*(self.nodes[p].origins for p in parents))
            node.origins = upstream
            if live:
                for parent in live_parents:
                    self.consumed.setdefault(parent, []).append(node.index)
            self._linear(node, name, args, kwargs)
            node.constant = live and has_data and name in ops.SUMS and self._adds_constant(args)
            first = split[live][0]
            node.size, node.shape = first.numel(), tuple(first.shape)
            code = self._cut(name, live, live_parents, enabled, frame, site, kwargs)
            if code:
                origin = Origin(node.index, code, name, site, tuple(live_parents), 0 if enabled else self._regions)
                self.origins.append(origin)
                node.origins = node.origins | {len(self.origins) - 1}
            for tensor in split[live]:
                self._remember(tensor, node.index, inplace)
                if live and enabled:
                    self._hook(tensor, node)
            if node.live or not enabled:
                self._measure(node, name, first, args)

    def _cut(
        self, name: str, live: bool, sources: list[int], enabled: bool, frame: Any, site: Site, kwargs: Any
    ) -> str:
        """Return the code of the finding that this operation could become, or an empty string."""
        if not sources:
            return ""
        bare = name.strip("_")
        if name in ops.STEPS or kwargs.get("rounding_mode") is not None:
            if live or not enabled:
                return f"zero.{bare}" if enabled and live else self._stop(frame)
            return f"zero.{bare}"
        if name in ("tensor", "new_tensor", "from_numpy", "FloatTensor"):
            return "cut.rebuild"
        if name in ops.SAMPLERS:
            return "cut.sampling"
        if live:
            return ""
        if name in ("detach", "detach_"):
            return "cut.detach" if enabled else self._stop(frame)
        if name == "get data":
            return "cut.data"
        if not enabled:
            return self._stop(frame)
        if name in ops.INDICES or name in ops.SPLIT_INDICES:
            return "cut.index"
        if name in ops.COMPARISONS:
            return "cut.comparison"
        if name in ops.CASTS:
            return "cut.cast"
        if name in ops.REBUILDS:
            return "cut.rebuild"
        if name in ("broadcast_tensors", "meshgrid", "atleast_1d", "atleast_2d", "atleast_3d", "align_tensors"):
            return ""  # each output follows its own input
        return "cut.operation"

    def _stop(self, frame: Any) -> str:
        if function_apply(frame) is not None:
            return "cut.custom"  # taken back if the Function's output turns out to carry a gradient
        return "cut.inference" if torch.is_inference_mode_enabled() else "cut.no_grad"

    def _custom(self, applied: Any, site: Site) -> str:
        """Keep one call of a custom Function for the probe of its backward; return its name."""
        function, args = applied.f_locals.get("cls"), applied.f_locals.get("args", ())
        if function is None:
            return "custom"
        key = (function, site.code, site.instruction)
        if key not in self.custom_calls and len(self.custom_calls) < 32:
            kept = copied(args)
            if kept is not None:
                self.custom_calls[key] = CustomCall(function, kept, site)
        return str(function.__name__)

    def _node(self, name: str, site: Site | None, parents: tuple[int, ...]) -> Node:
        node = Node(len(self.nodes), name, site, parents)
        self.nodes.append(node)
        return node

    def _lookup(self, tensor: Tensor) -> tuple[int | None, bool]:
        """Return the node of a tensor (``None`` for data) and whether it carries a gradient."""
        live = tensor.requires_grad
        index = self._index(tensor)
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            return self._lookup_wrapped(tensor, index)
        base = tensor._base
        if base is not None:
            of_base = self._index(base)
            if of_base is not None and (index is None or of_base > index):
                index = of_base
        if index is None and live:
            index = self._leaf(tensor) if tensor.is_leaf else self._untraced(tensor)
        if index is not None and live and not self.nodes[index].live and tensor.is_leaf:
            index = self._leaf(tensor, index)  # detach().requires_grad_(): trained anew from here
        if index is not None and live and not self.nodes[index].live:
            node = self.nodes[index]
            node.live = True  # a custom Function attached its backward after its forward was recorded
            node.origins = frozenset(o for o in node.origins if self.origins[o].code != "cut.custom")
            self._hook(tensor, self.nodes[index])
        return index, live

    def _lookup_wrapped(self, tensor: Tensor, index: int | None) -> tuple[int | None, bool]:
        """Look up a tensor inside torch.func: the outermost level that is known, or starts a gradient of its own."""
        levels = [tensor]
        while torch._C._functorch.is_functorch_wrapped_tensor(levels[-1]):
            levels.append(torch._C._functorch.get_unwrapped(levels[-1]))
        live = any(level.requires_grad for level in levels)
        if index is not None:
            return index, live
        for depth, level in enumerate(levels):
            index = self._index(level)
            if index is not None:
                return index, live
            if level.requires_grad and level.is_leaf:
                inner = next((i for i in map(self._index, levels[depth + 1 :]) if i is not None), None)
                if inner is not None:
                    self.handled |= self.nodes[inner].origins
                return self._leaf(level, inner), live
        return (self._untraced(levels[-1]) if levels[-1].grad_fn is not None else None), live

    def _index(self, tensor: Tensor) -> int | None:
        entry = self._known.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None

    def _remember(self, tensor: Tensor, index: int, inplace: bool) -> None:
        self._known[id(tensor)] = (weakref.ref(tensor), index)
        base = tensor._base
        if base is not None and inplace:
            self._known[id(base)] = (weakref.ref(base), index)

    def _forget(self, tensor: Any) -> None:
        if isinstance(tensor, Tensor) and tensor._base is None and not tensor.requires_grad:
            self.mutated.setdefault(id(tensor), weakref.ref(tensor))

    def _leaf(self, tensor: Tensor, parent: int | None = None) -> int:
        if parent is None and self.nodes:
            parent = self._alias(tensor)
        node = self._node("leaf", None, () if parent is None else (parent,))
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
        if not torch._C._functorch.is_functorch_wrapped_tensor(tensor):

            def received(gradient: Tensor | None, leaf: Leaf = leaf) -> None:
                if gradient is None:  # a custom Function that returned None for this input
                    return
                with torch._C.DisableTorchFunction(), torch.no_grad():
                    norm = _norm(gradient)
                leaf.norm = norm if leaf.norm is None else math.hypot(leaf.norm, norm)

            self._handles.append(tensor.register_hook(received))
        return node.index

    def _alias(self, tensor: Tensor) -> int | None:
        """Return the node whose memory a new leaf shares, as ``nn.Parameter(h)`` does."""
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or not tensor.numel() or tensor.is_sparse:
            return None
        address = tensor.data_ptr()
        for reference, index in self._known.values():
            other = reference()
            if other is None or other is tensor or self.nodes[index].leaf is not None:
                continue
            if torch._C._functorch.is_functorch_wrapped_tensor(other) or other.is_sparse:
                continue
            if other.numel() == tensor.numel() and other.data_ptr() == address:
                return index
        return None

    def _untraced(self, tensor: Tensor) -> int:
        """Make a node for a tensor of unseen origin from what its autograd graph is connected to."""
        parents, leaves = graph_functions(tensor, self)
        found = dict.fromkeys([*parents, *(self._lookup(leaf)[0] for leaf in leaves)])
        node = self._node(
            "untraced", locate(sys._getframe(2), self.libraries), tuple(p for p in found if p is not None)
        )
        node.live = True
        node.has_data = True
        node.origins = frozenset().union(*(self.nodes[p].origins for p in node.parents))
        self._known[id(tensor)] = (weakref.ref(tensor), node.index)
        self._hook(tensor, node)
        return node.index

    def _hook(self, tensor: Tensor, node: Node) -> None:
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or tensor.grad_fn is None:
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

    def _adds_constant(self, args: Any) -> bool:
        """Whether one summand is a single untraced number other than zero."""
        for value in args[:2]:
            single = isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()
            if single and self._index(value) is None and not torch._C._functorch.is_functorch_wrapped_tensor(value):
                with torch._C.DisableTorchFunction():
                    return float(value.detach()) != 0.0
        return False

    def _linear(self, node: Node, name: str, args: Any, kwargs: Any) -> None:
        """Follow sums and differences: ``soft + (hard - soft).detach()`` passes soft's gradient on purpose."""
        if name in ("add", "add_", "sub", "sub_", "rsub", "neg", "__radd__", "__rsub__"):
            if kwargs.get("alpha", 1) != 1 or len(args) > 2:
                return
            sign = {"sub": (1, -1), "sub_": (1, -1), "rsub": (-1, 1), "__rsub__": (-1, 1), "neg": (-1, 0)}.get(
                name, (1, 1)
            )
            terms = list(zip(args, sign, strict=False))
        elif name in ("detach", "get data", "clone", "contiguous", "to", "float", "double", "type_as"):
            terms = [(args[0], 1)]
        else:
            return
        total: dict[int, tuple[float, float]] = {}
        for value, factor in terms:
            index = self._index(value) if isinstance(value, Tensor) else None
            if index is None or index == node.index:
                continue
            parent = self.nodes[index]
            for base, (live, dead) in (parent.linear or {index: (1.0, 0.0) if parent.live else (0.0, 1.0)}).items():
                if not node.live:
                    live, dead = 0.0, live + dead
                old = total.get(base, (0.0, 0.0))
                total[base] = (old[0] + factor * live, old[1] + factor * dead)
        if not total or len(total) > 8:
            return
        node.linear = total
        if not node.live:
            return
        passed = [base for base, (live, dead) in total.items() if live and live + dead == 0.0]
        if passed:
            node.straight = True
            dropped = [base for base, (live, _) in total.items() if not (live and base in passed)]
            self.handled |= frozenset().union(*(self.nodes[base].origins for base in dropped))
            kept = [base for base, (live, _) in total.items() if live and base in passed]
            node.origins = frozenset().union(*(self.nodes[base].origins for base in kept))

    def _measure(self, node: Node, name: str, out: Tensor, args: Any) -> None:
        """Note the first value that is not finite, and values exactly on a kink."""
        if torch._C._functorch.is_functorch_wrapped_tensor(out) or not out.is_floating_point() or out.is_meta:
            return
        with torch._C.DisableTorchFunction(), torch.no_grad():
            bad, node.scale = checked(out)
            if bad and not any(self.nodes[p].forward >= bad for p in node.parents):
                node.first_bad = True
            node.forward = bad
            if name in ops.SINGULAR:
                node.values = _range(args[ops.SINGULAR[name]] if len(args) > ops.SINGULAR[name] else None)
            if name in ops.KINKS and args and isinstance(args[0], Tensor) and out.numel() and not bad:
                node.kinks = _on_kink(name, args, out)

    def _python_values(self, name: str, args: Any, kwargs: Any) -> list[int]:
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

    def _exit(self, name: str, func: Any, args: Any, kwargs: Any, frame: Any, parent: int, live: bool) -> Any:
        out = func(*args, **kwargs)
        site = locate(frame, self.libraries)
        key = (site.code, site.instruction, name)
        visit = self._exit_visits[key] = self._exit_visits.get(key, -1) + 1
        node = self._node(name, site, (parent,))
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

    def _differentiate(self, name: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Record a backward pass around the call that makes it."""
        site = locate(sys._getframe(2), self.libraries)
        outputs = list(tensors_in(args[:1] or kwargs.get("tensors", kwargs.get("outputs", ()))))
        keeps_graph = bool(kwargs.get("create_graph", len(args) > 4 and args[4]))
        wrapped = any(torch._C._functorch.is_functorch_wrapped_tensor(t) for t in outputs)
        self.impure |= name == "backward"
        if (name == "backward" or not keeps_graph) and not wrapped:
            key = (site.code, site.instruction)
            self._passes[key] = self._passes.get(key, 0) + 1
            if self.steps is not None and self._passes[key] > self.steps:
                self.stopped = self.finished = True
                raise StopTracing
            for output in outputs:
                self.note_loss(output, site)
        result = func(*args, **kwargs)
        if name == "grad":
            self._gradients(site, args, kwargs, outputs, result, keeps_graph, wrapped)
        self._known = {k: v for k, v in self._known.items() if v[0]() is not None}
        return result

    def note_loss(self, output: Tensor, site: Site) -> None:
        """Take ``output`` as the value that is differentiated by the pass that follows."""
        index, live = self._lookup(output)
        with torch._C.DisableTorchFunction(), torch.no_grad():
            wrapped = torch._C._functorch.is_functorch_wrapped_tensor(output)
            good = wrapped or not finite(output)
        self.events.append(Event(index, live, good, self._event_start, site))
        self._event_start = len(self.nodes)

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
        known = [self._lookup(t)[0] for t in [*outputs, *inputs]]
        parents = tuple(dict.fromkeys(p for p in known if p is not None))
        node = self._node("autograd.grad", site, parents)
        node.live = keeps or wrapped
        node.has_data = True
        node.origins = frozenset().union(*(self.nodes[p].origins for p in parents)) if keeps or wrapped else _NO_ORIGINS
        if not node.live and parents:
            self.origins.append(Origin(node.index, "cut.create_graph", "autograd.grad", site, parents))
            node.origins = frozenset({len(self.origins) - 1})
        for gradient in tensors_in(result):
            self._known[id(gradient)] = (weakref.ref(gradient), node.index)


_INPLACE = frozenset({"__iadd__", "__isub__", "__imul__", "__itruediv__", "__iand__", "__ior__"})


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


def _norm(tensor: Tensor) -> float:
    return norm_of(tensor.detach())


def _range(value: Any) -> tuple[float, float, float] | None:
    """Return minimum, maximum and the value nearest to zero."""
    if isinstance(value, Tensor) and value.numel() and value.is_floating_point():
        low, high = value.detach().aminmax()
        nearest = value.detach().flatten()[value.detach().abs().argmin()]
        return float(low), float(high), float(nearest)
    return None


def _on_kink(name: str, args: Any, out: Tensor) -> int:
    """Count the elements whose input lies exactly on a non-differentiable point."""
    x = args[0]
    bare = name.strip("_")
    if not x.is_floating_point() or not x.numel():
        return 0
    if bare in ("relu", "leaky_relu", "abs", "absolute", "fabs", "prelu"):
        return int((x == 0).sum())
    if bare in ("norm", "vector_norm", "linalg_norm"):
        return int((out == 0).sum())
    if bare in ("max", "min", "amax", "amin") and out.dim() == 0:
        return max(int((x == out).sum()) - 1, 0)
    if bare in ("maximum", "minimum", "max", "min") and len(args) > 1 and isinstance(args[1], Tensor):
        return int((x == args[1]).sum())
    if bare in ("clamp", "clip", "clamp_min", "clamp_max", "hardtanh", "relu6"):
        bounds = [b for b in args[1:3] if isinstance(b, int | float)] or ([0.0, 6.0] if bare == "relu6" else [])
        return sum(int((x == b).sum()) for b in bounds)
    return 0

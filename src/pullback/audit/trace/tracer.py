"""Records what a program computes, line by line, while it runs: which values depend on the trained ones, where the
graph is left, and (through hooks on the graph) what happens to the cotangents on the way back.

No tensor of the program is kept alive: nodes hold numbers, tensors are known by weak reference only. What an operation
was first given from a line is copied, where it is small, for the probe of its derivative.
"""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.overrides import TorchFunctionMode

from pullback.audit.trace import operations as ops
from pullback.audit.trace.alone import EXACT, OperationCall, copied_call
from pullback.audit.trace.codes import stop_code
from pullback.audit.trace.custom import Applied, CustomCall, copied, function_call
from pullback.audit.trace.departures import Departures
from pullback.audit.trace.measures import measure
from pullback.audit.trace.norms import norm_of
from pullback.audit.trace.passes import StopTracing
from pullback.audit.trace.private import own_parameters, replace_func_grad, unseen
from pullback.audit.trace.records import Origin, tensors_in, unwrapped
from pullback.audit.trace.regions import Regions
from pullback.audit.trace.sites import Site, locate, own_step
from pullback.audit.trace.stand_in import stand_in
from pullback.audit.trace.sums import adds_constant, follow_sum

__all__ = ["StopTracing", "Tracer"]

MAX_NODES = 200_000
COLLECT = 50_000
MAX_CALLS = 500
"""Operations whose first call is kept."""


class Tracer(Departures, TorchFunctionMode):
    """A torch function mode that records; results and random stream of the program are unchanged.

    Args:
        libraries: blame lines of installed libraries instead of the user's line that called them.
        steps: after this many backward passes from one line, stop recording and raise :class:`StopTracing` at the next
            (``None``: record all).
        sample: record the first passes and some later ones, and of the others what is new and what is not finite.
    """

    def __init__(self, *, libraries: bool = False, steps: int | None = None, sample: bool = False) -> None:
        super().__init__(libraries, steps, sample)
        self.consumed: dict[int, list[int]] = {}
        self.custom_calls: dict[Any, CustomCall] = {}
        self.operation_calls: dict[Any, OperationCall | None] = {}
        self.names: dict[int, tuple[weakref.ref[Tensor], str]] = {}
        self.notes: list[str] = []
        self.regions = Regions(libraries)
        self._step: Any = None
        self._modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()

    def _from_numpy(self, array: Any) -> Tensor:
        """Stand in for ``torch.from_numpy``, which no mode can see."""
        out: Tensor = self._real_from_numpy(array)
        if not self.stopped:
            frame = sys._getframe(1)
            parents = self.python_values("from_numpy", (array,), {}, sys._getframe(1))
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
            index = self.index_of(tensor)
            if index in self.leaves:
                inner = unwrapped(gradient)[0]
                with unseen(), torch.no_grad():
                    self.leaves[index].norm = norm_of(inner.detach())
        return result

    def __enter__(self) -> Tracer:
        self._collect = gc.get_threshold()
        if self._collect[0]:  # else the program collects by itself
            # What a trace holds is no garbage, and looking for some in it at every 700th object takes half of the time.
            gc.set_threshold(max(COLLECT, self._collect[0]), *self._collect[1:])
        self._real_from_numpy = torch.from_numpy
        torch.from_numpy = self._from_numpy  # type: ignore[assignment]
        self._real_func_grad = replace_func_grad(self._func_grad)
        self._handles.append(nn.modules.module.register_module_forward_pre_hook(self._entering))
        self._handles.append(register_optimizer_step_pre_hook(self._starts_step))
        self._handles.append(register_optimizer_step_post_hook(self._resume))
        self._patch_parameter()
        self.regions.enter()
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._resume()
        super().__exit__(*exception)
        gc.set_threshold(*self._collect)
        torch.from_numpy = self._real_from_numpy
        replace_func_grad(self._real_func_grad)
        nn.Parameter.__new__ = self._real_new  # type: ignore[method-assign]
        self.regions.leave()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _patch_parameter(self) -> None:
        """See ``nn.Parameter(h)``, which no mode can: a trained tensor anew, from a computed value."""
        self._real_new = new = nn.Parameter.__new__

        @functools.wraps(new)
        def made(cls: Any, data: Any = None, *options: Any, **words: Any) -> Any:
            out = new(cls, data, *options, **words)
            if not self.stopped and isinstance(data, Tensor):
                self.reborn(out, data, sys._getframe(1))
            return out

        nn.Parameter.__new__ = made  # type: ignore[method-assign]

    def _entering(self, module: nn.Module, _inputs: Any) -> None:
        if module not in self._modules:
            self._modules.add(module)
            for name, parameter in module.named_parameters():
                known, _ = self.names.get(id(parameter), (None, ""))
                if known is None or known() is not parameter:  # else a module around this one has named it
                    self.names[id(parameter)] = (weakref.ref(parameter), name)
        for own in own_parameters(module):
            if own is not None:
                self._eval[id(own)] = self._eval.get(id(own), True) and not module.training

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = ops.operation_name(func)
        if self.stopped:
            if self.finished and name == "backward":
                raise StopTracing
            return stand_in(sys._getframe(1), func)(*args, **kwargs)
        if ops.is_ignored(name):
            return func(*args, **kwargs)
        frame = sys._getframe(1)
        call = stand_in(frame, func)
        if name in ("backward", "grad") and getattr(func, "__module__", "").startswith("torch"):
            return self.differentiate(name, call, args, kwargs)
        if self.sampling.light:
            return self._glance(name, call, args, kwargs, frame)
        if name in ops.IGNORED or getattr(func, "__module__", None) == "torch.nn.init":
            return call(*args, **kwargs)
        return self._record(name, call, args, kwargs, frame)

    def _starts_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """Leave an optimizer's own arithmetic out; what a closure computes, and what is differentiated, stays in."""
        closure = kwargs.get("closure") or next((a for a in args[1:] if callable(a)), None)
        plain = type(optimizer).__module__.startswith("torch.optim") and closure is None
        if plain and not any(group.get("differentiable") for group in optimizer.param_groups):
            self.impure = True
            self._resume()  # a step before this one that raised
            self._step = unseen()
            self._step.__enter__()

    def _resume(self, *_hooked: Any) -> None:
        """Go on recording after an optimizer's step."""
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None

    def _glance(self, name: str, func: Any, args: Any, kwargs: Any, frame: Any) -> Any:
        """Run an operation of a pass that is not recorded; record from here on if it is a new one."""
        live = fresh = False
        if torch.is_grad_enabled():
            for value in (*args, *kwargs.values()) if kwargs else args:
                for tensor in (value,) if isinstance(value, Tensor) else tensors_in(value):
                    if tensor.requires_grad:
                        live = True
                        fresh |= type(tensor) is nn.Parameter and self.index_of(tensor) is None
        if not live or name in ops.EXITS or name in ops.IGNORED:
            return func(*args, **kwargs)
        site = locate(frame, self.libraries)
        sampling = self.sampling
        if fresh or sampling.is_new(site, name):
            sampling.light = False
            return self._record(name, func, args, kwargs, frame)
        out = func(*args, **kwargs)
        if not sampling.settled:
            sampling.keep(site, name, out, args)
            for tensor in (out,) if isinstance(out, Tensor) else tensors_in(out):
                self.glance(tensor, site, name)
        return out

    def _record(self, name: str, func: Any, args: Any, kwargs: Any, frame: Any) -> Any:
        enabled = torch.is_grad_enabled()
        parents: list[int] = []
        live_parents: list[int] = []
        has_data = False
        signs: list[int | None] = []
        for tensor in tensors_in((args, kwargs) if kwargs else args):
            index, live = self.lookup(tensor)
            signs.append(index)
            if index is None and not live:
                index = self.behind_soft(tensor) if name in ops.EXITS else None
                index = self.rebuilt(tensor, frame) if index is None else index
            if index is None:
                has_data = True
                continue
            if index not in parents:
                parents.append(index)
                if live:
                    live_parents.append(index)
        parents += [n for n in self.python_values(name, args, kwargs, frame) if n not in parents]
        if not parents:
            out = func(*args, **kwargs)
            if name in ("get data", "detach"):
                self.share(out, args[0], name)
            if args and (name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))):
                self._forget(args[0])
            return out
        if name in ops.EXITS:
            return self.leave(name, func, args, kwargs, frame, parents[0], bool(live_parents))
        inplace = name == "__setitem__" or (name.endswith("_") and not name.endswith("__")) or name in _INPLACE
        inplace = inplace and bool(args) and isinstance(args[0], Tensor)
        if inplace:
            target = args[0]
            if target.is_leaf and target.requires_grad and not enabled:
                self.impure = True
                return func(*args, **kwargs)
            if signs and signs[0] is None and id(target) not in self.mutated:
                self.mutated[id(target)] = weakref.ref(target)
        collective = name in ops.COLLECTIVES
        if enabled and live_parents and name not in EXACT and not collective and len(self.operation_calls) < MAX_CALLS:
            self._keep_call(name, func, args, kwargs, frame)
        if name == "batch_norm":
            for buffer in tensors_in(args[1:3]):
                self.mutated.setdefault(id(buffer), weakref.ref(buffer))
        if name in ("get data", "detach"):
            out = func(*args, **kwargs)
            self.share(out, args[0], name)
        else:
            out = func(*args, **kwargs)
        if name in ops.CONVERSIONS and out is args[0]:
            return out
        if len(self.nodes) > MAX_NODES:
            self.stopped = True
            self.notes.append(f"recording stopped after {MAX_NODES} operations")
            return out
        applied = None if enabled else function_call(frame)
        site = locate(frame if applied is None else applied.frame.f_back or frame, self.libraries)
        self.sampling.recorded(site, name)
        if applied is not None:
            name = self._custom(applied, site)
        outputs = [args[0]] if inplace else list(tensors_in(out))
        if collective:
            parents, live_parents, outputs = self._received(args)
        if isinstance(kwargs.get("out"), Tensor):
            outputs = [kwargs["out"]]
        self._outputs(name, site, frame, outputs, parents, live_parents, has_data, enabled, args, kwargs, inplace)
        if inplace:
            self.write_through(args[0], site, tuple(live_parents))
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
            node = self.new_node(name, site, tuple(parents))
            node.live = live
            node.has_data = has_data or any(self.nodes[p].has_data for p in parents)
            upstream: frozenset[int] = frozenset().union(*(self.nodes[p].origins for p in parents))
            node.origins = upstream
            if live:
                for parent in live_parents:
                    self.consumed.setdefault(parent, []).append(node.index)
            follow_sum(self, node, name, args, kwargs)
            node.constant = live and has_data and name in ops.SUMS and adds_constant(self, args)
            first = split[live][0]
            node.size, node.shape = first.numel(), tuple(first.shape)
            code = stop_code(name, live, live_parents, enabled, frame, site, kwargs)
            own, relaxed = own_step(frame, name) if code else (False, False)
            if code and not own:
                region = 0 if enabled else self.regions.current
                origin = Origin(node.index, code, name, site, tuple(live_parents), region, relaxed)
                self.origins.append(origin)
                node.origins = node.origins | {len(self.origins) - 1}
            if name in ops.COMPARISONS and len(args) > 1 and isinstance(args[1], int | float):
                node.values = (float(args[1]),) * 3  # the threshold
            for tensor in split[live]:
                self.remember(tensor, node.index, inplace)
                if live and enabled:
                    self.hook(tensor, node)
            if node.live or not enabled:
                measure(self, node, name, first, args, kwargs)

    def _received(self, args: Any) -> tuple[list[int], list[int], list[Tensor]]:
        """The nodes of what a collective sends, those with a gradient, and the tensors it writes into."""
        sent = [self.lookup(tensor) for tensor in tensors_in(args[1:2])]
        parents = list(dict.fromkeys(index for index, _ in sent if index is not None))
        live = [index for index, live in dict(sent).items() if live and index is not None]
        return parents, live, list(tensors_in(args[:1]))

    def _keep_call(self, name: str, func: Any, args: Any, kwargs: Any, frame: Any) -> None:
        """Keep the first call of an operation from a line, for the probe of its derivative."""
        site = locate(frame, self.libraries)
        key = (site.code, site.instruction, name)
        if key not in self.operation_calls:
            with unseen(), torch.no_grad():
                self.operation_calls[key] = copied_call(name, func, args, kwargs, site)

    def _custom(self, applied: Applied, site: Site) -> str:
        """Keep one call of a custom Function for the probe of its backward; return its name."""
        function = applied.function
        if function is None:
            return "custom"
        key = (function, site.code, site.instruction)
        if key not in self.custom_calls and len(self.custom_calls) < 32:
            args = applied.args()
            kept = None if args is None else copied(args)
            if kept is not None:
                self.custom_calls[key] = CustomCall(function, kept, site)
        return str(function.__name__)


_INPLACE = frozenset({"__iadd__", "__isub__", "__imul__", "__itruediv__", "__iand__", "__ior__"})

"""Which optimizers a program builds and steps, at which lines, and which of their tensors came with a gradient."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from pullback.audit.trace.private import unseen
from pullback.audit.trace.sites import Site, is_user_frame, locate

__all__ = ["Held", "Optimizers", "Stepped"]


@dataclass
class Held:
    """A tensor that an optimizer steps.

    Attributes:
        tensor: the tensor itself: what an optimizer holds lives as long as it does.
        steps: steps of the optimizer at which it required a gradient.
        fed: at how many of these it had one.
        last: number of the step at which it last had one; -1: never.
        owned: whether some module held it at the first step without one.
        mark: its sum and sum of squares at that step; another one later means that the program writes it by hand.
    """

    tensor: Tensor
    steps: int = 0
    fed: int = 0
    last: int = -1
    owned: bool = True
    mark: tuple[float, float] | None = None
    written: bool = False


@dataclass
class Stepped:
    """An optimizer that took a step.

    Attributes:
        optimizer: the optimizer.
        made: where it was built, ``None`` if before the audit.
        stepped: where its first step was called.
        born: its place in the order in which optimizers and parameters were made.
        steps: how many it took.
        held: its tensors by id.
        after: how many backward passes had ended at each of its steps.
    """

    optimizer: Optimizer
    made: Site | None
    stepped: Site
    born: int = 0
    steps: int = 0
    held: dict[int, Held] = field(default_factory=dict)
    after: set[int] = field(default_factory=set)

    def starved(self) -> list[Held]:
        """Return what it steps in vain: never with a gradient, or no longer in the last two of at least three steps."""
        found = [h for h in self.held.values() if h.steps and not h.written]
        return [h for h in found if not h.fed or (self.steps >= 3 and h.last < self.steps - 2)]


class Optimizers:
    """Watches optimizers while the context is entered.

    Args:
        libraries: name lines inside installed libraries instead of the user's line that called them.
        passes: says how many backward passes have ended.
    """

    def __init__(self, libraries: bool = False, passes: Callable[[], int] | None = None) -> None:
        self.libraries = libraries
        self._passes = passes
        self.stepped: list[Stepped] = []
        self.tensors: dict[str, Tensor] = {}
        self.modules: dict[str, nn.Module] = {}
        """By the names of the user's variables, where an optimizer took its first step; so are ``tensors``."""
        self._clock = 0
        self._parameters: dict[int, tuple[weakref.ref[Tensor], Site, int]] = {}
        self._made: weakref.WeakKeyDictionary[Optimizer, tuple[Site, int]] = weakref.WeakKeyDictionary()
        self._all: weakref.WeakSet[Optimizer] = weakref.WeakSet()

    def __enter__(self) -> Optimizers:
        self._hook = register_optimizer_step_pre_hook(self._stepping)
        self._real_init, self._real_new = Optimizer.__init__, nn.Parameter.__new__
        real_init, real_new = self._real_init, self._real_new

        @functools.wraps(real_init)
        def built(optimizer: Any, *args: Any, **words: Any) -> None:
            self._clock += 1
            self._made[optimizer] = (locate(_caller(sys._getframe(1), optimizer), self.libraries), self._clock)
            self._all.add(optimizer)
            real_init(optimizer, *args, **words)

        @functools.wraps(real_new)
        def made(cls: Any, *args: Any, **words: Any) -> Any:
            parameter = real_new(cls, *args, **words)
            self._clock += 1
            site = locate(_builder(sys._getframe(1)), self.libraries)
            self._parameters[id(parameter)] = (weakref.ref(parameter), site, self._clock)
            return parameter

        Optimizer.__init__ = built  # type: ignore[method-assign, assignment]
        nn.Parameter.__new__ = made  # type: ignore[method-assign]
        return self

    def __exit__(self, *exception: Any) -> None:
        Optimizer.__init__ = self._real_init  # type: ignore[method-assign]
        nn.Parameter.__new__ = self._real_new  # type: ignore[method-assign]
        self._hook.remove()

    def held(self) -> Iterator[Tensor]:
        """Yield the tensors of all optimizers that took a step."""
        for stepped in self.stepped:
            for group in stepped.optimizer.param_groups:
                yield from group["params"]

    def is_held(self, tensor: Tensor | None) -> bool:
        """Whether any optimizer, stepped or not, holds the tensor."""
        groups = [g for o in self._all for g in o.param_groups] + [
            g for s in self.stepped for g in s.optimizer.param_groups
        ]
        return tensor is not None and any(tensor is p for g in groups for p in g["params"])

    def unfed(self) -> set[int]:
        """Return the ids of tensors that an optimizer steps and never had a gradient for."""
        return {key for s in self.stepped for key, held in s.held.items() if not held.fed}

    def waiting(self) -> bool:
        """Whether an optimizer that was built has not stepped twice, as that of an outer loop."""
        done = {id(s.optimizer) for s in self.stepped if s.steps > 1}
        return any(id(optimizer) not in done for optimizer in self._all)

    def stepped_after(self, number: int) -> set[int] | None:
        """Return the ids of the tensors that are stepped next after a backward pass; ``None`` where that is not known.

        A pass of a discriminator leaves gradients in its generator too, which nobody asked for.
        """
        next_step = min((p for s in self.stepped for p in s.after if p >= number), default=None)
        if next_step is None:
            return None
        return {key for s in self.stepped if next_step in s.after for key in s.held}

    def by_hand(self) -> set[int]:
        """Return the ids of tensors that the program changes itself, as codes that follow moving averages."""
        return {key for s in self.stepped for key, held in s.held.items() if held.written}

    def made_at(self, tensor: Tensor) -> Site | None:
        """Return where a parameter was made, if in the audited program."""
        reference, site, _ = self._parameters.get(id(tensor), (None, None, 0))
        return site if reference is not None and reference() is tensor else None

    def born(self, tensor: Tensor) -> int:
        """Return a parameter's place in the order in which optimizers and parameters were made; -1 if unknown."""
        reference, _, born = self._parameters.get(id(tensor), (None, None, -1))
        return born if reference is not None and reference() is tensor else -1

    def _stepping(self, optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        known = next((s for s in self.stepped if s.optimizer is optimizer), None)
        if known is None:
            frame = _caller(sys._getframe(1), optimizer)
            made, born = self._made.get(optimizer, (None, 0))
            known = Stepped(optimizer, made, locate(frame, self.libraries), born)
            self.stepped.append(known)
            self._find_names(frame)
        with unseen(), torch.no_grad():
            for group in optimizer.param_groups:
                for tensor in group["params"]:
                    held = known.held.setdefault(id(tensor), Held(tensor))
                    _note(held, known.steps)
        known.steps += 1
        if self._passes is not None:
            known.after.add(self._passes())

    def _find_names(self, frame: FrameType | None) -> None:
        """Note the modules and tensors that the user's frames have names for, the innermost frame first."""
        while frame is not None:
            if is_user_frame(frame):
                for name, value in [*frame.f_locals.items(), *frame.f_globals.items()]:
                    for own, thing in getattr(value, "__dict__", {}).items() if name == "self" else ((name, value),):
                        if isinstance(thing, nn.Module) and all(thing is not m for m in self.modules.values()):
                            self.modules.setdefault(own, thing)
                        elif isinstance(thing, Tensor) and thing.is_leaf and thing.requires_grad:
                            self.tensors.setdefault(own, thing)
            frame = frame.f_back


def _note(held: Held, step: int) -> None:
    tensor = held.tensor
    if not tensor.requires_grad:
        return
    held.steps += 1
    if tensor.grad is not None:
        held.fed += 1
        held.last = step
        held.mark = None
        return
    mark = _mark(tensor)
    if held.mark is None:
        held.owned = not isinstance(tensor, nn.Parameter) or _owned(tensor)
    elif mark != held.mark and mark == mark:
        held.written = True
    held.mark = mark


def _mark(tensor: Tensor) -> tuple[float, float]:
    values = tensor.detach().double()
    return float(values.sum()), float(values.square().sum())


def _owned(parameter: Tensor) -> bool:
    """Whether a module holds the parameter: those that were replaced are held by their optimizer alone."""
    import gc

    for table in gc.get_referrers(parameter):
        if isinstance(table, dict) and any(
            isinstance(value, nn.Module) or (isinstance(value, dict) and value.get("_parameters") is table)
            for value in gc.get_referrers(table)
        ):
            return True
    return False


def _caller(frame: FrameType | None, optimizer: Optimizer) -> Any:
    """Return the first frame outside of the optimizer's own methods, as a subclass in the user's file has them."""
    while frame is not None and frame.f_back is not None:
        own = frame.f_code.co_varnames[:1]
        if not own or frame.f_locals.get(own[0]) is not optimizer:
            break
        frame = frame.f_back
    return frame


def _builder(frame: FrameType) -> FrameType:
    """Return the frame that builds the module whose constructor makes a parameter, else the frame itself."""
    found = frame
    walk: FrameType | None = frame
    while walk is not None:
        own = walk.f_code.co_varnames[:1]
        if own and walk.f_code.co_name == "__init__" and isinstance(walk.f_locals.get(own[0]), nn.Module):
            found = walk.f_back or found
        walk = walk.f_back
    return found

"""The function under audit, as something that can be run again."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pullback.audit.trace.norms import norm_of
from pullback.audit.trace.private import is_wrapped, unseen
from pullback.audit.trace.records import tensors_in
from pullback.audit.trace.sites import locate
from pullback.audit.trace.tracer import Tracer

__all__ = ["Program", "requiring_grad"]


@contextlib.contextmanager
def requiring_grad(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Let tensors that are trained for the audit alone require grad for a while."""
    tensors = list(tensors)
    for tensor in tensors:
        tensor.requires_grad_(True)
    try:
        yield
    finally:
        for tensor in tensors:
            tensor.requires_grad_(False)


def relaxing(temperature: float | None) -> contextlib.AbstractContextManager[Any]:
    """Return the context of ``relaxed``, which is imported (with all its blocks) only where it is asked for."""
    if temperature is None:
        return contextlib.nullcontext()
    from pullback.relax import relaxed

    return relaxed(temperature=temperature)


class Program:
    """``loss(fn(*inputs, **kwargs))`` as a number.

    Args:
        fn: the callable.
        inputs: its positional arguments.
        kwargs: its keyword arguments.
        loss: from its output to a scalar, or ``None``.
        relax: temperature of ``relaxed`` to run it under, or ``None``.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        inputs: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        loss: Callable[[Any], Tensor] | None,
        relax: float | None = None,
    ) -> None:
        self.fn = fn
        self.inputs = inputs
        self.kwargs = dict(kwargs)
        self.loss = loss
        self.relax = relax
        self.copied = False
        """Whether the function gets copies of its tensor inputs."""
        self.number = False
        """Whether the last output was a plain number or array: a loss that left the tensor world."""

    def value(self) -> Tensor | None:
        """Run the function and return the tensor to differentiate, ``None`` if it returned nothing of the kind."""
        with relaxing(self.relax):
            return self._value()

    def _value(self) -> Tensor | None:
        inputs = [i.clone() if self.copied and isinstance(i, Tensor) else i for i in self.inputs]
        output = self.fn(*inputs, **self.kwargs)
        if self.loss is not None:
            value = self.loss(output)
            if not isinstance(value, Tensor) or value.numel() != 1:
                got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"loss must return a tensor with one element, got {got}")
            return value
        if isinstance(output, Mapping) and isinstance(output.get("loss"), Tensor):
            output = output["loss"]
        outputs = list(tensors_in(_fields(output)))
        self.number = isinstance(output, float | int | np.ndarray)
        if not outputs:
            return None
        first = outputs[0]
        if first.numel() == 1 and (first.requires_grad or len(outputs) == 1):
            return first
        outputs = [t for t in outputs if t.requires_grad] or outputs
        return _project(outputs)

    def trace(self, tracer: Tracer) -> None:
        """Run under an entered tracer and differentiate."""
        try:
            value = self.value()
        except RuntimeError as error:
            if tracer.events and not tracer.events[-1].live and "does not require grad" in str(error):
                return  # the program's own backward() found no graph: that is the finding
            raise
        site = locate(sys._getframe(1), tracer.libraries)
        if isinstance(value, Tensor) and (value.requires_grad or not tracer.events):
            tracer.note_loss(value, site)
            if value.requires_grad:
                self._gradients(tracer, value)
        elif not tracer.events and self.number:
            tracer.note_nothing(site)

    @staticmethod
    def _gradients(tracer: Tracer, value: Tensor) -> None:
        leaves = [(leaf, leaf.reference()) for leaf in tracer.leaves.values()]
        leaves = [(leaf, t) for leaf, t in leaves if t is not None and not _wrapped(t)]
        if not leaves:
            return
        tensors = [t for _, t in leaves]
        with unseen():
            try:
                gradients = _backward(value, tensors) if tracer.reentrant else _grad(value, tensors)
            except RuntimeError as error:
                if "is not implemented" not in str(error):
                    raise
                tracer.notes.append(f"the backward pass stopped: {error}")
                return
        for (leaf, _), gradient in zip(leaves, gradients, strict=True):
            if gradient is not None:
                leaf.norm = norm_of(gradient)
                leaf.gradient = gradient.detach()

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the modules that the function holds: itself, its owner, its closure, its inputs, globals it names."""
        fn = self.fn
        if isinstance(fn, nn.Module):
            yield "", fn
        owner = getattr(fn, "__self__", None)
        if isinstance(owner, nn.Module):
            yield "", owner
        code = getattr(fn, "__code__", None)
        if code is not None:
            for name, cell in zip(code.co_freevars, getattr(fn, "__closure__", None) or (), strict=False):
                try:
                    if isinstance(cell.cell_contents, nn.Module):
                        yield name, cell.cell_contents
                except ValueError:  # a variable that is not assigned yet
                    continue
            for name in code.co_names:
                value = fn.__globals__.get(name)
                if isinstance(value, nn.Module):
                    yield name, value
        for index, value in enumerate(self.inputs):
            if isinstance(value, nn.Module):
                yield f"inputs[{index}]", value

    def tensors(self) -> Iterator[Tensor]:
        """Yield the parameters of those modules and the tensors among the inputs."""
        for _, module in self.modules():
            yield from module.parameters()
        yield from tensors_in(self.inputs)

    def names(self) -> dict[int, str]:
        """Return names of parameters and inputs by id."""
        found: dict[int, str] = {}
        for prefix, module in self.modules():
            for name, parameter in module.named_parameters():
                found.setdefault(id(parameter), f"{prefix}.{name}" if prefix else name)
        for index, value in enumerate(self.inputs):
            if isinstance(value, Tensor):
                found.setdefault(id(value), f"inputs[{index}]")
        return found


def _grad(value: Tensor, tensors: list[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(value, tensors, torch.ones_like(value), allow_unused=True)


def _backward(value: Tensor, tensors: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Differentiate through reentrant checkpoints, which need ``backward``; ``.grad`` of the tensors is put back."""
    before = [t.grad for t in tensors]
    for tensor in tensors:
        tensor.grad = None
    try:
        value.backward(torch.ones_like(value))
        return tuple(t.grad for t in tensors)
    finally:
        for tensor, gradient in zip(tensors, before, strict=True):
            tensor.grad = gradient


def _wrapped(tensor: Tensor) -> bool:
    return bool(is_wrapped(tensor))


def _fields(output: Any) -> Any:
    if hasattr(output, "__dataclass_fields__"):
        return [getattr(output, name) for name in output.__dataclass_fields__]
    return output


def _project(outputs: list[Tensor]) -> Tensor:
    """Return one number that depends on every element of every output: a fixed random projection."""
    generator = torch.Generator().manual_seed(0)
    total: Tensor | None = None
    for output in outputs:
        value = output if output.is_floating_point() else output.to(torch.get_default_dtype())
        weights = torch.rand(output.shape, generator=generator, dtype=torch.float64).add_(0.5).to(value)
        term = (value * weights).sum()
        total = term if total is None else total + term
    assert total is not None
    return total

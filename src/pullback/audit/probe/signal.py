"""How large signals are in every layer of a program, and how much of its gradient is noise of its random draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pullback.audit.probe.program import Program, requiring_grad
from pullback.audit.probe.random import seed_everything
from pullback.audit.probe.replay import Laboratory, Refusal
from pullback.audit.report.findings import LayerRecord, NoiseRecord
from pullback.audit.trace.tracer import Tracer
from pullback.gradients import GradientSignal, signal_propagation

__all__ = ["measure_layers", "measure_noise"]

RUNS = 16
Result = TypeVar("Result")


class _Layers(nn.Module):
    """The program as a module that holds those which it calls."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._value = program.value
        self._held = dict(program.modules())

    def named_modules(self, *unused: Any, **words: Any) -> Iterator[tuple[str, nn.Module]]:
        seen: set[int] = set()
        yield "", self
        for prefix, module in self._held.items():
            for name, layer in module.named_modules(prefix=prefix):
                if id(layer) not in seen:
                    seen.add(id(layer))
                    yield name, layer

    def children(self) -> Iterator[nn.Module]:
        yield from self._held.values()

    def forward(self) -> Tensor | None:
        return self._value()


def measure_layers(
    program: Program, tracer: Tracer, state: tuple[Any, ...], opened: list[Tensor]
) -> tuple[LayerRecord, ...]:
    """Replay the program once and return what every call of a layer passes on, forth and back.

    Args:
        program: the function under audit.
        tracer: its trace.
        state: random state before the traced run.
        opened: tensors that require grad for the audit alone.

    Returns:
        In the order of the calls; nothing where the program holds no module, changes its parameters itself, does not
        run twice, or has no number to differentiate.
    """
    layers = _Layers(program)
    if tracer.impure or next(layers.children(), None) is None:
        return ()

    def run() -> tuple[LayerRecord, ...]:
        found = signal_propagation(layers, (), loss=_number)
        return tuple(LayerRecord(**vars(signal)) for signal in found)

    with requiring_grad(opened):
        return _replay(Laboratory(program, tracer, state, math.inf), run) or ()


def measure_noise(
    program: Program,
    tracer: Tracer,
    wanted: Mapping[str, Tensor],
    state: tuple[Any, ...],
    opened: list[Tensor],
    budget: float,
) -> tuple[NoiseRecord, ...]:
    """Differentiate the program with other random numbers and return how much of each gradient is signal.

    Args:
        program, tracer, state, opened: as in :func:`measure_layers`.
        wanted: the trained tensors by name.
        budget: seconds.

    Returns:
        Nothing where the program draws no numbers from the global streams (its gradient is the same each time), changes
        its parameters itself, or does not run again.
    """
    if tracer.impure or not wanted:
        return ()
    laboratory = Laboratory(program, tracer, state, budget)

    def gradients(run: int) -> dict[str, Tensor | None]:
        if run:
            seed_everything(run)
        value = program.value()
        if value is None or not value.requires_grad:
            return {}
        found = torch.autograd.grad(value.sum(), list(wanted.values()), allow_unused=True)
        return dict(zip(wanted, found, strict=True))

    drawn: list[dict[str, Tensor | None]] = []
    with requiring_grad(opened):
        for run in range(RUNS):
            if laboratory.spent:
                break
            found = _replay(laboratory, partial(gradients, run))
            if not found or (run == 1 and _equal(drawn[0], found)):
                return ()
            drawn.append(found)
    if len(drawn) < 2:
        return ()
    measured = GradientSignal.of(drawn)
    return tuple(
        NoiseRecord(name, measured.signal[name], measured.noise[name], measured.ratio[name]) for name in wanted
    )


def _number(value: Tensor | None) -> Tensor:
    if value is None:
        raise ValueError("there is no number to differentiate")
    return value.sum()


def _equal(a: Mapping[str, Tensor | None], b: Mapping[str, Tensor | None]) -> bool:
    def same(x: Tensor | None, y: Tensor | None) -> bool:
        return x is y if x is None or y is None else torch.equal(x, y)

    return all(same(a[name], b[name]) for name in a)


def _replay(laboratory: Laboratory, run: Callable[[], Result]) -> Result | None:
    try:
        return laboratory.attempt(run)
    except Refusal:  # it does not run twice, or has no derivative, which the trace names
        return None

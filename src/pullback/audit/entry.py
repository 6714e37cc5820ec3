"""``pullback.audit(fn, *inputs)``: run a function once, differentiate it, and report where the gradient dies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pullback.audit.judge.analysis import analyse
from pullback.audit.judge.names import names_of
from pullback.audit.judge.verdicts import Verdicts
from pullback.audit.probe.chaos import chaos_finding
from pullback.audit.probe.landscape import measure_landscape
from pullback.audit.probe.memory import measure_memory
from pullback.audit.probe.one_sided import with_slopes
from pullback.audit.probe.probes import probe
from pullback.audit.probe.program import Program, requiring_grad
from pullback.audit.probe.random import random_state, set_random_state
from pullback.audit.probe.signal import measure_layers, measure_noise
from pullback.audit.remedy.rerun import Rerun
from pullback.audit.remedy.search import with_remedies
from pullback.audit.report.findings import Landscape
from pullback.audit.report.report import Report
from pullback.audit.trace.optimizers import Optimizers
from pullback.audit.trace.records import tensors_in
from pullback.audit.trace.tracer import Tracer
from pullback.core.checks import check_choice, check_positive, nearest

__all__ = ["audit"]


def audit(
    fn: Callable[..., Any],
    *inputs: Any,
    wrt: Any = None,
    loss: Callable[[Any], Tensor] | None = None,
    step: Callable[[Any], Any] | None = None,
    probes: str = "auto",
    landscape: bool = False,
    memory: bool = False,
    signal: bool = False,
    budget: float = 60.0,
    ignore: Iterable[str] = (),
    libraries: bool = False,
    relax: float | None = None,
    generator: torch.Generator | None = None,
    target: str | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Report:
    """Run ``fn(*inputs)``, differentiate its result, and report line by line where the gradient is lost.

    The value that is differentiated is ``loss(output)`` if given; else the output if it is a scalar; else a fixed
    random projection of all outputs that carry a gradient. A function that calls ``backward`` itself is audited at
    those calls.

    Args:
        fn: any callable: a function, a closure, an ``nn.Module``, a bound method.
        *inputs: its arguments, left unchanged.
        wrt: what is trained: a tensor, a module, an optimizer, the position of an input, the name of a parameter, or
            nested lists and dicts of them. Default: every leaf that requires grad; if none does, the floating
            inputs.
        loss: maps the output to a scalar.
        step: a map from a state to the next one of the same form, whose largest Lyapunov exponent is to be measured,
            starting at the first input; where it is positive, so is the horizon beyond which gradients are noisier
            than function values.
        probes: ``"auto"`` replays the function (same random numbers, state restored) where the trace alone cannot
            decide whether a stop matters; ``"all"`` also compares the whole gradient with that of the smoothed loss
            where nothing is suspect; ``"none"`` never runs it twice.
        landscape: also run the function along its gradient and across it; the page of the report draws the loss.
        memory: also run the function once more and report what its lines keep for the backward pass.
        signal: also run the function again and report what passes through its layers, forth and back, and, where it
            draws from the global random streams, how much of each gradient is signal over other draws.
        budget: seconds that the probes may take.
        ignore: places not to report, as ``"model.py:12"`` or ``"model.py"``.
        libraries: blame lines inside installed libraries instead of the line of the user that called them.
        relax: run it under ``pullback.relaxed`` of this temperature and audit that.
        generator: of the directions in which probes perturb (default: a fresh one with seed 0).
        target: name of what is audited, for the report.
        kwargs: keyword arguments of ``fn``.

    Returns:
        A :class:`~pullback.audit.Report`.

    Raises:
        TypeError: ``fn`` is not callable or ``wrt`` holds something that is not trained.
        ValueError: ``probes`` or ``budget`` is out of range, or ``loss`` does not return one number.

    Example:
        >>> import pullback
        >>> def pick(scores, values):
        ...     return values[scores.argmax()]
        >>> scores = torch.tensor([0.1, 0.9], requires_grad=True)
        >>> report = pullback.audit(pick, scores, torch.tensor([1.0, 2.0]))
        >>> [finding.code for finding in report.findings]
        ['cut.index']
    """
    state = random_state()
    if not callable(fn):
        raise TypeError(f"fn must be callable, got {type(fn).__name__}")
    check_choice("probes", probes, ("auto", "all", "none"))
    check_positive("budget", budget)
    if step is not None and next(tensors_in(inputs[:1]), None) is None:
        raise TypeError("step needs a tensor, or a nesting of them, as the first input, the state to start from")
    name: str = target or getattr(fn, "__qualname__", None) or type(fn).__name__
    if relax is not None:
        check_positive("relax", relax)
    program = Program(fn, inputs, dict(kwargs or {}), loss, relax)
    wanted = list(_trained(wrt, program)) if wrt is not None else None
    ids = None if wanted is None else {id(t) for t in wanted}
    opened = [t for t in wanted or () if not t.requires_grad]
    verdicts = Verdicts()
    notes: list[str] = []
    try:
        optimizers = Optimizers(libraries)
        with optimizers:
            tracer = _run(program, opened, libraries, state)
        after = random_state()
        if wanted is None and not tracer.leaves and not tracer.events_seen:
            opened = [t for t in tensors_in((inputs, program.kwargs)) if t.is_floating_point() and t.is_leaf]
            tracer = _run(program, opened, libraries, state)
        if probes != "none":
            every = probes == "all"
            verdicts, notes = probe(program, tracer, ids, state, budget=budget, generator=generator, everything=every)
    finally:
        for tensor in opened:
            tensor.requires_grad_(False)
    if not tracer.leaves:
        notes.append("nothing differentiable was traced: no tensor that requires grad was used")
    report = analyse(
        tracer,
        target=name,
        wrt=ids,
        names=_names(program),
        ignore=tuple(ignore),
        verdicts=verdicts,
        notes=notes,
        optimizers=optimizers,
    )
    if probes != "none":
        report = with_remedies(report, Rerun(program, tracer, ids, _names(program), state, opened), budget)
        report = replace(report, findings=with_slopes(report.findings, program, tracer, ids, state, budget))
    if landscape:
        report = replace(report, landscape=_landscape(program, tracer, ids, state, budget, opened))
    if signal:
        named = {name: t for t, name in _named_leaves(program, tracer, ids)}
        layers = measure_layers(program, tracer, state, opened)
        noise = measure_noise(program, tracer, named, state, opened, budget)
        report = replace(report, layers=layers, noise=noise)
    if memory:
        report = replace(report, memory=measure_memory(program, tracer, state, opened))
    chaos = chaos_finding(step, inputs[0]) if step is not None else None
    set_random_state(after)
    return report if chaos is None else replace(report, findings=(chaos, *report.findings))


def _landscape(
    program: Program,
    tracer: Tracer,
    wrt: set[int] | None,
    state: tuple[Any, ...],
    budget: float,
    opened: list[Tensor],
) -> Landscape | None:
    with requiring_grad(opened):
        return measure_landscape(program, tracer, wrt, state, budget)


def _named_leaves(program: Program, tracer: Tracer, wrt: set[int] | None) -> Iterator[tuple[Tensor, str]]:
    """Yield the trained tensors that the run met, by name."""
    names = _names(program)
    for index, leaf in enumerate(tracer.leaves.values()):
        tensor = leaf.reference()
        if tensor is not None and (wrt is None or id(tensor) in wrt):
            yield tensor, names.get(id(tensor)) or leaf.name or f"trained tensor {index + 1} {list(leaf.shape)}"


def _run(program: Program, opened: list[Tensor], libraries: bool, state: tuple[Any, ...]) -> Tracer:
    """Trace one run from a random state, with some tensors made to require grad."""
    for tensor in opened:
        tensor.requires_grad_(True)
    set_random_state(state)
    tracer = Tracer(libraries=libraries)
    try:
        with tracer:
            program.trace(tracer)
    except RuntimeError as error:
        if not opened or program.copied or "leaf Variable that requires grad" not in str(error):
            raise
        program.copied = True  # the program writes into its inputs, which a leaf that requires grad does not allow
        return _run(program, opened, libraries, state)
    return tracer


def _names(program: Program) -> dict[int, str]:
    inputs = ((f"inputs[{i}]", value) for i, value in enumerate(program.inputs) if isinstance(value, Tensor))
    return names_of(program.modules(), inputs)


def _trained(wrt: Any, program: Program) -> Iterator[Tensor]:
    if isinstance(wrt, int) and not isinstance(wrt, bool):
        if not -len(program.inputs) <= wrt < len(program.inputs):
            raise ValueError(f"wrt must name one of {len(program.inputs)} inputs, got {wrt}")
        yield from _trained(program.inputs[wrt], program)
    elif isinstance(wrt, str):
        short, long = _names(program), program.names()
        found = [t for t in program.tensors() if wrt in (short.get(id(t)), long.get(id(t)))]
        if not found:
            raise ValueError(f"wrt must name a parameter, got {wrt!r}{nearest(wrt, short.values())}")
        yield from found
    elif isinstance(wrt, nn.Module):
        yield from wrt.parameters()
    elif isinstance(wrt, torch.optim.Optimizer):
        for group in wrt.param_groups:
            yield from group["params"]
    elif isinstance(wrt, Tensor):
        if not wrt.is_floating_point() or not wrt.is_leaf:
            raise TypeError(f"wrt must hold floating leaf tensors, got {wrt.dtype} (is_leaf={wrt.is_leaf})")
        yield wrt
    elif isinstance(wrt, Mapping):
        for value in wrt.values():
            yield from _trained(value, program)
    elif isinstance(wrt, Iterable):
        for value in wrt:
            yield from _trained(value, program)
    else:
        raise TypeError(f"wrt must be a tensor, module, optimizer or a nest of them, got {type(wrt).__name__}")

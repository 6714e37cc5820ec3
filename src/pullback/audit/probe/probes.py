"""Measurements that need more than one run: does the loss depend on what was cut, and by how much.

The program is replayed with the same random numbers, its inputs and buffers restored, while one thing is changed: a
value that left for Python, the side of a branch, or a trained tensor with the result of one operation frozen. For a
stop ``c`` the share of the derivative that it hides is, over random directions ``u`` and steps ``s``,

    share = rms_u [(L(p + s u) - L_c(p + s u)) - (L(p - s u) - L_c(p - s u))] / rms_u [L(p + s u) - L(p - s u)],

where ``L_c`` has the values of ``c`` frozen at ``p``. A stop that only selects between equal values (a hand-made
relu, a maximum) hides a share that tends to zero with ``s``; a step or a lost factor does not.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback.audit.judge.deliberate import HIDDEN_SHARE, kind_of
from pullback.audit.judge.verdicts import Verdicts, site_key
from pullback.audit.probe.bias import measure_bias
from pullback.audit.probe.boundary import comparison_margin, jumps_where_it_turns, number_margin
from pullback.audit.probe.custom import check_custom
from pullback.audit.probe.isolated import check_operation
from pullback.audit.probe.program import Program
from pullback.audit.probe.random import random_state, set_random_state
from pullback.audit.probe.replay import Change, Key, Laboratory, same
from pullback.audit.probe.steps import Steps
from pullback.audit.probe.threshold import crosses_a_jump, loss_depends
from pullback.audit.probe.trial import try_relaxed
from pullback.audit.trace import operations as ops
from pullback.audit.trace.decisions import decision_at
from pullback.audit.trace.graph import TraceGraph
from pullback.audit.trace.private import is_wrapped
from pullback.audit.trace.records import Exit, tensors_in
from pullback.audit.trace.sites import Site, in_branch_test, place
from pullback.audit.trace.tracer import Tracer

__all__ = ["check_customs", "check_operations", "probe"]

SCALES = (0.01, 0.05, 0.3)
"""Steps of the directions, relative to the root mean square of each trained tensor."""
DIRECTIONS = 6
MOST = 24
"""Sites probed one by one."""
MOST_NOTES = 4
FEW = 8
"""Elements of a comparison that are looked at one by one."""
MOST_VISITS = 8
"""Of one decision that are made to fall otherwise."""


def probe(
    program: Program,
    tracer: Tracer,
    wrt: set[int] | None,
    state: tuple[Any, ...],
    *,
    budget: float,
    generator: torch.Generator | None,
    everything: bool = False,
) -> tuple[Verdicts, list[str]]:
    """Decide by replays what the trace leaves open.

    Args:
        program: the function under audit.
        tracer: its trace.
        wrt: ids of the trained tensors, ``None`` for all.
        state: random state before the traced run.
        budget: seconds.
        generator: of the directions.
        everything: measure the bias of the gradient also where the trace raises no question.

    Returns:
        The verdicts, and notes on what could not be probed.
    """
    verdicts = Verdicts()
    graph = TraceGraph(tracer)
    trained = {i for i, leaf in tracer.leaves.items() if wrt is None or id(leaf.reference()) in wrt}
    verdicts.biased = check_customs(tracer, generator)
    verdicts.wrong = check_operations(tracer)
    exits, branches = _questions(graph, trained)
    stops = _open_stops(graph, trained)
    shut = _shut_stops(graph, trained, stops)
    if not (exits or branches or stops or shut or everything):
        return verdicts, []
    if tracer.impure:
        return verdicts, [
            "the program runs backward or changes its parameters itself: probes that replay it were not run"
        ]
    after = random_state()
    laboratory = Laboratory(program, tracer, state, budget)
    try:
        first, second = laboratory.loss(), laboratory.loss()
        if first is None:
            laboratory.give_up()
            return verdicts, _refused(laboratory)
        if second is None or not same(first, second):
            return verdicts, [
                "two runs with the same random numbers differ: probes that replay the program were not run"
            ]
        _probe_exits(laboratory, exits, first, verdicts)
        _probe_branches(laboratory, graph, branches, trained, first, verdicts)
        for key in shut:
            noise = torch.Generator().manual_seed(1) if generator is None else generator
            verdicts.matters[key] = loss_depends(laboratory, key, first, noise)
        _probe_stops(laboratory, graph, stops, trained, generator, first, verdicts)
        notes: list[str] = []
        tensors = _tensors(graph, trained)
        verdicts.bias = measure_bias(program, laboratory, tensors, torch.Generator().manual_seed(3))
        if _relaxable(graph, [*shut, *(key for key, gap in verdicts.gaps.items() if gap > HIDDEN_SHARE)]):
            noise = torch.Generator().manual_seed(2) if generator is None else generator
            verdicts.relaxed, note = try_relaxed(program, laboratory, tensors, noise)
            notes += [note] if note else []
    finally:
        set_random_state(after)
    late = ["the time budget of the probes was used up"] if laboratory.spent else []
    return verdicts, [*notes, *_refused(laboratory), *late]


def _refused(laboratory: Laboratory) -> list[str]:
    """Return a note for each way in which the program refused a changed value."""
    return [f"could not be probed here: {refusal}" for refusal in list(laboratory.refusals.values())[:MOST_NOTES]]


def check_customs(tracer: Tracer, generator: torch.Generator | None) -> list[tuple[Site, str, dict[str, float]]]:
    """Return the custom functions of a trace whose backward disagrees with their forward, with the numbers."""
    found = [check_custom(call, generator, tracer.notes) for call in tracer.custom_calls.values()]
    return [entry for entry in found if entry is not None]


def check_operations(tracer: Tracer) -> list[tuple[Site, str, dict[str, float]]]:
    """Return torch's operations whose own derivative disagrees with the slope of their values, with the numbers."""
    found = []
    refused: dict[str, str] = {}
    for call in tracer.operation_calls.values():
        if call is None:
            continue
        try:
            numbers = check_operation(call)
        except Exception as error:  # an operation for one dtype only, or one that needs what stands around it
            words = str(error).strip().splitlines()
            refused.setdefault(call.name, f"{type(error).__name__}: {words[0] if words else ''}")
            continue
        if numbers is not None:
            found.append((call.site, call.name, numbers))
    for name, reason in list(refused.items())[:MOST_NOTES]:
        tracer.notes.append(f"the derivative of {name} was not checked by itself, it raised {reason}")
    return found


def _questions(graph: TraceGraph, trained: set[int]) -> tuple[dict[Key, Exit], dict[Key, Exit]]:
    """Return the exits whose value may come back, and those that decide a branch."""
    exits: dict[Key, Exit] = {}
    branches: dict[Key, Exit] = {}
    for exit_ in graph.tracer.exits:
        key = site_key(exit_.site, exit_.op)
        if key in exits or key in branches:
            (branches if key in branches else exits)[key] = exit_  # the last visit is the one that is flipped
            continue
        if not graph.leaves(graph.upstream([exit_.source])) & trained:
            continue
        tested = exit_.op == "__bool__" or in_branch_test(
            place(exit_.site.code, exit_.site.instruction, exit_.site.line)
        )
        if tested and exit_.direct:
            branches[key] = exit_
        if exit_.op != "__bool__" and not exit_.linked:
            exits.setdefault(key, exit_)
    return dict(list(exits.items())[:MOST]), dict(list(branches.items())[:MOST])


def _open_stops(graph: TraceGraph, trained: set[int]) -> dict[Key, int]:
    """Return hard stops that flow into a loss, none of whose parameters is left without a gradient."""
    found: dict[Key, int] = {}
    for event in graph.events:
        for index in graph.nodes[event.node].origins if event.node is not None else ():
            origin = graph.tracer.origins[index]
            if kind_of(origin.code).said or kind_of(origin.code).drawn:
                continue
            leaves = graph.leaves(graph.upstream(origin.sources, live=True)) & trained
            if leaves and all(graph.tracer.leaves[i].norm for i in leaves):
                found.setdefault(site_key(origin.site, origin.op), index)
    return dict(list(found.items())[:MOST])


def _shut_stops(graph: TraceGraph, trained: set[int], opened: dict[Key, int]) -> list[Key]:
    """Return the stops that leave a trained tensor without a gradient: does the loss depend on them at all?"""
    found: list[Key] = []
    for event in graph.events:
        for index in sorted(graph.nodes[event.node].origins) if event.node is not None else ():
            origin = graph.tracer.origins[index]
            key = site_key(origin.site, origin.op)
            leaves = graph.leaves(graph.upstream(origin.sources, live=True)) & trained
            if key not in found and key not in opened and any(not graph.tracer.leaves[i].norm for i in leaves):
                found.append(key)
    return found[:MOST]


def _relaxable(graph: TraceGraph, keys: list[Key]) -> bool:
    """Whether one of the stops is of a kind that ``relaxed`` is recommended for."""
    wanted = set(keys)
    return any(
        kind_of(origin.code).relaxable and site_key(origin.site, origin.op) in wanted for origin in graph.tracer.origins
    )


def _probe_exits(laboratory: Laboratory, exits: dict[Key, Exit], base: float, verdicts: Verdicts) -> None:
    if not exits:
        return
    together = laboratory.loss({key: lambda out, visit: _perturbed(out, 1.0) for key in exits})
    counted = any(decision_at(place(k[0], k[1], e.site.line)).kind == "for" for k, e in exits.items())
    if not counted and together is not None and same(together, base):
        verdicts.exits = dict.fromkeys(exits, False)
        return
    for key in exits:
        if laboratory.spent:
            return
        for size in (1.0, 0.01):
            moved = [
                laboratory.loss({key: lambda out, visit, s=s: _perturbed(out, s)})  # type: ignore[misc]
                for s in (size, -size)
            ]
            taken = [m for m in moved if m is not None]
            if not taken and key[2] in ("__int__", "__index__"):  # the bounds of a window move together
                line = exits[key].site.line
                bounds = [k for k, e in exits.items() if k[0] is key[0] and e.site.line == line]
                moved = [laboratory.loss(_all_moved(bounds, sign)) for sign in (1.0, -1.0)]
                taken = [m for m in moved if m is not None]
                verdicts.exits[key] = not taken or any(not same(m, base) for m in taken)
                break
            verdicts.exits[key] = not taken or any(not same(m, base) for m in taken)  # what is checked is used
            if taken:
                break
        if decision_at(place(key[0], key[1], exits[key].site.line)).kind == "for" and not verdicts.exits[key]:
            more = [laboratory.loss({key: lambda out, visit, s=s: out + s}) for s in (1, -1)]  # type: ignore[misc]
            verdicts.exits[key] = any(m is not None and not same(m, base) for m in more)


def _all_moved(keys: list[Key], sign: float) -> dict[Key, Any]:
    return {key: lambda out, visit: _perturbed(out, sign) for key in keys}


def _perturbed(value: Any, sign: float) -> Any:
    """Return a Python or NumPy value moved a little; integers by one."""
    if isinstance(value, bool):
        return value
    if isinstance(value, float):
        return value + sign * (0.05 * abs(value) + 1e-3)
    if isinstance(value, int):
        return value + int(sign)
    if isinstance(value, np.ndarray):
        if value.dtype.kind == "f":
            return (value + sign * (0.05 * np.abs(value) + 1e-3)).astype(value.dtype)
        return np.roll(value, int(sign)) if value.size > 1 else value + np.asarray(int(sign), value.dtype)
    if isinstance(value, list):
        return [_perturbed(v, sign) for v in value]
    return value


def _probe_branches(
    laboratory: Laboratory,
    graph: TraceGraph,
    branches: dict[Key, Exit],
    trained: set[int],
    base: float,
    verdicts: Verdicts,
) -> None:
    """Let decisions fall otherwise, one visit at a time: the last where they end a loop, else some of all.

    A decision is none where the loss is the same on both sides of its threshold.
    """
    tolerance = 1e-3 * max(abs(base), 1e-12)
    for key, exit_ in branches.items():
        decision = decision_at(place(exit_.site.code, exit_.site.instruction, exit_.site.line))
        last = exit_.visit
        visits = {last} if decision.kind == "while" or decision.leaves else _some_visits(last)
        verdicts.branches[key] = False
        for visit in sorted(visits, reverse=True):
            if laboratory.spent:
                return
            for change in _otherwise(key[2], visit):
                moved = laboratory.loss({key: change})
                if moved is None or abs(moved - base) <= tolerance:
                    continue
                verdicts.branches[key] = (
                    _jumps(laboratory, graph, exit_, key, visit, change, trained, base) is not False
                )
                break
            if verdicts.branches[key]:
                break


def _jumps(
    laboratory: Laboratory,
    graph: TraceGraph,
    exit_: Exit,
    key: Key,
    visit: int,
    change: Change,
    trained: set[int],
    base: float,
) -> bool | None:
    """Whether the loss jumps at the threshold of a decision, ``None`` if it cannot be told."""
    steps = Steps(laboratory, _tensors(graph, trained), torch.Generator().manual_seed(4))
    if key[2] == "__bool__":
        node = graph.nodes[exit_.source]
        if node.op not in ops.ORDERS or node.site is None:
            return None
        margin = comparison_margin(laboratory, site_key(node.site, node.op), visit, 0)
    else:
        extreme = change(0.0, visit)
        found = number_margin(laboratory, key, visit, extreme, base)
        if found is None:
            return None
        margin = found
    return jumps_where_it_turns(laboratory, steps, margin, {key: change})


def _tensors(graph: TraceGraph, trained: set[int]) -> list[Tensor]:
    found = [graph.tracer.leaves[i].reference() for i in sorted(trained)]
    return [t for t in found if t is not None and not is_wrapped(t)]


def _some_visits(last: int) -> set[int]:
    """Return up to :data:`MOST_VISITS` numbers from 0 to ``last``, evenly spread."""
    count = min(last + 1, MOST_VISITS)
    return {round(i * last / max(count - 1, 1)) for i in range(count)}


def _otherwise(op: str, chosen: int) -> list[Change]:
    """Return changes that make one visit of a decision fall otherwise."""
    if op == "__bool__":
        return [lambda out, visit: (not out) if visit == chosen else out]
    return [lambda out, visit, s=s: type(out)(s) if visit == chosen else out for s in (1e9, -1e9)]  # type: ignore[misc]


def _probe_stops(
    laboratory: Laboratory,
    graph: TraceGraph,
    stops: dict[Key, int],
    trained: set[int],
    generator: torch.Generator | None,
    base: float,
    verdicts: Verdicts,
) -> None:
    if not stops:
        return
    generator = generator or torch.Generator().manual_seed(0)
    recorded: dict[Key, list[Any]] = {key: [] for key in stops}

    def record(key: Key) -> Change:
        def keep(out: Any, visit: int) -> Any:
            recorded[key].append(_clone(out))
            return out

        return keep

    laboratory.loss({key: record(key) for key in stops})
    tensors = [leaf.reference() for i, leaf in graph.tracer.leaves.items() if i in trained]
    tensors = [t for t in tensors if t is not None]
    frozen = {key: _freeze(recorded[key]) for key in stops}
    gaps: dict[Key, list[float]] = {key: [] for key in stops}
    steps = Steps(laboratory, tensors, generator)
    for scale in SCALES:
        kind = steps.kind(scale)
        if not kind:
            continue
        totals: list[float] = []
        together: list[float] = []  # all stops frozen at once: x - floor(x) is right although floor alone is not
        hidden: dict[Key, list[float]] = {key: [] for key in stops}
        for _ in range(DIRECTIONS):
            if laboratory.spent:
                return
            total = 0.0
            parts = dict.fromkeys(stops, 0.0)
            joint = 0.0
            with steps.step(kind, scale) as (move, _):
                for side, sign in zip(steps.sides(kind), (1.0, -1.0), strict=True):
                    move(side)
                    natural, all_held = laboratory.loss(), laboratory.loss(frozen)
                    joint += sign * ((natural or 0.0) - (all_held or 0.0))
                    for key in stops:
                        held = laboratory.loss({key: frozen[key]})
                        if natural is None or held is None:
                            return
                        parts[key] += sign * (natural - held)
                    total += sign * (natural or 0.0)
            totals.append(total)
            together.append(joint)
            for key in stops:
                hidden[key].append(parts[key])
        whole = math.sqrt(sum(t * t for t in totals)) + 1e-30
        if kind != "free" and whole <= 1e-5 * abs(base):
            continue  # steps that the program takes, along which nothing moves
        for key in stops:
            share = math.sqrt(sum(h * h for h in hidden[key])) / whole
            gaps[key].append(min(share, math.sqrt(sum(j * j for j in together)) / whole))
    verdicts.gaps = {key: min(values) for key, values in gaps.items() if values and all(map(math.isfinite, values))}
    for key, index in stops.items():
        if key[2] not in ops.COMPARISONS or key not in verdicts.gaps or laboratory.spent:
            continue
        jump = crosses_a_jump(laboratory, key)
        if jump is None and graph.nodes[graph.tracer.origins[index].node].size < FEW and key[2] in ops.ORDERS:
            jump = _any_jump(laboratory, steps, key, graph.nodes[graph.tracer.origins[index].node].size)
        if jump is False:
            verdicts.gaps[key] = 0.0
        elif jump and math.isfinite(gaps[key][-1]):
            verdicts.gaps[key] = max(gaps[key])  # no short step may have changed a side


def _any_jump(laboratory: Laboratory, steps: Steps, key: Key, size: int) -> bool | None:
    """Whether the loss jumps at the threshold of one of a few elements, ``None`` if none of them can be told."""
    found: list[bool] = []
    for element in range(size):

        def turned(out: Any, visit: int, element: int = element) -> Any:
            if visit or not isinstance(out, Tensor):
                return out
            changed = out.clone()
            changed.view(-1)[element] = ~changed.view(-1)[element]
            return changed

        jump = jumps_where_it_turns(laboratory, steps, comparison_margin(laboratory, key, 0, element), {key: turned})
        if jump:
            return True
        found += [] if jump is None else [jump]
    return False if found else None


def _clone(out: Any) -> Any:
    if isinstance(out, Tensor):
        return out.detach().clone()
    if isinstance(out, tuple):
        return [_clone(o) for o in out]
    return out


def _freeze(values: list[Any]) -> Change:
    """Return recorded values in place of computed ones, as far as the program still asks for the same shapes."""

    def replace(out: Any, visit: int) -> Any:
        if visit >= len(values):
            return out
        held = values[visit]
        if isinstance(out, Tensor):
            return held.clone() if isinstance(held, Tensor) and held.shape == out.shape else out
        if isinstance(out, tuple):
            parts = [
                o if o.requires_grad or not isinstance(h, Tensor) or h.shape != o.shape else h.clone()
                for o, h in zip(tensors_in(out), held, strict=False)
            ]
            return type(out)(parts) if hasattr(out, "_fields") or type(out) is not tuple else tuple(parts)
        return held

    return replace

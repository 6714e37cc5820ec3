"""What the lines of a program keep for the backward pass."""

from __future__ import annotations

import linecache
import math
from typing import Any

from torch import Tensor

from pullback.audit.probe.program import Program, requiring_grad
from pullback.audit.probe.replay import Laboratory, Refusal
from pullback.audit.report.findings import SavedRecord
from pullback.audit.trace.records import tensors_in
from pullback.audit.trace.sites import is_user_file
from pullback.audit.trace.tracer import Tracer
from pullback.gradients import saved_bytes

__all__ = ["measure_memory"]


def measure_memory(
    program: Program, tracer: Tracer, state: tuple[Any, ...], opened: list[Tensor]
) -> tuple[SavedRecord, ...]:
    """Replay the program once and return the lines that keep something, those that keep most first.

    Args:
        program: the function under audit.
        tracer: its trace.
        state: random state before the traced run.
        opened: tensors that require grad for the audit alone.

    Returns:
        Nothing where the program changes its parameters itself, or does not run twice.
    """
    if tracer.impure:
        return ()
    there = (*program.tensors(), *tensors_in((program.inputs, program.kwargs)))
    laboratory = Laboratory(program, tracer, state, math.inf)
    try:
        with requiring_grad(opened):
            found = laboratory.attempt(lambda: saved_bytes(program.value, exclude=there))
    except Refusal:
        return ()
    kept = [(place.rpartition(":"), size) for place, size in found.by_line.items()]
    records = (
        SavedRecord(file, int(line), linecache.getline(file, int(line)).rstrip("\n"), size)
        for (file, _, line), size in kept
        if is_user_file(file)
    )
    return tuple(sorted(records, key=lambda record: (-record.bytes, record.file, record.line)))

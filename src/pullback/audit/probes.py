"""Measurements that need more than one run: does the loss depend on what was cut, and by how much."""

from __future__ import annotations

from pullback.audit.analysis import Verdicts
from pullback.audit.program import Program

__all__ = ["Program", "probe"]


def probe(program, tracer, wrt, state, *, budget, generator, step):
    return Verdicts(), []

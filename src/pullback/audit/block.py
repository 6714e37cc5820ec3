"""The audit of whatever runs inside a ``with`` block: a test, a cell of a notebook."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Self

from pullback.audit.judge.analysis import analyse
from pullback.audit.judge.verdicts import Verdicts
from pullback.audit.probe.probes import check_customs, check_operations
from pullback.audit.report.report import Report
from pullback.audit.script import eager
from pullback.audit.trace.optimizers import Optimizers
from pullback.audit.trace.tracer import Tracer

__all__ = ["AuditedBlock"]


class AuditedBlock:
    """Record the block's operations and backward passes; judge them when it ends.

    Nothing is run twice, so what only a second run could decide is left open. Trained are the tensors of the optimizers
    that take a step in the block; if none does, every leaf that requires grad.

    Args:
        target: what the report calls it.
        ignore: places not to report, as ``"model.py:12"`` or ``"model.py"``.
        libraries: blame lines inside installed libraries instead of those that call them.

    Attributes:
        report: the :class:`~pullback.audit.Report`, once the block has ended without an error of its own.

    Example:
        >>> import torch
        >>> scores = torch.zeros(3, requires_grad=True)
        >>> with AuditedBlock("choice") as block:
        ...     torch.arange(3.0).mul(scores).sum().backward()
        >>> block.report
        <Report of choice: no findings, 1 backward pass>
    """

    report: Report

    def __init__(self, target: str, *, ignore: Iterable[str] = (), libraries: bool = False) -> None:
        self._target = target
        self._ignore = tuple(ignore)
        self._tracer = Tracer(libraries=libraries)
        self._optimizers = Optimizers(libraries, lambda: self._tracer.sampling.passes)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for part in (eager(), self._optimizers, self._tracer):
            self._open.enter_context(part)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        self._open.close()
        if kind is None:
            self.report = analyse(
                self._tracer,
                target=self._target,
                wrt={id(parameter) for parameter in self._optimizers.held()} or None,
                ignore=self._ignore,
                verdicts=Verdicts(biased=check_customs(self._tracer, None), wrong=check_operations(self._tracer)),
                optimizers=self._optimizers,
            )

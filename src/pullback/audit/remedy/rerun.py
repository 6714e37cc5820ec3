"""Trials of a function under audit: it runs again in this process, from the same random state, on the same inputs."""

from __future__ import annotations

import contextlib
import io
import linecache
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from pullback.audit.judge.analysis import analyse
from pullback.audit.probe.program import Program, requiring_grad
from pullback.audit.probe.random import random_state, set_random_state
from pullback.audit.remedy.losses import first_losses
from pullback.audit.remedy.search import Candidate, Outcome
from pullback.audit.remedy.swap import LivingFunctions, swapped
from pullback.audit.trace.optimizers import Optimizers
from pullback.audit.trace.private import is_wrapped
from pullback.audit.trace.sites import is_user_file
from pullback.audit.trace.tracer import Tracer

__all__ = ["Rerun"]


class Rerun:
    """Runs a program again, as it is or with a file changed.

    Args:
        program: the function under audit.
        tracer: the trace of its first run.
        wrt: ids of the trained tensors, ``None`` for all.
        names: of tensors, by id.
        state: the random state that it began with.
        opened: tensors that require grad for the audit only.
    """

    def __init__(
        self,
        program: Program,
        tracer: Tracer,
        wrt: set[int] | None,
        names: Mapping[int, str],
        state: tuple[Any, ...],
        opened: list[Tensor],
    ) -> None:
        self.program = program
        self.libraries = tracer.libraries
        self.wrt = wrt
        self.names = names
        self.state = state
        self.opened = opened
        self._living: LivingFunctions | None = None
        written = [reference() for reference in tracer.mutated.values()]
        trained = [leaf.reference() for leaf in tracer.leaves.values()]
        self.kept = [t for t in [*written, *trained] if t is not None and not is_wrapped(t)]

    def text(self, file: str) -> str | None:
        """Return the text of a file of the user's."""
        return "".join(linecache.getlines(file)) or None if is_user_file(file) else None

    def run(self, candidate: Candidate | None) -> Outcome | None:
        """Run and judge."""
        if candidate is None:
            return self._run("")
        if candidate.wrapped and self.program.relax is not None:
            return None  # it is relaxed already
        if self._living is None:
            self._living = LivingFunctions()
        with swapped(candidate, self._living) as name:
            return None if name is None else self._run(name)

    def _run(self, name: str) -> Outcome | None:
        after = random_state()
        set_random_state(self.state)
        tracer = Tracer(libraries=self.libraries)
        optimizers = Optimizers(self.libraries, lambda: tracer.sampling.passes)
        try:
            with (
                requiring_grad(self.opened),
                self._put_back(),
                _quiet(),
                _values(self.program) as losses,
                optimizers,
                tracer,
            ):
                self.program.trace(tracer)
            report = analyse(tracer, target="trial", wrt=self.wrt, names=self.names, optimizers=optimizers)
        except Exception:
            return None  # a rewriting that does not run is no remedy
        finally:
            set_random_state(after)
        return Outcome(report, losses[0] if losses else None, name)

    @contextlib.contextmanager
    def _put_back(self) -> Iterator[None]:
        """Restore the values and gradients of what the program writes into."""
        saved = [(t, t.detach().clone(), None if t.grad is None else t.grad.clone()) for t in self.kept]
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value, gradient in saved:
                    tensor.copy_(value)
                    tensor.grad = gradient


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _values(program: Program) -> Iterator[list[float]]:
    """Collect what the program returns to be differentiated, and what it calls ``backward`` on itself."""
    with first_losses() as losses:

        def value() -> Tensor | None:
            found = type(program).value(program)
            if isinstance(found, Tensor):
                losses.append(float(found.detach().double().sum()))
            return found

        program.value = value  # type: ignore[method-assign]
        try:
            yield losses
        finally:
            del program.value

"""Whether an iterated step is chaotic, and the finding if it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from pullback.audit.report.findings import Finding
from pullback.audit.report.messages import explain
from pullback.gradients import LyapunovSpectrum, lyapunov_spectrum

__all__ = ["chaos_finding", "lyapunov"]


def lyapunov(step: Callable[[Any], Any], state: Any, *, steps: int = 200, **options: Any) -> LyapunovSpectrum:
    """Return the largest Lyapunov exponent of ``state -> step(state)``; more of them with ``count``.

    Args:
        step: a differentiable map that keeps structure, shapes and dtype.
        state: where the trajectory starts: a tensor, or a nesting of tuples, lists and dicts of them.
        steps: its length.
        **options: of :func:`pullback.gradients.lyapunov_spectrum` (``count``, ``every``, ``dt``, ``burn_in``,
            ``batch_ndim``, ``inputs``).

    Example:
        >>> import torch
        >>> x = torch.tensor([0.3], dtype=torch.float64)
        >>> bool(lyapunov(lambda x: 4 * x * (1 - x), x, steps=2000).exponents[0] > 0.6)  # log 2 = 0.693
        True
    """
    return lyapunov_spectrum(step, state, steps=steps, **{"count": 1, **options})


def chaos_finding(step: Callable[[Any], Any], state: Any, *, steps: int = 200) -> Finding | None:
    """Return a ``chaotic.step`` finding at the definition of ``step`` if its exponent is positive beyond two errors."""
    spectrum = lyapunov(step, state, steps=steps)
    exponent, error = float(spectrum.exponents[0]), float(spectrum.errors[0])
    if exponent <= max(2 * error, 1e-3):
        return None
    code = getattr(step, "__code__", None) or getattr(getattr(step, "forward", None), "__code__", None)
    file, line = (code.co_filename, code.co_firstlineno) if code is not None else ("<unknown>", 0)
    try:
        source = inspect.getsourcelines(code)[0][0].rstrip() if code is not None else ""
    except OSError:  # defined where there is no file, as at a prompt
        source = ""
    evidence = {"exponent": exponent, "standard error": error, "steps": steps, "converged": spectrum.converged}
    return Finding(
        code="chaotic.step",
        kind="chaotic",
        severity="error",
        file=file,
        line=line,
        column=0,
        end_column=0,
        source=source,
        operation=getattr(step, "__name__", type(step).__name__),
        message=explain("chaotic.step", exponent=f"{exponent:.3f}"),
        evidence=evidence,
    )

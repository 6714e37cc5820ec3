"""Whether an iterated step is chaotic, and the finding if it is."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pullback.audit.report.findings import Finding
from pullback.audit.report.messages import explain
from pullback.gradients import GradientHorizon, LyapunovSpectrum, gradient_horizon, lyapunov_spectrum

__all__ = ["chaos_finding", "lyapunov"]

SMOOTHING = 1e-3
"""Of the perturbed states, relative to the root mean square of the state."""
HORIZONS = 20
SAMPLES = 32


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
    evidence: dict[str, Any] = {"exponent": exponent, "standard error": error, "steps": steps}
    evidence["converged"] = spectrum.converged
    try:
        found = _horizon(step, state, exponent, steps)
    except (RuntimeError, ValueError) as refused:  # as of a perturbed state outside of the domain
        evidence["horizon not measured"] = str(refused).strip().split("\n")[0]
    else:
        evidence |= {"horizon": found.crossing, "smoothing": SMOOTHING, "advice": found.advice}
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


def _horizon(step: Callable[[Any], Any], state: Any, exponent: float, longest: int) -> GradientHorizon:
    """Compare gradients of a fixed projection of later states in the initial one, by derivatives and by values.

    A perturbation grows to the size of the state after about ``-log(SMOOTHING) / exponent`` steps: twice that is run.
    """
    leaves, structure = pytree.tree_flatten(state)
    parameters = {str(i): leaf.detach() for i, leaf in enumerate(leaves)}
    count = sum(p.numel() for p in parameters.values())
    size = math.sqrt(sum(float(p.double().square().sum()) for p in parameters.values()) / count) or 1.0
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p) for p in parameters.values()]

    def start(p: dict[str, Tensor]) -> Any:
        return pytree.tree_unflatten(list(p.values()), structure)

    def projection(reached: Any) -> Tensor:
        pairs = zip(pytree.tree_leaves(reached), weights, strict=True)
        return torch.stack([(leaf * weight).sum() for leaf, weight in pairs]).sum()

    every = math.ceil(min(-2 * math.log(SMOOTHING) / exponent, longest) / HORIZONS)
    return gradient_horizon(
        lambda s, p: step(s),
        projection,
        start,
        parameters,
        max_steps=HORIZONS * every,
        every=every,
        smoothing=SMOOTHING * size,
        samples=SAMPLES,
        trajectories=2,
        generator=generator,
    )

r"""``sdeint``: stochastic differential equations dy = f(t, y) dt + g(t, y) dW along a Brownian path.

All methods are written with the increment :math:`I(t, y) = f(t, y)\,h + g(t, y)\,\Delta W` of a step.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.checkpoint import checkpoint

from pullback.core.checks import check_callable, check_choice, check_floating, check_scalar
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Float, Tensor
from pullback.core.transforms import can_look, transform_running
from pullback.dynamics.brownian import BrownianPath
from pullback.dynamics.sde_adjoints import backsolved, reversed_exactly
from pullback.dynamics.sde_steps import SDE_METHODS, Equation, Grid, heun_pair, step_along

__all__ = ["SDESolution", "sdeint"]

_ADJOINTS = ("checkpoint", "unrolled", "reversible", "backsolve")


class SDESolution(NamedTuple):
    """What :func:`sdeint` returns.

    Attributes:
        y: ``[times, *batch, d]``, ``y[0]`` is ``y0``.
        t: ``[times]``.
        brownian: the path that drove it.
    """

    y: Float[Tensor, "times *batch d"]
    t: Float[Tensor, "times"]
    brownian: BrownianPath


def sdeint(
    drift: Callable[[Tensor, Tensor], Tensor],
    diffusion: Callable[[Tensor, Tensor], Tensor],
    y0: Float[Tensor, "*batch d"],
    t: Tensor | Sequence[float],
    *,
    step: float,
    method: str = "euler",
    noise: str = "diagonal",
    sense: str | None = None,
    adjoint: str = "checkpoint",
    brownian: BrownianPath | None = None,
    params: Sequence[Tensor] = (),
    generator: torch.Generator | None = None,
) -> SDESolution:
    r"""Solve dy = drift(t, y) dt + diffusion(t, y) dW, y(t[0]) = y0, and return y at every ``t``.

    ================== =============== ============================================== ========================
    method             equations       strong order                                   noise
    ================== =============== ============================================== ========================
    ``euler``          Ito             1/2 (1 where g is constant)                    any
    ``milstein``       Ito or          1                                              ``diagonal``, ``scalar``
                       Stratonovich
    ``heun``,          Stratonovich    1 for commuting noise, else 1/2                any
    ``midpoint``
    ``reversible_heun`` Stratonovich   1/2 (1 where g is constant)                    any
    ``srk``            Ito             3/2                                            all but ``general``
    ================== =============== ============================================== ========================

    Args:
        drift: ``f(t, y)`` of ``t`` ``[*batch, 1]`` and ``y`` ``[*batch, d]``; returns ``[*batch, d]``.
        diffusion: ``g(t, y)``; its shape says how it meets the noise: see ``noise``.
        y0: ``[*batch, d]``; float16 and bfloat16 are solved in float32.
        t: ``[times]`` ascending. They have no gradient.
        step: steps of at most this length, > 0, equal between two times.
        method: see the table.
        noise: ``"diagonal"``: g ``[*batch, d]``, component i depends on y_i and meets a motion of its own.
            ``"scalar"``: g ``[*batch, d]``, all components of a sample meet the same motion. ``"general"``: g
            ``[*batch, d, m]`` and m motions. ``"additive"``: the same, where g does not depend on y.
        sense: ``"ito"`` or ``"stratonovich"``: what the equation means; ``None``: what the method solves (Ito where it
            solves both). They differ where g depends on y.
        adjoint: gradients of the discrete solution: ``"checkpoint"`` (memory of 2 sqrt(n) states of n steps),
            ``"unrolled"`` (keeps everything), ``"reversible"`` (only ``reversible_heun``: the solution is retraced,
            memory of one step); of the continuous one: ``"backsolve"`` (Stratonovich methods: state and adjoint are
            solved back along the same path; memory of the outputs).
        brownian: the path, of the shape of the noise and from ``t[0]`` to ``t[-1]`` at least; ``None`` draws one.
            ``srk`` asks for its areas too: solves with other steps follow the same ones where all of these end at its
            knots.
        params: tensors with a gradient that ``reversible`` and ``backsolve`` cannot find (they look into modules,
            closures and the first evaluation).
        generator: draws the path.

    Returns:
        :class:`SDESolution`. Called again with its ``brownian`` and another step, it follows the same path.

    Raises:
        TypeError: y0 is no floating tensor; drift or diffusion is no function.
        ValueError: an argument out of range; a method that does not solve this equation; a wrong shape.
        ConvergenceError: the solution became NaN or infinite; ``result`` holds what there is.

    Example:
        >>> y0 = torch.ones(3, 1)
        >>> generator = torch.Generator().manual_seed(0)
        >>> solution = sdeint(lambda t, y: -y, lambda t, y: 0.1 + 0 * y, y0, [0.0, 1.0], step=0.1, generator=generator)
        >>> solution.y.shape
        torch.Size([2, 3, 1])

    References:
        Kloeden, Platen (1992), Numerical solution of stochastic differential equations, 10.2, 10.3, 11.1; Li, Wong,
        Chen, Duvenaud (2020), Scalable gradients for stochastic differential equations, arXiv 2001.01328; Kidger,
        Foster, Li, Lyons (2021), Efficient and accurate gradients for neural SDEs, arXiv 2105.13493, algorithms 1, 2;
        Roessler (2010), Runge-Kutta methods for the strong approximation of solutions of stochastic differential
        equations, section 6.
    """
    check_callable("drift", drift)
    check_callable("diffusion", diffusion)
    if check_floating("y0", y0).ndim < 1 or not y0.shape[-1]:
        raise ValueError(f"y0 must have shape [*batch, d] with d >= 1, got {tuple(y0.shape)}")
    check_choice("method", method, SDE_METHODS)
    check_choice("noise", noise, ("diagonal", "scalar", "general", "additive"))
    check_choice("adjoint", adjoint, _ADJOINTS)
    chosen = _check_sense(method, noise, sense, adjoint)
    times = _times(t)
    grid = Grid.of(times, _step(step))
    wide = y0.float() if y0.dtype in (torch.float16, torch.bfloat16) else y0
    equation = Equation(drift, diffusion, noise, chosen == "ito", y0.dtype)
    motions = equation.check(grid.times[0], wide)
    path = _path(brownian, motions, grid, wide, generator)
    if transform_running() or adjoint in ("checkpoint", "unrolled"):
        whole = adjoint == "unrolled" or transform_running() or not torch.is_grad_enabled()
        states = _solve(equation, method, wide, grid, path, None if whole else math.isqrt(max(1, len(grid.steps))))
    else:
        solve = reversed_exactly if adjoint == "reversible" else backsolved
        states = solve(equation, method, wide, grid, path, list(params))
    solution = SDESolution(states.to(y0.dtype), torch.as_tensor(times, dtype=y0.dtype, device=y0.device), path)
    if can_look(states) and not bool(torch.isfinite(states[-1]).all()):
        bad = ~torch.isfinite(states.detach()).flatten(1).all(1)
        raise ConvergenceError(
            f"sdeint(method={method!r}): the solution became NaN or infinite by t={times[int(bad.nonzero()[0])]}; "
            "take a smaller step",
            solution,
        )
    return solution


def _solve(equation: Equation, method: str, y: Tensor, grid: Grid, path: BrownianPath, stretch: int | None) -> Tensor:
    """States at the times; ``stretch`` steps at a time are kept and done again, all of them where it is ``None``."""
    states, extra = [y], heun_pair(y) if method == "reversible_heun" else None

    def along(steps: Any, y: Tensor, extra: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for one in steps:
            y, extra = step_along(equation, method, one, path, y, extra)
        return y, extra

    for steps in grid.intervals():
        length = stretch or len(steps)
        for first in range(0, len(steps), length):
            piece = steps[first : first + length]
            if stretch is None:
                y, extra = along(piece, y, extra)
            else:
                y, extra = checkpoint(along, piece, y, extra, use_reentrant=False, preserve_rng_state=False)
        states.append(y)
    return torch.stack(states)


def _check_sense(method: str, noise: str, sense: str | None, adjoint: str) -> str:
    able = SDE_METHODS[method]
    if sense is not None:
        check_choice("sense", sense, ("ito", "stratonovich"))
    if sense is not None and sense not in able:
        others = ", ".join(repr(name) for name, senses in SDE_METHODS.items() if sense in senses)
        raise ValueError(f"method must be one of {others} for sense={sense!r}, got {method!r}")
    if method == "srk" and noise == "general":
        raise ValueError("noise must be 'diagonal', 'scalar' or 'additive' for method='srk', got 'general'")
    if method == "milstein" and noise in ("general", "additive"):
        raise ValueError(f"noise must be 'diagonal' or 'scalar' for method='milstein', got {noise!r}")
    if adjoint == "reversible" and method != "reversible_heun":
        raise ValueError(f"method must be 'reversible_heun' for adjoint='reversible', got {method!r}")
    if adjoint == "backsolve" and (sense == "ito" or able == ("ito",)):
        raise ValueError(f"adjoint='backsolve' solves a Stratonovich equation back, got method={method!r} and Ito's")
    if sense is None and adjoint == "backsolve":
        return "stratonovich"
    return sense or able[0]


def _step(step: Any) -> float:
    number = check_scalar("step", step)
    if number is None or (isinstance(step, Tensor) and step.requires_grad):
        raise ValueError("step must be one number without a gradient")
    return number


def _times(t: Any) -> list[float]:
    if isinstance(t, Tensor):
        if t.ndim != 1 or t.is_complex():
            raise ValueError(f"t must hold real times, [times], got {t.dtype} {tuple(t.shape)}")
        if t.requires_grad:
            raise ValueError("t has no gradient: it must not require one")
        t = t.tolist()
    if not isinstance(t, Sequence) or isinstance(t, str):
        raise TypeError(f"t must be a tensor or a sequence of numbers, got {type(t).__name__}")
    for value in t:
        if isinstance(value, bool | str) or not isinstance(value, int | float | Tensor):
            raise TypeError(f"t must hold numbers, got {type(value).__name__}")
    times = [float(value) for value in t]
    if len(times) < 2 or not all(a < b for a, b in itertools.pairwise(times)) or not all(map(math.isfinite, times)):
        raise ValueError(f"t must hold two or more finite, ascending times, got {times[:5]}")
    return times


def _path(
    brownian: BrownianPath | None, shape: torch.Size, grid: Grid, y0: Tensor, generator: torch.Generator | None
) -> BrownianPath:
    if brownian is None:
        return BrownianPath(shape, grid.points(), generator=generator, dtype=y0.dtype, device=y0.device)
    if not isinstance(brownian, BrownianPath):
        raise TypeError(f"brownian must be a BrownianPath, got {type(brownian).__name__}")
    if brownian.shape != shape:
        raise ValueError(f"brownian must have the shape of the noise, {tuple(shape)}, got {tuple(brownian.shape)}")
    if brownian.knots[0] > grid.times[0] or brownian.knots[-1] < grid.times[-1]:
        raise ValueError(
            f"brownian must reach from {grid.times[0]} to {grid.times[-1]}, got {brownian.knots[0]} to "
            f"{brownian.knots[-1]}"
        )
    return brownian

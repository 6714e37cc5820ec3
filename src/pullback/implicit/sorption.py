"""Diffusion through a medium that sorbs what diffuses: the retardation factor and an implicit finite-volume solver."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from pullback.core.checks import check_finite, check_floating, check_integer, check_same_dtype, check_scalar
from pullback.core.errors import ConvergenceError
from pullback.core.shapes import Float, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.implicit.tridiagonal import tridiagonal_solve

__all__ = ["retardation_factor", "solve_diffusion_sorption", "total_concentration"]

THRESHOLD = 1e-6
"""Freundlich's isotherm, whose slope at 0 is infinite, counts from this concentration and goes on as a line below 0."""
_GAMMA = 1 - math.sqrt(0.5)
_NEWTON = 50


class _Medium(NamedTuple):
    """What sorbs: ``factor`` is the sorbed amount at concentration 1."""

    factor: Scalar
    exponent: Scalar

    def retardation(self, u: Tensor) -> Tensor:
        shifted = u.clamp(min=0) + THRESHOLD
        return 1 + self.factor * self.exponent * shifted ** (self.exponent - 1)

    def content(self, u: Tensor) -> Tensor:
        """Return what a unit of volume holds, dissolved and sorbed: the integral of the retardation factor."""
        shifted, low = u.clamp(min=0) + THRESHOLD, THRESHOLD**self.exponent
        slope = self.exponent * THRESHOLD ** (self.exponent - 1)
        return u + self.factor * (shifted**self.exponent - low + slope * u.clamp(max=0))


def retardation_factor(
    u: Float[Tensor, "*shape"],
    *,
    porosity: Scalar = 0.29,
    density: Scalar = 2880.0,
    coefficient: Scalar = 3.5e-4,
    exponent: Scalar = 0.874,
) -> Float[Tensor, "*shape"]:
    r"""Return by how much sorption by Freundlich's isotherm slows diffusion.

    .. math:: R(u) = 1 + \frac{1 - \phi}{\phi}\, \rho_s\, k\, n_f\, (\max(u, 0) + 10^{-6})^{n_f - 1}

    The isotherm has an infinite slope at 0: it is shifted by the threshold :math:`10^{-6}`, and goes on as a straight
    line below 0, where solvers pass through.

    Args:
        u: ``[*shape]`` concentration dissolved in the pores, of any size.
        porosity: ``phi`` in (0, 1], the share of the pores.
        density: ``rho_s`` > 0, of the grains, kg/m^3.
        coefficient: ``k`` > 0, Freundlich's.
        exponent: ``n_f`` in (0, 1], Freundlich's.

    Returns:
        ``[*shape]`` > 1.

    Raises:
        TypeError: ``u`` is no floating tensor, or a parameter no number.
        ValueError: a parameter is out of range.

    Example:
        >>> retardation_factor(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([13.2979, 13.2979,  3.1569])

    References:
        Limousin et al. (2007), Sorption isotherms: a review; Takamoto et al. (2022), PDEBench, appendix D.4.
    """
    check_floating("u", u)
    return _medium(porosity, density, coefficient, exponent).retardation(u)


def total_concentration(
    u: Float[Tensor, "*shape"],
    *,
    porosity: Scalar = 0.29,
    density: Scalar = 2880.0,
    coefficient: Scalar = 3.5e-4,
    exponent: Scalar = 0.874,
) -> Float[Tensor, "*shape"]:
    r"""Return what a volume of the pores holds, dissolved in them and sorbed beside them.

    .. math:: c(u) = \int_0^u R = u + \frac{1 - \phi}{\phi}\, \rho_s\, k\, \big((u + 10^{-6})^{n_f} - 10^{-6 n_f}\big)
        \quad (u \ge 0)

    with :func:`retardation_factor` ``R``, and a straight line below 0. Diffusion conserves it.

    Args:
        u: ``[*shape]`` concentration dissolved in the pores, of any size.
        porosity: see :func:`retardation_factor`.
        density: likewise.
        coefficient: likewise.
        exponent: likewise.

    Returns:
        ``[*shape]``, of the sign of ``u``.

    Raises:
        TypeError: ``u`` is no floating tensor, or a parameter no number.
        ValueError: a parameter is out of range.

    Example:
        >>> total_concentration(torch.tensor([0.0, 0.1, 1.0]))
        tensor([0.0000, 0.4298, 3.4678])

    References:
        Limousin et al. (2007), Sorption isotherms: a review.
    """
    check_floating("u", u)
    return _medium(porosity, density, coefficient, exponent).content(u)


def solve_diffusion_sorption(
    u0: Float[Tensor, "*batch n"],
    times: Float[Tensor, "t"],
    *,
    inflow: Scalar = 1.0,
    diffusion: Scalar = 5e-4,
    porosity: Scalar = 0.29,
    density: Scalar = 2880.0,
    coefficient: Scalar = 3.5e-4,
    exponent: Scalar = 0.874,
    substeps: int = 4,
) -> Float[Tensor, "*batch t n"]:
    r"""Solve diffusion with sorption on the line from 0 to 1, from one concentration held at the left end.

    .. math:: \partial_t c(u) = D\, \partial_{xx} u, \qquad c'(u) = R(u), \qquad
        u(0, t) = u_{in}, \quad u(1, t) = -D\, \partial_x u(1, t)

    with :func:`retardation_factor` ``R``: the same as :math:`\partial_t u = D / R(u)\, \partial_{xx} u`, written so
    that the amount is conserved. In space, finite volumes around equidistant nodes, the last one half as wide; in time,
    the L-stable diagonally implicit method of order 2 of Alexander, whose stages are solved by Newton's method on
    tridiagonal systems. The sign at the right end lets the amount out: with the other one, which is also found in
    print, a layer of the width ``D`` there grows without bounds as the grid resolves it.

    Args:
        u0: ``[*batch, n]`` concentration at the nodes ``linspace(0, 1, n)`` at the first time, ``n >= 3``, >= 0.
        times: ``[t]`` increasing; where the solution is wanted, the first is that of ``u0``.
        inflow: > 0, concentration at the left end behind the first time.
        diffusion: ``D`` > 0.
        porosity: see :func:`retardation_factor`.
        density: likewise.
        coefficient: likewise.
        exponent: likewise.
        substeps: >= 1, steps between two times.

    Returns:
        ``[*batch, t, n]``, the first time is ``u0`` itself; differentiable in ``u0`` and the parameters.

    Raises:
        TypeError: ``u0`` or ``times`` is no floating tensor, their dtypes differ, or a parameter is no number.
        ValueError: fewer than three nodes or one time, times that do not increase, a concentration that is negative
            or not finite, a parameter out of range.
        ConvergenceError: Newton's method does not converge.

    Example:
        >>> u = solve_diffusion_sorption(torch.full((21,), 0.1), torch.tensor([0.0, 250.0, 500.0]))
        >>> u[:, 10]
        tensor([0.1000, 0.1456, 0.2461])

    References:
        Alexander (1977), Diagonally implicit Runge-Kutta methods for stiff ODEs; Takamoto et al. (2022), PDEBench.
    """
    check_floating("u0", u0)
    check_floating("times", times)
    check_same_dtype(u0=u0, times=times)
    if u0.ndim == 0 or u0.shape[-1] < 3:
        raise ValueError(f"u0 must have at least 3 nodes, got shape {tuple(u0.shape)}")
    if times.ndim != 1 or len(times) < 1:
        raise ValueError(f"times must have shape (t,) with t >= 1, got {tuple(times.shape)}")
    if can_look(times):
        check_finite("times", times)
        if bool((times.diff() <= 0).any()):
            raise ValueError("times must increase")
    if can_look(u0):
        check_finite("u0", u0)
        if bool((u0 < 0).any()):
            raise ValueError("u0 must be >= 0 everywhere")
    check_integer("substeps", substeps, 1)
    check_scalar("inflow", inflow)
    check_scalar("diffusion", diffusion)
    medium = _medium(porosity, density, coefficient, exponent)
    n = u0.shape[-1]
    rate = diffusion * (n - 1.0) ** 2
    beside = torch.ones(n - 1, dtype=u0.dtype, device=u0.device)
    end = torch.zeros_like(beside)
    end[-1] = 1
    # the last volume is half as wide and loses u through its outer face
    lower, upper = rate * (beside + end)[1:], rate * beside[1:]
    diagonal = -2 * rate * beside - 2 * (n - 1) * end

    def change(v: Tensor) -> Tensor:
        left = torch.cat([(inflow + 0 * v[..., :1]), v[..., :-1]], -1)
        right = torch.cat([v[..., 1:], torch.zeros_like(v[..., :1])], -1)
        return rate * (left * (1 + end) + right * (1 - end)) + diagonal * v

    def stage(known: Tensor, start: Tensor, step: Tensor) -> Tensor:
        """Solve ``c(v) - step change(v) = known``."""

        def newton(v: Tensor) -> Tensor:
            defect = medium.content(v) - known - step * change(v)
            return v - tridiagonal_solve(-step * lower, medium.retardation(v) - step * diagonal, -step * upper, defect)

        v = start.detach()
        for _ in range(_NEWTON):
            v, last = newton(v).detach(), v
            moved = (v - last).abs() > 1e3 * torch.finfo(v.dtype).eps * v.abs().amax(-1, keepdim=True)
            if can_look(moved) and not bool(moved.any()):
                break
        else:
            if can_look(v):
                raise ConvergenceError("solve_diffusion_sorption: Newton's method moves by more than rounding", v)
        return newton(newton(v))  # from the solution, two steps have its first and second derivatives

    states, v = [u0], u0[..., 1:]
    for length in times.diff():
        step = length / substeps
        for _ in range(substeps):
            content = medium.content(v)
            middle = stage(content, v, _GAMMA * step)
            v = stage(content + (1 - _GAMMA) * step * change(middle), middle, _GAMMA * step)
        states.append(torch.cat([inflow + 0 * v[..., :1], v], -1))
    return torch.stack(states, -2)


def _medium(porosity: Scalar, density: Scalar, coefficient: Scalar, exponent: Scalar) -> _Medium:
    share = check_scalar("porosity", porosity)
    if share is not None and share > 1:
        raise ValueError(f"porosity must be in (0, 1], got {share}")
    check_scalar("density", density)
    check_scalar("coefficient", coefficient)
    power = check_scalar("exponent", exponent)
    if power is not None and power > 1:
        raise ValueError(f"exponent must be in (0, 1], got {power}")
    return _Medium((1 - porosity) / porosity * density * coefficient, exponent)

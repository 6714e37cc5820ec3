"""Implicit Runge-Kutta methods, for stiff problems and those whose structure a step should keep.

A first explicit stage of weight zero and a last one at the end put each in first-same-as-last form; of those whose last
stage is the solution itself (all but the midpoint and Gauss) the last stage is theirs.
"""

from __future__ import annotations

import math

import numpy as np

from pullback.dynamics.tableaux import Tableau, minus, padded

__all__ = ["IMPLICIT"]

_IMPLICIT_MIDPOINT = Tableau(
    name="implicit_midpoint",
    order=2,
    c=(0.0, 1 / 2, 1.0),
    a=padded((), (0.0, 1 / 2), (0.0, 1.0, 0.0)),
    b=(0.0, 1.0, 0.0),
)


def _kvaerno3() -> Tableau:
    """Kvaerno (2004), ESDIRK 3/2a: L-stable, stiffly accurate, explicit first stage."""
    g = 0.43586652150845967  # root of 6 g^3 - 18 g^2 + 9 g - 1
    third = ((-4 * g**2 + 6 * g - 1) / (4 * g), (-2 * g + 1) / (4 * g), g, 0.0)
    b = ((6 * g - 1) / (12 * g), -1 / ((24 * g - 12) * g), (-6 * g**2 + 6 * g - 1) / (6 * g - 3), g)
    return Tableau(
        name="kvaerno3",
        order=3,
        c=(0.0, 2 * g, 1.0, 1.0),
        a=padded((), (g, g), third, b),
        b=b,
        error=minus(b, third),
    )


_IMPLICIT_EULER = Tableau(name="implicit_euler", order=1, c=(0.0, 1.0), a=padded((), (0.0, 1.0)), b=(0.0, 1.0))
_TRAPEZOID = Tableau(name="trapezoid", order=2, c=(0.0, 1.0), a=padded((), (1 / 2, 1 / 2)), b=(1 / 2, 1 / 2))


def _sdirk2() -> Tableau:
    """Alexander (1977): L-stable, stiffly accurate."""
    g = 1 - math.sqrt(2) / 2
    b = (0.0, 1 - g, g)
    return Tableau(name="sdirk2", order=2, c=(0.0, g, 1.0), a=padded((), (0.0, g), b), b=b)


def _trbdf2() -> Tableau:
    """Bank et al. (1985), Hosea, Shampine (1996): a trapezoid, then the backward difference; L-stable."""
    g, w = 1 - math.sqrt(2) / 2, math.sqrt(2) / 4
    return Tableau(name="trbdf2", order=2, c=(0.0, 2 * g, 1.0), a=padded((), (g, g), (w, w, g)), b=(w, w, g))


def _collocation(name: str, order: int, nodes: tuple[float, ...]) -> Tableau:
    """The method that integrates the polynomial through its stages: a_ij is the integral of the j-th Lagrange
    polynomial from 0 to c_i, b_j that from 0 to 1 (Hairer, Wanner 1996, IV.5)."""
    powers = np.vander(nodes, increasing=True)
    lagrange = np.linalg.inv(powers)  # column j: coefficients of the j-th polynomial
    degrees = np.arange(1, len(nodes) + 1)
    inner = (np.array(nodes)[:, None] ** degrees / degrees) @ lagrange
    b = (0.0, *(float(v) for v in (1 / degrees) @ lagrange))
    rows = [(0.0, *(float(v) for v in row)) for row in inner]
    if nodes[-1] == 1.0:
        return Tableau(name, order, (0.0, *nodes), ((0.0,) * len(b), *rows), b)
    b = (*b, 0.0)
    return Tableau(name, order, (0.0, *nodes, 1.0), ((0.0,) * len(b), *((*row, 0.0) for row in rows), b), b)


_R6, _R3, _R15 = math.sqrt(6) / 10, math.sqrt(3) / 6, math.sqrt(15) / 10

IMPLICIT = (
    _kvaerno3(),
    _IMPLICIT_EULER,
    _TRAPEZOID,
    _IMPLICIT_MIDPOINT,
    _sdirk2(),
    _trbdf2(),
    _collocation("radau3", 3, (1 / 3, 1.0)),
    _collocation("radau5", 5, (2 / 5 - _R6, 2 / 5 + _R6, 1.0)),
    _collocation("gauss4", 4, (1 / 2 - _R3, 1 / 2 + _R3)),
    _collocation("gauss6", 6, (1 / 2 - _R15, 1 / 2, 1 / 2 + _R15)),
)

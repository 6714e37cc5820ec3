"""Runge-Kutta methods as data: one table of coefficients a method; the loop that uses them is written once, elsewhere.

Every method is in *first-same-as-last form*: stage 0 is the field at the start of the step and the last stage is the
field at its end, so that the last stage of one step is the first of the next, and a cubic Hermite interpolant is
always there. A method whose textbook form lacks one of the two gets it with weight zero (a row of ``a`` equal to
``b``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pullback.core.transforms import physical

__all__ = ["METHODS", "Coefficients", "Tableau"]

_Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Tableau:
    """One method: y' = y + h sum_i b_i k_i, k_i = f(t + c_i h, y + h sum_j a_ij k_j).

    Attributes:
        name: what the user calls it.
        order: of the solution that is carried on.
        c: nodes, one a stage.
        a: lower triangular; a diagonal entry makes its stage implicit.
        b: weights.
        error: weights of the error estimate, b minus those of the embedded method; ``None`` for fixed steps only.
        dense: ``[stages][degree]``, y(t + x h) = y + h sum_ij dense_ij x^(j+1) k_i; ``None`` is cubic Hermite.
        a_second, b_second, dense_second: the same for the second half of the state, of a partitioned method.
    """

    name: str
    order: int
    c: tuple[float, ...]
    a: _Rows
    b: tuple[float, ...]
    error: tuple[float, ...] | None = None
    dense: _Rows | None = None
    a_second: _Rows | None = None
    b_second: tuple[float, ...] | None = None
    dense_second: _Rows | None = None

    @property
    def stages(self) -> int:
        """Number of stages, the shared one at the end included."""
        return len(self.c)

    @property
    def adaptive(self) -> bool:
        """Whether there is an error estimate to choose steps by."""
        return self.error is not None

    @property
    def implicit(self) -> bool:
        """Whether any stage is implicit."""
        return any(row[i] != 0 for i, row in enumerate(self.a))

    @property
    def partitioned(self) -> bool:
        """Whether the two halves of the state have their own coefficients."""
        return self.a_second is not None

    @property
    def ends_at_solution(self) -> bool:
        """Whether the last stage is evaluated at the new state itself (all but leapfrog)."""
        return not self.partitioned

    def coefficients(self, size: int, dtype: torch.dtype, device: torch.device) -> Coefficients:
        """Tensors of the coefficients for a state of ``size`` numbers (per coordinate where partitioned)."""
        return _coefficients(self, size if self.partitioned else 0, dtype, device)


@dataclass(frozen=True)
class Coefficients:
    """A tableau as tensors: forward rows, and the transposed rows of the adjoint.

    Attributes:
        nodes: ``[stages, 1, 1]``.
        rows: of stage i, ``[i]`` (partitioned: ``[i, size]``).
        weights: b, ``[stages]`` or ``[stages, size]``.
        error: ``[stages]`` or ``None``.
        dense: ``[stages, degree]`` or ``[size, stages, degree]``.
        adjoint: of stage i, the coefficients of (l_{i+1}, ..., l_{s-1}, cotangent of y') in the cotangent of k_i.
        used: whether the new state depends on stage i.
    """

    nodes: Tensor
    rows: list[Tensor]
    weights: Tensor
    error: Tensor | None
    dense: Tensor
    adjoint: list[Tensor]
    used: list[bool]


def _hermite(b: tuple[float, ...]) -> np.ndarray:
    """Cubic Hermite interpolant on both ends: weights of k_i as a polynomial without constant term."""
    dense = np.outer(b, [0.0, 3.0, -2.0])
    dense[0] += [1.0, -2.0, 1.0]
    dense[-1] += [0.0, -1.0, 1.0]
    return dense


@lru_cache(maxsize=256)
def _coefficients(tableau: Tableau, size: int, dtype: torch.dtype, device: torch.device) -> Coefficients:
    def tensor(values: np.ndarray) -> Tensor:
        # the cache outlives the transform of torch.func that may be under way
        return physical(torch.as_tensor(np.ascontiguousarray(values), dtype=dtype, device=device))

    def per_coordinate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.stack([first] * (size // 2) + [second] * (size // 2), -1)

    s = tableau.stages
    a, b = np.array(tableau.a), np.array(tableau.b)
    dense = np.array(tableau.dense) if tableau.dense else _hermite(tableau.b)
    used = b != 0
    if tableau.partitioned:
        a2, b2, dense2 = np.array(tableau.a_second), np.array(tableau.b_second), np.array(tableau.dense_second)
        used |= b2 != 0
        dense = np.stack([dense] * (size // 2) + [dense2] * (size // 2))
        a, b = per_coordinate(a, a2), per_coordinate(b, b2)
    for i in reversed(range(s)):
        used[i] |= any(used[j] and np.any(a[j, i] != 0) for j in range(i + 1, s))
    return Coefficients(
        nodes=tensor(np.array(tableau.c).reshape(-1, 1, 1)),
        rows=[tensor(a[i, :i]) for i in range(s)],
        weights=tensor(b),
        error=tensor(np.array(tableau.error)) if tableau.error else None,
        dense=tensor(dense),
        adjoint=[tensor(np.concatenate([a[i + 1 :, i], b[i : i + 1]])) for i in range(s)],
        used=[bool(u) for u in used],
    )


def _padded(*rows: tuple[float, ...]) -> _Rows:
    return tuple(row + (0.0,) * (len(rows) - len(row)) for row in rows)


def _minus(b: tuple[float, ...], embedded: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(x - y for x, y in zip(b, embedded, strict=True))


_DOPRI5_B = (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0)
_DOPRI5 = Tableau(
    # Dormand, Prince (1980); dense output of Shampine (1986).
    name="dopri5",
    order=5,
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    a=_padded(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        _DOPRI5_B,
    ),
    b=_DOPRI5_B,
    error=_minus(_DOPRI5_B, (5179 / 57600, 0.0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)),
    dense=(
        (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
)


def _tsit5_dense() -> _Rows:
    """The interpolant of Tsitouras (2011), given there in factored form."""
    t, x = np.polynomial.Polynomial([0.0, 1.0]), np.polynomial.Polynomial
    factored = [
        -1.0530884977290216 * t * x([-1.3299890189751412, 1]) * x([0.7139816917074209, -1.4364028541716351, 1]),
        0.1017 * t**2 * x([1.2949852507374631, -2.1966568338249754, 1]),
        2.490627285651252793 * t**2 * x([1.57803468208092486, -2.38535645472061657, 1]),
        -16.54810288924490272 * t**2 * x([-1.21712927295533244, 1]) * x([-0.61620406037800089, 1]),
        47.37952196281928122 * t**2 * x([-1.203071208372362603, 1]) * x([-0.658047292653547382, 1]),
        -34.87065786149660974 * t**2 * x([-1.2, 1]) * x([-2 / 3, 1]),
        2.5 * t**2 * x([-1, 1]) * x([-0.6, 1]),
    ]
    return tuple(tuple(float(v) for v in p.coef[1:]) for p in factored)


_TSIT5_B = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
    0.0,
)
_TSIT5 = Tableau(
    # Tsitouras (2011), Runge-Kutta pairs of order 5(4) satisfying only the first column simplifying assumption.
    name="tsit5",
    order=5,
    c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    a=_padded(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.028269050394068383),
        _TSIT5_B,
    ),
    b=_TSIT5_B,
    error=(
        0.00178001105222577714,
        0.0008164344596567469,
        -0.007880878010261995,
        0.1447110071732629,
        -0.5823571654525552,
        0.45808210592918697,
        -1 / 66,
    ),
    dense=_tsit5_dense(),
)
_BOSH3_B = (2 / 9, 1 / 3, 4 / 9, 0.0)
_BOSH3 = Tableau(
    # Bogacki, Shampine (1989).
    name="bosh3",
    order=3,
    c=(0.0, 1 / 2, 3 / 4, 1.0),
    a=_padded((), (1 / 2,), (0.0, 3 / 4), _BOSH3_B),
    b=_BOSH3_B,
    error=_minus(_BOSH3_B, (7 / 24, 1 / 4, 1 / 3, 1 / 8)),
)
_RK4_B = (1 / 6, 1 / 3, 1 / 3, 1 / 6, 0.0)
_RK4 = Tableau(
    name="rk4",
    order=4,
    c=(0.0, 1 / 2, 1 / 2, 1.0, 1.0),
    a=_padded((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0), _RK4_B),
    b=_RK4_B,
)
_HEUN = Tableau(
    name="heun", order=2, c=(0.0, 1.0, 1.0), a=_padded((), (1.0,), (1 / 2, 1 / 2, 0.0)), b=(1 / 2, 1 / 2, 0.0)
)
_EULER = Tableau(name="euler", order=1, c=(0.0, 1.0), a=_padded((), (1.0, 0.0)), b=(1.0, 0.0))
_MIDPOINT = Tableau(
    name="midpoint", order=2, c=(0.0, 1 / 2, 1.0), a=_padded((), (1 / 2,), (0.0, 1.0, 0.0)), b=(0.0, 1.0, 0.0)
)
_IMPLICIT_MIDPOINT = Tableau(
    name="implicit_midpoint",
    order=2,
    c=(0.0, 1 / 2, 1.0),
    a=_padded((), (0.0, 1 / 2), (0.0, 1.0, 0.0)),
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
        a=_padded((), (g, g), third, b),
        b=b,
        error=_minus(b, third),
    )


_LEAPFROG = Tableau(
    # Kick, drift, kick on y = [position, momentum]; stage 2 at (new position, half momentum) has the new force.
    name="leapfrog",
    order=2,
    c=(0.0, 1 / 2, 1.0),
    a=_padded((), (), (0.0, 1.0, 0.0)),
    b=(0.0, 1.0, 0.0),
    dense=((0.0, 0.0), (1.0, 0.0), (0.0, 0.0)),
    a_second=_padded((), (1 / 2,), (1 / 2, 0.0, 0.0)),
    b_second=(1 / 2, 0.0, 1 / 2),
    dense_second=((1.0, -1 / 2), (0.0, 0.0), (0.0, 1 / 2)),
)

METHODS: dict[str, Tableau] = {
    t.name: t
    for t in (
        _DOPRI5,
        _TSIT5,
        _BOSH3,
        _RK4,
        _HEUN,
        _EULER,
        _MIDPOINT,
        _IMPLICIT_MIDPOINT,
        _kvaerno3(),
        _LEAPFROG,
    )
}
"""The methods by name: ``dopri5``, ``tsit5``, ``bosh3`` and ``kvaerno3`` adapt their steps, the others take what they
get."""

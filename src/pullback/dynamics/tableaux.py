"""A Runge-Kutta method as data: a table of coefficients; the loop that uses them is written once, elsewhere.

Every method is in *first-same-as-last form*: stage 0 is the field at the start of the step and the last stage is the
field at its end, so that the last stage of one step is the first of the next, and a cubic Hermite interpolant is
always there. A method whose textbook form lacks one of the two gets it with weight zero (a row of ``a`` equal to
``b``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from pullback.core.transforms import physical

__all__ = ["Coefficients", "Tableau", "hermite", "minus", "padded"]

_Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Tableau:
    """One method: y' = y + h sum_i b_i k_i, k_i = f(t + c_i h, y + h sum_j a_ij k_j).

    Attributes:
        name: what the user calls it.
        order: of the solution that is carried on.
        c: nodes, one a stage.
        a: a diagonal entry makes its stage implicit; entries above the diagonal couple it with later ones.
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

    @cached_property
    def implicit(self) -> bool:
        """Whether any stage is implicit."""
        return any(row[i] != 0 for i, row in enumerate(self.a))

    @cached_property
    def coupled(self) -> range:
        """The stages that are solved together (collocation); empty where each is solved by itself."""
        later = [j for i, row in enumerate(self.a) for j in range(i + 1, len(row)) if row[j] != 0]
        return range(1, max(later) + 1) if later else range(0)

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
        block: ``[m, m]`` coefficients among the coupled stages.
        weights: b, ``[stages]`` or ``[stages, size]``.
        error: ``[stages]`` or ``None``.
        dense: ``[stages, degree]`` or ``[size, stages, degree]``.
        adjoint: of stage i, the coefficients of (l_{i+1}, ..., l_{s-1}, cotangent of y') in the cotangent of k_i.
        columns: of stage i, ``a[i + 1:, i]`` as ``[.., 1, 1]``: what the later stages take of it.
        used: whether the new state depends on stage i.
    """

    nodes: Tensor
    rows: list[Tensor]
    block: Tensor
    weights: Tensor
    error: Tensor | None
    dense: Tensor
    adjoint: list[Tensor]
    columns: list[Tensor]
    used: list[bool]


def hermite(b: tuple[float, ...]) -> np.ndarray:
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
    dense = np.array(tableau.dense) if tableau.dense else hermite(tableau.b)
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
        block=tensor(np.array(tableau.a)[tableau.coupled][:, tableau.coupled]),
        weights=tensor(b),
        error=tensor(np.array(tableau.error)) if tableau.error else None,
        dense=tensor(dense),
        adjoint=[tensor(np.concatenate([a[i + 1 :, i], b[i : i + 1]])) for i in range(s)],
        columns=[tensor(a[i + 1 :, i, None, None]) for i in range(s)],
        used=[bool(u) for u in used],
    )


def padded(*rows: tuple[float, ...]) -> _Rows:
    """Rows of a triangular matrix as rows of equal length."""
    return tuple(row + (0.0,) * (len(rows) - len(row)) for row in rows)


def minus(b: tuple[float, ...], embedded: tuple[float, ...]) -> tuple[float, ...]:
    """Weights of the error estimate."""
    return tuple(x - y for x, y in zip(b, embedded, strict=True))

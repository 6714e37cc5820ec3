"""What a partitioned method asks of a problem: a pair of position and momentum, neither of which reacts to itself."""

from __future__ import annotations

from torch import Tensor

from pullback.core.rows import Rows
from pullback.dynamics.field import FlatField
from pullback.dynamics.tableaux import Tableau

__all__ = ["check_pair", "check_separable"]


def check_pair(rows: Rows, tableau: Tableau) -> None:
    """Raise ``ValueError`` unless the state has two leaves of equal sizes, or one of even size."""
    if not (rows.single and rows.size % 2 == 0) and rows.sizes[:1] != rows.sizes[1:]:
        raise ValueError(
            f"y0 must be a pair (position, momentum) of equal sizes for method={tableau.name!r}, got sizes {rows.sizes}"
        )


def check_separable(field: FlatField, tableau: Tableau, t: Tensor, y: Tensor) -> None:
    """Raise ``ValueError`` unless dq/dt = v(p, t) and dp/dt = f(q, t): judged by moving each half at the start."""
    half = y.shape[1] // 2
    k = field.quiet(t, y)
    halves = {"position": slice(0, half), "momentum": slice(half, None)}
    for name, own in halves.items():
        moved = y.clone()
        moved[:, own] += 0.1 * (1 + moved[:, own].abs())
        change = (field.quiet(t, moved) - k)[:, own].abs()
        if bool((change > 1e-4 * (1 + k[:, own].abs())).any()):
            raise ValueError(
                f"field must be separable for method={tableau.name!r} (dq/dt a function of p, dp/dt of q), but the "
                f"{name}'s rate depends on the {name} itself; use 'implicit_midpoint'"
            )
    field.forward_evaluations = 0

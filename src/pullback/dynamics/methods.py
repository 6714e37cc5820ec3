"""The methods of ``odeint`` by name."""

from __future__ import annotations

from pullback.dynamics.adams import ADAMS
from pullback.dynamics.methods_explicit import EXPLICIT
from pullback.dynamics.methods_implicit import IMPLICIT
from pullback.dynamics.tableaux import Tableau

__all__ = ["METHODS"]

METHODS: dict[str, Tableau] = {tableau.name: tableau for tableau in (*EXPLICIT, *ADAMS, *IMPLICIT)}
"""The methods by name: ``dopri5``, ``tsit5``, ``dopri8``, ``bosh3``, ``fehlberg2``, ``adaptive_heun`` and ``kvaerno3``
adapt their steps, the others take what they get."""

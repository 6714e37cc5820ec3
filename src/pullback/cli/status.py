"""The exit statuses of the command."""

from __future__ import annotations

__all__ = ["DEFECT", "FINE", "FOUND", "INTERRUPTED", "RAISED", "WRONG_USE"]

FINE, FOUND, WRONG_USE, RAISED, DEFECT, INTERRUPTED = 0, 1, 2, 3, 70, 130
"""Fine; a finding or a failed claim; wrong use; the user's code raised; a defect of pullback itself; interrupted."""

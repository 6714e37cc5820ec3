"""Errors that carry what a caller needs to go on."""

from __future__ import annotations

from typing import Any

__all__ = ["ConvergenceError", "UsageError"]


class ConvergenceError(RuntimeError):
    """A solver stopped before it reached its tolerance.

    Args:
        message: what did not converge, with the numbers.
        result: the solver's partial result (solution, residual, iterations), the same object a converged call returns.

    Example:
        >>> error = ConvergenceError("newton: residual 0.1 after 5 iterations", result={"residual": 0.1})
        >>> error.result["residual"]
        0.1
    """

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


class UsageError(ValueError):
    """Something was asked for that cannot be done; the message is one line that names the argument and what is allowed.

    The command shows it without a traceback, with exit status 2.
    """

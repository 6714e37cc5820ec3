"""Words to choose from: what is allowed, and the nearest to what came. Free of torch, for commands that need none."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

__all__ = ["check_choice", "nearest"]


def nearest(word: str, allowed: Iterable[str | None]) -> str:
    """Return ``"; did you mean 'x'?"`` for the closest allowed word, or an empty string.

    Example:
        >>> nearest("sotfsort", ["softsort", "network"])
        "; did you mean 'softsort'?"
    """
    matches = get_close_matches(word, [other for other in allowed if isinstance(other, str)], n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def check_choice(name: str, value: Any, allowed: Iterable[str | None]) -> None:
    """Raise ``ValueError`` listing the allowed words unless ``value`` is one of them.

    Example:
        >>> check_choice("method", "sotfsort", ["softsort", "network"])
        Traceback (most recent call last):
        ValueError: method must be one of 'softsort', 'network', got 'sotfsort'; did you mean 'softsort'?
    """
    allowed = list(allowed)
    if value not in allowed:
        hint = nearest(value, allowed) if isinstance(value, str) else ""
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}{hint}")

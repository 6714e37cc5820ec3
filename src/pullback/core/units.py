"""Sizes in words."""

from __future__ import annotations

__all__ = ["format_bytes"]


def format_bytes(count: int) -> str:
    """Return a number of bytes as a reader wants it.

    Example:
        >>> [format_bytes(n) for n in (512, 734003200, 3 * 2**30)]
        ['512 B', '700 MiB', '3 GiB']
    """
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"

"""The user's source as every report shows it."""

from __future__ import annotations

import linecache

__all__ = ["MARKS", "source_lines"]

MARKS = {
    "cut": "x",
    "zero": "0",
    "nan": "!",
    "vanishing": "v",
    "exploding": "^",
    "biased": "~",
    "chaotic": "*",
    "kink": "k",
    "control-flow": "?",
    "unused": "-",
}
"""The gutter's sign of each kind of finding."""


def source_lines(file: str) -> list[str]:
    """Return a file's lines as Python counts them, none if it cannot be read; also those of a notebook's cell."""
    return [line.rstrip("\r\n") for line in linecache.getlines(file)]

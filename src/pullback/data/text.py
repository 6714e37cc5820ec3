"""Written English."""

from __future__ import annotations

import re
from typing import NamedTuple

from pullback.data.cache import load
from pullback.data.text_formats import split_strings

__all__ = ["Verse", "bible"]


class Verse(NamedTuple):
    """One verse.

    Attributes:
        book: short name, such as ``"Ge"`` or ``"1Co"``.
        chapter: from 1.
        verse: from 1.
        text: the words.
    """

    book: str
    chapter: int
    verse: int
    text: str


def bible() -> list[Verse]:
    """Return the 31 102 verses of the King James Bible, in order.

    Raises:
        DataMissingError: the set was not fetched.
    """
    verses = []
    for line in split_strings(load("bible"), "verses"):
        found = re.fullmatch(r"(\w+?)(\d+):(\d+) (.*)", line)
        if found is None:
            raise ValueError(f"not a verse: {line[:40]!r}")
        verses.append(Verse(found[1], int(found[2]), int(found[3]), found[4]))
    return verses

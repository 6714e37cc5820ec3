"""How words of the command line become values: strictly, so that no value is changed on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cyclopts
from cyclopts import Parameter

__all__ = ["STRICT"]


def _convert(kind: Any, tokens: Sequence[Any]) -> Any:
    return cyclopts.convert(kind, tokens, converter=_convert_word)


def _convert_word(kind: Any, word: Any) -> Any:
    text = getattr(word, "value", word)
    # By itself cyclopts rounds: 1.9 would be 2.
    return int(text) if kind is int else cyclopts.convert(kind, [text])


STRICT = Parameter(converter=_convert)
"""Of every option: an integer is written as one."""

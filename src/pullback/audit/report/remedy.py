"""How a finding carries its remedy: the user's own lines rewritten, and what that did when it was tried."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Change", "Remedy"]


@dataclass(frozen=True)
class Change:
    """Lines of a file and what takes their place.

    Attributes:
        line: 1-based number of the first line that goes.
        count: how many lines go; 0 inserts before ``line``.
        text: the lines that come, each ended by a line feed; empty where lines only go.
    """

    line: int
    count: int
    text: str


@dataclass(frozen=True)
class Remedy:
    """One rewriting of the user's own code that was run before it is shown.

    Attributes:
        block: what the new line uses: a dotted name under ``pullback``, or a torch function.
        what: one sentence on what changes.
        file: the file that changes.
        diff: the changed lines for people, as a unified diff without its heading.
        effect: the numbers as one sentence: "gradient norm of `enc.weight` 0 -> 0.31; loss changes by 0.002".
        changes: the same as data, from the top of the file to its end, with the imports that the new lines need.
        numbers: ``loss before``, ``loss after`` and ``gradients``, a list of ``{"name", "before", "after"}``.
    """

    block: str
    what: str
    file: str
    diff: str
    effect: str
    changes: tuple[Change, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Remedy:
        """Rebuild a remedy from its JSON form."""
        return cls(**{**data, "changes": tuple(Change(**c) for c in data["changes"])})

"""``pullback find``."""

from __future__ import annotations

from collections.abc import Sequence

from pullback.audit.remedy.table import example, suggest
from pullback.audit.remedy.table import find as templates
from pullback.cli.output import print_json, print_line
from pullback.cli.status import FINE
from pullback.cli.words import Words
from pullback.core.errors import UsageError

__all__ = ["run"]


def run(words: Sequence[str]) -> int:
    """Print the blocks that let a gradient through where an operation does not, each with code to paste."""
    parser = Words(
        "pullback find",
        "Print what lets a gradient through where an operation does not, each with code to paste.",
        ["pullback find argmax", "pullback find round --json"],
    )
    parser.add_argument("word", help="a torch operation, a finding's code, or what you want to do")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse(words)
    found = [{"block": t.block, "what": t.what, "diff": example(t)} for t in templates(options.word)]
    if not found:
        near = suggest(options.word)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UsageError(f"no block is known for {options.word!r}{hint}")
    if options.json:
        print_json(found)
        return FINE
    for index, remedy in enumerate(found):
        name = remedy["block"]
        print_line(("\n" if index else "") + (name if name.startswith("torch") else f"pullback.{name}"))
        print_line(f"    {remedy['what']}\n")
        for line in remedy["diff"].splitlines():
            print_line(f"    {line}")
    return FINE

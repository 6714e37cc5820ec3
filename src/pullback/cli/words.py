"""The parser of the commands that a plain installation has: argparse, with errors as everywhere in the command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from pullback.core.choices import nearest
from pullback.core.errors import UsageError

__all__ = ["Words"]


class Words(argparse.ArgumentParser):
    """Options of one command; what cannot be understood raises :class:`~pullback.core.errors.UsageError`.

    Args:
        command: words that call it, as ``pullback find``.
        what: one sentence on what it does.
        examples: whole command lines.
        beyond: what to know of a word that is no option of this command.
    """

    def __init__(self, command: str, what: str, examples: Sequence[str], beyond: str = "") -> None:
        listed = "\n         ".join(examples)
        super().__init__(
            prog=command,
            description=what,
            epilog=f"Example: {listed}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._beyond = f" ({beyond})" if beyond else ""

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Return the options; a word that is none of them is named, with the nearest that there is."""
        found, unknown = self.parse_known_args(list(words))
        if unknown:
            options = [name for action in self._actions for name in action.option_strings]
            hint = nearest(unknown[0].partition("=")[0], options)
            raise UsageError(f"{self.prog} has no option {unknown[0]!r}{hint}{self._beyond}")
        return found

    def error(self, message: str) -> NoReturn:
        """Raise what argparse would print and exit with."""
        raise UsageError(f"{self.prog}: {message}")

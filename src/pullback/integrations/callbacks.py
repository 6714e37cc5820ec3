"""What the callbacks of all trainers share: a :class:`pullback.watch` that a training starts and ends."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pullback.audit.watching import watch

__all__ = ["Watching", "load"]


class Watching:
    """Watches the gradients of one training at a time and keeps the numbers of the latest look.

    Args:
        every: look at every so many optimizer steps.
        ignore: patterns of names of parameters not to report.

    Attributes:
        watching: the :class:`pullback.watch` of the current or latest training, ``None`` before the first.
    """

    def __init__(self, every: int = 100, ignore: Iterable[str] = ()) -> None:
        super().__init__()
        self.watching: watch | None = None
        self._options: dict[str, Any] = {"every": every, "ignore": tuple(ignore)}
        self._numbers: dict[str, float] = {}

    def begin(self, model: Any, first_step: int) -> None:
        """Watch a model, and no longer the one before, from an optimizer step on."""
        from pullback.audit.watching import watch

        self.end()
        self.watching = watch(model, first_step=first_step, log=self._keep, **self._options).start()

    def end(self) -> None:
        """Stop watching."""
        if self.watching is not None:
            self.watching.stop()

    def numbers(self) -> dict[str, float]:
        """Return the numbers of the latest look, once."""
        latest, self._numbers = self._numbers, {}
        return latest

    def _keep(self, name: str, value: float, step: int) -> None:
        self._numbers[name] = value


def load(module: str, name: str, instead: str | None = None) -> Any:
    """Return a name of a module, or of another one where that library is not installed.

    Raises:
        ImportError: neither library is installed.

    Example:
        >>> load("no_such_library", "pi", instead="math")
        3.141592653589793
    """
    for candidate in (module, instead):
        if candidate is None:
            continue
        try:
            return getattr(importlib.import_module(candidate), name)
        except ModuleNotFoundError as error:
            # Only the library itself may be missing: one that is there and fails to import says why by itself.
            if error.name is None or not f"{candidate}.".startswith(f"{error.name}."):
                raise
    library = module.partition(".")[0]
    raise ImportError(f"this callback needs '{library}', which is not installed: pip install {library}")

"""Which passes are recorded, and what is kept of the others until they have proved to be in order.

A training loop does the same at every step. Its first passes are recorded operation by operation, and some later ones;
in between only this is asked, which is cheap: is this a line, an operation and a set of parameters that was recorded
before (if not, recording resumes at once), is the loss finite, and are the gradients? Results and cotangents of a pass
are kept until its end, so that the first that is not finite can be named when the loss or a gradient is not.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from pullback.audit.trace.cotangents import spoils
from pullback.audit.trace.norms import finite
from pullback.audit.trace.private import unseen
from pullback.audit.trace.records import tensors_in
from pullback.audit.trace.sites import Site

__all__ = ["Glance", "Sampling", "is_harmless"]

FULL = 2
"""Passes of each line that differentiates which are recorded."""
EVERY = 32
"""After that those with the numbers ``EVERY ** k`` and the next are."""
SMALL = 65_536
"""Elements of a tensor that is kept; a larger one is looked at once, which costs little beside making it."""


class Sampling:
    """The schedule of a trace, and the log of a pass that is not recorded.

    Attributes:
        light: whether the pass under way is not recorded.
        active: whether passes may be left out at all.
        skipped: passes that were not recorded and had nothing wrong.
        passes: finished passes, recorded or not.
        glanced: whether any operation was not recorded so far.
        settled: whether a number that is not finite was found: what comes later has it from there.
    """

    def __init__(self, active: bool) -> None:
        self.active = active
        self.light = False
        self.skipped = 0
        self.passes = 0
        self.glanced = False
        self.settled = False
        self._seen: set[tuple[Any, int, str]] = set()
        self._recorded: dict[Any, int] = {}
        self._results: list[tuple[Site, str, Tensor | None, Any]] = []
        self._cotangents: list[tuple[Glance, str, bool] | tuple[Glance, Any, Any]] = []

    def recorded(self, site: Site, name: str) -> None:
        """Note an operation that was recorded."""
        self._seen.add((site.code, site.instruction, name))

    def is_new(self, site: Site, name: str) -> bool:
        """Whether no operation of this name was recorded at this place."""
        return (site.code, site.instruction, name) not in self._seen

    def keep(self, site: Site, name: str, out: Any, args: Any) -> None:
        """Keep the result of an operation until the end of the pass."""
        self.glanced = True
        for tensor in (out,) if isinstance(out, Tensor) else tensors_in(out):
            if tensor.numel() <= SMALL:
                self._results.append((site, name, tensor, args))
            elif finite(tensor):
                self._results.append((site, name, None, ()))

    def arguments_at(self, glance: Glance) -> Any:
        """Return the arguments of the operation that a hook belongs to."""
        return next((args for site, name, _, args in self._results if site is glance.site and name == glance.name), ())

    def first_result(self) -> tuple[Site, str, str, Any] | None:
        """Return place, name, ``"nan"`` or ``"inf"``, and arguments of the first result that is not finite."""
        found: tuple[Site, str, str, Any] | None = None
        with unseen():
            for site, name, tensor, args in self._results:
                what = "inf" if tensor is None else finite(tensor)
                if what == "nan":
                    return site, name, what, args
                if what and found is None:
                    found = site, name, what, args
        return found

    def first_cotangent(self) -> tuple[Glance, str, bool] | None:
        """Return the first function that spoilt a finite cotangent, what it made, and whether a mask hid it."""
        for entry in self._cotangents:
            glance, leaving, arriving = entry
            if isinstance(leaving, str):
                return glance, leaving, arriving
            with unseen():
                spoilt = spoils(leaving, arriving)
            if spoilt is not None:
                return (glance, *spoilt)
        return None

    def log(self, glance: Glance, leaving: Any, arriving: Any) -> None:
        """Keep what went through an autograd function, or what is wrong with it."""
        for gradient in leaving:
            if gradient is not None and gradient.numel() > SMALL:
                break
        else:
            self._cotangents.append((glance, leaving, arriving))
            return
        with unseen():
            spoilt = spoils(leaving, arriving)
        if spoilt is not None:
            self._cotangents.append((glance, *spoilt))

    def finish(self, key: Any) -> None:
        """End a pass and decide on the next."""
        self.passes += 1
        if not self.light:
            self._recorded[key] = self._recorded.get(key, 0) + 1
        self._recorded.setdefault(key, 0)
        self._results.clear()
        self._cotangents.clear()
        self.light = self.active and min(self._recorded.values()) >= FULL and not _is_sampled(self.passes + 1)


class Glance:
    """Hook on an autograd function of a pass that is not recorded."""

    __slots__ = ("function", "name", "sampling", "site")

    def __init__(self, sampling: Sampling, site: Site, name: str, function: str) -> None:
        self.sampling = sampling
        self.site = site
        self.name = name
        self.function = function

    def __call__(self, leaving: Any, arriving: Any) -> None:
        """Keep what went through; autograd calls this with the gradients of the inputs and of the outputs."""
        if not self.sampling.settled:
            self.sampling.log(self, leaving, arriving)


@cache
def is_harmless(function: str) -> bool:
    """Whether an autograd function only moves or adds cotangents, which makes no finite one infinite."""
    return function.rstrip("0123456789").removesuffix("Backward") in _HARMLESS


_HARMLESS = frozenset(
    """Add Sub Neg T Transpose Permute View UnsafeView ReshapeAlias Alias Clone Squeeze Unsqueeze Select Slice Split
    Unbind Stack Cat Expand Mean Sum AsStrided""".split()
)


def _is_sampled(number: int) -> bool:
    power = 1
    while power < number - 1:
        power *= EVERY
    return number in (power, power + 1)

"""What a ``relaxed`` did: which calls it relaxed, where it had to drop a soft counterpart, and why."""

from __future__ import annotations

import linecache
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import NamedTuple

import torch

import pullback

__all__ = ["Calls", "RelaxedCall", "Site", "find_site", "inside_function"]


def _folder(*parts: str) -> str:
    return os.path.join(*parts, "")  # ends with a separator: torchmetrics is not torch


_TORCH = _folder(os.path.dirname(torch.__file__))
_PULLBACK = os.path.dirname(pullback.__file__)
_BLOCKS = tuple(_folder(_PULLBACK, name) for name in (*pullback.FAMILIES, "core", "kernels"))
_RELAX = _folder(os.path.dirname(__file__))
# Library code that computes for itself, not for the user: its checks and draws stay plain.
_OPAQUE = tuple(_folder(_TORCH, name) for name in ("distributions", "optim", "testing", "_dynamo", "fx", "onnx"))
_USER, _PASSED, _PLAIN = range(3)
_kinds: dict[str, int] = {}


class Site(NamedTuple):
    """A line of the user's source."""

    file: str
    line: int

    @property
    def source(self) -> str:
        """The line itself, stripped; empty where the source is not known."""
        return linecache.getline(self.file, self.line).strip()

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class RelaxedCall:
    """One operation on one line.

    Attributes:
        operation: name of the torch operation, such as ``"sort"``.
        status: ``"relaxed"``; ``"dropped"``: the plain value was used, no gradient passes; ``"left"``: it ran where
            nothing is relaxed, as under ``torch.no_grad()``.
        file, line, source: where.
        reason: why it was dropped or left; what to know of it where it was relaxed.
        count: how often.
    """

    operation: str
    status: str
    file: str
    line: int
    source: str
    reason: str
    count: int


class Calls:
    """The calls of one ``relaxed``, counted by line, operation and reason. Safe to fill from several threads."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Site, str, str, str], int] = {}
        self._sites: set[Site] = set()
        self._lock = threading.Lock()

    def add(self, site: Site, operation: str, status: str, reason: str = "") -> bool:
        """Count one call; return whether it is the first of its kind on this line."""
        key = (site, operation, status, reason)
        with self._lock:
            before = self._counts.get(key, 0)
            self._counts[key] = before + 1
        return before == 0

    def is_new(self, site: Site) -> bool:
        """Return whether nothing has been asked about this line before."""
        new = site not in self._sites
        self._sites.add(site)
        return new

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._counts.clear()

    def __iter__(self) -> Iterator[RelaxedCall]:
        for (site, operation, status, reason), count in list(self._counts.items()):
            yield RelaxedCall(operation, status, site.file, site.line, site.source, reason, count)

    def __len__(self) -> int:
        return len(self._counts)

    def text(self) -> str:
        """Two lists, relaxed and dropped, ordered as the program met them."""
        calls = list(self)
        lines = []
        for status, title in _TITLES.items():
            chosen = [call for call in calls if call.status == status]
            if not chosen:
                continue
            lines.append(f"{title} ({sum(call.count for call in chosen)} calls)")
            for call in chosen:
                times = f" x{call.count}" if call.count > 1 else ""
                reason = f": {call.reason}" if call.reason else ""
                lines.append(f"  {call.file}:{call.line}  {call.operation}{times}{reason}")
                if call.source:
                    lines.append(f"      {call.source}")
        if not any(call.status == "relaxed" for call in calls):
            lines.insert(0, _NOTHING)
        return "\n".join(lines)


_TITLES = {
    "relaxed": "relaxed",
    "dropped": "dropped: the plain value was used, no gradient",
    "left": "left as it is: nothing is relaxed there",
}
_NOTHING = (
    "nothing was relaxed: in the thread that entered the context no covered operation met a tensor that requires grad, "
    "outside of torch.no_grad() and of the forward of an autograd.Function"
)


def inside_function() -> bool:
    """Return whether the forward of an own ``autograd.Function`` is running."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "forward" and "ctx" in frame.f_code.co_varnames[:1]:
            return True
        frame = frame.f_back
    return False


def find_site() -> Site | None:
    """Return the line that called torch, or ``None`` where it must stay plain (blocks, distributions, optimizers).

    Frames of torch's wrappers and of this package are passed over. Code of the blocks already is differentiable;
    library code that checks or draws for itself is not the user's program.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        kind = _kinds.get(name)
        if kind is None:
            kind = _kinds.setdefault(name, _kind(name))
        if kind == _USER:
            return Site(name, frame.f_lineno)
        if kind == _PLAIN:
            return None
        frame = frame.f_back
    return Site("<unknown>", 0)


_CALLS = os.path.join(_TORCH, "_dynamo", "eval_frame.py")  # calls functions that are kept from the compiler


def _kind(file: str) -> int:
    if file == _CALLS:
        return _PASSED
    if file.startswith((*_BLOCKS, *_OPAQUE)):
        return _PLAIN
    return _PASSED if file.startswith((_TORCH, _RELAX)) or file.endswith("contextlib.py") else _USER

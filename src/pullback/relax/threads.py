"""Worker threads: a context relaxes the thread that entered it; what others run meanwhile is named, not relaxed."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

__all__ = ["in_workers"]

Watch = Callable[[], AbstractContextManager[Any]]

_thread = threading.local()
_lock = threading.Lock()
_entered = 0
_start, _submit = threading.Thread.start, ThreadPoolExecutor.submit


class in_workers:
    """Within it, what this thread hands to others (a new thread, a call of a thread pool) runs in ``watch()``.

    A function mode is seen by its own thread alone, so the thread or the pool has to take the watch along. Both are
    as torch and Python have them whenever no context is active.
    """

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __enter__(self) -> None:
        global _entered
        _watches().append(self._watch)
        with _lock:
            _entered += 1
            if _entered == 1:
                threading.Thread.start = _start_watched  # type: ignore[method-assign, assignment]
                ThreadPoolExecutor.submit = _submit_watched  # type: ignore[method-assign, assignment]

    def __exit__(self, *error: Any) -> None:
        global _entered
        _watches().remove(self._watch)
        with _lock:
            _entered -= 1
            if _entered == 0:
                threading.Thread.start = _start  # type: ignore[method-assign]
                ThreadPoolExecutor.submit = _submit  # type: ignore[method-assign]


def _watches() -> list[Watch]:
    watches: list[Watch] = _thread.__dict__.setdefault("watches", [])
    return watches


def _watched(function: Callable[..., Any]) -> Callable[..., Any]:
    watches = list(_watches())

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        call = functools.partial(function, *args, **kwargs)
        for watch in watches:
            call = functools.partial(_within, watch, call)
        return call()

    return run


def _within(watch: Watch, call: Callable[[], Any]) -> Any:
    with watch():
        return call()


def _start_watched(thread: threading.Thread) -> None:
    if _watches() and not getattr(_thread, "submits", False):
        thread.run = _watched(thread.run)  # type: ignore[method-assign]
    _start(thread)


def _submit_watched(pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    # The pool's threads outlive the context: each call is watched, not they.
    _thread.submits = True
    try:
        return _submit(pool, _watched(function) if _watches() else function, *args, **kwargs)
    finally:
        _thread.submits = False

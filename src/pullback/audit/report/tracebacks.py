"""The traceback of the user's code: from its first frame on, without ours and the interpreter's between."""

from __future__ import annotations

import os
import traceback

__all__ = ["user_traceback"]

_PACKAGE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
_PROGRAMS = (os.path.join(_PACKAGE, "systems") + os.sep, os.path.join(_PACKAGE, "demo") + os.sep)
_MACHINERY = ("<frozen runpy>", "<frozen importlib")


def user_traceback(error: BaseException) -> str:
    """Return the traceback of an error as text, frames of pullback and of the import machinery left out.

    An error that pullback itself raised, for a wrong argument say, ends in the user's line that called it.

    Args:
        error: a raised exception; those that caused it or were handled meanwhile are shown likewise.

    Example:
        >>> try:
        ...     {}["a"]
        ... except KeyError as raised:
        ...     print(user_traceback(raised).splitlines()[-1])
        KeyError: 'a'
    """
    whole = traceback.TracebackException.from_exception(error)
    seen: set[int] = set()
    stack = [whole]
    while stack:
        one = stack.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        kept = [f for f in one.stack if not _is_ours(f.filename) and f.name != "<traced call>"]  # trace.stand_in
        one.stack[:] = kept
        stack += [other for other in (one.__cause__, one.__context__, *(one.exceptions or ())) if other is not None]
    return "".join(whole.format())


def _is_ours(filename: str) -> bool:
    return filename.startswith(_MACHINERY) or (filename.startswith(_PACKAGE) and not filename.startswith(_PROGRAMS))

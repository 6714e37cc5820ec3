"""Files of a report as tools outside name them: relative to the folder they run in, or as a URI."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

__all__ = ["relative", "uri"]


def relative(file: str) -> str:
    """Return a path below the working directory relative to it, with ``/``; any other as it is.

    Example:
        >>> relative(os.path.join(os.getcwd(), "models", "net.py")), relative("<stdin>")
        ('models/net.py', '<stdin>')
    """
    if not os.path.isabs(file):
        return file.replace(os.sep, "/")
    try:
        inside = Path(file).relative_to(os.getcwd())
    except ValueError:
        return file
    return inside.as_posix()


def uri(file: str) -> str:
    """Return a file as a URI reference: relative below the working directory, else absolute.

    Example:
        >>> uri("my net.py"), uri("/somewhere/net.py"), uri("<stdin>")
        ('my%20net.py', 'file:///somewhere/net.py', '%3Cstdin%3E')
    """
    place = relative(file)
    written = quote(place.replace(os.sep, "/").encode("utf-8", "surrogateescape"))
    if not os.path.isabs(place):
        return written
    return f"file://{written}" if written.startswith("/") else f"file:///{written}"

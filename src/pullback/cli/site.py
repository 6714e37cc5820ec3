"""``pullback gallery`` and ``pullback serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from pullback.cli.output import check_folder, print_line
from pullback.core.errors import UsageError

__all__ = ["register"]

_RUNS = Path("runs")
_SITE = Path("site")


def register(app: cyclopts.App) -> None:
    """Add the commands."""
    app.command(gallery)
    app.command(serve)


def gallery(
    *,
    out: Annotated[Path, Parameter(help="Folder of the site.")] = _SITE,
    runs: Annotated[Path, Parameter(help="The results store.")] = _RUNS,
) -> int:
    """Build a static site of all systems with the results of their latest runs; it works from `file://`.

    Example: `pullback gallery --out site`
    """
    check_folder("out", out)
    from pullback.lab.gallery import build

    index = build(runs, out)
    print_line(str(index))
    return 0


def serve(
    *,
    port: Annotated[int, Parameter(help="On 127.0.0.1; 0 takes a free one.")] = 8000,
    runs: Annotated[Path, Parameter(help="The results store.")] = _RUNS,
) -> int:
    """Serve the gallery on this machine, with a page to start runs and watch them.

    Example: `pullback serve --port 8000`
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"port must be in [0, 65535], got {port}")
    from pullback.lab.server import serve as start

    start(runs, port=port)
    return 0

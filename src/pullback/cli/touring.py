"""``pullback demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import cyclopts
from cyclopts import Parameter

from pullback.cli.output import check_folder, print_json
from pullback.core.errors import UsageError
from pullback.core.output import lend_output

__all__ = ["register"]

_DEMO = Path("pullback-demo")


def register(app: cyclopts.App) -> None:
    """Add the command."""
    app.command(demo)


def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder of the page.")] = _DEMO,
    seed: Annotated[int, Parameter(help="Of every random draw, >= 0.")] = 0,
    json: Annotated[bool, Parameter(negative=(), help="Print JSON.")] = False,
) -> int:
    """Audit a pipeline over real digits that cannot learn, relax it, train it, and write a page with pictures.

    Example: `pullback demo --out pullback-demo`
    """
    if seed < 0:
        raise UsageError(f"seed must be an integer >= 0, got {seed}")
    check_folder("out", out)
    from pullback.demo.tour import run

    with lend_output(to_stderr=json):
        summary = run(out, seed=seed)
    if json:
        print_json(summary)
    return 0

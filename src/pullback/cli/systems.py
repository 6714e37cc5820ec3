"""``pullback list`` and ``pullback show``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from pullback.cli.output import print_json, print_line
from pullback.cli.tables import print_table
from pullback.core.errors import UsageError
from pullback.lab.config import plain

if TYPE_CHECKING:
    from pullback.lab import DamagedRecord, RunResult, System
    from pullback.lab.result import Claim

__all__ = ["in_words", "print_result", "register"]

_RUNS = Path("runs")


def register(app: cyclopts.App) -> None:
    """Add the commands."""
    app.command(list_systems, name="list")
    app.command(show)


def list_systems(
    *,
    family: Annotated[str | None, Parameter(help="Only the systems of this family.")] = None,
    runs: Annotated[Path, Parameter(help="The results store.")] = _RUNS,
    json: Annotated[bool, Parameter(negative=(), help="Print JSON.")] = False,
) -> int:
    """List the published systems, with the verdict of their latest run.

    Example: `pullback list --family discrete`
    """
    from pullback.lab import registry

    try:
        names = registry.slugs(family)
    except ValueError as error:
        raise UsageError(str(error)) from error
    rows = []
    for slug in names:
        latest, damaged = _latest(runs, slug)
        rows.append(
            {
                "slug": slug,
                "family": registry.family_of(slug),
                "summary": registry.summary(slug),
                "status": latest.status if latest else None,
                "verdicts": latest.verdicts if latest else None,
                "damaged": len(damaged),
            }
        )
    if json:
        print_json(rows)
        return 0
    print_table(
        ("system", "family", "latest run", "what it is"),
        [(row["slug"], row["family"], _run_in_words(row), row["summary"]) for row in rows],
        fold=("what it is",),
    )
    return 0


def _latest(runs: Path, slug: str) -> tuple[RunResult | None, list[DamagedRecord]]:
    """The newest record of a system, and those that are damaged."""
    from pullback.lab import DamagedRecord, scan

    found = list(scan(runs, slug))
    damaged = [record for record in found if isinstance(record, DamagedRecord)]
    return next((record for record in found if not isinstance(record, DamagedRecord)), None), damaged


def _run_in_words(row: dict[str, Any]) -> str:
    """``complete: 6 held, 5 not judged``."""
    words = "not run"
    if row["status"] is not None:
        counts = ", ".join(f"{count} {verdict}" for verdict, count in row["verdicts"].items() if count)
        words = f"{row['status']}: {counts}" if counts else row["status"]
    return f"{words}; {row['damaged']} damaged" if row["damaged"] else words


def show(
    slug: Annotated[str, Parameter(help="Name of a system (`pullback list`).")],
    /,
    *,
    runs: Annotated[Path, Parameter(help="The results store.")] = _RUNS,
    json: Annotated[bool, Parameter(negative=(), help="Print JSON.")] = False,
) -> int:
    """Show a system: what it is, its options, data and blocks, and what its latest run found.

    Example: `pullback show monotonic-sorting-networks`
    """
    from pullback.lab import registry

    try:
        system = registry.load(slug)
    except ValueError as error:
        raise UsageError(str(error)) from error
    latest, damaged = _latest(runs, slug)
    if json:
        print_json(
            {
                "slug": slug,
                "family": system.family,
                "title": system.title,
                "paper": system.paper,
                "description": system.description,
                "options": [
                    {
                        "name": o.name,
                        "type": _type_name(o.type),
                        "default": plain(o.default),
                        "range": o.limits,
                        "help": o.help,
                    }
                    for o in system.options.values()
                ],
                "scales": {scale: plain(changes) for scale, changes in system.scales.items()},
                "data": list(system.data),
                "takes_data": system.takes_data,
                "blocks": list(system.blocks),
                "latest": latest.to_json() if latest else None,
                "damaged": [{"directory": str(one.directory), "problem": one.problem} for one in damaged],
            }
        )
        return 0
    print_line(f"{system.title}\n{system.paper}\n\n{system.description}\n")
    print_line(f"blocks  {', '.join(f'pullback.{block}' for block in system.blocks) or 'none named'}")
    print_line(f"data    {', '.join(system.data) or 'none to fetch'}")
    if system.takes_data:
        print_line(f"--data  {system.takes_data}")
    print_line(f"run     pullback run {slug}\n")
    if system.options:
        print_table(
            ("option", "default", "smoke", "full", "range", "meaning"),
            [
                (f"--{o.name.replace('_', '-')}", in_words(o.default), *_changes(system, o.name), o.limits, o.help)
                for o in system.options.values()
            ],
            fold=("meaning",),
        )
    if latest:
        print_line(f"\nlatest run: {latest.directory} ({latest.status}, scale {latest.scale}, seed {latest.seed})")
        print_result(latest)
    for one in damaged:
        print_line(f"\ndamaged: {one.directory}: {one.problem}")
    return 0


def _changes(system: System, option: str) -> tuple[str, str]:
    smoke, full = (in_words(system.scales[scale].get(option, "")) for scale in ("smoke", "full"))
    return smoke, full


def in_words(value: Any) -> str:
    """Return the value of an option as it is typed behind ``--option``.

    Example:
        >>> in_words((8, 16)), in_words(((8, 4), (4, 24))), in_words(None)
        ('8 16', '8 4 4 24', 'none')
    """
    if isinstance(value, tuple | list):
        return " ".join(map(in_words, value))
    return "none" if value is None else str(plain(value))


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def print_result(result: RunResult) -> None:
    """Print claims and metrics of a run as tables."""
    from rich.text import Text

    colours = {"held": "green", "failed": "bold red", "not judged": "dim"}
    if result.claims:
        print_table(
            ("verdict", "claim", "numbers"),
            [(Text(c.verdict, style=colours[c.verdict]), c.statement, _numbers(c)) for c in result.claims],
        )
    if result.metrics:
        print_line()
        print_table(
            ("metric", "of", ">value", "unit", "better", ""),
            [
                (m.name, m.of, _number(m.value, m.spread, 5), m.unit, m.better or "", "baseline" if m.baseline else "")
                for m in result.metrics
            ],
        )


def _numbers(claim: Claim) -> str:
    return ", ".join(f"{name} {_number(value, claim.spreads.get(name))}" for name, value in claim.numbers.items())


def _number(value: float | str, spread: float | None, digits: int = 4) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.{digits}g}" if spread is None else f"{value:.{digits}g} ± {spread:.2g}"

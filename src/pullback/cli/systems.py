"""``pullback list`` and ``pullback show``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import cyclopts
from cyclopts import Parameter

from pullback.cli.output import print_json, print_line, print_table

__all__ = ["register"]

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
    from pullback.lab.result import read_results
    from pullback.lab.runner import UsageError

    try:
        names = registry.slugs(family)
    except ValueError as error:
        raise UsageError(str(error)) from error
    rows = []
    for slug in names:
        latest = next(read_results(runs, slug), None)
        rows.append(
            {
                "slug": slug,
                "family": registry.family_of(slug),
                "summary": registry.summary(slug),
                "status": latest.status if latest else None,
                "held": len(latest.held) if latest else None,
                "claims": len(latest.claims) if latest else None,
            }
        )
    if json:
        print_json(rows)
        return 0
    verdicts = [f"{r['status']}, {r['held']}/{r['claims']} held" if r["status"] else "not run" for r in rows]
    print_table(
        ("system", "family", "latest run", "what it is"),
        [(r["slug"], r["family"], verdict, r["summary"]) for r, verdict in zip(rows, verdicts, strict=True)],
        fold=("what it is",),
    )
    return 0


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
    from pullback.lab.result import read_results
    from pullback.lab.runner import UsageError

    try:
        system = registry.load(slug)
    except ValueError as error:
        raise UsageError(str(error)) from error
    latest = next(read_results(runs, slug), None)
    if json:
        print_json(
            {
                "slug": slug,
                "family": system.family,
                "title": system.title,
                "paper": system.paper,
                "description": system.description,
                "options": [
                    {"name": o.name, "type": _type_name(o.type), "default": o.default, "help": o.help}
                    for o in system.options.values()
                ],
                "scales": {scale: dict(changes) for scale, changes in system.scales.items()},
                "data": list(system.data),
                "blocks": list(system.blocks),
                "latest": latest.to_json() if latest else None,
            }
        )
        return 0
    print_line(f"{system.title}\n{system.paper}\n\n{system.description}\n")
    print_line(f"blocks  {', '.join(f'pullback.{block}' for block in system.blocks) or 'none named'}")
    print_line(f"data    {', '.join(system.data) or 'none to fetch'}")
    print_line(f"run     pullback run {slug}\n")
    if system.options:
        print_table(
            ("option", "default", "smoke", "full", "meaning"),
            [
                (f"--{o.name.replace('_', '-')}", o.default, *_changes(system, o.name), o.help)
                for o in system.options.values()
            ],
            fold=("meaning",),
        )
    if latest:
        print_line(f"\nlatest run: {latest.directory} ({latest.status}, scale {latest.scale}, seed {latest.seed})")
        print_result(latest)
    return 0


def _changes(system: Any, option: str) -> tuple[str, str]:
    return tuple(str(system.scales[scale].get(option, "")) for scale in ("smoke", "full"))  # type: ignore[return-value]


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def print_result(result: Any) -> None:
    """Print claims and metrics of a run as tables."""
    from rich.text import Text

    colours = {"held": "green", "failed": "bold red", "not judged": "dim"}
    if result.claims:
        print_table(
            ("verdict", "claim", "numbers"),
            [(Text(c.verdict, style=colours[c.verdict]), c.statement, _numbers(c.numbers)) for c in result.claims],
        )
    if result.metrics:
        print_line()
        print_table(
            ("metric", "of", ">value", "unit", "better", ""),
            [
                (m.name, m.of, f"{m.value:.5g}", m.unit, m.better or "", "baseline" if m.baseline else "")
                for m in result.metrics
            ],
        )


def _numbers(numbers: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if not isinstance(value, str) else f"{name} {value}" for name, value in numbers.items()
    )

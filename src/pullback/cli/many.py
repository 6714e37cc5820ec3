"""``pullback verify`` and ``pullback sweep``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from pullback.cli.output import print_json, print_line
from pullback.cli.running import Json, Runs, Scale, parse_options
from pullback.cli.status import FINE, FOUND, RAISED
from pullback.cli.systems import in_words
from pullback.cli.tables import print_table
from pullback.core.errors import UsageError
from pullback.lab.config import plain

if TYPE_CHECKING:
    from pullback.lab.campaign import Outcome
    from pullback.lab.registry import System

__all__ = ["register"]

_RUNS = Path("runs")
Seeds = Annotated[int, Parameter(help="Number of seeds: 0, 1, ...")]
Jobs = Annotated[int, Parameter(help="Processes on this machine.")]
Ray = Annotated[
    str | None,
    Parameter(help="Run on a Ray cluster instead: `auto`, `local` or `ray://host:port`.", show_default=False),
]
Budget = Annotated[float | None, Parameter(help="Seconds for each run.")]


def register(app: cyclopts.App) -> None:
    """Add the commands."""
    app.command(verify)
    app.command(sweep)


def verify(
    *slugs: Annotated[str, Parameter(help="Names of systems; all of them (of the family) when none is given.")],
    family: Annotated[str | None, Parameter(help="Only the systems of this family.")] = None,
    seeds: Seeds = 1,
    jobs: Jobs = 1,
    ray: Ray = None,
    scale: Scale = None,
    budget: Budget = None,
    runs: Runs = _RUNS,
    json: Json = False,
) -> int:
    """Run systems over seeds and print which of their claims held; exit status 1 if one failed.

    Example: `pullback verify --family discrete --seeds 3 --jobs 2`
    """
    from pullback.lab import campaign, registry

    try:
        systems = [registry.load(slug) for slug in (slugs or registry.slugs(family))]
    except ValueError as error:
        raise UsageError(str(error)) from error
    if not systems:
        raise UsageError(f"family {family!r} has no systems")
    settings = {"scale": scale or "default", "budget": budget, "runs": campaign.absolute(runs)}
    todo = campaign.seeds(systems, seeds, **settings)
    outcomes = campaign.execute(todo, workers=jobs, ray=ray, report=_progress(len(todo)))
    counts = campaign.count_claims(outcomes)
    broken = [outcome for outcome in outcomes if outcome.error]
    if json:
        print_json(
            {
                "claims": [vars(count) for count in counts],
                "errors": [_error(outcome) for outcome in broken],
                "runs": [_summary(outcome) for outcome in outcomes],
            }
        )
    else:
        _print_claims(counts)
        for outcome in broken:
            print_line(f"{outcome.job.slug}, seed {outcome.job.seed}: {outcome.error}")
        failed = sum(count.failed > 0 for count in counts)
        held = sum(count.held > 0 and not count.failed for count in counts)
        print_line(f"\n{held} claims held, {failed} failed, {len(counts) - held - failed} not judged")
    return _status(outcomes)


def sweep(
    slug: Annotated[str, Parameter(help="Name of a system.")],
    /,
    *values: Annotated[str, Parameter(help="`option=value,value,...`; in a tuple its parts are joined by `+`.")],
    seeds: Seeds = 1,
    jobs: Jobs = 1,
    ray: Ray = None,
    scale: Scale = None,
    budget: Budget = None,
    runs: Runs = _RUNS,
    json: Json = False,
) -> int:
    """Run a system for every combination of config values and print its metrics side by side.

    Example: `pullback sweep monotonic-sorting-networks steepness=1,10 steps=100,200 --jobs 2`
    """
    from pullback.lab import campaign, registry

    try:
        system = registry.load(slug)
    except ValueError as error:
        raise UsageError(str(error)) from error
    chosen = _values(system, values)
    settings = {"scale": scale or "default", "budget": budget, "runs": campaign.absolute(runs)}
    todo = campaign.grid(system, chosen, seeds, **settings)
    outcomes = campaign.execute(todo, workers=jobs, ray=ray, report=_progress(len(todo)))
    rows = _by_config(outcomes)
    if json:
        errors = [_error(outcome) for outcome in outcomes if outcome.error]
        print_json({"rows": rows, "runs": [_summary(outcome) for outcome in outcomes], "errors": errors})
    else:
        metrics = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
        print_table(
            (*chosen, *(f">{name}" for name in metrics), "claims held"),
            [
                (
                    *(in_words(row["config"][name]) for name in chosen),
                    *(f"{row['metrics'][name]:.5g}" if name in row["metrics"] else "" for name in metrics),
                    f"{row['held']}/{row['judged']}",
                )
                for row in rows
            ],
        )
        for outcome in outcomes:
            if outcome.error:
                print_line(f"{dict(outcome.job.config)}, seed {outcome.job.seed}: {outcome.error}")
    return _status(outcomes)


def _values(system: System, words: Sequence[str]) -> dict[str, list[Any]]:
    """Parse ``option=value,value`` by the rules of ``pullback run``."""
    from pullback.core.checks import nearest

    if not words:
        raise UsageError(f"sweep needs option=value,... with an option of {system.slug}: {', '.join(system.options)}")
    chosen: dict[str, list[Any]] = {}
    for word in words:
        name, equals, listed = word.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if not equals or not listed:
            raise UsageError(f"a sweep is option=value,value,..., got {word!r}")
        if name in chosen:
            raise UsageError(f"option {name!r} is given twice")
        if name not in system.options:
            listed_options = ", ".join(system.options) or "none"
            hint = nearest(name, system.options)
            raise UsageError(f"{system.slug} has no option {name!r}{hint} (options: {listed_options})")
        flag = f"--{name.replace('_', '-')}"
        chosen[name] = [
            parse_options(system, [f"{flag}={part}" for part in _parts(system, name, value)])[name]
            for value in listed.split(",")
        ]
        for value in chosen[name]:
            try:
                system.configure(**{name: value})
            except (ValueError, TypeError) as error:
                raise UsageError(str(error)) from error
    return chosen


def _parts(system: System, name: str, value: str) -> list[str]:
    return value.split("+") if isinstance(system.options[name].default, tuple | list) else [value]


def _by_config(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row a combination: means of the metrics over its seeds, claims held of those judged."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(repr(sorted(outcome.job.config.items())), []).append(outcome)
    rows = []
    for group in groups.values():
        results = [outcome.result for outcome in group if outcome.result]
        measured: dict[str, list[float]] = {}
        for result in results:
            for metric in result.metrics:
                label = f"{metric.name} ({metric.of})" if metric.of else metric.name
                measured.setdefault(label, []).append(metric.value)
        rows.append(
            {
                "config": plain(group[0].job.config),
                "seeds": len(group),
                "metrics": {name: mean(found) for name, found in measured.items()},
                "held": sum(len(result.held) for result in results),
                "judged": sum(len(result.held) + len(result.failed) for result in results),
            }
        )
    return rows


def _progress(total: int) -> Any:
    done = 0

    def report(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        result = outcome.result
        verdict = outcome.error or (f"{len(result.held)} held, {len(result.failed)} failed" if result else "")
        seconds = f" ({result.seconds:.0f} s)" if result else ""
        line = f"[{done}/{total}] {outcome.job.slug} seed {outcome.job.seed}: {verdict}{seconds}"
        print(line, file=sys.stderr, flush=True)

    return report


def _print_claims(counts: Sequence[Any]) -> None:
    from rich.text import Text

    def verdict(count: Any) -> Text:
        if count.failed:
            return Text("failed", style="bold red")
        return Text("held", style="green") if count.held else Text("not judged", style="dim")

    print_table(
        ("verdict", ">held", "system", "claim"),
        [(verdict(c), f"{c.held}/{c.held + c.failed}", c.slug, c.statement) for c in counts],
        fold=("claim",),
    )


def _error(outcome: Outcome) -> dict[str, Any]:
    return {"slug": outcome.job.slug, "seed": outcome.job.seed, "error": outcome.error}


def _summary(outcome: Outcome) -> Mapping[str, Any]:
    result, job = outcome.result, outcome.job
    return {
        "slug": job.slug,
        "seed": job.seed,
        "config": plain(job.config),
        "status": result.status if result else "failed",
        "seconds": result.seconds if result else None,
        "directory": str(result.directory) if result else None,
    }


def _status(outcomes: Sequence[Outcome]) -> int:
    """3 where a system raised or its process died, 1 where a claim failed or was left open by the budget, else 0."""
    stopped = [o for o in outcomes if o.error and o.error != "out of time"]
    if stopped:
        return RAISED
    return FOUND if any(o.error or (o.result and o.result.failed) for o in outcomes) else FINE

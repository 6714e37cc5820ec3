"""``pullback bench``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cyclopts
from cyclopts import Parameter

from pullback.cli.output import print_json, print_line
from pullback.cli.tables import print_table
from pullback.core.errors import UsageError

if TYPE_CHECKING:
    from pullback.lab.bench import Measurement, Table

__all__ = ["register"]

LARGEST_IMPORT = 0.1
"""CPU seconds that ``import pullback`` may add to ``import torch``."""


def register(app: cyclopts.App) -> None:
    """Add the command."""
    app.command(bench)


def bench(
    family: Annotated[
        str | None, Parameter(help="A family, `estimators`, or `import`; everything when none is given.")
    ] = None,
    /,
    *,
    match: Annotated[str, Parameter(help="Only cases and tables whose name contains this.")] = "",
    rounds: Annotated[int, Parameter(help="Rounds in which ours and the peers take turns.")] = 7,
    threads: Annotated[int, Parameter(help="That torch may compute with.")] = 1,
    folder: Annotated[
        Path | None, Parameter(help="Where `<family>.py` with its cases lies. [default: benchmarks/ of the checkout]")
    ] = None,
    json: Annotated[bool, Parameter(negative=(), help="Print JSON.")] = False,
) -> int:
    """Measure the blocks against their peers: medians of CPU time in interleaved rounds, and ratios.

    A ratio above 1 says that ours is faster. What has no peer, or one that is not installed, stands in a second table;
    the last line is the geometric mean of the ratios of each family.

    `pullback bench estimators` also prints the bias and variance of every estimator of a categorical gradient.

    `pullback bench import` measures what `import pullback` adds to `import torch`; above 100 ms the exit status is 1.

    Example: `pullback bench discrete --match softsort`
    """
    import pullback
    from pullback.core.checks import nearest
    from pullback.lab.bench import geometric_mean, import_cost, load_cases, load_tables, measure

    for option, value in (("rounds", rounds), ("threads", threads)):
        if value < 1:
            raise UsageError(f"{option} must be >= 1, got {value}")
    folder = folder or _benchmarks(Path(pullback.__file__))
    files = {path.stem: path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")}
    if family is not None and family not in (*files, "import"):
        known = ", ".join(["import", *files])
        raise UsageError(
            f"no benchmarks of {family!r} in {folder}{nearest(family, ['import', *files])} (there are: {known})"
        )
    added = import_cost(rounds=rounds) if family in (None, "import") and not match else None
    measured: dict[str, list[Measurement]] = {}
    tables: list[tuple[str, Table, Sequence[Sequence[str | float]]]] = []
    for name in files if family is None else [family] if family in files else []:
        for case in load_cases(files[name]):
            if match in case.name:
                print(f"{name}: {case.name}", file=sys.stderr, flush=True)
                found = measure(case, rounds=rounds, threads=threads)
                measured.setdefault(name, []).append(found)
                ratios = [f"{ratio:.2f} of {peer}" for peer, ratio in found.ratios.items()]
                print(f"  {', '.join([_seconds(found.ours), *ratios])}", file=sys.stderr, flush=True)
        for table in load_tables(files[name]):
            if match in table.title:
                print(f"{name}: {table.title}", file=sys.stderr, flush=True)
                tables.append((name, table, table.rows()))
    means = {name: geometric_mean(found) for name, found in measured.items()}
    if json:
        cases = [{"family": name, **m.to_json()} for name, found in measured.items() for m in found]
        shown = [
            {"family": name, "title": t.title, "columns": [c.removeprefix(">") for c in t.columns], "rows": rows}
            for name, t, rows in tables
        ]
        print_json({"import_seconds": added, "cases": cases, "tables": shown, "geometric_means": means})
    else:
        for _, table, rows in tables:
            print_line(f"{table.title}\n")
            print_table(table.columns, [[_cell(value) for value in row] for row in rows])
            print_line("")
        _print(measured, added, means)
    return 1 if added is not None and added > LARGEST_IMPORT else 0


def _benchmarks(package: Path) -> Path:
    """``benchmarks/`` of the checkout that the package is imported from, or of the working directory."""
    for folder in (package.parents[2] / "benchmarks", Path("benchmarks")):
        if folder.is_dir():
            return folder
    raise UsageError("bench needs the benchmarks of a checkout: run it there, or name them with --folder")


def _print(measured: Mapping[str, list[Measurement]], added: float | None, means: Mapping[str, float | None]) -> None:
    every = [(family, found) for family, cases in measured.items() for found in cases]
    compared = [
        (family, found.name, _seconds(found.ours), peer, _seconds(seconds), f"{found.ratios[peer]:.2f}")
        for family, found in every
        for peer, seconds in found.peers.items()
    ]
    alone: list[tuple[Any, ...]] = []
    for family, found in every:
        reasons = [f"{peer} is not installed (no module {module})" for peer, module in found.absent.items()]
        if not found.peers and not reasons:
            reasons = ["no peer"]
        alone += [(family, found.name, _seconds(found.ours), reason) for reason in reasons]
    if every:
        print_line(f"Medians of {every[0][1].rounds} rounds in which all take turns: {every[0][1].clock}.\n")
    if compared:
        print_table(("family", "case", ">ours", "peer", ">theirs", ">ratio"), compared, fold=("case",))
    if alone:
        print_line("\nWithout a comparison:\n")
        print_table(("family", "case", ">ours", "why"), alone, fold=("case", "why"))
    if added is not None:
        print_line(
            f"import pullback adds {1000 * added:.1f} ms of CPU time to import torch "
            f"(at most {1000 * LARGEST_IMPORT:.0f})"
        )
    if measured:
        told = [
            f"{family} {'-' if mean is None else f'{mean:.2f}'} ({sum(len(m.ratios) for m in measured[family])})"
            for family, mean in means.items()
        ]
        print_line(f"geometric mean of the ratios (of how many; above 1: ours is faster): {', '.join(told)}")


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def _seconds(value: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"

"""The pages, rendered from a store: for the static site and for the server, which adds what only it can do."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

import pullback
from pullback.core.units import format_bytes
from pullback.lab.gallery.charts import bars, curves, format_number, with_spread
from pullback.lab.gallery.meshes import preview
from pullback.lab.gallery.prose import inline, prose
from pullback.lab.gallery.references import pictures, references
from pullback.lab.gallery.store import Entry, artifact_files, block_summary, family_summary
from pullback.lab.result import VERDICTS, Artifact, Claim, RunResult

__all__ = ["ORIGINS", "Pages", "assets", "command"]

MOST_RUNS = 20
"""Runs of a system that get a page of their own: the newest."""

ORIGINS = {
    "real": "measured or collected",
    "simulated": "drawn from a model, as the paper does or where nothing else exists",
    "stand-in": "takes the place of the paper's data",
}


def assets() -> dict[str, bytes]:
    """Return the style sheet, scripts, icon and pictures of reference runs by file name."""
    folder = resources.files("pullback.lab.gallery").joinpath("assets")
    return {item.name: item.read_bytes() for item in folder.iterdir() if item.is_file()} | pictures()


def command(slug: str, scale: str, seed: int, options: Mapping[str, Any]) -> str:
    """Return the shell command that runs a system.

    Example:
        >>> command("cosmo", "smoke", 1, {"sizes": [5, 10], "fail": True})
        'pullback run cosmo --scale smoke --seed 1 --sizes 5 10 --fail'
    """
    words = ["pullback", "run", slug]
    words += ["--scale", scale] if scale != "default" else []
    words += ["--seed", str(seed)] if seed else []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, list | tuple):
            words += [f"--{option}", *map(str, value)]
        else:
            words += [f"--{option}", str(value)]
    return shlex.join(words)


class Pages:
    """Renders pages.

    Args:
        live: whether a server answers that can start runs.
    """

    def __init__(self, *, live: bool = False) -> None:
        self._environment = _environment()
        self._live = live

    def index(self, entries: Sequence[Entry]) -> str:
        """Return the start page."""
        families: dict[str, list[Entry]] = {}
        for entry in entries:
            families.setdefault(entry.family, []).append(entry)
        shown = [run for entry in entries if (run := entry.shown) is not None]
        return self._render(
            "index.html.jinja",
            root="",
            families=families,
            summaries={family: family_summary(family) for family in families},
            verdicts=_verdicts([claim for run in shown for claim in run.claims]),
            counts={entry.slug: _verdicts(entry.shown.claims) for entry in entries if entry.shown is not None},
            thumbnails={entry.slug: _thumbnail(entry) for entry in entries},
            references=references(),
            ran=len(shown),
            search={entry.slug: _search_text(entry) for entry in entries},
        )

    def system(self, entry: Entry, run: RunResult | None = None) -> str:
        """Return the page of a system: of the run that speaks for it, or of the run that is given."""
        shown = run or entry.shown
        name = _name(shown) if shown is not None else ""
        changed = entry.changes(shown) if shown is not None else {}
        usual = entry.system.configure(shown.scale if shown else "default") if entry.system is not None else None
        return self._render(
            "system.html.jinja",
            root="../../" if run is None else "../../../",
            home="" if run is None else "../",
            files=f"{name}/" if run is None else "",
            entry=entry,
            reference=references().get(entry.slug),
            run=shown,
            is_main=run is None or shown is entry.shown,
            newest=entry.runs[0] if entry.runs else None,
            run_name=name,
            verdicts=_verdicts(shown.claims) if shown else {},
            over_seeds=_over_seeds(entry, shown) if shown else {},
            bars=bars(shown.metrics) if shown else [],
            charts=curves(shown.series, shown.arms) if shown else [],
            artifacts=_artifacts(shown) if shown else {},
            meshes=_meshes(shown) if shown else {},
            panoramas=_panoramas(shown) if shown else set(),
            changed=changed,
            usual=usual,
            command=command(entry.slug, shown.scale, shown.seed, changed) if shown else f"pullback run {entry.slug}",
            blocks={block: block_summary(block) for block in (entry.system.blocks if entry.system else ())},
            history=[
                (
                    _name(former),
                    former,
                    _verdicts(former.claims),
                    command(entry.slug, former.scale, former.seed, entry.changes(former)),
                )
                for former in entry.runs[:MOST_RUNS]
            ],
            older=max(0, len(entry.runs) - MOST_RUNS),
        )

    def fragment(self, template: str, **values: Any) -> str:
        """Return a page of the server, or a part of one."""
        return self._render(template, **values)

    def _render(self, template: str, **values: Any) -> str:
        return self._environment.get_template(template).render(
            live=self._live, version=pullback.__version__, built=time.time(), origins=ORIGINS, **values
        )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pullback.lab.gallery"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(
        number=format_number,
        bytes=format_bytes,
        spread=with_spread,
        prose=prose,
        inline=inline,
        date=lambda seconds: time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)),
        option=lambda name: "--" + name.replace("_", "-"),
        words=lambda name: name.replace("_", " "),
    )
    environment.globals["curves"] = curves
    return environment


def _name(run: RunResult) -> str:
    return run.directory.name if run.directory is not None else ""


def _verdicts(claims: Sequence[Claim]) -> dict[str, int]:
    return {verdict: sum(c.verdict == verdict for c in claims) for verdict in VERDICTS}


def _over_seeds(entry: Entry, shown: RunResult) -> dict[str, tuple[int, int]]:
    """Claim to (held, judged) over the newest run of each seed with the scale and options of the one shown."""
    alike: dict[int, RunResult] = {}
    for run in entry.runs:
        if (run.status, run.scale, run.config) == ("complete", shown.scale, shown.config):
            alike.setdefault(run.seed, run)
    if len(alike) < 2:
        return {}
    verdicts: dict[str, list[str]] = {}
    for run in alike.values():
        for claim in run.claims:
            verdicts.setdefault(claim.statement, []).append(claim.verdict)
    return {
        statement: (found.count("held"), len(found) - found.count("not judged"))
        for statement, found in verdicts.items()
    }


def _artifacts(run: RunResult) -> dict[str, list[tuple[Artifact, dict[str, str]]]]:
    """Kind to the artifacts, each with its files by ending."""
    kinds: dict[str, list[tuple[Artifact, dict[str, str]]]] = {}
    for artifact in run.artifacts:
        files = {Path(name).suffix.lower(): name for name in artifact_files(run, artifact)}
        kinds.setdefault(artifact.kind, []).append((artifact, files))
    return kinds


def _meshes(run: RunResult) -> dict[str, dict[str, Any] | None]:
    """Name of each mesh to what the viewer draws."""
    found: dict[str, dict[str, Any] | None] = {}
    for artifact in run.artifacts:
        if artifact.kind == "mesh" and run.directory is not None:
            files = artifact_files(run, artifact)
            found[artifact.name] = preview(run.directory / files[0]) if files else None
    return found


def _panoramas(run: RunResult) -> set[str]:
    """Names of the figures of several panels side by side, which need the whole width of the page."""
    wide = set()
    for artifact in run.artifacts:
        for name in artifact_files(run, artifact) if artifact.kind == "figure" else []:
            if name.endswith(".png") and run.directory is not None:
                with (run.directory / name).open("rb") as file:
                    header = file.read(24)
                # The first chunk of a PNG is IHDR: width and height follow its name, big-endian.
                width, height = (int.from_bytes(header[i : i + 4], "big") for i in (16, 20))
                if width > 1.8 * height:
                    wide.add(artifact.name)
    return wide


def _thumbnail(entry: Entry) -> dict[str, Any]:
    """A picture of the run: a figure, image or animation, else the first curves, else nothing."""
    run = entry.shown
    if run is None:
        return {"file": "", "chart": None}
    for kind in ("figure", "image", "animation"):
        for artifact in run.artifacts:
            files = artifact_files(run, artifact) if artifact.kind == kind else []
            if files:
                name = next((n for n in files if n.endswith(".svg")), files[0])
                return {"file": f"systems/{entry.slug}/{_name(run)}/{name}", "chart": None}
    charts = [chart for chart in curves(run.series[:8], run.arms) if chart.drawn]
    return {"file": "", "chart": charts[0] if charts else None}


def _search_text(entry: Entry) -> str:
    parts = [entry.slug, entry.title, entry.paper, entry.family, entry.summary, entry.description]
    parts += entry.system.blocks if entry.system else ()
    if (run := entry.shown) is not None:
        parts += [c.statement for c in run.claims] + [d.name for d in run.data] + [m.name for m in run.metrics]
    return " ".join(" ".join(parts).lower().split())

"""Reference runs: what the gallery shows of a system that has not been run here yet, marked as ours.

Each is a small picture and a record in ``reference/``, shipped with the package. ``make reference`` keeps the runs that
speak for their systems in ``runs/`` as the new ones (``python -m pullback.lab.gallery RUNS --picture SLUG=NAME`` says
which figure is shown).
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pullback.core.errors import UsageError
from pullback.core.files import write_atomically
from pullback.lab.gallery.store import Entry, Store, artifact_files
from pullback.lab.result import RunResult

__all__ = ["Reference", "keep", "keep_all", "pictures", "references"]

FOLDER = Path(str(resources.files("pullback.lab.gallery").joinpath("reference")))

LARGEST = 40_000
"""Bytes of a picture."""

_WIDTHS = (640, 480, 320, 240)
_HEIGHT = 480


@dataclass(frozen=True)
class Reference:
    """A run of ours.

    Attributes:
        slug: of the system.
        scale, seed: of the run.
        verdicts: how many of its claims held, failed, were not judged.
        picture: name of the figure, image or animation that is shown.
    """

    slug: str
    scale: str
    seed: int
    verdicts: Mapping[str, int]
    picture: str

    @property
    def file(self) -> str:
        """Name of the picture's file in a site."""
        return f"reference-{self.slug}.webp"


def references(folder: Path = FOLDER) -> dict[str, Reference]:
    """Return the references by slug."""
    found = [Reference(**json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))]
    return {reference.slug: reference for reference in found}


def pictures(folder: Path = FOLDER) -> dict[str, bytes]:
    """Return their pictures by file name."""
    return {each.file: (folder / f"{each.slug}.webp").read_bytes() for each in references(folder).values()}


def keep(run: RunResult, picture: str | None = None, folder: Path = FOLDER) -> Reference:
    """Keep a complete run as the reference of its system.

    Args:
        run: of any scale, with a figure, an image or an animation.
        picture: name of what is shown; by default what the former reference shows, else the first.
        folder: where to.

    Raises:
        UsageError: the run is not complete, or has no such picture.
    """
    if run.status != "complete":
        raise UsageError(f"a reference must be a complete run, got one that is {run.status}: {run.directory}")
    drawn = {
        artifact.name: next(name for name in files if name.endswith(".png"))
        for artifact in run.artifacts
        if artifact.kind in ("figure", "image", "animation") and (files := artifact_files(run, artifact))
    }
    former = references(folder).get(run.slug)
    if picture is None and former is not None and former.picture in drawn:
        picture = former.picture
    picture = picture or next(iter(drawn), None)
    if picture not in drawn or run.directory is None:
        raise UsageError(f"picture must be one of {', '.join(map(repr, drawn)) or 'none'} of {run.slug}: {picture!r}")
    kept = Reference(run.slug, run.scale, run.seed, dict(run.verdicts), picture)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{run.slug}.webp", _small(run.directory / drawn[picture]))
    text = json.dumps(dataclasses.asdict(kept), indent=1, ensure_ascii=False)
    write_atomically(folder / f"{run.slug}.json", f"{text}\n".encode())
    return kept


def keep_all(runs: Path, chosen: Mapping[str, str], folder: Path = FOLDER) -> list[Reference]:
    """Keep the runs of a store that speak for their systems: complete, at scale default, with its options.

    Args:
        runs: the store.
        chosen: slug to the name of the picture, where it is another than before.
        folder: where to.
    """
    return [keep(e.shown, chosen.get(e.slug), folder) for e in Store(runs).entries() if _speaks(e) and e.shown]


def _speaks(entry: Entry) -> bool:
    run = entry.shown
    return run is not None and (run.status, run.scale) == ("complete", "default") and not entry.changes(run)


def _small(path: Path) -> bytes:
    """A picture of at most :data:`LARGEST` bytes; of an animation its first frame."""
    from PIL import Image

    with Image.open(path) as image:
        whole = image.convert("RGBA")
    for width in _WIDTHS:
        small, stream = whole.copy(), io.BytesIO()
        small.thumbnail((width, _HEIGHT), Image.Resampling.LANCZOS)
        small.save(stream, format="webp", quality=80, method=6)
        if stream.tell() <= LARGEST:
            return stream.getvalue()
    raise UsageError(f"{path} cannot be shown in {LARGEST} bytes")

"""A store with everything that a record can hold, written without running a system, and a server over a store."""

from __future__ import annotations

import math
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import uvicorn

from pullback.lab.draw import files, style
from pullback.lab.result import Artifact, Claim, Data, Metric, RunResult, Series
from pullback.lab.server import configuration, create_app

NASTY = "<script>document.title='broken'</script>"
"""Must appear on pages as text."""

ROOT = Path(__file__).parents[2]

TOY = (
    sys.executable,
    "-c",
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.lab import toy; from pullback.cli import main; "
    "sys.exit(main())",
)
"""The command, with the toy system of the tests."""


def record(runs: Path, name: str = "20260101-120000", **changes: object) -> RunResult:
    """Write a record of ``cosmo`` with every kind of content; ``changes`` replace fields."""
    claims = [
        Claim("the method beats the baseline", "held", "smoke", {"ours": 0.93, "theirs": 0.81}),
        Claim("the method is twice as fast", "failed", "smoke", {"ratio": 1.4}),
        Claim(f"the gain shows {NASTY}", "not judged", "default", {"gain": math.nan}),
    ]
    metrics = [
        Metric("accuracy", 0.93, "ours", "higher"),
        Metric("accuracy", 0.81, "theirs", "higher", baseline=True),
        Metric("time", 1e-4, "ours", "lower", "s"),
        Metric("time", 10.0, "theirs", "lower", "s", baseline=True),
        Metric("drift", -2.0, "ours"),
        Metric("drift", 3.0, "theirs"),
        Metric("broken", math.nan, "ours"),
        Metric("parameters", 1234567.0),
    ]
    series = [
        Series("loss", "ours", list(range(50)), [1 / (1 + i) for i in range(50)]),
        Series("loss", "theirs", list(range(50)), [math.nan if 10 <= i < 20 else 1.0 - i / 100 for i in range(50)]),
        Series("once", "", [0], [1.0]),
    ]
    result = RunResult(
        "cosmo",
        "causal",
        "A Title",
        "Somebody, 2026",
        "complete",
        "smoke",
        metrics=metrics,
        claims=claims,
        series=series,
    )
    result.data = [Data("measured cells", "real"), Data("drawn graphs", "simulated"), Data("a set", "stand-in")]
    result.counts = {"evaluations": {"ours": 300}}
    result.notes = ["a remark"]
    result.started, result.seconds = 1_767_268_800.0, 12.5
    result.versions = {"torch": "2.13.0"}
    result = replace(result, **changes)  # type: ignore[arg-type]
    result.directory = runs / result.slug / name
    result.directory.mkdir(parents=True)
    if "artifacts" not in changes:
        result.artifacts = _artifacts(result.directory)
    result.write()
    return result


def _artifacts(directory: Path) -> list[Artifact]:
    figure, axes = style.subplots(1, 2)
    axes[0].plot([0, 1, 2], [1, 4, 2])
    ramp = np.linspace(0, 1, 16).reshape(4, 4)
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    table = {"columns": ["arm", "value"], "rows": [["ours", 0.5], [NASTY, "NaN"]]}
    return [
        Artifact("figure", "Two panels", files.figure(directory, "figure-two", figure), f"Caption {NASTY}"),
        Artifact("image", "ramp", files.image(directory, "image-ramp", ramp)),
        Artifact("animation", "turning", files.animation(directory, "animation-t", [ramp, ramp.T], rate=4)),
        Artifact("audio", "tone", files.audio(directory, "audio-tone", np.sin(np.arange(800) / 3), rate=8000)),
        Artifact("mesh", "corner", files.mesh(directory, "mesh-corner", corners, [[0, 1, 2], [0, 1, 3]])),
        Artifact("table", "numbers", files.table(directory, "table-n", ["arm", "value"], table["rows"]), "", table),
        Artifact("image", "lost", ("image-lost.png",)),
        Artifact("image", "elsewhere", ("../../secret.png",)),
    ]


@dataclass
class Served:
    """A server in a thread of this process."""

    port: int

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def served(runs: Path, idle: float = 60) -> Iterator[Served]:
    """Serve a store on a free port; runs are of the toy's command."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    server = uvicorn.Server(configuration(create_app(runs, port, program=TOY), idle=idle))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield Served(port)
    finally:
        server.should_exit = True
        thread.join()

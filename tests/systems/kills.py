"""Runs that die at random moments, as by ``kill -9``, and are resumed until they are complete.

    python -m tests.systems.kills neural-ode --kills 34 --scale default

prints how often it was killed, and what differs from the run that nobody killed (nothing, with exit status 0).

Every attempt is a fork of this process, so that nothing is imported twice. It dies right before or after a file is put
into its place, of which there are several a step, or a random part of a step later, or after a random time. Time is its
own CPU time (``ITIMER_PROF``, whose signal nobody handles): a busy machine kills no sooner than an idle one. No handler
runs, nothing is flushed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import math
import os
import random
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pullback import lab
from pullback.core.output import lend_output

KILLS = 34

MEASURED = ("s", "ms", "us", "µs", "seconds", "x", "bytes")
"""Units of metrics that are measured times, their ratios, or memory: they differ from run to run."""


def numbers(result: lab.RunResult) -> dict[str, Any]:
    """What a run found, but for measured times and memory."""
    return {
        "status": result.status,
        "metrics": {f"{m.name} ({m.of})": [m.value, *m.values] for m in result.metrics if m.unit not in MEASURED},
        "series": {f"{s.name} ({s.of}) {s.replicate}": [s.steps, s.values] for s in result.series},
        "counts": {kind: arms for kind, arms in result.counts.items() if "seconds" not in kind},
        "claims": [claim.statement for claim in result.claims],
        "data": [[one.name, one.origin] for one in result.data],
        "artifacts": [[artifact.kind, artifact.name, list(artifact.files)] for artifact in result.artifacts],
    }


@dataclass(frozen=True)
class End:
    """How an attempt ended: killed or not, what it used, how many files it put into their places."""

    killed: bool
    cpu_seconds: float
    replacements: int = 0


def attempt(
    slug: str, runs: Path, settings: dict[str, Any], *, replacements: float = math.inf, cpu_seconds: float = 0.0
) -> End:
    """Run or resume in a child that dies at so many begins and ends of replacements, or so many CPU seconds later.

    Raises:
        RuntimeError: it ended in another way.
    """
    answer, question = os.pipe()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            count = _die_at(replacements, cpu_seconds)
            resume = any(lab.scan(runs, slug))
            with lend_output(to_stderr=True):
                lab.run(slug, runs=runs, resume=resume, checkpoint_every=0, quiet=True, **settings)
            signal.setitimer(signal.ITIMER_PROF, 0)
            os.write(question, json.dumps([count(), sorted(sys.modules)]).encode())
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    os.close(question)
    with open(answer, "rb") as file:
        told = file.read()
    _, status, used = os.wait4(child, 0)
    seconds = used.ru_utime + used.ru_stime
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGKILL):
        return End(True, seconds)
    if status:
        raise RuntimeError(f"{slug} ended with status {status}, not killed")
    count, modules = json.loads(told)
    for name in modules:  # so that the next attempt computes from its first moment on
        with contextlib.suppress(Exception):  # it only saves time
            importlib.import_module(name)
    return End(False, seconds, count)


def _die_at(limit: float, cpu_seconds: float) -> Callable[[], int]:
    """Kill this process at a begin or end of putting a file into its place; return how often that could be."""
    count, replace = -1, os.replace
    signal.signal(signal.SIGPROF, signal.SIG_DFL)

    def tick() -> None:
        nonlocal count
        count += 1
        if count == limit and cpu_seconds:
            signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        elif count == limit:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(source: Any, target: Any) -> None:
        tick()
        replace(source, target)
        tick()

    tick()
    os.replace = counted  # type: ignore[assignment]
    return lambda: count


def differences(slug: str, kills: int, seed: int, **settings: Any) -> tuple[list[str], int]:
    """Return what differs from an unkilled run, and how many runs it took until they were killed so often."""
    moments = random.Random(seed)
    settings = {"seed": seed, **settings}
    with tempfile.TemporaryDirectory() as folder:
        attempt(slug, Path(folder) / "first", settings)  # tells which modules to import
        whole = Path(folder) / "whole"
        end = attempt(slug, whole, settings)
        (expected,) = (numbers(result) for result in lab.read_results(whole, slug))
        # An attempt goes on by two of ``kills`` parts of the run at most, some do not reach a step.
        most, longest, step = (
            max(2, 2 * end.replacements // kills),
            2 * end.cpu_seconds / kills,
            2 * end.cpu_seconds / end.replacements,
        )
        done, killed, found = 0, 0, []
        while killed < kills or not done:
            runs = Path(folder) / f"killed-{done}"
            while True:
                limits: dict[str, Any] = {}
                if killed < kills:
                    limits = moments.choice(
                        [
                            {"replacements": moments.randint(1, most)},
                            {"replacements": moments.randint(1, most), "cpu_seconds": moments.uniform(1e-3, step)},
                            {"replacements": 0, "cpu_seconds": moments.uniform(5e-3, longest + 1e-2)},
                        ]
                    )
                if not attempt(slug, runs, settings, **limits).killed:
                    break
                killed += 1
                if any(result.status == "complete" for result in lab.read_results(runs, slug)):
                    break  # killed behind its end
            (result,) = lab.read_results(runs, slug)
            done += 1
            assert result.directory is not None
            found += [f"{path} is left behind" for path in result.directory.rglob(".*")]
            found += [f"{place}: {a} became {b}" for place, a, b in compare(expected, numbers(result))]
    return found, done


def compare(expected: Any, found: Any, place: str = "") -> list[tuple[str, str, str]]:
    """Places where two trees differ, to the bit."""
    if isinstance(expected, dict) and isinstance(found, dict) and expected.keys() == found.keys():
        return [item for key in expected for item in compare(expected[key], found[key], f"{place}/{key}")]
    return [] if json.dumps(expected) == json.dumps(found) else [(place, str(expected)[:200], str(found)[:200])]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("slug")
    parser.add_argument("--module", help="imported first; it declares the system")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--scale", default="smoke")
    parser.add_argument("--seed", type=int, default=1)
    words = parser.parse_args()
    torch.set_num_threads(1)
    if words.module:
        importlib.import_module(words.module)
    lab.load(words.slug)
    found, done = differences(words.slug, words.kills, words.seed, scale=words.scale)
    for line in found:
        print(line)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    print(f"{words.slug}: {words.kills} kills, {done} complete runs, {seconds:.0f} CPU seconds")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs that die at random moments, as by ``kill -9``, and are resumed until they are complete.

    python -m tests.systems.kills neural-ode --kills 34 --scale default

prints how often it was killed, and what differs from the run that nobody killed (nothing, with exit status 0).

Every attempt is a fork of this process, so that nothing is imported twice. It is ended by the kernel at a moment of its
own CPU time (``ITIMER_PROF``, whose signal nobody handles): no handler runs, nothing is flushed, and a busy machine
kills no sooner than an idle one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from pullback import lab

KILLS = 34

TIMES = ("s", "ms", "us", "µs", "seconds", "x")
"""Units of metrics that are measured times or ratios of them: they differ from run to run."""


def numbers(result: lab.RunResult) -> dict[str, Any]:
    """What a run found, but for measured times."""
    return {
        "status": result.status,
        "metrics": {f"{m.name} ({m.of})": [m.value, *m.values] for m in result.metrics if m.unit not in TIMES},
        "series": {f"{s.name} ({s.of}) {s.replicate}": [s.steps, s.values] for s in result.series},
        "counts": {kind: arms for kind, arms in result.counts.items() if kind != "cpu seconds"},
        "claims": [claim.statement for claim in result.claims],
        "data": [[one.name, one.origin] for one in result.data],
        "artifacts": [[artifact.kind, artifact.name, list(artifact.files)] for artifact in result.artifacts],
    }


def attempt(slug: str, runs: Path, settings: dict[str, Any], cpu_seconds: float | None) -> float | None:
    """Run or resume in a child; return its CPU seconds, or ``None`` where it was killed.

    Raises:
        RuntimeError: it ended in another way.
    """
    child = os.fork()
    if child == 0:
        status = 70
        try:
            if cpu_seconds is not None:
                signal.signal(signal.SIGPROF, signal.SIG_DFL)
                signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
            resume = any(lab.scan(runs, slug))
            lab.run(slug, runs=runs, resume=resume, checkpoint_every=0, quiet=True, **settings)
            signal.setitimer(signal.ITIMER_PROF, 0)
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    _, status, used = os.wait4(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        return None
    if status:
        raise RuntimeError(f"{slug} ended with status {status}, not killed")
    return used.ru_utime + used.ru_stime


def differences(slug: str, kills: int, seed: int, **settings: Any) -> tuple[list[str], int, int]:
    """Return what differs from an unkilled run, how many runs were completed and how often they were killed."""
    moments = random.Random(seed)
    settings = {"seed": seed, **settings}
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole"
        cost = attempt(slug, whole, settings, None)
        assert cost is not None
        (expected,) = (numbers(result) for result in lab.read_results(whole, slug))
        done, killed, found = 0, 0, []
        while killed < kills or not done:
            runs = Path(folder) / f"killed-{done}"
            while True:
                # Most attempts get further than the one before; some do not reach a step.
                limit = moments.uniform(0.01, 4 * cost / max(kills, 1) + 0.1) if killed < kills else None
                if attempt(slug, runs, settings, limit) is not None:
                    break
                killed += 1
                if any(result.status == "complete" for result in lab.read_results(runs, slug)):
                    break  # killed behind its end
            (result,) = lab.read_results(runs, slug)
            done += 1
            found += [f"{place}: {a} became {b}" for place, a, b in compare(expected, numbers(result))]
    return found, done, killed


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
    found, done, killed = differences(words.slug, words.kills, words.seed, scale=words.scale)
    for line in found:
        print(line)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{words.slug}: {killed} kills, {done} complete runs, {used.ru_utime + used.ru_stime:.0f} CPU seconds")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

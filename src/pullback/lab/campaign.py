"""Many runs at once: over seeds (`verify`), over config values (`sweep`), in processes on this machine or on Ray."""

from __future__ import annotations

import concurrent.futures
import importlib
import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pullback.core.errors import UsageError
from pullback.core.output import lend_output
from pullback.lab.registry import System, load
from pullback.lab.result import RunResult
from pullback.lab.runner import RunError, check_ready, run

__all__ = ["ClaimCount", "Job", "Outcome", "count_claims", "execute", "grid", "seeds"]


@dataclass(frozen=True)
class Job:
    """One run to do, in whatever process: ``module`` is imported there before the system is looked up."""

    slug: str
    module: str
    seed: int = 0
    scale: str = "default"
    config: Mapping[str, Any] = field(default_factory=dict)
    runs: str = "runs"
    budget: float | None = None
    device: str = "cpu"
    quiet: bool = True


@dataclass(frozen=True)
class Outcome:
    """A job with its record, or with the line that says why there is none or only a part."""

    job: Job
    result: RunResult | None
    error: str = ""


@dataclass(frozen=True)
class ClaimCount:
    """A claim of a system over its runs: in how many it held, failed and was not judged."""

    slug: str
    statement: str
    held: int
    failed: int
    not_judged: int


def seeds(systems: Iterable[System], count: int, **settings: Any) -> list[Job]:
    """Return the runs of each system with seeds ``0 .. count - 1``.

    Raises:
        UsageError: ``count`` < 1.
    """
    if count < 1:
        raise UsageError(f"seeds must be >= 1, got {count}")
    return [Job(s.slug, s.run.__module__, seed=seed, **settings) for s in systems for seed in range(count)]


def grid(system: System, values: Mapping[str, Sequence[Any]], count: int = 1, **settings: Any) -> list[Job]:
    """Return the runs for every combination of config values, each with seeds ``0 .. count - 1``.

    Raises:
        UsageError: ``count`` < 1.
    """
    combinations = [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]
    return [job for config in combinations for job in seeds([system], count, config=config, **settings)]


def execute(
    jobs: Sequence[Job],
    *,
    workers: int = 1,
    ray: str | None = None,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Do all jobs; an error of one does not end the others.

    Args:
        jobs: what to run.
        workers: processes on this machine; with one, the jobs run in this process, one after the other.
        ray: address of a Ray cluster (``"auto"``, ``"local"`` or ``"ray://host:port"``) to run on instead.
        report: called with each outcome as it comes.

    Returns:
        The outcomes in the order of the jobs.

    Raises:
        UsageError: ``workers`` < 1, Ray is not installed or not reachable, data of a system are missing.
    """
    if workers < 1:
        raise UsageError(f"jobs must be >= 1, got {workers}")
    for slug, module in dict.fromkeys((job.slug, job.module) for job in jobs):
        importlib.import_module(module)
        check_ready(load(slug))
    if ray is not None:
        outcomes = _on_ray(jobs, ray)
    elif workers == 1:
        outcomes = ((index, _work(job)) for index, job in enumerate(jobs))
    else:
        outcomes = _in_processes(jobs, workers)
    found: dict[int, Outcome] = {}
    for index, outcome in outcomes:
        found[index] = outcome
        report(outcome)
    return [found[index] for index in range(len(jobs))]


def _work(job: Job) -> Outcome:
    """Do one job in this process."""
    importlib.import_module(job.module)
    settings: dict[str, Any] = {"scale": job.scale, "seed": job.seed, "config": job.config, "device": job.device}
    try:
        with lend_output(to_stderr=True):  # standard output belongs to the command that collects the outcomes
            result = run(job.slug, runs=job.runs, budget=job.budget, quiet=job.quiet, **settings)
    except RunError as error:
        return Outcome(job, error.result, str(error))
    except UsageError as error:
        return Outcome(job, None, str(error))
    return Outcome(job, result, "" if result.status == "complete" else result.status)


def _start_worker(threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; only a run that goes on handles it
    torch.set_num_threads(threads)


def _in_processes(jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, Outcome]]:
    """Run in spawned processes. A process that dies breaks the pool: what it left undone is then done one by one."""
    threads = max(1, (os.cpu_count() or 1) // workers)
    left = set(range(len(jobs)))
    with _pool(min(workers, len(jobs)), threads) as pool:
        futures = {pool.submit(_work, job): index for index, job in enumerate(jobs)}
        try:
            for future in concurrent.futures.as_completed(futures):
                index = futures[future]
                outcome = future.result()
                left.discard(index)
                yield index, outcome
        except BrokenProcessPool:
            pass
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    for index in sorted(left):
        with _pool(1, threads) as pool:
            try:
                yield index, pool.submit(_work, jobs[index]).result()
            except BrokenProcessPool:
                yield index, Outcome(jobs[index], None, f"the process that ran {jobs[index].slug} died")


def _pool(workers: int, threads: int) -> concurrent.futures.ProcessPoolExecutor:
    return concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=(threads,)
    )


def _on_ray(jobs: Sequence[Job], address: str) -> Iterator[tuple[int, Outcome]]:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise UsageError("--ray needs Ray: pip install 'pullback[dist]'") from error
    started = not ray.is_initialized()
    if started:
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=None if address != "local" else False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            allowed = "the address of a running cluster, 'auto' or 'local'"
            raise UsageError(f"ray must be {allowed}, got {address!r}: {error}") from error
    try:
        work = ray.remote(num_cpus=1, max_retries=0)(_work)
        waiting = {work.remote(job): index for index, job in enumerate(jobs)}
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            index = waiting.pop(ready)
            try:
                outcome = ray.get(ready)
            except ray.exceptions.RayError as error:
                reason = str(error).strip().splitlines()[-1]
                outcome = Outcome(jobs[index], None, f"the process that ran {jobs[index].slug} died: {reason}")
            _bring_home(outcome)
            yield index, outcome
    finally:
        if started:
            ray.shutdown()


def _bring_home(outcome: Outcome) -> None:
    """Write the record here where the node that ran it has another file system (the figures stay there)."""
    result = outcome.result
    if result is not None and result.directory is not None and not result.directory.exists():
        result.directory.mkdir(parents=True)
        result.write()


def count_claims(outcomes: Iterable[Outcome]) -> list[ClaimCount]:
    """Return every claim of every system with its verdicts over the runs."""
    verdicts: dict[tuple[str, str], list[str]] = {}
    for outcome in outcomes:
        for claim in outcome.result.claims if outcome.result else ():
            verdicts.setdefault((outcome.job.slug, claim.statement), []).append(claim.verdict)
    return [
        ClaimCount(slug, statement, found.count("held"), found.count("failed"), found.count("not judged"))
        for (slug, statement), found in verdicts.items()
    ]


def absolute(runs: Path) -> str:
    """The store as every process sees it."""
    return str(runs.resolve())

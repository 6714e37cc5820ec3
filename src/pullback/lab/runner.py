"""One run of one system: checks first, then the function, then the record, whatever happens."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

import pullback
from pullback.core.checks import check_choice
from pullback.core.errors import UsageError
from pullback.core.files import remove_partial
from pullback.data.cache import DataMissingError, missing
from pullback.lab.checkpoint import CheckpointError
from pullback.lab.config import plain
from pullback.lab.lab import Lab, Limits, RunStopped
from pullback.lab.progress import display
from pullback.lab.registry import System, load
from pullback.lab.result import SCALES, DamagedRecord, RunResult, this_process
from pullback.lab.store import RunBusyError, hold_run, new_directory, scan

__all__ = ["RunError", "check_ready", "run"]

UNFINISHED = ("killed", "interrupted", "out of time", "failed")
"""Statuses of a run that ``resume`` continues."""


class RunError(RuntimeError):
    """The system's code raised; the cause is that exception, ``result`` the record up to there."""

    def __init__(self, message: str, result: RunResult) -> None:
        super().__init__(message)
        self.result = result


def run(
    name: str | System,
    *,
    scale: str | None = None,
    seed: int | None = None,
    config: Mapping[str, Any] | None = None,
    device: str | None = None,
    data: str | Path | None = None,
    budget: float | None = None,
    runs: str | Path = "runs",
    resume: bool = False,
    checkpoint_every: float = 30.0,
    keep_checkpoints: bool = False,
    quiet: bool = False,
) -> RunResult:
    """Run a system and keep what it finds in ``runs/<slug>/<time>/``.

    Args:
        name: of the system, or the system.
        scale: ``"smoke"`` (seconds), ``"default"`` (about a minute) or ``"full"`` (the paper's sizes).
        seed: >= 0, of every random draw; 0 when not given.
        config: fields of the system's config to change.
        device: such as ``"cuda:0"``; ``"cpu"`` when not given, or where a resumed run was.
        data: folder or file with the paper's own data, for systems that take it.
        budget: seconds after which the run ends between two steps with status ``"out of time"``.
        runs: the results store.
        resume: continue the latest unfinished run of this system (of this scale, seed and config, where given).
        checkpoint_every: seconds between checkpoints within a loop; 0 saves after every step.
        keep_checkpoints: keep them when the run is complete; nothing but ``resume`` reads them.
        quiet: no progress on standard error.

    Returns:
        The record; its ``status`` is ``"complete"`` or ``"out of time"``.

    Raises:
        UsageError: an argument is not allowed, data are missing, or there is nothing to resume.
        RunError: the system raised.
        KeyboardInterrupt: the run was interrupted; its record and checkpoints are written.
    """
    try:
        system = load(name) if isinstance(name, str) else name
        if scale is not None:
            check_choice("scale", scale, SCALES)
        _check_arguments(seed, device, budget, checkpoint_every, data)
        settings = system.configure(scale or "default", **(config or {}))
        if data is not None and not system.takes_data:
            raise UsageError(f"{system.slug} takes no data of yours: leave out --data")
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    if data is None:
        check_ready(system)
    if resume:
        former = _unfinished(system, Path(runs), scale, seed, config or {})
        settings = _stored_settings(system, former)
        result = _continued(system, former, device)
    else:
        former, result = None, _new(system, scale or "default", seed or 0, device or "cpu", settings)
    limits = Limits(budget=budget, checkpoint_every=checkpoint_every)
    with _directory(result, Path(runs)) as directory, display(quiet=quiet or not _is_main()) as shown:
        lab = Lab(result, directory, shown, data_path=Path(data) if data else None, limits=limits, resume=resume)
        # Now that all processes of a distributed run have met, and read what they resume:
        with _held(result, former):
            if result.directory is not None:
                remove_partial(result.directory)
            if former is not None and former.versions.get("system") != result.versions["system"]:
                shown.say(f"the file of {system.slug} has changed since {directory} was begun")
            result.write()
            finished = _execute(system, settings, lab)
            if finished.status == "complete" and not keep_checkpoints:
                lab.remove_checkpoints()
            return finished


def _execute(system: System, settings: Any, lab: Lab) -> RunResult:
    try:
        with _stop_signals(lab), torch.random.fork_rng(devices=_cuda_devices(lab.device)):
            torch.manual_seed(lab.seed)  # initial weights of modules come from torch's own generator
            system.run(lab, settings)
    except RunStopped as stop:
        result = lab.finish(stop.status)
        if stop.status == "interrupted":
            raise KeyboardInterrupt from None
        return result
    except KeyboardInterrupt:
        lab.finish("interrupted")
        raise
    except Exception as error:
        summary = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        result = lab.finish("failed", summary)
        if isinstance(error, DataMissingError | CheckpointError):
            raise UsageError(f"{system.slug}: {error}") from error
        raise RunError(f"{system.slug} raised {summary}", result) from error
    return lab.finish("complete")


def _check_arguments(
    seed: int | None, device: str | None, budget: float | None, every: float, data: str | Path | None
) -> None:
    if seed is not None and not (isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63):
        raise UsageError(f"seed must be an integer >= 0, got {seed!r}")
    if budget is not None and not budget > 0:
        raise UsageError(f"budget must be > 0 seconds, got {budget}")
    if not every >= 0:
        raise UsageError(f"checkpoint_every must be >= 0 seconds, got {every}")
    try:
        torch.empty(0, device=device or "cpu")
    except (RuntimeError, AssertionError) as error:
        known = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise UsageError(f"device must be one of {', '.join(known)} (or another torch has), got {device!r}") from error
    if data is not None and not Path(data).exists():
        raise UsageError(f"data must be an existing folder or file, got {str(data)!r}")


def check_ready(system: System) -> None:
    """Raise :class:`UsageError`, naming the command that brings it, where declared data is missing."""
    absent = missing(system.data)
    if absent:
        raise UsageError(f"{system.slug} needs data: run `pullback data fetch {' '.join(absent)}`")


def _new(system: System, scale: str, seed: int, device: str, settings: Any) -> RunResult:
    return RunResult(
        slug=system.slug,
        family=system.family,
        title=system.title,
        paper=system.paper,
        scale=scale,
        seed=seed,
        device=device,
        config={name: plain(getattr(settings, name)) for name in system.options},
        started=time.time(),
        versions=_versions(system),
        process=this_process(),
    )


def _versions(system: System) -> dict[str, str]:
    return {
        "pullback": pullback.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": _fingerprint(system),
    }


def _fingerprint(system: System) -> str:
    """Of the system's file: whoever resumes a run is told that it has changed since."""
    file = inspect.getsourcefile(system.run)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] if file and Path(file).is_file() else ""


def _unfinished(
    system: System, runs: Path, scale: str | None, seed: int | None, config: Mapping[str, Any]
) -> RunResult:
    """The latest unfinished run that agrees with what was asked for."""
    wanted = {"scale": scale, "seed": seed}
    reasons: list[str] = []
    for found in scan(runs, system.slug):
        if isinstance(found, DamagedRecord):
            reasons.append(f"{found.directory} is damaged: {found.problem}")
            continue
        agrees = all(value is None or getattr(found, name) == value for name, value in wanted.items())
        if not agrees or any(found.config.get(name) != plain(value) for name, value in config.items()):
            continue
        if found.status in UNFINISHED:
            return found
        if found.status == "running":
            reasons.append(f"{found.directory} still goes on{_whose(found)}")
    asked = ", ".join(f"{name} {value}" for name, value in {**wanted, **config}.items() if value is not None)
    message = f"resume: no unfinished run of {system.slug} in {runs}{f' with {asked}' if asked else ''}"
    raise UsageError("; ".join([message, *reasons[:3]]))


def _whose(result: RunResult) -> str:
    process = result.process
    return f" (process {process['pid']} on {process['host']})" if {"pid", "host"} <= set(process) else ""


def _continued(system: System, former: RunResult, device: str | None) -> RunResult:
    """The record of a run that goes on, without what it will report again."""
    return dataclasses.replace(
        former,
        status="running",
        error="",
        device=device or former.device,
        resumed=former.resumed + 1,
        versions=_versions(system),
        process=this_process(),
        metrics=[],
        claims=[],
        data=[],
        series=[],
        artifacts=[],
        notes=[],
        arms=[],
        counts={},
        progress={},
    )


def _stored_settings(system: System, former: RunResult) -> Any:
    """The config of a former run; refused where the system has got other options since."""
    new = [name for name in system.options if name not in former.config]
    reason = f"it has no option {new[0]!r}" if new else ""
    try:
        settings = system.configure(former.scale, **former.config)
    except (ValueError, TypeError) as error:
        reason = str(error)
    if reason:
        raise UsageError(f"resume: {system.slug} has changed since {former.directory}: {reason}; start a new run")
    return settings


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _directory(result: RunResult, runs: Path) -> Iterator[Path]:
    """The run's directory; in processes that are not the main one a temporary, or the existing one to read from."""
    if _is_main():
        if result.directory is None:
            try:
                result.directory = new_directory(runs, result.slug)
            except OSError as error:
                raise UsageError(f"runs must be a folder one can write to, got {str(runs)!r}: {error}") from error
        yield result.directory
    elif result.directory is not None:
        existing, result.directory = result.directory, None
        yield existing
    else:
        with tempfile.TemporaryDirectory(prefix="pullback-") as temporary:
            yield Path(temporary)


@contextmanager
def _held(result: RunResult, former: RunResult | None) -> Iterator[None]:
    """The main process works on the run's directory, and no other does; ``former`` is what is to be continued there."""
    if result.directory is None:
        yield
        return
    with ExitStack() as stack:
        try:
            stack.enter_context(hold_run(result.directory))
        except RunBusyError as error:
            raise UsageError(f"resume: {error}") from None
        except OSError as error:
            raise UsageError(f"runs must be on a file system with locks, got {result.directory}: {error}") from error
        if former is not None and RunResult.read(result.directory).resumed != former.resumed:
            raise UsageError(f"resume: another process has continued {result.directory} in this moment")
        yield


@contextmanager
def _stop_signals(lab: Lab) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop a loop after its step; outside of loops, and the second time, at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if not lab.request_stop():
            raise KeyboardInterrupt

    try:
        for number in former:
            signal.signal(number, stop)
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _cuda_devices(device: torch.device) -> list[int]:
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]

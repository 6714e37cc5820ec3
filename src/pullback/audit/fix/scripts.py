"""Trials of a script: it runs again in a process of its own that cannot change anything of the user's."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

from pullback.audit.fix import sandbox
from pullback.audit.remedy.search import Candidate, Outcome, with_remedies
from pullback.audit.report.report import Report
from pullback.audit.trace.sites import is_user_file

__all__ = ["Server", "remedies_of_script"]


def remedies_of_script(
    report: Report,
    path: str | os.PathLike[str],
    args: Sequence[str] = (),
    *,
    seconds: float = 120.0,
    server: Server | None = None,
    **options: Any,
) -> Report:
    """Return the report of a script with the remedies that were tried and help.

    Each trial runs the script, changed, for the same number of steps in a process of its own: output is dropped, what
    it writes lands in a scratch folder, other changes of the file system, processes and the network are refused.

    Args:
        report: of :func:`pullback.audit.audit_script`.
        path: as there.
        args: as there.
        seconds: for all trials together.
        server: the process that runs the trials; by default one is started.
        **options: those given to :func:`pullback.audit.audit_script`.

    Raises:
        OSError: this system cannot fork.
    """
    if not hasattr(os, "fork"):
        raise OSError("remedies of scripts are tried in forked processes, which this system does not have")
    with Server() if server is None else contextlib.nullcontext(server) as running:
        return with_remedies(report, _Script(str(path), list(args), options, seconds, running), seconds)


class Server:
    """A process that runs trials, each in a fork of its own, and the folder into which they write.

    Args:
        forked: fork it at once from this process, which shares the libraries that it has loaded, and must not have
            run anything in torch yet; by default an interpreter is started for the first trial.
    """

    def __init__(self, *, forked: bool = False) -> None:
        self.scratch = Path(tempfile.mkdtemp(prefix="pullback-trial-"))
        self._process: int | None = None
        self._wait: Callable[[], int]
        self._jobs: IO[str]
        self._answers: IO[str]
        if forked:
            self._fork()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        shutil.rmtree(self.scratch, ignore_errors=True)

    def ask(self, job: dict[str, Any], seconds: float) -> bool:
        """Give a job to the process; whether it was done in time. One that was not ends the process."""
        if self._process is None:
            self._start()
        print(json.dumps(job), file=self._jobs, flush=True)
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            if not selector.select(seconds):
                self.stop()
                return False
        line = self._answers.readline()
        return bool(line) and json.loads(line)["status"] == 0

    def stop(self) -> None:
        """End the process and what it has forked."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process, signal.SIGKILL)
        self._wait()
        for end in (self._jobs, self._answers):
            with contextlib.suppress(BrokenPipeError):  # what was not read of a job
                end.close()
        self._process = None

    def _start(self) -> None:
        """Start an interpreter."""
        started = subprocess.Popen(
            [sys.executable, "-m", "pullback.audit.fix.sandbox", str(self.scratch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert started.stdin is not None
        assert started.stdout is not None
        self._process, self._wait = started.pid, started.wait
        self._jobs, self._answers = started.stdin, started.stdout

    def _fork(self) -> None:
        """Fork this process."""
        (read, jobs), (answers, write) = os.pipe(), os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setsid()
                os.close(jobs)
                os.close(answers)
                silent = os.open(os.devnull, os.O_RDWR)
                for descriptor in (0, 1, 2):
                    os.dup2(silent, descriptor)
                with open(read, encoding="utf-8") as lines, open(write, "w", encoding="utf-8") as out:
                    sandbox.serve(self.scratch, lines, out)
                code = 0
            finally:
                os._exit(code)
        os.close(read)
        os.close(write)
        self._process, self._wait = child, lambda: os.waitpid(child, 0)[1]
        self._jobs, self._answers = os.fdopen(jobs, "w", encoding="utf-8"), os.fdopen(answers, encoding="utf-8")


class _Script:
    """Runs the script, as it is or with a file changed."""

    def __init__(self, path: str, args: list[str], options: dict[str, Any], seconds: float, server: Server) -> None:
        self.path = path
        self.args = args
        self.options = options
        self.until = time.monotonic() + seconds
        self.server = server
        self._raises: str | None = None
        """Last line of the traceback in which the script as it is ends."""
        self._numbers = itertools.count()

    def text(self, file: str) -> str | None:
        """Return the text of a Python file of the user's."""
        if not file.endswith(".py") or not is_user_file(file):
            return None
        try:
            return Path(file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            return None

    def run(self, candidate: Candidate | None) -> Outcome | None:
        """Run and judge."""
        answer = f"answer-{next(self._numbers)}.json"
        job = {
            "path": self.path,
            "args": self.args,
            "options": self.options,
            "answer": answer,
            "file": None if candidate is None else candidate.file,
            "text": None if candidate is None else candidate.new,
            "imports": [] if candidate is None else list(candidate.imports.values()),
        }
        path = self.server.scratch / answer
        if not self.server.ask(job, max(self.until - time.monotonic(), 1.0)) or not path.is_file():
            return None
        found = json.loads(path.read_text())
        report = Report.from_dict(found["report"])
        raised = None if report.error is None else report.error.strip().rpartition("\n")[2]
        if candidate is None and report.findings:
            self._raises = raised  # what was found may end the script: a loss without any gradient raises
        if raised not in (None, self._raises):
            return None
        loss = None if found["loss"] is None else float(found["loss"])
        return Outcome(report, loss, "" if candidate is None else candidate.file)

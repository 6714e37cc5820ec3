"""Trials of a script: it runs again in a process of its own that cannot change anything of the user's."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pullback.audit.remedy.search import Candidate, Outcome, with_remedies
from pullback.audit.report.report import Report
from pullback.audit.trace.sites import is_user_file

__all__ = ["remedies_of_script"]


def remedies_of_script(
    report: Report, path: str | os.PathLike[str], args: Sequence[str] = (), *, seconds: float = 120.0, **options: Any
) -> Report:
    """Return the report of a script with the remedies that were tried and help.

    Each trial runs the script, changed, for the same number of steps in a process of its own: output is dropped, what
    it writes lands in a scratch folder, other changes of the file system, processes and the network are refused.

    Args:
        report: of :func:`pullback.audit.audit_script`.
        path: as there.
        args: as there.
        seconds: for all trials together.
        **options: those given to :func:`pullback.audit.audit_script`.

    Raises:
        OSError: this system cannot fork.
    """
    if not hasattr(os, "fork"):
        raise OSError("remedies of scripts are tried in forked processes, which this system does not have")
    with _sandbox(str(path), list(args), options, seconds) as trial:
        return with_remedies(report, trial, seconds)


@contextlib.contextmanager
def _sandbox(path: str, args: list[str], options: dict[str, Any], seconds: float) -> Iterator[_Script]:
    scratch = Path(tempfile.mkdtemp(prefix="pullback-trial-"))
    trial = _Script(path, args, options, seconds, scratch)
    try:
        yield trial
    finally:
        trial.stop()
        shutil.rmtree(scratch, ignore_errors=True)


class _Script:
    """Runs the script, as it is or with a file changed."""

    def __init__(self, path: str, args: list[str], options: dict[str, Any], seconds: float, scratch: Path) -> None:
        self.path = path
        self.args = args
        self.options = options
        self.until = time.monotonic() + seconds
        self.scratch = scratch
        self._raises: str | None = None
        """Last line of the traceback in which the script as it is ends."""
        self._numbers = itertools.count()
        self._server: subprocess.Popen[str] | None = None

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
        if not self._ask(job) or not (self.scratch / answer).is_file():
            return None
        found = json.loads((self.scratch / answer).read_text())
        report = Report.from_dict(found["report"])
        raised = None if report.error is None else report.error.strip().rpartition("\n")[2]
        if candidate is None and report.findings:
            self._raises = raised  # what was found may end the script: a loss without any gradient raises
        if raised not in (None, self._raises):
            return None
        loss = None if found["loss"] is None else float(found["loss"])
        return Outcome(report, loss, "" if candidate is None else candidate.file)

    def _ask(self, job: dict[str, Any]) -> bool:
        """Give a job to the server; whether it was done in time."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "pullback.audit.fix.sandbox", str(self.scratch)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
        server = self._server
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(server.stdout, selectors.EVENT_READ)
            if not selector.select(max(self.until - time.monotonic(), 1.0)):
                self.stop()
                return False
        line = server.stdout.readline()
        return bool(line) and json.loads(line)["status"] == 0

    def stop(self) -> None:
        """End the server and what it has forked."""
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, 9)
            self._server.communicate()
            self._server = None

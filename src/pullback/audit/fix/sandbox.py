"""The process in which a changed script is tried: it reads what the user has and writes into a scratch folder alone.

Started as ``python -m pullback.audit.fix.sandbox SCRATCH``, or forked from a process that has run nothing yet. It loads
torch once and forks for each job, a line of JSON; the report of the job goes into a file of the scratch folder, its
name is answered by a line.
"""

from __future__ import annotations

import builtins
import importlib.machinery
import importlib.util
import io
import json
import linecache
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from pullback.audit.fix import landlock

__all__ = ["confine", "load", "overlay", "serve"]

_FORBIDDEN = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.startfile",
    "smtplib.connect",
    "ftplib.connect",
)
_MOVES = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.truncate",
    "os.link",
    "os.symlink",
    "os.chmod",
    "os.chown",
)


def load() -> None:
    """Import what every trial needs: before the first fork, since each of them would take its seconds."""
    import torch._dynamo  # noqa: F401 (any optimizer loads it)

    import pullback.audit.script  # noqa: F401


def serve(scratch: Path, jobs: Iterable[str], answers: TextIO) -> None:
    """Run jobs until they end."""
    load()
    for line in jobs:
        job = json.loads(line)
        for own in job["imports"]:
            if own.startswith("from pullback import"):
                exec(own, {})  # once for all forks
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _work(job, scratch)
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), file=answers, flush=True)


def _work(job: dict[str, Any], scratch: Path) -> None:
    from pullback.audit.remedy.losses import first_losses
    from pullback.audit.script import audit_script

    silent = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silent, descriptor)
    answer = scratch / job["answer"]
    confine(scratch)
    if job["file"] is not None:
        overlay(job["file"], job["text"])
        exec("\n".join(job["imports"]), vars(builtins))  # on top of the file they would shift its lines
    with warnings.catch_warnings(), first_losses() as losses:
        warnings.simplefilter("ignore")
        report = audit_script(job["path"], job["args"], **job["options"])
    loss = losses[0] if losses else None
    answer.write_text(json.dumps({"report": report.to_dict(), "loss": None if loss is None else repr(loss)}))


def overlay(file: str, text: str) -> None:
    """Let the interpreter find another text in a source file, when it runs as a script and when it is imported."""
    target = os.path.realpath(file)
    linecache.cache[file] = linecache.cache[target] = (len(text), None, text.splitlines(keepends=True), file)
    open_code, get_code = io.open_code, importlib.machinery.SourceFileLoader.get_code

    def opened(path: str) -> Any:
        return io.BytesIO(text.encode()) if os.path.realpath(path) == target else open_code(path)

    def code(self: Any, fullname: str) -> Any:
        if os.path.realpath(self.path) == target:
            return compile(text, self.path, "exec", dont_inherit=True)
        return get_code(self, fullname)

    io.open_code = opened
    importlib.machinery.SourceFileLoader.get_code = code  # type: ignore[method-assign]


def confine(scratch: Path) -> None:
    """Send what is written to files into ``scratch``; refuse other changes of the file system, processes, the network.

    Files that are opened for writing, folders that are made and what torch saves land in the scratch folder and are
    found there when they are read again. The rest is refused by an audit hook, and by the kernel where it can
    (Landlock, since Linux 5.13), for libraries that write from compiled code.
    """
    import torch

    scratch = scratch.resolve()
    sys.dont_write_bytecode = True
    tempfile.tempdir = str(scratch)
    os.environ["TMPDIR"] = os.environ["NUMBA_CACHE_DIR"] = str(scratch)
    if "numba" in sys.modules:
        sys.modules["numba"].core.config.reload_config()  # compiled kernels fail where they cannot be kept
    plain_open, save, load = io.open, torch.save, torch.load

    def moved(file: Any) -> Any:
        if not isinstance(file, str | os.PathLike):
            return file
        path = Path(os.path.abspath(os.fspath(file)))
        if path.is_relative_to(scratch) or path.is_relative_to("/dev"):
            return file
        return scratch / "written" / path.relative_to(path.anchor)

    def opened(file: Any, mode: str = "r", *args: Any, **words: Any) -> Any:
        copy = moved(file)
        if copy is not file and set(mode) & set("wax+"):
            copy.parent.mkdir(parents=True, exist_ok=True)
            if set(mode) & set("a+") and os.path.isfile(file) and not copy.exists():
                shutil.copyfile(file, copy)
            file = copy
        elif copy is not file and copy.is_file():
            file = copy
        return plain_open(file, mode, *args, **words)

    def saved(value: Any, file: Any, *args: Any, **words: Any) -> Any:
        copy = moved(file)
        if copy is not file:
            copy.parent.mkdir(parents=True, exist_ok=True)
        return save(value, copy, *args, **words)

    def loaded(file: Any, *args: Any, **words: Any) -> Any:
        copy = moved(file)
        return load(copy if copy is not file and copy.is_file() else file, *args, **words)

    make = os.mkdir

    def made(path: Any, *args: Any, **words: Any) -> None:
        copy = moved(path)
        if copy is path:
            make(path, *args, **words)
        else:
            copy.mkdir(parents=True, exist_ok=True)

    builtins.open = io.open = opened
    torch.save = saved  # type: ignore[assignment]
    torch.load = loaded  # type: ignore[assignment]
    os.mkdir = made
    sys.addaudithook(_Guard(scratch))
    landlock.restrict_writes([scratch, Path("/dev")])


class _Guard:
    """Raises ``PermissionError`` where a program would change anything outside of the scratch folder."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = str(scratch) + os.sep

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
            if isinstance(path, str) and isinstance(flags, int) and flags & writes:
                self._refuse(event, path)
        elif event in _MOVES:
            for path in args[:2] if event in ("os.rename", "os.link", "os.symlink") else args[:1]:
                if isinstance(path, str | os.PathLike):
                    self._refuse(event, os.fspath(path))
        elif event in _FORBIDDEN:
            raise PermissionError(f"{event} is not run in a trial")
        elif (
            event == "socket.connect"
            and isinstance(args[1], tuple)
            and args[1][0] not in ("127.0.0.1", "localhost", "::1")
        ):
            raise PermissionError("a trial has no network")

    def _refuse(self, event: str, path: str) -> None:
        full = os.path.abspath(path)
        if not full.startswith((self.scratch, "/dev/")):
            raise PermissionError(f"{event} of {full} is not run in a trial")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.stdin, sys.stdout)

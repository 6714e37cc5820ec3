"""The command's top level: which module does what, exit statuses, errors in one line.

``audit`` and ``find`` need torch and numpy alone, and ``find``, ``--help`` and ``--version`` not even these; the other
commands are those of the lab, which a plain installation has not.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import pullback
from pullback.cli.output import UserCodeError, complain, prepare_streams
from pullback.cli.status import DEFECT, FINE, FOUND, INTERRUPTED, RAISED, WRONG_USE
from pullback.core.choices import nearest
from pullback.core.errors import UsageError

__all__ = ["COMMANDS", "main"]

_LAB = "pullback.cli.laboratory"

COMMANDS = {
    "audit": ("pullback.cli.auditing", "Find where the gradient dies, line by line of your own source."),
    "find": ("pullback.cli.finding", "Print what lets a gradient through where an operation does not."),
    "demo": (_LAB, "Audit a pipeline over real digits that cannot learn, relax it, train it."),
    "list": (_LAB, "List the published systems, with the verdict of their latest run."),
    "show": (_LAB, "Show a system: what it is, its options, data and blocks, its latest run."),
    "run": (_LAB, "Run a published system and keep what it finds."),
    "verify": (_LAB, "Run systems over seeds and print which of their claims held."),
    "sweep": (_LAB, "Run a system over values of its options and compare."),
    "bench": (_LAB, "Time blocks against their peers."),
    "data": (_LAB, "Bring real data from pinned packages into the cache, or list it."),
    "gallery": (_LAB, "Build a static site of all systems with the results of their latest runs."),
    "serve": (_LAB, "Serve the gallery on this machine, with a page to start runs."),
}
"""The module of each command, whose ``run`` gets the words behind the command's name, and what it does."""

_HELP = """\
pullback: make whole PyTorch systems end-to-end differentiable: audit, relax, build, verify.

Usage: pullback COMMAND [options], pullback COMMAND --help, pullback --version

Example: pullback audit train.py -- --epochs 1
         pullback find argmax
         pullback run neural-ode --scale smoke

{commands}

Commands after the first two need the extra `lab`.

Exit status: 0 fine; 1 a finding or a failed claim; 2 wrong use, in one line (--debug shows the traceback);
3 the audited code or the system raised; 70 a defect of pullback itself; 130 interrupted.
"""

_REFUSED = {
    *(errno.EACCES, errno.EDQUOT, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOSPC, errno.ENOTDIR),
    *(errno.EPERM, errno.EROFS),
}
"""What the system says about a path that the user gave, or about a full disk: no defect of pullback."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: words after ``pullback``; by default those of the process.

    Returns:
        0 fine, 1 a finding or a failed claim, 2 wrong use, 3 the user's code raised, 70 a defect of pullback itself,
        130 interrupted.
    """
    prepare_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    own = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in own
    if debug:
        words.remove("--debug")
    try:
        return _dispatch(words)
    except KeyboardInterrupt as stop:
        complain(str(stop) or "interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has left, as in `pullback list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing is flushed there at exit
        return FINE
    except SystemExit as stop:  # from code that was audited, or from an option such as --help
        return stop.code if isinstance(stop.code, int) else FINE if stop.code is None else FOUND
    except UsageError as error:
        return _report(error, WRONG_USE, debug)
    except UserCodeError as error:
        return _report(error, RAISED, debug)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "pullback":
            return _report(error, DEFECT, debug)
        needed = f"this command needs '{error.name}'; install it with: pip install 'pullback[lab]'"
        return _report(ModuleNotFoundError(needed), WRONG_USE, debug)
    except OSError as error:
        if error.errno not in _REFUSED:
            return _report(error, DEFECT, debug)
        return _report(UsageError(f"{error.strerror}: {error.filename}"), WRONG_USE, debug)
    except Exception as error:
        return _report(error, DEFECT, debug)


def _dispatch(words: list[str]) -> int:
    name = words[0] if words else "--help"
    if name in ("--help", "-h"):
        print(_HELP.format(commands="\n".join(f"  {n:<9}{what}" for n, (_, what) in COMMANDS.items())), end="")
        return FINE
    if name == "--version":
        print(pullback.__version__)
        return FINE
    if name not in COMMANDS:
        raise UsageError(f"no command {name!r}{nearest(name, COMMANDS)}")
    module = COMMANDS[name][0]
    command = importlib.import_module(module)
    status: int = command.run(words) if module == _LAB else command.run(words[1:])
    return status


def _report(error: Exception, status: int, debug: bool) -> int:
    trace = error.trace if isinstance(error, UserCodeError) else ""
    if debug:
        traceback.print_exception(error)
    elif trace:
        print(trace, end="", file=sys.stderr)
    message = f"defect in pullback, {type(error).__name__}: {error}" if status == DEFECT else str(error)
    shown = debug or status == WRONG_USE or trace
    complain(message if shown else f"{message} (--debug shows the traceback)")
    return status

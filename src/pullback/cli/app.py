"""The command's top level: one app, exit codes, errors in one line."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence

import cyclopts

import pullback
from pullback.cli.auditing import complete_json
from pullback.cli.auditing import register as register_audit
from pullback.cli.benching import register as register_bench
from pullback.cli.data import register as register_data
from pullback.cli.many import register as register_many
from pullback.cli.output import UserCodeError, complain, prepare_streams
from pullback.cli.parsing import STRICT
from pullback.cli.running import register as register_running
from pullback.cli.running import run_command
from pullback.cli.site import register as register_site
from pullback.cli.status import DEFECT, FINE, FOUND, INTERRUPTED, RAISED, WRONG_USE
from pullback.cli.systems import register as register_systems

__all__ = ["app", "main"]

_REFUSED = {
    *(errno.EACCES, errno.EDQUOT, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOSPC, errno.ENOTDIR),
    *(errno.EPERM, errno.EROFS),
}
"""What the system says about a path that the user gave, or about a full disk: no defect of pullback."""

app = cyclopts.App(
    name="pullback",
    version=pullback.__version__,
    help="""Make whole PyTorch systems end-to-end differentiable: audit, relax, build, verify.

Example: `pullback audit train.py -- --epochs 1`, `pullback find argmax`, `pullback run neural-ode --scale smoke`.

Exit status: 0 fine; 1 a finding or a failed claim; 2 wrong use, in one line (`--debug` shows the traceback);
3 the audited code or the system raised; 70 a defect of pullback itself; 130 interrupted.
""",
    help_format="markdown",
    default_parameter=STRICT,
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
register_audit(app)
register_systems(app)
register_running(app)
register_many(app)
register_bench(app)
register_data(app)
register_site(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: words after ``pullback``; by default those of the process.

    Returns:
        0 fine, 1 a finding or a failed claim, 2 wrong use, 3 the user's code raised, 70 a defect of pullback itself,
        130 interrupted.
    """
    from pullback.data.cache import DataMissingError
    from pullback.lab.runner import RunError, UsageError

    prepare_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    own = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in own
    if debug:
        words.remove("--debug")
    if words[:1] == ["audit"]:
        words = complete_json(words)
    try:
        status = (
            run_command(words[1:]) if words[:1] == ["run"] and words[1:] not in (["--help"], ["-h"]) else app(words)
        )
    except KeyboardInterrupt as stop:
        complain(str(stop) or "interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has left, as in `pullback list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing is flushed there at exit
        return FINE
    except SystemExit as stop:  # from code that was audited, or from an option such as --version
        return stop.code if isinstance(stop.code, int) else FINE if stop.code is None else FOUND
    except (cyclopts.CycloptsError, UsageError, DataMissingError) as error:
        return _report(error, WRONG_USE, debug)
    except UserCodeError as error:
        cause = error.__cause__ if error.__cause__ is not None else error
        traceback.print_exception(cause)  # it is the user's own code: the traceback is what helps
        complain(str(error))
        return RAISED
    except RunError as error:
        return _report(error, RAISED, debug)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "pullback":
            return _report(error, DEFECT, debug)
        needed = f"this command needs '{error.name}'; install it with: pip install 'pullback[all]'"
        return _report(ModuleNotFoundError(needed), WRONG_USE, debug)
    except OSError as error:
        if error.errno not in _REFUSED:
            return _report(error, DEFECT, debug)
        return _report(UsageError(f"{error.strerror}: {error.filename}"), WRONG_USE, debug)
    except Exception as error:
        return _report(error, DEFECT, debug)
    return status if isinstance(status, int) and not isinstance(status, bool) else FINE


def _report(error: Exception, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    message = f"defect in pullback, {type(error).__name__}: {error}" if status == DEFECT else str(error)
    complain(message if debug or status == WRONG_USE else f"{message} (--debug shows the traceback)")
    return status

"""The command's top level: one app, exit codes, errors in one line."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

import cyclopts

import pullback
from pullback.cli.output import UserCodeError, complain
from pullback.cli.running import register as register_running
from pullback.cli.running import run_command
from pullback.cli.systems import register as register_systems

__all__ = ["FINE", "FOUND", "INTERRUPTED", "RAISED", "WRONG_USE", "app", "main"]

FINE, FOUND, WRONG_USE, RAISED, INTERRUPTED = 0, 1, 2, 3, 130

app = cyclopts.App(
    name="pullback",
    version=pullback.__version__,
    help="""Make whole PyTorch systems end-to-end differentiable: audit, relax, build, verify.

Example: `pullback audit train.py -- --epochs 1`, `pullback find argmax`, `pullback run neural-ode --scale smoke`.

Exit status: 0 fine; 1 a finding or a failed claim; 2 wrong use, in one line (`--debug` shows the traceback);
3 the audited code or the system raised; 130 interrupted.
""",
    help_format="markdown",
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
)
register_systems(app)
register_running(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Args:
        arguments: words after ``pullback``; by default those of the process.

    Returns:
        0 fine, 1 a finding or a failed claim, 2 wrong use, 3 the user's code raised, 130 interrupted.
    """
    from pullback.lab.runner import RunError, UsageError

    words = list(sys.argv[1:] if arguments is None else arguments)
    own = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in own
    if debug:
        words.remove("--debug")
    try:
        status = (
            run_command(words[1:]) if words[:1] == ["run"] and words[1:] not in (["--help"], ["-h"]) else app(words)
        )
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except SystemExit as stop:  # from code that was audited, or from an option such as --version
        return stop.code if isinstance(stop.code, int) else FINE if stop.code is None else FOUND
    except (cyclopts.CycloptsError, UsageError) as error:
        return _report(error, WRONG_USE, debug)
    except (RunError, UserCodeError) as error:
        return _report(error, RAISED, debug)
    return status if isinstance(status, int) and not isinstance(status, bool) else FINE


def _report(error: Exception, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error)
    complain(str(error) if debug or status == WRONG_USE else f"{error} (--debug shows the traceback)")
    return status

"""The commands of the lab: systems, runs, data, benchmarks, the gallery, the demo. They need the extra ``lab``."""

from __future__ import annotations

from collections.abc import Sequence

import cyclopts

from pullback.cli.benching import register as register_bench
from pullback.cli.data import register as register_data
from pullback.cli.many import register as register_many
from pullback.cli.output import UserCodeError
from pullback.cli.parsing import STRICT
from pullback.cli.running import register as register_running
from pullback.cli.running import run_command
from pullback.cli.site import register as register_site
from pullback.cli.status import FINE
from pullback.cli.systems import register as register_systems
from pullback.cli.touring import register as register_demo
from pullback.core.errors import UsageError

__all__ = ["app", "run"]

app = cyclopts.App(
    name="pullback",
    help_format="markdown",
    default_parameter=STRICT,
    version_flags=[],
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
    suppress_keyboard_interrupt=False,
)
register_demo(app)
register_systems(app)
register_running(app)
register_many(app)
register_bench(app)
register_data(app)
register_site(app)


def run(words: Sequence[str]) -> int:
    """Run a command, its name first; return the exit status.

    Raises:
        UsageError: the words cannot be understood, or ask for what cannot be done.
        UserCodeError: a system raised.
    """
    asks_help = words[1:] in (["--help"], ["-h"])
    try:
        status = run_command(words[1:]) if words[0] == "run" and not asks_help else app(words)
    except cyclopts.CycloptsError as error:
        raise UsageError(str(error)) from error
    except Exception as error:
        from pullback.data.cache import DataMissingError
        from pullback.lab.runner import RunError

        if isinstance(error, DataMissingError):
            raise UsageError(str(error)) from error
        if isinstance(error, RunError):
            raise UserCodeError(str(error)) from error
        raise
    return status if isinstance(status, int) and not isinstance(status, bool) else FINE

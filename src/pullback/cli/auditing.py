"""``pullback audit``, ``pullback find`` and ``pullback demo``."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import Parameter

from pullback.cli.output import StandardOutput, UserCodeError, check_file, check_folder, print_json, print_line
from pullback.core.errors import UsageError
from pullback.core.files import write_atomically
from pullback.core.output import lend_output

if TYPE_CHECKING:
    from pullback.audit import Report

__all__ = ["complete_json", "register"]

_DEMO = Path("pullback-demo")


def complete_json(words: Sequence[str]) -> list[str]:
    """Return the words of ``pullback audit`` with ``--json`` and ``--json -`` as ``--json=-``.

    Example:
        >>> complete_json(["audit", "train.py", "--json", "--steps", "1", "--", "--json"])
        ['audit', 'train.py', '--json=-', '--steps', '1', '--', '--json']
    """
    end = words.index("--") if "--" in words else len(words)
    own = list(words[:end])
    for index, word in enumerate(own):
        following = own[index + 1] if index + 1 < len(own) else "-"
        if word == "--json" and following.startswith("-"):
            own[index] = "--json=-"
            if own[index + 1 : index + 2] == ["-"]:
                del own[index + 1]
    return [*own, *words[end:]]


def register(app: cyclopts.App) -> None:
    """Add the commands."""
    app.command(demo)
    app.command(audit)
    app.command(find)


def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder of the page.")] = _DEMO,
    seed: Annotated[int, Parameter(help="Of every random draw, >= 0.")] = 0,
    json: Annotated[bool, Parameter(negative=(), help="Print JSON.")] = False,
) -> int:
    """Audit a pipeline over real digits that cannot learn, relax it, train it, and write a page with pictures.

    Example: `pullback demo --out pullback-demo`
    """
    if seed < 0:
        raise UsageError(f"seed must be an integer >= 0, got {seed}")
    check_folder("out", out)
    from pullback.demo.tour import run

    with lend_output(to_stderr=json):
        summary = run(out, seed=seed)
    if json:
        print_json(summary)
    return 0


def find(
    word: Annotated[str, Parameter(help="A torch operation, a finding's code, or what you want to do.")],
    /,
    *,
    json: Annotated[bool, Parameter(negative=(), help="Print JSON.")] = False,
) -> int:
    """Print the blocks that let a gradient through where an operation does not, each with code to paste.

    Example: `pullback find argmax`
    """
    from pullback.audit.report.remedies import find as remedies
    from pullback.audit.report.remedies import suggest

    found = [remedy.for_expression() for remedy in remedies(word)]
    if not found:
        near = suggest(word)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise UsageError(f"no block is known for {word!r}{hint}")
    if json:
        print_json(found)
        return 0
    for index, remedy in enumerate(found):
        name = remedy["block"]
        print_line(("\n" if index else "") + (name if name.startswith("torch") else f"pullback.{name}"))
        print_line(f"    {remedy['what']}\n")
        for line in remedy["code"].splitlines():
            print_line(f"    {line}")
    return 0


def audit(
    target: Annotated[str, Parameter(help="A script (`train.py`) or a function (`pkg.mod:fn`).")],
    /,
    *arguments: Annotated[str, Parameter(help="After `--`: the script's own arguments.")],
    inputs: Annotated[
        str | None, Parameter(help="`pkg.mod:make_inputs`, called without arguments; its result goes to the function.")
    ] = None,
    steps: Annotated[int, Parameter(help="Backward passes audited per line; then the script is stopped.")] = 3,
    json: Annotated[
        str | None, Parameter(help="Write the report as JSON to this file; `-` or nothing: standard output.")
    ] = None,
    html: Annotated[Path | None, Parameter(help="Write a self-contained page.")] = None,
    fail_on: Annotated[
        Literal["info", "warning", "error"], Parameter(help="From this severity on, a finding makes the exit status 1.")
    ] = "error",
    relax: Annotated[
        float | None, Parameter(help="Run the code under `pullback.relaxed` of this temperature and audit that.")
    ] = None,
    ignore: Annotated[
        tuple[str, ...], Parameter(help="Places not to report, `model.py:12` or `model.py`.", negative=())
    ] = (),
    libraries: Annotated[
        bool, Parameter(negative=(), help="Blame lines inside installed libraries, not those that call them.")
    ] = False,
) -> int:
    """Find where the gradient dies, line by line of your own source.

    Example: `pullback audit train.py -- --epochs 1`, `pullback audit model:loss --inputs model:make_inputs`
    """
    from pullback.audit import audit_script

    if steps < 1:
        raise UsageError(f"steps must be >= 1, got {steps}")
    if relax is not None and not 0 < relax < float("inf"):
        raise UsageError(f"relax must be a temperature > 0, got {relax}")
    for name, path in (("json", json if json != "-" else None), ("html", html)):
        if path is not None:
            check_file(name, path)
    is_script = target.endswith(".py") or Path(target).is_file()
    if is_script and not Path(target).is_file():
        raise UsageError(f"no script {target!r}; a function is named pkg.mod:fn")
    if not is_script and ":" not in target:
        raise UsageError(f"target must be a script or pkg.mod:fn, got {target!r}")
    if arguments and not is_script:
        raise UsageError(f"arguments after -- belong to a script, got {' '.join(arguments)!r} for {target}")
    if inputs is not None and is_script:
        raise UsageError("--inputs belongs to a function (pkg.mod:fn); a script brings its own")
    # What the audited code prints is for people: with `--json -` it must not reach standard output.
    with lend_output(to_stderr=json == "-"), _relaxed(relax):
        options: dict[str, Any] = {"ignore": ignore, "libraries": libraries}
        if is_script:
            report = audit_script(target, arguments, steps=steps, **options)
        else:
            report = _audit_function(target, inputs, options)
    return _show(report, json, html, fail_on)


def _relaxed(temperature: float | None) -> Any:
    if temperature is None:
        return contextlib.nullcontext()
    from pullback.relax import relaxed

    return relaxed(temperature=temperature)


def _audit_function(target: str, inputs: str | None, options: dict[str, Any]) -> Report:
    """Import and audit; an error of the user's own code keeps its traceback."""
    from pullback.audit import audit_target, load_target

    try:
        for name in (target, inputs):
            if name is not None:
                load_target(name)
        return audit_target(target, inputs, **options)
    except (ValueError, TypeError, ModuleNotFoundError) as error:
        if _raised_by(error, "pullback.audit.target"):
            raise UsageError(str(error)) from error
        raise UserCodeError(f"{target} raised {type(error).__name__}: {error}") from error
    except Exception as error:
        raise UserCodeError(f"{target} raised {type(error).__name__}: {error}") from error


def _raised_by(error: Exception, module: str) -> bool:
    """Whether the error comes from that module itself, or from the import machinery that it called."""
    entry, blamed = error.__traceback__, ""
    while entry is not None:
        name = entry.tb_frame.f_globals.get("__name__", "")
        if not name.startswith("importlib"):
            blamed = name
        entry = entry.tb_next
    return blamed == module


def _show(report: Report, json: str | None, html: Path | None, fail_on: str) -> int:
    # Files first: a reader that closes the pipe must not cost them.
    if html is not None:
        from pullback.audit.report.html import write_html

        write_html(report, html)
    if json == "-":
        print(report.to_json())
    else:
        from pullback.audit.report.terminal import print_report

        if json is not None:
            write_atomically(Path(json), report.to_json().encode())
        print_report(report, StandardOutput())
    if report.error is not None:
        print(report.error.rstrip(), file=sys.stderr)
    return report.exit_code(fail_on)

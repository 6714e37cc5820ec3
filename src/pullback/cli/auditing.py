"""``pullback audit``: the audit of a script, a module, a notebook or a function, and where its report goes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pullback.audit.report.findings import SEVERITIES
from pullback.cli.output import UserCodeError, check_file, complain
from pullback.cli.words import Words
from pullback.core.errors import UsageError
from pullback.core.files import write_atomically
from pullback.core.output import lend_output

if TYPE_CHECKING:
    from pullback.audit import Report
    from pullback.audit.fix.scripts import Server

__all__ = ["run"]


def run(words: Sequence[str]) -> int:
    """Find where the gradient dies, line by line of the user's own source; return the exit status."""
    end = list(words).index("--") if "--" in words else len(words)
    options = _parser().parse(words[:end])
    options.arguments = list(words[end + 1 :])
    _check(options)
    # What the audited code prints is for people: with `--json -` it must not reach standard output.
    with _server(options) as server, lend_output(to_stderr="-" in (options.json, options.sarif) or options.fix):
        report = _audit(options)
        if options.fix or options.write:
            report = _tried(report, options, server)
    if os.environ.get("RANK", "0") not in ("", "0"):
        return report.exit_code(options.fail_on)  # under torchrun: the process of rank 0 reports
    changes = _patch(report) if options.fix else ""  # against the files as they are
    if options.write:
        _write(report)
    _save(report, options)
    if options.fix:
        print(changes, end="")
    else:
        _show(report, options)
    return report.exit_code(options.fail_on)


def _parser() -> Words:
    parser = Words(
        "pullback audit",
        "Find where the gradient dies, line by line of your own source.",
        [
            "pullback audit train.py -- --epochs 1",
            "pullback audit -m package.train --html report.html",
            "pullback audit model:loss --inputs model:make_inputs",
            "pullback audit --fix train.py > train.patch",
        ],
        beyond="arguments of a script stand after --",
    )
    add = parser.add_argument
    add("target", nargs="?", help="a script (train.py), a notebook (train.ipynb) or a function (pkg.mod:fn)")
    add("-m", dest="module", metavar="MODULE", help="audit a module as `python -m MODULE` runs it")
    add("--inputs", metavar="PKG.MOD:FN", help="called without arguments; its result goes to the function")
    add("--steps", type=int, default=3, metavar="N", help="backward passes a line, then the script is stopped (3)")
    add("--json", nargs="?", const="-", metavar="FILE", help="write JSON; `-` or nothing: standard output")
    add("--html", metavar="FILE", help="write a page that needs no other file")
    add("--sarif", nargs="?", const="-", metavar="FILE", help="write SARIF 2.1.0, for code scanning and editors")
    add("--github", action="store_true", help="print annotations of GitHub Actions")
    add("--fix", action="store_true", help="print what cures the findings as a patch, each part of it tried")
    add("--write", action="store_true", help="change the files themselves so")
    add("--fail-on", choices=SEVERITIES, default="error", help="a finding from here on: exit status 1 (error)")
    add("--relax", type=float, metavar="T", help="run the code under `pullback.relaxed` of this temperature")
    add("--ignore", action="append", default=[], metavar="PLACE", help="model.py:12 or model.py; may be repeated")
    add("--libraries", action="store_true", help="blame lines inside installed libraries, not their callers")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raise ``UsageError`` for what cannot be done, before any code of the user runs."""
    target: str | None = options.target
    if (target is None) == (options.module is None):
        raise UsageError("audit needs one target: a script, a notebook, pkg.mod:fn, or -m package.module")
    if options.steps < 1:
        raise UsageError(f"steps must be >= 1, got {options.steps}")
    if options.relax is not None and not 0 < options.relax < float("inf"):
        raise UsageError(f"relax must be a temperature > 0, got {options.relax:g}")
    if options.fix and "-" in (options.json, options.sarif):
        raise UsageError("fix prints its patch on standard output: name a file for json and sarif")
    if options.json == "-" == options.sarif:
        raise UsageError("json and sarif cannot both go to standard output: name a file")
    for name in ("json", "html", "sarif"):
        path = getattr(options, name)
        if path is not None and (path != "-" or name == "html"):
            check_file(name, path)
    if target is not None:
        options.is_script = target.endswith((".py", ".ipynb")) or Path(target).is_file()
        if options.is_script and not Path(target).is_file():
            raise UsageError(f"no script {target!r}; a function is named pkg.mod:fn")
        if not options.is_script and ":" not in target:
            raise UsageError(f"target must be a script or pkg.mod:fn, got {target!r}")
    else:
        options.is_script = True
    if options.arguments and not options.is_script:
        raise UsageError(
            f"arguments after -- belong to a script, got {' '.join(options.arguments)!r} for {options.target}"
        )
    if options.inputs is not None and options.is_script:
        raise UsageError("--inputs belongs to a function (pkg.mod:fn); a script brings its own")


def _audit(options: argparse.Namespace) -> Report:
    from pullback.audit import audit_script

    shared: dict[str, Any] = {
        "ignore": tuple(options.ignore),
        "libraries": options.libraries,
        "relax": options.relax,
    }
    if not options.is_script:
        return _audit_function(options.target, options.inputs, shared, drawn=options.html is not None)
    name = options.target if options.module is None else options.module
    try:
        by_module = options.module is not None
        return audit_script(name, options.arguments, module=by_module, steps=options.steps, **shared)
    except (FileNotFoundError, ModuleNotFoundError, ValueError) as error:  # what the program raises is in the report
        if _raised_by(error, "pullback.audit.script", "pullback.audit.notebook"):
            raise UsageError(str(error)) from error
        raise


def _audit_function(target: str, inputs: str | None, options: dict[str, Any], *, drawn: bool) -> Report:
    """Import and audit; an error of the user's own code keeps its traceback."""
    from pullback.audit import audit_target, load_target
    from pullback.audit.report.tracebacks import user_traceback

    try:
        for name in (target, inputs):
            if name is not None:
                load_target(name)
        return audit_target(target, inputs, landscape=drawn, memory=drawn, signal=drawn, **options)
    except Exception as error:
        wrong_name = isinstance(error, ValueError | TypeError | ModuleNotFoundError)
        if wrong_name and _raised_by(error, "pullback.audit.target"):
            raise UsageError(str(error)) from error
        message = f"{target} raised {type(error).__name__}: {error}"
        raise UserCodeError(message, user_traceback(error)) from error


def _raised_by(error: Exception, *modules: str) -> bool:
    """Whether the error comes from one of these modules, or from the import machinery that it called."""
    entry, blamed = error.__traceback__, ""
    while entry is not None:
        name = entry.tb_frame.f_globals.get("__name__", "")
        if not name.startswith(("importlib", "runpy")):
            blamed = name
        entry = entry.tb_next
    return blamed in modules


@contextlib.contextmanager
def _server(options: argparse.Namespace) -> Iterator[Server | None]:
    """What tries rewritings of a script: forked before it runs, so that both share what is loaded."""
    loaded = "torch" in sys.modules  # and may have started threads, which a fork does not take along
    if not ((options.fix or options.write) and options.is_script) or loaded or not hasattr(os, "fork"):
        yield None
        return
    from pullback.audit.fix.sandbox import load
    from pullback.audit.fix.scripts import Server

    load()
    with Server(forked=True) as server:
        yield server


def _tried(report: Report, options: argparse.Namespace, server: Server | None) -> Report:
    """The report with what was tried; that of a function carries it already."""
    if not options.is_script or report.error is not None:
        return report
    from pullback.audit.fix.scripts import remedies_of_script

    name = options.target if options.module is None else options.module
    return remedies_of_script(
        report,
        name,
        options.arguments,
        server=server,
        module=options.module is not None,
        steps=options.steps,
        ignore=tuple(options.ignore),
        libraries=options.libraries,
        relax=options.relax,
    )


def _patch(report: Report) -> str:
    """Return the patch; what each part of it changes goes to standard error."""
    from pullback.audit.remedy.patch import patch

    for finding in report.findings:
        for remedy in finding.remedies:
            complain(f"{finding.file}:{finding.line}: {finding.code}: {remedy.effect}")
    open_ones = [f for f in report.findings if f.severity != "info" and not f.remedies]
    for finding in open_ones:
        in_cell = ".ipynb[" in finding.file
        why = "cells of notebooks get no patch" if in_cell else "no rewriting was found that cures it"
        complain(f"{finding.file}:{finding.line}: {finding.code}: {why}")
    return patch([r for f in report.findings for r in f.remedies])


def _write(report: Report) -> None:
    from pullback.audit.remedy.patch import write

    for file in write([r for f in report.findings for r in f.remedies]):
        complain(f"changed {file}")


def _save(report: Report, options: argparse.Namespace) -> None:
    # Before anything is printed: a reader that closes the pipe must not cost the files.
    for name in ("json", "html", "sarif"):
        path = getattr(options, name)
        if path is not None and path != "-":
            write_atomically(Path(path), _forms(report)[name]().encode("utf-8", "backslashreplace"))


def _show(report: Report, options: argparse.Namespace) -> None:
    taken = next((name for name in ("json", "sarif") if getattr(options, name) == "-"), None)
    if options.github and report.findings:  # the runner reads both streams
        print(report.to_annotations(), file=sys.stderr if taken else sys.stdout)
    if taken:
        print(_forms(report)[taken]())
    else:
        from pullback.audit.report.terminal import print_report

        print_report(report)
        fixable = options.is_script and report.error is None and not options.fix
        if fixable and any(f.severity != "info" for f in report.findings):
            print("--fix tries rewritings of these lines, and prints what cures them as a patch")
    if report.error is not None:
        complain(f"{report.target} raised {report.error.strip().splitlines()[-1]}")


def _forms(report: Report) -> dict[str, Callable[[], str]]:
    return {
        "json": report.to_json,
        "html": report.to_html,
        "sarif": lambda: json.dumps(report.to_sarif(), indent=2, allow_nan=False),
    }

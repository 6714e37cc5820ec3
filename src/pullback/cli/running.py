"""``pullback run``: the fields of a system's config are its options."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import cyclopts
from cyclopts import Group, Parameter

from pullback.cli.output import print_json, print_line
from pullback.cli.parsing import STRICT
from pullback.cli.systems import in_words, print_result
from pullback.core.errors import UsageError
from pullback.core.output import lend_output

if TYPE_CHECKING:
    from pullback.lab.registry import System

__all__ = ["Json", "Runs", "Scale", "build_app", "parse_options", "register", "run_command"]

Scale = Annotated[
    Literal["smoke", "default", "full"] | None,
    Parameter(help="smoke: seconds; default: about a minute on two cores; full: the paper's sizes. [default: default]"),
]
Runs = Annotated[Path, Parameter(help="The results store.")]
Json = Annotated[bool, Parameter(negative=(), help="Print the result as JSON, and nothing else, on standard output.")]

_OPTIONS: dict[str, tuple[Any, Any]] = {
    "scale": (Scale, None),
    "seed": (Annotated[int | None, Parameter(help="Of every random draw, >= 0. [default: 0]")], None),
    "device": (Annotated[str | None, Parameter(help="Where to compute: cuda, cuda:1, ... [default: cpu]")], None),
    "data": (Annotated[Path | None, Parameter(help="The paper's own data, for systems that take it.")], None),
    "budget": (
        Annotated[
            float | None,
            Parameter(help="Seconds after which the run ends between two steps, saved, with status `out of time`."),
        ],
        None,
    ),
    "resume": (
        Annotated[
            bool,
            Parameter(negative=(), help="Continue the latest unfinished run (of this scale, seed and these options)."),
        ],
        False,
    ),
    "checkpoint_every": (
        Annotated[float, Parameter(help="Seconds between checkpoints inside a loop; 0: after every step.")],
        30.0,
    ),
    "keep_checkpoints": (
        Annotated[bool, Parameter(negative=(), help="Keep the checkpoints when the run is complete.")],
        False,
    ),
    "runs": (Runs, Path("runs")),
    "json": (Json, False),
    "quiet": (Annotated[bool, Parameter(negative=(), help="No progress on standard error.")], False),
}


def register(app: cyclopts.App) -> None:
    """Add the command to the help; :func:`run_command` does the work, for the options depend on the system."""

    def run(slug: str, **common: Any) -> None:
        """Run a published system and keep what it finds in `runs/<slug>/<time>/`.

        `pullback run SLUG --help` lists its options. Ctrl-C ends the run after its step, saved; `--resume` continues.

        Example: `pullback run monotonic-sorting-networks --scale smoke --seed 1`
        """

    named = Annotated[str, Parameter(help="Name of a system (`pullback list`).")]
    slug = inspect.Parameter("slug", inspect.Parameter.POSITIONAL_ONLY, annotation=named)
    _declare(run, [slug, *_common()])
    app.command(run, name="run")


def run_command(words: Sequence[str]) -> int:
    """Run ``pullback run`` with the words behind it; return the exit status."""
    from pullback.lab.registry import load, slugs

    named = words[0] if words and not words[0].startswith("-") else next((w for w in words if w in slugs()), None)
    if named is None:
        raise UsageError("run needs the name of a system: pullback run SLUG [options] (`pullback list` shows all)")
    try:
        system = load(named)
    except ValueError as error:
        raise UsageError(str(error)) from error
    rest = list(words)
    rest.remove(named)
    status: int | None = build_app(system)(rest)
    return status or 0


def build_app(system: System) -> cyclopts.App:
    """Return the app of one system, with its config's fields as options."""
    app = cyclopts.App(
        name=f"pullback run {system.slug}",
        help=f"{system.title}. {system.paper}\n\nExample: `pullback run {system.slug} --scale smoke --seed 1`",
        help_format="markdown",
        default_parameter=STRICT,
        version_flags=[],
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )

    def command(**given: Any) -> int:
        common = {name: given.pop(name, default) for name, (_, default) in _OPTIONS.items()}
        return _run(system, {name: value for name, value in given.items() if value is not None}, **common)

    group = Group("Options of this system", sort_key=0)
    parameters = _common(system.takes_data) + [
        inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                option.type | None,
                Parameter(help=_help(system, option.name), group=group, consume_multiple=True, negative_iterable=()),
            ],
        )
        for option in system.options.values()
    ]
    _declare(command, parameters)
    app.default(command)
    return app


def _common(takes_data: str | None = None) -> list[inspect.Parameter]:
    """The options of every run; ``--data`` is shown with what this system takes, and not where it takes nothing."""
    options = dict(_OPTIONS)
    if takes_data is not None:
        options["data"] = (
            Annotated[Path | None, Parameter(help=f"The paper's own data: {takes_data}.", show=bool(takes_data))],
            None,
        )
    return [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in options.items()
    ]


def _declare(function: Any, parameters: list[inspect.Parameter]) -> None:
    """Give a function the signature that its options are made from."""
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def parse_options(system: System, words: Sequence[str]) -> dict[str, Any]:
    """Return the config fields that command-line words give, by name, converted as ``pullback run`` does."""
    _, bound, _ = build_app(system).parse_args(list(words))
    return {name: value for name, value in bound.arguments.items() if name in system.options}


def _help(system: System, name: str) -> str:
    option = system.options[name]
    values = [f"default: {in_words(option.default)}"]
    values += [f"{s}: {in_words(changes[name])}" for s, changes in system.scales.items() if name in changes]
    values += [option.limits] if option.limits else []
    return f"{option.help} [{'; '.join(values)}]".strip()


def _run(system: System, config: dict[str, Any], *, json: bool, **options: Any) -> int:
    from pullback.lab.runner import run

    # What a system prints is for people: with --json it must not reach standard output.
    again = f"continue with: pullback run {system.slug} --resume"
    if options["runs"] != _OPTIONS["runs"][1]:
        again += f" --runs {shlex.quote(str(options['runs']))}"
    try:
        with lend_output(to_stderr=json):
            result = run(system, config=config, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {again}") from None
    if json:
        print_json(result.to_json())
    else:
        print_result(result)
        print_line(
            f"\n{result.status} in {result.seconds:.1f} s ({result.cpu_seconds:.1f} CPU s, {result.threads} "
            f"{'thread' if result.threads == 1 else 'threads'}, {result.peak_memory / 1e6:.0f} MB): {result.directory}"
        )
        if result.status != "complete":
            print_line(again)
    return 1 if result.failed else 0

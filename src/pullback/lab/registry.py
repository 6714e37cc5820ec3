"""The systems: found by their file names, imported only when asked for.

A system is one function in ``pullback/systems/<family>/<slug with underscores>.py`` under the decorator :func:`system`.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pullback
from pullback.core.checks import check_choice, nearest
from pullback.lab.config import Option, options
from pullback.lab.result import SCALES

if TYPE_CHECKING:
    from pullback.lab.lab import Lab

__all__ = ["SCALES", "System", "families", "load", "slugs", "system"]

RESERVED_OPTIONS = (
    *("budget", "checkpoint_every", "data", "debug", "device", "help", "json", "resume", "runs", "scale", "seed"),
    *("keep_checkpoints", "quiet", "version"),
)
"""Options of ``pullback run`` itself: no field of a ``Config`` has one of these names."""


@dataclass(frozen=True)
class System:
    """A published system: what it is and how to run it.

    Attributes:
        slug: its name, ``monotonic-sorting-networks``.
        family: the family whose blocks it proves.
        title: of the paper.
        paper: authors, venue, year, identifier.
        config: frozen dataclass; every field is an option with a default.
        run: the function of ``(lab, config)``.
        scales: what ``smoke`` and ``full`` change in the config.
        data: names of data sets (``pullback data list``) that must be there before it starts.
        blocks: the public blocks it is composed of, as ``family.block``.
        takes_data: what ``--data`` gives it, in words; empty where it takes nothing.
    """

    slug: str
    family: str
    title: str
    paper: str
    config: type
    run: Callable[[Lab, Any], None]
    scales: Mapping[str, Mapping[str, Any]]
    data: tuple[str, ...]
    blocks: tuple[str, ...]
    takes_data: str = ""

    @cached_property
    def description(self) -> str:
        """The docstring of the system's file."""
        return inspect.cleandoc(importlib.import_module(self.run.__module__).__doc__ or "")

    @cached_property
    def options(self) -> dict[str, Option]:
        """The fields of the config, in order."""
        return options(self.config)

    def configure(self, scale: str = "default", **changes: Any) -> Any:
        """Return the config of a scale with some fields changed, each compared with its type and range.

        Raises:
            ValueError: unknown scale or field, or a value out of range.
            TypeError: a value of another type.
        """
        check_choice("scale", scale, SCALES)
        for name in changes:
            if name not in self.options:
                listed = ", ".join(self.options) or "none"
                raise ValueError(f"{self.slug} has no option {name!r}{nearest(name, self.options)} (options: {listed})")
        given = {**self.scales.get(scale, {}), **changes}
        return self.config(**{name: self.options[name].conform(value) for name, value in given.items()})


_DEFINED: dict[str, System] = {}


def system(
    slug: str,
    *,
    family: str,
    config: type,
    title: str = "",
    paper: str = "",
    smoke: Mapping[str, Any] | None = None,
    full: Mapping[str, Any] | None = None,
    data: Sequence[str] = (),
    blocks: Sequence[str] = (),
    takes_data: str = "",
) -> Callable[[Callable[[Lab, Any], None]], Callable[[Lab, Any], None]]:
    """Declare the decorated function of ``(lab, config)`` as a system.

    Args:
        slug: its name; the file is called the same, with underscores.
        family: one of ``pullback.FAMILIES``.
        config: frozen dataclass whose fields all have defaults.
        title: of the paper.
        paper: authors, venue, year, identifier.
        smoke: fields that differ at scale ``smoke`` (seconds).
        full: fields that differ at scale ``full`` (the paper's sizes).
        data: names of the data sets that it needs.
        blocks: the blocks it is composed of, as ``family.block``.
        takes_data: what the user can give with ``--data`` (``lab.data_path``), such as ``"a folder of MNIST in IDX
            format"``; where it is empty, ``--data`` is refused.

    Returns:
        The decorator; it returns the function as it is.

    Raises:
        TypeError: ``config`` is no frozen dataclass, a field has no default or a type that no option can have.
        ValueError: unknown family or field, a reserved field name, a default or the value of a scale that is out of
            range, or a file name that is not the slug.
    """
    if not (dataclasses.is_dataclass(config) and config.__dataclass_params__.frozen):  # type: ignore[attr-defined]
        raise TypeError(f"config of {slug!r} must be a frozen dataclass, got {config!r}")
    names = [field.name for field in dataclasses.fields(config) if field.init]
    for field in dataclasses.fields(config):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise TypeError(f"config of {slug!r}: field {field.name!r} must have a default")
        if field.name in RESERVED_OPTIONS:
            raise ValueError(f"config of {slug!r}: {field.name!r} is an option of `pullback run`; rename the field")
    check_choice("family", family, pullback.FAMILIES)
    for scale, changes in (("smoke", smoke), ("full", full)):
        for name in changes or {}:
            if name not in names:
                raise ValueError(f"{scale} of {slug!r} changes {name!r}, which is no field{nearest(name, names)}")

    def declare(run: Callable[[Lab, Any], None]) -> Callable[[Lab, Any], None]:
        package, _, stem = run.__module__.rpartition(".")
        if package.startswith("pullback.systems.") and (package, stem) != (
            f"pullback.systems.{family}",
            slug.replace("-", "_"),
        ):
            expected = f"systems/{family}/{slug.replace('-', '_')}.py"
            raise ValueError(f"system {slug!r} of family {family!r} belongs in {expected}, not in {run.__module__}")
        declared = System(
            slug=slug,
            family=family,
            title=title or slug.replace("-", " ").capitalize(),
            paper=paper,
            config=config,
            run=run,
            scales={"smoke": dict(smoke or {}), "default": {}, "full": dict(full or {})},
            data=tuple(data),
            blocks=tuple(blocks),
            takes_data=takes_data,
        )
        for scale in SCALES:
            declared.configure(scale)
        _DEFINED[slug] = declared
        return run

    return declare


def _files() -> dict[str, tuple[str, str]]:
    """Slug to (family, module name), from the file names alone."""
    root = Path(pullback.__file__).parent / "systems"
    return {
        path.stem.replace("_", "-"): (path.parent.name, f"pullback.systems.{path.parent.name}.{path.stem}")
        for path in sorted(root.glob("*/*.py"))
        if not path.name.startswith("_")
    }


def slugs(family: str | None = None) -> list[str]:
    """Return the names of all systems (of a family), sorted, without importing them.

    Raises:
        ValueError: unknown family.
    """
    if family is not None:
        check_choice("family", family, pullback.FAMILIES)
    found = {slug for slug, (home, _) in _files().items() if family in (None, home)}
    found |= {slug for slug, defined in _DEFINED.items() if family in (None, defined.family)}
    return sorted(found)


def families() -> dict[str, list[str]]:
    """Return the names of the systems by family."""
    return {family: slugs(family) for family in pullback.FAMILIES}


def load(slug: str) -> System:
    """Import and return a system.

    Raises:
        ValueError: there is none of that name; the message suggests the nearest.
    """
    if slug in _DEFINED:
        return _DEFINED[slug]
    files = _files()
    if slug not in files:
        raise ValueError(f"no system {slug!r}{nearest(slug, slugs())} (`pullback list` shows all)")
    module = files[slug][1]
    importlib.import_module(module)
    if slug not in _DEFINED:
        raise ValueError(f"{module} declares no system {slug!r}")
    return _DEFINED[slug]


def family_of(slug: str) -> str:
    """Return the family of a system, without importing it."""
    return _DEFINED[slug].family if slug in _DEFINED else _files()[slug][0]


def summary(slug: str) -> str:
    """Return the first line of the docstring of a system's file, without importing it."""
    files = _files()
    if slug not in files:
        return _DEFINED[slug].title
    path = Path(pullback.__file__).parent / "systems" / files[slug][0] / f"{slug.replace('-', '_')}.py"
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]

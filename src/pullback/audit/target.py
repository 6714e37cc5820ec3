"""Find the function that ``pkg.mod:fn`` names, and audit it."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pullback.audit.entry import audit
from pullback.audit.report.report import Report
from pullback.core.checks import nearest

__all__ = ["audit_target", "load_target"]


def load_target(spec: str) -> Callable[..., Any]:
    """Import the callable that ``"package.module:name"`` names; ``name`` may be dotted, as ``Model.loss``.

    Modules are looked up from the current folder first, as ``python -m`` does.

    Args:
        spec: module and attribute, separated by a colon.

    Raises:
        ValueError: there is no colon, or an attribute is missing (with the nearest name).
        ModuleNotFoundError: the module does not exist.
        TypeError: the attribute is not callable.

    Example:
        >>> load_target("torch.nn.functional:relu").__name__
        'relu'
    """
    module_name, separator, path = spec.partition(":")
    if not separator or not module_name or not path:
        raise ValueError(f"target must be written 'package.module:function', got {spec!r}")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    finally:
        if added:
            with contextlib.suppress(ValueError):  # the module may have taken it off itself
                sys.path.remove(here)
    for name in path.split("."):
        if not hasattr(found, name):
            raise ValueError(f"target {spec!r}: {module_name} has no {name!r}{nearest(name, dir(found))}")
        found = getattr(found, name)
    if not callable(found):
        raise TypeError(f"target {spec!r} must be callable, got {type(found).__name__}")
    return found


def audit_target(spec: str, inputs: str | None = None, **options: Any) -> Report:
    """Audit ``pkg.mod:fn`` on the inputs that ``pkg.mod:make_inputs`` returns.

    Args:
        spec: the function, an ``nn.Module`` class (built without arguments) or instance.
        inputs: a function without arguments that returns the inputs: a tuple of positional ones, a dict of keyword
            ones, or a single value.
        **options: of :func:`~pullback.audit.entry.audit`.

    Raises:
        ValueError, ModuleNotFoundError, TypeError: as :func:`load_target`.
    """
    from torch import nn

    fn = load_target(spec)
    if isinstance(fn, type) and issubclass(fn, nn.Module):
        fn = fn()
    made: Any = load_target(inputs)() if inputs is not None else ()
    kwargs: Mapping[str, Any] = made if isinstance(made, Mapping) else {}
    positional: Iterable[Any] = () if isinstance(made, Mapping) else made if isinstance(made, tuple) else (made,)
    return audit(fn, *positional, kwargs=kwargs, target=spec, **options)

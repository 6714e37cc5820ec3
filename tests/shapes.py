"""How the tests check annotated shapes: as Python reads annotations, where an ``int`` serves for a ``float``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

from pullback.core import shapes

check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def install(packages: list[str]) -> None:
    """Check every call of what states shapes in packages that are imported from now on."""
    jaxtyped = jaxtyping.jaxtyped  # the hook looks it up whenever it decorates

    def where_shapes_are_stated(*, typechecker: Any) -> Callable[[Any], Any]:
        decorate = jaxtyped(typechecker=typechecker)
        return lambda given: decorate(given) if _is_checked(given) else given

    jaxtyping.jaxtyped = where_shapes_are_stated
    jaxtyping.install_import_hook(packages, "tests.shapes.check")


def _is_checked(given: Any) -> bool:
    """Whether it is a class, or a function of a module or a class with a shape in its annotations.

    The others would take most of the time of the laws: the types of the rest are mypy's to check, and the check of a
    local function is compiled anew whenever the function around it runs, a thousand times in one gradcheck of a solver.
    """
    stated = " ".join(str(annotation) for annotation in getattr(given, "__annotations__", {}).values())
    has_shapes = any(name in stated for name in shapes.__all__ if name != "Tensor")
    return inspect.isclass(given) or ("<locals>" not in given.__qualname__ and has_shapes)

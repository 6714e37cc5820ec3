"""How the tests check annotations: as Python reads them, where an ``int`` serves for a ``float``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def install(packages: list[str]) -> None:
    """Check every call of the functions, methods and classes of packages that are imported from now on.

    Not of local functions: a check is compiled when its function is made, for these in each call of the function
    around them, a thousand times in one gradcheck of a solver.
    """
    jaxtyped = jaxtyping.jaxtyped  # the hook looks it up whenever it decorates

    def outside_of_functions(*, typechecker: Any) -> Callable[[Any], Any]:
        decorate = jaxtyped(typechecker=typechecker)
        return lambda given: given if "<locals>" in given.__qualname__ else decorate(given)

    jaxtyping.jaxtyped = outside_of_functions
    jaxtyping.install_import_hook(packages, "tests.shapes.check")

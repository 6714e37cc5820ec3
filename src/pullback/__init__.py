"""pullback: make whole PyTorch systems end-to-end differentiable.

Four verbs: :func:`audit` finds where the gradient dies (and :class:`watch` looks on in a long training),
:class:`relaxed` lets unchanged code pass one, the families
(``pullback.discrete``, ``pullback.implicit``, ...) are the blocks to build with, ``pullback.lab``
verifies on real data.

The families are imported on first use, so that ``import pullback`` costs little more than ``import torch``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pullback.core.errors import ConvergenceError

if TYPE_CHECKING:
    from pullback import (
        audio,
        causal,
        core,
        data,
        discrete,
        dynamics,
        geometry,
        gradients,
        implicit,
        kernels,
        lab,
        markets,
        optim,
        render,
        topology,
        transport,
        uncertainty,
    )
    from pullback.audit import audit
    from pullback.audit.watching import GradientWarning, watch
    from pullback.relax import relaxed

__version__ = "0.1.0"

FAMILIES = (
    "audio",
    "causal",
    "discrete",
    "dynamics",
    "geometry",
    "gradients",
    "implicit",
    "markets",
    "optim",
    "render",
    "topology",
    "transport",
    "uncertainty",
)
"""Names of the families of blocks, each a subpackage."""

_SUBPACKAGES = (*FAMILIES, "audit", "core", "data", "kernels", "lab")  # `pullback.audit` is a module one can call

_HOMES = {
    "GradientWarning": "pullback.audit.watching",
    "relaxed": "pullback.relax",
    "watch": "pullback.audit.watching",
}

__all__ = [
    "FAMILIES",
    "ConvergenceError",
    "GradientWarning",
    "__version__",
    "audio",
    "audit",
    "causal",
    "core",
    "data",
    "discrete",
    "dynamics",
    "geometry",
    "gradients",
    "implicit",
    "kernels",
    "lab",
    "markets",
    "optim",
    "relaxed",
    "render",
    "topology",
    "transport",
    "uncertainty",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"pullback.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pullback' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


def load_ipython_extension(shell: Any) -> None:
    """Add ``%audit`` and ``%%audit`` to a notebook; IPython calls this for ``%load_ext pullback``."""
    importlib.import_module("pullback.integrations.notebook").load(shell)

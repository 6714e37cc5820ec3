"""The command line: ``pullback`` and ``python -m pullback``."""

from __future__ import annotations

from pullback.cli.app import main

__all__ = ["main"]

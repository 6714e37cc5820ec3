"""Contracts of worlds of blocks."""

from __future__ import annotations

from tests.contracts.contract import Exempt

CONTRACTS = [
    Exempt("dynamics.BlockWorld", "integers in, integers and pictures of them out", "dynamics/test_block_world.py"),
]

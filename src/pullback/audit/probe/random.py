"""The global random streams that a program may draw from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

__all__ = ["random_state", "seed_everything", "set_random_state"]


def random_state() -> tuple[Any, ...]:
    """Return the state of every global random stream: torch's (all devices), Python's, NumPy's."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return torch.get_rng_state(), random.getstate(), np.random.get_state(), devices  # noqa: NPY002


def seed_everything(seed: int) -> None:
    """Seed every global random stream."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def set_random_state(state: tuple[Any, ...]) -> None:
    """Restore :func:`random_state`."""
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])  # noqa: NPY002
    if state[3]:
        torch.cuda.set_rng_state_all(state[3])

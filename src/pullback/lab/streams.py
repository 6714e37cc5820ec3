"""The random streams of a run: all of them follow from its seed."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["Streams"]


class Streams:
    """Generators that depend on the seed, a name and the replicate, and their states.

    Args:
        seed: of the run.
        device: whose generator draws initial weights, besides the CPU's.

    Attributes:
        generator: the run's own generator.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self._seed = seed
        self._device = device
        self._forks: list[weakref.ref[torch.Generator]] = []

    def fork(self, name: str, device: torch.device | str, replicate: int | None, *, kept: bool) -> torch.Generator:
        """Return a fresh generator; where it is ``kept``, its state is part of every checkpoint."""
        stream = torch.Generator(device).manual_seed(self._derive(name, replicate))
        if kept:
            self._forks.append(weakref.ref(stream))
        return stream

    @contextmanager
    def weights(self, name: str, replicate: int | None) -> Iterator[None]:
        """Seed torch's generators inside the block; after it they are where they were."""
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self._derive(f"initial weights: {name}", replicate))
            yield

    def state(self) -> dict[str, Any]:
        """Return the states of all streams, torch's own included."""
        return {
            "generator": self.generator.get_state(),
            "forks": [None if (stream := ref()) is None else stream.get_state() for ref in self._forks],
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Set all streams to the states of a checkpoint."""
        self.generator.set_state(state["generator"])
        for ref, stream_state in zip(self._forks, state["forks"], strict=False):
            stream = ref()
            if stream is not None and stream_state is not None:
                stream.set_state(stream_state)
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])

    def _derive(self, name: str, replicate: int | None) -> int:
        place = f"{self._seed}/{name}" if replicate is None else f"{self._seed}/{name}/replicate {replicate}"
        return int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "big") >> 1

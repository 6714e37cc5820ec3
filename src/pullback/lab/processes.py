"""The processes of one run: one, or several that ``accelerate launch`` or ``torchrun`` started."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Processes"]


class Processes:
    """This process among those of the run.

    Args:
        device: asked for; with several processes, ``accelerate`` gives each its own.

    Attributes:
        world: how many there are.
        rank: which of them this is; the first one writes the results.
        device: of this process.
    """

    def __init__(self, device: str) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self._accelerator: Any = None
        if self.world > 1:
            from accelerate import Accelerator

            self._accelerator = Accelerator(cpu=device == "cpu")
        self.device: torch.device = torch.device(device) if self.world == 1 else self._accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    def prepare(self, *objects: Any) -> Any:
        """Put modules and tensors on the device; with several processes, hand all to ``accelerate``."""
        if self._accelerator is not None:
            return self._accelerator.prepare(*objects)
        moved = tuple(o.to(self.device) if isinstance(o, nn.Module | Tensor) else o for o in objects)
        return moved[0] if len(moved) == 1 else moved

    def shard(self, batch: Tensor) -> Tensor:
        """Return this process's part of the rows."""
        if len(batch) % self.world:
            raise ValueError(f"batch must be a multiple of the {self.world} processes, got {len(batch)} rows")
        return batch.chunk(self.world)[self.rank]

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean over the processes."""
        return value if self._accelerator is None else self._accelerator.reduce(value, "mean")

    def largest(self, number: int) -> int:
        """Return the largest number that any of the processes has."""
        if self.world == 1:
            return number
        code = torch.tensor(number, device=self.device)
        torch.distributed.all_reduce(code, torch.distributed.ReduceOp.MAX)
        return int(code)

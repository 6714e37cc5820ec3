"""Searches for the largest value of functions that are known on a grid: many at once, one value a step."""

from __future__ import annotations

import torch

from pullback.core.checks import check_finite, check_floating, check_integer, check_same_dtype
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int, Tensor

__all__ = ["BlackBoxTasks", "Search"]


class BlackBoxTasks:
    """Functions on common points, each a task: find its largest value by looking at few.

    Args:
        x: ``[n, d]`` the points.
        y: ``[tasks, n]`` finite values of each function.

    Raises:
        TypeError: a tensor is not floating, or the dtypes differ.
        ValueError: the shapes do not fit, there are fewer than two points, or a value is not finite.

    Example:
        >>> tasks = BlackBoxTasks(torch.arange(4.0)[:, None], torch.tensor([[0.0, 1.0, 3.0, 2.0]]))
        >>> search = tasks.reset(torch.tensor([0]))
        >>> search.step(torch.tensor([1])), search.step(torch.tensor([3]))  # the gain of the best value
        (tensor([1.]), tensor([1.]))
        >>> search.best, search.regret
        (tensor([2.]), tensor([0.3333]))
    """

    def __init__(self, x: Float[Tensor, "n d"], y: Float[Tensor, "tasks n"]) -> None:
        check_same_dtype(x=check_floating("x", x), y=check_floating("y", y))
        if x.ndim != 2 or y.ndim != 2 or y.shape[1] != len(x) or len(x) < 2:
            raise ValueError(f"x must be [n, d] and y [tasks, n], n >= 2, got {tuple(x.shape)} and {tuple(y.shape)}")
        check_finite("y", y)
        self.x, self.y = x, y

    def __len__(self) -> int:
        """Return the number of functions."""
        return len(self.y)

    def reset(
        self, tasks: Int[Tensor, "*batch"], *, pool: int | None = None, generator: torch.Generator | None = None
    ) -> Search:
        """Begin a search in each of some tasks.

        Args:
            tasks: ``[*batch]`` their numbers, repeated ones are searches of their own.
            pool: how many points each search may choose from, drawn for it alone; all by default.
            generator: source of the pools.

        Raises:
            TypeError: ``tasks`` are no integers.
            ValueError: there is no such task, or the pool is not in 2..n.
        """
        if tasks.is_floating_point() or tasks.dtype == torch.bool:
            raise TypeError(f"tasks must be integers, got {tasks.dtype}")
        if tasks.numel() and not 0 <= int(tasks.min()) <= int(tasks.max()) < len(self):
            raise ValueError(f"tasks must be in 0..{len(self) - 1}, got {int(tasks.min())} to {int(tasks.max())}")
        n = len(self.x)
        size = n if pool is None else check_integer("pool", pool, 2, n)
        if pool is None:
            chosen = torch.arange(n, device=self.x.device).expand(*tasks.shape, n)
        else:
            device = drawing_device(generator, self.x)
            order = torch.rand((*tasks.shape, n), generator=generator, device=device).argsort(-1)
            chosen = order[..., :size].to(self.x.device)
        return Search(self.x[chosen], self.y[tasks[..., None], chosen])


class Search:
    """Searches side by side. Made by :meth:`BlackBoxTasks.reset`.

    Args:
        x: ``[*batch, n, d]`` the points.
        y: ``[*batch, n]`` their values, hidden until a step looks at them.
    """

    def __init__(self, x: Float[Tensor, "*batch n d"], y: Float[Tensor, "*batch n"]) -> None:
        self.x, self.y = x, y
        self.chosen: Int[Tensor, "*batch t"] = torch.zeros((*y.shape[:-1], 0), dtype=torch.long, device=y.device)
        """``[*batch, t]`` the points looked at, in order."""

    def step(self, choice: Int[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Look at a point of each search.

        Args:
            choice: ``[*batch]`` its number.

        Returns:
            ``[*batch]`` by how much the best value grew; the value itself in the first step.

        Raises:
            ValueError: the shape differs, or a point does not exist or has been looked at.
        """
        if choice.shape != self.y.shape[:-1]:
            raise ValueError(f"choice must have shape {tuple(self.y.shape[:-1])}, got {tuple(choice.shape)}")
        n = self.y.shape[-1]
        if choice.numel() and not 0 <= int(choice.min()) <= int(choice.max()) < n:
            raise ValueError(f"choice must be in 0..{n - 1}, got {int(choice.min())} to {int(choice.max())}")
        if bool((self.chosen == choice[..., None]).any()):
            raise ValueError("choice must be a point that has not been looked at")
        before = self.best if self.chosen.shape[-1] else torch.zeros_like(self.y[..., 0])
        self.chosen = torch.cat([self.chosen, choice[..., None]], -1)
        return self.best - before

    @property
    def seen_x(self) -> Float[Tensor, "*batch t d"]:
        """The points looked at."""
        return self.x.gather(-2, self.chosen[..., None].expand(*self.chosen.shape, self.x.shape[-1]))

    @property
    def seen_y(self) -> Float[Tensor, "*batch t"]:
        """Their values."""
        return self.y.gather(-1, self.chosen)

    @property
    def available(self) -> Bool[Tensor, "*batch n"]:
        """Which points have not been looked at."""
        return torch.ones_like(self.y, dtype=torch.bool).scatter(-1, self.chosen, value=False)

    @property
    def best(self) -> Float[Tensor, "*batch"]:
        """The largest value looked at."""
        return self.seen_y.amax(-1)

    @property
    def regret(self) -> Float[Tensor, "*batch"]:
        """What is missing to the largest value of the pool, as a share of its range: in [0, 1]; 0 of a constant."""
        high, low = self.y.amax(-1), self.y.amin(-1)
        return (high - self.best) / torch.where(high > low, high - low, 1)

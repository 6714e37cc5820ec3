"""Metadynamics: hills of energy on chosen variables that fill the wells a simulation has been in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, func

from pullback.core.checks import (
    check_callable,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_shape,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Float
from pullback.dynamics.trajectories import underdamped_langevin

__all__ = ["HillBias", "Metadynamics", "metadynamics"]

_CELLS_A_WIDTH = 4


class HillBias:
    r"""Gaussian hills on one or two variables, :math:`B(x)=\sum_jh_j\exp(-|s(x)-c_j|^2/2w^2)`, kept on a grid.

    Values and slopes of all hills stand at the nodes of a grid of four cells a width, between which they are
    interpolated linearly: a force costs the same after a thousand hills. Outside the grid there is no force.

    Args:
        variables: s, from states ``[*batch, d]`` to ``[*batch, k]``, k = 1 or 2.
        low: the least value of each variable on the grid.
        high: the largest, above ``low``.
        width: w > 0.

    Raises:
        TypeError: ``variables`` cannot be called.
        ValueError: an option out of range.

    Example:
        >>> bias = HillBias(lambda x: x[..., :1], (0.0,), (4.0,), width=1.0)
        >>> bias.add(torch.tensor([[2.0]]), torch.tensor([3.0]))
        >>> [round(b, 3) for b in bias(torch.tensor([[2.0, 9.0], [3.0, 9.0]])).tolist()]
        [3.0, 1.82]

    References:
        Laio, Parrinello (2002), Escaping free-energy minima.
    """

    def __init__(
        self,
        variables: Callable[[Tensor], Tensor],
        low: tuple[float, ...],
        high: tuple[float, ...],
        *,
        width: float,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        check_callable("variables", variables)
        check_positive("width", width)
        if len(low) != len(high) or len(low) not in (1, 2):
            raise ValueError(f"low and high must have one or two numbers, got {len(low)} and {len(high)}")
        if any(not a < b for a, b in zip(low, high, strict=True)) or not all(map(math.isfinite, (*low, *high))):
            raise ValueError(f"high must be above low and both finite, got {tuple(low)} and {tuple(high)}")
        self.variables, self.width = variables, float(width)
        counts = [math.ceil(_CELLS_A_WIDTH * (b - a) / width) + 1 for a, b in zip(low, high, strict=True)]
        words = dict[str, Any](dtype=dtype, device=device)
        self._axes = [torch.linspace(a, b, n, **words) for a, b, n in zip(low, high, counts, strict=True)]
        self._low, self._high = (torch.tensor(side, **words) for side in (low, high))
        self._cells = torch.tensor([n - 1 for n in counts], device=device)
        self._spacing = (self._high - self._low) / self._cells
        self._table = torch.zeros(*counts, 1 + len(low), **words)  # value, slopes

    def add(self, centres: Float[Tensor, "n k"], heights: Float[Tensor, "n"]) -> None:
        """Add hills at ``centres``."""
        check_shape("centres", check_floating("centres", centres), (len(centres), len(self._axes)))
        check_shape("heights", check_floating("heights", heights), (len(centres),))
        off = [(axis - centres[:, k, None]) / self.width for k, axis in enumerate(self._axes)]
        bumps = [torch.exp(-o.square() / 2) for o in off]
        slopes = [-o * bump / self.width for o, bump in zip(off, bumps, strict=True)]
        if len(bumps) == 1:
            added = [heights @ bumps[0], heights @ slopes[0]]
        else:
            first, second = heights[:, None] * bumps[0], heights[:, None] * slopes[0]
            added = [first.mT @ bumps[1], second.mT @ bumps[1], first.mT @ slopes[1]]
        self._table += torch.stack(added, -1)

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch"]:
        """Return the bias at states ``x``: ``[*batch, d]`` to ``[*batch]``."""
        return self._at(self._values(x))[..., 0]

    def force(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return minus its gradient at ``x``."""
        values, pull = func.vjp(self._values, x)[:2]
        pushed: Tensor = pull(-self._at(values)[..., 1:])[0]
        return pushed

    def _values(self, x: Tensor) -> Tensor:
        found = self.variables(x)
        wanted = (*x.shape[:-1], len(self._axes))
        if not isinstance(found, Tensor) or found.shape != wanted:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"variables must return a tensor of shape {wanted}, got {got}")
        return found

    def _at(self, values: Tensor) -> Tensor:
        outside = ((values < self._low) | (values > self._high)).any(-1, keepdim=True)
        place = torch.minimum(((values - self._low) / self._spacing).clamp(min=0), self._cells)
        cell = torch.minimum(place.long().clamp(min=0), self._cells - 1)  # of NaN, whatever is in the table
        part = place - cell
        if len(self._axes) == 1:
            i, u = cell[..., 0], part
            found = (1 - u) * self._table[i] + u * self._table[i + 1]
        else:
            (i, j), (u, v) = cell.unbind(-1), part.split(1, -1)
            near = (1 - v) * self._table[i, j] + v * self._table[i, j + 1]
            far = (1 - v) * self._table[i + 1, j] + v * self._table[i + 1, j + 1]
            found = (1 - u) * near + u * far
        keep = torch.zeros_like(found[..., :1])
        return torch.where(outside, torch.cat([found[..., :1], keep.expand_as(found[..., 1:])], -1), found)


@dataclass(frozen=True)
class Metadynamics:
    """What a run of metadynamics leaves.

    Attributes:
        positions: ``[frames, walkers, d]``, one frame each time hills were added, the start first.
        centres: ``[n, k]`` of the hills, in the variables.
        heights: ``[n]``.
        bias: the sum of the hills, a function of states, with ``force``.
    """

    positions: Float[Tensor, "frames walkers d"]
    centres: Float[Tensor, "n k"]
    heights: Float[Tensor, "n"]
    bias: HillBias


def metadynamics(
    force: Callable[[Tensor], Tensor],
    start: Float[Tensor, "walkers d"],
    variables: Callable[[Tensor], Tensor],
    *,
    low: tuple[float, ...],
    high: tuple[float, ...],
    height: float,
    width: float,
    every: int,
    steps: int,
    step: float,
    mass: float | Tensor = 1.0,
    friction: float = 1.0,
    temperature: float = 1.0,
    bias_factor: float = math.inf,
    generator: torch.Generator | None = None,
) -> Metadynamics:
    r"""Move walkers that share hills, each of which adds one where it is every so many steps.

    Of a walker in a bias B the hill is :math:`he^{-B/T(\gamma-1)}` high, with the ``bias_factor`` :math:`\gamma`:
    always h for :math:`\gamma=\infty`, ever lower below ("well tempered").

    Args:
        force: F of :func:`pullback.dynamics.underdamped_langevin`, without the bias.
        start: ``[walkers, d]``; velocities are drawn from their law.
        variables: s, from states ``[*batch, d]`` to ``[*batch, k]``, k = 1 or 2, what the hills are functions of.
        low: the least value of each variable that hills act on.
        high: the largest.
        height: h > 0, in units of the energy.
        width: w > 0, in units of the variables.
        every: how many steps there are between hills; must divide ``steps``.
        steps: of each walker.
        step: as for paths without hills, as are ``mass``, ``friction`` and ``temperature``.
        mass: see there.
        friction: see there.
        temperature: see there.
        bias_factor: > 1.
        generator: source of velocities and noise.

    Returns:
        :class:`Metadynamics`.

    Raises:
        TypeError: something cannot be called; ``start`` is not floating.
        ValueError: shapes that do not fit, an option out of range, or a path that became NaN or infinite.

    Example:
        >>> well = torch.zeros(2, 1)
        >>> words = {"low": (-9.0,), "high": (9.0,), "height": 0.5, "width": 1.0, "every": 10, "steps": 30}
        >>> generator = torch.Generator().manual_seed(0)
        >>> found = metadynamics(torch.neg, well, lambda x: x, step=0.1, generator=generator, **words)
        >>> found.centres.shape, found.positions.shape, bool(found.bias(well).min() > 1.0)
        (torch.Size([6, 1]), torch.Size([4, 2, 1]), True)

    References:
        Laio, Parrinello (2002), Escaping free-energy minima. Raiteri et al. (2006), Efficient reconstruction of complex
        free energy landscapes by multiple walkers metadynamics. Barducci, Bussi, Parrinello (2008), Well-tempered
        metadynamics.
    """
    check_callable("force", force)
    if check_floating("start", start).ndim != 2 or not start.numel():
        raise ValueError(f"start must have shape (walkers, d), got {tuple(start.shape)}")
    check_positive("height", height)
    check_integer("every", every, 1)
    check_integer("steps", steps, 1)
    check_positive("temperature", temperature)
    if steps % every:
        raise ValueError(f"every must divide steps {steps}, got {every}")
    if not bias_factor > 1:
        raise ValueError(f"bias_factor must be > 1, got {bias_factor}")
    bias = HillBias(variables, low, high, width=width, dtype=start.dtype, device=start.device)
    weight = torch.as_tensor(mass, dtype=start.dtype, device=start.device)
    drawn = torch.randn(start.shape, generator=generator, dtype=start.dtype, device=drawing_device(generator, start))
    x, v = start.detach(), drawn.to(start.device) * (temperature / weight).sqrt()
    frames, centres, heights = [x], [], []
    with torch.no_grad():
        for _ in range(steps // every):
            moved = underdamped_langevin(
                lambda z: force(z) + bias.force(z),
                x,
                v,
                mass=mass,
                friction=friction,
                temperature=temperature,
                step=step,
                steps=every,
                save_every=every,
                generator=generator,
            )
            x, v = moved.positions[-1], moved.velocities[-1]
            tall = torch.full_like(x[:, 0], height)
            if math.isfinite(bias_factor):
                tall = tall * torch.exp(-bias(x) / (temperature * (bias_factor - 1)))
            centres.append(variables(x))
            heights.append(tall)
            bias.add(centres[-1], tall)
            frames.append(x)
    check_same_dtype(start=start, variables=centres[0])
    return Metadynamics(torch.stack(frames), torch.cat(centres), torch.cat(heights), bias)

r"""Brownian paths that are drawn where they are looked at, and are the same wherever they are looked at again.

A value between two known ones is a Brownian bridge,

.. math:: W(m) = W(l) + \frac{m-l}{r-l}\,(W(r)-W(l)) + \sqrt{\frac{(m-l)(r-m)}{r-l}}\;\xi,

with a normal draw that a counter-based generator makes from the place of the bridge alone. So nothing is stored, and a
path does not depend on the order of the questions. Areas under the path are drawn in the same way.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch

from pullback.core.checks import check_integer
from pullback.core.shapes import Float, Tensor

__all__ = ["BrownianPath"]

_KEPT = 64
"""Bridges at hand: those that the next question most likely asks again."""
_KNOT, _INNER, _END = 0, 1, 2
_AREA = 2  # the last word of a place: bridges have 0 and 1 there


class BrownianPath:
    """A Brownian motion W with W(first knot) = 0, its components independent.

    Args:
        shape: of W(t).
        knots: ascending times, two or more: the first and the last, and those that will be asked for most, which are
            reached in the fewest bridges.
        generator: draws the seed of the path; ``None``: torch's own.
        seed: 0 <= seed < 2^63 instead: the same path again.
        depth: how often the time between two knots is halved, >= 1; below that W is a straight line.
        dtype, device: of W(t); the path is the same in each.

    Raises:
        ValueError: fewer than two knots, not ascending or not finite; a seed out of range; both seed and generator.

    Example:
        >>> path = BrownianPath((2,), [0.0, 1.0], seed=1)
        >>> torch.equal(path(0.3), BrownianPath((2,), [0.0, 1.0], seed=1)(0.3))
        True
        >>> path(0.0)
        tensor([0., 0.])

    References:
        Levy (1948), Processus stochastiques et mouvement brownien, section 1; Gaines, Lyons (1997), Variable step size
        control in the numerical solution of stochastic differential equations; Li, Wong, Chen, Duvenaud (2020),
        Scalable gradients for stochastic differential equations, arXiv 2001.01328, section 4; Salmon, Moraes, Dror,
        Shaw (2011), Parallel random numbers: as easy as 1, 2, 3.
    """

    def __init__(
        self,
        shape: Sequence[int],
        knots: Sequence[float] | Float[Tensor, "knots"],
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        depth: int = 24,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        if seed is not None and generator is not None:
            raise ValueError("seed and generator both say which path: give one")
        self.shape = torch.Size(shape)
        self.knots = [float(k) for k in knots]
        if len(self.knots) < 2 or not all(a < b < math.inf for a, b in itertools.pairwise([-math.inf, *self.knots])):
            raise ValueError(f"knots must be two or more ascending, finite times, got {self.knots[:5]}")
        self.seed = check_integer("seed", _drawn(generator) if seed is None else seed, 0, 2**63 - 1)
        self.depth = check_integer("depth", depth, 1, 60)
        self.dtype = dtype or torch.get_default_dtype()
        self.device = device or torch.get_default_device()
        self._bridges: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        last = math.sqrt(self.knots[-1] - self.knots[0])
        self._asked: dict[float, np.ndarray] = {}  # the last two: a step begins where the one before it ended
        self._ends = np.zeros(self.shape), last * self._normal(_END, 0, 0)

    def __call__(self, t: float) -> Float[Tensor, "..."]:
        """Return W(t).

        Args:
            t: between the first and the last knot.

        Returns:
            ``[*shape]``.

        Raises:
            ValueError: ``t`` lies outside.
        """
        return self._tensor(self._value(float(t)))

    def increment(self, start: float, end: float) -> Float[Tensor, "..."]:
        """Return W(end) - W(start).

        Args:
            start, end: times between the first and the last knot, in any order.

        Returns:
            ``[*shape]``.

        Raises:
            ValueError: a time lies outside.
        """
        start, end = float(start), float(end)
        self._asked = {t: self._asked[t] if t in self._asked else self._value(t) for t in (start, end)}
        return self._tensor(self._asked[end] - self._asked[start])

    def area(self, start: float, end: float) -> Float[Tensor, "..."]:
        r"""Return :math:`\int_a^b (W(s)-W(a))\,ds`, whose law given the increment is :math:`N(h\,\Delta W/2,h^3/12)`.

        The areas of intervals between knots fit together: that of two in a row is that of both. An interval that ends
        inside two knots has an area of its own, of the right law, that no finer division knows of.

        Args:
            start, end: times between the first and the last knot, ``start <= end``.

        Returns:
            ``[*shape]``.

        Raises:
            ValueError: a time lies outside, or they descend.
        """
        start, end = float(start), float(end)
        if not start <= end:
            raise ValueError(f"start must be at most end, got {start} and {end}")
        first = bisect.bisect_right(self.knots, start)
        ends = [start, *self.knots[first : bisect.bisect_left(self.knots, end)], end]
        values = [self._value(t) for t in ends]
        total = np.zeros(self.shape)
        for (a, b), (left, right) in zip(itertools.pairwise(ends), itertools.pairwise(values), strict=True):
            bits = [int(np.float64(t).view(np.uint64)) for t in (a, b)]
            bridge = math.sqrt((b - a) ** 3 / 12) * self._normal(*bits, _AREA)
            total += (b - a) * ((left + right) / 2 - values[0]) + bridge
        return self._tensor(total)

    def _tensor(self, value: np.ndarray) -> Tensor:
        return torch.from_numpy(np.asarray(value)).to(self.device, self.dtype)

    def _value(self, t: float) -> np.ndarray:
        knots = self.knots
        if not knots[0] <= t <= knots[-1]:
            raise ValueError(f"t must lie between {knots[0]} and {knots[-1]}, got {t}")
        low, high = 0, len(knots) - 1
        left, right = self._ends
        cell = min(bisect.bisect_right(knots, t) - 1, high - 1)  # t lies in [knots[cell], knots[cell + 1]]
        while high - low > 1:
            middle = (low + high) // 2
            value = self._bridge((_KNOT, middle, 0), knots[low], knots[middle], knots[high], left, right)
            if cell < middle:
                high, right = middle, value
            else:
                low, left = middle, value
        return self._between(cell, t, left, right)

    def _between(self, cell: int, t: float, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        low, high = self.knots[cell], self.knots[cell + 1]
        place = 1  # of a half: its path from the root, as bits behind a one
        for _ in range(self.depth):
            if t in (low, high):
                break
            middle = low + (high - low) / 2
            if not low < middle < high:
                break
            value = self._bridge((_INNER + 2 * cell, place, 1), low, middle, high, left, right)
            place = 2 * place + int(t >= middle)
            if t < middle:
                high, right = middle, value
            else:
                low, left = middle, value
        if t == low:
            return left
        return right if t == high else left + (t - low) / (high - low) * (right - left)

    def _bridge(
        self, key: tuple[int, int, int], low: float, middle: float, high: float, left: np.ndarray, right: np.ndarray
    ) -> np.ndarray:
        kept = self._bridges.get(key)
        if kept is not None:
            self._bridges.move_to_end(key)
            return kept
        share = (middle - low) / (high - low)
        spread = math.sqrt((high - middle) * share)
        value = left + share * (right - left) + spread * self._normal(*key)
        self._bridges[key] = value
        if len(self._bridges) > _KEPT:
            self._bridges.popitem(last=False)
        return value

    def _normal(self, *place: int) -> np.ndarray:
        philox = np.random.Philox(key=self.seed, counter=[0, *place])  # the first word counts the draws of a place
        return np.random.Generator(philox).standard_normal(tuple(self.shape))


def _drawn(generator: torch.Generator | None) -> int:
    device = generator.device if generator is not None else torch.device("cpu")
    return int(torch.randint(2**62, (), generator=generator, device=device))

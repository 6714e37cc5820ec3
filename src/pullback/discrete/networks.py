"""Differentiable sorting networks: a fixed list of layers of conditional swaps, each swap relaxed by a sigmoid."""

from __future__ import annotations

from functools import cache, partial
from typing import NamedTuple

import numpy as np
import torch

from pullback.core.checks import check_choice, check_dim, check_floating, check_integer, check_scalar
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.core.transforms import is_transformed
from pullback.discrete.result import Sorted
from pullback.discrete.softness import widen
from pullback.discrete.steps import STEP_ERRORS, soft_step
from pullback.kernels.sorting_network import Swaps, sorted_values, sorting_matrix

__all__ = ["NETWORKS", "Swap", "comparators", "soft_swap", "sorting_network"]

NETWORKS = ("bitonic", "odd_even")
"""``bitonic``: about ``log2(n)^2 / 2`` layers of any wires; ``odd_even``: ``n`` layers of neighbours."""

_MOST_SWAPS = 2**28
"""More would take over 2 GiB to list: a bitonic network of a million wires has 10^8."""


class Swap(NamedTuple):
    """A sorted pair: ``low <= high`` where the swap is hard.

    Attributes:
        low: the (soft) minimum.
        high: the (soft) maximum.
    """

    low: Float[Tensor, "..."]
    high: Float[Tensor, "..."]


def soft_swap(
    a: Float[Tensor, "*#shape"],
    b: Float[Tensor, "*#shape"],
    *,
    steepness: Scalar = 10.0,
    distribution: str = "cauchy",
    hard: bool = False,
) -> Swap:
    r"""Return the soft minimum and maximum of two values: the conditional swap of a sorting network.

    .. math::
        w = f(\beta (b - a)), \qquad \mathit{low} = w a + (1 - w) b, \qquad \mathit{high} = (1 - w) a + w b

    Their sum is ``a + b`` and the error ``|low - min(a, b)|`` at most ``STEP_ERRORS[distribution] / steepness``. For
    cauchy, reciprocal and optimal both results increase in both arguments; for the others the slope of ``low`` in the
    larger argument falls below 0 (logistic -0.0998, gaussian -0.13, linear -0.5): a gradient that points the wrong way.

    Args:
        a: ``[*shape]`` the value of the wire that ends up smaller; broadcasts with ``b``.
        b: ``[*shape]`` the value of the other wire.
        steepness: slope ``beta > 0`` of the sigmoid at a tie, in units of 1 / value; a number or a differentiable
            tensor without dimensions.
        distribution: the sigmoid, one of those of :func:`~pullback.discrete.soft_step`.
        hard: return ``min`` and ``max`` themselves, with the gradient of the soft swap (the error-free swap).

    Returns:
        :class:`Swap` ``(low, high)``. A pair with an infinite value is swapped hard.

    Raises:
        TypeError: an argument is not a floating tensor.
        ValueError: shapes do not broadcast, dtypes differ, NaN, ``steepness <= 0``, unknown ``distribution``.

    Example:
        >>> low, high = soft_swap(torch.tensor(3.0), torch.tensor(1.0), steepness=1.0, distribution="optimal")
        >>> low.item(), high.item()
        (1.0625, 2.9375)

    References:
        Petersen, Borgelt, Kuehne, Deussen (2022), Monotonic differentiable sorting networks, equations 1-4.
        Kim, Yoon, Cho (2024), Generalized neural sorting networks with error-free differentiable swap functions.
    """
    check_floating("a", a)
    check_floating("b", b)
    if a.dtype != b.dtype:
        raise ValueError(f"a and b must agree in dtype, got {a.dtype} and {b.dtype}")
    if any(m != n and 1 not in (m, n) for m, n in zip(a.shape[::-1], b.shape[::-1], strict=False)):
        raise ValueError(f"a and b must broadcast, got {tuple(a.shape)} and {tuple(b.shape)}")
    check_scalar("steepness", steepness)
    check_choice("distribution", distribution, STEP_ERRORS)
    refuse_nan("a", a)
    refuse_nan("b", b)
    wide_a, wide_b = torch.broadcast_tensors(widen(a), widen(b))
    change = wide_b < wide_a
    low, high = torch.where(change, wide_b, wide_a), torch.where(change, wide_a, wide_b)
    if isinstance(steepness, Tensor):
        steepness = steepness.to(wide_a)
    difference = wide_b - wide_a
    finite = torch.isfinite(steepness * difference)
    difference = torch.where(finite, difference, 0.0)
    moved = difference * soft_step(-steepness * difference, distribution)
    soft_low = torch.where(finite, wide_a + moved, low).to(a.dtype)
    soft_high = torch.where(finite, wide_b - moved, high).to(a.dtype)
    if not hard:
        return Swap(soft_low, soft_high)
    return Swap(replace_gradient(low.to(a.dtype), soft_low), replace_gradient(high.to(a.dtype), soft_high))


def comparators(n: int, network: str = "bitonic") -> tuple[Int[Tensor, "2 _"], ...]:
    """Return the layers of a sorting network on ``n`` wires.

    The bitonic network is built for the next power of two, with every swap sending the smaller value to the lower wire.
    The wires above ``n`` would then hold ``inf`` and never move, so they are dropped with their swaps.

    Args:
        n: number of wires, >= 1.
        network: ``"bitonic"`` (``k (k + 1) / 2`` layers, ``k = ceil(log2 n)``) or ``"odd_even"`` (``n`` layers).

    Returns:
        For every layer int32 ``[2, pairs]``: the wire that gets the smaller value, the wire that gets the larger.

    Raises:
        TypeError: ``n`` is not an integer.
        ValueError: ``n < 1``, more than 2^28 swaps, or an unknown ``network``.

    Example:
        >>> [layer.T.tolist() for layer in comparators(3, "odd_even")]
        [[[0, 1]], [[1, 2]], [[0, 1]]]
        >>> len(comparators(1024)), sum(layer.shape[1] for layer in comparators(1024))
        (55, 28160)

    References:
        Batcher (1968), Sorting networks and their applications.
        Knuth (1998), The art of computer programming 3, section 5.3.4.
    """
    check_integer("n", n, 1)
    check_choice("network", network, NETWORKS)
    pairs, sizes = layers_of(network, n)
    return pairs.split(sizes, dim=1)


def sorting_network(
    x: Float[Tensor, "*shape"],
    dim: int = -1,
    *,
    steepness: Scalar = 10.0,
    distribution: str = "cauchy",
    network: str = "bitonic",
    hard: bool = False,
    descending: bool = False,
) -> Sorted:
    r"""Return the soft-sorted values of ``x`` and, when it is read, the doubly stochastic matrix that sorts it.

    Every conditional swap of the network is a :func:`soft_swap`. Applied to the values they give ``values``, applied to
    the identity the permutation ``P`` with ``P x = values``; rows and columns of ``P`` sum to 1. Values cost
    ``O(n log^2 n)`` (bitonic) and no matrix. The error is at most ``layers * STEP_ERRORS[distribution] / steepness``.

    Args:
        x: ``[*batch, n, *rest]`` any floating dtype (half precision is computed in float32). ``+-inf`` sort to the ends
            exactly and leave the gradients elsewhere finite.
        dim: the dimension that is sorted.
        steepness: slope ``beta > 0`` of the sigmoid at a tie, in units of 1 / value; large is nearly hard. A number or
            a differentiable tensor without dimensions.
        distribution: of :func:`~pullback.discrete.soft_step`: ``"cauchy"``, ``"optimal"`` and ``"reciprocal"`` give
            Jacobians without a negative entry, the others do not.
        network: ``"bitonic"`` or ``"odd_even"``, see :func:`comparators`.
        hard: error-free: ``values`` are those of ``torch.sort``, bit for bit, and ``permutation`` is 0/1; the gradient
            is that of the soft swaps at the hard values.
        descending: largest first.

    Returns:
        :class:`~pullback.discrete.Sorted`: ``values`` of the shape of ``x``, ``permutation`` ``[*batch, *rest, n, n]``
        (row = place, column = item), ``indices`` as ``torch.sort(x, dim, descending, stable=True)``.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        IndexError: ``dim`` out of range.
        ValueError: ``x`` has no dimension, the dimension is empty, a NaN (looked for except under ``torch.func``,
            forward mode and ``torch.compile``), ``steepness <= 0``, unknown ``distribution`` or ``network``.

    Example:
        >>> x = torch.tensor([3.0, 1.0, 2.0])
        >>> result = sorting_network(x, steepness=100.0, distribution="optimal")
        >>> [round(v, 3) for v in result.values.tolist()]
        [1.001, 2.0, 2.999]
        >>> torch.allclose(result.permutation @ x, result.values)
        True
        >>> sorting_network(x, hard=True).values.tolist()
        [1.0, 2.0, 3.0]

    References:
        Petersen, Borgelt, Kuehne, Deussen (2022), Monotonic differentiable sorting networks, ICLR.
        Kim, Yoon, Cho (2024), Generalized neural sorting networks with error-free differentiable swap functions, ICLR.
    """
    check_floating("x", x)
    if x.ndim == 0:
        raise ValueError("x must have at least one dimension, got a scalar")
    dim = check_dim(x, dim)
    if x.shape[dim] == 0:
        raise ValueError(f"x must not be empty along dim {dim}, got shape {tuple(x.shape)}")
    check_scalar("steepness", steepness)
    check_choice("distribution", distribution, STEP_ERRORS)
    check_choice("network", network, NETWORKS)
    refuse_nan("x", x)
    pairs, sizes = layers_of(network, x.shape[dim])
    step = partial(soft_step, distribution=distribution)
    learned = steepness if isinstance(steepness, Tensor) else None
    swaps = Swaps(pairs, sizes, step, distribution, 1.0 if learned is not None else float(steepness), hard)
    # The network of -x sorts x in descending order, with ties as in a stable descending sort.
    sign = -1.0 if descending else 1.0

    def rows() -> Tensor:
        # Formed anew for the matrix, so that values and matrix can each be sent backward on their own.
        plain = sign * widen(x).movedim(dim, -1)
        return plain if learned is None else steepened(plain, learned)

    def values() -> Tensor:
        sorted_rows = sorted_values(rows(), swaps)
        if learned is not None:
            sorted_rows = _flattened(sorted_rows, learned, sign * widen(x.detach()).movedim(dim, -1), hard)
        return (sign * sorted_rows).to(x.dtype).movedim(-1, dim)

    return Sorted(
        values=values(),
        indices=lambda: torch.sort(x.detach(), dim=dim, descending=descending, stable=True).indices,
        permutation=lambda: sorting_matrix(rows(), swaps).to(x.dtype),
    )


def steepened(x: Tensor, steepness: Tensor) -> Tensor:
    """Return ``steepness x``: a network of that steepness on ``x`` is one of steepness 1 on it, up to that factor."""
    finite = torch.isfinite(x)
    scaled = torch.where(finite, x, 0.0).double() * steepness.to(x.device, torch.float64)
    return torch.where(finite, scaled, x.detach().double())


def _flattened(values: Tensor, steepness: Tensor, x: Tensor, hard: bool) -> Tensor:
    """Return the sorted values divided by the steepness again, where they are infinite those of ``torch.sort``."""
    exact = torch.sort(x, dim=-1, stable=True).values
    known = torch.isfinite(values)
    soft = (torch.where(known, values, 0.0) / steepness.to(values)).to(x.dtype)
    soft = torch.where(known, soft, exact)
    return replace_gradient(exact, soft) if hard else soft


def refuse_nan(name: str, x: Tensor) -> None:
    """Refuse a NaN, where values may be looked at."""
    if not is_transformed(x) and bool(x.isnan().any()):
        raise ValueError(f"{name} must not be NaN, got nan at index {tuple(x.isnan().nonzero()[0].tolist())}")


def layers_of(network: str, n: int) -> tuple[Tensor, tuple[int, ...]]:
    """Return the wires ``[2, swaps]`` of a network and how many swaps each layer has."""
    # A tensor of its own for every call: one made and kept under a transform would belong to that transform.
    depth = (n - 1).bit_length()
    layers = n if network == "odd_even" else depth * (depth + 1) // 2
    if layers * n // 2 > _MOST_SWAPS:
        raise ValueError(
            f"n must be small enough for {_MOST_SWAPS} swaps, got {n}: about {layers * n // 2} in network {network!r}"
        )
    pairs, sizes = _cached_layers(network, n)
    return torch.from_numpy(pairs), sizes


# What torch.compiler.assume_constant_result does, which would import the compiler (over a second) with this module.
layers_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _cached_layers(network: str, n: int) -> tuple[np.ndarray, tuple[int, ...]]:
    wires = np.arange(n, dtype=np.int32)
    partners = []
    if network == "odd_even":
        partners = [((wires + layer) ^ 1) - layer for layer in (0, 1)] * ((n + 1) // 2)
        partners = partners[: n if n > 1 else 0]
    else:
        for merged in range(1, (n - 1).bit_length() + 1):
            # Each merge first swaps mirrored wires, then wires at halved distances.
            partners += [wires ^ (2**merged - 1)] + [wires ^ (1 << k) for k in range(merged - 2, -1, -1)]
    layers = [np.stack([wires, p])[:, (p > wires) & (p < n)] for p in partners]
    layers = [layer for layer in layers if layer.shape[1]]
    return np.concatenate([np.empty((2, 0), dtype=np.int32), *layers], axis=1), tuple(
        layer.shape[1] for layer in layers
    )

r"""Polygons as sequences of tokens and as permutations: who follows whom around a ring."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_floating, check_integer, check_positive, check_tensor
from pullback.core.shapes import Float, Int, Tensor

__all__ = [
    "CoordinateTokenizer",
    "EncodedPolygons",
    "PairwiseScores",
    "permutation_to_polygons",
    "polygons_to_permutation",
]


class EncodedPolygons(NamedTuple):
    """The polygons of a tile, for a decoder of tokens and a matching.

    Attributes:
        tokens: ``[2 max_vertices + 2]`` start, row and column of each corner in turn, stop, padding.
        successor: ``[max_vertices]`` the place of the next corner of its ring; unused places point to themselves.
        vertices: how many corners were encoded.
        left_out: polygons that did not fit and were left out, as wholes.
    """

    tokens: Int[Tensor, "t"]
    successor: Int[Tensor, "slots"]
    vertices: int
    left_out: int


class CoordinateTokenizer:
    r"""Corners as tokens: a coordinate x in [0, size) is the token :math:`\lfloor x \cdot bins / size\rfloor`.

    Args:
        size: height and width of a tile, > 0.
        bins: tokens of coordinates, >= 1; ``start``, ``stop``, ``pad`` follow them.
        max_vertices: corners of a tile at most, >= 1.

    Raises:
        TypeError: a count is no integer.
        ValueError: an argument is out of range.

    Example:
        >>> tokenizer = CoordinateTokenizer(8.0, 8, max_vertices=4)
        >>> tile = tokenizer.encode([torch.tensor([[1.0, 1.0], [1.0, 5.0], [6.0, 5.0]])])
        >>> tile.tokens.tolist(), tile.successor.tolist()
        ([8, 1, 1, 1, 5, 6, 5, 9, 10, 10], [1, 2, 0, 3])
        >>> tokenizer.decode(tile.tokens)[0]
        tensor([[1.5000, 1.5000],
                [1.5000, 5.5000],
                [6.5000, 5.5000]])

    References:
        Adimoolam, Poullis, Averkiou (2025), Pix2Poly, section 3.1. Chen et al. (2022), Pix2seq.
    """

    def __init__(self, size: float, bins: int, *, max_vertices: int) -> None:
        check_positive("size", size)
        self.size, self.bins = size, check_integer("bins", bins, 1)
        self.max_vertices = check_integer("max_vertices", max_vertices, 1)
        self.start, self.stop, self.pad = bins, bins + 1, bins + 2

    @property
    def vocabulary(self) -> int:
        """Coordinates and the three special tokens."""
        return self.bins + 3

    def encode(
        self,
        polygons: Sequence[Float[Tensor, "_ 2"]],
        *,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
    ) -> EncodedPolygons:
        """Encode the polygons of a tile, ring by ring.

        Args:
            polygons: corners ``[n, 2]`` in order, n >= 3, in [0, size).
            shuffle: put the corners of all rings in random order; the successors follow.
            generator: of that order.

        Raises:
            TypeError: a polygon is no floating tensor.
            ValueError: a polygon has fewer than three corners, one twice, or one outside of the tile.
        """
        for i, polygon in enumerate(polygons):
            _check_ring(f"polygons[{i}]", polygon)
            if bool(((polygon < 0) | (polygon >= self.size)).any()):
                raise ValueError(
                    f"polygons[{i}] must lie in [0, {self.size:g}), got {polygon.min():g} .. {polygon.max():g}"
                )
        kept: list[Tensor] = []
        for polygon in polygons:
            if sum(map(len, kept)) + len(polygon) > self.max_vertices:
                break
            kept.append(polygon)
        vertices, successor = polygons_to_permutation(kept, self.max_vertices)
        count = sum(map(len, kept))
        if shuffle:
            order = torch.randperm(count, generator=generator)
            place = order.argsort()
            successor = torch.cat([place[successor[:count][order]], successor[count:]])
            vertices = torch.cat([vertices[:count][order], vertices[count:]])
        corners = (vertices[:count] * (self.bins / self.size)).long().clamp(max=self.bins - 1).flatten()
        tokens = torch.full((2 * self.max_vertices + 2,), self.pad)
        tokens[0], tokens[1 : 2 * count + 1], tokens[2 * count + 1] = self.start, corners, self.stop
        return EncodedPolygons(tokens, successor, count, len(polygons) - len(kept))

    def decode(self, tokens: Int[Tensor, "t"]) -> tuple[Float[Tensor, "n 2"], int]:
        """Return the corners ``[n, 2]`` (middles of the bins) before the first stop, and how many tokens were dropped.

        A start in front is skipped; special tokens in between, and the last coordinate of an odd number, are dropped.
        Corners beyond ``max_vertices`` too.

        Raises:
            TypeError: ``tokens`` holds no integers.
            ValueError: ``tokens`` has more than one dimension, or one outside of the vocabulary.
        """
        _check_integers("tokens", tokens)
        if bool(((tokens < 0) | (tokens >= self.vocabulary)).any()):
            raise ValueError(f"tokens must be in 0..{self.vocabulary - 1}")
        if len(tokens) and int(tokens[0]) == self.start:
            tokens = tokens[1:]
        stops = (tokens == self.stop).nonzero()
        said = tokens[: int(stops[0])] if len(stops) else tokens[tokens != self.pad]
        coordinates = said[said < self.bins]
        count = min(len(coordinates) // 2, self.max_vertices)
        corners = (coordinates[: 2 * count].view(count, 2) + 0.5) * (self.size / self.bins)
        return corners, len(said) - 2 * count


class PairwiseScores(nn.Module):
    r"""A score for every ordered pair: :math:`M_{ij} = S_1([v_i, v_j]) + S_2([v_j, v_i])`, two networks of their own.

    Args:
        features: width of a vector, >= 1.
        hidden: widths of the hidden layers of each network, normalised pair by pair (LayerNorm; the paper normalises
            over the batch) and rectified.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a width is no integer.
        ValueError: a width is < 1, or there is no hidden layer.

    Example:
        >>> PairwiseScores(8, (16,))(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 5])

    References:
        Adimoolam, Poullis, Averkiou (2025), Pix2Poly, section 3.3. Zorzi et al. (2022), PolyWorld.
    """

    def __init__(
        self, features: int, hidden: Sequence[int] = (256, 128, 64), *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.features = check_integer("features", features, 1)
        if not hidden:
            raise ValueError("hidden must name at least one layer")
        for width in hidden:
            check_integer("hidden", width, 1)
        self.networks = nn.ModuleList(_Pairs(features, tuple(hidden)) for _ in range(2))
        if generator is not None:
            for layer in self.modules():
                if isinstance(layer, nn.Linear):
                    bound = layer.in_features**-0.5
                    for parameter in layer.parameters():
                        nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def forward(self, vectors: Float[Tensor, "*batch n features"]) -> Float[Tensor, "*batch n n"]:
        """Return the scores of all ordered pairs."""
        if check_floating("vectors", vectors).ndim < 2 or vectors.shape[-1] != self.features:
            raise ValueError(f"vectors must have shape (..., n, {self.features}), got {tuple(vectors.shape)}")
        first, second = self.networks
        scores: Tensor = first(vectors) + second(vectors).mT
        return scores


class _Pairs(nn.Module):
    """A network of pairs whose first layer is a sum of two, of n vectors instead of n^2 pairs."""

    def __init__(self, features: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(features, hidden[0]), nn.Linear(features, hidden[0], bias=False)
        layers: list[nn.Module] = [nn.LayerNorm(hidden[0]), nn.ReLU()]
        for before, after in itertools.pairwise(hidden):
            layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU()]
        self.rest = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))

    def forward(self, vectors: Tensor) -> Tensor:
        pairs = self.left(vectors).unsqueeze(-2) + self.right(vectors).unsqueeze(-3)
        scores: Tensor = self.rest(pairs).squeeze(-1)
        return scores


def polygons_to_permutation(
    polygons: Sequence[Float[Tensor, "_ 2"]], slots: int
) -> tuple[Float[Tensor, "slots 2"], Int[Tensor, "slots"]]:
    """Return the corners of all rings in places of a row, and for each place that of the next corner of its ring.

    Args:
        polygons: corners ``[n, 2]`` in order, n >= 3, none twice in a ring.
        slots: places, at least as many as corners.

    Returns:
        Corners ``[slots, 2]``, 0 at unused places, and successors ``[slots]``; unused places point to themselves.

    Raises:
        TypeError: a polygon is no floating tensor.
        ValueError: a polygon has fewer than three corners or one twice, or there are more corners than slots.

    Example:
        >>> corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> polygons_to_permutation([corners], 4)[1]
        tensor([1, 2, 0, 3])
    """
    check_integer("slots", slots, 1)
    for i, polygon in enumerate(polygons):
        _check_ring(f"polygons[{i}]", polygon)
    count = sum(map(len, polygons))
    if count > slots:
        raise ValueError(f"slots must be at least the {count} corners, got {slots}")
    successor = torch.arange(slots)
    start = 0
    for polygon in polygons:
        ring = torch.arange(start, start + len(polygon))
        successor[ring] = ring.roll(-1)
        start += len(polygon)
    vertices = torch.zeros(slots, 2)
    if polygons:
        vertices = torch.cat([*polygons, polygons[0].new_zeros(slots - count, 2)])
    return vertices, successor


def permutation_to_polygons(successor: Int[Tensor, "n"], vertices: Float[Tensor, "n 2"]) -> list[Float[Tensor, "_ 2"]]:
    """Read the cycles of a permutation as rings.

    Args:
        successor: ``[n]`` a permutation of 0..n-1: the place of the next corner.
        vertices: ``[n, 2]`` the corners.

    Returns:
        The corners ``[k, 2]`` of each cycle of at least three, from its smallest place on; shorter ones are left out.

    Raises:
        TypeError: ``successor`` holds no integers, or ``vertices`` is no floating tensor.
        ValueError: ``successor`` is no permutation, or the shapes do not fit.

    Example:
        >>> corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [5.0, 5.0]])
        >>> [ring.tolist() for ring in permutation_to_polygons(torch.tensor([2, 0, 1, 3]), corners)]
        [[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]

    References:
        Adimoolam, Poullis, Averkiou (2025), Pix2Poly, section 3.3.
    """
    _check_integers("successor", successor)
    n = len(successor)
    if check_floating("vertices", vertices).shape != (n, 2):
        raise ValueError(f"vertices must have shape ({n}, 2), got {tuple(vertices.shape)}")
    following = successor.tolist()
    if sorted(following) != list(range(n)):
        raise ValueError(f"successor must be a permutation of 0..{n - 1}, got {following}")
    left, rings = set(range(n)), []
    for first in range(n):
        if first not in left:
            continue
        ring = [first]
        while (after := following[ring[-1]]) != first:
            ring.append(after)
        left -= set(ring)
        if len(ring) > 2:
            rings.append(vertices[ring])
    return rings


def _check_ring(name: str, polygon: Tensor) -> None:
    if check_floating(name, polygon).ndim != 2 or polygon.shape[-1] != 2 or len(polygon) < 3:
        raise ValueError(f"{name} must have shape (n, 2) with n >= 3, got {tuple(polygon.shape)}")
    if not bool(polygon.isfinite().all()):
        raise ValueError(f"{name} must be finite")
    if len(polygon.unique(dim=0)) < len(polygon):
        raise ValueError(f"{name} must not have a corner twice")


def _check_integers(name: str, value: Tensor) -> None:
    if check_tensor(name, value).is_floating_point() or value.dtype == torch.bool or value.is_complex():
        raise TypeError(f"{name} must hold integers, got {value.dtype}")
    if value.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {tuple(value.shape)}")

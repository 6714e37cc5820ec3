"""Neighbourhoods of learned size: scores that are cut off at a rank which is itself a number with a gradient."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from pullback.core.checks import (
    check_choice,
    check_floating,
    check_integer,
    check_positive,
    check_scalar,
    check_shape,
    check_tensor,
)
from pullback.core.gradients import replace_gradient
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.discrete import gumbel_noise
from pullback.topology.distances import pairwise_distances
from pullback.topology.learned_graph import LearnedGraph, kept_log_prob

__all__ = [
    "DifferentiableGraphGenerator",
    "Neighbors",
    "adaptive_neighborhood",
    "neighbor_candidates",
    "smooth_first_k",
]


def smooth_first_k(
    k: Float[Tensor, "*batch"], n: int, *, width: Scalar = 1.0, method: str = "tanh"
) -> Float[Tensor, "*batch n"]:
    r"""Return a soft step over the ranks ``r = 0 .. n - 1``: near 1 for ``r < k``, near 0 beyond, for a real ``k``.

    .. math:: h(r) = 1 - \tfrac12 \big(1 + \tanh((r - k) / w)\big)

    or, linear, ``clamp(1/2 - (r - k) / (2 w), 0, 1)``. Both are 1/2 at ``r = k``, and their sum over the ranks grows by
    about 1 with ``k``.

    Args:
        k: ``[*batch]`` how many ranks are kept, > 0; no integer in general.
        n: number of ranks.
        width: of the step, > 0, in ranks; towards 0 the first ``ceil(k)`` are kept.
        method: ``"tanh"`` (a gradient at every rank) or ``"linear"`` (none but within ``width`` of ``k``).

    Returns:
        ``[*batch, n]`` in [0, 1], falling.

    Raises:
        TypeError: ``k`` is not a floating tensor.
        ValueError: ``k`` or ``width`` is not > 0, ``n`` is below 1, or ``method`` is unknown.

    Example:
        >>> smooth_first_k(torch.tensor(1.5), 4, width=0.5)
        tensor([0.9975, 0.8808, 0.1192, 0.0025])

    References:
        Saha, Mendez, Russell, Bowden (2023), Learning adaptive neighborhoods for graph neural networks, section 3.
    """
    check_floating("k", k)
    check_integer("n", n, 1)
    check_scalar("width", width)
    check_choice("method", method, ("tanh", "linear"))
    if can_look(k):
        check_positive("k", k)
    wide = k.to(torch.promote_types(k.dtype, torch.float32))  # half precision does not hold the ranks
    ahead = (wide.unsqueeze(-1) - torch.arange(n, dtype=wide.dtype, device=k.device)) / width
    if method == "tanh":
        step = torch.sigmoid(2 * ahead)
    else:  # half open, so that at a whole k, too, two ranks share a slope of 1
        step = torch.where(ahead >= 1, 1.0, torch.where(ahead < -1, 0.0, 0.5 + 0.5 * ahead))
    return step.to(k.dtype)


def adaptive_neighborhood(
    scores: Float[Tensor, "*batch n m"],
    k: Float[Tensor, "*batch n"],
    *,
    width: Scalar = 1.0,
    method: str = "tanh",
    hard: bool = False,
    index: Int[Tensor, "*batch n m"] | None = None,
) -> LearnedGraph:
    r"""Keep the best-scored neighbours of every node, as many as its own real degree says.

    .. math:: A_{ij} = p_{ij} \, h_{k_i}(\mathrm{rank}_{ij}), \qquad \mathrm{rank} = 0 \text{ for the largest score}

    with the soft step of :func:`smooth_first_k`. The gradient reaches the scores, through ``p``, and the degrees,
    through ``h``; ranks are constants. Equal scores are ranked in the order of their places.

    Args:
        scores: ``[*batch, n, m]`` of ``m`` possible neighbours, >= 0; those of 0 are never kept.
        k: ``[*batch, n]`` degrees, > 0; at ``m`` or more, all neighbours are kept.
        width: > 0, of the step, in ranks.
        method: ``"tanh"`` or ``"linear"``, the form of the step.
        hard: the scores of the first ``ceil(k)`` neighbours as they are, 0 beyond, with the gradient of the soft ones.
        index: ``[*batch, n, m]`` which nodes the neighbours are; by default place ``j`` is node ``j``.

    Returns:
        The graph; its ``degree`` is ``k``, its ``log_prob`` that of the neighbours of rank below ``k``.

    Raises:
        TypeError: ``scores`` or ``k`` is not a floating tensor.
        ValueError: a score is NaN or negative, ``k`` or ``width`` is not > 0, or shapes do not agree.

    Example:
        >>> scores = torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.8, 0.3], [0.5, 0.4, 0.7]])
        >>> adaptive_neighborhood(scores, torch.tensor([0.5, 1.5, 1.0]), width=0.25).weights.round(decimals=2)
        tensor([[0.8800, 0.0000, 0.0100],
                [0.0000, 0.8000, 0.2900],
                [0.2500, 0.0000, 0.7000]])

    References:
        Saha, Mendez, Russell, Bowden (2023), Learning adaptive neighborhoods for graph neural networks, section 3.
    """
    check_floating("scores", scores)
    check_floating("k", k)
    check_shape("scores", scores, (None, None))
    if scores.dtype != k.dtype:
        raise TypeError(f"scores and k must have the same dtype, got {scores.dtype} and {k.dtype}")
    if k.shape != scores.shape[:-1]:
        raise ValueError(
            f"k must have the shape of scores without its last, got {tuple(k.shape)} {tuple(scores.shape)}"
        )
    if scores.shape[-1] < 1:
        raise ValueError("scores must have at least one neighbour a node, got none")
    if can_look(scores) and not bool((scores >= 0).all()):
        raise ValueError("scores must be >= 0 everywhere, got " + ("NaN" if bool(scores.isnan().any()) else "less"))
    index = _places(scores) if index is None else _checked_index(index, scores)
    step = smooth_first_k(k, scores.shape[-1], width=width, method=method)
    ranks = scores.detach().sort(dim=-1, descending=True, stable=True).indices.argsort(-1)
    weights = scores * step.gather(-1, ranks)
    kept = ranks < k.detach().unsqueeze(-1).to(torch.promote_types(k.dtype, torch.float32))
    if hard:
        weights = replace_gradient(torch.where(kept, scores, 0.0), weights)
    return LearnedGraph(weights, index, k, kept_log_prob(weights, kept))


class Neighbors(NamedTuple):
    """The nearest points of every point, nearest first.

    Attributes:
        index: ``[*batch, n, count]`` int64.
        distances: ``[*batch, n, count]`` Euclidean, differentiable in the points.
    """

    index: Int[Tensor, "*batch n count"]  # type: ignore[assignment]
    distances: Float[Tensor, "*batch n count"]


def neighbor_candidates(x: Float[Tensor, "*batch n d"], count: int, *, block: int = 1024) -> Neighbors:
    """Return the exact nearest neighbours of every point, itself left out, without all ``n x n`` distances at once.

    Args:
        x: ``[*batch, n, d]`` points.
        count: neighbours a point, in ``1 .. n - 1``.
        block: points whose distances to all are held at once; memory is ``block * n``.

    Returns:
        Indices and distances. The distances are computed anew for the chosen pairs, so that their gradient costs
        ``n * count * d``; between equal points the distance is 0 with gradient 0.

    Raises:
        TypeError: ``x`` is not a floating tensor.
        ValueError: ``count`` is out of range, or a coordinate is not finite.

    Example:
        >>> index, distances = neighbor_candidates(torch.tensor([[0.0], [1.0], [3.0]]), 1)
        >>> index.mT, distances.mT
        (tensor([[1, 0, 1]]), tensor([[1., 1., 2.]]))
    """
    check_shape("x", check_floating("x", x), (None, None))
    n = x.shape[-2]
    check_integer("count", count, 1, n - 1)
    check_integer("block", block, 1)
    if can_look(x) and not bool(torch.isfinite(x).all()):
        raise ValueError("x must be finite everywhere, got NaN or infinity")
    fixed = x.detach().to(torch.promote_types(x.dtype, torch.float32))
    scale = fixed.abs().amax((-2, -1), keepdim=True)
    fixed = fixed / torch.where(scale > 0, scale, 1.0)  # squares of the largest numbers overflow
    parts = []
    for first in range(0, n, block):
        rows = fixed[..., first : first + block, :]
        # The expanded square |a|^2 - 2ab + |b|^2 is faster and wrong for near points.
        distances = torch.cdist(rows, fixed, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(first, first + rows.shape[-2], device=x.device).unsqueeze(-1)
        distances = distances.masked_fill(own == torch.arange(n, device=x.device), torch.inf)
        parts.append(distances.topk(count, largest=False).indices)
    index = torch.cat(parts, -2)
    return Neighbors(index, _distances(x, index))


class DifferentiableGraphGenerator(nn.Module):
    r"""A graph for given nodes, trained by what is done with it: who is a neighbour, and how many there are.

    Nodes are encoded, ``y = leaky_relu(W x + b)``; pairs are scored,

    .. math:: p_{ij} = \sigma\Big(\sum_c \mathrm{leaky\_relu}(W' (y_i - y_j))_c\Big)
              \quad\text{or}\quad p_{ij} = \exp(-t \, \lVert y_i - y_j \rVert),

    in training with Gumbel noise on ``log p``; a degree is found for each node, from its scores,

    .. math:: k_i = 1 + \mathrm{softplus}\Big(a \sum_j p_{ij} + b\Big),

    or as ``1 + relu(spread * (w . z_i) + centre)`` of a Gaussian ``z_i`` with mean and variance from ``y_i`` (its mean
    when not training); and :func:`adaptive_neighborhood` keeps the first ``k_i``. Among all nodes (no candidates)
    a node may be its own neighbour; scored by distance and without noise, it is its first.

    Softplus stands where the released code has a leaky ReLU, which may ask for fewer than no neighbours.

    Args:
        features: of a node.
        hidden: features of the encoding.
        candidates: score only that many nearest nodes, not all; memory ``n * candidates``.
        score: ``"difference"`` or ``"distance"``.
        noise: scale of the Gumbel noise in training, >= 0.
        degree: ``"scores"`` or ``"gaussian"``.
        centre: degree that training begins with, > 1.
        width: > 0, of the step at the degree, in ranks.
        hard: keep scores of the first ``ceil(k)`` as they are, with the gradient of the soft ones.
        generator: draws the initial weights, and the noise where a call brings none.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> generator = DifferentiableGraphGenerator(3, 8, generator=torch.Generator().manual_seed(0)).eval()
        >>> graph = generator(torch.randn(10, 3, generator=torch.Generator().manual_seed(1)))
        >>> graph.weights.shape, bool((graph.degree > 1).all())
        (torch.Size([10, 10]), True)

    References:
        Saha, Mendez, Russell, Bowden (2023), Learning adaptive neighborhoods for graph neural networks, section 3.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        *,
        candidates: int | None = None,
        score: str = "difference",
        noise: float = 0.3,
        degree: str = "scores",
        centre: float = 6.0,
        width: float = 1.0,
        hard: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("features", features, 1)
        check_integer("hidden", hidden, 1)
        if candidates is not None:
            check_integer("candidates", candidates, 1)
        check_choice("score", score, ("difference", "distance"))
        check_choice("degree", degree, ("scores", "gaussian"))
        check_positive("noise", noise, zero=True)
        check_positive("width", width)
        check_positive("centre", centre)
        if centre <= 1:
            raise ValueError(f"centre must be > 1, got {centre}")
        self.candidates, self.score, self.noise, self.width, self.hard = candidates, score, noise, width, hard
        self.degree, self.centre, self.generator = degree, float(centre), generator
        self.encoder = _linear(features, hidden, generator)
        if score == "difference":
            self.pairs = _linear(hidden, hidden, generator)
        else:
            self.log_rate = nn.Parameter(torch.zeros(()))
        if degree == "scores":
            self.slope = nn.Parameter(torch.zeros(()))
            self.level = nn.Parameter(torch.tensor(centre - 1.0).expm1().log())
        else:
            self.latent = _linear(hidden, 2 * hidden, generator)
            self.size = _linear(hidden, 1, generator)
            self.spread = nn.Parameter(torch.tensor(float(centre) / 2))
            self.mean = nn.Parameter(torch.tensor(centre - 1.0))

    def forward(
        self,
        x: Float[Tensor, "*batch n features"],
        *,
        index: Int[Tensor, "*batch n m"] | None = None,
        generator: torch.Generator | None = None,
    ) -> LearnedGraph:
        """Return the graph of nodes ``x``.

        Args:
            x: ``[*batch, n, features]``.
            index: ``[*batch, n, m]`` the possible neighbours, where they are known: an input graph.
            generator: draws the noise of this call.

        Raises:
            TypeError: ``x`` is not a floating tensor.
            ValueError: ``x`` is not finite, has other features, or ``candidates`` is not below its number of nodes.
        """
        check_shape("x", check_floating("x", x), (None, self.encoder.in_features))
        if can_look(x) and not bool(torch.isfinite(x).all()):
            raise ValueError("x must be finite everywhere, got NaN or infinity")
        if self.candidates is not None and index is None:
            check_integer("candidates", self.candidates, 1, x.shape[-2] - 1)
            index = neighbor_candidates(x, self.candidates).index
        draws = generator or self.generator
        y = functional.leaky_relu(self.encoder(x))
        log_p = self._scored(y, index)
        degree = self._degrees(y, log_p.exp(), draws)
        if self.training and self.noise:
            noise = gumbel_noise(
                log_p.shape, dtype=log_p.dtype, device=drawing_device(draws, log_p), generator=draws
            ).to(log_p.device)
            log_p = log_p + self.noise * noise
        if index is not None and can_look(degree):
            _warn_at_the_limit(degree, log_p.shape[-1])
        return adaptive_neighborhood(log_p.exp(), degree, width=self.width, hard=self.hard, index=index)

    def log_scores(
        self, x: Float[Tensor, "*batch n features"], *, index: Int[Tensor, "*batch n m"] | None = None
    ) -> Float[Tensor, "*batch n m"]:
        """Return ``log p`` without noise and without a cut, of all pairs or of the neighbours ``index``."""
        return self._scored(functional.leaky_relu(self.encoder(x)), index)

    def _scored(self, y: Tensor, index: Tensor | None) -> Tensor:
        if self.score == "distance":
            distances = pairwise_distances(y) if index is None else _distances(y, index)
            return -self.log_rate.exp() * distances
        z = y @ self.pairs.weight.mT  # W'(y_i - y_j) is a difference of products
        others = z.unsqueeze(-3) if index is None else _take(z, index)
        difference = z.unsqueeze(-2) - others + (0 if self.pairs.bias is None else self.pairs.bias)
        return functional.logsigmoid(functional.leaky_relu(difference).sum(-1))

    def _degrees(self, y: Tensor, p: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.degree == "scores":
            return 1 + functional.softplus(self.slope * p.sum(-1) + self.level)
        mean, log_scale = self.latent(y).chunk(2, -1)
        if self.training:
            shape = mean.shape
            draws = torch.randn(
                shape, dtype=mean.dtype, device=drawing_device(generator, mean), generator=generator
            ).to(mean.device)
            mean = mean + log_scale.exp() * draws
        return 1 + functional.relu(self.spread * self.size(mean).squeeze(-1) + self.mean)


def _linear(features: int, out: int, generator: torch.Generator | None) -> nn.Linear:
    layer = nn.Linear(features, out)
    bound = features**-0.5
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            parameter.uniform_(-bound, bound, generator=generator)
    return layer


def _places(scores: Tensor) -> Tensor:
    if scores.shape[-1] != scores.shape[-2]:
        raise ValueError(f"index must say which nodes the neighbours are, for scores of shape {tuple(scores.shape)}")
    return torch.arange(scores.shape[-1], device=scores.device).expand(scores.shape)


def _checked_index(index: Tensor, scores: Tensor) -> Tensor:
    if check_tensor("index", index).dtype != torch.int64:
        raise TypeError(f"index must be an int64 tensor, got {index.dtype}")
    if index.shape[-2:] != scores.shape[-2:]:
        raise ValueError(f"index must have the shape of scores, {tuple(scores.shape)}, got {tuple(index.shape)}")
    if can_look(index) and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < scores.shape[-2]:
        raise ValueError(f"index must be in 0..{scores.shape[-2] - 1}, got {int(index.min())}..{int(index.max())}")
    return index.expand(scores.shape)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows of ``x [*batch, n, d]`` that ``index [*batch, n, m]`` names, ``[*batch, n, m, d]``."""
    flat = index.flatten(-2).unsqueeze(-1).expand(*x.shape[:-2], -1, x.shape[-1])
    return x.gather(-2, flat).unflatten(-2, index.shape[-2:])


def _distances(x: Tensor, index: Tensor) -> Tensor:
    return _norm(x.unsqueeze(-2) - _take(x, index))


def _norm(difference: Tensor) -> Tensor:
    """Return the Euclidean norm along the last dimension, with gradient 0 at 0 and no overflow on the way."""
    wide = difference.to(torch.promote_types(difference.dtype, torch.float32))
    scale = wide.detach().abs().amax(-1, keepdim=True)
    apart = scale > 0
    scaled = torch.where(apart, wide / torch.where(apart, scale, 1.0), 1.0)
    norm = scale * scaled.square().sum(-1, keepdim=True).sqrt()
    return torch.where(apart, norm, 0.0).squeeze(-1).to(difference.dtype)


def _warn_at_the_limit(degree: Tensor, limit: int) -> None:
    share = float((degree.detach() >= limit).double().mean())
    if share > 0.05:
        warnings.warn(
            f"{share:.0%} of the nodes ask for all {limit} candidates or more; allow more candidates",
            RuntimeWarning,
            stacklevel=3,
        )

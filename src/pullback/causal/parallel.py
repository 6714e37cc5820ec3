"""Structure learners side by side on subsets of one data set, and what holds them together."""

from __future__ import annotations

import math

import torch
from torch import nn

from pullback.causal.acyclicity import acyclicity
from pullback.causal.graphs import check_square
from pullback.core.checks import (
    check_broadcast,
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_shape,
    check_tensor,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int, Tensor

__all__ = ["ParallelStructureLearner", "beta_subsets", "consensus_penalty"]

MECHANISMS = ("mlp", "linear", "sobolev")


class ParallelStructureLearner(nn.Module):
    r"""The models of several NOTEARS learners as one batch of parameters; their graphs are read off the first layers.

    Node ``v`` of each learner is predicted from the others by

    * ``"linear"``: :math:`\sum_u W_{uv} x_u + b_v`; the graph is ``W`` itself, with signs;
    * ``"mlp"``: :math:`\sum_k c_{vk}\,\sigma\big(\sum_u H_{uvk} x_u + a_{vk}\big) + b_v`, one hidden layer a node;
    * ``"sobolev"``: :math:`\sum_u \sum_k H_{uvk}\,\mu_k \sin(x_u / \mu_k) + b_v` with :math:`\mu_k = 2/((2k+1)\pi)`,
      ``k`` from zero: an additive model.

    In the latter two an arc is as strong as its group of weights, :math:`A_{uv} = (\sum_k H_{uvk}^2)^{1/2}`.

    Args:
        nodes: ``d >= 1``.
        learners: ``K >= 1`` models.
        mechanism: of the three.
        hidden: hidden units of an MLP a node, or functions of the basis, >= 1; the linear model has none.
        batch: leading shape, for several data sets at once.
        allowed: ``[d, d]`` booleans, which arcs there may be; all off the diagonal by default.
        dtype: of the parameters.
        generator: source of the initial weights.

    Attributes:
        first: ``[*batch, K, d, d]`` (linear) or ``[*batch, K, d, d, hidden]`` weights, zero where no arc is allowed.

    Raises:
        TypeError, ValueError: sizes below one, an unknown mechanism, ``allowed`` of another kind or shape.

    Example:
        >>> model = ParallelStructureLearner(3, 2, generator=torch.Generator().manual_seed(0))
        >>> model(torch.zeros(5, 3)).shape, model.adjacency().shape, model.acyclicity().shape
        (torch.Size([2, 5, 3]), torch.Size([2, 3, 3]), torch.Size([2]))

    References:
        Zheng, Dan, Aragam, Ravikumar, Xing (2020), Learning Sparse Nonparametric DAGs, sections 4 and 5; Berrevoets,
        Seedat, Imrie, van der Schaar (2023), Differentiable and Transportable Structure Learning, section 3.
    """

    allowed: Tensor
    scales: Tensor

    def __init__(
        self,
        nodes: int,
        learners: int = 1,
        *,
        mechanism: str = "mlp",
        hidden: int = 10,
        batch: tuple[int, ...] = (),
        allowed: Bool[Tensor, "d d"] | None = None,
        dtype: torch.dtype | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("nodes", nodes, 1)
        check_integer("learners", learners, 1)
        check_integer("hidden", hidden, 1)
        check_choice("mechanism", mechanism, MECHANISMS)
        self.nodes, self.learners, self.mechanism, self.hidden = nodes, learners, mechanism, hidden
        off = ~torch.eye(nodes, dtype=torch.bool)
        if allowed is not None:
            if check_tensor("allowed", allowed).dtype != torch.bool:
                raise TypeError(f"allowed must be a boolean tensor, got {allowed.dtype}")
            if tuple(allowed.shape) != (nodes, nodes):
                raise ValueError(f"allowed must have shape {(nodes, nodes)}, got {tuple(allowed.shape)}")
            off = off & allowed.cpu()
        self.register_buffer("allowed", off)
        lead = (*batch, learners)
        device = None if generator is None else generator.device

        def uniform(*shape: int, fan_in: int) -> Tensor:
            drawn = torch.rand((*lead, *shape), generator=generator, device=device, dtype=dtype)
            return (2 * drawn.cpu() - 1) / math.sqrt(fan_in)

        self.bias = nn.Parameter(torch.zeros((*lead, nodes), dtype=dtype))
        if mechanism == "linear":
            self.first = nn.Parameter(torch.zeros((*lead, nodes, nodes), dtype=dtype))
        elif mechanism == "sobolev":
            self.first = nn.Parameter(torch.zeros((*lead, nodes, nodes, hidden), dtype=dtype))
            self.register_buffer("scales", 2 / ((2 * torch.arange(hidden, dtype=dtype) + 1) * math.pi))
        else:
            self.first = nn.Parameter(uniform(nodes, nodes, hidden, fan_in=nodes) * off.unsqueeze(-1))
            self.first_bias = nn.Parameter(uniform(nodes, hidden, fan_in=nodes))
            self.second = nn.Parameter(uniform(nodes, hidden, fan_in=hidden))

    def forward(self, x: Float[Tensor, "*data n d"]) -> Float[Tensor, "*lead n d"]:
        """Predict every node by every learner: ``[*batch, K, n, d]`` from ``[*#batch, #K, n, d]``.

        Raises:
            TypeError: ``x`` is no floating tensor of the parameters' dtype.
            ValueError: another number of nodes, or leading dimensions that do not fit.
        """
        check_shape("x", check_floating("x", x), (None, self.nodes))
        if x.dtype != self.bias.dtype:
            raise TypeError(f"x must have the dtype of the parameters, {self.bias.dtype}, got {x.dtype}")
        check_broadcast(x=tuple(x.shape[:-2]), learners=tuple(self.bias.shape[:-1]))
        first, bias = self._first(), self.bias.unsqueeze(-2)
        if self.mechanism == "linear":
            return x @ first + bias
        if self.mechanism == "sobolev":
            basis = self.scales * torch.sin(x.unsqueeze(-1) / self.scales)
            return basis.flatten(-2) @ first.transpose(-1, -2).flatten(-3, -2) + bias
        units = torch.sigmoid(x @ first.flatten(-2) + self.first_bias.flatten(-2).unsqueeze(-2))
        # The second layers as one matrix of blocks: a product is faster than a sum over the units of each node.
        eye = torch.eye(self.nodes, dtype=x.dtype, device=x.device)
        return units @ (self.second.unsqueeze(-1) * eye.unsqueeze(-2)).flatten(-3, -2) + bias

    def adjacency(self) -> Float[Tensor, "*lead d d"]:
        """Return the weighted graphs of all learners."""
        return self.graph_of(self.first)

    def graph_of(self, first: Float[Tensor, "..."]) -> Float[Tensor, "*lead d d"]:
        """Return the weighted graphs of first layers shaped as this module's, one leading dimension or more."""
        if self.mechanism == "linear":
            return first * self.allowed
        return first.square().sum(-1).clamp_min(1e-24).sqrt() * self.allowed

    def acyclicity(self, method: str = "exponential") -> Float[Tensor, "*lead"]:
        """Return ``h`` of all learners' graphs, see :func:`acyclicity`."""
        return acyclicity(self.adjacency(), method=method)

    def _first(self) -> Tensor:
        """The first layer, nothing but zero where no arc is allowed, whatever the parameters are."""
        return self.first * (self.allowed if self.mechanism == "linear" else self.allowed.unsqueeze(-1))


def consensus_penalty(
    adjacencies: Float[Tensor, "*batch learners d d"],
    *,
    weights: Float[Tensor, "*#batch learners"] | None = None,
    detach_mean: bool = False,
) -> Float[Tensor, "*batch"]:
    r"""Return how far the graphs of parallel learners are from their mean.

    .. math:: \sum_k \frac{1}{d(d-1)} \sum_{u \ne v} (A_{k,uv} - \bar A_{uv})^2,\quad
              \bar A = \sum_k w_k A_k \Big/ \sum_k w_k

    Args:
        adjacencies: ``[*batch, K, d, d]``.
        weights: ``[*batch, K]`` >= 0 of the mean, such as numbers of samples; equal by default.
        detach_mean: whether the mean is a constant to the gradient.

    Returns:
        ``[*batch]``, >= 0.

    Raises:
        TypeError: no floating tensors.
        ValueError: not square, no learners; weights of another shape, negative, or all zero.

    Example:
        >>> graphs = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
        >>> consensus_penalty(graphs).item()
        0.25

    References:
        Berrevoets et al. (2023), equation 6 (there with MSE over all entries, the diagonal zero).
    """
    nodes = check_square("adjacencies", check_floating("adjacencies", adjacencies))
    if adjacencies.ndim < 3 or adjacencies.shape[-3] == 0:
        raise ValueError(f"adjacencies must have shape (..., learners, d, d), got {tuple(adjacencies.shape)}")
    if weights is None:
        mean = adjacencies.mean(-3, keepdim=True)
    else:
        check_shape("weights", check_floating("weights", weights), (adjacencies.shape[-3],))
        check_broadcast(weights=tuple(weights.shape[:-1]), adjacencies=tuple(adjacencies.shape[:-3]))
        if bool((weights.detach() < 0).any()) or not bool((weights.detach().sum(-1) > 0).all()):
            raise ValueError("weights must be >= 0 and not all zero")
        share = (weights / weights.sum(-1, keepdim=True)).to(adjacencies)
        mean = (share[..., None, None] * adjacencies).sum(-3, keepdim=True)
    if detach_mean:
        mean = mean.detach()
    off = 1 - torch.eye(nodes, dtype=adjacencies.dtype, device=adjacencies.device)
    return ((adjacencies - mean) * off).square().sum((-3, -2, -1)) / max(nodes * (nodes - 1), 1)


def beta_subsets(
    n: int,
    learners: int,
    *,
    size: int | None = None,
    sort_by: Float[Tensor, "*batch n"] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "*batch learners size"]:
    r"""Draw subsets of rows, each from another part of the data: they look like data sets of one domain.

    A row at place ``t`` in [0, 1] goes into subset ``k`` with probability proportional to the density of
    :math:`\mathrm{Beta}(a_k, b_k)` there, scaled to [0, 1] over the rows. The pairs are ``(1..K-1, K)``, ``(K, K)`` if
    ``K`` is odd, and ``(K, K-1..1)``: the first subset lies at the beginning, the last at the end. A subset takes the
    ``size`` rows with the smallest ``u / p``, ``u`` uniform (sequential Poisson sampling): the released rule ``u < p``,
    whose sizes are random, at the threshold that gives the size.

    Args:
        n: rows.
        learners: ``K >= 1``.
        size: rows a subset; ``n // K`` by default.
        sort_by: ``[*batch, n]`` values by which the rows are sorted first, such as one column of the data: a place is a
            rank then. Without, rows stay in their order.
        generator: source of the draws.

    Returns:
        ``[*batch, K, size]`` int64 indices of rows, without repetition in a subset, in the order of the places.

    Raises:
        TypeError: sizes that are no integers, ``sort_by`` no floating tensor.
        ValueError: more learners than rows; a size that is not in ``1..n``, or larger than the number of rows that have
            a positive probability; ``sort_by`` of another length, or not finite.

    Example:
        >>> index = beta_subsets(90, 3, generator=torch.Generator().manual_seed(0))
        >>> index.shape, (index.double().mean(-1) / 90).round(decimals=1)
        (torch.Size([3, 30]), tensor([0.2000, 0.5000, 0.7000], dtype=torch.float64))

    References:
        Berrevoets et al. (2023), section 4.2; Ohlsson (1998), Sequential Poisson sampling.
    """
    check_integer("n", n, 1)
    check_integer("learners", learners, 1)
    if learners > n:
        raise ValueError(f"learners must be at most the number of rows, {n}, got {learners}")
    size = n // learners if size is None else check_integer("size", size, 1, n)
    batch: tuple[int, ...] = ()
    if sort_by is not None:
        check_shape("sort_by", check_floating("sort_by", sort_by), (n,))
        check_finite("sort_by", sort_by)
        batch = tuple(sort_by.shape[:-1])
    half = learners // 2
    rising = torch.linspace(1, max(learners - 1, 1), half, dtype=torch.float64) if half else torch.zeros(0).double()
    top = torch.full_like(rising, learners)
    middle = torch.full((learners % 2,), float(learners), dtype=torch.float64)
    a, b = torch.cat([rising, middle, top])[:, None], torch.cat([top, middle, rising.flip(0)])[:, None]
    place = torch.linspace(0, 1, n, dtype=torch.float64)
    density = place ** (a - 1) * (1 - place) ** (b - 1)
    low, high = density.amin(-1, keepdim=True), density.amax(-1, keepdim=True)
    keep = torch.where(high > low, (density - low) / (high - low), torch.ones_like(density))
    if bool(((keep > 0).sum(-1) < size).any()):
        raise ValueError(f"size must be at most {int((keep > 0).sum(-1).min())}: the other rows have probability zero")
    device = drawing_device(generator, place)
    drawn = torch.rand((*batch, learners, n), dtype=torch.float64, generator=generator, device=device).cpu()
    chosen = (drawn / keep).argsort(dim=-1, stable=True)[..., :size].sort(-1).values
    if sort_by is None:
        return chosen
    rank = sort_by.argsort(dim=-1, stable=True).cpu()
    return rank.unsqueeze(-2).expand(*batch, learners, n).gather(-1, chosen).to(sort_by.device)

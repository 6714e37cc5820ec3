"""A weighted set of linear Gaussian models: what is known about a causal system after some data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from pullback.causal.graphs import check_square, is_acyclic, topological_order
from pullback.causal.posterior import GraphPosterior
from pullback.causal.swaps import topological_swaps
from pullback.core.checks import check_floating, check_integer, check_positive, check_scalar, check_shape, check_tensor
from pullback.core.shapes import Bool, Float, Shaped, Tensor

__all__ = ["ModelPosterior", "bootstrap_posterior"]


@dataclass(frozen=True)
class ModelPosterior:
    r"""A weighted set of models :math:`x_j = \sum_i x_i W^l_{ij} + \sigma^l_j e`, ``e`` standard normal.

    Attributes:
        weights: ``[m, d, d]`` of acyclic graphs.
        noise: ``[m, d]`` standard deviations, > 0.
        log_weights: ``[m]`` normalised: their exponentials sum to 1.

    Raises:
        ValueError: shapes that do not fit, a graph with a cycle, ``noise`` not positive, weights that do not sum to 1.
    """

    weights: Float[Tensor, "m d d"]
    noise: Float[Tensor, "m d"]
    log_weights: Float[Tensor, "m"]

    def __post_init__(self) -> None:
        nodes = check_square("weights", check_floating("weights", self.weights))
        count = self.log_weights.numel()
        if self.weights.shape != (count, nodes, nodes) or self.log_weights.ndim != 1:
            raise ValueError(
                "weights and log_weights must have shapes (m, d, d) and (m,), got "
                f"{tuple(self.weights.shape)} and {tuple(self.log_weights.shape)}"
            )
        if check_floating("noise", self.noise).shape != (count, nodes):
            raise ValueError(f"noise must have shape {(count, nodes)}, got {tuple(self.noise.shape)}")
        check_positive("noise", self.noise)
        acyclic = is_acyclic(self.weights)
        if not bool(acyclic.all()):
            raise ValueError(f"weights must be of graphs without cycles, got {int((~acyclic).sum())} with one")
        total = self.log_weights.logsumexp(0).item()
        if abs(total) > 1e-3:
            raise ValueError(f"log_weights must be normalised, got weights that sum to {math.exp(total):.4g}")

    @property
    def graphs(self) -> GraphPosterior:
        """The posterior over graphs: the arcs of the models with their weights."""
        return GraphPosterior(self.weights != 0, self.log_weights)

    def rsample(
        self,
        n: int,
        targets: Float[Tensor, "*batch d"],
        values: Float[Tensor, "*batch d"],
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*batch m n d"]:
        r"""Draw what every model would show under interventions.

        .. math:: x_j = (1 - I_j) \Big(\sum_i x_i W_{ij} + \sigma_j e_j\Big) + I_j s_j

        Args:
            n: samples a model, >= 1.
            targets: ``[*batch, d]`` in [0, 1], soft or hard: which nodes are set.
            values: ``[*batch, d]`` what to.
            generator: source of the noise, which is the same for all of the batch.

        Returns:
            ``[*batch, m, n, d]``, differentiable in targets and values.

        Raises:
            ValueError: shapes that do not fit.
        """
        check_integer("n", n, 1)
        count, nodes = self.noise.shape
        check_shape("targets", targets, (nodes,))
        if values.shape != targets.shape:
            raise ValueError(
                f"values must have the shape of targets, {tuple(targets.shape)}, got {tuple(values.shape)}"
            )
        device = None if generator is None else generator.device
        draws = torch.randn(count, n, nodes, generator=generator, device=device, dtype=self.noise.dtype)
        noise = self.noise[:, None] * draws.to(self.noise)
        batch = targets.shape[:-1]
        free, held = (t.reshape(-1, 1, nodes).expand(-1, n, -1).flatten(0, 1) for t in (1 - targets, targets * values))
        noise = noise.unsqueeze(1).expand(-1, math.prod(batch), -1, -1).flatten(1, 2)  # [m, batch * n, d]
        # Substituted into themselves, the equations are solved after as many steps as the longest path has arcs. For
        # few nodes that is several times faster than a factorisation and its derivative.
        x = torch.addcmul(held, free, noise)
        for _ in range(self._longest_path):
            x = torch.addcmul(held, free, torch.baddbmm(noise, x, self.weights))
        return x.unflatten(1, (*batch, n)).movedim(0, -3)

    @cached_property
    def _longest_path(self) -> int:
        """Arcs of the longest path in any of the graphs."""
        arcs = (self.weights != 0).to(self.noise)
        reached, length = arcs, 0
        while bool(reached.any()):
            reached, length = (reached @ arcs).sign(), length + 1
        return length

    def log_prob(
        self, x: Float[Tensor, "*batch n d"], targets: Float[Tensor, "*batch d"]
    ) -> Float[Tensor, "*batch n m"]:
        r"""Return the log-density of samples under every model: the sum over the nodes that nobody set.

        .. math:: \sum_j (1 - I_j) \log N\Big(x_j;\ \sum_i x_i W_{ij},\ \sigma_j^2\Big)

        Args:
            x: ``[*batch, n, d]`` samples.
            targets: ``[*batch, d]`` in [0, 1].

        Returns:
            ``[*batch, n, m]``.
        """
        count, nodes = self.noise.shape
        whitened = (torch.eye(nodes).to(self.noise) - self.weights) / self.noise.unsqueeze(-2)
        error = (x @ whitened.movedim(0, -2).flatten(-2)).unflatten(-1, (count, nodes))
        free = 1 - targets
        misfit = (error.square().flatten(-3, -2) @ free.unsqueeze(-1)).squeeze(-1).unflatten(-1, (x.shape[-2], count))
        constant = free @ (self.noise.log() + 0.5 * math.log(2 * math.pi)).mT
        return -0.5 * misfit - constant.unsqueeze(-2)

    def reweight(self, x: Float[Tensor, "n d"], targets: Shaped[Tensor, "n d"]) -> ModelPosterior:
        """Return the posterior after more samples: every weight times the likelihood of its model.

        Args:
            x: ``[n, d]`` samples.
            targets: ``[n, d]`` which nodes were set in which sample.
        """
        likelihood = self.log_prob(x.unsqueeze(-2), targets.to(x)).sum((0, 1))
        return ModelPosterior(self.weights, self.noise, (self.log_weights + likelihood).log_softmax(0))


def bootstrap_posterior(
    x: Shaped[Tensor, "n d"],
    targets: Bool[Tensor, "n d"] | None = None,
    *,
    models: int = 30,
    threshold: float = 0.3,
    start: ModelPosterior | None = None,
    generator: torch.Generator | None = None,
) -> ModelPosterior:
    """Fit a model to every bootstrap of the samples, all of one weight, by :func:`topological_swaps`.

    Args:
        x: ``[n, d]`` samples, ``n > d``, of zero mean where nobody intervened.
        targets: ``[n, d]`` which nodes were set in which sample.
        models: bootstraps, >= 1.
        threshold: weights whose size is at most this are no arcs, >= 0.
        start: models whose orders the searches start from, one after the other; random orders if ``None``.
        generator: source of bootstraps and orders.

    Returns:
        :class:`ModelPosterior` in double precision; the noise is the residual standard deviation of each node where
        nobody set it.

    Raises:
        ValueError: bad samples (see :func:`topological_swaps`), a bootstrap that is singular, options out of range.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> cause = torch.randn(60, 1, generator=g)
        >>> x = torch.cat([2 * cause + torch.randn(60, 1, generator=g), cause], 1)
        >>> round(bootstrap_posterior(x, models=10, generator=g).graphs.edge_probabilities()[1, 0].item(), 6)
        1.0

    References:
        Friedman, Goldszmidt, Wyner (1999), Data analysis with Bayesian networks: a bootstrap approach; Agrawal et al.
        (2019), ABCD-Strategy, for its use in experimental design.
    """
    check_integer("models", models, 1)
    check_scalar("threshold", threshold, zero=True)
    if check_floating("x", x).ndim != 2:
        raise ValueError(f"x must have shape (n, d), got {tuple(x.shape)}")
    x = x.detach().double()
    held = torch.zeros(x.shape, dtype=torch.bool, device=x.device)
    if targets is not None:
        held = check_tensor("targets", targets).bool()
        check_shape("targets", targets, tuple(x.shape))
    device = None if generator is None else generator.device
    weights, noise = [], []
    for model in range(models):
        rows = torch.randint(len(x), (len(x),), generator=generator, device=device).to(x.device)
        order = None if start is None else topological_order(start.weights[model % len(start.weights)])
        found = topological_swaps(x[rows], targets=held[rows], order=order, small=x.shape[-1] ** 2, generator=generator)
        kept = found.weights * (found.weights.abs() > threshold)
        residual = (x[rows] - x[rows] @ kept).square() * ~held[rows]
        weights.append(kept)
        noise.append((residual.sum(0) / (~held[rows]).sum(0)).sqrt())
    share = torch.full((models,), -math.log(models), dtype=x.dtype, device=x.device)
    return ModelPosterior(torch.stack(weights), torch.stack(noise), share)

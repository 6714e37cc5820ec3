"""The linear Gaussian model of samples from several environments, with soft graphs and soft targets."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pullback.causal.least_squares import check_data_sets
from pullback.core.checks import (
    check_broadcast,
    check_callable,
    check_finite,
    check_floating,
    check_integer,
    check_same_dtype,
    check_scalar,
    check_shape,
    check_tensor,
)
from pullback.core.shapes import Float, Shaped, Tensor
from pullback.core.transforms import can_look

__all__ = ["InterventionalGaussian"]


class InterventionalGaussian:
    r"""The joint density of samples from ``e + 1`` environments and of the parameters, given graph and targets.

    .. math:: \log p = \sum_{r, j} (1 - I_{e_r j}) \log N\big(x_{rj}; \textstyle\sum_i G_{ij} \Theta_{ij} x_{ri},
        \sigma^2\big) + I_{e_r j} \log N(x_{rj}; M_{e_r j}, \sigma_I^2) + \sum_{ij} G_{ij} \log N(\Theta_{ij}; 0,
        \tau^2) + \sum_{ej} I_{ej} \log N(M_{ej}; 0, \tau_I^2)

    ``G`` and ``I`` may be soft. The samples of an environment enter by a triangular factor, so that a
    density costs :math:`e d^3` whatever their number. Means may also be those of any mechanisms, which see the samples.
    :meth:`log_evidence` has the parameters integrated out.

    Args:
        x: ``[*batch, n, d]`` samples, not centred; one set for each problem of a batch.
        environments: ``[n]`` whole numbers, 0 the observational one, 1 to ``e`` the others; ``None``: all are 0.
        noise, intervention_noise: standard deviations ``sigma``, ``sigma_I``, > 0.
        weight_scale, intervention_scale: standard deviations ``tau``, ``tau_I`` of the priors, > 0.

    Attributes:
        nodes: ``d``.
        environments: ``e``, those with interventions.

    Raises:
        TypeError: samples that are no floating tensor, environments that are no whole numbers.
        ValueError: NaN, environments that are not 0 to ``e`` without gaps, one with fewer than two rows, a scale <= 0.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [0.0, 0.0], [3.0, 5.0], [3.0, 7.0]])
        >>> model = InterventionalGaussian(x, torch.tensor([0, 0, 1, 1]), noise=0.5)
        >>> arc = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
        >>> first = torch.tensor([[1.0, 0.0]])
        >>> known, free = (model.log_joint(arc, 2 * arc, t, 3 * first).item() for t in (first, 0 * first))
        >>> known > free
        True

    References:
        Haegele et al. (2023), BaCaDI, section 4 and appendix B.
    """

    def __init__(
        self,
        x: Shaped[Tensor, "*batch n d"],
        environments: Shaped[Tensor, " n"] | None = None,
        *,
        noise: float = 1.0,
        intervention_noise: float = 1.0,
        weight_scale: float = 1.0,
        intervention_scale: float = 10.0,
    ) -> None:
        check_shape("x", check_floating("x", x), (None, None))
        check_finite("x", x)
        check_data_sets("x", x)
        scales = {
            "noise": noise,
            "intervention_noise": intervention_noise,
            "weight_scale": weight_scale,
            "intervention_scale": intervention_scale,
        }
        for name, value in scales.items():
            check_scalar(name, value)
        *_, n, self.nodes = x.shape
        check_integer("the number of nodes of x", self.nodes, 1)
        self.environments = count_environments(n, environments) - 1
        self.noise, self.intervention_noise = float(noise), float(intervention_noise)
        self.weight_scale, self.intervention_scale = float(weight_scale), float(intervention_scale)
        self.x = x.detach()
        self.rows = torch.zeros(n, dtype=torch.int64) if environments is None else environments.long()
        self.rows = self.rows.to(x.device)
        parts = [self.x[..., self.rows == e, :] for e in range(self.environments + 1)]
        self.sizes = x.new_tensor([part.shape[-2] for part in parts])
        self.sums = torch.stack([part.sum(-2) for part in parts], -2)  # [*batch, e + 1, d]
        self.squares = torch.stack([part.square().sum(-2) for part in parts], -2)
        # |X b| = |R b| for a triangular R of d rows, without the cancellation of second moments.
        self.roots = torch.stack([_triangular(part) for part in parts], -3)  # [*batch, e + 1, d, d]

    def log_joint(
        self,
        graph: Float[Tensor, "*any d d"],
        weights: Float[Tensor, "*#any d d"] | Callable[[Tensor, Tensor], Tensor],
        targets: Float[Tensor, "*#any e d"] | None = None,
        means: Float[Tensor, "*#any e d"] | None = None,
        *,
        per_node: bool = False,
    ) -> Float[Tensor, "..."]:
        """Return the log-density of samples and parameters.

        Args:
            graph: ``[*batch, *more, d, d]`` in [0, 1]: the batch of ``x`` leads, and any dimensions follow.
            weights: ``[*batch, *more, d, d]``, of which those of arcs count; or ``mechanisms(x, graph)``, which returns
                the means ``[*batch, *more, n, d]`` of all samples and whose parameters have no prior here.
            targets: ``[*batch, *more, e, d]`` in [0, 1], ``None``: no interventions.
            means: ``[*batch, *more, e, d]`` of nodes under intervention; ``None``: they have no density.
            per_node: whether to keep the parts of the nodes: each depends on its own columns of all arguments.

        Returns:
            ``[*batch, *more]``, or ``[*batch, *more, d]``.

        Raises:
            TypeError: other dtypes than the samples'.
            ValueError: shapes that do not fit, means without targets.
        """
        value = self.log_likelihood(graph, weights, targets, means, per_node=True)
        if isinstance(weights, Tensor):
            value = value + (graph * _log_normal(weights, self.weight_scale)).sum(-2)
        if targets is not None and means is not None:
            value = value + (targets * _log_normal(means, self.intervention_scale)).sum(-2)
        return value if per_node else value.sum(-1)

    def log_likelihood(
        self,
        graph: Float[Tensor, "*any d d"],
        weights: Float[Tensor, "*#any d d"] | Callable[[Tensor, Tensor], Tensor],
        targets: Float[Tensor, "*#any e d"] | None = None,
        means: Float[Tensor, "*#any e d"] | None = None,
        *,
        per_node: bool = False,
    ) -> Float[Tensor, "..."]:
        """Return the log-density of the samples alone; arguments of :meth:`log_joint`."""
        self._check(graph, weights, targets, means)
        squares = self._squares(graph, weights) if isinstance(weights, Tensor) else self._residuals(graph, weights)
        sizes = self.sizes.unsqueeze(-1)
        constant = math.log(2 * math.pi * self.noise**2)
        free = -0.5 * (squares / self.noise**2 + sizes * constant)  # [*batch, *more, e + 1, d]
        if targets is None:
            value = free.sum(-2)
            return value if per_node else value.sum(-1)
        observed, others = free[..., 0, :], (1 - targets) * free[..., 1:, :]
        if means is not None:
            more = (1,) * (means.ndim - self.sums.ndim)
            batch = self.sums.shape[:-2]
            own = self.squares[..., 1:, :].reshape(*batch, *more, self.environments, -1)
            sums = self.sums[..., 1:, :].reshape(own.shape)
            spread = own - 2 * sums * means + sizes[1:] * means.square()
            constant = math.log(2 * math.pi * self.intervention_noise**2)
            others = others - 0.5 * targets * (spread / self.intervention_noise**2 + sizes[1:] * constant)
        value = observed + others.sum(-2)
        return value if per_node else value.sum(-1)

    def log_evidence(
        self,
        graph: Float[Tensor, "*any d d"],
        targets: Float[Tensor, "*#any e d"] | None = None,
        *,
        per_node: bool = False,
    ) -> Float[Tensor, "..."]:
        r"""Return the log-density of the samples, with weights and means integrated over their priors in closed form.

        .. math:: \log p_j = -\tfrac12 \Big(n_j \log 2\pi\sigma^2 + \frac{s_{jj}}{\sigma^2} + \log\det A
            - \frac{\tau^2}{\sigma^4}\, c^T A^{-1} c\Big) + \sum_e I_{ej} \log p(x_{ej}), \qquad
            A = 1 + \tfrac{\tau^2}{\sigma^2}\, g g^T \circ S, \quad c = g \circ s_j

        where ``g`` is the column of the graph of node ``j``, ``S`` and ``n_j`` the second moments and the number of
        samples, an environment ``e`` counted ``1 - I_ej`` times, and ``p(x_ej)`` the evidence of samples with an
        unknown mean. It is computed in double precision and costs a Cholesky factor of ``d`` rows for each node.

        Args:
            graph: ``[*batch, *more, d, d]`` in [0, 1]: the batch of ``x`` leads, and any dimensions follow.
            targets: ``[*batch, *more, e, d]`` in [0, 1], ``None``: no interventions.
            per_node: whether to keep the parts of the nodes.

        Returns:
            ``[*batch, *more]``, or ``[*batch, *more, d]``.

        Raises:
            TypeError: other dtypes than the samples'.
            ValueError: shapes that do not fit, values outside [0, 1].
        """
        self._check(graph, graph, targets, None)
        for name, value in (("graph", graph), ("targets", targets)):
            if value is not None and can_look(value) and not bool(((value >= 0) & (value <= 1)).all()):
                raise ValueError(f"{name} must be in [0, 1], got {value.min().item():.4g} to {value.max().item():.4g}")
        dtype, variance, scale = graph.dtype, self.noise**2, self.weight_scale
        masks, roots, sizes = graph.double().mT, self.roots.double(), self.sizes.double()
        if targets is None:
            kept = masks.new_ones(*graph.shape[:-2], self.environments + 1, self.nodes)
        else:
            targets = targets.double()
            kept = torch.cat([torch.ones_like(targets[..., :1, :]), 1 - targets], -2)
        batch = roots.shape[:-3]
        products = (roots.mT @ roots).flatten(-2)  # [*batch, e + 1, d d]
        moments = kept.mT.reshape(*batch, -1, self.environments + 1) @ products
        moments = moments.view(*kept.shape[:-2], self.nodes, self.nodes, self.nodes)  # the first of them is the node
        cross = moments.diagonal(dim1=-3, dim2=-1).mT
        ratio = scale**2 / variance
        system = torch.eye(self.nodes, dtype=masks.dtype, device=masks.device)
        system = system + ratio * masks.unsqueeze(-1) * masks.unsqueeze(-2) * moments
        factor = torch.linalg.cholesky(system)
        whitened = torch.linalg.solve_triangular(factor, (masks * cross).unsqueeze(-1), upper=False).squeeze(-1)
        misfit = (cross.diagonal(dim1=-2, dim2=-1) - ratio * whitened.square().sum(-1)) / variance
        constant = (kept * sizes.unsqueeze(-1)).sum(-2) * math.log(2 * math.pi * variance)
        value = -0.5 * (constant + misfit) - factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        if targets is not None:
            sums, squares = self.sums[..., 1:, :].double(), self.squares[..., 1:, :].double()
            shifted = mean_evidence(
                squares, sums, sizes[1:].unsqueeze(-1), self.intervention_noise, self.intervention_scale
            )
            more = (1,) * (targets.ndim - shifted.ndim)
            value = value + (targets * shifted.reshape(*batch, *more, *shifted.shape[-2:])).sum(-2)
        return (value if per_node else value.sum(-1)).to(dtype)

    def _squares(self, graph: Tensor, weights: Tensor) -> Tensor:
        """Sums of squared residuals ``[*batch, *more, e + 1, d]``."""
        identity = torch.eye(self.nodes, dtype=graph.dtype, device=graph.device)
        system = identity - graph * weights
        batch, count = self.roots.shape[:-3], self.environments + 1
        more = system.shape[len(batch) : -2]
        # The columns of all systems of a problem side by side: one product with the factors of all its environments.
        columns = system.reshape(*batch, -1, self.nodes, self.nodes).movedim(-3, -2).reshape(*batch, self.nodes, -1)
        residuals = (self.roots.flatten(-3, -2) @ columns).unflatten(-2, (count, self.nodes))
        squares = residuals.square().sum(-2)  # [*batch, e + 1, more d]
        return squares.unflatten(-1, (-1, self.nodes)).movedim(-3, -2).reshape(*batch, *more, count, self.nodes)

    def _residuals(self, graph: Tensor, mechanisms: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        more = (1,) * (graph.ndim - self.sums.ndim)
        x = self.x.reshape(*self.x.shape[:-2], *more, *self.x.shape[-2:])
        squares = (x - mechanisms(x, graph)).square()
        zeros = squares.new_zeros(*squares.shape[:-2], self.environments + 1, self.nodes)
        return zeros.index_add(-2, self.rows, squares)

    def _check(
        self,
        graph: Tensor,
        weights: Tensor | Callable[[Tensor, Tensor], Tensor],
        targets: Tensor | None,
        means: Tensor | None,
    ) -> None:
        named = {"graph": (graph, self.nodes)}
        if isinstance(weights, Tensor):
            named["weights"] = (weights, self.nodes)
        else:
            check_callable("weights", weights)
        if means is not None and targets is None:
            raise ValueError("means need targets: which environment intervenes on which node")
        for name, given in (("targets", targets), ("means", means)):
            if given is not None:
                named[name] = (given, self.environments)
        batch = tuple(self.sums.shape[:-2])
        for name, (value, rows) in named.items():
            check_shape(name, check_floating(name, value), (rows, self.nodes))
            check_same_dtype(**{name: value, "x": self.x})
            if tuple(value.shape[: len(batch)]) != batch or value.ndim < len(batch) + 2:
                raise ValueError(f"{name} must begin with the batch of x, {batch}, got shape {tuple(value.shape)}")
            if value.ndim != graph.ndim:
                raise ValueError(f"{name} must have as many dimensions as graph, {graph.ndim}, got {value.ndim}")
        check_broadcast(**{name: tuple(value.shape[:-2]) for name, (value, _) in named.items()})


def count_environments(n: int, environments: Tensor | None) -> int:
    """Return how many environments there are, the observational one included, else raise."""
    if environments is None:
        return 1
    check_shape("environments", check_tensor("environments", environments), (n,))
    if environments.is_floating_point() or environments.dtype == torch.bool:
        raise TypeError(f"environments must be whole numbers, got {environments.dtype}")
    present, sizes = environments.unique(return_counts=True)
    if present.tolist() != list(range(len(present))):
        raise ValueError(f"environments must be 0 to e without gaps, got {present.tolist()[:8]}")
    if int(sizes.min()) < 2:
        raise ValueError(f"environment {int(present[sizes.argmin()])} must have at least two rows")
    return len(present)


def mean_evidence(squares: Tensor, sums: Tensor, sizes: Tensor, noise: float, scale: float) -> Tensor:
    """Return the evidence of samples of unknown mean ``N(0, scale^2)``: a regression on a constant."""
    ratio = (scale / noise) ** 2
    explained = ratio * sums.square() / (1 + ratio * sizes)
    constant = sizes * math.log(2 * math.pi * noise**2) + (1 + ratio * sizes).log()
    return -0.5 * (constant + (squares - explained) / noise**2)


def _triangular(part: Tensor) -> Tensor:
    """``[*batch, d, d]`` with the same inner products of columns as ``[*batch, n, d]``."""
    root = torch.linalg.qr(part.double(), mode="r").R.to(part)
    return torch.nn.functional.pad(root, (0, 0, 0, part.shape[-1] - root.shape[-2]))


def _log_normal(value: Tensor, scale: float) -> Tensor:
    return -0.5 * (value / scale).square() - math.log(scale * math.sqrt(2 * math.pi))

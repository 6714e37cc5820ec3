"""Structural causal models to draw data from, observed or under interventions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from pullback.causal.graphs import check_square, topological_order
from pullback.core.checks import (
    check_broadcast,
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_positive,
    check_shape,
    check_tensor,
)
from pullback.core.numerics import solve
from pullback.core.shapes import Bool, Float, Shaped, Tensor
from pullback.core.transforms import can_look

__all__ = ["LinearSCM", "NonlinearSCM", "random_weights"]

_EULER = 0.5772156649015329


def random_weights(
    adjacency: Bool[Tensor, "*batch d d"],
    *,
    low: float = 0.5,
    high: float = 2.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch d d"]:
    """Give every arc a weight with random sign and magnitude uniform in ``[low, high]``.

    Args:
        adjacency: ``[*batch, d, d]`` booleans.
        low, high: 0 <= low <= high.
        generator: source of the random draws.

    Returns:
        ``[*batch, d, d]``, zero where there is no arc, in torch's default dtype.

    Raises:
        TypeError: ``adjacency`` is no boolean tensor.
        ValueError: not square, ``low > high`` or negative.

    Example:
        >>> weights = random_weights(torch.ones(2, 2).triu(1).bool(), generator=torch.Generator().manual_seed(0))
        >>> bool((weights.abs() >= 0.5).sum() == 1)
        True
    """
    if check_tensor("adjacency", adjacency).dtype != torch.bool:
        raise TypeError(f"adjacency must be a boolean tensor, got {adjacency.dtype}")
    check_square("adjacency", adjacency)
    check_positive("low", low, zero=True)
    check_positive("high", high, zero=True)
    if low > high:
        raise ValueError(f"low must be at most high, got {low} and {high}")
    device = adjacency.device if generator is None else generator.device
    size = low + (high - low) * torch.rand(adjacency.shape, generator=generator, device=device)
    sign = 2 * torch.randint(2, adjacency.shape, generator=generator, device=device) - 1
    return adjacency * (size * sign).to(adjacency.device)


class LinearSCM:
    r"""The linear model :math:`x = xW + z`, so :math:`x = z (I - W)^{-1}`, with independent noise ``z``.

    Args:
        weights: ``[*batch, d, d]`` of a DAG, ``W[i, j]`` the effect of ``i`` on ``j``; may require gradients.
        noise_scale: standard deviation (``"gauss"``) or scale (``"exp"``, ``"gumbel"``) of ``z``; > 0.
        noise: distribution of ``z``; ``"exp"`` and ``"gumbel"`` are centred.

    Raises:
        TypeError: weights or samples that are no floating tensors, samples of another dtype.
        ValueError: not square, not finite, unknown noise, scale not positive; weights whose cycles make ``I - W``
            singular.

    Example:
        >>> scm = LinearSCM(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))
        >>> x = scm.rsample(1000, interventions={0: 3.0}, generator=torch.Generator().manual_seed(0))
        >>> x.shape, round(x[:, 1].mean().item())
        (torch.Size([1000, 2]), 6)
    """

    def __init__(
        self, weights: Float[Tensor, "*batch d d"], noise_scale: float | Tensor = 1.0, noise: str = "gauss"
    ) -> None:
        check_choice("noise", noise, ["gauss", "exp", "gumbel"])
        check_positive("noise_scale", noise_scale)
        check_square("weights", check_floating("weights", weights))
        if can_look(weights):
            check_finite("weights", weights.detach())
        self.weights = weights
        self.noise_scale = torch.as_tensor(noise_scale, dtype=weights.dtype, device=weights.device)
        self.noise = noise

    def rsample(
        self,
        n: int,
        *,
        interventions: Mapping[int, float | Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*batch n d"]:
        """Draw ``n`` reparametrised samples; ``interventions`` sets nodes to values (``do``), cutting their arcs."""
        *batch, nodes, _ = self.weights.shape
        check_integer("n", n, 1)
        z = self.noise_scale * _draw(self.noise, (*batch, n, nodes), self.weights, generator)
        weights, targets = self.weights, None
        if interventions:
            targets = _targets(interventions, nodes, z.device)
            z = torch.where(targets, _values(interventions, z), z)
            weights = weights * ~targets
        working = torch.promote_types(weights.dtype, torch.float32)  # there is no factorisation in half precision
        system = torch.eye(nodes, dtype=working, device=weights.device) - weights.to(working)
        try:
            x = solve(system.mT, z.to(working).mT).mT.to(weights.dtype)
        except torch.linalg.LinAlgError as error:
            raise ValueError("weights must be those of a DAG: their cycles make I - W singular") from error
        return torch.where(targets, z, x) if targets is not None else x  # exactly the value, not up to rounding

    def log_prob(
        self, x: Float[Tensor, "*#batch d"], *, targets: Bool[Tensor, "*#batch d"] | None = None
    ) -> Float[Tensor, "*batch"]:
        """Return the log-density of samples; intervened nodes (``targets``) contribute nothing."""
        _check_samples(x, self.weights)
        check_broadcast(x=tuple(x.shape[:-2]), weights=tuple(self.weights.shape[:-2]))
        residual = (x - x @ self.weights) / self.noise_scale
        density = _log_density(self.noise, residual) - self.noise_scale.log()
        return (density if targets is None else density * ~targets).sum(-1)


class NonlinearSCM:
    r"""An additive-noise model :math:`x_j = f_j(x_{\mathrm{pa}(j)}) + z_j`, ``z`` standard normal.

    Args:
        adjacency: ``[d, d]`` a DAG.
        kind: ``"mlp"`` a random network with 100 sigmoid units a node; ``"mim"`` the multiple-index model
            :math:`\tanh(x w_1) + \cos(x w_2) + \sin(x w_3)`.
        generator: source of the random mechanisms.

    Raises:
        ValueError: unknown kind, a graph with a cycle.

    Example:
        >>> scm = NonlinearSCM(torch.tensor([[0, 1], [0, 0]]), kind="mim", generator=torch.Generator().manual_seed(0))
        >>> scm.rsample(4, generator=torch.Generator().manual_seed(1)).shape
        torch.Size([4, 2])

    References:
        Zheng, Dan, Aragam, Ravikumar, Xing (2020), Learning Sparse Nonparametric DAGs, section 5.
    """

    hidden = 100

    def __init__(
        self, adjacency: Shaped[Tensor, "d d"], kind: str = "mlp", *, generator: torch.Generator | None = None
    ) -> None:
        check_choice("kind", kind, ["mlp", "mim"])
        self.adjacency = check_tensor("adjacency", adjacency) != 0
        self.order = topological_order(self.adjacency).tolist()
        self.kind = kind
        nodes = adjacency.shape[-1]
        width = self.hidden if kind == "mlp" else 3
        device = None if generator is None else generator.device

        def signed(*shape: int) -> Tensor:
            magnitude = 0.5 + 1.5 * torch.rand(shape, generator=generator, device=device)
            sign = 2 * torch.randint(2, shape, generator=generator, device=device) - 1
            return (magnitude * sign).to(adjacency.device)

        self.first = signed(nodes, nodes, width) * self.adjacency.unsqueeze(-1)
        self.second = signed(nodes, width)

    def mechanisms(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return ``f_j(x)`` for every node."""
        index = torch.einsum("...u,uvk->...vk", x, self.first.to(x))
        has_parent = self.adjacency.any(0).to(x.device)
        if self.kind == "mlp":
            value = (torch.sigmoid(index) * self.second.to(x)).sum(-1)
        else:
            value = torch.tanh(index[..., 0]) + torch.cos(index[..., 1]) + torch.sin(index[..., 2])
        return value * has_parent

    def rsample(
        self,
        n: int,
        *,
        interventions: Mapping[int, float | Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "n d"]:
        """Draw ``n`` samples node by node in topological order; ``interventions`` sets nodes to values."""
        nodes = len(self.order)
        check_integer("n", n, 1)
        z = _draw("gauss", (n, nodes), self.first, generator)
        if interventions:
            _targets(interventions, nodes, z.device)
        x = torch.zeros_like(z)
        for node in self.order:
            if interventions and node in interventions:
                column = _column(node, interventions[node], z[:, 0])
            else:
                column = self.mechanisms(x)[:, node] + z[:, node]
            x = torch.cat([x[:, :node], column.unsqueeze(-1), x[:, node + 1 :]], -1)
        return x

    def log_prob(
        self, x: Float[Tensor, "*#batch d"], *, targets: Bool[Tensor, "*#batch d"] | None = None
    ) -> Float[Tensor, "*batch"]:
        """Return the log-density of samples; intervened nodes (``targets``) contribute nothing."""
        _check_samples(x, self.first[..., 0].to(x))
        density = _log_density("gauss", x - self.mechanisms(x))
        return (density if targets is None else density * ~targets).sum(-1)


def _check_samples(x: Tensor, weights: Tensor) -> None:
    check_shape("x", check_floating("x", x), (weights.shape[-1],))
    if x.dtype != weights.dtype:
        raise TypeError(f"x must have the dtype of the weights, {weights.dtype}, got {x.dtype}")


def _draw(noise: str, shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    device = like.device if generator is None else generator.device
    if noise == "gauss":
        return torch.randn(shape, dtype=like.dtype, generator=generator, device=device).to(like.device)
    exponential = torch.empty(shape, dtype=like.dtype, device=device).exponential_(generator=generator).to(like.device)
    return exponential - 1 if noise == "exp" else -exponential.log() - _EULER


def _log_density(noise: str, z: Tensor) -> Tensor:
    if noise == "gauss":
        return -0.5 * z * z - 0.5 * math.log(2 * math.pi)
    if noise == "exp":
        return torch.where(z >= -1, -(z + 1), torch.full_like(z, -math.inf))
    shifted = z + _EULER
    return -shifted - torch.exp(-shifted)


def _targets(interventions: Mapping[int, float | Tensor], nodes: int, device: torch.device) -> Tensor:
    targets = torch.zeros(nodes, dtype=torch.bool, device=device)
    for node in interventions:
        check_integer("a node of interventions", node, 0, nodes - 1)
        targets[node] = True
    return targets


def _values(interventions: Mapping[int, float | Tensor], like: Tensor) -> Tensor:
    return torch.stack(
        [_column(node, interventions.get(node, 0.0), like[..., 0]) for node in range(like.shape[-1])], -1
    )


def _column(node: int, value: float | Tensor, like: Tensor) -> Tensor:
    """What a node is set to: one number for all samples, or one for each."""
    column = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if column.ndim and column.shape != like.shape[-column.ndim :]:
        raise ValueError(
            f"interventions[{node}] must be a number or have shape {tuple(like.shape)}, got {column.shape}"
        )
    return column.expand(like.shape)

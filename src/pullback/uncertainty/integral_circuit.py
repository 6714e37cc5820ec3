"""Circuits over continuous latent variables, with functions that are small networks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import logsigmoid, silu

from pullback.core.checks import check_floating, check_integer, check_positive, check_same_dtype
from pullback.core.shapes import Float, Int, Tensor
from pullback.uncertainty.circuit_leaves import make_leaf
from pullback.uncertainty.tree_circuit import CircuitWeights, LatentTree, TreeCircuit

__all__ = ["IntegralCircuit"]


class IntegralCircuit(nn.Module):
    r"""A tree of continuous latent variables: each sum of a circuit is an integral.

    .. math:: g_i(z)=\int f_i(z,y)\,c_i(y)\,dy,\qquad \log f_i=-\mathrm{softplus}(\mathrm{net}_i(z,y))

    with c_i the product of what hangs below latent i. The functions f, 0 < f < 1, are networks of one hidden layer on
    Fourier features :math:`(\cos,\sin)(2\pi zB)`, B normal and drawn for each of them (shared ones, as in the authors'
    code, need more units); those of all latents are one batch of matrix products.
    Their size does not depend on the number of states: N points of a quadrature turn the model into a
    :class:`TreeCircuit` with N states, differentiably, and N may be another one after training.

    Args:
        parents: ``[variables]`` the parent of each variable, -1 for the one root.
        leaf: ``"bernoulli"``, ``"categorical"`` or ``"gaussian"``.
        units: of each hidden layer, even, >= 2.
        sigma: standard deviation of the frequencies B, > 0; the larger, the less smooth the functions.
        categories: of ``"categorical"``.
        own_latents: as of :class:`TreeCircuit`.
        generator: of the frequencies and the initial weights, uniform with the bounds of ``nn.Linear``.

    Attributes:
        latents: the variables with a latent of their own, the root first, by depth.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: the parents are no tree with one root, or a number is out of range.

    Example:
        >>> from pullback.uncertainty import quadrature
        >>> model = IntegralCircuit([1, -1, 1], units=8, generator=torch.Generator().manual_seed(0))
        >>> circuit = model.materialize(*quadrature("trapezoid", 16, log=True))
        >>> states = torch.cartesian_prod(*3 * [torch.tensor([0.0, 1.0])])
        >>> circuit.log_prob(states).exp().sum().round(decimals=4)
        tensor(1., grad_fn=<RoundBackward1>)

    References:
        Gala, de Campos, Peharz, Vergari, Quaeghebeur (2024), Probabilistic integral circuits, sections 3 and 4.
    """

    def __init__(
        self,
        parents: Sequence[int] | Int[Tensor, "variables"],
        leaf: str = "bernoulli",
        *,
        units: int = 64,
        sigma: float = 1.0,
        categories: int | None = None,
        own_latents: bool | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self._kind = {"leaf": leaf, "categories": categories, "own_latents": own_latents}
        law = make_leaf(leaf, categories)
        tree = LatentTree(parents, leaf == "gaussian" if own_latents is None else own_latents)
        self.latents = tree.latents
        if check_integer("units", units, 2) % 2:
            raise ValueError(f"units must be even, got {units}")
        check_positive("sigma", sigma)
        self._law, self._tree = law, tree
        self.root_net = _Nets(1, 1, units, 1, sigma, generator)
        self.sum_nets = _Nets(len(tree.latents) - 1, 2, units, 1, sigma, generator)
        self.leaf_nets = _Nets(
            len(tree.seat), 1, units, math.prod(law.shape), sigma, generator, silu if leaf == "gaussian" else torch.tanh
        )

    def materialize(
        self, points: Float[Tensor, "N"], log_weights: Float[Tensor, "N"], *, normalize: bool = True
    ) -> TreeCircuit:
        r"""Return the circuit whose sums are the integrals by a quadrature, as a function of the parameters.

        Row k of latent i has the weights :math:`f_i(z_k,z_l)w_l`.

        Args:
            points: ``[N]`` finite, N >= 2.
            log_weights: ``[N]`` logarithms of their weights.
            normalize: divide each row by its sum, so that the circuit is a law; without, ``log_prob`` subtracts the
                logarithm of the whole.

        Raises:
            TypeError: the arguments are no floating tensors of the parameters' dtype.
            ValueError: they have other shapes, or fewer than two points.
        """
        for name, value in (("points", points), ("log_weights", log_weights)):
            if check_floating(name, value).ndim != 1 or len(value) < 2 or len(value) != len(points):
                raise ValueError(f"{name} must have shape [N >= 2] as points, got {tuple(value.shape)}")
        check_same_dtype(points=points, log_weights=log_weights, parameters=self.root_net.frequencies)
        n = len(points)
        line = points.unsqueeze(-1)
        pairs = torch.stack([points.repeat_interleave(n), points.repeat(n)], -1)
        root = logsigmoid(-self.root_net(line)).view(n) + log_weights
        sums = logsigmoid(-self.sum_nets(pairs)).view(-1, n, n) + log_weights
        leaves = self.leaf_nets(line).view(-1, n, *self._law.shape)
        if normalize:
            root, sums = root.log_softmax(-1), sums.log_softmax(-1)
        weights = CircuitWeights(root, sums, leaves)
        return TreeCircuit(self._tree, weights=weights, normalized=normalize, **self._kind)  # type: ignore[arg-type]


class _Nets(nn.Module):
    """Networks of one hidden layer, with features of their own: ``[points, inputs]`` to ``[nets, points, out]``."""

    frequencies: Tensor

    def __init__(
        self,
        nets: int,
        inputs: int,
        units: int,
        out: int,
        sigma: float,
        generator: torch.Generator | None,
        activation: object = torch.tanh,
    ) -> None:
        super().__init__()
        self.register_buffer("frequencies", sigma * torch.randn(nets, inputs, units // 2, generator=generator))
        bound = 1 / math.sqrt(units)
        self.weight, self.bias, self.head, self.offset = (
            nn.Parameter(bound * (2 * torch.rand(nets, *shape, generator=generator) - 1))
            for shape in ((units, units), (1, units), (units, out), (1, out))
        )
        self._activation = activation

    def forward(self, x: Tensor) -> Tensor:
        angles = 2 * math.pi * x @ self.frequencies
        features = torch.cat([angles.cos(), angles.sin()], -1)
        hidden = self._activation(torch.baddbmm(self.bias, features, self.weight))  # type: ignore[operator]
        return torch.baddbmm(self.offset, hidden, self.head)

"""Mechanisms of all nodes as one batched network, each gated by a column of a graph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_tensor
from pullback.core.shapes import Float, Num, Tensor

__all__ = ["MaskedMechanisms"]


class MaskedMechanisms(nn.Module):
    r"""A network a node, :math:`f_j(A_{1j}x_1,\dots,A_{dj}x_d)`, all of them in one product a layer.

    Rectified linear layers; the first multiplies its weights by the graph, so that no masked copies of the data are
    made. A node is never its own parent, whatever stands on the diagonal.

    Args:
        nodes: d >= 1.
        hidden: widths of the hidden layers; empty: linear mechanisms.
        inputs: numbers that describe a node as a parent (classes of a one-hot code, for example).
        output: numbers that are predicted for a node.
        batch: leading dimensions of the parameters: that many independent sets of networks (seeds, data sets).
        generator: of the initial weights; torch's default one if ``None``.

    Raises:
        ValueError: a size is not positive.

    Example:
        >>> mechanisms = MaskedMechanisms(3, hidden=(8,), generator=torch.Generator().manual_seed(0))
        >>> graphs = torch.tensor([[[0, 1, 0], [0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0], [0, 1, 0]]])
        >>> first, second = mechanisms(torch.tensor([[1.0, 2.0, 3.0], [1.0, 5.0, 4.0]]), graphs)
        >>> bool((first[0] == first[1]).all()), bool((second[0, 0] == second[1, 0]).all())
        (True, True)

    References:
        Lachapelle, Brouillard, Deleu, Lacoste-Julien (2020), Gradient-based neural DAG learning, section 3.
        Charpentier, Kibler, Guennemann (2022), Differentiable DAG sampling, section 4.
    """

    def __init__(
        self,
        nodes: int,
        hidden: Sequence[int] = (16,),
        *,
        inputs: int = 1,
        output: int = 1,
        batch: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.nodes = check_integer("nodes", nodes, 1)
        self.inputs, self.output = check_integer("inputs", inputs, 1), check_integer("output", output, 1)
        self.batch = tuple(check_integer("batch", size, 1) for size in batch)
        widths = [nodes * inputs, *(check_integer("hidden", width, 1) for width in hidden), output]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(widths):
            for parameters, shape in ((self.weights, (fan_in, fan_out)), (self.biases, (1, fan_out))):
                bound = 1 / math.sqrt(fan_in)
                values = torch.empty(*self.batch, nodes, *shape).uniform_(-bound, bound, generator=generator)
                parameters.append(nn.Parameter(values))

    def forward(self, x: Float[Tensor, "..."], adjacency: Num[Tensor, "*any d d"]) -> Float[Tensor, "..."]:
        """Predict every node from its parents.

        Args:
            x: ``[*batch, n, d]``, or ``[*batch, n, d, inputs]`` where a node is described by several numbers.
            adjacency: ``[*graphs, *batch, d, d]``, ``A[i, j]`` in [0, 1] lets node i into the network of j.

        Returns:
            ``[*graphs, *batch, n, d]`` (``[..., n, d, output]`` with several outputs).

        Raises:
            TypeError: ``x`` is no floating tensor.
            ValueError: shapes do not fit.
        """
        wanted = (self.nodes,) if self.inputs == 1 else (self.nodes, self.inputs)
        if check_floating("x", x).ndim <= len(wanted) or x.shape[-len(wanted) :] != wanted:
            shape = ", ".join(map(str, wanted))
            raise ValueError(f"x must have shape (..., n, {shape}), got {tuple(x.shape)}")
        if check_tensor("adjacency", adjacency).shape[-2:] != (self.nodes, self.nodes):
            raise ValueError(
                f"adjacency must have shape (..., {self.nodes}, {self.nodes}), got {tuple(adjacency.shape)}"
            )
        x = x.flatten(-2) if self.inputs > 1 else x
        check_broadcast(batch=self.batch, x=tuple(x.shape[:-2]), adjacency=tuple(adjacency.shape[:-2]))
        others = 1 - torch.eye(self.nodes, dtype=x.dtype, device=x.device)
        gates = (adjacency.to(x.dtype) * others).mT.repeat_interleave(self.inputs, -1)  # [..., j, i * inputs]
        first = gates.unsqueeze(-1) * self.weights[0]
        # [..., n, in] times [..., in, j * out]: the data of all networks is the same.
        product = x @ first.transpose(-3, -2).flatten(-2)
        z = product.unflatten(-1, (self.nodes, -1)).transpose(-3, -2) + self.biases[0]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            z = torch.relu(z) @ weight + bias
        z = z.transpose(-3, -2)
        return z.squeeze(-1) if self.output == 1 else z

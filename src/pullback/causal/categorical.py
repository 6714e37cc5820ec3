"""Conditional distributions of classes given any set of parents, one network a variable."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from pullback.causal.mechanisms import MaskedMechanisms
from pullback.core.checks import check_integer, check_shape, check_tensor
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int, Shaped, Tensor

__all__ = ["CategoricalMechanisms"]


class CategoricalMechanisms(nn.Module):
    r"""Conditionals :math:`P(x_j = c\,|\,x_{\mathrm{pa}(j)})` of variables with ``classes`` values each.

    The softmax of :class:`MaskedMechanisms` on the one-hot code of the parents: the network of a variable is the same
    for every set of parents, whose complement is set to zero.

    Args:
        nodes: ``d`` >= 1.
        classes: values of every variable, >= 2.
        hidden: units of the hidden layers.
        batch: leading shape of independent sets of networks.
        generator: source of the first weights.

    Raises:
        ValueError: arguments out of range.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> mechanisms = CategoricalMechanisms(2, 3, generator=g)
        >>> arcs = torch.tensor([[0, 1], [0, 0]])
        >>> x = mechanisms.sample(arcs, 5, generator=g)
        >>> x.shape, mechanisms.log_prob(x, arcs).shape
        (torch.Size([5, 2]), torch.Size([5, 2]))

    References:
        Ke et al. (2019), Learning Neural Causal Models from Unknown Interventions, section 3.2.
    """

    def __init__(
        self,
        nodes: int,
        classes: int,
        hidden: tuple[int, ...] = (16,),
        *,
        batch: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("classes", classes, 2)
        self.nodes, self.classes, self.batch = nodes, classes, batch
        self.networks = MaskedMechanisms(
            nodes, hidden, inputs=classes, output=classes, batch=batch, generator=generator
        )

    def forward(
        self, x: Int[Tensor, "*batch n d"], adjacency: Shaped[Tensor, "*graphs d d"]
    ) -> Float[Tensor, "*graphs n d c"]:
        """Return the log-probabilities of all classes given the parents.

        Args:
            x: ``[*batch, n, d]`` classes.
            adjacency: ``[*graphs, *batch, d, d]`` in [0, 1], also soft.
        """
        check_shape("x", check_tensor("x", x), (None, self.nodes))
        if x.is_floating_point() or bool(((x < 0) | (x >= self.classes)).any()):
            raise ValueError(f"x must be integers in 0..{self.classes - 1}, got {x.dtype} up to {x.max().item()}")
        dtype = next(self.parameters()).dtype
        coded = nn.functional.one_hot(x.long(), self.classes).to(dtype)
        return cast(Tensor, self.networks(coded, adjacency.to(dtype))).log_softmax(-1)

    def log_prob(
        self,
        x: Int[Tensor, "*batch n d"],
        adjacency: Shaped[Tensor, "*graphs d d"],
        *,
        targets: Bool[Tensor, "*#batch d"] | None = None,
    ) -> Float[Tensor, "*graphs n d"]:
        """Return the log-probability of every variable given its parents; their sum is that of the sample.

        Args:
            x: ``[*batch, n, d]`` classes.
            adjacency: ``[*graphs, *batch, d, d]``.
            targets: ``[*batch, d]`` variables that were set, which have 0.
        """
        every = self(x, adjacency)
        own = every.gather(-1, x.long().unsqueeze(-1).expand(*every.shape[:-1], 1)).squeeze(-1)
        return own if targets is None else own.masked_fill(targets.unsqueeze(-2), 0.0)

    @torch.no_grad()
    def sample(
        self,
        adjacency: Shaped[Tensor, "*graphs d d"],
        n: int,
        *,
        targets: Bool[Tensor, "*#graphs d"] | None = None,
        generator: torch.Generator | None = None,
    ) -> Int[Tensor, "*graphs n d"]:
        """Draw samples of graphs without cycles, causes first.

        Args:
            adjacency: ``[*graphs, *batch, d, d]`` zeros and ones.
            n: samples of each graph, >= 1.
            targets: ``[*graphs, *batch, d]`` variables that are set, to classes drawn uniformly.
            generator: source of the draws, which are the same for all graphs of a set of networks: graphs whose
                mechanisms agree have equal samples, and what differs between graphs is due to their structure alone.

        Returns:
            ``[*graphs, *batch, n, d]`` classes.

        Raises:
            ValueError: shapes that do not fit, a graph with a cycle.
        """
        check_integer("n", n, 1)
        check_shape("adjacency", check_tensor("adjacency", adjacency), (self.nodes, self.nodes))
        arcs = adjacency != 0
        shape, common = (*arcs.shape[:-2], n, self.nodes), (*self.batch, n, self.nodes)
        place = next(self.parameters()).device
        device = drawing_device(generator, place)
        values = torch.randint(self.classes, common, generator=generator, device=device).to(place)
        uniform = torch.rand(*common, 1, generator=generator, device=device).to(place)
        held = torch.zeros(arcs.shape[:-1], dtype=torch.bool, device=place) if targets is None else targets
        held = held.expand(arcs.shape[:-1])
        x = torch.where(held.unsqueeze(-2), values, 0).expand(shape).contiguous()
        # A node's depth is its longest path from a root: in order of depth every node follows its parents.
        depth, reached = torch.zeros(arcs.shape[:-1], device=place), torch.ones(arcs.shape[:-1], device=place)
        while bool(reached.any()):
            reached = ((reached.unsqueeze(-2) @ arcs.float()).squeeze(-2) > 0).float()
            depth = depth + reached
            if bool((depth >= self.nodes).any()):
                raise ValueError("adjacency must be of graphs without cycles, got one with a cycle")
        dtype = next(self.parameters()).dtype
        coded = nn.functional.one_hot(x, self.classes).to(dtype)
        for node in depth.argsort(-1).unbind(-1):  # of each graph its own
            own = node[..., None, None].expand(*shape[:-1], 1)
            drawn = uniform.squeeze(-1).expand(shape).gather(-1, own)
            classes = (drawn > self._conditional(coded, arcs, node).cumsum(-1)[..., :-1]).sum(-1, keepdim=True)
            classes = torch.where(held.gather(-1, node[..., None])[..., None], x.gather(-1, own), classes)
            x.scatter_(-1, own, classes)
            one = nn.functional.one_hot(classes, self.classes).to(dtype)
            coded.scatter_(-2, own[..., None].expand(one.shape), one)
        return x

    def _conditional(self, coded: Tensor, arcs: Tensor, node: Tensor) -> Tensor:
        """Return the probabilities ``[*graphs, n, c]`` of one node of each graph ``[*graphs]``."""

        def of_node(values: Tensor) -> Tensor:  # [*batch, d, in, out]
            index = node[..., None, None, None].expand(*node.shape, 1, *values.shape[-2:])
            return values.expand(*node.shape, *values.shape[-3:]).gather(-3, index).squeeze(-3)

        parents = arcs.gather(-1, node[..., None, None].expand(*arcs.shape[:-1], 1))
        first, *others = zip(self.networks.weights, self.networks.biases, strict=True)
        z = coded.flatten(-2) @ (of_node(first[0]) * parents.repeat_interleave(self.classes, -2)) + of_node(first[1])
        for weight, bias in others:
            z = torch.relu(z) @ of_node(weight) + of_node(bias)
        return z.softmax(-1)

"""Networks on sets and graphs, with any pooling of items, messages and nodes."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pullback.core.checks import check_floating, check_integer, check_shape
from pullback.core.shapes import Float, Int
from pullback.topology.graph_families import GraphBatch
from pullback.topology.pooling import SegmentPool

__all__ = ["GraphNetwork", "SetNetwork"]


class GraphNetwork(nn.Module):
    r"""A small network on graphs: messages along the arcs, pooled at each node; nodes, pooled in each graph.

    .. math::
        h_v^{(k)} = \mathrm{AGG}_{u \to v} \, \phi_k\left(h_u^{(k-1)}, h_v^{(k-1)}, e_{uv}\right), \qquad
        y = W \, \mathrm{READ}_v \, \psi(h_v^{(K)}) + b

    :math:`\phi_k` and :math:`\psi` are a hidden layer and an output layer, both with a ReLU at the end, so that
    pooled numbers are >= 0. Away from zero such a network is linear, so it goes on as it began on graphs larger than
    those it has seen, if its poolings do.

    Args:
        features: of a node.
        hidden: width of all layers.
        out: numbers a graph.
        layers: rounds of messages.
        aggregate: pools messages at their targets: ``"sum"``, ``"mean"``, ``"max"``, ``"min"`` or a module that takes
            ``(x, index, count)``, of which each round gets its own copy.
        readout: pools nodes in their graph, likewise.
        edge_features: of an arc, 0 for none.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a size is no integer, a pooling neither a name nor a module.
        ValueError: a size is out of range, a pooling unknown.

    Example:
        >>> from pullback.topology import batch_graphs
        >>> graphs = batch_graphs([torch.tensor([[0, 1], [1, 2]])], [3])
        >>> GraphNetwork(1, 8, 2, readout="max")(torch.ones(3, 1), graphs).shape
        torch.Size([1, 2])

    References:
        Xu, Zhang, Li, Du, Kawarabayashi, Jegelka (2021), How neural networks extrapolate, section 4. Ko, Kwon, Shin,
        Lee (2021), Learning to pool in graph neural networks for extrapolation.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        out: int,
        *,
        layers: int = 1,
        aggregate: str | nn.Module = "sum",
        readout: str | nn.Module = "sum",
        edge_features: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value, low in (
            *(("features", features, 0), ("hidden", hidden, 1), ("out", out, 1)),
            *(("layers", layers, 1), ("edge_features", edge_features, 0)),
        ):
            check_integer(name, value, low)
        self.features = features
        inputs = [2 * width + edge_features for width in (features, *[hidden] * (layers - 1))]
        self.messages = nn.ModuleList(_mlp(width, hidden) for width in inputs)
        self.aggregates = nn.ModuleList(_pooling("aggregate", aggregate) for _ in range(layers))
        self.node = _mlp(hidden, hidden)
        self.readout = _pooling("readout", readout)
        self.head = nn.Linear(hidden, out)
        if generator is not None:
            _draw_weights((*self.messages.modules(), *self.node.modules(), self.head), generator)

    def forward(
        self,
        x: Float[Tensor, "nodes features"],
        graphs: GraphBatch,
        edge_features: Float[Tensor, "arcs edge_features"] | None = None,
    ) -> Float[Tensor, "count out"]:
        """Return the output of each graph from the features of its nodes and arcs."""
        wanted = (len(graphs.index), self.features)
        if check_floating("x", x).shape != wanted:
            raise ValueError(f"x must have shape {wanted}, got {tuple(x.shape)}")
        source, target = graphs.edges
        along = [] if edge_features is None else [edge_features]
        for message, aggregate in zip(self.messages, self.aggregates, strict=True):
            x = aggregate(message(torch.cat([x[source], x[target], *along], -1)), target, len(x))
        result: Tensor = self.head(self.readout(self.node(x), graphs.index, graphs.count))
        return result


class SetNetwork(nn.Module):
    r"""A small network on sets of vectors: :math:`y = W \, \mathrm{POOL}_i \, |V x_i| + b`.

    :math:`V` has no bias, so that an item that is ten times as large counts ten times, and magnitudes take the place of
    a ReLU: no unit dies, and what is pooled is >= 0, as :class:`GeneralizedNormPool` wants it. :math:`b` begins at 0: a
    constant that is large for small sets would drive the exponents of a norm from where they began.

    Args:
        features: numbers an item.
        hidden: width of what is pooled.
        out: numbers a set.
        pool: ``"sum"``, ``"mean"``, ``"max"``, ``"min"`` or a module that takes ``(x, index, count)``, of which a copy
            is used.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a size is no integer, the pooling neither a name nor a module.
        ValueError: a size is < 1, the pooling unknown.

    Example:
        >>> SetNetwork(1, 8, 2, pool="max")(torch.ones(3, 1), torch.tensor([0, 0, 1]), 2).shape
        torch.Size([2, 2])

    References:
        Zaheer et al. (2017), Deep sets, equation 4.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        out: int,
        *,
        pool: str | nn.Module = "sum",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("features", features), ("hidden", hidden), ("out", out)):
            check_integer(name, value, 1)
        self.features = features
        self.item, self.pool = nn.Linear(features, hidden, bias=False), _pooling("pool", pool)
        self.head = nn.Linear(hidden, out)
        if generator is not None:
            _draw_weights((self.item, self.head), generator)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, x: Float[Tensor, "m features"], index: Int[Tensor, "m"], count: int
    ) -> Float[Tensor, "count out"]:
        """Return the output of each of ``count`` sets, to which ``index`` gives the rows of ``x``."""
        check_shape("x", check_floating("x", x), (None, self.features))
        result: Tensor = self.head(self.pool(self.item(x).abs(), index, count))
        return result


def _draw_weights(modules: Iterable[nn.Module], generator: torch.Generator) -> None:
    for module in modules:
        if isinstance(module, nn.Linear):
            for parameter in module.parameters():
                bound = module.in_features**-0.5
                nn.init.uniform_(parameter, -bound, bound, generator=generator)


def _mlp(inputs: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())


def _pooling(name: str, pool: str | nn.Module) -> nn.Module:
    if isinstance(pool, str):
        return SegmentPool(pool)
    if not isinstance(pool, nn.Module):
        raise TypeError(f"{name} must be the name of a reduction or a module, got {type(pool).__name__}")
    return copy.deepcopy(pool)

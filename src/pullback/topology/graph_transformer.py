"""A graph transformer whose tokens, heads and layers can be cut."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pullback.core.checks import check_choice, check_floating, check_integer, check_positive, check_shape
from pullback.core.shapes import Float
from pullback.topology.attention_heads import HeadAttention
from pullback.topology.encodings import laplacian_encoding, pad_nodes, random_walk_encoding
from pullback.topology.graph_families import GraphBatch
from pullback.topology.segments import segment_reduce
from pullback.topology.token_pruning import LayerSelector, stochastic_depth, token_prune

__all__ = ["GraphTransformer"]


class GraphTransformer(nn.Module):
    r"""Layers of message passing, attention over all nodes of a graph and a feed-forward part, with a class token.

    .. math::
        x \leftarrow x + \mathrm{GIN}(\bar x) + \mathrm{Attention}(\bar x), \qquad x \leftarrow x + \mathrm{MLP}(\bar
        x), \qquad \bar x = \mathrm{LayerNorm}(x)

    The class token takes part in attention alone, and what it is after the last layer gives the output. Four cuts:

    * tokens: ``keep`` nodes a layer take part in attention (:func:`token_prune`, by a score that each layer
      learns); the others keep messages, the feed-forward part and their residual;
    * heads: ``model.keep_heads(layer, [0, 2])``, or ``model.keep_best_heads(importance, 0.5)`` over all layers;
    * layers: ``model.stack.keep([0, 2])``, and ``drop`` for stochastic depth in training;
    * weights: any pruner of its parameters.

    Args:
        features: of a node.
        hidden: width of the tokens, a multiple of ``heads``.
        heads: of a layer.
        layers: number of layers.
        out: numbers a graph.
        local: messages between neighbours in all layers but the last, whose nodes nobody hears: ``"gin"`` (sums of
            neighbours through a small network) or ``None`` (attention alone).
        encodings: ``"laplacian"`` or ``"random_walk"``: places in the graph, beside the features; ``None`` for none.
        places: how many numbers of that, >= 1.
        drop: probability with which a layer's branch is dropped in training, in [0, 1).
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size or a probability is out of range, ``local`` or ``encodings`` is unknown.

    Example:
        >>> from pullback.topology import batch_graphs
        >>> graphs = batch_graphs([torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0, 1]])], [3, 2])
        >>> GraphTransformer(1, 8, 2, 2, 3)(torch.ones(5, 1), graphs).shape
        torch.Size([2, 3])

    References:
        Rampasek et al. (2022), Recipe for a general, powerful, scalable graph transformer. Liu et al. (2024), Exploring
        sparsity in graph transformers.
    """

    def __init__(
        self,
        features: int,
        hidden: int,
        heads: int,
        layers: int,
        out: int,
        *,
        local: str | None = "gin",
        encodings: str | None = "random_walk",
        places: int = 8,
        drop: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("features", features), ("layers", layers), ("out", out), ("places", places)):
            check_integer(name, value, 1)
        check_choice("local", local, ("gin", None))
        check_choice("encodings", encodings, ("laplacian", "random_walk", None))
        check_positive("drop", drop, zero=True)
        if drop >= 1:
            raise ValueError(f"drop must be in [0, 1), got {drop}")
        self.features, self.heads, self.encodings, self.places = features, heads, encodings, places
        self.embed = nn.Linear(features + (places if encodings else 0), hidden)
        self.token = nn.Parameter(torch.zeros(hidden))
        # Nobody would hear the messages of the last layer: the class token has no neighbours.
        locals_ = [local] * (layers - 1) + [None]
        self.stack = LayerSelector(_Layer(hidden, heads, part, drop, generator) for part in locals_)
        self.norm = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, out)
        if generator is not None:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    for parameter in module.parameters():
                        nn.init.uniform_(
                            parameter, -(module.in_features**-0.5), module.in_features**-0.5, generator=generator
                        )

    def encode(self, graphs: GraphBatch, generator: torch.Generator | None = None) -> Tensor | None:
        """Return the encodings of the nodes ``[nodes, places]``, which may be computed once and given to each call."""
        if self.encodings is None:
            return None
        if self.encodings == "laplacian":
            return laplacian_encoding(graphs, self.places, generator=generator)
        return random_walk_encoding(graphs, self.places)

    def keep_heads(self, layer: int, heads: Sequence[int]) -> None:
        """Compute these heads of a layer only, from now on.

        Raises:
            ValueError: the layer or a head is out of range, or no head is kept.
        """
        layers = self.stack.layers
        block = layers[check_integer("layer", layer, 0, len(layers) - 1)]
        assert isinstance(block, _Layer)
        block.attention.outputs.keep(heads)

    def keep_best_heads(self, importance: Float[Tensor, "layers heads"], share: float) -> None:
        """Compute a share of all heads only: the best of each layer, and of the others the most important ones.

        Args:
            importance: ``[layers, heads]``, such as :func:`head_importance` returns.
            share: of the heads of all layers, in (0, 1]; at least one a layer stays.

        Raises:
            ValueError: ``importance`` has another shape, ``share`` is out of range.
        """
        layers = len(self.stack.layers)
        check_shape("importance", check_floating("importance", importance), (layers, self.heads))
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share}")
        order = importance.detach().clone()
        order[torch.arange(layers), order.argmax(1)] = torch.inf
        kept = order.flatten().topk(max(round(share * order.numel()), layers)).indices
        for layer in range(layers):
            self.keep_heads(layer, (kept[kept // self.heads == layer] % self.heads).tolist())

    def forward(
        self,
        x: Float[Tensor, "nodes features"],
        graphs: GraphBatch,
        *,
        places: Float[Tensor, "nodes places"] | None = None,
        keep: float = 1.0,
        choose: str = "learned",
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "count out"]:
        """Return the output of each graph.

        Args:
            x: ``[nodes, features]``.
            graphs: the batch.
            places: what :meth:`encode` returns; computed here where it is not given.
            keep: share of each graph's nodes that takes part in attention, in (0, 1], at least one.
            choose: the nodes with the largest ``"learned"`` scores, or ``"random"`` ones (a control).
            generator: of the noise on the scores, of dropped branches and random nodes; without one there is no noise.
        """
        wanted = (len(graphs.index), self.features)
        if check_floating("x", x).shape != wanted:
            raise ValueError(f"x must have shape {wanted}, got {tuple(x.shape)}")
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be a share in (0, 1], got {keep}")
        check_choice("choose", choose, ("learned", "random"))
        if self.encodings is not None:
            places = self.encode(graphs, generator) if places is None else places
            assert places is not None
            x = torch.cat([x, places.to(x.dtype)], -1)
        values, mask, place = pad_nodes(self.embed(x), graphs.index, graphs.count)
        tokens = torch.cat([self.token.expand(graphs.count, 1, -1), values], 1)
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], 1)
        most = mask.shape[1]
        place = graphs.index * most + 1 + place - graphs.index * (most - 1)
        sizes = mask.sum(-1) - 1
        kept = None if keep == 1 else 1 + (sizes.double() * keep + 1e-9).floor().long().clamp(min=1).minimum(sizes)
        tokens = self.stack(tokens, mask, place[graphs.edges], kept, choose, generator)
        result: Tensor = self.head(self.norm(tokens[:, 0]))
        return result


class _Layer(nn.Module):
    def __init__(
        self, hidden: int, heads: int, local: str | None, drop: float, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.drop = drop
        self.attention = HeadAttention(hidden, heads, generator=generator)
        self.score = nn.Linear(hidden, 1)
        self.local = None if local is None else _mlp(hidden, hidden)
        self.feed = _mlp(hidden, 2 * hidden)
        self.first, self.second = nn.LayerNorm(hidden), nn.LayerNorm(hidden)

    def forward(
        self,
        x: Tensor,
        mask: Tensor,
        arcs: Tensor,
        kept: Tensor | None,
        choose: str,
        generator: torch.Generator | None,
    ) -> Tensor:
        def branch(tokens: Tensor) -> Tensor:
            normed = self.first(tokens)
            change = self._attend(normed, mask, kept, choose, generator)
            if self.local is not None:
                change = change + self._messages(normed, arcs)
            return change + self.feed(self.second(tokens + change))

        return stochastic_depth(x, branch, rate=self.drop, training=self.training, generator=generator)

    def _messages(self, normed: Tensor, arcs: Tensor) -> Tensor:
        """Each node and the sum of its neighbours, through a small network; the class token has no neighbours."""
        assert self.local is not None
        flat = normed.flatten(0, 1)
        heard = segment_reduce(flat[arcs[0]], arcs[1], len(flat))
        said: Tensor = self.local(flat + heard).view_as(normed)
        return torch.cat([torch.zeros_like(said[:, :1]), said[:, 1:]], 1)

    def _attend(
        self, normed: Tensor, mask: Tensor, kept: Tensor | None, choose: str, generator: torch.Generator | None
    ) -> Tensor:
        attended: Tensor
        if kept is None:
            attended = self.attention(normed, mask)
            return attended
        if choose == "random":
            scores = torch.rand(mask.shape, generator=generator).to(normed)
        else:
            scores = self.score(normed).squeeze(-1)
        protect = torch.zeros_like(mask)
        protect[:, 0] = True
        noise = generator if self.training and choose == "learned" else None
        few = token_prune(normed, scores, kept, generator=noise, protect=protect, mask=mask)
        attended = self.attention(few.tokens, few.mask) * few.mask[..., None]
        where = few.index[..., None].expand_as(attended)
        return torch.zeros_like(normed).scatter_add(1, where, attended)


def _mlp(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

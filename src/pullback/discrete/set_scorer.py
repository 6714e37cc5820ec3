"""A score for every item of a set that may depend on the other items, whatever their order and number."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pullback.core.checks import check_floating, check_integer
from pullback.core.shapes import Float

__all__ = ["SetScorer"]


class SetScorer(nn.Module):
    r"""Score the items of a set: an encoder of single items, attention within the set, a linear score.

    .. math::
        h_i = e(x_i), \qquad
        h \leftarrow \mathrm{LN}(h + \mathrm{Attention}(h)), \quad h \leftarrow \mathrm{LN}(h + \mathrm{MLP}(h)), \qquad
        s_i = v^T \max(h_i, 0) + b

    There are no positions: permuting the items permutes the scores, and a set may have another size than in training.
    With ``layers=0`` every score depends on its own item alone.

    Args:
        encoder: takes items ``[m, *item]`` to ``[m, width]``.
        width: of the tokens, a multiple of ``heads``.
        heads: of each attention.
        layers: layers of attention, >= 0.
        item_dims: dimensions of an item: 3 for images ``[channels, height, width]``, 0 for numbers.
        generator: of the initial weights of all but the encoder; torch's own by default.

    Raises:
        TypeError: ``encoder`` is no module, or a size no integer.
        ValueError: a size is out of range, ``width`` no multiple of ``heads``.

    Example:
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
        >>> SetScorer(encoder)(torch.zeros(2, 5, 1, 8, 8)).shape
        torch.Size([2, 5])

    References:
        Kim, Yoon, Cho (2024), Generalized neural sorting networks with error-free differentiable swap functions,
        section 5. Lee et al. (2019), Set transformer.
    """

    def __init__(
        self,
        encoder: nn.Module,
        width: int = 16,
        heads: int = 8,
        layers: int = 1,
        *,
        item_dims: int = 3,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(encoder, nn.Module):
            raise TypeError(f"encoder must be a module, got {type(encoder).__name__}")
        for name, value, least in (("width", width, 1), ("heads", heads, 1), ("layers", layers, 0)):
            check_integer(name, value, least)
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.width, self.item_dims = width, check_integer("item_dims", item_dims, 0)
        self.layers = nn.ModuleList(_Layer(width, heads) for _ in range(layers))
        self.score = nn.Linear(width, 1)
        if generator is not None:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    bound = module.in_features**-0.5
                    for parameter in module.parameters():
                        nn.init.uniform_(parameter, -bound, bound, generator=generator)
        self.encoder = encoder

    def forward(self, items: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the scores ``[*batch, n]`` of items ``[*batch, n, *item]``."""
        split = check_floating("items", items).ndim - self.item_dims
        if split < 1:
            raise ValueError(
                f"items must have a set dimension before those of an item ({self.item_dims}), got {tuple(items.shape)}"
            )
        sets = items.shape[:split]
        tokens = self.encoder(items.flatten(0, split - 1))
        if tokens.shape != (sets.numel(), self.width):
            raise ValueError(
                f"encoder must return [{sets.numel()}, {self.width}] for {sets.numel()} items, "
                f"got {tuple(tokens.shape)}"
            )
        tokens = tokens.view(*sets, self.width)
        for layer in self.layers:
            tokens = layer(tokens)
        scores: Tensor = self.score(tokens.relu()).squeeze(-1)
        return scores


class _Layer(nn.Module):
    """A layer of a transformer's encoder, normalised after each part, within the next-to-last dimension."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project, self.combine = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys, values = self.project(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        shares = (queries @ keys.mT / queries.shape[-1] ** 0.5).softmax(-1)
        x = self.first(x + self.combine((shares @ values).transpose(-3, -2).flatten(-2)))
        normed: Tensor = self.second(x + self.feed(x))
        return normed

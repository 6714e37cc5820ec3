"""Tokens that stop being updated: a gate by scores, a transformer in which they halt, what halting saves."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_tensor
from pullback.core.gradients import replace_gradient
from pullback.core.shapes import Bool, Float, Shaped, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.attention import masked_attention

__all__ = ["HaltingOutput", "HaltingTransformer", "halting_gate", "sparsity_loss", "transformer_macs"]


def halting_gate(
    scores: Float[Tensor, "*batch n"],
    alive: Float[Tensor, "*#batch n"] | Bool[Tensor, "*#batch n"] | None = None,
    *,
    threshold: float = 0.5,
    hard: bool = True,
) -> Float[Tensor, "*batch n"]:
    r"""Let those tokens live on that did so far and whose score is above a threshold.

    .. math::
        m'_i = m_i g_i, \qquad g_i = [s_i > t] \text{ with the gradient of } s_i, \qquad
        m' = \text{soft: } m_i s_i

    What has halted stays halted. A row of which nobody would live on keeps its best token, so that there is always
    something to go on with.

    Args:
        scores: ``[*batch, n]`` in [0, 1].
        alive: ``[*batch, n]`` m: 1 for those that live, 0 for those that have halted; a mask that this function
            returned keeps its gradient. By default all live.
        threshold: t, in (0, 1).
        hard: ones and zeros with the gradient of the soft mask; ``False``: the soft mask itself.

    Returns:
        ``[*batch, n]``.

    Raises:
        TypeError: ``scores`` is not floating.
        ValueError: a score is outside [0, 1], ``threshold`` outside (0, 1), shapes do not broadcast.

    Example:
        >>> first = halting_gate(torch.tensor([0.9, 0.2, 0.7]))
        >>> first, halting_gate(torch.tensor([0.1, 0.9, 0.3]), first)
        (tensor([1., 0., 1.]), tensor([0., 0., 1.]))

    References:
        Ye, Meyer, Chai, Liu (2023), Efficient transformer-based 3D object detection with dynamic token halting,
        section 3.
    """
    check_floating("scores", scores)
    _check_threshold(threshold)
    if not scores.ndim:
        raise ValueError("scores must have a dimension of tokens")
    alive = torch.ones_like(scores) if alive is None else check_tensor("alive", alive).to(scores.dtype)
    check_broadcast(scores=scores.shape, alive=alive.shape)
    for name, value in (("scores", scores), ("alive", alive)):
        if can_look(value) and not bool(((value >= 0) & (value <= 1)).all()):
            raise ValueError(f"{name} must be in [0, 1], got {float(value.min()):.4g} to {float(value.max()):.4g}")
    if not hard or not scores.shape[-1]:
        return alive * scores
    live = (alive > 0).expand(torch.broadcast_shapes(alive.shape, scores.shape))
    passing = live & (scores > threshold)
    best = torch.where(live, scores, -1.0).argmax(-1, keepdim=True)
    rescued = torch.arange(scores.shape[-1], device=scores.device) == best
    passing = torch.where(passing.any(-1, keepdim=True), passing, rescued)
    return alive * replace_gradient(passing.to(scores.dtype), scores.expand(passing.shape))


class HaltingOutput(NamedTuple):
    """What a :class:`HaltingTransformer` returns.

    Attributes:
        features: ``[*batch, n, width]``; of a token that halted those with which it left, without recycling 0.
        alive: ``[*batch, layers, n]`` 1 for the tokens that each layer updates, with the gradient of the scores.
        scores: ``[*batch, layers - 1, n]`` in [0, 1], of the layers but the first; 0 of tokens that the layer did not
            see, and of all where others decided who lives.
        rescued: ``[*batch, layers - 1]`` whether the row's best token went on although no score was high enough.
    """

    features: Float[Tensor, "*batch n width"]
    alive: Float[Tensor, "*batch layers n"]
    scores: Float[Tensor, "*batch rest n"]
    rescued: Bool[Tensor, "*batch rest"]


class HaltingTransformer(nn.Module):
    r"""The encoder of a transformer in which tokens halt before each layer but the first.

    .. math::
        m_l = m_{l-1} \, g(\sigma(\mathrm{MLP}_l(x))), \qquad
        x \leftarrow m_l \, \mathrm{layer}_l(x; m_l) + (1 - m_l) \, x

    where the keys of the layer's attention count as :func:`masked_attention` says. To learn, all tokens stay in the
    tensor: a halted one is no key and is not updated, but what it would have been worth, to itself and to others, is
    in the gradient of its score. With ``gather=True`` only the living are computed: the same values, for less.

    Args:
        width: of the tokens, a multiple of ``heads``.
        heads: of each attention.
        layers: >= 1.
        threshold: of the scores, in (0, 1).
        recycle: halted tokens leave with the features that they had; otherwise with 0.
        bias: a module from positions ``[b, n, ...]`` to what is added to the logits of every attention, ``[b, heads, n,
            n]``, such as :class:`RelativePositionBias`.
        start: bias of the scores before the sigmoid at the beginning; the default lets all tokens live.
        generator: of the initial weights but those of ``bias``; torch's own by default.

    Raises:
        TypeError: a size is no integer, ``bias`` no module.
        ValueError: a size is < 1, ``width`` no multiple of ``heads``, ``threshold`` outside (0, 1).

    Example:
        >>> network = HaltingTransformer(8, 2, 3)
        >>> output = network(torch.randn(4, 10, 8, generator=torch.Generator().manual_seed(0)))
        >>> output.features.shape, output.alive.shape, int(output.alive.sum())
        (torch.Size([4, 10, 8]), torch.Size([4, 3, 10]), 120)

    References:
        Ye, Meyer, Chai, Liu (2023), Efficient transformer-based 3D object detection with dynamic token halting,
        section 3.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        *,
        threshold: float = 0.5,
        recycle: bool = True,
        bias: nn.Module | None = None,
        start: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("heads", heads), ("layers", layers)):
            check_integer(name, value, 1)
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        if bias is not None and not isinstance(bias, nn.Module):
            raise TypeError(f"bias must be a module, got {type(bias).__name__}")
        _check_threshold(threshold)
        self.width, self.threshold, self.recycle = width, threshold, recycle
        self.layers = nn.ModuleList(_Layer(width, heads, generator) for _ in range(layers))
        self.score = nn.ModuleList(_score(width, start, generator) for _ in range(layers - 1))
        self.bias = bias

    def forward(
        self,
        x: Float[Tensor, "*batch n width"],
        positions: Shaped[Tensor, "*batch n _"] | None = None,
        mask: Bool[Tensor, "*batch n"] | None = None,
        *,
        alive: Bool[Tensor, "*batch layers n"] | None = None,
        gather: bool = False,
    ) -> HaltingOutput:
        """Return the features and who lived how long.

        Args:
            x: ``[*batch, n, width]`` tokens.
            positions: ``[*batch, n, ...]`` for ``bias``.
            mask: ``[*batch, n]`` true at tokens, false in the padding; padding is never alive.
            alive: ``[*batch, layers, n]`` decides who lives instead of the scores: a token that is false once has to
                be so in later layers.
            gather: compute living tokens only; the number of them is data, so neither ``vmap`` nor a compiled graph
                can take it, as they cannot take a ``mask``.
        """
        if check_floating("x", x).ndim < 2 or x.shape[-1] != self.width:
            raise ValueError(f"x must have shape (..., n, {self.width}), got {tuple(x.shape)}")
        batch, n, depth = x.shape[:-2], x.shape[-2], len(self.layers)
        present = _flags("mask", mask, (*batch, n))
        imposed = _flags("alive", alive, (*batch, depth, n))
        if self.bias is not None and (positions is None or positions.shape[: len(batch) + 1] != (*batch, n)):
            raise ValueError(f"positions must have shape ({', '.join(map(str, (*batch, n)))}, ...) for the bias")

        rows = batch.numel()
        home = slots = _Places(rows, n)
        if present is not None or gather:
            everywhere = torch.ones(rows, n, dtype=torch.bool, device=x.device)
            home, slots = _packed(everywhere if present is None else present.reshape(rows, n))
        tokens = home.collect(x.reshape(rows, n, self.width))
        cells = None if positions is None else positions.reshape(rows, n, *positions.shape[len(batch) + 1 :])
        m, left = x.new_ones(len(tokens)), x.new_zeros(rows * n, self.width)
        lived, scores, rescued, near = [], [], [], None
        for number, layer in enumerate(self.layers):
            if number and imposed is None:
                score = torch.sigmoid(self.score[number - 1](tokens).squeeze(-1))
                scores.append(home.spread(score * (m > 0)))
                given, before = slots.spread(score), slots.spread(m)
                rescued.append((before > 0).any(-1) & ~((before > 0) & (given > self.threshold)).any(-1))
                m = slots.collect(halting_gate(given, before, threshold=self.threshold))
            elif imposed is not None:
                m = m * home.collect(imposed.reshape(rows, depth, n)[:, number]).to(m.dtype)
            lived.append(home.spread(m))
            moved = gather and not bool((m > 0).all())
            if moved:
                stays = m > 0
                if self.recycle and home.places is not None:
                    left = left.index_copy(0, home.places[~stays], tokens[~stays])
                tokens, m = tokens[stays], m[stays]
                home, slots = _packed(lived[-1] > 0)
            if self.bias is not None and cells is not None and (near is None or moved):
                near = self.bias(slots.spread(home.collect(cells)))
            updated = layer(tokens, m, slots, near)
            tokens = m[:, None] * updated + (1 - m)[:, None] * tokens
        features = tokens if self.recycle else m[:, None] * tokens
        features = home.spread(features) if home.places is None else left.index_copy(0, home.places, features)
        shape = (*batch, depth - 1, n)
        return HaltingOutput(
            features.view(x.shape),
            torch.stack(lived, 1).view(*batch, depth, n),
            torch.stack(scores, 1).view(shape) if scores else x.new_zeros(shape),
            torch.stack(rescued, 1).view(shape[:-1]) if rescued else x.new_zeros(shape[:-1], dtype=torch.bool),
        )


def sparsity_loss(
    alive: Float[Tensor, "*batch layers n"],
    weights: Float[Tensor, "*#batch n"] | None = None,
    *,
    mask: Bool[Tensor, "*#batch n"] | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Return the mean over layers and tokens of how many live, :math:`\frac{1}{L n} \sum_{l, i} w_i m_{l, i}`.

    Args:
        alive: ``[*batch, layers, n]`` masks of halting.
        weights: ``[*batch, n]`` >= 0: what it costs that a token lives, such as 1 in the background and less where
            an object is, so that its tokens live longer. By default 1.
        mask: ``[*batch, n]`` true at tokens, false in the padding, which is left out of the mean.

    Returns:
        ``[*batch]``; of no tokens 0.

    Raises:
        TypeError: ``alive`` or ``weights`` is not floating, ``mask`` not boolean.
        ValueError: weights of another number than the tokens, or negative ones.

    Example:
        >>> sparsity_loss(torch.tensor([[1.0, 1.0], [1.0, 0.0]]), torch.tensor([0.2, 1.0]))
        tensor(0.3500)

    References:
        Ye, Meyer, Chai, Liu (2023), Efficient transformer-based 3D object detection with dynamic token halting,
        section 3 (non-uniform sparsity loss).
    """
    if check_floating("alive", alive).ndim < 2:
        raise ValueError(f"alive must have shape (..., layers, n), got {tuple(alive.shape)}")
    layers, n = alive.shape[-2:]
    shapes = {"alive": (*alive.shape[:-2], n)}
    for name, value in (("weights", weights), ("mask", mask)):
        if value is not None:
            if not check_tensor(name, value).ndim or value.shape[-1] != n:
                raise ValueError(f"{name} must have an entry for each of {n} tokens, got shape {tuple(value.shape)}")
            shapes[name] = tuple(value.shape)
    check_broadcast(**shapes)
    if weights is not None and can_look(check_floating("weights", weights)) and bool((weights < 0).any()):
        raise ValueError(f"weights must be >= 0, got minimum {float(weights.min()):.4g}")
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask must be a boolean tensor, got {mask.dtype}")
    counted = torch.ones(n, dtype=torch.bool, device=alive.device) if mask is None else mask
    per_token = alive.mean(-2) if layers else alive.sum(-2)
    if weights is not None:
        per_token = per_token * weights
    return torch.where(counted, per_token, 0).sum(-1) / counted.sum(-1).clamp(min=1)


def transformer_macs(
    counts: Float[Tensor, "*batch layers"], width: int, *, expansion: int = 4
) -> Float[Tensor, "*batch"]:
    r"""Return the multiply-adds of a transformer whose layers see these many tokens.

    .. math:: \sum_l n_l \, (4 + 2 e) \, w^2 + 2 n_l^2 \, w

    for a width w and a feed-forward part of width ``e w``: the projections, the attention. It is differentiable in the
    counts, which may be sums of the masks of :func:`halting_gate`; the number of heads does not matter.

    Args:
        counts: ``[*batch, layers]`` tokens that each layer computes, >= 0.
        width: w, >= 1.
        expansion: e, >= 1.

    Returns:
        ``[*batch]``.

    Raises:
        TypeError: ``counts`` is not floating, a size no integer.
        ValueError: a count is negative, a size < 1.

    Example:
        >>> transformer_macs(torch.tensor([10.0, 5.0]), 8)
        tensor(13520.)
    """
    check_floating("counts", counts)
    check_integer("width", width, 1)
    check_integer("expansion", expansion, 1)
    if not counts.ndim:
        raise ValueError("counts must have a dimension of layers")
    if can_look(counts) and not bool((counts >= 0).all()):
        raise ValueError(f"counts must be >= 0, got minimum {float(counts.min()):.4g}")
    return (counts * ((4 + 2 * expansion) * width**2) + 2 * width * counts.square()).sum(-1)


class _Places(NamedTuple):
    """Where tokens stand in rows of equally many slots; without an index they fill them."""

    rows: int
    slots: int
    places: Tensor | None = None

    def spread(self, tokens: Tensor) -> Tensor:
        """From ``[tokens, ...]`` to ``[rows, slots, ...]``, 0 where there is none."""
        rest = tokens.shape[1:]
        if self.places is not None:
            tokens = tokens.new_zeros(self.rows * self.slots, *rest).index_copy(0, self.places, tokens)
        return tokens.view(self.rows, self.slots, *rest)

    def collect(self, padded: Tensor) -> Tensor:
        flat = padded.reshape(self.rows * self.slots, *padded.shape[2:])
        return flat if self.places is None else flat.index_select(0, self.places)


def _packed(living: Tensor) -> tuple[_Places, _Places]:
    """The places of living tokens among all, and in rows that are as long as the longest needs."""
    rows, n = living.shape
    longest = int(living.sum(-1).max()) if living.numel() else 0
    index = living.flatten().nonzero().squeeze(-1)
    starts = torch.arange(rows, device=living.device)[:, None] * longest
    return _Places(rows, n, index), _Places(rows, longest, (living.cumsum(-1) - 1 + starts).flatten()[index])


class _Layer(nn.Module):
    """Attention and a feed-forward part, each normalised before, of packed tokens."""

    def __init__(self, width: int, heads: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.heads = heads
        self.project, self.combine = _linear(width, 3 * width, generator), _linear(width, width, generator)
        first, second = _linear(width, 4 * width, generator), _linear(4 * width, width, generator)
        self.feed = nn.Sequential(first, nn.GELU(), second)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, tokens: Tensor, m: Tensor, slots: _Places, bias: Tensor | None) -> Tensor:
        projected = slots.spread(self.project(self.first(tokens)))
        q, k, v = projected.unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        said = masked_attention(q, k, v, slots.spread(m)[:, None], bias=bias)
        tokens = tokens + self.combine(slots.collect(said.transpose(-3, -2).flatten(-2)))
        fed: Tensor = tokens + self.feed(self.second(tokens))
        return fed


def _score(width: int, start: float, generator: torch.Generator | None) -> nn.Sequential:
    hidden = max(width // 2, 1)
    last = _linear(hidden, 1, generator)
    nn.init.constant_(last.bias, start)
    return nn.Sequential(nn.LayerNorm(width), _linear(width, hidden, generator), nn.GELU(), last)


def _linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    layer, bound = nn.Linear(inputs, outputs), inputs**-0.5
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _check_threshold(threshold: float) -> None:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise TypeError(f"threshold must be a number, got {type(threshold).__name__}")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be in (0, 1), got {threshold}")


def _flags(name: str, value: Tensor | None, shape: tuple[int, ...]) -> Tensor | None:
    if value is None:
        return None
    if check_tensor(name, value).dtype != torch.bool:
        raise TypeError(f"{name} must be a boolean tensor, got {value.dtype}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(value.shape)}")
    return value

"""Segmentation with a gradient: where a sequence is cut into blocks, and what a block is."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import nn

from pullback.core.checks import check_choice, check_floating, check_integer, check_same_dtype, check_tensor
from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.attention import local_attention
from pullback.discrete.softness import widen

__all__ = [
    "FrontierPredictor",
    "GradientTokenizer",
    "Tokenized",
    "pool_blocks",
    "segmentation_f1",
    "soft_segment",
]

SEGMENTATIONS = ("gaussian", "gaussian_sharp", "exact")


def soft_segment(
    frontiers: Float[Tensor, "*batch n"], *, blocks: int, method: str = "gaussian"
) -> Float[Tensor, "*batch n blocks"]:
    r"""Return the probability that each position lies in each block, where new blocks open at random.

    .. math::
        P_{ik} = P\left(\sum_{1 \le j \le i} B_j = k\right), \quad B_j \sim \mathrm{Bernoulli}(p_j), \qquad
        \text{gaussian: } P_{ik} = \mathrm{softmax}_k\left(-\frac{(\mu_i - k)^2}{2 v_i}\right), \quad
        k \le \max_i (\mu_i + 3 \sqrt{v_i}) + 1

    with :math:`\mu_i = \sum_j p_j` and :math:`v_i = \sum_j p_j (1 - p_j) + 10^{-6}`. Position 0 opens block 0 whatever
    its frontier says. Frontiers of 0 and 1 give the hard blocks exactly.

    Args:
        frontiers: ``[*batch, n]`` p, the probability that position i opens a new block, in [0, 1].
        blocks: how many blocks are returned, from the first on, in 1..n. A row sums to less than 1 where later blocks
            have some of it.
        method: ``"gaussian"``; ``"gaussian_sharp"``, which divides by :math:`2 \sqrt{v_i}` as the authors' code does;
            ``"exact"``, the Poisson-binomial law itself, one position after the other.

    Returns:
        ``[*batch, n, blocks]``.

    Raises:
        TypeError: ``frontiers`` is not floating, ``blocks`` no integer.
        ValueError: there is no position, a frontier is outside [0, 1], ``blocks`` out of range, ``method`` unknown.

    Example:
        >>> soft_segment(torch.tensor([0.0, 0.5, 0.0, 1.0]), blocks=3, method="exact")
        tensor([[1.0000, 0.0000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.5000, 0.5000, 0.0000],
                [0.0000, 0.5000, 0.5000]])

    References:
        Godey, Castagne, de la Clergerie, Sagot (2022), MANTa: efficient gradient-based tokenization for robust
        end-to-end language modeling, section 3.2.
    """
    n = _length("frontiers", frontiers)
    check_integer("blocks", blocks, 1, n)
    check_choice("method", method, SEGMENTATIONS)
    if can_look(frontiers) and not bool(((frontiers >= 0) & (frontiers <= 1)).all()):
        low, high = float(frontiers.min()), float(frontiers.max())
        raise ValueError(f"frontiers must be in [0, 1], got {low:.4g} to {high:.4g}")
    wide = widen(frontiers)
    p = torch.cat([torch.zeros_like(wide[..., :1]), wide[..., 1:]], -1)
    if method == "exact":
        return _poisson_binomial(p, blocks).to(frontiers.dtype)
    mean, variance = p.cumsum(-1), (p * (1 - p)).cumsum(-1) + 1e-6
    last = (mean[..., -1:] + 3 * variance[..., -1:].sqrt() + 1).detach()
    most = min(max(int(last.max()) + 1, blocks), n) if can_look(last) and last.numel() else n
    k = torch.arange(most, device=p.device, dtype=p.dtype)
    spread = 2 * (variance if method == "gaussian" else variance.sqrt())
    logits = -(mean.unsqueeze(-1) - k).square() / spread.unsqueeze(-1)
    shares = torch.where(k <= last.unsqueeze(-1), logits, -torch.inf).softmax(-1)
    return shares[..., :blocks].to(frontiers.dtype)


def pool_blocks(
    embeddings: Float[Tensor, "*batch n width"],
    assignment: Float[Tensor, "*batch n blocks"],
    *,
    kernel: Float[Tensor, "width taps"] | None = None,
    method: str = "max",
    window: int | None = None,
) -> Float[Tensor, "*batch blocks width"]:
    r"""Make one vector of each block from the vectors of its positions.

    .. math::
        z_{sk} = \sum_j w_j \, e_{s + j} P_{s + j, k}, \qquad
        \text{max: } y_k = \max_s z_{sk}, \qquad \text{mean: } y_k = \frac{\sum_s z_{sk}}{\max(1, \sum_s P_{sk})}

    channel by channel, with 0 beyond the ends. The mean is one product of matrices. For the maximum a block looks at
    ``window`` positions around its mean position only, so that memory grows as ``blocks window width``.

    Args:
        embeddings: ``[*batch, n, width]`` e.
        assignment: ``[*batch, n, blocks]`` P, as :func:`soft_segment` returns it.
        kernel: ``[width, taps]`` w, an odd number of taps around the position; by default 1 at the position itself.
        method: ``"max"`` or ``"mean"``.
        window: positions of a block among which the maximum is taken, >= 1; all by default.

    Returns:
        ``[*batch, blocks, width]``; about 0 of a block to which nothing belongs.

    Raises:
        TypeError: an argument is not floating or has another dtype than ``embeddings``.
        ValueError: there is no position, shapes do not belong together, taps are even, ``method`` is unknown or
            ``window`` < 1.

    Example:
        >>> embeddings = torch.tensor([[1.0], [5.0], [2.0], [4.0]])
        >>> hard = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> pool_blocks(embeddings, hard).flatten(), pool_blocks(embeddings, hard, method="mean").flatten()
        (tensor([5., 4.]), tensor([3., 3.]))

    References:
        Godey, Castagne, de la Clergerie, Sagot (2022), MANTa: efficient gradient-based tokenization for robust
        end-to-end language modeling, section 3.3.
    """
    if check_floating("embeddings", embeddings).ndim < 2:
        raise ValueError(f"embeddings must have shape (..., n, width), got {tuple(embeddings.shape)}")
    check_same_dtype(embeddings=embeddings, assignment=check_floating("assignment", assignment))
    if assignment.ndim < 2 or assignment.shape[:-1] != embeddings.shape[:-1]:
        raise ValueError(
            f"assignment must have shape {tuple(embeddings.shape[:-1])} and blocks, got {tuple(assignment.shape)}"
        )
    check_choice("method", method, ("max", "mean"))
    n, width = embeddings.shape[-2:]
    if not n:
        raise ValueError("embeddings must hold at least one position")
    size = n if window is None else min(check_integer("window", window, 1), n)
    if kernel is not None:
        check_same_dtype(embeddings=embeddings, kernel=check_floating("kernel", kernel))
        if kernel.ndim != 2 or kernel.shape[0] != width or not kernel.shape[1] % 2:
            raise ValueError(f"kernel must have shape ({width}, an odd number), got {tuple(kernel.shape)}")

    shares = assignment.mT  # [*batch, blocks, n]
    if method == "mean":
        if kernel is not None:  # the sum over s of z is one over positions, each with the taps that do not reach beyond
            place, tap = torch.arange(n, device=kernel.device), torch.arange(kernel.shape[1], device=kernel.device)
            target = place[:, None] - (tap - kernel.shape[1] // 2)
            embeddings = embeddings * (((target >= 0) & (target < n)).to(kernel.dtype) @ kernel.T)
        return shares @ embeddings / shares.sum(-1, keepdim=True).clamp(min=1)
    if size == n:
        weighted = embeddings.unsqueeze(-3) * shares.unsqueeze(-1)
    else:
        places = torch.arange(n, device=shares.device, dtype=shares.dtype)
        mass = shares.detach().sum(-1)
        middle = (shares.detach() @ places) / torch.where(mass > 0, mass, 1)
        first = (middle - (size - 1) / 2).round().clamp(0, n - size).long()
        index = first.unsqueeze(-1) + torch.arange(size, device=shares.device)  # [*batch, blocks, size]
        rows = index.flatten(-2).unsqueeze(-1).expand(*index.shape[:-2], -1, width)
        near = embeddings.gather(-2, rows).unflatten(-2, index.shape[-2:])
        weighted = near * shares.gather(-1, index).unsqueeze(-1)
    if kernel is not None:
        reach = kernel.shape[1] // 2
        padded = nn.functional.pad(weighted, (0, 0, reach, reach))
        weighted = kernel[:, 0] * padded[..., :size, :]
        for j in range(1, kernel.shape[1]):
            weighted = torch.addcmul(weighted, kernel[:, j], padded[..., j : j + size, :])
    return weighted.amax(-2)


class FrontierPredictor(nn.Module):
    r"""Say of each position how probably it opens a block, from what is near it.

    .. math::
        h \leftarrow h + \mathrm{LocalAttention}(\mathrm{LN}\,h), \quad h \leftarrow h + \mathrm{MLP}(\mathrm{LN}\,h),
        \qquad p_i = \sigma(w^T h_i + b)

    with a learned bias for each offset within the window, so that sequences may have any length.

    Args:
        width: of the embeddings, a multiple of ``heads``.
        window: of the attention (:func:`local_attention`).
        heads: of the attention.
        layers: >= 1.
        start: b at the beginning, when w is small; -1 opens a block at about every fourth position.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is < 1, ``width`` no multiple of ``heads``.

    Example:
        >>> FrontierPredictor(8, heads=2)(torch.zeros(3, 50, 8)).shape
        torch.Size([3, 50])

    References:
        Godey, Castagne, de la Clergerie, Sagot (2022), MANTa: efficient gradient-based tokenization for robust
        end-to-end language modeling, section 3.1 (there with absolute positions).
    """

    def __init__(
        self,
        width: int,
        window: int = 16,
        heads: int = 8,
        layers: int = 1,
        *,
        start: float = -1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("width", width), ("window", window), ("heads", heads), ("layers", layers)):
            check_integer(name, value, 1)
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.width = width
        self.layers = nn.ModuleList(_LocalLayer(width, window, heads, generator) for _ in range(layers))
        self.norm, self.open = nn.LayerNorm(width), nn.Linear(width, 1)
        nn.init.normal_(
            self.open.weight, std=0.01, generator=generator
        )  # what frontiers tell apart is learned, not drawn
        nn.init.constant_(self.open.bias, start)

    def forward(self, x: Float[Tensor, "*batch n width"]) -> Float[Tensor, "*batch n"]:
        """Return the probabilities ``[*batch, n]`` for embeddings ``[*batch, n, width]``."""
        if check_floating("x", x).ndim < 2 or x.shape[-1] != self.width:
            raise ValueError(f"x must have shape (..., n, {self.width}), got {tuple(x.shape)}")
        for layer in self.layers:
            x = layer(x)
        return torch.sigmoid(self.open(self.norm(x)).squeeze(-1))


class Tokenized(NamedTuple):
    """What a :class:`GradientTokenizer` makes of bytes.

    Attributes:
        blocks: ``[*batch, blocks, out]``.
        frontiers: ``[*batch, n]`` the probability that a byte opens a block.
        assignment: ``[*batch, n, blocks]`` the probability that a byte lies in a block.
        dropped: ``[*batch]`` the share of the bytes that lies in later blocks, which are dropped.
    """

    blocks: Float[Tensor, "*batch blocks out"]
    frontiers: Float[Tensor, "*batch n"]
    assignment: Float[Tensor, "*batch n blocks"]
    dropped: Float[Tensor, "*batch"]


class GradientTokenizer(nn.Module):
    r"""Cut bytes into blocks that are learned with what reads them: embed, predict frontiers, segment softly, pool.

    Args:
        out: width of the blocks.
        width: of the embeddings of bytes, a multiple of ``heads``.
        vocabulary: number of bytes, those of any encoding and marks of one's own.
        ratio: bytes for each block that is kept: of n bytes come ``ceil(n / ratio)`` blocks.
        window: of the attention of the frontiers.
        heads: of that attention.
        layers: of it.
        seen: positions that a block is pooled from; all by default.
        method: of :func:`soft_segment`.
        pooling: method of :func:`pool_blocks`.
        start: bias of the frontiers at the beginning.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is < 1, a method unknown.

    Example:
        >>> tokenizer = GradientTokenizer(out=16, width=8, heads=2)
        >>> tokenizer(torch.frombuffer(bytearray(b"in the beginning"), dtype=torch.uint8).long()).blocks.shape
        torch.Size([4, 16])

    References:
        Godey, Castagne, de la Clergerie, Sagot (2022), MANTa: efficient gradient-based tokenization for robust
        end-to-end language modeling, section 3.
    """

    def __init__(
        self,
        out: int,
        width: int = 64,
        *,
        vocabulary: int = 256,
        ratio: int = 4,
        window: int = 16,
        heads: int = 8,
        layers: int = 1,
        seen: int | None = None,
        method: str = "gaussian",
        pooling: str = "max",
        start: float = -1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("out", out), ("width", width), ("vocabulary", vocabulary), ("ratio", ratio)):
            check_integer(name, value, 1)
        check_choice("method", method, SEGMENTATIONS)
        check_choice("pooling", pooling, ("max", "mean"))
        self.vocabulary, self.ratio, self.method, self.pooling = vocabulary, ratio, method, pooling
        self.seen = None if seen is None else check_integer("seen", seen, 1)
        self.embedding = nn.Embedding(vocabulary, width, _weight=torch.randn(vocabulary, width, generator=generator))
        self.frontiers = FrontierPredictor(width, window, heads, layers, start=start, generator=generator)
        self.kernel = nn.Parameter(torch.tensor([0.0, 1.0, 0.0]).repeat(width, 1))
        nn.init.uniform_(self.kernel, 0.0, 2 / 3, generator=generator)
        self.project = _linear(width, out, generator)

    def forward(self, tokens: Int[Tensor, "*batch n"]) -> Tokenized:
        """Return the blocks of bytes ``[*batch, n]``; outside of training it warns where more than 5 % are dropped."""
        if check_tensor("tokens", tokens).is_floating_point() or tokens.dtype == torch.bool:
            raise TypeError(f"tokens must be an integer tensor, got {tokens.dtype}")
        if not tokens.ndim or not tokens.shape[-1]:
            raise ValueError(f"tokens must hold at least one byte, got shape {tuple(tokens.shape)}")
        if can_look(tokens) and bool(((tokens < 0) | (tokens >= self.vocabulary)).any()):
            raise ValueError(f"tokens must be in 0..{self.vocabulary - 1}")
        embedded = self.embedding(tokens)
        p = self.frontiers(embedded)
        assignment = soft_segment(p, blocks=-(-tokens.shape[-1] // self.ratio), method=self.method)
        pooled = pool_blocks(embedded, assignment, kernel=self.kernel, method=self.pooling, window=self.seen)
        dropped = 1 - assignment.sum(-1).mean(-1)
        if not self.training and can_look(dropped) and dropped.detach().mean().item() > 0.05:
            share = 100 * dropped.detach().mean().item()
            warnings.warn(f"{share:.0f} % of the bytes lie in blocks that are dropped", stacklevel=2)
        return Tokenized(self.project(pooled), p, assignment, dropped)


def segmentation_f1(predicted: Bool[Tensor, "*batch n"], truth: Bool[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    r"""Return how well borders are found: :math:`F_1 = 2 |A \cap B| / (|A| + |B|)` of the positions that open a block.

    Args:
        predicted: ``[*batch, n]`` true where a block opens.
        truth: ``[*batch, n]`` the same of the right segmentation.

    Returns:
        ``[*batch]`` float32 in [0, 1]; 1 where neither has a border.

    Raises:
        TypeError: an argument is not boolean.
        ValueError: the shapes differ.

    Example:
        >>> segmentation_f1(torch.tensor([True, False, True, True]), torch.tensor([True, False, False, True]))
        tensor(0.8000)
    """
    for name, value in (("predicted", predicted), ("truth", truth)):
        if check_tensor(name, value).dtype != torch.bool:
            raise TypeError(f"{name} must be a boolean tensor, got {value.dtype}")
    if predicted.shape != truth.shape or not predicted.ndim:
        raise ValueError(f"predicted and truth must have one shape, got {tuple(predicted.shape)}, {tuple(truth.shape)}")
    both, total = (predicted & truth).sum(-1), predicted.sum(-1) + truth.sum(-1)
    return torch.where(total > 0, 2 * both / total.clamp(min=1), 1.0)


def _length(name: str, x: Tensor) -> int:
    if not check_floating(name, x).ndim or not x.shape[-1]:
        raise ValueError(f"{name} must hold at least one position, got shape {tuple(x.shape)}")
    return x.shape[-1]


def _poisson_binomial(p: Tensor, blocks: int) -> Tensor:
    """The law of the number of frontiers up to each position, by its recursion."""
    law = (
        torch.zeros_like(p[..., :1]).expand(*p.shape[:-1], blocks)
        + torch.eye(blocks, dtype=p.dtype, device=p.device)[0]
    )
    laws = [law]
    for opens in p[..., 1:].unbind(-1):
        opens = opens.unsqueeze(-1)
        law = law * (1 - opens) + nn.functional.pad(law[..., :-1], (1, 0)) * opens
        laws.append(law)
    return torch.stack(laws, -2)


class _LocalLayer(nn.Module):
    """Attention in a window and a feed-forward part, each normalised before."""

    def __init__(self, width: int, window: int, heads: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.project, self.combine = _linear(width, 3 * width, generator), _linear(width, width, generator)
        first, second = _linear(width, 4 * width, generator), _linear(4 * width, width, generator)
        self.feed = nn.Sequential(first, nn.ReLU(), second)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.offsets = nn.Parameter(torch.empty(heads, 2 * (window // 2) + 1))
        nn.init.normal_(self.offsets, std=0.02, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(self.first(x)).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)
        said = local_attention(q, k, v, self.window, bias=self.offsets)
        x = x + self.combine(said.transpose(-3, -2).flatten(-2))
        fed: Tensor = x + self.feed(self.second(x))
        return fed


def _linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    layer, bound = nn.Linear(inputs, outputs), inputs**-0.5
    nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer

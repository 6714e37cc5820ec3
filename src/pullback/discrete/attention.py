"""Attention with keys that a mask, which may be learned, weighs, or in a window; positions relative to each other."""

from __future__ import annotations

import math

import torch
from torch import nn

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_same_dtype, check_tensor
from pullback.core.shapes import Bool, Float, Int, Tensor
from pullback.core.transforms import can_look

__all__ = ["RelativePositionBias", "local_attention", "masked_attention"]


def masked_attention(
    q: Float[Tensor, "*#batch n d"],
    k: Float[Tensor, "*#batch m d"],
    v: Float[Tensor, "*#batch m e"],
    key_mask: Float[Tensor, "*#batch m"] | Bool[Tensor, "*#batch m"],
    *,
    bias: Float[Tensor, "*#batch n m"] | None = None,
) -> Float[Tensor, "*batch n e"]:
    r"""Attend to keys that count as much as their mask says.

    .. math::
        y_i = \frac{\sum_j m_j e^{a_{ij}} v_j}{\sum_j m_j e^{a_{ij}}}, \qquad
        a_{ij} = \frac{q_i \cdot k_j}{\sqrt{d}} + b_{ij}

    With masks of 0 and 1 that is attention to the keys with 1, and what the others say has no influence; but where
    the mask has a gradient, it learns also how much a key of 0 would have said. A query without a key gets 0.

    Args:
        q: ``[*batch, n, d]`` queries.
        k: ``[*batch, m, d]`` keys.
        v: ``[*batch, m, e]`` values.
        key_mask: ``[*batch, m]`` >= 0, or booleans. Of several heads: ``[*batch, 1, m]``.
        bias: ``[*batch, n, m]``, such as that of relative positions.

    Returns:
        ``[*batch, n, e]``. In the gradient of a mask of 0 no :math:`e^a` counts for more than the square root of the
        largest number times that of the best key with a mask.

    Raises:
        TypeError: an argument is not floating, or has another dtype than ``q``.
        ValueError: shapes do not belong together, a mask is negative.

    Example:
        >>> q, k, v = torch.zeros(1, 2), torch.zeros(3, 2), torch.tensor([[1.0], [3.0], [50.0]])
        >>> masked_attention(q, k, v, torch.tensor([1.0, 1.0, 0.0]))
        tensor([[2.]])

    References:
        Vaswani et al. (2017), Attention is all you need, equation 1. Rao et al. (2021), DynamicViT: efficient vision
        transformers with dynamic token sparsification, equation 11 (the mask as a factor).
    """
    for name, value in (("q", q), ("k", k), ("v", v)):
        if check_floating(name, value).ndim < 2:
            raise ValueError(f"{name} must have shape (..., tokens, width), got {tuple(value.shape)}")
    weight = key_mask.to(q.dtype) if check_tensor("key_mask", key_mask).dtype == torch.bool else key_mask
    check_floating("key_mask", weight)
    check_same_dtype(q=q, k=k, v=v, key_mask=weight)
    if q.shape[-1] != k.shape[-1] or not k.shape[-1]:
        raise ValueError(f"q and k must have one width, at least 1, got {q.shape[-1]} and {k.shape[-1]}")
    keys = k.shape[-2]
    if v.shape[-2] != keys or not weight.ndim or weight.shape[-1] != keys:
        raise ValueError(
            f"v and key_mask must have an entry for each of {keys} keys, got {tuple(v.shape)}, {tuple(weight.shape)}"
        )
    if can_look(weight) and bool((weight < 0).any()):
        raise ValueError(f"key_mask must be >= 0, got minimum {float(weight.min()):.4g}")
    check_broadcast(q=q.shape[:-2], k=k.shape[:-2], v=v.shape[:-2], key_mask=weight.shape[:-1])
    logits = (q / math.sqrt(q.shape[-1])) @ k.mT
    if bias is not None:
        check_same_dtype(q=q, bias=check_floating("bias", bias))
        check_broadcast(scores=logits.shape, bias=bias.shape)
        logits = logits + bias
    weight = weight.unsqueeze(-2)
    if not keys:
        return (logits * weight) @ v
    live = weight > 0
    top = torch.where(live, logits.detach(), -torch.inf).amax(-1, keepdim=True)
    top = torch.where(live.any(-1, keepdim=True), top, 0)
    most = math.log(torch.finfo(logits.dtype).max) / 2
    shares = (logits - top).clamp(max=most).exp() * weight
    total = shares.sum(-1, keepdim=True)
    return shares / torch.where(total > 0, total, 1) @ v


def local_attention(
    q: Float[Tensor, "*batch n d"],
    k: Float[Tensor, "*batch n d"],
    v: Float[Tensor, "*batch n e"],
    window: int,
    *,
    bias: Float[Tensor, "*#batch offsets"] | None = None,
) -> Float[Tensor, "*batch n e"]:
    r"""Attend to the nearest positions alone, in time and memory that grow as ``n window``.

    .. math::
        y_i = \sum_{|j - i| \le h} \mathrm{softmax}_j\left(\frac{q_i \cdot k_j}{\sqrt{d}} + b_{j - i}\right) v_j, \qquad
        h = \lfloor \mathrm{window} / 2 \rfloor

    Args:
        q: ``[*batch, n, d]`` queries.
        k: ``[*batch, n, d]`` keys.
        v: ``[*batch, n, e]`` values, finite: what is not may reach queries beyond its window as NaN.
        window: >= 1; of its positions half lie before the query and half after it.
        bias: ``[*batch, 2 h + 1]`` for each offset from -h to h.

    Returns:
        ``[*batch, n, e]``.

    Raises:
        TypeError: a tensor is not floating or has another dtype than ``q``, ``window`` is no integer.
        ValueError: shapes do not belong together, ``window`` < 1.

    Example:
        >>> values = torch.tensor([[0.0], [3.0], [6.0], [30.0]])
        >>> local_attention(torch.zeros(4, 1), torch.zeros(4, 1), values, 2).flatten()
        tensor([ 1.5000,  3.0000, 13.0000, 18.0000])

    References:
        Beltagy, Peters, Cohan (2020), Longformer: the long-document transformer, section 3.1 (sliding window).
    """
    for name, value in (("q", q), ("k", k), ("v", v)):
        if check_floating(name, value).ndim < 2:
            raise ValueError(f"{name} must have shape (..., n, width), got {tuple(value.shape)}")
    check_same_dtype(q=q, k=k, v=v)
    half = check_integer("window", window, 1) // 2
    if q.shape != k.shape or v.shape[:-1] != q.shape[:-1] or not q.shape[-1]:
        raise ValueError(
            f"q, k, v must be [*batch, n, d], the same, [*batch, n, e], got {tuple(q.shape)}, {tuple(k.shape)}, "
            f"{tuple(v.shape)}"
        )
    if bias is not None:
        check_same_dtype(q=q, bias=check_floating("bias", bias))
        if not bias.ndim or bias.shape[-1] != 2 * half + 1:
            raise ValueError(f"bias must have {2 * half + 1} offsets, got shape {tuple(bias.shape)}")
    n = q.shape[-2]
    if not n:
        return v
    chunk = min(max(2 * half, 16), n)  # queries that share one product with their keys
    chunks = -(-n // chunk)
    rest = chunks * chunk - n
    queries = nn.functional.pad(q / math.sqrt(q.shape[-1]), (0, 0, 0, rest)).unflatten(-2, (chunks, chunk))
    keys, values = (nn.functional.pad(t, (0, 0, half, half + rest)).unfold(-2, chunk + 2 * half, chunk) for t in (k, v))
    logits = queries @ keys
    near = torch.arange(chunk + 2 * half, device=q.device)
    offset = near - torch.arange(chunk, device=q.device)[:, None]  # from 0 to 2 half inside of the window
    place = near - half + chunk * torch.arange(chunks, device=q.device)[:, None, None]
    seen = (offset >= 0) & (offset <= 2 * half) & (place >= 0) & (place < n)
    own = (offset == half) & ~(place < n)  # queries that only fill the last chunk look at themselves
    added = q.new_zeros(()) if bias is None else bias[..., offset.clamp(0, 2 * half)].unsqueeze(-3)
    shares = (logits + torch.where(seen | own, added, -torch.inf)).softmax(-1)
    return (shares @ values.mT).flatten(-3, -2)[..., :n, :]


class RelativePositionBias(nn.Module):
    r"""A learned number for each head and difference of two positions on a grid, :math:`b_{hij} = T_{h, p_j - p_i}`.

    Differences larger than ``reach`` count as ``reach`` along each axis.

    Args:
        heads: of the attention.
        reach: largest difference that is told apart, >= 0.
        dims: axes of the grid, >= 1.
        generator: of the initial table, normal with standard deviation 0.02; torch's own by default.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is out of range.

    Example:
        >>> bias = RelativePositionBias(heads=4, reach=2)
        >>> bias(torch.tensor([[0, 0], [0, 1], [5, 5]])).shape
        torch.Size([4, 3, 3])

    References:
        Shaw, Uszkoreit, Vaswani (2018), Self-attention with relative position representations. Liu et al. (2021), Swin
        transformer, equation 4 (one number for each difference).
    """

    def __init__(self, heads: int, reach: int, dims: int = 2, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        check_integer("heads", heads, 1)
        self.reach, self.dims = check_integer("reach", reach, 0), check_integer("dims", dims, 1)
        self.table = nn.Parameter(torch.empty((2 * reach + 1) ** dims, heads))
        nn.init.normal_(self.table, std=0.02, generator=generator)

    def forward(self, positions: Int[Tensor, "*batch n dims"]) -> Float[Tensor, "*batch heads n n"]:
        """Return ``[*batch, heads, n, n]`` for positions ``[*batch, n, dims]``, integers: row i, column j is of j seen
        from i."""
        if check_tensor("positions", positions).is_floating_point() or positions.dtype == torch.bool:
            raise TypeError(f"positions must be an integer tensor, got {positions.dtype}")
        if positions.ndim < 2 or positions.shape[-1] != self.dims:
            raise ValueError(f"positions must have shape (..., n, {self.dims}), got {tuple(positions.shape)}")
        differences = (positions.unsqueeze(-3) - positions.unsqueeze(-2)).clamp(-self.reach, self.reach) + self.reach
        powers = (2 * self.reach + 1) ** torch.arange(self.dims, device=positions.device)
        places = (differences * powers).sum(-1)
        return nn.functional.embedding(places, self.table).movedim(-1, -3)

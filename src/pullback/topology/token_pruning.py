"""Tokens that are really removed, by scores that learn which; and layers that can be left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pullback.core.checks import check_floating, check_integer, check_positive, check_scalar, check_tensor
from pullback.core.gradients import replace_gradient
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int, Scalar
from pullback.core.transforms import can_look

__all__ = ["KeptTokens", "LayerSelector", "stochastic_depth", "token_prune"]


class KeptTokens(NamedTuple):
    """The tokens that are left; a graph that keeps fewer than the batch's most is padded at its end.

    Attributes:
        tokens: ``[*batch, k, d]`` in their old order, 0 in the padding; the gradient of their weights is in them.
        index: ``[*batch, k]`` their old places, 0 in the padding.
        weights: ``[*batch, k]`` 1 for a token, 0 for padding, with the gradient of the softmax of the scores.
        mask: ``[*batch, k]`` true at tokens, false in the padding.
    """

    tokens: Float[Tensor, "*batch k d"]
    index: Int[Tensor, "*batch k"]  # type: ignore[assignment]
    weights: Float[Tensor, "*batch k"]
    mask: Bool[Tensor, "*batch k"]


def token_prune(
    x: Float[Tensor, "*batch n d"],
    scores: Float[Tensor, "*batch n"],
    keep: float | Int[Tensor, "*batch"],
    *,
    temperature: Scalar = 1.0,
    generator: torch.Generator | None = None,
    protect: Bool[Tensor, "*batch n"] | None = None,
    mask: Bool[Tensor, "*batch n"] | None = None,
) -> KeptTokens:
    r"""Keep the tokens with the largest scores and drop the others from the tensor.

    .. math::
        s = \log \mathrm{softmax}(\mathrm{scores}) + \mathrm{noise}, \quad
        \text{keep the } k \text{ largest, weighted by } 1 + \pi - \mathrm{stop}(\pi), \quad
        \pi = \mathrm{softmax}(s / \mathrm{temperature})

    A token that is multiplied by zero stays in attention as a key of zeros, takes its share of the softmax and costs
    what it cost; one that is gathered away does not. As the kept ones have weight 1, dropping none changes nothing.

    Args:
        x: ``[*batch, n, d]`` tokens.
        scores: ``[*batch, n]`` of any size.
        keep: the share of a graph's own tokens that stays, in (0, 1], of which the floor is taken; or ``[*batch]``
            integers, how many. Padding is not counted, protected tokens are.
        temperature: of the softmax whose gradient the weights have, > 0.
        generator: of Gumbel noise, so that scores are explored while they are learned; without one there is no noise.
        protect: ``[*batch, n]`` tokens that always stay (a class token).
        mask: ``[*batch, n]`` true at tokens, false in the padding; padding has no share in the softmax.

    Returns:
        The kept tokens.

    Raises:
        TypeError: ``x`` or ``scores`` is not floating, ``keep`` neither a number nor integers.
        ValueError: a share outside (0, 1], a graph would keep fewer than one token, fewer than are protected or more
            than it has, a shape is wrong, ``temperature`` is not positive.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
        >>> kept = token_prune(x, torch.tensor([0.0, 3.0, 1.0, 2.0]), 0.5)
        >>> kept.index, kept.tokens.flatten()
        (tensor([1, 3]), tensor([2., 4.]))

    References:
        Liu et al. (2024), Exploring sparsity in graph transformers, section 3.2. Kool, van Hoof, Welling (2019),
        Stochastic beams and where to find them (Gumbel top-k).
    """
    for name, value in (("x", x), ("scores", scores)):
        check_floating(name, value)
    if x.ndim < 2 or scores.shape != x.shape[:-1]:
        raise ValueError(f"scores must have the shape of x without its last dimension, got {tuple(scores.shape)}")
    check_scalar("temperature", temperature)
    present, safe = _flags("mask", mask, scores, True), _flags("protect", protect, scores, False)
    counts = _counts(keep, present, safe)

    log_shares = scores.masked_fill(~present, -torch.inf).log_softmax(-1)
    if generator is not None:
        device = drawing_device(generator, scores)
        draws = torch.rand(scores.shape, generator=generator, device=device, dtype=torch.float64).to(scores.device)
        log_shares = log_shares - torch.log(-torch.log(draws.clamp(1e-12, 1 - 1e-12))).to(scores.dtype)
    shares = (log_shares.masked_fill(~present, -torch.inf) / temperature).softmax(-1)

    order = log_shares.detach().masked_fill(safe, torch.inf).masked_fill(~present, -torch.inf)
    largest = int(counts.max()) if counts.numel() else 0
    chosen = order.argsort(dim=-1, descending=True, stable=True)[..., :largest]
    slots = torch.arange(largest, device=x.device).expand(chosen.shape)
    kept = slots < counts[..., None]
    ranked = torch.where(kept, chosen, x.shape[-2]).sort(-1).values  # padding goes last
    index = torch.where(kept, ranked, 0)
    soft = torch.where(kept, shares.gather(-1, index), 0.0)
    weights = replace_gradient(kept.to(scores.dtype), soft)
    tokens = x.gather(-2, index[..., None].expand(*index.shape, x.shape[-1])) * weights.to(x.dtype)[..., None]
    return KeptTokens(tokens, index, weights, kept)


def stochastic_depth(
    x: Float[Tensor, "*shape"],
    branch: Callable[[Tensor], Tensor],
    *,
    rate: float,
    training: bool,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*shape"]:
    r"""Return ``x + branch(x)``, in training with the whole branch dropped at random: :math:`x + \frac{b}{1 - r} f(x)`.

    :math:`b` is 0 with probability ``rate``: then the branch is not run at all. The expectation over :math:`b` is the
    value outside of training.

    Args:
        x: ``[*shape]``.
        branch: keeps the shape.
        rate: probability that the branch is dropped, in [0, 1).
        training: drop at random; else always run.
        generator: of the draw; torch's own by default.

    Returns:
        ``[*shape]``.

    Raises:
        TypeError: ``branch`` cannot be called.
        ValueError: ``rate`` is out of range.

    Example:
        >>> stochastic_depth(torch.ones(2), lambda x: 2 * x, rate=0.5, training=False)
        tensor([3., 3.])

    References:
        Huang, Sun, Liu, Sedra, Weinberger (2016), Deep networks with stochastic depth.
    """
    check_tensor("x", x)
    if not callable(branch):
        raise TypeError(f"branch must be callable, got {type(branch).__name__}")
    check_positive("rate", rate, zero=True)
    if rate >= 1:
        raise ValueError(f"rate must be in [0, 1), got {rate}")
    if not training or rate == 0:
        return x + branch(x)
    if float(torch.rand((), generator=generator)) < rate:
        return x
    return x + branch(x) / (1 - rate)


class LayerSelector(nn.Module):
    """Run layers one after the other, all or some: depth that is chosen after training.

    Args:
        layers: modules whose output goes into the next.

    Raises:
        TypeError: one of them is no module.
        ValueError: there is none.

    Example:
        >>> stack = LayerSelector([nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)])
        >>> stack.keep([0, 2]).kept
        (0, 2)

    References:
        Fan, Grave, Joulin (2020), Reducing transformer depth on demand with structured dropout.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        if not len(self.layers):
            raise ValueError("layers must hold at least one module")
        self.kept = tuple(range(len(self.layers)))

    def keep(self, indices: Sequence[int]) -> LayerSelector:
        """Run these layers only, in their order, from now on; all of them stay in the module.

        Raises:
            ValueError: an index is out of range or stands twice.
        """
        chosen = sorted(check_integer("index", i, 0, len(self.layers) - 1) for i in indices)
        if len(set(chosen)) < len(chosen):
            raise ValueError(f"indices must differ, got {list(indices)}")
        self.kept = tuple(chosen)
        return self

    def leave_one_out(self) -> Iterator[int]:
        """Yield each kept layer while all kept ones but that are run; afterwards all of them are run again."""
        kept = self.kept
        try:
            for gone in kept:
                self.keep([layer for layer in kept if layer != gone])
                yield gone
        finally:
            self.keep(kept)

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return what the kept layers make of ``x``; the other arguments go to each of them."""
        for number in self.kept:
            x = self.layers[number](x, *args, **kwargs)
        return x


def _flags(name: str, value: Tensor | None, scores: Tensor, default: bool) -> Tensor:
    if value is None:
        return torch.full(scores.shape, default, device=scores.device)
    if check_tensor(name, value).dtype != torch.bool:
        raise TypeError(f"{name} must be a boolean tensor, got {value.dtype}")
    if value.shape != scores.shape:
        raise ValueError(f"{name} must have shape {tuple(scores.shape)}, got {tuple(value.shape)}")
    return value


def _counts(keep: float | Tensor, present: Tensor, safe: Tensor) -> Tensor:
    sizes = present.sum(-1)
    if isinstance(keep, Tensor):
        if keep.is_floating_point() or keep.dtype == torch.bool:
            raise TypeError(f"keep must be a number or an integer tensor, got {keep.dtype}")
        if keep.shape != sizes.shape:
            raise ValueError(f"keep must have shape {tuple(sizes.shape)}, got {tuple(keep.shape)}")
        counts = keep.to(sizes.device)
    else:
        if isinstance(keep, bool) or not isinstance(keep, int | float):
            raise TypeError(f"keep must be a number or an integer tensor, got {type(keep).__name__}")
        if not 0 < keep <= 1 or math.isnan(keep):
            raise ValueError(f"keep must be a share in (0, 1], got {keep}")
        counts = (sizes.double() * keep + 1e-9).floor().long()
    if can_look(counts):
        least = (safe & present).sum(-1).clamp(min=1)
        for wrong, what in (
            (counts < least, "fewer tokens than one and those protected"),
            (counts > sizes, "more than it has"),
        ):
            if bool(wrong.any()):
                kept, size = int(counts[wrong].flatten()[0]), int(sizes[wrong].flatten()[0])
                raise ValueError(f"keep leaves {what}: {kept} of {size} in one graph")
    return counts

"""The Plackett-Luce law of orders: draw item by item in proportion to weights, without putting anything back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from pullback.core.checks import check_broadcast, check_floating, check_integer, check_tensor
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.sampling import gumbel_noise
from pullback.discrete.softness import widen
from pullback.discrete.sorting import argsort

__all__ = ["PlackettLuce"]

_MOST_ORDERS = 100_000


class PlackettLuce:
    r"""Orders of ``n`` items: :math:`P(\pi)=\prod_k\exp(s_{\pi_k})/\sum_{l\ge k}\exp(s_{\pi_l})`.

    Scores with Gumbel noise, sorted from the largest down, are a sample (the Gumbel top-k), so a relaxed sort gives a
    sample a gradient. Item i comes before j with probability ``sigmoid(s_i - s_j)``.

    Args:
        scores: ``[*batch, n]`` finite, logarithms of weights; a constant changes nothing.

    Raises:
        TypeError: ``scores`` is no floating tensor.
        ValueError: no item, or scores that are not finite (not checked under transforms).

    Example:
        >>> law = PlackettLuce(torch.tensor([2.0, 1.0]).log())
        >>> round(law.log_prob(torch.tensor([0, 1])).exp().item(), 6)
        0.666667
        >>> law.rsample(generator=torch.Generator().manual_seed(0)).sum(0)
        tensor([1., 1.])

    References:
        Luce (1959); Plackett (1975), The analysis of permutations. Yellott (1977), for the Gumbel noise. Grover, Wang,
        Zweig, Ermon (2019), Stochastic optimization of sorting networks via continuous relaxations, section 5.
    """

    def __init__(self, scores: Float[Tensor, "*batch n"]) -> None:
        if check_floating("scores", scores).ndim == 0 or scores.shape[-1] == 0:
            raise ValueError(f"scores must have at least one item, got shape {tuple(scores.shape)}")
        if can_look(scores) and not bool(scores.isfinite().all()):
            raise ValueError("scores must be finite")
        self.scores = scores

    def rsample(
        self,
        shape: Sequence[int] = (),
        *,
        temperature: Scalar = 1.0,
        hard: bool = True,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*shape_batch n n"]:
        """Draw orders as permutation matrices, row = place, column = item.

        Args:
            shape: of independent samples.
            temperature: >= 0, of the relaxed sort, in the unit of the scores; 0: gradient 0.
            hard: exact permutation matrices with the gradient of the relaxation; else the relaxation itself.
            generator: torch's default one if ``None``.

        Returns:
            ``[*shape, *batch, n, n]``.
        """
        perturbed = self._perturbed(shape, generator)
        options = {"method": "softsort", "temperature": temperature, "scale": None, "hard": hard}
        return argsort(perturbed, descending=True, **options).to(self.scores.dtype)  # type: ignore[arg-type]

    def sample(self, shape: Sequence[int] = (), *, generator: torch.Generator | None = None) -> Int[Tensor, "..."]:
        """Draw orders ``[*shape, *batch, n]`` of items, first to last."""
        return self._perturbed(shape, generator).detach().argsort(-1, descending=True)

    def mode(self) -> Int[Tensor, "*batch n"]:
        """Return the most probable order ``[*batch, n]``: from the largest score down."""
        return self.scores.detach().argsort(-1, descending=True)

    def log_prob(self, order: Int[Tensor, "*any k"]) -> Float[Tensor, "..."]:
        """Return the logarithm of the probability of orders, or of their first places.

        Args:
            order: ``[*any, k]`` different items from first to last, broadcast against the scores; with ``k < n`` the
                first k places, whatever follows. -1 fills up a row with fewer.

        Raises:
            TypeError: ``order`` holds no integers.
            ValueError: a row repeats an item, is longer than n, or has an item outside of 0..n-1 (not checked under
                transforms).
        """
        n = self.scores.shape[-1]
        if check_tensor("order", order).dtype not in (torch.int64, torch.int32):
            raise TypeError(f"order must hold integers, got {order.dtype}")
        if not order.ndim or not 1 <= order.shape[-1] <= n:
            raise ValueError(f"order must have shape (..., k) with k in 1..{n}, got {tuple(order.shape)}")
        _check_items(order, n)
        batch = check_broadcast(order=tuple(order.shape[:-1]), scores=tuple(self.scores.shape[:-1]))
        full = _completed(order.long(), n).expand(*batch, n)
        drawn = widen(self.scores).expand(*batch, n).gather(-1, full)
        left = drawn.flip(-1).logcumsumexp(-1).flip(-1)
        terms = (drawn - left)[..., : order.shape[-1]]
        return torch.where(order >= 0, terms, 0.0).sum(-1).to(self.scores.dtype)

    def orders(self, k: int | None = None) -> Int[Tensor, "m k"]:
        """Return all that the first ``k`` places (all by default) can be, ``[n! / (n - k)!, k]``, lexicographically.

        With ``log_prob`` that gives every expectation exactly.

        Raises:
            TypeError: ``k`` is no integer.
            ValueError: ``k`` is out of 1..n, or there are more than 100 000.
        """
        n = self.scores.shape[-1]
        k = n if k is None else check_integer("k", k, 1, n)
        if math.perm(n, k) > _MOST_ORDERS:
            raise ValueError(f"k must leave at most {_MOST_ORDERS} orders, got {math.perm(n, k)} of {k} out of {n}")
        return torch.tensor(list(itertools.permutations(range(n), k)), device=self.scores.device)

    def precedence(self) -> Float[Tensor, "*batch n n"]:
        """Return ``[*batch, n, n]`` the probability that i comes before j, ``sigmoid(s_i - s_j)``; 0 for i = j."""
        probability = torch.sigmoid(self.scores.unsqueeze(-1) - self.scores.unsqueeze(-2))
        return probability * (1 - torch.eye(self.scores.shape[-1], dtype=probability.dtype, device=probability.device))

    def _perturbed(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        sizes = [check_integer("shape", size, 0) for size in shape]
        scores = widen(self.scores)
        device = drawing_device(generator, scores)
        noise = gumbel_noise([*sizes, *scores.shape], dtype=scores.dtype, device=device, generator=generator)
        return scores + noise.to(scores.device)


def _check_items(order: Tensor, n: int) -> None:
    if can_look(order) and order.numel():
        ordered = order.sort(-1).values
        repeated = bool(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any())
        gap = bool(((order[..., :-1] < 0) & (order[..., 1:] >= 0)).any())
        if repeated or gap or int(order.min()) < -1 or int(order.max()) >= n:
            raise ValueError(f"order must have different items of 0..{n - 1} in each row, -1 only at its end")


def _completed(order: Tensor, n: int) -> Tensor:
    """Return the full order ``[*any, n]`` that goes on with what is missing."""
    k = order.shape[-1]
    places = torch.full((*order.shape[:-1], n + 1), k, device=order.device)  # -1 is written beside the items
    written = torch.arange(k, device=order.device).expand(order.shape)
    places = places.scatter(-1, torch.where(order < 0, n, order), written)
    return places[..., :n].argsort(dim=-1, stable=True)

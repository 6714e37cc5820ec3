"""A learned choice of k out of n: one mask for all inputs, relaxed while it is trained."""

from __future__ import annotations

import torch
from torch import nn

from pullback.core.checks import check_integer, check_positive
from pullback.core.shapes import Float, Tensor
from pullback.discrete.subset import subset_sample

__all__ = ["SubsetMask"]


class SubsetMask(nn.Module):
    r"""Weights of ``n`` features, from which masks of exactly ``k`` of them are drawn with a gradient.

    A mask is a relaxed subset (:func:`subset_sample` with ``"relaxed_topk"``): Gumbel noise on the log probabilities
    ``log softmax(w / spread)``, then ``k`` softmaxes at ``temperature``, each over what the earlier ones have left.
    Where ``k > n / 2`` the ``n - k`` features that are left out are drawn instead, from the opposite weights, which
    takes fewer of these steps.

    Args:
        n: features, >= 1.
        k: how many are shown, in 1..n.
        temperature: > 0 of the relaxation; small masks are near zeros and ones.
        spread: > 0, how far weights must differ to decide what is drawn.

    Raises:
        TypeError: ``n`` or ``k`` is no integer.
        ValueError: a number is out of range.

    Example:
        >>> mask = SubsetMask(4, 2)
        >>> relaxed = mask(3, generator=torch.Generator().manual_seed(0))
        >>> relaxed.shape, [round(total, 4) for total in relaxed.sum(-1).tolist()]
        (torch.Size([3, 4]), [2.0, 2.0, 2.0])
        >>> with torch.no_grad():
        ...     mask.weight[:] = torch.tensor([0.1, 2.0, 0.3, 1.0])
        >>> mask.harden()
        tensor([0., 1., 0., 1.])

    References:
        Xie, Ermon (2019), Reparameterizable subset sampling via continuous relaxations, section 3. Nahum, Noti, Parkes,
        Rosenfeld (2024), Decongestion by representation, section 4.2.
    """

    def __init__(self, n: int, k: int, *, temperature: float = 0.2, spread: float = 2.0) -> None:
        super().__init__()
        check_integer("n", n, 1)
        check_integer("k", k, 1, n)
        check_positive("temperature", temperature)
        check_positive("spread", spread)
        self.k, self.temperature, self.spread = k, temperature, spread
        self.weight = nn.Parameter(torch.full((n,), 1 / n))

    def extra_repr(self) -> str:
        """Return the sizes."""
        return f"n={len(self.weight)}, k={self.k}, temperature={self.temperature}"

    def forward(self, samples: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "samples n"]:
        """Draw relaxed masks.

        Args:
            samples: how many, >= 1.
            generator: torch's default one if ``None``.

        Returns:
            ``[samples, n]`` in [0, 1], each sums to ``k``; ones where ``k = n``.
        """
        return self._drawn(check_integer("samples", samples, 1), False, generator)

    def draw(self, samples: int, *, generator: torch.Generator | None = None) -> Float[Tensor, "samples n"]:
        """Draw hard masks, zeros and ones, with the gradient of the relaxed ones."""
        return self._drawn(check_integer("samples", samples, 1), True, generator)

    def harden(self) -> Float[Tensor, " n"]:
        """Return the mask of the ``k`` largest weights, without gradient."""
        weight = self.weight.detach()
        return torch.zeros_like(weight).scatter(0, weight.topk(self.k).indices, 1.0)

    def _drawn(self, samples: int, hard: bool, generator: torch.Generator | None) -> Tensor:
        n = len(self.weight)
        out = n < 2 * self.k  # fewer are left out than shown
        logits = torch.log_softmax((-self.weight if out else self.weight) / self.spread, 0).expand(samples, n)
        if self.k == n:
            return torch.ones_like(logits)
        drawn = subset_sample(
            logits,
            n - self.k if out else self.k,
            method="relaxed_topk",
            temperature=self.temperature,
            hard=hard,
            generator=generator,
        ).mask
        return 1 - drawn if out else drawn

"""How far implicit maximum likelihood pushes the scores, adapted so that its gradient is neither empty nor dense."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pullback.core.checks import check_positive, check_range

__all__ = ["AdaptivePerturbation"]


class AdaptivePerturbation(nn.Module):
    r"""The relative size :math:`\beta` of a perturbation, moved until the gradient has the wanted number of non-zeros.

    Each backward pass of :func:`~pullback.discrete.subset_sample` with ``method="aimle"`` counts the entries of its
    gradient that are not 0, per sample, and calls :meth:`update`:

    .. math:: G \leftarrow \rho\, G + (1 - \rho)\, \mathrm{count}, \qquad
        \beta \leftarrow \max(0, \beta + u) \text{ if } G < \mathrm{target}, \text{ else } \max(0, \beta - u).

    A small perturbation has little bias and is 0 for most samples; a large one has more bias and less variance. Both
    numbers are buffers, saved with the network that has this as an attribute; in evaluation mode they stay.

    Args:
        target: wanted number of non-zero entries per sample, > 0.
        step: ``u``, > 0; the reference code has 1e-4, for runs of 10 000 steps and more.
        initial: ``beta`` at the beginning, >= 0.
        decay: ``rho``, in ``[0, 1)``.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> perturbation = AdaptivePerturbation(step=0.25)
        >>> perturbation.update(torch.tensor(0.0))
        >>> perturbation.size, perturbation.count
        (tensor(1.2500), tensor(0.9000))

    References:
        Minervini, Franceschi, Niepert (2023), Adaptive perturbation-based gradient estimation for discrete latent
        variable models, section 3.
    """

    size: Tensor
    count: Tensor

    def __init__(self, target: float = 1.0, step: float = 1e-2, initial: float = 1.0, *, decay: float = 0.9) -> None:
        super().__init__()
        check_positive("target", target)
        check_positive("step", step)
        check_positive("initial", initial, zero=True)
        check_range("decay", decay, 0.0, math.nextafter(1.0, 0.0))
        self.target, self.step, self.decay = target, step, decay
        self.register_buffer("size", torch.tensor(float(initial)))
        self.register_buffer("count", torch.tensor(1.0))

    @torch.no_grad()
    def update(self, count: Tensor) -> None:
        """Take the number of non-zero entries per sample of one gradient."""
        if self.training:
            self.count.mul_(self.decay).add_(count.to(self.count), alpha=1 - self.decay)
            move = torch.where(self.count < self.target, self.step, -self.step)
            self.size.add_(move).clamp_(min=0)

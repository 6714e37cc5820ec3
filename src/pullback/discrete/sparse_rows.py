"""SoftSort and NeuralSort with sparse rows: alpha-entmax in place of softmax, of a chosen smoothness.

A row of weights is ``max((alpha - 1) logits - threshold, 0)^(1 / (alpha - 1))``: exactly 0 for what is far from its
place. In the logits it has 0, 1, 2 continuous derivatives for alpha = 2, 3/2, 4/3 (and all of them for softmax, alpha =
1). The matrix is formed: O(n^2) memory.

References:
    Blondel, Martins, Niculae (2020), Learning with Fenchel-Young losses, section 4. Prillo, Eisenschlos (2020),
    SoftSort, section 4, where the row may be any such map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pullback.discrete.sparse import entmax

__all__ = ["SMOOTHNESS", "SparseRows"]

SMOOTHNESS = {"c0": 2.0, "c1": 3 / 2, "c2": 4 / 3}
"""Alpha by the class of continuous derivatives."""


@dataclass(frozen=True)
class SparseRows:
    """A kernel as in ``softsort.py``, whose rows are the entmax of ``logits(y, places) [*batch, places, n]``.

    Attributes:
        logits: of ascending, scaled points, for the rows of a slice of the places.
        alpha: > 1, see :func:`~pullback.discrete.entmax`.

    Example:
        >>> rows = SparseRows(lambda y, places: -(y[..., places, None] - y[..., None, :]).abs(), 2.0)
        >>> rows.matrix(torch.tensor([0.0, 0.5, 9.0])).tolist()
        [[0.75, 0.25, 0.0], [0.25, 0.75, 0.0], [0.0, 0.0, 1.0]]
    """

    logits: Callable[[Tensor, slice], Tensor]
    alpha: float

    def matrix(self, y: Tensor, places: slice = slice(None)) -> Tensor:
        """Return ``P``, or some of its rows."""
        return entmax(self.logits(y, places), self.alpha)

    def mean(self, y: Tensor, v: Tensor) -> Tensor:
        """Return ``P v``."""
        return v @ self.matrix(y).transpose(-1, -2)

    def ranks(self, y: Tensor) -> Tensor:
        """Return the mean place of each point, weighted by its column of ``P``, where its own place has a weight."""
        p = self.matrix(y)
        place = torch.arange(y.shape[-1], dtype=y.dtype, device=y.device)
        return (place @ p) / p.sum(-2)

    def row(self, scores: Tensor) -> Tensor:
        """Return the distribution over points whose largest is likely."""
        return entmax(scores, self.alpha)

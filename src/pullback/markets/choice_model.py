"""A model of what consumers choose, learned from a log of past choices."""

from __future__ import annotations

import torch
from torch import nn

from pullback.core.checks import check_floating, check_integer, check_positive, check_tensor
from pullback.core.shapes import Float, Int, Tensor
from pullback.core.transforms import can_look
from pullback.markets.matching import Market

__all__ = ["ChoiceModel"]


class ChoiceModel(nn.Module):
    r"""Consumers whose preferences are a linear function of what is known of them, ``b_i = W^T u_i``.

    The logits of consumer ``i`` are ``(b_i . (z * x_j) - p_j) / temperature`` for item ``j`` under the mask ``z``, and
    0 for none.

    Args:
        features: ``[m, d]`` of the items.
        consumers: known features of a consumer, ``c >= 1``.
        temperature: > 0 in the unit of the prices.
        generator: of the initial ``weight`` ``[c, d]``; torch's default one if ``None``.

    Raises:
        TypeError: ``features`` is no floating tensor, or ``consumers`` no integer.
        ValueError: a shape or a number is out of range.

    Example:
        >>> model = ChoiceModel(torch.eye(3), 2, generator=torch.Generator().manual_seed(0))
        >>> model(torch.rand(5, 4, 2), torch.rand(5, 3), torch.ones(5, 3)).shape  # 5 markets, 4 consumers, 3 items
        torch.Size([5, 4, 4])

    References:
        Nahum, Noti, Parkes, Rosenfeld (2024), Decongestion by representation, section 4.1. Train (2009), Discrete
        choice methods with simulation, chapter 3.
    """

    features: Tensor

    def __init__(
        self,
        features: Float[Tensor, "m d"],
        consumers: int,
        *,
        temperature: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if check_floating("features", features).ndim != 2 or 0 in features.shape:
            raise ValueError(f"features must have shape (items, d), at least 1 each, got {tuple(features.shape)}")
        check_integer("consumers", consumers, 1)
        check_positive("temperature", temperature)
        self.temperature = temperature
        self.register_buffer("features", features.detach().clone())
        bound = (6 / (consumers + features.shape[1])) ** 0.5
        start = torch.empty(consumers, features.shape[1], dtype=features.dtype)
        self.weight = nn.Parameter(start.uniform_(-bound, bound, generator=generator).to(features.device))

    def market(self, consumers: Float[Tensor, "*#batch n c"], prices: Float[Tensor, "*#batch m"]) -> Market:
        """Return the markets as the model sees them, with the preferences that it has learned.

        Args:
            consumers: ``[*#batch, n, c]`` what is known of them.
            prices: ``[*#batch, m]`` >= 0, broadcast with the consumers.

        Raises:
            ValueError: a shape does not fit, or a price is negative.
        """
        if check_floating("consumers", consumers).ndim < 2 or consumers.shape[-1] != len(self.weight):
            raise ValueError(f"consumers must have shape (..., n, {len(self.weight)}), got {tuple(consumers.shape)}")
        return Market(self.features, prices, consumers @ self.weight)

    def forward(
        self,
        consumers: Float[Tensor, "*#batch n c"],
        prices: Float[Tensor, "*#batch m"],
        mask: Float[Tensor, "*#batch d"] | None = None,
    ) -> Float[Tensor, "*batch n choices"]:
        """Return logits ``[*batch, n, m + 1]``, the last of none, under a mask for each market.

        Args:
            consumers, prices: as for :meth:`market`.
            mask: ``[*#batch, d]``; ``None`` shows all.
        """
        gains = self.market(consumers, prices).values(mask) - prices.unsqueeze(-2)
        return torch.cat([gains / self.temperature, torch.zeros_like(gains[..., :1])], -1)

    def loss(
        self,
        consumers: Float[Tensor, "*#batch n c"],
        prices: Float[Tensor, "*#batch m"],
        mask: Float[Tensor, "*#batch d"] | None,
        chosen: Int[Tensor, "*batch n"],
    ) -> Float[Tensor, ""]:
        """Return the mean cross-entropy of a log of choices, in nats.

        Args:
            consumers, prices, mask: as for a call.
            chosen: ``[*batch, n]`` index of an item, or ``m`` for none.

        Raises:
            TypeError: ``chosen`` holds no integers.
            ValueError: ``chosen`` has another shape or refers to an unknown item.
        """
        logits = self(consumers, prices, mask)
        m = len(self.features)
        if check_tensor("chosen", chosen).is_floating_point() or chosen.dtype == torch.bool:
            raise TypeError(f"chosen must hold integers, got {chosen.dtype}")
        if chosen.shape != logits.shape[:-1]:
            raise ValueError(f"chosen must have shape {tuple(logits.shape[:-1])}, got {tuple(chosen.shape)}")
        if can_look(chosen) and chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) <= m:
            raise ValueError(f"chosen must be in 0..{m} ({m} for none), got {int(chosen.min())}..{int(chosen.max())}")
        return nn.functional.cross_entropy(logits.flatten(0, -2), chosen.flatten().long())

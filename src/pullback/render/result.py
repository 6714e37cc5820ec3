"""What every renderer returns."""

from __future__ import annotations

from typing import NamedTuple

from pullback.core.shapes import Float, Shaped, Tensor

__all__ = ["Rendered"]


class Rendered(NamedTuple):
    """An image and what goes with it.

    Attributes:
        image: ``[*batch, channels, height, width]`` features or colours (linear light in [0, 1]), background included.
        alpha: ``[*batch, 1, height, width]`` share of the scene against the background, in [0, 1].
        depth: ``[*batch, 1, height, width]`` distance along the optical axis, metres; the renderer says what it is
            where nothing is seen.
        extras: what the renderer knows besides, by name; no gradient.
    """

    image: Float[Tensor, "*batch channels height width"]
    alpha: Float[Tensor, "*batch 1 height width"]
    depth: Float[Tensor, "*batch 1 height width"]
    extras: dict[str, Shaped[Tensor, "..."]]

"""Clips composed of labelled images: a few things shown in turn, under noise."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pullback.core.checks import check_floating, check_integer, check_positive
from pullback.core.shapes import Float, Int, Tensor

__all__ = ["ObjectClips", "object_clips"]


class ObjectClips(NamedTuple):
    """Clips.

    Attributes:
        frames: ``[count, things, frames, height, width]``.
        labels: ``[count, things]`` what is shown; no label twice in a clip.
    """

    frames: Float[Tensor, "count things frames height width"]
    labels: Int[Tensor, "count things"]


def object_clips(
    images: Float[Tensor, "n height width"],
    labels: Int[Tensor, "n"],
    count: int,
    *,
    things: int = 3,
    frames: int = 2,
    noise: float = 0.2,
    generator: torch.Generator | None = None,
) -> ObjectClips:
    """Show things of different labels in turn, each in a few frames with noise of their own.

    Args:
        images: ``[n, height, width]``.
        labels: ``[n]`` from 0 on; each number up to the largest has an image.
        count: clips, >= 0.
        things: in a clip, at most the number of labels.
        frames: of each thing, >= 1.
        noise: >= 0, the deviation of what is added to each pixel.
        generator: on the CPU; torch's default one if ``None``.

    Raises:
        TypeError: ``images`` are not floating, or a size is no integer.
        ValueError: a size is out of range, ``labels`` has another length or leaves out a number.

    Example:
        >>> clips = object_clips(torch.eye(3).reshape(3, 1, 3), torch.arange(3), 4, things=2, noise=0.0)
        >>> clips.frames.shape, bool((clips.frames[:, :, 0, 0].argmax(-1) == clips.labels).all())
        (torch.Size([4, 2, 2, 1, 3]), True)
    """
    check_floating("images", images)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must have shape {tuple(images.shape[:1])}, got {tuple(labels.shape)}")
    found = labels.bincount()
    if not len(found) or int(found.min()) == 0:
        raise ValueError(f"labels must hold every number from 0 to the largest, got {sorted(set(labels.tolist()))}")
    check_integer("count", count, 0)
    check_integer("things", things, 1, len(found))
    check_integer("frames", frames, 1)
    check_positive("noise", noise, zero=True)
    shown = torch.rand(count, len(found), generator=generator).topk(things).indices
    place = (torch.rand(count, things, generator=generator) * found[shown]).long()
    starts = found.cumsum(0) - found
    chosen = labels.argsort(stable=True)[starts[shown] + place]
    clean = images[chosen].unsqueeze(2).expand(-1, -1, frames, -1, -1)
    return ObjectClips(clean + noise * torch.randn(clean.shape, generator=generator, dtype=images.dtype), shown)

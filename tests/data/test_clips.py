"""Clips composed of labelled images."""

from __future__ import annotations

import pytest
import torch

from pullback import data


def test_clips_show_images_of_their_labels_with_noise_of_each_frame() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([2, 0, 1, 0, 3, 2])
    images = (labels + 10.0 * torch.arange(6)).reshape(6, 1, 1).expand(6, 4, 5)
    clips = data.object_clips(images, labels, 500, things=3, frames=2, noise=0.1, generator=generator)
    assert clips.frames.shape == (500, 3, 2, 4, 5)
    shown = clips.frames.mean((2, 3, 4))
    place = ((shown + 0.5) / 10).floor().long()
    assert torch.equal(labels[place], clips.labels)
    assert (clips.labels.sort(-1).values.diff() > 0).all()
    assert set(place.flatten().tolist()) == set(range(6)), "every image comes up"
    rest = clips.frames - shown.round()[:, :, None, None, None]
    assert rest.std().item() == pytest.approx(0.1, rel=0.02)
    assert not torch.equal(rest[:, :, 0], rest[:, :, 1])


def test_labels_without_images_are_refused() -> None:
    images = torch.zeros(3, 2, 2)
    with pytest.raises(ValueError, match="labels must hold every number"):
        data.object_clips(images, torch.tensor([0, 2, 2]), 1)
    with pytest.raises(ValueError, match=r"things must be in 1\.\.2, got 3"):
        data.object_clips(images, torch.tensor([0, 1, 1]), 1)
    with pytest.raises(ValueError, match=r"labels must have shape \(3,\)"):
        data.object_clips(images, torch.tensor([0]), 1)

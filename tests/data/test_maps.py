"""Tiles of buildings: what is painted is where the corners say."""

from __future__ import annotations

import pytest
import torch

from pullback import data


def test_tiles_show_their_outlines_and_splits_share_no_building() -> None:
    tiles = {
        split: data.building_tiles(split, 40, noise=0.0, generator=torch.Generator().manual_seed(0))
        for split in ("train", "test", "fit", "validation")
    }
    for image, outline in zip(tiles["test"].images, tiles["test"].outlines, strict=True):
        row, column = outline.T
        area = (row * column.roll(-1) - column * row.roll(-1)).sum() / 2
        assert area > 0  # one way round
        assert outline.min() >= 0
        assert outline.max() < 32
        assert int(outline[:, 0].argmin()) == 0
        greys, counts = image.unique(return_counts=True)
        assert len(greys) == 2
        assert min(abs(float(c) - float(area)) for c in counts) < 0.1 * float(area) + 4

    def shapes(split: str) -> set[tuple[float, ...]]:
        """Lengths of edges as parts of the perimeter do not change when a building is turned and scaled."""
        edges = [(o - o.roll(-1, 0)).square().sum(-1).sqrt() for o in tiles[split].outlines]
        return {tuple((e / e.sum()).sort().values.mul(1000).round().tolist()) for e in edges}

    assert not shapes("train") & shapes("test")
    assert not shapes("fit") & (shapes("test") | shapes("validation"))
    assert not shapes("validation") & shapes("test")


def test_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="split must be one of 'train', 'test', 'fit', 'validation'"):
        data.building_tiles("all", 1, generator=torch.Generator())
    with pytest.raises(ValueError, match="size must be an integer >= 16"):
        data.building_tiles("test", 1, size=8, generator=torch.Generator())

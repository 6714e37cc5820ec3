"""Simulated clusters: their sizes, places and values."""

from __future__ import annotations

import pytest
import torch

from pullback import data


def test_clusters_have_their_sizes_and_values_scatter_around_the_truth() -> None:
    drawn = data.planted_clusters(20, 300, (3, 12, 40), generator=torch.Generator().manual_seed(0))
    for graph in range(20):
        values, member, count = drawn.truth[graph, :, 0].unique(return_inverse=True, return_counts=True)
        assert torch.equal(drawn.sizes[graph], count[member])
        assert (~torch.isin(count, torch.tensor([3, 12, 40]))).sum() <= 1  # the last one is cut off
        assert len(values) == len(count)
        for c in (count == 40).nonzero()[:, 0]:
            assert 0.1 < drawn.places[graph][member == c].std(0).mean() < 0.5
    noise = drawn.values - drawn.truth
    assert abs(noise.std() - 1) < 0.05
    assert abs(noise.mean()) < 0.05


def test_sizes_must_be_positive() -> None:
    with pytest.raises(ValueError, match="sizes must be an integer >= 1"):
        data.planted_clusters(1, 10, (0,), generator=torch.Generator())

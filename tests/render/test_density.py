"""Pruning and splitting keep what they say."""

from __future__ import annotations

import math

import pytest
import torch

from pullback.render import Spheres, SphereStatistics, prune_and_split


def _scene(n: int, generator: torch.Generator) -> Spheres:
    return Spheres(
        torch.randn(n, 3, generator=generator),
        0.1 + torch.rand(n, generator=generator),
        torch.rand(n, 3, generator=generator),
        torch.rand(n, generator=generator),
    )


def test_unused_go_and_the_busiest_are_halved(generator: torch.Generator) -> None:
    scene = _scene(10, generator)
    used = torch.tensor([0, 3, 1, 0, 5, 2, 9, 9, 1, 2])
    gradient = torch.tensor([9.0, 1.0, 2.0, 9.0, 8.0, 3.0, 4.0, 7.0, 5.0, 6.0])
    new = prune_and_split(scene, SphereStatistics(used, gradient), split=0.25, generator=generator)
    assert new.source.tolist() == [1, 2, 4, 5, 6, 7, 8, 9, 4, 7]
    untouched = [0, 1, 3, 4, 6, 7]
    for before, after in zip(scene, new.spheres, strict=True):
        assert torch.equal(after[untouched], before[new.source[untouched]])
    for first, second, old in ((2, 8, 4), (5, 9, 7)):
        halves = new.spheres.centers[[first, second]]
        torch.testing.assert_close(halves.mean(0), scene.centers[old])
        torch.testing.assert_close((halves[0] - halves[1]).norm(), scene.radii[old])
        volume = new.spheres.radii[[first, second]].pow(3).sum()
        assert math.isclose(volume, scene.radii[old] ** 3, rel_tol=1e-5)
        assert torch.equal(new.spheres.features[second], scene.features[old])


def test_nothing_to_do_changes_nothing(generator: torch.Generator) -> None:
    scene = _scene(4, generator)
    new = prune_and_split(scene, SphereStatistics(torch.ones(4).long(), torch.zeros(4)), split=0.0)
    assert all(torch.equal(a, b) for a, b in zip(scene, new.spheres, strict=True))


def test_statistics_add_up_views() -> None:
    statistics = SphereStatistics.zeros(3)
    for _ in range(2):
        statistics.add(torch.tensor([[-1, 2], [2, 0]]), torch.tensor([[0.0, 3.0, 4.0], [0.0] * 3, [1.0, 0.0, 0.0]]))
    assert statistics.used.tolist() == [2, 0, 4]
    assert statistics.gradient.tolist() == [10.0, 0.0, 2.0]
    assert statistics.views == 2


def test_bad_arguments_are_refused(generator: torch.Generator) -> None:
    scene = _scene(4, generator)
    with pytest.raises(ValueError, match="statistics must be of 4 spheres, got 3"):
        prune_and_split(scene, SphereStatistics.zeros(3))
    statistics = SphereStatistics(torch.ones(4).long(), torch.zeros(4))
    with pytest.raises(ValueError, match="split must be in"):
        prune_and_split(scene, statistics, split=2.0)
    with pytest.raises(ValueError, match="generator must be given"):
        prune_and_split(scene, statistics, split=1.0)

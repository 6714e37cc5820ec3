"""Pruning and splitting keep what they say."""

from __future__ import annotations

import math

import pytest
import torch

from pullback.render import Densified, Spheres, SphereStatistics, prune_and_split


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
    new = prune_and_split(scene, SphereStatistics(used, gradient), generator=generator)
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
    new = prune_and_split(scene, SphereStatistics(torch.ones(4).long(), torch.zeros(4)))
    assert all(torch.equal(a, b) for a, b in zip(scene, new.spheres, strict=True))


def test_statistics_add_up_views() -> None:
    statistics = SphereStatistics.zeros(3)
    for _ in range(2):
        statistics.add(torch.tensor([[-1, 2], [2, 0]]), torch.tensor([[0.0, 3.0, 4.0], [0.0] * 3, [1.0, 0.0, 0.0]]))
    assert statistics.used.tolist() == [2, 0, 4]
    assert statistics.gradient.tolist() == [10.0, 0.0, 2.0]
    assert statistics.views == 2


def test_few_kept_spheres_are_split_again_and_again(generator: torch.Generator) -> None:
    scene = _scene(9, generator)
    used = torch.tensor([0, 0, 5, 0, 0, 0, 5, 0, 0])
    new = prune_and_split(scene, SphereStatistics(used, torch.arange(9.0)), generator=generator)
    assert sorted(new.source.tolist()) == [2] * 4 + [6] * 5
    for old in (2, 6):
        children = new.source == old
        torch.testing.assert_close(new.spheres.radii[children].pow(3).sum(), scene.radii[old] ** 3)
        assert (new.spheres.centers[children] - scene.centers[old]).norm(dim=-1).max() < 2 * scene.radii[old]


def test_count_neither_splits_nor_removes_more(generator: torch.Generator) -> None:
    scene = _scene(6, generator)
    statistics = SphereStatistics(torch.tensor([1, 0, 2, 2, 1, 1]), torch.ones(6))
    assert prune_and_split(scene, statistics, count=3).source.tolist() == [0, 2, 3, 4, 5]
    assert prune_and_split(scene, statistics, count=2, least_use=2).source.tolist() == [2, 3]
    assert len(prune_and_split(scene, statistics, count=20, generator=generator).source) == 20


def test_bad_arguments_are_refused(generator: torch.Generator, without_shape_checks: None) -> None:
    scene = _scene(4, generator)
    statistics = SphereStatistics(torch.tensor([1, 1, 1, 0]), torch.zeros(4))
    with pytest.raises(ValueError, match=r"used must have shape \(..., 4\), got \(3,\)"):
        prune_and_split(scene, SphereStatistics.zeros(3))
    with pytest.raises(ValueError, match="radii must have shape"):
        prune_and_split(scene._replace(radii=scene.radii[:3]), statistics)
    with pytest.raises(TypeError, match="count must be an integer"):
        prune_and_split(scene, statistics, count=4.0)
    with pytest.raises(ValueError, match="generator must be given"):
        prune_and_split(scene, statistics)
    with pytest.raises(ValueError, match="count must be 0 where no sphere is used 9 times"):
        prune_and_split(scene, statistics, least_use=9, generator=generator)
    with pytest.raises(ValueError, match=r"strongest must be in -1..3, got 0 to 4"):
        statistics.add(torch.tensor([0, 4]), torch.zeros(4, 3))
    with pytest.raises(TypeError, match="strongest must be of integers"):
        statistics.add(torch.zeros(2), torch.zeros(4, 3))
    with pytest.raises(ValueError, match="gradient must be finite"):
        statistics.add(torch.tensor([0]), torch.full((4, 3), torch.nan))


def test_moments_follow_their_spheres(generator: torch.Generator) -> None:
    place = torch.randn(5, 3, generator=generator, requires_grad=True)
    optimizer = torch.optim.Adam([place], amsgrad=True)
    place.pow(3).sum().backward()
    optimizer.step()
    before = {name: value.clone() for name, value in optimizer.state[place].items()}
    source = torch.tensor([4, 1, 1, 0, 2])
    Densified(_scene(5, generator), source).carry(optimizer)
    for name, value in optimizer.state[place].items():
        assert torch.equal(value, before[name] if name == "step" else before[name][source])


def test_scenes_and_statistics_have_no_batch(generator: torch.Generator, without_shape_checks: None) -> None:
    scene, statistics = _scene(4, generator), SphereStatistics(torch.ones(4).long(), torch.zeros(4))
    with pytest.raises(ValueError, match=r"features must have 2 dimensions, got shape \(1, 4, 3\)"):
        prune_and_split(scene._replace(features=scene.features[None]), statistics)
    with pytest.raises(ValueError, match="gradient must have shape"):
        prune_and_split(scene, SphereStatistics(torch.ones(4).long(), torch.tensor(0.0)))

"""Tracks against a count by hand, networks that assign against scipy, assignments where they meet."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from pullback import discrete


def _count(distance: np.ndarray, predicted: np.ndarray, reference: np.ndarray, threshold: float) -> tuple[int, ...]:
    """One clip, frame by frame, with dictionaries and scipy."""
    matches = switches = 0
    total = 0.0
    before: dict[int, int] = {}
    last: dict[int, int] = {}
    for d, p, r in zip(distance, predicted, reference, strict=True):
        near = {(i, j) for i in np.flatnonzero(p) for j in np.flatnonzero(r) if d[i, j] <= threshold}
        now = {j: i for j, i in before.items() if (i, j) in near}
        left = sorted((i, j) for i, j in near if j not in now and i not in now.values())
        if left:
            cost = np.full(d.shape, 1e6)
            for i, j in left:
                cost[i, j] = d[i, j]
            now |= {j: i for i, j in zip(*linear_sum_assignment(cost), strict=True) if (i, j) in left}
        switches += sum(last.get(j, i) != i for j, i in now.items())
        last |= now
        matches, total = matches + len(now), total + sum(d[i, j] for j, i in now.items())
        before = now
    return matches, switches, total


@pytest.mark.parametrize("memory", [True, False])
def test_clear_mot_counts_as_by_hand(memory: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        n, m, frames = rng.integers(1, 5), rng.integers(1, 4), rng.integers(1, 9)
        distance = rng.random((2, frames, n, m))
        predicted, reference = rng.random((2, frames, n)) < 0.8, rng.random((2, frames, m)) < 0.8
        tensors = (torch.from_numpy(x) for x in (distance, predicted, reference))
        found = discrete.clear_mot(*tensors, threshold=0.5, memory=memory)
        clips = zip(distance, predicted, reference, strict=True)
        if memory:
            counts = [_count(*clip, 0.5) for clip in clips]
            matches, switches, total = (sum(column) for column in zip(*counts, strict=True))
            assert found.switches == switches
        else:  # frames on their own: no pair stays
            counts = [_count(*(x[None] for x in frame), 0.5) for clip in clips for frame in zip(*clip, strict=True)]
            matches, _, total = (sum(column) for column in zip(*counts, strict=True))
        true, claimed = int(reference.sum()), int(predicted.sum())
        assert (found.matches, found.misses, found.false_positives) == (matches, true - matches, claimed - matches)
        assert found.motp == pytest.approx(total / matches, nan_ok=True) if matches else math.isnan(found.motp)
        if true:
            assert found.mota == pytest.approx(1 - (true + claimed - 2 * matches + found.switches) / true)
            assert found.recall == pytest.approx(matches / true)
        if claimed:
            assert found.precision == pytest.approx(matches / claimed)


def test_a_track_that_is_lost_and_found_by_another_output_has_switched() -> None:
    distance = torch.zeros(3, 2, 1)
    predicted = torch.tensor([[True, False], [False, False], [False, True]])
    found = discrete.clear_mot(distance, predicted, torch.ones(3, 1, dtype=torch.bool), threshold=0.1)
    assert (found.matches, found.misses, found.switches) == (2, 1, 1)


def test_clear_mot_refuses_by_name(without_shape_checks: None) -> None:
    distance, one = torch.zeros(3, 2, 1), torch.ones(3, 1, dtype=torch.bool)
    two = one.expand(3, 2)
    with pytest.raises(ValueError, match=r"predicted must have shape \(3, 2\), got \(3, 1\)"):
        discrete.clear_mot(distance, one, one, threshold=1.0)
    with pytest.raises(ValueError, match=r"reference must have shape \(3, 1\), got \(3, 2\)"):
        discrete.clear_mot(distance, two, two, threshold=1.0)
    with pytest.raises(ValueError, match="threshold must be > 0"):
        discrete.clear_mot(distance, two, one, threshold=0.0)
    with pytest.raises(ValueError, match="distance must be >= 0 wherever"):
        discrete.clear_mot(distance * torch.nan, two, one, threshold=1.0)
    with pytest.raises(TypeError, match="predicted must be a boolean tensor"):
        discrete.clear_mot(distance, two.float(), one, threshold=1.0)


def test_soft_tracking_loss_of_certain_assignments_counts() -> None:
    """Frame 1: both found. Frame 2: the second is missed. Frame 3: they have swapped, and a third is claimed."""
    assignment = torch.tensor([[[1, 0], [0, 1], [0, 0]], [[1, 0], [0, 0], [0, 0]], [[0, 1], [1, 0], [0, 0]]]).float()
    there = torch.tensor([[True, True], [True, True], [False, True]])
    loss = discrete.soft_tracking_loss(torch.full((3, 3, 2), 0.2), assignment, there)
    assert (loss.false_negatives, loss.false_positives, loss.switches) == (1, 1, 2)
    assert loss.mota == pytest.approx((1 + 1 + 2) / 5)
    assert loss.motp == pytest.approx(50 * 0.2 * (4 + 1 + 4) / 5)


def test_problems_are_of_the_kinds_that_are_asked_for() -> None:
    problems = discrete.assignment_problems(6000, 2, generator=torch.Generator().manual_seed(0))
    fewer = torch.minimum(problems.rows, problems.columns)
    assert torch.equal(problems.target.sum((-2, -1)), fewer.float())
    assert (fewer.bincount() / 6000 - 1 / 3).abs().max() < 0.03
    full = fewer == 2
    for distance, target in zip(problems.distance[full][:200], problems.target[full][:200], strict=True):
        rows, columns = linear_sum_assignment(distance.numpy())
        assert distance[rows, columns].sum() == pytest.approx(float((distance * target).sum()), abs=1e-5)
    assert problems.distance[full].max() <= 2.001  # unit vectors
    around = discrete.assignment_problems(500, 2, near=1.0, generator=torch.Generator().manual_seed(0))
    pairs = [(p.distance * p.target).sum() / p.target.sum() for p in (problems, around)]
    assert pairs[1] < 0.7 * pairs[0]


def test_a_network_that_was_trained_for_a_moment_assigns_better_than_none() -> None:
    generator = torch.Generator().manual_seed(0)
    net = discrete.fit_hungarian_net(2, hidden=16, steps=150, batch=128, generator=generator)
    problems = discrete.assignment_problems(1000, 2, near=0.5, generator=generator)

    def right(model: discrete.HungarianNet) -> float:
        matrix = discrete.assign(problems.distance, method="learned", model=model)
        return float((matrix.gt(0.5) == problems.target.gt(0.5)).flatten(1).all(1).float().mean())

    assert right(net) > 0.7
    assert right(discrete.HungarianNet(2, 16, generator=generator)) < 0.5


def test_learned_assignments_pass_a_gradient_to_distances_but_not_to_a_frozen_network() -> None:
    net = discrete.HungarianNet(2, 8, generator=torch.Generator().manual_seed(0)).requires_grad_(False)
    torch.nn.init.constant_(net.output.bias, 3.0)
    distance = torch.rand(4, 2, 2, generator=torch.Generator().manual_seed(1)).requires_grad_()
    discrete.assign(distance, method="learned", model=net).sum().backward()
    assert distance.grad is not None
    assert distance.grad.abs().max() > 0


def test_a_dustbin_takes_what_costs_more_and_hard_carries_the_soft_gradient() -> None:
    cost = torch.tensor([[0.0, 5.0], [5.0, 3.0]], dtype=torch.float64, requires_grad=True)
    hard = discrete.assign(cost, dustbin=1.0, temperature=0.2, hard=True)
    assert hard.tolist() == [[1, 0], [0, 0]]
    soft = discrete.assign(cost, dustbin=1.0, temperature=0.2)
    weights = torch.rand(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradients = [torch.autograd.grad((x * weights).sum(), cost)[0] for x in (hard, soft)]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0
    none = torch.autograd.grad(discrete.assign(cost, method="hungarian", dustbin=1.0).sum(), cost)[0]
    assert not none.any()


def test_planted_permutations_are_recovered() -> None:
    generator = torch.Generator().manual_seed(0)
    for n in (3, 8, 20):
        order = torch.randperm(n, generator=generator)
        cost = 1 - torch.eye(n)[order] + 0.3 * torch.rand(n, n, generator=generator)
        for options in ({"method": "hungarian"}, {"hard": True}, {"dustbin": 0.7, "hard": True}):
            assert torch.equal(discrete.assign(cost, **options).argmax(-1), order)
        assert torch.equal(discrete.assign(cost, temperature=0.02).argmax(-1), order)

"""A tracker that finds, follows and loses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pullback.uncertainty import BeliefTracker, DistancePotential

_LOW, _HIGH = -torch.ones(3, 2), torch.ones(3, 2)
_CHAIN = [(0, 1), (1, 2)]


def _tracker(seed: int = 0, **words: Any) -> BeliefTracker:
    g = torch.Generator().manual_seed(seed)
    good: dict[str, Any] = {"low": _LOW, "high": _HIGH, "particles": 60, "generator": g}

    def move(x: Tensor) -> Tensor:
        return x + 0.05 * torch.randn(x.shape, generator=g)

    return BeliefTracker(words.pop("pairwise", DistancePotential(0.4, 0.03)), _CHAIN, move, **good | words)


def _place(t: int) -> Tensor:
    """A chain that turns around its first node, in two clips."""
    angle = torch.tensor([0.04, -0.08]) * t
    way = 0.4 * torch.stack([angle.cos(), angle.sin()], -1)
    return torch.stack([0 * way, way, 2 * way], 1)


def _seen(truth: Tensor, blind: tuple[int, ...] = ()) -> Any:
    def unary(node: int, x: Tensor) -> Tensor:
        if node in blind:
            return torch.zeros_like(x[..., 0])
        return -(x - truth[:, None, node]).square().sum(-1) / (2 * 0.08**2)

    return unary


def _follow(tracker: BeliefTracker, frames: int, blind: tuple[int, ...] = (), first: int = 0) -> Tensor:
    """Return errors ``[clip, node]`` of the last frame."""
    for t in range(first, frames):
        means = tracker.step(_seen(_place(t), blind)).beliefs.means
    return (means - _place(frames - 1)).norm(dim=-1)


def test_nodes_are_found_and_followed_as_particles_are_kept() -> None:
    tracker = _tracker(particles=200)
    tracker.begin(2)
    first = (tracker.step(_seen(_place(0))).beliefs.means - _place(0)).norm(dim=-1).mean()
    late = _follow(tracker, 12, first=1)
    assert tracker.frame == 12
    assert float(late.mean()) < 0.06
    assert float(late.mean()) < float(first)


def test_a_node_that_is_not_seen_is_placed_around_its_neighbours_in_doubt() -> None:
    tracker = _tracker(particles=400)
    tracker.begin(2)
    assert float(_follow(tracker, 10, blind=(1,))[:, 1].max()) < 0.25  # between the two that are seen
    spread = tracker.last.variances.sum(-1)
    assert (spread[:, 1] > 4 * spread[:, [0, 2]].amax(-1)).all()
    away = (
        (tracker.last.points[:, 1] - _place(9)[:, :1]).norm(dim=-1),
        (tracker.last.points[:, 1] - _place(9)[:, 2:]).norm(dim=-1),
    )
    near = torch.minimum((away[0] - 0.4).abs(), (away[1] - 0.4).abs())
    assert float((tracker.last.log_weights[:, 1].exp() * near).sum(-1).mean()) < 0.12  # on a ring around one of them


def test_without_memory_each_frame_begins_anywhere() -> None:
    tracker = _tracker(forget=1.0)
    tracker.begin(2)
    tracker.step(_seen(_place(0)))
    points = tracker.step(_seen(_place(0))).points
    assert float(points.std()) == pytest.approx((1 / 3) ** 0.5, abs=0.05)


def test_a_tracker_goes_on_from_its_state() -> None:
    whole, half = _tracker(), _tracker()
    for tracker in (whole, half):
        tracker.begin(2)
        _follow(tracker, 3)
    other = _tracker(seed=9)
    other.load_state_dict(half.state_dict())
    assert other.generator is not None
    assert half.generator is not None
    other.generator.set_state(half.generator.get_state())
    found = [t.step(_seen(_place(3)), truth=_place(3)) for t in (whole, other)]
    assert torch.equal(found[0].log_neighbours, found[1].log_neighbours)  # draws of the motion aside
    assert found[0].points.shape == (2, 3, 60, 2)


def test_losses_are_likelihoods_under_each_kind_of_weights() -> None:
    tracker = _tracker()
    tracker.begin(2)
    found, truth = tracker.step(_seen(_place(0))), _place(0)
    losses = found.losses(truth, bandwidth=0.2)
    for loss, weights in (
        (losses.unary, found.log_unary),
        (losses.sender, found.log_sender),
        (losses.neighbours, found.log_neighbours),
    ):
        apart = (found.points - truth.unsqueeze(2)).square().sum(-1)
        density = (weights.exp() * (-apart / 0.08).exp()).sum(-1) / (2 * torch.pi * 0.04)
        torch.testing.assert_close(loss, -density.log().mean(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("without_shape_checks")
def test_wrong_arguments_are_refused_by_name() -> None:
    for words, says in (
        ({"particles": 1}, "particles must be an integer >= 2"),
        ({"forget": 1.5}, "forget must be in"),
        ({"samples": 0}, "samples must be an integer >= 1"),
        ({"high": torch.ones(2)}, r"high must have shape \[nodes, d\] as low"),
    ):
        with pytest.raises(ValueError, match=says):
            _tracker(**words)
    with pytest.raises(TypeError, match="move must be callable"):
        BeliefTracker(DistancePotential(1.0, 1.0), _CHAIN, 3, low=_LOW, high=_HIGH, particles=9)  # type: ignore[arg-type]

"""Clips of bodies: where they are drawn, and what hides them."""

from __future__ import annotations

import pytest
import torch

from pullback.data import BODY_COLOURS, body_clips


def _g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_joints_and_rods_are_drawn_where_they_are_in_their_colours() -> None:
    points = torch.rand(20, 3, 3, 2, generator=_g()) * 1.6 - 0.8
    clips = body_clips(points, [(0, 1), (1, 2)], [0, 1], size=64, generator=_g())
    assert not clips.hidden.any()
    joint, rod = (torch.tensor(c) for c in BODY_COLOURS)

    def at(places: torch.Tensor) -> torch.Tensor:
        column, row = ((1 + places[..., 0]) * 32).long(), ((1 - places[..., 1]) * 32).long()
        clip, frame = torch.arange(20)[:, None], torch.arange(3)
        return clips.frames[clip, frame, :, row, column]

    for node in (0, 1):
        torch.testing.assert_close(at(points[:, :, node]), joint.expand(20, 3, 3))
    middle = (points[:, :, 0] + points[:, :, 1]) / 2
    free = (middle - points[:, :, 0]).norm(dim=-1) > 0.2  # not under a joint
    torch.testing.assert_close(at(middle)[free], rod.expand(20, 3, 3)[free])
    yellow = (clips.frames - joint[:, None, None]).abs().sum(2) < 0.05
    assert int(yellow.sum((2, 3)).max()) <= 2 * 26  # two discs of a radius of 2.5 pixels
    assert bool(((clips.frames >= 0) & (clips.frames <= 1)).all())


def test_shapes_lie_above_the_body_and_tell_which_nodes_they_hide() -> None:
    points = torch.zeros(300, 2, 1, 2)
    number = torch.arange(300) % 6
    clips = body_clips(points, [], [0], size=16, clutter=number, largest=0.6, generator=_g())
    seen = (clips.frames[:, :, :, 7:9, 7:9] - torch.tensor(BODY_COLOURS[0])[:, None, None]).abs().amax((2, 3, 4)) < 1e-3
    hidden = clips.hidden[..., 0]
    assert not (seen & hidden).any()
    assert not hidden[number == 0].any()
    rates = [float(hidden[number == n].float().mean()) for n in range(6)]
    assert rates[5] > rates[1] > 0
    assert float((seen | hidden).float().mean()) > 0.75  # the others lie under the edge of a shape
    area = (clips.frames > 0).any(2).float().mean((1, 2, 3))
    assert float(area[number == 5].mean()) > float(area[number == 1].mean())


def test_half_of_the_shapes_move_evenly() -> None:
    clips = body_clips(torch.zeros(400, 4, 1, 2), [], [], size=16, clutter=1, generator=_g())
    change = (clips.frames.diff(dim=1)).abs().sum((1, 2, 3, 4))
    assert float((change == 0).float().mean()) == pytest.approx(0.5, abs=0.08)


def test_wrong_arguments_are_refused_by_name() -> None:
    points = torch.zeros(2, 3, 2, 2)
    with pytest.raises(TypeError, match="points must be a floating tensor"):
        body_clips(points.long(), [], [], generator=_g())
    for words, says in (
        ({"rods": [(0, 2)]}, r"rods must name nodes in 0\.\.1, got \[0, 2\]"),
        ({"joints": [-1]}, "joints must name nodes"),
        ({"size": 4}, "size must be an integer >= 8"),
        ({"largest": 0.0}, "largest must be > 0"),
        ({"clutter": -1}, "clutter must be an integer >= 0"),
        ({"clutter": torch.zeros(3).long()}, "clutter must be"),
        ({"clutter": torch.tensor([1, -1])}, "clutter must be"),
    ):
        with pytest.raises(ValueError, match=says):
            body_clips(points, **{"rods": [], "joints": [], "generator": _g()} | words)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"points must have shape \[count, frames, nodes, 2\]"):
        body_clips(points[..., :1], [], [], generator=_g())

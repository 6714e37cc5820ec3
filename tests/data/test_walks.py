"""Walks: the ways are free and as they are told, landmarks lie where legs end, testing sees other streets."""

from __future__ import annotations

import pytest
import torch

from pullback import data


def _walks(split: str) -> data.Walks:
    return data.instructed_walks(split, 60, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("split", ["train", "test"])
def test_ways_are_free_and_go_where_they_look(split: str) -> None:
    walks = _walks(split)
    heading, row, column = walks.poses.unbind(-1)
    assert not walks.occupied[torch.arange(60)[:, None], row, column].any()
    south, east = row.diff(), column.diff()
    ahead = torch.tensor([[-1, 0], [0, 1], [1, 0], [0, -1]])[heading[:, 1:]]
    length = (south * ahead[..., 0]) + (east * ahead[..., 1])
    assert bool(((length >= 0) & (length <= 3) & (south.abs() + east.abs() == length)).all())


def test_turns_are_told() -> None:
    for words, poses in zip(*_walks("train")[2:], strict=True):
        spoken = [data.WALK_WORDS[i] for i in words if i]
        turns = [word for word in spoken if word in ("left", "right")]
        changes = [int(c) % 4 for c in poses[:, 0].diff() if c]
        assert [{"right": 1, "left": 3}[turn] for turn in turns] == changes
        assert spoken[-2:] == ["and", "stop"]


def test_the_goal_has_the_colour_that_is_told() -> None:
    tints = {"red": (0, 1), "green": (1, 0), "blue": (2, 0), "yellow": (0, 2)}
    walks = _walks("test")
    for k in range(60):
        colour = data.WALK_WORDS[int(walks.words[k][walks.words[k] > 0][-4])]
        row, column = (2 * walks.poses[k, -1, 1:]).tolist()
        mean = walks.maps[k, :, row : row + 2, column : column + 2].mean((1, 2))
        if colour in tints:
            high, low = tints[colour]
            assert mean[high] > mean[low] + 0.1


def test_streets_for_testing_are_others() -> None:
    train, test = ({bytes(o.numpy().tobytes()) for o in _walks(split).occupied} for split in ("train", "test"))
    assert not {one for one in train & test if any(one)}
    with pytest.raises(ValueError, match="split must be"):
        _walks("all")

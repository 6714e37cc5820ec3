from __future__ import annotations

import pytest
import torch

from pullback.data import digit_scenes, digits, occupied_cells


def test_digits_stand_where_the_labels_say_and_do_not_overlap(generator: torch.Generator) -> None:
    images, labels = digits("test")
    images = images + 0.01  # so that no two digits share a pixel unseen
    scenes = digit_scenes(images, labels, 60, size=30, most=3, fragments=0, fragment=4, generator=generator)
    counts = (scenes.labels >= 0).sum(-1)
    assert set(counts.tolist()) == {1, 2, 3}
    for image, centers, names in zip(*scenes, strict=True):
        left = image.clone()
        for center, name in zip(centers[names >= 0], names[names >= 0], strict=True):
            row, column = (center - 4).long().tolist()
            piece = image[row : row + 8, column : column + 8]
            same = (images == piece).all(-1).all(-1)
            assert int(name) in labels[same].tolist()
            left[row : row + 8, column : column + 8] = 0
        assert not left.any()
    assert not scenes.centers[scenes.labels < 0].any()


def test_fragments_are_ink_that_is_no_digit(generator: torch.Generator) -> None:
    images, labels = digits("test")
    plain, cluttered = (
        digit_scenes(images, labels, 40, size=40, fragments=n, fragment=4, generator=torch.Generator().manual_seed(5))
        for n in (0, 9)
    )
    assert torch.equal(plain.labels, cluttered.labels)
    assert (cluttered.images >= plain.images).all()
    added = (cluttered.images > plain.images).sum((1, 2))
    assert (added > 20).all()
    assert (added <= 9 * 16).all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"count": 0}, "count must be"),
        ({"most": 0}, "most must be"),
        ({"size": 7}, "size must be"),
        ({"fragment": 9}, "fragment must be"),
        ({"size": 8, "most": 2}, "do not fit beside each other"),
        ({"labels": torch.tensor([3])}, "must belong together"),
    ],
)
def test_bad_arguments_are_refused(change: dict, match: str, generator: torch.Generator) -> None:
    arguments = {"images": torch.ones(2, 8, 8), "labels": torch.tensor([3, 4]), "count": 9, "size": 20, "fragment": 2}
    with pytest.raises(ValueError, match=match):
        digit_scenes(**{**arguments, **change}, generator=generator)


def test_occupied_cells_are_those_with_ink_and_see_around_themselves(generator: torch.Generator) -> None:
    images = torch.rand(3, 12, 8, generator=generator) * (torch.rand(3, 12, 8, generator=generator) < 0.1)
    found = occupied_cells(images, 2, view=4, threshold=0.5)
    wide = torch.nn.functional.pad(images, (1, 1, 1, 1))
    for number, image in enumerate(images):
        places = [(r, c) for r in range(6) for c in range(4) if image[2 * r : 2 * r + 2, 2 * c : 2 * c + 2].max() > 0.5]
        assert [tuple(cell) for cell in found.cells[number, found.mask[number]].tolist()] == places
        for at, (row, column) in enumerate(places):
            view = wide[number, 2 * row : 2 * row + 4, 2 * column : 2 * column + 4]
            assert torch.equal(found.views[number, at].view(4, 4), view)
            assert found.brightness[number, at] == pytest.approx(float(view[1:3, 1:3].mean()), abs=1e-6)
            assert found.positions[number, at].tolist() == [2 * row + 1, 2 * column + 1]
    with pytest.raises(ValueError, match="cell must divide"):
        occupied_cells(images, 5)
    with pytest.raises(ValueError, match="view must be cell and an even number"):
        occupied_cells(images, 2, view=3)

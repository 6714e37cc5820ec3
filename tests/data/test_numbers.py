from __future__ import annotations

import pytest
import torch

from pullback.data import digits
from pullback.data.numbers import digit_numbers


def test_numbers_show_the_digits_of_their_values(generator: torch.Generator) -> None:
    images, labels = digits("test")
    drawn = digit_numbers(images, labels, 50, 3, generator=generator)
    assert drawn.images.shape == (50, 8, 24)
    for image, value in zip(drawn.images, drawn.values.tolist(), strict=True):
        for place, digit in enumerate(f"{value:03d}"):
            piece = image[:, 8 * place : 8 * place + 8]
            same = (images == piece).all(-1).all(-1)
            assert same.any()
            assert set(labels[same].tolist()) == {int(digit)}


def test_every_value_is_about_equally_likely(generator: torch.Generator) -> None:
    images = torch.arange(10.0).reshape(10, 1, 1)
    values = digit_numbers(images, torch.arange(10), 100_000, 2, generator=generator).values
    counts = torch.bincount(values, minlength=100)
    # Poisson of mean 1000: 6 standard deviations.
    assert counts.shape == (100,)
    assert (counts - 1000).abs().max() < 6 * 1000**0.5


@pytest.mark.parametrize(
    ("change", "match"),
    [({"count": 0}, "count must be"), ({"places": 0}, "places must be"), ({"labels": torch.tensor([3, 10])}, "digits")],
)
def test_bad_arguments_are_refused(change: dict, match: str, generator: torch.Generator) -> None:
    arguments = {"images": torch.zeros(2, 4, 4), "labels": torch.tensor([3, 4]), "count": 1, "places": 1}
    with pytest.raises(ValueError, match=match):
        digit_numbers(**{**arguments, **change}, generator=generator)

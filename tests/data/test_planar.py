"""Half moons and circles against their equations, and against scikit-learn's noiseless sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import make_circles, make_moons

from pullback import data


def test_circles_have_two_radii(generator: torch.Generator) -> None:
    points = data.circles(400, noise=0.0, generator=generator)
    assert torch.allclose(points[::2].norm(dim=1), torch.tensor(2.0))
    assert torch.allclose(points[1::2].norm(dim=1), torch.tensor(1.0))
    noisy = data.circles(4000, noise=0.1, generator=generator).norm(dim=1)
    assert noisy[::2].std().item() == pytest.approx(0.1, rel=0.1)


def test_clean_points_lie_on_the_curves_of_scikit_learn(generator: torch.Generator) -> None:
    curves = {
        data.moons: make_moons(20_000)[0] * 1.5 - [0.75, 0.375],
        data.circles: make_circles(20_000, factor=0.5)[0] * 2.0,
    }
    for make, curve in curves.items():
        points = make(200, noise=0.0, generator=generator).numpy()
        distance = np.linalg.norm(points[:, None] - curve[None], axis=-1)
        assert distance.min(1).max() < 1e-3, make.__name__  # each point lies on the curve
        dense = make(20_000, noise=0.0, generator=generator).numpy()
        distance = np.linalg.norm(curve[::100, None] - dense[None], axis=-1)
        assert distance.min(1).max() < 1e-2, make.__name__  # and no part of it is left out


def test_bad_arguments_are_named(generator: torch.Generator) -> None:
    for make in (data.moons, data.circles):
        with pytest.raises(ValueError, match="n must be an integer >= 1"):
            make(0, generator=generator)
        with pytest.raises(ValueError, match="noise must be >= 0"):
            make(3, noise=-1.0, generator=generator)

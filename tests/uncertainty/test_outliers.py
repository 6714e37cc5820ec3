"""Shaping of features and scores of unknown samples: the optimum, what each score ignores, where a head is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pullback import uncertainty as un


def _training(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z = torch.randn(500, 8, generator=generator).double()
    w = torch.randn(4, 8, generator=generator).double()
    return z, w, (z @ w.mT).argmax(-1)


def test_no_other_multiplier_of_that_length_raises_the_logit_more(generator: torch.Generator) -> None:
    z, w, classes = _training(generator)
    best = un.optimal_shaping(z, w, classes, bins=20)
    torch.testing.assert_close(best.theta.square().sum(), torch.tensor(20.0).double())

    def logit(theta: torch.Tensor) -> torch.Tensor:
        return (w[classes] * un.Shaping(best.edges, theta)(z)).sum(-1).mean()

    for other in torch.randn(50, 20, generator=generator).double():
        mixed = best.theta.detach() + 0.1 * other
        assert logit(mixed * (20**0.5 / mixed.norm())) < logit(best.theta.detach())


def test_outliers_are_subtracted(generator: torch.Generator) -> None:
    z, w, classes = _training(generator)
    same = z + 1e-3 * torch.randn(z.shape, generator=generator)
    with_outliers = un.optimal_shaping(z, w, classes, bins=10, outlier=(2 * same, classes))
    scores = [un.feature_contributions(x, w, classes, with_outliers.edges).mean(0) for x in (z, 2 * same)]
    gap = scores[0] - scores[1]
    torch.testing.assert_close(with_outliers.theta.detach(), 10**0.5 * gap / gap.norm())


def test_interpolated_multipliers_tend_to_constant_ones_and_are_continuous(generator: torch.Generator) -> None:
    z = torch.linspace(-1.2, 1.2, 2001)
    edges = torch.linspace(-1, 1, 401)
    fine = un.Shaping(edges, torch.sin(3 * (edges[1:] + edges[:-1]) / 2))
    inside = z.abs() < 0.99
    torch.testing.assert_close(fine(z, soft=True)[inside], fine(z)[inside], atol=0.01, rtol=0)
    few = un.Shaping(torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([2.0, -3.0]))
    assert few(z).diff().abs().max() > 1
    assert few(z, soft=True).diff().abs().max() < 0.02


@pytest.mark.parametrize(
    ("edges", "theta", "error", "match"),
    [
        ([0.0, 1.0], [1.0], ValueError, "theta must have at least 2 bins, got 1"),
        ([0.0, 1.0, 2.0], [1.0], ValueError, r"theta must have shape \(2,\), one a bin"),
        ([0.0, 0.0, 2.0], [1.0, 1.0], ValueError, "edges must be finite, each above the one before"),
        ([0.0, 1.0, 2.0], [1.0, float("nan")], ValueError, "theta must be finite"),
    ],
)
def test_shapings_that_are_none(edges: list[float], theta: list[float], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        un.Shaping(torch.tensor(edges), torch.tensor(theta))


def test_clipped_features_beyond_the_ceiling_do_not_count(generator: torch.Generator) -> None:
    z, w, _ = _training(generator)
    state = un.fit_ood_score(z, w, method="react", level=0.9)
    larger = torch.where(z > state.values[0], z + 100, z)
    torch.testing.assert_close(un.ood_score(larger, w, method=state), un.ood_score(z, w, method=state))


def test_distances_find_what_lies_elsewhere(generator: torch.Generator) -> None:
    centres = 5 * torch.eye(4, 8)
    labels = torch.arange(400) % 4
    known = centres[labels] + torch.randn(400, 8, generator=generator)
    elsewhere = -5 * torch.eye(8)[4:][labels] + torch.randn(400, 8, generator=generator)
    for method in ("mahalanobis", "knn"):
        state = un.fit_ood_score(known[:200], centres, method=method, labels=labels[:200])
        inside, outside = (un.ood_score(x, centres, method=state) for x in (known[200:], elsewhere))
        assert un.detection_metrics(inside, outside).auroc > 0.95


def test_levels_at_the_ends_change_nothing(generator: torch.Generator) -> None:
    z, w, _ = _training(generator)
    plain = un.ood_score(z, w, method="energy")
    for method, level in (("react", 1.0), ("dice", 0.0)):
        state = un.fit_ood_score(z, w, method=method, level=level)
        torch.testing.assert_close(un.ood_score(z, w, method=state), plain)
    whole = un.fit_ood_score(z.abs(), w, method="ash", level=0.0)  # nothing is removed: features times e
    found = un.ood_score(z.abs(), w, method=whole)
    torch.testing.assert_close(found, un.ood_score(torch.e * z.abs(), w, method="energy"))


def test_the_head_is_the_last_linear_layer() -> None:
    head = nn.Linear(4, 5)
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), head), nn.Softmax(-1))
    assert un.linear_head(model) is head
    assert un.linear_head(head) is head
    with pytest.raises(ValueError, match="model must have a linear layer, found none in ReLU"):
        un.linear_head(nn.ReLU())
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        un.linear_head(3)  # type: ignore[arg-type]


def test_perfect_and_useless_scores() -> None:
    high, low = torch.tensor([2.0, 3.0, torch.inf]), torch.tensor([-torch.inf, 0.0, 1.0])
    assert un.detection_metrics(high, low) == (1.0, 0.0, 1.0)
    same = un.detection_metrics(torch.ones(4), torch.ones(6))
    assert same.auroc == 0.5
    assert same.false_positive_rate == 1.0
    torch.testing.assert_close(same.average_precision, torch.tensor(0.4))

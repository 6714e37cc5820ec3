from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from pullback.discrete import (
    group_mass,
    group_ordering_loss,
    info_nce,
    nearest_neighbour_accuracy,
    sorting_network,
    view_similarities,
)
from pullback.kernels import sorting_network as kernel

DISTRIBUTIONS = ("logistic", "gaussian", "cauchy", "reciprocal", "optimal")
NETWORKS = ("bitonic", "odd_even")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_mass_is_the_sum_of_rows_of_the_permutation_and_so_are_its_gradients(
    distribution: str, network: str, generator: torch.Generator
) -> None:
    for n in (1, 2, 7, 33):
        x = torch.randn(18, n, generator=generator, dtype=torch.float64)
        if n > 2:
            x[0, :2], x[1, 1], x[2, 0] = torch.inf, -torch.inf, x[2, 2]
        cotangent = torch.randn(18, n, generator=generator, dtype=torch.float64)
        for group in {0, 1, n // 2, n}:
            outcomes = []
            for by_matrix in (False, True):
                leaf = x.clone().requires_grad_()
                options: dict[str, Any] = {"steepness": 2.0, "distribution": distribution, "network": network}
                if by_matrix:
                    mass = sorting_network(leaf, **options).permutation[:, n - group :].sum(-2)
                else:
                    mass = group_mass(leaf, group, **options)
                outcomes.append((mass.detach(), *torch.autograd.grad(mass, leaf, cotangent)))
            for ours, truth in zip(*outcomes, strict=True):
                torch.testing.assert_close(ours, truth, atol=1e-10, rtol=1e-10)
            mass = outcomes[0][0]
            assert ((mass >= -1e-12) & (mass <= 1 + 1e-12)).all()
            torch.testing.assert_close(mass.sum(-1), torch.full((18,), float(group)).double())


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_compiled_mass_equals_torch(
    distribution: str, network: str, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(19, 13, generator=generator, dtype=torch.float64)
    x[0, 3:5], x[1, 0] = torch.inf, -torch.inf
    cotangent = torch.randn(19, 13, generator=generator, dtype=torch.float64)

    def outcome() -> tuple[Tensor, Tensor]:
        leaf = x.clone().requires_grad_()
        mass = group_mass(leaf, 4, steepness=3.0, distribution=distribution, network=network)
        return mass.detach(), torch.autograd.grad(mass, leaf, cotangent)[0]

    compiled = outcome()
    monkeypatch.setattr(kernel, "_is_compiled", lambda x: False)
    for fast, slow in zip(compiled, outcome(), strict=True):
        torch.testing.assert_close(fast, slow, atol=1e-12, rtol=1e-12)


def test_mass_takes_memory_linear_in_n() -> None:
    x = torch.linspace(0, 1, 2**15, requires_grad=True)
    # A matrix would have 2^30 entries.
    group_mass(x, 100, steepness=1e5, network="bitonic").square().sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("steepness", [0.3, 3.0])
def test_loss_of_two_scores_has_a_closed_form(steepness: float) -> None:
    positive = torch.linspace(-3, 3, 25, dtype=torch.float64)[:, None]
    losses = group_ordering_loss(positive, torch.zeros_like(positive), steepness=steepness, reduction="none")
    expected = -torch.log(torch.arctan(math.pi * steepness * positive[:, 0]) / math.pi + 0.5)
    torch.testing.assert_close(losses, expected, atol=1e-12, rtol=1e-12)


def test_loss_asks_for_no_order_inside_a_group(generator: torch.Generator) -> None:
    positives, negatives = torch.randn(5, 4, generator=generator), torch.randn(5, 6, generator=generator)
    loss = group_ordering_loss(positives, negatives, steepness=2.0)
    mixed = positives[:, torch.randperm(4, generator=generator)], negatives[:, torch.randperm(6, generator=generator)]
    torch.testing.assert_close(group_ordering_loss(*mixed, steepness=2.0), loss, atol=0, rtol=0)


def test_loss_falls_with_the_margin_like_one_over_the_steepness_where_groups_are_apart() -> None:
    positives, negatives = torch.full((3,), 0.9).double(), torch.full((10,), -0.9).double()
    losses = [group_ordering_loss(positives, negatives, steepness=b / math.pi) for b in (1.0, 3.0, 10.0, 100.0, 1000.0)]
    # What the authors' code gives, whose steepness is ours times pi.
    torch.testing.assert_close(
        torch.stack(losses), torch.tensor([0.15, 0.056, 0.0165, 0.0016, 0.0002]).double(), rtol=0.2, atol=0
    )
    assert losses[3] / losses[4] == pytest.approx(10, rel=0.05)


def test_loss_keeps_the_gradient_of_a_negative_that_is_far_in_the_wrong_place() -> None:
    positives = torch.zeros(1, requires_grad=True)
    loss = group_ordering_loss(positives, torch.ones(1), steepness=1e9)
    loss.backward()
    assert positives.grad is not None
    # The loss is -log f, f = 1 / (pi^2 beta d) out there: its slope is 1 / d.
    torch.testing.assert_close(positives.grad, torch.tensor([-1.0]), atol=1e-3, rtol=0)


def test_reductions(generator: torch.Generator) -> None:
    scores = torch.randn(4, 3, generator=generator), torch.randn(4, 5, generator=generator)
    for loss in (
        lambda **words: group_ordering_loss(*scores, steepness=1.0, **words),
        lambda **words: info_nce(*scores, temperature=0.5, **words),
    ):
        losses = loss(reduction="none")
        assert losses.shape == (4,)
        torch.testing.assert_close(loss(reduction="sum"), losses.sum())
        torch.testing.assert_close(loss(), losses.mean())


def test_no_gradient_flows_to_what_an_anchor_is_compared_with(generator: torch.Generator) -> None:
    features = torch.randn(2, 3, 4, generator=generator, requires_grad=True)
    positives, negatives = view_similarities(features, anchor_only=True, hardest=100)
    assert negatives.shape == (2, 3, 4)
    (positives[0, 0].sum() + negatives[0, 0].sum()).backward()
    assert features.grad is not None
    assert (features.grad[0, 0] != 0).any()
    assert (features.grad.flatten(0, 1)[1:] == 0).all()


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("temperature", [1.0, 0.07])
def test_neighbours_against_scikit_learn(k: int, temperature: float, generator: torch.Generator) -> None:
    features = torch.randn(300, 6, generator=generator, dtype=torch.float64)
    labels = (features[:, 0] > 0).long() * 7 + (features[:, 1] > 0.5).long()
    bank, known = features[:200], labels[:200]
    peer = KNeighborsClassifier(
        k, metric="cosine", weights=lambda distance: torch.exp(-torch.from_numpy(distance) / temperature).numpy()
    )
    expected = peer.fit(bank.numpy(), known.numpy()).score(features[200:].numpy(), labels[200:].numpy())
    got = nearest_neighbour_accuracy(features[200:], labels[200:], k, bank=(bank, known), temperature=temperature)
    assert got == pytest.approx(expected)
    # Without a bank every sample is judged by all others.
    left_out = [
        peer.fit(*(torch.cat([t[:i], t[i + 1 : 40]]).numpy() for t in (features, labels))).predict(
            features[i : i + 1].numpy()
        )[0]
        == labels[i].item()
        for i in range(40)
    ]
    alone = nearest_neighbour_accuracy(features[:40], labels[:40], k, temperature=temperature)
    assert alone == pytest.approx(sum(left_out) / 40)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"features": torch.zeros(4, 2, dtype=torch.int64)}, TypeError, "features must be a floating tensor"),
        ({"features": torch.zeros(4)}, ValueError, r"features must be \[n >= 1, d >= 1\] with labels"),
        ({"features": torch.full((4, 2), torch.nan)}, ValueError, "features must be finite"),
        ({"labels": torch.zeros(4)}, TypeError, r"labels must be integers, got torch\.float32"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ValueError, "with labels"),
        ({"k": 4}, ValueError, r"k must be in 1\.\.3, got 4"),
        ({"temperature": 0.0}, ValueError, "temperature must be > 0"),
        ({"bank": (torch.zeros(3, 5), torch.zeros(3).long())}, ValueError, "bank must have 2 features, got 5"),
    ],
)
def test_neighbours_refuse(
    change: dict[str, Any], error: type[Exception], match: str, without_shape_checks: None
) -> None:
    arguments = {"features": torch.zeros(4, 2), "labels": torch.zeros(4, dtype=torch.int64), "k": 1, **change}
    with pytest.raises(error, match=match):
        nearest_neighbour_accuracy(**arguments)

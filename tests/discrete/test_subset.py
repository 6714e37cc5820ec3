"""Subsets of exactly k: their law, the estimators of their gradient, and the perturbation that adapts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from pullback import discrete
from pullback.discrete import AdaptivePerturbation, PlackettLuce, subset_sample


def test_ordered_draws_follow_plackett_luce() -> None:
    logits = torch.tensor([0.3, -0.5, 1.0, 0.0, -torch.inf])
    drawn = subset_sample(logits.expand(20_000, 5), 2, generator=torch.Generator().manual_seed(0)).index
    p = logits.exp().tolist()
    pairs = list(itertools.permutations(range(4), 2))
    expected = [20_000 * p[i] / sum(p) * p[j] / (sum(p) - p[i]) for i, j in pairs]
    seen = [int((drawn == torch.tensor(pair)).all(-1).sum()) for pair in pairs]
    assert sum(seen) == 20_000
    assert chisquare(seen, expected).pvalue > 1e-3


def test_each_row_has_its_own_k_and_all_of_n_is_a_permutation() -> None:
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    k = torch.tensor([1, 5, 2, 3])
    for method in discrete.SUBSET_METHODS:
        subset = subset_sample(logits, k, method=method, generator=torch.Generator().manual_seed(1))
        assert subset.mask.sum(-1).tolist() == k.tolist()
        assert torch.equal(subset.rows.sum(-2), subset.mask)
        assert (subset.index >= 0).sum(-1).tolist() == k.tolist()
        assert torch.equal(subset.rows.sum(-1).argmin(-1)[[0, 2, 3]], k[[0, 2, 3]])
        assert sorted(subset.index[1].tolist()) == list(range(5))
    top = subset_sample(logits, 3, noise=0.0)
    assert torch.equal(top.index, logits.topk(3).indices)


def _loss(mask: Tensor) -> Tensor:
    """Neither linear in the mask nor symmetric."""
    w = torch.linspace(-1, 2, mask.shape[-1], dtype=mask.dtype)
    return torch.tanh((mask * w).sum(-1) - 0.7) + 0.2 * mask[..., 0] * mask[..., 2]


def _exact(logits: Tensor, k: int) -> Tensor:
    logits = logits.clone().requires_grad_()
    law = PlackettLuce(logits)
    orders = law.orders(k)
    masks = torch.zeros(len(orders), len(logits), dtype=logits.dtype).scatter(-1, orders, 1.0)
    (gradient,) = torch.autograd.grad((law.log_prob(orders).exp() * _loss(masks)).sum(), logits)
    return gradient


@pytest.mark.parametrize(
    ("options", "least"),
    [
        ({"method": "aimle", "perturbation": 0.5}, 0.95),
        ({"method": "imle", "perturbation": 0.5}, 0.95),
        ({"method": "imle", "perturbation": 0.5, "symmetric": False}, 0.9),
        ({"method": "gumbel_topk"}, 0.9),
        ({"method": "relaxed_topk"}, 0.9),
        ({"method": "straight_through"}, 0.9),
        ({"method": "identity"}, 0.6),
    ],
)
def test_the_mean_estimate_points_along_the_exact_gradient(options: dict[str, object], least: float) -> None:
    base = torch.tensor([0.5, -0.3, 0.2, 0.9, -0.6], dtype=torch.float64)
    logits = base.expand(20_000, 5).clone().requires_grad_()
    subset = subset_sample(logits, 2, generator=torch.Generator().manual_seed(0), **options)  # type: ignore[arg-type]
    (found,) = torch.autograd.grad(_loss(subset.mask).sum(), logits)
    assert torch.cosine_similarity(found.mean(0), _exact(base, 2), dim=0) > least


def test_a_linear_loss_has_an_unbiased_gradient_from_noise_and_from_small_pushes() -> None:
    base = torch.tensor([0.5, -0.3, 0.2, 0.9], dtype=torch.float64)
    slope = torch.tensor([1.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    leaf = base.clone().requires_grad_()
    law = PlackettLuce(leaf)
    orders = law.orders(2)
    (exact,) = torch.autograd.grad((law.log_prob(orders).exp() * slope[orders].sum(-1)).sum(), leaf)
    for options in ({"method": "perturbed"}, {"method": "imle", "perturbation": 0.05}):
        logits = base.expand(100_000, 4).clone().requires_grad_()
        draw = torch.Generator().manual_seed(0)
        mask = subset_sample(logits, 2, generator=draw, **options).mask  # type: ignore[arg-type]
        (found,) = torch.autograd.grad((mask * slope).sum(), logits)
        error = found.std(0) / math.sqrt(len(found))
        assert ((found.mean(0) - exact) / error).abs().max() < 4


def test_small_pushes_to_both_sides_are_exact_for_quadratic_losses_and_for_no_others() -> None:
    """A swap of items at the edge is worth the mean of the slopes on its two sides: a trapezoid rule."""
    base = torch.tensor([0.5, -0.3, 0.2, 0.9], dtype=torch.float64)
    square = torch.tensor([[2.0, -1.0, 0.5, 0.0], [0.0, 1.0, 3.0, -2.0], [1.0, 0.0, -1.0, 1.0], [2.0, 1.0, 0.0, -3.0]])

    def quadratic(mask: Tensor) -> Tensor:
        return ((mask @ square.double()) * mask).sum(-1)

    def steep(mask: Tensor) -> Tensor:
        return quadratic(mask).mul(2).tanh()

    def errors(f: Callable[[Tensor], Tensor], symmetric: bool) -> Tensor:
        leaf = base.clone().requires_grad_()
        (exact,) = torch.autograd.grad(discrete.subset_expectation(f, leaf, 2), leaf)
        options = {"perturbation": 0.01, "symmetric": symmetric, "generator": torch.Generator().manual_seed(0)}
        found = discrete.subset_gradients(f, base, 2, 200_000, method="imle", **options)
        return (found.mean(0) - exact) / (found.std(0) / math.sqrt(len(found)))

    assert errors(quadratic, symmetric=True).abs().max() < 4
    assert errors(quadratic, symmetric=False).abs().max() > 8
    assert errors(steep, symmetric=True).abs().max() > 8


def test_what_is_never_drawn_does_not_count_in_the_length_of_a_push() -> None:
    logits = torch.tensor([1.0, 0.5, 0.0, -torch.inf])
    gradients = []
    for beside in (0.0, 100.0):  # the cotangent of an item that is never drawn
        leaf = logits.clone().requires_grad_()
        mask = subset_sample(leaf, 2, method="aimle", perturbation=0.6, noise=0.0).mask
        gradients += torch.autograd.grad(mask, leaf, torch.tensor([0.0, 0.0, 1.0, beside]))
    assert gradients[0].any()
    assert torch.equal(gradients[0], gradients[1])


def test_implicit_gradients_are_differences_of_masks() -> None:
    """By hand: which of three scores are the two largest after a push along the cotangent."""
    logits = torch.tensor([1.0, 0.5, 0.0, -3.0]).requires_grad_()
    d = torch.tensor([0.0, 0.0, 1.0, 0.0])
    for perturbation, symmetric, expected in (
        (0.6, True, [0.0, -1 / 1.2, 1 / 1.2, 0.0]),
        (0.6, False, [0.0, 0.0, 0.0, 0.0]),
        (0.4, True, [0.0, 0.0, 0.0, 0.0]),
    ):
        words = {"method": "imle", "perturbation": perturbation, "symmetric": symmetric, "noise": 0.0}
        mask = subset_sample(logits, 2, **words).mask  # type: ignore[arg-type]
        torch.testing.assert_close(torch.autograd.grad(mask, logits, d)[0], torch.tensor(expected))
    size = 0.6 / logits.detach().norm().item()  # relative to the scores
    mask = subset_sample(logits, 2, method="aimle", perturbation=size, noise=0.0).mask
    torch.testing.assert_close(torch.autograd.grad(mask, logits, 7 * d)[0], 7 * torch.tensor([0, -1, 1, 0]) / 1.2)
    mask = subset_sample(logits, 2, method="aimle", noise=0.0).mask
    assert not torch.autograd.grad(mask, logits, 0 * d)[0].any()


def test_the_perturbation_settles_where_a_gradient_has_the_wanted_number_of_entries() -> None:
    generator = torch.Generator().manual_seed(0)
    for target in (1.0, 2.0):
        perturbation = AdaptivePerturbation(target, 2e-2)
        counts = []
        for _ in range(200):
            logits = torch.randn(32, 10, generator=generator).requires_grad_()
            subset = subset_sample(logits, 3, method="aimle", perturbation=perturbation, generator=generator)
            (gradient,) = torch.autograd.grad(_loss(subset.mask).sum(), logits)
            counts.append(float(gradient.count_nonzero() / 32))
        assert abs(sum(counts[-50:]) / 50 - target) < 0.25 * target
        again = AdaptivePerturbation()
        again.load_state_dict(perturbation.state_dict())
        assert again.size == perturbation.size != 1
        kept = float(again.eval().size)
        again.update(torch.tensor(0.0))
        assert again.size == kept


@pytest.mark.parametrize("words", [{"target": 0.0}, {"step": -1.0}, {"initial": -0.1}, {"decay": 1.0}])
def test_a_perturbation_out_of_range_is_refused_by_name(words: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(words))} must be"):
        AdaptivePerturbation(**words)


def test_all_first_places_are_enumerated() -> None:
    law = PlackettLuce(torch.tensor([0.1, 0.7, -0.2, 0.4]).double())
    for k in (1, 2, None):
        orders = law.orders(k)
        assert len(orders.unique(dim=0)) == len(orders) == math.perm(4, 4 if k is None else k)
        torch.testing.assert_close(law.log_prob(orders).exp().sum(), torch.ones((), dtype=torch.float64))
    with pytest.raises(ValueError, match="k must leave at most 100000 orders"):
        PlackettLuce(torch.zeros(20)).orders(5)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_learned_mask_finds_the_features_that_pay(k: int) -> None:
    worth, draw = torch.tensor([0.3, 1.0, 0.1, 0.7]), torch.Generator().manual_seed(0)
    mask = discrete.SubsetMask(4, k)
    optimizer = torch.optim.Adam(mask.parameters(), lr=0.1)
    for _ in range(60):
        relaxed = mask(16, generator=draw)
        torch.testing.assert_close(relaxed.sum(-1), torch.full((16,), float(k)))
        optimizer.zero_grad()
        (-(relaxed * worth).sum(-1).mean() + 0 * mask.weight.sum()).backward()
        optimizer.step()
    assert mask.harden().bool().nonzero().flatten().tolist() == worth.topk(k).indices.sort().values.tolist()
    drawn = mask.draw(500, generator=draw)
    assert torch.equal(drawn.sum(-1), torch.full((500,), float(k)))
    assert bool(((drawn == 0) | (drawn == 1)).all())
    assert float(drawn.detach().mean(0)[mask.harden().bool()].min()) > 0.5


@pytest.mark.usefixtures("without_shape_checks")
def test_a_learned_mask_refuses_bad_sizes() -> None:
    with pytest.raises(ValueError, match=r"k must be in 1\.\.4, got 5"):
        discrete.SubsetMask(4, 5)
    with pytest.raises(ValueError, match="temperature must be > 0"):
        discrete.SubsetMask(4, 2, temperature=0.0)
    with pytest.raises(ValueError, match="samples must be an integer >= 1"):
        discrete.SubsetMask(4, 2)(0)

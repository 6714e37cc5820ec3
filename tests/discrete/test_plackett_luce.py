"""The Plackett-Luce law: its samples follow it, are permutations, and carry a gradient."""

from __future__ import annotations

import itertools

import torch

from pullback import discrete


def test_samples_follow_the_probabilities() -> None:
    law = discrete.PlackettLuce(torch.tensor([0.5, -0.5, 1.0]).double())
    orders = torch.tensor(list(itertools.permutations(range(3))))
    exact = law.log_prob(orders).exp()
    torch.testing.assert_close(exact.sum(), torch.ones((), dtype=torch.float64))
    drawn = law.sample((40_000,), generator=torch.Generator().manual_seed(0))
    seen = (drawn.unsqueeze(1) == orders).all(-1).double().mean(0)
    assert (seen - exact).abs().max() < 4 * 0.5 / 200  # four standard errors at most
    before = (drawn.argsort(-1).unsqueeze(-1) < drawn.argsort(-1).unsqueeze(-2)).double().mean(0)
    assert (before - law.precedence()).abs().max() < 0.01
    assert orders[exact.argmax()].tolist() == law.mode().tolist()


def test_hard_samples_are_permutations_with_a_gradient() -> None:
    scores = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    matrices = discrete.PlackettLuce(scores).rsample((5,), generator=torch.Generator().manual_seed(1))
    assert matrices.shape == (5, 4, 6, 6)
    assert set(matrices.unique().tolist()) == {0.0, 1.0}
    assert (matrices.sum(-1) == 1).all()
    assert (matrices.sum(-2) == 1).all()
    (matrices @ torch.arange(6.0)).select(-1, 0).sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad.abs().sum(-1).min() > 0

"""Subsets of at most k against the probabilities of draws with replacement."""

from __future__ import annotations

import torch

from pullback import discrete


def test_an_entry_is_chosen_as_often_as_draws_with_replacement_choose_it() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, -torch.inf])
    chosen = discrete.k_hot_sample(
        logits.expand(40_000, 5), 3, hard=True, generator=torch.Generator().manual_seed(0), temperature=0.5
    )
    expected = 1 - (1 - logits.softmax(-1)) ** 3
    torch.testing.assert_close(chosen.mean(0), expected, atol=0.01, rtol=0)
    assert set(chosen.sum(-1).unique().tolist()) == {1.0, 2.0, 3.0}


def test_a_hard_subset_has_the_gradient_of_the_relaxed_one() -> None:
    grads = []
    for hard in (False, True):
        logits = torch.randn(6, generator=torch.Generator().manual_seed(1)).requires_grad_()
        draw = torch.Generator().manual_seed(2)
        mask = discrete.k_hot_sample(logits, 2, temperature=0.6, hard=hard, generator=draw)
        (mask * torch.arange(6)).sum().backward()
        grads.append(logits.grad)
    assert torch.equal(*grads)
    assert bool(grads[0].any())

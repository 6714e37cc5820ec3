"""Advantages and the clipped loss: against returns added up, and the gradient of an enumerated return."""

from __future__ import annotations

import pytest
import torch

from pullback.dynamics import generalized_advantage, ppo_loss


def test_a_full_trace_gives_returns_and_an_end_cuts_them() -> None:
    rewards, values = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0.5, 0.5, 0.5, 0.5, 3.0])
    ended = torch.tensor([False, True, False, False])
    found = generalized_advantage(rewards, values, discount=0.5, trace=1.0, ended=ended)
    returns = torch.tensor([1 + 1.0, 2.0, 4 + 4 + 0.75, 8 + 1.5])
    torch.testing.assert_close(found.target, returns)
    torch.testing.assert_close(found.advantage, returns - 0.5)


def test_no_step_has_no_advantage() -> None:
    assert generalized_advantage(torch.zeros(2, 0), torch.ones(2, 1)).advantage.shape == (2, 0)


def test_the_first_step_climbs_the_return() -> None:
    """At the policy that acted, the gradient of the surrogate over all actions is that of the expected reward."""
    logits = torch.tensor([0.3, -0.2, 1.0], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 4.0, -2.0], dtype=torch.float64)
    log_prob = logits.log_softmax(-1)
    (exact,) = torch.autograd.grad((log_prob.exp() * reward).sum(), logits)
    log_prob = logits.log_softmax(-1)
    # Each action as often as the policy takes it: weights in the advantages.
    zero = torch.zeros(3, dtype=torch.float64)
    loss = ppo_loss(log_prob, log_prob.detach(), 3 * reward * log_prob.detach().exp(), zero, zero)
    torch.testing.assert_close(torch.autograd.grad(loss.total, logits)[0], -exact)


def test_the_clip_stops_what_was_favoured_and_lets_mistakes_back() -> None:
    old = torch.tensor([0.2, 0.2, 0.2, 0.2]).log()
    log_prob = torch.tensor([0.4, 0.4, 0.1, 0.1]).log().requires_grad_()
    advantage, zero = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.zeros(4)
    loss = ppo_loss(log_prob, old, advantage, zero, zero, clip=0.2)
    assert loss.clipped == 1
    assert torch.autograd.grad(loss.total, log_prob)[0].tolist() == pytest.approx([0, 0.5, -0.125, 0])


def test_parts_add_up() -> None:
    some, zero = torch.tensor([0.5, 1.5]), torch.zeros(2)
    loss = ppo_loss(zero, zero, some, some, zero, value_weight=2.0, entropy=some, entropy_weight=0.1)
    assert loss.total.item() == pytest.approx(-1.0 + 2 * 1.25 - 0.1)
    assert (loss.policy.item(), loss.value.item(), loss.entropy.item()) == pytest.approx((-1.0, 1.25, 1.0))

"""Markov chains and decision processes against simulation, enumeration and what is known of small ones."""

from __future__ import annotations

import pytest
import torch
from tests.contracts.law import seeded

from pullback import dynamics
from pullback.core.errors import ConvergenceError
from pullback.dynamics import MarkovChain, MarkovDecisionProcess

UNIFORM = torch.full((2, 2), 0.5)


def _gamble() -> MarkovDecisionProcess:
    """State 1 may stay (0), or leave for the win 0 or the loss 2 with even odds (1)."""
    transition = torch.zeros(3, 2, 3, dtype=torch.float64)
    transition[0, :, 0] = transition[2, :, 2] = transition[1, 0, 1] = 1.0
    transition[1, 1, 0] = transition[1, 1, 2] = 0.5
    return MarkovDecisionProcess(transition, torch.zeros(3, 2, dtype=torch.float64), 1.0)


def test_a_discount_of_one_counts_what_is_earned_before_the_end() -> None:
    process = _gamble()
    won = process.transition[:, :, 0] * torch.tensor([0.0, 1.0, 1.0])[:, None]
    winning = MarkovDecisionProcess(process.transition, won, 1.0)
    assert winning.optimal().values.tolist() == [0.0, 0.5, 0.0]
    assert winning.optimal().policy[1] == 1  # to stay promises as much, and never gives it
    lost = -process.transition[:, :, 2] * torch.tensor([1.0, 1.0, 0.0])[:, None]
    losing = MarkovDecisionProcess(process.transition, lost, 1.0)
    assert losing.optimal().values.tolist() == [0.0, 0.0, 0.0]
    assert losing.evaluate(torch.tensor([0, 1, 0])).tolist() == [0.0, -0.5, 0.0]
    with pytest.raises(ValueError, match="rewards must be 0 in states that are returned to for ever"):
        MarkovDecisionProcess(process.transition, torch.ones(3, 2).double(), 1.0).evaluate(torch.tensor([0, 1, 0]))


def test_an_optimal_value_has_the_gradient_of_its_policy() -> None:
    reward = torch.tensor([[0.0, 0.0], [0.0, 1.0]], requires_grad=True)
    transition = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    best = MarkovDecisionProcess(transition, reward, 0.5).optimal()
    (slope,) = torch.autograd.grad(best.values[0], reward)
    assert slope.tolist() == [[0.0, 1.0], [0.0, 1.0]]  # the way there once, then 1/2 + 1/4 + ...


def test_sampled_transitions_have_the_laws_of_the_process() -> None:
    g = seeded()
    transition = torch.rand(3, 2, 3, generator=g)
    transition /= transition.sum(-1, keepdim=True)
    process = MarkovDecisionProcess(transition, torch.rand(3, 2, generator=g), 0.9)
    policy = torch.tensor([[0.2, 0.8], [1.0, 0.0], [0.5, 0.5]])
    seen = process.sample(policy, 4000, steps=10, generator=g)
    assert len(seen.state) == 40_000
    assert not seen.done.any()
    counts = torch.zeros(3, 2, 3)
    counts.index_put_((seen.state, seen.action, seen.next_state), torch.ones(40_000), accumulate=True)
    assert counts[1, 1].sum() == 0
    share = counts.sum(-1) / counts.sum((1, 2))[:, None]
    assert (share - policy).abs().max() < 0.02
    assert (counts[0, 1] / counts[0, 1].sum() - transition[0, 1]).abs().max() < 0.02
    assert torch.equal(seen.reward, process.reward[seen.state, seen.action])
    last = seen.next_state[-4000:]
    assert (last.bincount(minlength=3) / 4000 - process.stationary(policy)).abs().max() < 0.03


def test_an_episode_ends_where_nothing_can_be_left() -> None:
    seen = _gamble().sample(torch.full((3, 2), 0.5).double(), 500, steps=100, generator=seeded())
    assert (seen.state == 1).all()
    assert torch.equal(seen.done, seen.next_state != 1)
    assert seen.done.sum() == 500


def test_four_rooms_are_joined_and_symmetric() -> None:
    world = dynamics.four_rooms()
    chain = world.process.chain(torch.full((104, 4), 0.25))
    assert torch.equal(chain.transition, chain.transition.T)
    assert (chain.stationary() - 1 / 104).abs().max() < 1e-6
    assert bool(chain.is_reversible())
    steps = world.cells[world.process.transition.argmax(-1)] - world.cells[:, None]
    moves = torch.tensor([[-1, 0], [1, 0], [0, -1], [0, 1]])
    assert bool(((steps == moves) | (steps == 0)).all())  # each action goes its way, or nowhere
    with pytest.raises(ValueError, match="size must be odd, got 10"):
        dynamics.four_rooms(10)


def test_a_ring_is_not_reversible_and_a_broken_chain_has_no_law() -> None:
    ring = 0.9 * torch.eye(4).roll(1, -1) + 0.025
    assert not bool(MarkovChain(ring).is_reversible())
    two = torch.block_diag(UNIFORM, UNIFORM)
    with pytest.raises(ValueError, match="state 0 never leads to state 2"):
        MarkovChain(two).stationary()
    both = torch.tensor([[0.0, 0.5, 0.5], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    assert MarkovChain(both).stationary().tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    with pytest.raises(ValueError, match="rows that sum to 1"):
        MarkovChain(2 * UNIFORM)
    with pytest.raises(ValueError, match="weights must be symmetric"):
        dynamics.metropolis_walk(torch.tensor([[0.0, 1.0], [2.0, 0.0]]))


def test_value_iteration_says_when_it_is_not_done() -> None:
    process = MarkovDecisionProcess(UNIFORM[:, None].double(), torch.ones(2, 1).double(), 0.999)
    with pytest.raises(ConvergenceError, match="still changes by"):
        process.optimal(max_iterations=5)
    assert process.optimal().values.tolist() == pytest.approx([1000.0, 1000.0])

"""Targets of interventions against enumeration: graphs and masks of two nodes, draws of known networks."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pullback import causal


def test_graphs_drawn_from_beliefs_have_no_cycles_and_the_law_of_both_phases() -> None:
    beliefs = torch.tensor([[0.0, 0.7], [0.4, 0.0]]).double()
    g = torch.Generator().manual_seed(0)
    graphs = causal.sample_dags_from_beliefs(beliefs, 20_000, temperature=0.5, generator=g)
    assert not (graphs & graphs.mT).any()
    first = math.exp(-0.4 / 0.5) / (math.exp(-0.4 / 0.5) + math.exp(-0.7 / 0.5))  # node 0 has the weaker parent
    error = 4 * (0.25 / 20_000) ** 0.5
    assert graphs[:, 0, 1].double().mean().item() == pytest.approx(first * 0.7, abs=error)
    assert graphs[:, 1, 0].double().mean().item() == pytest.approx((1 - first) * 0.4, abs=error)
    many = causal.sample_dags_from_beliefs(torch.rand(3, 7, 7, generator=g), 200, generator=g)
    assert many.shape == (200, 3, 7, 7)
    assert causal.is_acyclic(many).all()
    with pytest.raises(ValueError, match=r"beliefs must be in \[0, 1\]"):
        causal.sample_dags_from_beliefs(2 * beliefs, 2)


def test_order_follows_certain_beliefs() -> None:
    shuffled = torch.tensor([3, 1, 4, 0, 2])
    certain = torch.ones(5, 5).triu(1)[shuffled][:, shuffled]
    graphs = causal.sample_dags_from_beliefs(certain, 50, temperature=0.01, generator=torch.Generator().manual_seed(0))
    assert (graphs == certain.bool()).all()


@pytest.mark.parametrize("count", [5, 50])
def test_mean_of_the_belief_gradient_is_that_of_all_numbers_of_masks(count: int) -> None:
    # One arc, whose masks raise the log-likelihood by b: enumerate how many of the masks have it.
    p, b = 0.3, 1.2
    exact, limit = 0.0, p - p * math.exp(b) / (1 - p + p * math.exp(b))
    for k in range(count + 1):
        share = k * math.exp(b) / (count - k + k * math.exp(b))
        exact += math.comb(count, k) * p**k * (1 - p) ** (count - k) * (p - share)
    g = torch.Generator().manual_seed(0)
    masks = (torch.rand(count, 10_000, 2, 2, generator=g) < p).double()
    likelihoods = torch.stack([torch.zeros(count, 10_000).double(), b * masks[..., 0, 1]], -1)
    beliefs = torch.full((10_000, 2, 2), p).double()
    found = causal.belief_gradient(likelihoods, masks, beliefs)[:, 0, 1]
    assert (found.mean() - exact).abs() <= 4 * found.std() / 100
    assert abs(exact - limit) <= 1.5 * abs(limit) / count  # and it tends to the posterior


def test_arcs_into_a_target_do_not_move_and_penalties_are_written_out() -> None:
    belief = causal.GraphBelief(3, batch=(2,), sparsity=0.3, cycles=2.0)
    with torch.no_grad():
        belief.logits += torch.randn(belief.logits.shape, generator=torch.Generator().manual_seed(0))
    g = torch.Generator().manual_seed(1)
    masks = belief.sample(4000, generator=g)
    assert masks.shape == (4000, 2, 3, 3)
    assert not masks.diagonal(dim1=-2, dim2=-1).any()
    assert (masks.double().mean(0) - belief().detach()).abs().max() < 0.04
    targets = torch.tensor([[True, False, False], [False, False, True]])
    likelihoods = torch.randn(4000, 2, 3, generator=g)
    gradient = causal.belief_gradient(likelihoods, masks.float(), belief().detach(), targets=targets)
    assert (gradient[0, :, 0] == 0).all()
    assert (gradient[1, :, 2] == 0).all()
    assert (gradient[0, 0, 1:] != 0).all()
    for each, p in zip(belief.penalty().detach(), belief().detach(), strict=True):
        pairs = sum(math.cosh(p[i, j] * p[j, i]) - 1 for i, j in itertools.combinations(range(3), 2))
        assert each.item() == pytest.approx(0.3 * p.sum().item() + 2 * pairs, rel=1e-5)


def _means(network: causal.BayesianNetwork, node: int) -> Tensor:
    """Probability of value 1 of every node if ``node`` is set uniformly, by summing over all values."""
    everything = torch.tensor(list(itertools.product((0, 1), repeat=len(network.names))))
    targets = torch.arange(len(network.names)) == node
    law = network.log_prob(everything, targets=targets).exp() / 2
    return (law[:, None] * everything).sum(0)


def test_discrepancy_of_two_graphs_is_the_enumerated_one() -> None:
    g = torch.Generator().manual_seed(0)
    forward = causal.random_bayesian_network(torch.tensor([[0, 1], [0, 0]]), generator=g)
    backward = causal.random_bayesian_network(torch.tensor([[0, 0], [1, 0]]), generator=g)
    for node in range(2):
        draws = 100_000
        samples = []
        for network in (forward, backward):
            values = torch.randint(2, (draws,), generator=g)
            samples.append(network.sample(draws, interventions={node: values}, generator=g).double())
        found = causal.intervention_discrepancy(torch.stack(samples), node)
        p, q = _means(forward, node)[1 - node].item(), _means(backward, node)[1 - node].item()
        between, within = (p - q) ** 2 / 2, draws * (p * (1 - p) + q * (1 - q))
        assert found.between.item() == pytest.approx(between, rel=0.1)
        assert found.within.item() == pytest.approx(within, rel=0.02)
        coded = torch.nn.functional.one_hot(torch.stack(samples).long()).double()
        twice = causal.intervention_discrepancy(
            coded, node, one_hot=True
        )  # each class moves as far, in two coordinates
        assert twice.ratio.item() == pytest.approx(found.ratio.item())


def test_discrepancy_masks_the_target_and_is_zero_where_all_agree() -> None:
    x = torch.zeros(2, 5, 3).double()
    x[1, :, 0] = 1.0
    assert causal.intervention_discrepancy(x, 0).ratio == 0
    assert causal.intervention_discrepancy(x, 0, mask=False).ratio == math.inf
    both = causal.intervention_discrepancy(x.expand(2, 2, 5, 3), torch.tensor([0, 1]))
    assert both.between.tolist() == [0.0, 0.5]


def test_mechanisms_learn_the_conditionals_of_any_set_of_parents() -> None:
    g = torch.Generator().manual_seed(0)
    world = causal.random_bayesian_network(torch.tensor([[0, 0, 1], [0, 0, 1], [0, 0, 0]]), generator=g)
    x = world.sample(5000, generator=g)
    mechanisms = causal.CategoricalMechanisms(3, 2, generator=g)
    optimizer = torch.optim.Adam(mechanisms.parameters(), lr=0.02)
    for _ in range(300):
        masks = torch.rand(8, 3, 3, generator=g) < 0.5
        chosen = x[torch.randint(5000, (256,), generator=g)]
        optimizer.zero_grad()
        (-mechanisms.log_prob(chosen, masks).mean()).backward()
        optimizer.step()
    rows = torch.tensor(list(itertools.product((0, 1), repeat=3)))
    with torch.no_grad():
        found = mechanisms.log_prob(rows, world.adjacency)[:, 2].exp()
        alone = mechanisms.log_prob(rows, torch.zeros(3, 3))[:, 2].exp()
    expected = world.tables["2"][rows[:, 0], rows[:, 1], rows[:, 2]]
    assert (found - expected).abs().max() < 0.06
    share = x[:, 2].double().mean()
    assert (alone - torch.where(rows[:, 2] == 1, share, 1 - share)).abs().max() < 0.06
    targets = torch.tensor([True, False, False])
    assert (mechanisms.log_prob(rows, world.adjacency, targets=targets)[:, 0] == 0).all()
    drawn = mechanisms.sample(world.adjacency.expand(2, 3, 3), 20_000, generator=g)
    assert torch.equal(drawn[0], drawn[1])  # graphs share the draws
    assert (drawn[0].double().mean(0) - x.double().mean(0)).abs().max() < 0.03
    held = mechanisms.sample(world.adjacency, 20_000, targets=torch.tensor([False, True, False]), generator=g)
    assert held[:, 1].double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert held.double().mean(0)[2].item() == pytest.approx(_means(world, 1)[2].item(), abs=0.03)
    with pytest.raises(ValueError, match="one with a cycle"):
        mechanisms.sample(torch.ones(3, 3) - torch.eye(3), 2)
    with pytest.raises(ValueError, match=r"x must be integers in 0\.\.1"):
        mechanisms.log_prob(rows + 1, world.adjacency)


def test_samples_of_graphs_follow_their_conditionals_and_their_targets() -> None:
    g = torch.Generator().manual_seed(0)
    mechanisms = causal.CategoricalMechanisms(4, 3, (5, 6), batch=(2,), generator=g)
    for weight in mechanisms.networks.weights:
        weight.data.mul_(4.0)
    graphs = causal.sample_dags_from_beliefs(torch.full((2, 4, 4), 0.5), 3, generator=g)  # every one its own order
    targets = torch.nn.functional.one_hot(torch.tensor([[0, 1], [2, 3], [3, 0]]), 4).bool()
    x = mechanisms.sample(graphs, 20_000, targets=targets, generator=g)
    assert x.shape == (3, 2, 20_000, 4)
    rows = torch.tensor(list(itertools.product(range(3), repeat=4)))
    with torch.no_grad():
        every = mechanisms.log_prob(rows.expand(2, 81, 4), graphs).double()
    joint = torch.where(targets.unsqueeze(-2), -math.log(3), every).sum(-1).exp()
    assert torch.allclose(joint.sum(-1), torch.ones(3, 2).double(), atol=1e-5)
    found = torch.nn.functional.one_hot((x * torch.tensor([27, 9, 3, 1])).sum(-1), 81).double().mean(-2)
    assert (found - joint).abs().max() < 5 * math.sqrt(0.25 / 20_000)


class _Known:
    """A model in which node 1 follows node 0 where there is an arc, and node 2 follows nobody."""

    def sample(self, adjacency: Tensor, n: int, *, targets: Tensor, generator: torch.Generator | None = None) -> Tensor:
        x = torch.randn(*adjacency.shape[:-2], n, 3, generator=generator)
        x[..., 0] = torch.where(targets[..., 0, None], 5.0, x[..., 0])
        x[..., 1] = x[..., 1] + adjacency[..., 0, 1, None] * x[..., 0] * ~targets[..., 1, None]
        return x


def test_the_next_target_is_where_graphs_disagree() -> None:
    open_arc = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    g = torch.Generator().manual_seed(0)
    choice = causal.next_target(open_arc.expand(4, 3, 3), _Known(), generator=g)
    assert choice.target.tolist() == [0, 0, 0, 0]
    assert choice.scores.shape == (4, 3)
    other = causal.next_target(open_arc, _Known(), exclude=(0,), generator=g)
    assert other.target.item() in (1, 2)
    drawn = causal.next_target(open_arc.expand(500, 3, 3), _Known(), policy="softmax", temperature=1e6, generator=g)
    assert (drawn.target.bincount(minlength=3) > 100).all()  # at that temperature every node is as good
    for options, message in (
        ({"graphs": 1}, "graphs must be an integer >= 2"),
        ({"draws": 1}, "draws must be an integer >= 2"),
        ({"exclude": (0, 1, 2)}, "exclude must leave a node"),
        ({"exclude": (3,)}, r"a node of exclude must be in 0\.\.2"),
        ({"policy": "argmin"}, "policy must be"),
    ):
        with pytest.raises(ValueError, match=message):
            causal.next_target(open_arc, _Known(), **options)

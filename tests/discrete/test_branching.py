"""Trees of shared layers: sampled as the logits say, pruned to what they compute, scored as scikit-learn does."""

from __future__ import annotations

import itertools

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor, nn

from pullback.discrete import BranchingLayer, BranchingNetwork, grouping_score, search_branching


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _network() -> BranchingNetwork:
    layers = [[nn.Linear(2, 3) for _ in range(2)], [nn.Linear(3, 3) for _ in range(3)]]
    return BranchingNetwork(layers, [nn.Linear(3, 1) for _ in range(4)])


@pytest.mark.parametrize("method", ["gumbel", "straight_through", "reinmax", "uniform"])
def test_every_child_has_one_parent_drawn_as_often_as_its_logits_say(method: str) -> None:
    layer = BranchingLayer(3, 2)
    nn.init.normal_(layer.logits, generator=_seeded())
    generator, count = _seeded(1), 3000
    draws = torch.stack([layer(torch.eye(3), method=method, generator=generator) for _ in range(count)]).detach()
    assert ((draws == 0) | (draws == 1)).all()
    assert (draws.sum(-1) == 1).all()
    p = layer.probabilities().detach() if method != "uniform" else torch.full((2, 3), 1 / 3)
    deviation = ((draws.sum(0) - count * p) ** 2 / (count * p)).sum(-1)
    assert (deviation < 13.8).all()  # p = .001 of two degrees of freedom


def test_the_logits_learn_which_parent_is_better() -> None:
    layer = BranchingLayer(2, 3)
    optimizer, generator = torch.optim.Adam(layer.parameters(), lr=0.1), _seeded()
    outputs, wanted = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0], [1.0]])
    for _ in range(60):
        optimizer.zero_grad()
        (layer(outputs, generator=generator) - wanted).square().sum().backward()
        optimizer.step()
    assert layer.harden().tolist() == [0, 1, 1]


def test_a_pruned_network_computes_what_the_tree_says_with_no_more_nodes() -> None:
    network, x = _network(), torch.randn(5, 2, generator=_seeded())
    tree = (torch.tensor([1, 0, 1]), torch.tensor([0, 2, 2, 0]))
    pruned = network.pruned(tree)
    for number, output in enumerate(pruned(x)):
        middle = int(tree[1][number])
        first = network.layers[0][int(tree[0][middle])]
        torch.testing.assert_close(output, network.heads[number](network.layers[1][middle](first(x))))
    assert sum(p.numel() for p in pruned.parameters()) == 9 + 2 * 12 + 4 * 4
    for branching, parents in zip(network.branchings, tree, strict=True):
        with torch.no_grad():
            branching.logits.copy_(1000 * nn.functional.one_hot(parents, branching.logits.shape[1]))
    assert [parents.tolist() for parents in network.extract_tree()] == [parents.tolist() for parents in tree]
    assert network.expected_parameters().item() == 9 + 2 * 12 + 4 * 4
    for mine, theirs in zip(network(x, generator=_seeded()), pruned(x), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_expected_parameters_are_the_mean_over_all_trees_and_so_is_their_gradient() -> None:
    """Each tree is counted, and weighed by its probability."""
    network = _network().double()
    first, second = (branching.logits for branching in network.branchings)
    for logits in (first, second):
        nn.init.normal_(logits, generator=_seeded())
    total = torch.zeros((), dtype=torch.float64)
    for tops in itertools.product(range(3), repeat=4):
        for bottoms in itertools.product(range(2), repeat=3):
            likely = torch.stack([second.softmax(1)[task, node] for task, node in enumerate(tops)]).prod()
            likely = (
                likely * torch.stack([first.softmax(1)[node, parent] for node, parent in enumerate(bottoms)]).prod()
            )
            used = set(tops)
            total = total + likely * (4 * 4 + 12 * len(used) + 9 * len({bottoms[node] for node in used}))
    expected = network.expected_parameters()
    torch.testing.assert_close(expected, total)
    gradients = (torch.autograd.grad(value, (first, second)) for value in (expected, total))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs)

    def of_logits(*logits: Tensor) -> Tensor:
        names = ("branchings.0.logits", "branchings.1.logits")
        tensors = dict(zip(names, logits, strict=True))
        with torch.nn.utils.stateless._reparametrize_module(network, tensors):
            return network.expected_parameters()

    assert torch.autograd.gradcheck(of_logits, (first, second))


def test_a_network_and_a_tree_are_refused_by_name(without_shape_checks: None) -> None:
    with pytest.raises(ValueError, match=r"layers\[1\] must have at least one node"):
        BranchingNetwork([[nn.Identity()], []], [nn.Identity()])
    with pytest.raises(ValueError, match="heads must be at least one task"):
        BranchingNetwork([[nn.Identity()]], [])
    with pytest.raises(ValueError, match=r"nodes of layers\[0\] must return one shape, got \(1, 2\) and \(1, 3\)"):
        BranchingNetwork([[nn.Linear(2, 2), nn.Linear(2, 3)]], [nn.Identity()])(torch.ones(1, 2))
    tree = (torch.tensor([1, 0, 1]), torch.tensor([0, 3, 2, 0]))
    with pytest.raises(ValueError, match=r"tree\[1\] must name parents in 0\.\.2, got \[0, 3, 2, 0\]"):
        _network().pruned(tree)
    with pytest.raises(ValueError, match="tree must have 2 layers, got 1"):
        _network().pruned(tree[:1])
    with pytest.raises(ValueError, match="layers must have at most 12 nodes"):
        BranchingNetwork([[nn.Identity()] * 13], [nn.Identity()]).expected_parameters()


def test_the_search_with_the_lowest_loss_is_the_best_and_nan_never_is() -> None:
    def train(network: BranchingNetwork, number: int) -> None:
        with torch.no_grad():
            network.branchings[1].logits[0, number % 3] = 1

    losses = [float("nan"), 3.0, 1.0, 2.0]
    found = search_branching(lambda number: _network(), train, lambda network: losses.pop(0), restarts=4)
    assert found.best == 2
    assert [tree[1][0].item() for tree in found.trees] == [0, 1, 2, 0]
    with pytest.raises(ValueError, match="validate must return a number"):
        search_branching(lambda number: _network(), train, lambda network: float("nan"), restarts=1)
    with pytest.raises(TypeError, match="train must be callable"):
        search_branching(lambda number: _network(), None, lambda network: 0.0)


@pytest.mark.parametrize("seed", range(4))
def test_the_score_of_each_layer_is_scikit_learns(seed: int) -> None:
    draw = _seeded(seed)
    tree = (torch.randint(2, (3,), generator=draw), torch.randint(3, (8,), generator=draw))
    groups = torch.randint(3, (8,), generator=draw)

    def expected(node: Tensor) -> float:
        return adjusted_rand_score(groups.numpy(), node.numpy())

    assert grouping_score(tree, groups) == pytest.approx((expected(tree[0][tree[1]]), expected(tree[1])))


def test_a_score_refuses_by_name(without_shape_checks: None) -> None:
    assert grouping_score([torch.tensor([0, 0])], torch.tensor([4, 4])) == (1.0,)
    with pytest.raises(ValueError, match=r"tree\[-1\] must have shape"):
        grouping_score([torch.tensor([0, 0])], torch.tensor([0, 1, 1]))
    with pytest.raises(TypeError, match="groups must hold integers"):
        grouping_score([torch.tensor([0, 0])], torch.tensor([0.0, 1.0]))

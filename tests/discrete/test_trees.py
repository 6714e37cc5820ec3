"""Soft trees against ordinary ones: the hard limit, responses behind a linear head, and what written memories hold."""

from __future__ import annotations

import copy

import pytest
import torch
from sklearn.tree import DecisionTreeRegressor
from torch import Tensor

from pullback import discrete
from pullback.discrete import HardForest, ResponseForest, SoftTree


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _if_else(tree: SoftTree, x: Tensor) -> list[list[int]]:
    attention = tree.weights_of_features().detach()
    found = []
    for sample in x:
        leaves = []
        for t in range(tree.trees):
            node, leaf = 0, 0
            for level in range(tree.depth):
                k = level if tree.oblivious else node
                right = int(not float(attention[t, k] @ sample) > float(tree.threshold.detach()[t, k]))
                node, leaf = 2 * node + 1 + right, 2 * leaf + right
            leaves.append(leaf)
        found.append(leaves)
    return found


@pytest.mark.parametrize("oblivious", [False, True])
@pytest.mark.parametrize("gate", ["sigmoid", "entmoid"])
def test_sharp_gates_choose_the_leaf_of_questions_asked_one_by_one(oblivious: bool, gate: str) -> None:
    tree = SoftTree(4, 3, trees=3, oblivious=oblivious, gate=gate, generator=_seeded())
    x = torch.randn(100, 4, generator=_seeded(1))
    tree.initialise(x, generator=_seeded(2))
    x = x + 0.05  # a threshold is a sample's own value
    expected = torch.tensor(_if_else(tree, x))
    assert torch.equal(tree.leaf(x), expected)
    with torch.no_grad():
        tree.log_temperature.fill_(-12.0)
        seen = torch.einsum("nf,tkf->ntk", x, tree.weights_of_features()) - tree.threshold
        far = seen.abs().amin((-1, -2)) > 1e-3
    assert far.float().mean() > 0.5
    assert torch.equal(tree(x).argmax(-1)[far], expected[far])
    assert tree(x)[far].amax(-1).min() > 0.99


def test_logarithms_do_not_underflow_where_weights_do() -> None:
    tree = SoftTree(2, 3, generator=_seeded())
    x = torch.tensor([[500.0, -500.0]])
    log_weights = tree.log_weights(x)
    assert (tree(x) == 0).any()
    assert log_weights.isfinite().all()
    assert log_weights.min() < -100
    shut = SoftTree(2, 3, gate="entmoid", generator=_seeded())
    closed = shut.log_weights(x.requires_grad_())
    assert torch.equal(closed.exp() > 0, shut(x) > 0)
    closed[closed > -torch.inf].sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_attention_of_entmax_is_mostly_zero_and_of_softmax_never() -> None:
    x = torch.randn(20, 50, generator=_seeded())
    for attention, share in (("entmax", 0.5), ("softmax", 0.0)):
        tree = SoftTree(50, 4, trees=5, attention=attention, generator=_seeded(1))
        tree.initialise(x, generator=_seeded(2))
        weights = tree.weights_of_features()
        torch.testing.assert_close(weights.sum(-1), torch.ones(5, 15))
        zeros = (weights == 0).float().mean()
        assert zeros > share if share else zeros == 0


def test_thresholds_start_at_values_of_the_data(without_shape_checks: None) -> None:
    tree = SoftTree(3, 3, trees=2, generator=_seeded())
    x = torch.randn(40, 3, generator=_seeded(1))
    tree.initialise(x, generator=_seeded(2))
    seen = torch.einsum("nf,tkf->tkn", x, tree.weights_of_features())
    assert ((seen - tree.threshold.unsqueeze(-1)).abs().amin(-1) < 1e-6).all()
    # Half a gate open or shut on average: the temperature is the mean distance.
    margins = (seen - tree.threshold.unsqueeze(-1)) / tree.log_temperature.exp().unsqueeze(-1)
    torch.testing.assert_close(margins.abs().mean(-1), torch.ones(2, 7))
    with pytest.raises(ValueError, match=r"x must be samples \[n, features\]"):
        tree.initialise(x[0])


def test_a_linear_head_is_a_forest_of_other_responses() -> None:
    x = torch.randn(30, 4, generator=_seeded(1), dtype=torch.float64)
    forest = ResponseForest(4, 3, depth=3, trees=2, memory=8, generator=_seeded()).double()
    plain = ResponseForest(4, 3, depth=3, trees=2, memory=None, head="none", generator=_seeded()).double()
    plain.tree.load_state_dict(forest.tree.state_dict())
    with torch.no_grad():
        plain.memory.copy_(forest.head(forest.memory))
    torch.testing.assert_close(plain(x), forest(x), rtol=0, atol=1e-12)
    hard = forest.harden()
    assert hard.response.shape == (2, 8, 3)
    with torch.no_grad():
        forest.tree.log_temperature.fill_(-20.0)
    torch.testing.assert_close(hard.predict(x), forest(x), rtol=0, atol=1e-6)


def test_a_hard_mlp_forest_keeps_its_head() -> None:
    x = torch.randn(30, 4, generator=_seeded(1))
    forest = ResponseForest(4, 3, depth=2, trees=2, memory=8, head="mlp", oblivious=True, generator=_seeded())
    hard = copy.deepcopy(forest).harden()
    with torch.no_grad():
        forest.tree.log_temperature.fill_(-20.0)
    torch.testing.assert_close(hard.predict(x), forest(x), rtol=0, atol=1e-5)


def test_written_memory_rests_at_the_mean_of_its_leaf() -> None:
    x = torch.randn(200, 3, generator=_seeded(1), dtype=torch.float64)
    target = torch.randn(200, 2, generator=_seeded(2), dtype=torch.float64)
    forest = ResponseForest(3, 2, depth=3, memory=2, head="none", write=True, generator=_seeded()).double()
    assert "memory" not in dict(forest.named_parameters())
    for _ in range(200):
        forest.write(x, target, rate=0.5)
    weights = forest.tree(x)[:, 0]
    mean = weights.T @ target / weights.sum(0).unsqueeze(-1)
    torch.testing.assert_close(forest.memory[0], mean.detach(), rtol=0, atol=1e-9)


def test_the_hard_fixed_point_is_the_response_of_a_classical_tree() -> None:
    x = torch.randn(300, 1, generator=_seeded(1), dtype=torch.float64)
    y = x.sign() + 0.1 * torch.randn(300, 1, generator=_seeded(2), dtype=torch.float64)
    classical = DecisionTreeRegressor(max_depth=1).fit(x, y)
    forest = ResponseForest(1, 1, depth=1, head="none", memory=None, write=True, generator=_seeded()).double()
    with torch.no_grad():
        forest.tree.threshold.fill_(float(classical.tree_.threshold[0]))
        forest.tree.log_temperature.fill_(-20.0)
    for _ in range(60):
        forest.write(x, y)
    torch.testing.assert_close(forest.harden().predict(x)[:, 0], torch.from_numpy(classical.predict(x)))


def test_a_forest_learns() -> None:
    x = torch.randn(256, 2, generator=_seeded(1))
    label = (x[:, 0] * x[:, 1] > 0).long()  # no single question tells
    forest = ResponseForest(2, 2, depth=3, trees=4, memory=8, generator=_seeded())
    forest.initialise(x, generator=_seeded(2))
    optimizer = torch.optim.Adam(forest.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(forest(x), label).backward()
        optimizer.step()
    assert (forest(x).argmax(-1) == label).float().mean() > 0.95


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"depth": 0}, ValueError, r"depth must be in 1..16, got 0"),
        ({"depth": 17}, ValueError, r"depth must be in 1..16, got 17"),
        ({"depth": 2.0}, TypeError, "depth must be an integer"),
        ({"depth": 2, "trees": 0}, ValueError, "trees must be an integer >= 1"),
        ({"depth": 2, "attention": "entmaxx"}, ValueError, "attention must be one of 'entmax'"),
        ({"depth": 2, "gate": "step"}, ValueError, "gate must be one of 'sigmoid', 'entmoid'"),
        ({"depth": 2, "head": "tail"}, ValueError, "head must be one of 'none'"),
        ({"depth": 2, "head": "none", "memory": 7}, ValueError, r"memory must be outputs \(2\) or None without a head"),
    ],
)
def test_unfit_forests_are_refused(options: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        ResponseForest(3, 2, **options)


def test_only_a_forest_that_is_written_can_be_written(without_shape_checks: None) -> None:
    x, target = torch.randn(4, 3), torch.randn(4, 16)
    with pytest.raises(ValueError, match="the forest must be made with write=True"):
        ResponseForest(3, 2, depth=2).write(x, target)
    with pytest.raises(ValueError, match=r"target must have shape \(4, 16\), got \(4, 3\)"):
        ResponseForest(3, 2, depth=2, write=True).write(x, target[:, :3])


def test_integers_are_no_features(without_shape_checks: None) -> None:
    with pytest.raises(TypeError, match="x must be a floating tensor"):
        SoftTree(3, 2)(torch.zeros(2, 3).long())


def test_one_memory_is_read_by_many_addresses() -> None:
    memory, weights = torch.randn(3, 4, 5), torch.softmax(torch.randn(7, 3, 4), -1)
    expected = torch.stack([torch.stack([weights[n, t] @ memory[t] for t in range(3)]) for n in range(7)])
    torch.testing.assert_close(discrete.memory_read(memory, weights), expected)


def test_a_hard_forest_can_be_made_by_hand() -> None:
    forest = HardForest(torch.eye(2)[None, :1], torch.zeros(1, 1), torch.tensor([[[1.0], [2.0]]]), 1)
    assert forest.predict(torch.tensor([[3.0, 0.0], [-3.0, 9.0]])).flatten().tolist() == [1.0, 2.0]

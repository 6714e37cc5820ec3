"""Episodes go to the model that explains them; clusters and conflicts are counted right."""

from __future__ import annotations

import itertools
import math

import networkx
import pytest
import torch
from torch import Tensor, nn

from pullback.discrete import episode_loss, mapping_rank, match_clusters


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _squares(prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target) ** 2


def test_only_the_chosen_model_learns_from_an_episode() -> None:
    models = [nn.Linear(1, 1) for _ in range(3)]
    for number, model in enumerate(models):
        nn.init.constant_(model.weight, number - 1.0)
    x = torch.randn(1, 4, 1, generator=_seeded())
    with torch.no_grad():
        y = models[1](x) + 0.01
    found = episode_loss(models, x, y, _squares)
    found.loss.backward()
    assert found.choice.tolist() == [1]
    assert [bool(model.weight.grad is not None and model.weight.grad.any()) for model in models] == [False, True, False]
    soft = episode_loss(models, x, y, _squares, temperature=10.0)
    assert not soft.weights.requires_grad
    soft.loss.backward()
    assert all(model.weight.grad.any() for model in models)


def test_models_without_an_episode_take_over_those_that_are_explained_worst() -> None:
    """Model 0 is the best everywhere, by 0, 1, 4 and 9; the two others get the last two and nothing else."""
    x = torch.zeros(4, 2)
    y = torch.tensor([0.0, 1.0, 2.0, 3.0])[:, None].expand(4, 2)
    found = episode_loss([torch.zeros_like, lambda t: t - 5, lambda t: t - 6], x, y, _squares, revive=True)
    assert found.choice.tolist() == [0, 0, 0, 0]
    assert found.weights.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert found.loss.item() == (0 + 1 + 8**2 + 8**2) / 4
    kept = episode_loss([torch.zeros_like, lambda t: t + 3], x, y, _squares, revive=True)
    assert kept.weights.argmax(1).equal(kept.choice), "every model has an episode"


def test_a_model_that_diverged_is_not_chosen() -> None:
    x = torch.ones(2, 3)
    found = episode_loss([lambda t: t * math.nan, lambda t: t + 1], x, x, _squares)
    assert found.choice.tolist() == [1, 1]
    assert found.loss.item() == 1


def test_a_mask_is_an_episode_cut_short() -> None:
    x, y = torch.randn(2, 2, 5, generator=_seeded()).unbind()
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    models = [torch.sin, torch.cos, torch.tanh]
    found = episode_loss(models, x, y, _squares, mask=mask)
    short = episode_loss(models, x[1:, :2], y[1:, :2], _squares)
    torch.testing.assert_close(found.losses[1], short.losses[0])


def test_losses_of_labels_and_of_several_outputs() -> None:
    """Cross entropy of classes, and squares of vectors, which are averaged."""
    model = nn.Linear(2, 3)
    x, labels = torch.randn(4, 5, 2), torch.randint(3, (4, 5))
    found = episode_loss([model, model], x, labels, nn.CrossEntropyLoss(reduction="none"))
    expected = nn.functional.cross_entropy(model(x).flatten(0, 1), labels.flatten())
    torch.testing.assert_close(found.loss, expected)
    targets = torch.randn(4, 5, 3)
    found = episode_loss([model, model], x, targets, _squares)
    torch.testing.assert_close(found.loss, nn.functional.mse_loss(model(x), targets))


def test_unlike_models_and_losses_are_refused_by_name(without_shape_checks: None) -> None:
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"models must return one shape, got \(6,\) and \(5,\)"):
        episode_loss([torch.sin, lambda t: t[1:]], x, x, _squares)
    with pytest.raises(ValueError, match=r"loss must return one loss a sample, \(6, \.\.\.\), got \(\)"):
        episode_loss([torch.sin], x, x, nn.functional.mse_loss)
    with pytest.raises(ValueError, match="models must be at least one"):
        episode_loss([], x, x, _squares)
    with pytest.raises(TypeError, match=r"models\[1\] must be callable, got int"):
        episode_loss([torch.sin, 3], x, x, _squares)
    with pytest.raises(TypeError, match="loss must be callable"):
        episode_loss([torch.sin], x, x, 3)


def test_two_functions_are_learned_apart() -> None:
    models = nn.ModuleList(nn.Linear(1, 1) for _ in range(2))
    with torch.no_grad():
        for model, slope in zip(models, (0.1, -0.1), strict=True):
            model.weight.fill_(slope)
            model.bias.zero_()
    optimizer, stream = torch.optim.Adam(models.parameters(), lr=0.05), _seeded()
    for _ in range(150):
        sign = 2.0 * torch.randint(2, (8, 1, 1), generator=stream) - 1
        x = torch.randn(8, 4, 1, generator=stream)
        optimizer.zero_grad()
        found = episode_loss(models, x, sign * x, _squares)
        found.loss.backward()
        optimizer.step()
    assert sorted(round(float(model.weight), 1) for model in models) == [-1.0, 1.0]
    assert match_clusters(found.choice, (sign.flatten() > 0).long()).error == 0


def test_rank_is_the_number_of_functions_on_a_grid_and_one_on_each_alone() -> None:
    x = torch.linspace(-1, 1, 20).repeat(3)
    y = torch.cat([torch.sin(3 * x[:20]), -(x[:20] ** 2) - 2, x[:20] + 5])
    domain = torch.arange(3).repeat_interleave(20)
    assert mapping_rank(x, y) == (3, True, 60)
    assert [mapping_rank(x[domain == d], y[domain == d]).rank for d in range(3)] == [1, 1, 1]
    assert mapping_rank(x, y, tolerance=100.0).rank == 1
    assert mapping_rank(torch.tensor([0.0, -0.0]), torch.tensor([1, 2])).rank == 2
    assert mapping_rank(torch.zeros(0, 2), torch.zeros(0)).rank == 0


@pytest.mark.parametrize("seed", range(4))
def test_rank_with_a_tolerance_is_the_chromatic_number(seed: int) -> None:
    y = torch.rand(8, 2, generator=_seeded(seed))
    conflicts = networkx.Graph(
        [(i, j) for i, j in itertools.combinations(range(8), 2) if (y[i] - y[j]).abs().max() > 0.4]
    )
    colours = next(
        count
        for count in range(1, 9)
        if any(
            all(c[i] != c[j] for i, j in conflicts.edges)
            for c in itertools.product(*(range(min(count, node + 1)) for node in range(8)))
        )
    )
    found = mapping_rank(torch.zeros(8, 1), y, tolerance=0.4)
    assert found == (colours, True, conflicts.number_of_edges())
    many = torch.rand(40, 1, generator=_seeded(seed))
    bound = mapping_rank(torch.zeros(40), many, tolerance=0.1)
    graph = networkx.Graph([(i, j) for i, j in itertools.combinations(range(40), 2) if abs(many[i] - many[j]) > 0.1])
    assert not bound.exact
    assert 2 <= bound.rank <= max(len(clique) for clique in networkx.find_cliques(graph))


def test_mapping_rank_refuses_by_name(without_shape_checks: None) -> None:
    with pytest.raises(ValueError, match="x and y must have one length"):
        mapping_rank(torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="y must be finite, got nan at index"):
        mapping_rank(torch.zeros(1), torch.tensor([math.nan]))
    with pytest.raises(ValueError, match="tolerance must be"):
        mapping_rank(torch.zeros(1), torch.zeros(1), tolerance=-1.0)


@pytest.mark.parametrize("seed", range(3))
def test_matching_is_the_best_of_all_one_to_one_names(seed: int) -> None:
    choice, truth = (torch.randint(count, (60,), generator=_seeded(seed)) for count in (4, 3))
    found = match_clusters(choice, truth)
    best = max(
        sum(int(names[c] == t) for c, t in zip(choice.tolist(), truth.tolist(), strict=True))
        for names in itertools.permutations((0, 1, 2, 3), 4)
    )
    assert found.error == pytest.approx(1 - best / 60)
    assert found.confusion.sum() == 60
    assert found.purity == pytest.approx(float(found.confusion.amax(1).sum()) / 60)
    assert (found.relabelled == truth).sum() == best


def test_match_clusters_refuses_by_name(without_shape_checks: None) -> None:
    with pytest.raises(TypeError, match="choice must hold integers"):
        match_clusters(torch.zeros(2), torch.zeros(2).long())
    with pytest.raises(ValueError, match="truth must be >= 0, got -1"):
        match_clusters(torch.zeros(2).long(), torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="choice and truth must have shape"):
        match_clusters(torch.zeros(2).long(), torch.zeros(3).long())

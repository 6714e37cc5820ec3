"""Ensembles found by keys and streams of classes: what only they promise."""

from __future__ import annotations

import pytest
import torch

from pullback import discrete
from pullback.discrete import KeyedEnsemble


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_many_sweeps_are_the_root() -> None:
    x = torch.rand(20, 16, generator=_seeded(), dtype=torch.float64)
    root = discrete.soft_topk(x, 4, temperature=0.05, scale=None)
    swept = discrete.sinkhorn_topk(x, 4, temperature=0.05, iterations=3000)
    torch.testing.assert_close(swept, root, rtol=0, atol=1e-6)
    few = discrete.sinkhorn_topk(x, 4, temperature=5e-4, iterations=50)
    assert ((few.sum(-1) - 4).abs() > 0.5).double().mean() > 0.5


def test_a_hard_selection_votes_with_the_nearest_keys_and_gives_them_no_gradient() -> None:
    model = KeyedEnsemble(6, 3, experts=7, k=3, selection="hard", trainable_keys=False, generator=_seeded())
    z = torch.randn(10, 6, generator=_seeded(1))
    vote = model(z)
    nearest = torch.nn.functional.cosine_similarity(z.unsqueeze(1), model.keys, dim=-1).topk(3, -1).indices
    for sample, chosen in zip(vote.selection, nearest, strict=True):
        assert sorted(sample.nonzero().flatten().tolist()) == sorted(chosen.tolist())
        assert set(sample.tolist()) <= {0.0, 1.0}
    assert not vote.selection.requires_grad
    discrete.score_loss(vote.scores, torch.zeros(10, dtype=torch.int64)).backward()
    assert model.keys.grad is None
    assert model.weight.grad is not None


def test_keys_of_a_hard_selection_learn_from_the_weights_of_the_votes_alone() -> None:
    model = KeyedEnsemble(6, 3, experts=7, k=3, selection="hard", generator=_seeded()).double()
    z = torch.randn(10, 6, generator=_seeded(1), dtype=torch.float64)
    vote = model(z)
    assert not vote.selection.requires_grad
    chosen = vote.selection
    answers = torch.tanh(torch.einsum("bf,ncf->bnc", z, model.weight.detach()))

    def weighted(keys: torch.Tensor) -> torch.Tensor:
        weights = chosen * torch.nn.functional.cosine_similarity(z.unsqueeze(1), keys, dim=-1)
        return ((weights / weights.sum(-1, keepdim=True)).unsqueeze(-1) * answers).sum(1)

    torch.testing.assert_close(vote.scores, weighted(model.keys))
    keys, step = model.keys.detach(), 1e-6 * torch.randn(7, 6, generator=_seeded(2), dtype=torch.float64)
    slope = (weighted(keys + step) - weighted(keys - step)).sum() / 2
    gradient = torch.autograd.grad(vote.scores.sum(), model.keys)[0]
    assert slope.abs() > 1e-8
    torch.testing.assert_close((gradient * step).sum(), slope, rtol=1e-5, atol=0)


def test_a_cold_soft_ensemble_is_the_hard_one() -> None:
    z = torch.randn(50, 6, generator=_seeded(1))
    soft = KeyedEnsemble(6, 3, experts=7, k=3, temperature=1e-6, generator=_seeded())
    hard = KeyedEnsemble(6, 3, experts=7, k=3, selection="hard", generator=_seeded())
    torch.testing.assert_close(soft(z).scores, hard(z).scores, rtol=0, atol=1e-3)


def test_features_of_zeros_have_no_similarity_and_no_scores() -> None:
    model = KeyedEnsemble(6, 3, experts=7, k=3, generator=_seeded())
    z = torch.zeros(2, 6, requires_grad=True)
    vote = model(z)
    assert not vote.similarity.any()
    assert not vote.scores.any()
    vote.scores.sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_scores_of_a_single_expert_are_bounded_and_its_own() -> None:
    model = KeyedEnsemble(6, 3, experts=1, k=1, bound=0.5, selection="hard", generator=_seeded())
    z = 5 * torch.randn(20, 6, generator=_seeded(1))
    expected = 0.5 * torch.tanh((z @ model.weight[0].T) / 0.5)
    torch.testing.assert_close(model(z).scores, expected)
    assert expected.abs().max() > 0.49


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"k": 0}, ValueError, "k must be in 1..5, got 0"),
        ({"k": 6}, ValueError, "k must be in 1..5, got 6"),
        ({"k": 2, "bound": 0.0}, ValueError, "bound must be > 0"),
        ({"k": 2, "temperature": -1.0}, ValueError, "temperature must be > 0"),
        ({"k": 2, "selection": "softly"}, ValueError, "selection must be one of 'soft', 'hard'"),
    ],
)
def test_unfit_ensembles_are_refused(options: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        KeyedEnsemble(6, 3, experts=5, **options)


def test_a_stream_shows_every_sample_once_class_by_class() -> None:
    labels = torch.randint(7, (103,), generator=_seeded()) * 3 + 1
    stream = discrete.class_incremental_stream(labels, 3, batch=10, generator=_seeded(1))
    again = discrete.class_incremental_stream(labels, 3, batch=10, generator=_seeded(1))
    other = discrete.class_incremental_stream(labels, 3, batch=10, generator=_seeded(2))
    assert stream.classes == again.classes != other.classes
    assert [len(classes) for classes in stream.classes] == [3, 3, 1]
    assert sorted(c for classes in stream.classes for c in classes) == sorted(set(labels.tolist()))
    seen = torch.cat([batch for task in stream.batches for batch in task])
    assert seen.sort().values.tolist() == list(range(103))
    for classes, batches in zip(stream.classes, stream.batches, strict=True):
        assert set(labels[torch.cat(batches)].tolist()) == set(classes)
        assert all(len(batch) == 10 for batch in batches[:-1])


@pytest.mark.parametrize(
    ("labels", "classes", "batch", "error", "match"),
    [
        (torch.zeros(3), 2, 2, TypeError, r"labels must be integers, got torch.float32"),
        (torch.zeros(0, dtype=torch.int64), 2, 2, ValueError, "labels must have at least one sample"),
        (torch.arange(3), 0, 2, ValueError, "classes_per_task must be an integer >= 1, got 0"),
        (torch.arange(3), 2, 0, ValueError, "batch must be an integer >= 1, got 0"),
    ],
)
def test_unfit_streams_are_refused(
    labels: torch.Tensor, classes: int, batch: int, error: type[Exception], match: str, without_shape_checks: None
) -> None:
    with pytest.raises(error, match=match):
        discrete.class_incremental_stream(labels, classes, batch=batch)


def test_a_single_task_forgets_nothing() -> None:
    found = discrete.continual_metrics(torch.tensor([[0.5]]))
    assert [float(value) for value in found] == [0.5, 0.0, 0.0]

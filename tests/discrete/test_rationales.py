"""Rationales: sizes, what a model is given to read, and where the gradient of the choice goes."""

from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn

from pullback import discrete
from pullback.discrete import RationaleModel, Subset, rationale_size, subset_sample

_PRESENT = torch.tensor([[True] * 8 + [False] * 2, [True] * 3 + [False] * 7])


@pytest.mark.parametrize(("percent", "sizes"), [(1, [1, 1]), (20, [2, 1]), (50, [4, 2]), (100, [8, 3])])
def test_a_rationale_has_its_share_of_the_tokens_and_one_at_least(percent: float, sizes: list[int]) -> None:
    assert rationale_size(_PRESENT, percent).tolist() == sizes


class _Sum(nn.Module):
    """Logits are the sum of what is read, of two classes; the weights that were read are remembered."""

    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.randn(20, 2, generator=torch.Generator().manual_seed(0)))

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        self.read = weights.detach()
        return (self.value[tokens] * weights.unsqueeze(-1)).sum(-2)


class _Score(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.randn(20, generator=torch.Generator().manual_seed(1)))

    def forward(self, tokens: Tensor, weights: Tensor) -> Tensor:
        return self.score[tokens]


def _aimle(scores: Tensor, k: Tensor) -> Subset:
    return subset_sample(scores, k, method="aimle", noise=0.0)


def test_a_model_reads_all_the_rest_and_the_rationale() -> None:
    task, extractor = _Sum(), _Score()
    tokens = torch.randint(20, (2, 10), generator=torch.Generator().manual_seed(2))
    found = RationaleModel(task, extractor, _aimle)(tokens, _PRESENT, percents=(20, 50))
    everything, *others = task.read
    assert torch.equal(everything, _PRESENT.float())
    for removed, kept, percent in zip(others[:2], others[2:], (20, 50), strict=True):
        assert torch.equal(removed + kept, everything)
        assert kept.sum(-1).tolist() == rationale_size(_PRESENT, percent).tolist()
        scores = found.scores.detach()
        for row in range(2):
            assert scores[row][kept[row] > 0].min() > scores[row][removed[row] > 0].max()
    assert found.index.shape == (2, 2, 4)
    assert torch.equal(found.scores.isinf(), ~_PRESENT)


def test_the_extractor_learns_which_tokens_decide_from_the_losses_alone() -> None:
    """Token 0 decides for the class 0, token 1 for the class 1, the others say nothing."""
    task, extractor = _Sum(), _Score()
    with torch.no_grad():
        task.value.zero_()
        task.value[0, 0] = task.value[1, 1] = 3.0
    task.requires_grad_(False)
    model = RationaleModel(task, extractor, _aimle)
    optimizer = torch.optim.Adam(extractor.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(3)
    for _ in range(150):
        labels = torch.randint(2, (16,), generator=generator)
        tokens = torch.stack([torch.randperm(18, generator=generator)[:5] + 2 for _ in labels])
        tokens[:, 2] = labels
        found = model(tokens, torch.ones_like(tokens, dtype=torch.bool), percents=(20,))
        full = nn.functional.cross_entropy(found.full, labels, reduction="none")
        removed = nn.functional.cross_entropy(found.removed[0], labels, reduction="none")
        kept = nn.functional.cross_entropy(found.kept[0], labels, reduction="none")
        loss = discrete.comprehensiveness_loss(full, removed, 5.0) + discrete.sufficiency_loss(full, kept)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    scores = extractor.score.detach()
    assert scores[:2].min() > scores[2:].max()


def test_losses_are_hinges_of_cross_entropies_and_know_what_was_drawn() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    scores = torch.tensor([[0.5, -1.0, 0.0], [1.0, 2.0, -torch.inf]], dtype=torch.float64)
    index = torch.tensor([[[0, -1], [1, -1]], [[2, 0], [1, 0]]])
    labels = torch.tensor([2, 0])
    losses = discrete.rationale_losses(
        discrete.Rationales(logits[0], logits[1:3], logits[3:], scores, index), labels, margins=(0.5, 0.25)
    )
    for sample, label in enumerate(labels.tolist()):
        entropy = [-math.log(math.exp(row[label]) / sum(map(math.exp, row))) for row in logits[:, sample].tolist()]
        assert losses.task[sample].item() == pytest.approx(entropy[0])
        for size in (0, 1):
            hinges = max(0, entropy[0] - entropy[1 + size] + 0.5) + max(0, entropy[3 + size] - entropy[0] + 0.25)
            assert losses.faithful[size, sample].item() == pytest.approx(hinges / 2)
    w = [math.exp(0.5), math.exp(-1), 1.0]
    assert losses.log_prob[0, 0].exp().item() == pytest.approx(w[0] / sum(w))
    assert losses.log_prob[1, 0].exp().item() == pytest.approx(1 / sum(w) * w[0] / (w[0] + w[1]))
    assert losses.log_prob[1, 1].exp().item() == pytest.approx(math.e**2 / (math.e**2 + math.e))
    with pytest.raises(ValueError, match=r"labels must have shape \(2,\), got \(1,\)"):
        discrete.rationale_losses(discrete.Rationales(logits[0], logits[1:3], logits[3:], scores, index), labels[:1])


def test_metrics_are_those_of_scikit_learn_and_of_the_curves() -> None:
    task = _Sum()
    generator = torch.Generator().manual_seed(5)
    tokens, labels = torch.randint(20, (2, 10), generator=generator), torch.tensor([0, 1])
    scores = torch.randn(2, 10, generator=generator)
    highlights = _PRESENT & (torch.arange(10) % 3 == 0) & torch.tensor([[True], [False]])
    found = discrete.rationale_metrics(task, tokens, _PRESENT, labels, scores, highlights)
    logits = task(tokens, _PRESENT.float()).detach()
    assert found.accuracy == (logits.argmax(-1) == labels).double().mean()
    row, right = scores[0, :8].numpy(), highlights[0, :8].numpy()
    assert found.average_precision == pytest.approx(average_precision_score(right, row))
    assert found.token_f1 == pytest.approx(f1_score(right, row > 0))

    def probability(weights: Tensor) -> Tensor:
        return task(tokens, weights).detach().softmax(-1)[torch.arange(2), logits.argmax(-1)]

    assert found.sufficiency == pytest.approx(float(discrete.sufficiency(probability, scores, _PRESENT).mean()))
    measured = discrete.comprehensiveness(probability, scores, _PRESENT).mean()
    assert found.comprehensiveness == pytest.approx(float(measured))
    nothing = discrete.rationale_metrics(task, tokens, _PRESENT, labels, scores, highlights & False)
    assert math.isnan(nothing.average_precision)
    assert math.isnan(nothing.token_f1) or nothing.token_f1 == 0


def test_what_is_no_model_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="extractor must be a module, got function"):
        RationaleModel(_Sum(), _aimle, _aimle)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="select must be"):
        RationaleModel(_Sum(), _Score(), 3)  # type: ignore[arg-type]
    model = RationaleModel(_Sum(), _Score(), _aimle)
    with pytest.raises(ValueError, match="percents must not be empty"):
        model(torch.zeros(2, 10, dtype=torch.long), _PRESENT, percents=())
    with pytest.raises(ValueError, match=r"present must have at least one token in each sample"):
        model(torch.zeros(2, 10, dtype=torch.long), _PRESENT & False)
    for percent in (0, -1, 100.5):
        with pytest.raises(ValueError, match="percent must be"):
            rationale_size(_PRESENT, percent)

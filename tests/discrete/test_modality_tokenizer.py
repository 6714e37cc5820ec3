"""Names of categories as words: what is drawn, what is embedded, and who gets the gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pullback.discrete import ModalityTokenizer, embed_names

_NAMES = [[3], [4, 5], [6], [7, 8]]


def _tokenizer(**options: Any) -> tuple[ModalityTokenizer, nn.Embedding]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        words = nn.Embedding(9, 4)
        return ModalityTokenizer(nn.Linear(5, 4), _NAMES, words, **{"k": 2, **options}), words


def test_names_are_means_of_the_embeddings_of_their_words() -> None:
    _, words = _tokenizer()
    embedded = embed_names(_NAMES, words)
    w = words.weight
    torch.testing.assert_close(embedded, torch.stack([w[3], (w[4] + w[5]) / 2, w[6], (w[7] + w[8]) / 2]))
    (gradient,) = torch.autograd.grad(embedded.sum(), w)
    assert gradient[:, 0].tolist() == [0, 0, 0, 1, 0.5, 0.5, 1, 0.5, 0.5]


def test_training_draws_categories_with_their_probability_and_evaluation_takes_the_likeliest() -> None:
    tokenizer, words = _tokenizer()
    x = torch.randn(1, 5, generator=torch.Generator().manual_seed(1)).expand(4_000, 5)
    tokens = tokenizer(x, generator=torch.Generator().manual_seed(2))
    seen = tokens.index[:, 0].bincount(minlength=4) / 4_000
    p = tokens.log_prob[0].exp().detach()
    assert ((seen - p) / (p * (1 - p) / 4_000).sqrt()).abs().max() < 4
    assert set(tokens.rows.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(tokens.embeddings, embed_names(_NAMES, words)[tokens.index])
    likeliest = tokenizer.eval()(x[:1])
    assert torch.equal(likeliest.index, tokens.log_prob[:1].topk(2).indices)


def test_the_gradient_reaches_the_classifier_and_the_words_but_the_words_belong_to_the_language_model() -> None:
    tokenizer, words = _tokenizer()
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    tokenizer(x, generator=torch.Generator().manual_seed(2)).embeddings.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in tokenizer.classifier.parameters())
    assert words.weight.grad is not None
    assert set(tokenizer.state_dict()) == {"classifier.weight", "classifier.bias"}


def test_a_clip_without_frames_is_refused_and_a_batch_without_clips_is_not() -> None:
    class Mean(nn.Module):
        def forward(self, frames: torch.Tensor) -> torch.Tensor:
            return frames.mean(-2)

    tokenizer = ModalityTokenizer(Mean(), _NAMES, nn.Embedding(9, 4), k=2)
    with pytest.raises(ValueError, match=r"^inputs must not be empty, got shape \(3, 0, 4\)"):
        tokenizer(torch.zeros(3, 0, 4))
    assert tokenizer(torch.zeros(0, 3, 4)).index.shape == (0, 2)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"k": 5}, ValueError, r"k must be in 1\.\.4, got 5"),
        ({"temperature": 0.0}, ValueError, "temperature must be > 0"),
        ({"noise": -1.0}, ValueError, "noise must be >= 0"),
        ({"method": "best"}, ValueError, "method must be one of"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        _tokenizer(**options)


def test_names_without_words_are_refused() -> None:
    words = nn.Embedding(3, 2)
    bad: list[tuple[list[list[int]], str]] = [([], "at least one name"), ([[0], []], "each at least one token")]
    for names, match in (*bad, ([[3]], "names must be in")):
        with pytest.raises(ValueError, match=match):
            embed_names(names, words)
    with pytest.raises(TypeError, match="classifier must be a module, got function"):
        ModalityTokenizer(embed_names, [[0]], words, k=1)  # type: ignore[arg-type]

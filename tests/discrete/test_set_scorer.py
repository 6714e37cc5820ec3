from __future__ import annotations

import pytest
import torch
from torch import nn

from pullback.discrete import SetScorer


def _scorer(layers: int, generator: torch.Generator) -> SetScorer:
    return SetScorer(nn.Sequential(nn.Flatten(), nn.Linear(12, 8)), 8, 4, layers, generator=generator)


def test_permuting_the_items_permutes_the_scores_in_sets_of_any_size(generator: torch.Generator) -> None:
    scorer = _scorer(2, generator)
    for n in (1, 4, 7):
        items, order = torch.randn(3, n, 1, 3, 4, generator=generator), torch.randperm(n, generator=generator)
        torch.testing.assert_close(scorer(items[:, order]), scorer(items)[:, order], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layers", [0, 1])
def test_scores_depend_on_the_other_items_only_through_attention(layers: int, generator: torch.Generator) -> None:
    scorer = _scorer(layers, generator)
    items = torch.randn(4, 1, 3, 4, generator=generator)
    other = items.clone()
    other[1:] += 1
    assert torch.equal(scorer(items)[0], scorer(other)[0]) == (layers == 0)


def test_it_learns_to_say_which_item_is_nearest_to_the_mean_of_its_set(generator: torch.Generator) -> None:
    # No score of single items can: the same number is the nearest in one set and not in another.
    scorer = SetScorer(nn.Sequential(nn.Flatten(), nn.Linear(1, 16)), item_dims=1, generator=generator)
    optimizer = torch.optim.Adam(scorer.parameters(), lr=1e-2)
    x = torch.randn(600, 5, 1, generator=generator) + 3 * torch.randn(600, 1, 1, generator=generator)
    nearest = (x - x.mean(1, keepdim=True)).abs().squeeze(-1).argmin(-1)
    for _ in range(150):
        loss = nn.functional.cross_entropy(scorer(x[:400]), nearest[:400])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (scorer(x[400:]).argmax(-1) == nearest[400:]).double().mean() > 0.6  # chance is 0.2


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        ((abs,), {}, TypeError, "encoder must be a module, got builtin_function_or_method"),
        ((nn.Identity(), 10, 4), {}, ValueError, "width must be a multiple of heads, got 10 and 4"),
        ((nn.Identity(),), {"layers": -1}, ValueError, "layers must be an integer >= 0, got -1"),
        ((nn.Identity(),), {"item_dims": 1.0}, TypeError, "item_dims must be an integer, got float"),
    ],
)
def test_refuses_what_it_cannot_build(
    arguments: tuple[object, ...], options: dict[str, object], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        SetScorer(*arguments, **options)  # type: ignore[arg-type]


def test_refuses_an_encoder_of_another_width(without_shape_checks: None) -> None:
    with pytest.raises(ValueError, match=r"encoder must return \[6, 16\] for 6 items, got \(6, 5\)"):
        SetScorer(nn.Identity(), item_dims=1)(torch.zeros(2, 3, 5))
    with pytest.raises(TypeError, match=r"items must be a floating tensor, got torch\.int64"):
        SetScorer(nn.Identity(), item_dims=1)(torch.zeros(2, 3, 5, dtype=torch.int64))

"""Choosing and looking up with a gradient: values to the bit, ends, descent to the right index."""

from __future__ import annotations

import math

import pytest
import torch

from pullback import discrete


def test_hard_lookups_are_those_of_torch_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, generator=generator)
    index = torch.tensor([0.0, 3.0, 1.0])
    whole = index.long()
    assert torch.equal(discrete.take(x, index, hard=True), torch.take(x, whole))
    assert torch.equal(discrete.embedding(index, x, hard=True), torch.nn.functional.embedding(whole, x))
    assert torch.equal(discrete.index_select(x, 1, index, hard=True), torch.index_select(x, 1, whole))
    along = torch.tensor([[0.0, 3.0, 1.0, 2.0, 2.0]])
    assert torch.equal(discrete.take_along_dim(x, along, 0, hard=True), torch.take_along_dim(x, along.long(), 0))
    assert torch.equal(discrete.gather(x, 0, along[:, :2], hard=True), torch.gather(x, 0, along[:, :2].long()))
    assert torch.equal(discrete.one_hot(index, 4, hard=True), torch.nn.functional.one_hot(whole, 4).float())


@pytest.mark.parametrize("method", ["softmax", "linear"])
def test_an_index_descends_to_the_best_entry(method: str) -> None:
    table = (torch.arange(10, dtype=torch.float64) - 6).square()
    index = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([index], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        discrete.take(table, index, method=method, temperature=2.0, hard=True).backward()
        optimizer.step()
    assert discrete.take(table, index, hard=True).item() == 0


def test_indices_outside_are_held_and_infinite_ones_are_no_nan() -> None:
    index = torch.tensor([-math.inf, -7.0, 9.0, 1e30, math.inf], requires_grad=True)
    for method in ("softmax", "linear"):
        weights = discrete.one_hot(index, 3, method=method, temperature=0.01)
        assert weights.argmax(-1).tolist() == [0, 0, 2, 2, 2]
        (gradient,) = torch.autograd.grad(weights[:, 0].sum(), index)
        assert torch.equal(gradient, torch.zeros(5))
        assert discrete.one_hot(index, 3, method=method, hard=True).argmax(-1).tolist() == [0, 0, 2, 2, 2]
    assert discrete.one_hot(torch.tensor(math.nan), 3).isnan().all()
    assert discrete.one_hot(torch.tensor([0.3]), 1, method="linear").tolist() == [[1.0]]


def test_choose_is_the_value_at_the_argmax() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, values = torch.randn(6, 5, generator=generator), torch.randn(6, 5, 3, generator=generator)
    expected = values[torch.arange(6), scores.argmax(-1)]
    for kwargs in ({"hard": True}, {"temperature": 0.0}):
        assert torch.equal(discrete.choose(scores, values, features=1, **kwargs), expected)
    shared = torch.randn(5, generator=generator)
    assert torch.equal(discrete.choose(scores, shared, hard=True), shared[scores.argmax(-1)])


def test_choose_with_infinite_scores_and_values() -> None:
    scores = torch.tensor([[0.0, -math.inf, 1.0], [math.inf, 0.0, -math.inf]], requires_grad=True)
    values = torch.tensor([1.0, math.inf, 3.0])
    chosen = discrete.choose(scores[:1], values, temperature=1.0)
    expected = (1 + 3 * math.e) / (1 + math.e)
    assert chosen.item() == pytest.approx(expected, rel=1e-6)
    assert discrete.choose(scores[1:], torch.tensor([1.0, 2.0, 3.0])).item() == 1.0
    total = chosen.sum() + discrete.choose(scores[1:], torch.tensor([1.0, 2.0, 3.0])).sum()
    (gradient,) = torch.autograd.grad(total, scores)
    assert torch.isfinite(gradient).all()


def test_choose_raises_the_score_of_a_better_value() -> None:
    scores = torch.zeros(3, requires_grad=True)
    loss = discrete.choose(scores, torch.tensor([1.0, 5.0, 0.0]), temperature=1.0, hard=True)
    loss.backward()
    assert scores.grad.argmin() == 2
    assert scores.grad.argmax() == 1


def test_an_infinite_row_of_weight_zero_does_not_matter() -> None:
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]], requires_grad=True)
    table = torch.tensor([[1.0, 2.0], [3.0, 4.0], [torch.inf, torch.nan]], requires_grad=True)
    mean = discrete.lookup(weights, table)
    assert mean.tolist() == [[2.0, 3.0], [3.0, 4.0]]
    mean.sum().backward()
    assert torch.isfinite(weights.grad).all()
    assert torch.isfinite(table.grad).all()
    assert discrete.lookup(torch.tensor([0.5, 0.0, 0.5]), table)[0] == torch.inf


def test_temperature_zero_keeps_the_sign_of_zero() -> None:
    scores = torch.tensor([0.0, 1.0], requires_grad=True)
    chosen = discrete.choose(scores, torch.tensor([1.0, -0.0]), temperature=0.0)
    assert torch.signbit(chosen)
    chosen.backward()
    assert scores.grad.tolist() == [0.0, 0.0]


def test_take_counts_from_the_end_as_torch_does() -> None:
    x, index = torch.arange(6.0).view(2, 3), torch.tensor([-1.0, -6.0, 2.0])
    for options in ({"temperature": 0.0}, {"hard": True}, {"method": "linear"}):
        assert torch.equal(discrete.take(x, index, **options), torch.take(x, index.long()))


def test_an_index_without_dimensions_selects_one_slice() -> None:
    x = torch.arange(6.0).view(2, 3)
    chosen = discrete.index_select(x, 1, torch.tensor(1.0), method="linear")
    assert torch.equal(chosen, torch.index_select(x, 1, torch.tensor(1)))


def test_an_unknown_index_gives_nan_in_every_form() -> None:
    table = torch.arange(6.0).view(3, 2)
    for options in ({}, {"hard": True}, {"temperature": 0.0}):
        rows = discrete.embedding(torch.tensor([math.nan, 1.0]), table, method="linear", **options)
        assert rows[0].isnan().all()
        assert rows[1].tolist() == [2.0, 3.0]

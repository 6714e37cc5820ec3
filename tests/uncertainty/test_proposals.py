"""Points of the next frame: how many of the last are kept, what law they have, and in what order they come."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from pullback.uncertainty import Beliefs, propose_points


def _g(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _last(m: int = 10, dtype: torch.dtype = torch.float32) -> Beliefs:
    """Points at whole numbers, far from the box."""
    points = 10 + torch.arange(m, dtype=dtype)[:, None].expand(2, 3, m, 1)
    return Beliefs(points, torch.randn(2, 3, m, generator=_g(5), dtype=dtype).log_softmax(-1))


_LOW, _HIGH = torch.zeros(1), torch.ones(1)


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.488, 1.0])
def test_as_many_are_kept_as_was_said_and_the_rest_is_in_the_box(kept: float) -> None:
    found = propose_points(_last(), lambda x: x + 100, kept=kept, low=_LOW, high=_HIGH, count=25, generator=_g())
    old = found.points[..., 0] > 50
    assert found.points.shape == (2, 3, 25, 1)
    assert (old.sum(-1) == round(25 * kept)).all()
    assert ((found.points[..., 0] <= 1) == ~old).all()
    torch.testing.assert_close(found.log_weights.exp(), torch.full((2, 3, 25), 1 / 25))


def test_ancestors_have_the_least_variance_and_come_in_any_order() -> None:
    last = _last()
    found = propose_points(last, lambda x: x, kept=1.0, low=_LOW, high=_HIGH, count=1000, generator=_g())
    many = (found.points == last.points[0, 0, :, 0]).sum(-2)
    assert ((many - 1000 * last.log_weights.exp()).abs() <= 1 + 1e-3).all()
    half = found.points[..., :500, 0].mean(-1), found.points[..., 500:, 0].mean(-1)
    torch.testing.assert_close(half[0], half[1], rtol=0.05, atol=0.0)  # sorted ones would be far apart


def test_the_rest_is_even_in_a_box_of_each_node() -> None:
    low, high = torch.tensor([[0.0, 5.0], [-1.0, 2.0]]), torch.tensor([[1.0, 9.0], [-1.0, 4.0]])
    start = Beliefs(torch.zeros(2, 4, 2), torch.zeros(2, 4).log_softmax(-1))
    found = propose_points(start, lambda x: x, kept=0.0, low=low, high=high, count=4000, generator=_g()).points
    assert ((found >= low[:, None]) & (found <= high[:, None])).all()
    torch.testing.assert_close(found.mean(1), (low + high) / 2, rtol=0.02, atol=0.02)
    torch.testing.assert_close(found.var(1), (high - low).square() / 12, rtol=0.1, atol=1e-6)


def test_only_the_motion_is_differentiated() -> None:
    size, last = torch.tensor(2.0, requires_grad=True), _last()
    moving = Beliefs(last.points.clone().requires_grad_(), last.log_weights.clone().requires_grad_())
    found = propose_points(moving, lambda x: x + size, kept=0.5, low=_LOW, high=_HIGH, generator=_g())
    slope, *others = torch.autograd.grad(found.points.sum(), (size, *moving), allow_unused=True)
    assert float(slope) == 2 * 3 * 5
    assert others == [None, None]
    assert not found.log_weights.requires_grad


def _shorter(x: Tensor) -> Tensor:
    return x[..., :1, :]


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        ({"move": 3}, TypeError, "move must be callable"),
        ({"move": _shorter}, ValueError, r"move must return a tensor of shape \(2, 3, 5, 1\), got \(2, 3, 1, 1\)"),
        ({"move": lambda x: None}, ValueError, "got NoneType"),
        ({"kept": 1.5}, ValueError, "kept must be in"),
        ({"count": 1}, ValueError, "count must be an integer >= 2"),
        ({"low": torch.zeros(2)}, ValueError, "low must broadcast against"),
        ({"low": torch.zeros(4, 2, 3, 1)}, ValueError, "low must broadcast against"),
        ({"high": -torch.ones(1)}, ValueError, "low must be at most high"),
        ({"high": torch.full((1,), torch.inf)}, ValueError, "high must be finite"),
        ({"high": torch.ones(1).double()}, TypeError, "dtype"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_wrong_arguments_are_refused_by_name(words: dict[str, Any], error: type[Exception], says: str) -> None:
    good: dict[str, Any] = {"move": lambda x: x, "kept": 0.5, "low": _LOW, "high": _HIGH}
    with pytest.raises(error, match=says):
        propose_points(_last(), **good | words)

"""Pulled messages against sums over points one by one, and what each part of them learns from."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pullback.uncertainty import (
    Beliefs,
    DegenerateWeights,
    PairwiseFactor,
    PulledMessages,
    UnaryFactor,
    kernel_density,
    pull_messages,
)

_TREE = [(0, 1), (2, 1), (1, 3)]
_AROUND: dict[int, list[int]] = {0: [1], 1: [0, 2, 3], 2: [1], 3: [1]}


class _Shift:
    """Neighbours are ``offset`` apart, and all draws are."""

    offset = torch.tensor([0.3, -0.2])

    def log_prob(self, difference: Tensor) -> Tensor:
        return -(difference - self.offset).abs().sum(-1)

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        return self.offset.expand(*shape, 2)


def _unary(node: int, x: Tensor) -> Tensor:
    return -(x - 0.4 * node).square().sum(-1)


def _points(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, 2, generator=torch.Generator().manual_seed(seed))


def _offset(s: int, t: int) -> Tensor:
    return _Shift.offset if (s, t) in _TREE else -_Shift.offset


def _psi(s: int, t: int, xs: Tensor, xt: Tensor) -> float:
    return math.exp(-(xs - xt - _offset(s, t)).abs().sum().item())


@pytest.mark.parametrize("count", [3, 7])  # seven are not shared out evenly among three
def test_every_part_of_a_message_is_the_sum_over_points_that_it_is_said_to_be(count: int) -> None:
    x, others = _points(2, 4, count), _points(2, 4, 5, seed=1)
    weights = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(2)).log_softmax(-1)
    found = pull_messages(_unary, _Shift(), _TREE, x, into=Beliefs(others, weights), samples=2)
    assert found.sizes == (((count,), (3, 2, 2), (count,), (count,)) if count == 7 else ((3,), (1, 1, 1), (3,), (3,)))
    into = {s: [len(p) for p in torch.arange(5).tensor_split(len(_AROUND[s]))] for s in range(4)}
    for row in range(2):
        for s in range(4):
            start = 0
            for t, size in zip(_AROUND[s], found.sizes[s], strict=True):
                own, sender, said = [], [], []
                for mu in x[row, s, start : start + size]:
                    own.append(math.exp(_unary(s, mu).item()))
                    sender.append(math.exp(_unary(t, mu - _offset(s, t)).item()))
                    product, begin = 1.0, 0
                    for u, many in zip(_AROUND[t], into[t], strict=True):
                        part = slice(begin, begin + many)
                        begin += many
                        if u != s:
                            w = weights[row, t, part].softmax(0)
                            places = others[row, t, part]
                            product *= sum(float(w[j]) * _psi(t, s, place, mu) for j, place in enumerate(places))
                    said.append(product)
                part, share = slice(start, start + size), 1 / len(_AROUND[s])
                start += size
                for kind, expected in (("log_unary", own), ("log_sender", sender), ("log_neighbours", said)):
                    values = torch.tensor(expected)
                    torch.testing.assert_close(
                        getattr(found, kind)[row, s, part].exp(), share * values / values.sum(), rtol=1e-4, atol=1e-6
                    )
                both = torch.tensor(sender) * torch.tensor(said)
                torch.testing.assert_close(found.told.log_weights[row, s, part].exp(), share * both / both.sum())
                total = both * torch.tensor(own)
                torch.testing.assert_close(found.log_weights[row, s, part].exp(), share * total / total.sum())
    assert found.beliefs.points is x


def test_the_true_sender_takes_the_place_of_what_it_was_told() -> None:
    x, truth = _points(4, 6), _points(4, seed=3)
    found = pull_messages(_unary, _Shift(), _TREE, x, truth=truth)
    expected = torch.tensor([_psi(1, 0, truth[1], mu) for mu in x[0]])
    torch.testing.assert_close(found.log_neighbours[0].exp(), expected / expected.sum())
    without = pull_messages(_unary, _Shift(), _TREE, x)
    torch.testing.assert_close(without.log_neighbours[0].exp(), torch.full((6,), 1 / 6))
    torch.testing.assert_close(without.log_sender, found.log_sender)


def _learning(sender: bool) -> tuple[UnaryFactor, PairwiseFactor, PulledMessages, Tensor]:
    g = torch.Generator().manual_seed(0)
    unary, pair = UnaryFactor(2, 1, hidden=8, generator=g), PairwiseFactor(2, hidden=8, noise=4, generator=g)
    frozen = {name: p.detach() for name, p in unary.named_parameters()}

    def kept(node: int, x: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(unary, frozen, (x, torch.ones(1)))
        return found

    found = pull_messages(
        lambda node, x: unary(x, torch.ones(1)),
        pair,
        _TREE,
        _points(4, 9),
        truth=_points(4, seed=3),
        sender=kept if sender else None,
        generator=g,
    )
    return unary, pair, found, _points(4, seed=4)


def test_each_part_has_the_gradient_of_its_own_factor_alone() -> None:
    for part, learns in (("log_unary", "unary"), ("log_sender", "sampler"), ("log_neighbours", "density")):
        unary, pair, found, truth = _learning(sender=True)
        density = kernel_density(found.points, getattr(found, part), truth.unsqueeze(-2), bandwidth=0.3)
        (-density.mean()).backward()  # type: ignore[no-untyped-call]
        modules: dict[str, nn.Module] = {"unary": unary, "sampler": pair.sampler, "density": pair.density}
        for name, module in modules.items():
            gradients = [p.grad for p in module.parameters()]
            if name == learns:
                assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
                assert any(bool((g != 0).any()) for g in gradients if g is not None)
            else:
                assert gradients == [None] * len(gradients)


def test_unary_factors_learn_from_what_they_send_unless_they_are_kept() -> None:
    unary, _, found, _ = _learning(sender=False)
    found.log_sender[..., 0].sum().backward()  # type: ignore[no-untyped-call]
    assert any(p.grad is not None and bool((p.grad != 0).any()) for p in unary.parameters())


def test_a_node_without_neighbours_has_its_unary_weights_alone() -> None:
    x = _points(3, 5)
    found = pull_messages(_unary, _Shift(), [(0, 1)], x)
    assert found.sizes == ((5,), (5,), ())
    torch.testing.assert_close(found.log_weights[2], _unary(2, x[2]).log_softmax(-1))
    torch.testing.assert_close(found.told.log_weights[2].exp(), torch.full((5,), 0.2))


def test_a_message_without_any_weight_names_its_node() -> None:
    def unary(node: int, x: Tensor) -> Tensor:
        return torch.full_like(x[..., 0], -math.inf if node == 3 else 0.0)

    with pytest.raises(DegenerateWeights, match="no point of node 1 has any weight: points over a wider box"):
        pull_messages(unary, _Shift(), _TREE, _points(4, 6))


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        ({"points": _points(4, 2)}, ValueError, "points must have M >= 3, one for each neighbour of a node, got 2"),
        ({"truth": _points(3)}, ValueError, r"truth must have shape \(4, 2\), got \(3, 2\)"),
        ({"truth": _points(4).double()}, TypeError, "dtype"),
        ({"into": Beliefs(_points(3, 6), torch.zeros(3, 6))}, ValueError, "into must have points of"),
        ({"into": Beliefs(_points(4, 2), torch.zeros(4, 2))}, ValueError, "points must have M >= 3"),
        ({"into": Beliefs(_points(4, 6), torch.zeros(4, 5))}, ValueError, "log_weights of into must have shape"),
        ({"sender": 3}, TypeError, "sender must be callable"),
    ],
)
@pytest.mark.usefixtures("without_shape_checks")
def test_wrong_arguments_are_refused_by_name(words: dict[str, Any], error: type[Exception], says: str) -> None:
    points = words.pop("points", _points(4, 6))
    with pytest.raises(error, match=says):
        pull_messages(_unary, _Shift(), _TREE, points, **words)
    with pytest.raises(ValueError, match="into and truth must not both be given"):
        pull_messages(
            _unary, _Shift(), _TREE, _points(4, 6), into=Beliefs(_points(4, 6), torch.zeros(4, 6)), truth=_points(4)
        )

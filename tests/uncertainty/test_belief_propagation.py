"""Belief propagation on Gaussian models, whose marginals are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pullback.uncertainty import (
    Beliefs,
    DegenerateWeights,
    EdgePotential,
    gaussian_belief_propagation,
    nonparametric_belief_propagation,
)

_CHAIN = [(0, 1), (2, 1), (2, 3), (3, 4)]
_STAR = [(0, 1), (0, 2), (3, 0)]


class _Spring:
    """Neighbours are ``offset`` apart, by a normal law."""

    def __init__(self, size: float, offset: Tensor | float = 0.0) -> None:
        self.size, self.offset = size, offset

    def log_prob(self, difference: Tensor) -> Tensor:
        return -((difference - self.offset) / self.size).square().sum(-1) / 2

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        return self.offset + self.size * torch.randn(*shape, 1, generator=generator)


def _exact(graph: list[tuple[int, int]], n: int) -> tuple[Tensor, Tensor]:
    precision, pull = torch.eye(n), torch.linspace(-1, 1, n)
    for s, t in graph:
        precision[s, s] += 2.0
        precision[t, t] += 2.0
        precision[s, t] = precision[t, s] = -2.0
        pull[s] += 2.0 * 0.3
        pull[t] -= 2.0 * 0.3
    found = gaussian_belief_propagation(precision, pull, graph)
    torch.testing.assert_close(found.variances, torch.linalg.inv(precision).diagonal())
    return found.means, found.variances


def test_any_object_that_weighs_and_draws_differences_is_a_potential() -> None:
    spring: EdgePotential = _Spring(0.5, 1.0)
    drawn = spring.sample((4000,), torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(1.0, abs=0.03)
    assert spring.log_prob(drawn).mean().item() == pytest.approx(-0.5, abs=0.05)


def _run(graph: list[tuple[int, int]], n: int, count: int, method: str, runs: int = 4) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    middle = torch.linspace(-1, 1, n)
    start = Beliefs(6 * torch.rand(runs, n, count, 1, generator=g) - 3, torch.full((runs, n, count), -math.log(count)))
    found = nonparametric_belief_propagation(
        lambda s, x: -(x[..., 0] - middle[s]).square() / 2,
        _Spring(0.5**0.5, 0.3),
        graph,
        start,
        iterations=6,
        method=method,
        bandwidth=0.3,
        generator=g,
    )
    spread = (found.log_weights.exp() * (found.points - found.means.unsqueeze(-2)).squeeze(-1).square()).sum(-1)
    return found.means[..., 0], spread


@pytest.mark.parametrize(("graph", "n"), [(_CHAIN, 5), (_STAR, 4)])
def test_exact_messages_give_the_marginals_of_trees(graph: list[tuple[int, int]], n: int) -> None:
    means, variances = _exact(graph, n)
    found, spread = _run(graph, n, 600, "exact")
    assert (found - means).square().mean().sqrt() < 0.04
    assert (spread.mean(0) / variances - 1).abs().max() < 0.1


def test_the_error_falls_as_the_root_of_the_number_of_points() -> None:
    means, _ = _exact(_CHAIN, 5)
    errors = [(_run(_CHAIN, 5, count, "exact", runs=12)[0] - means).square().mean().sqrt() for count in (50, 450)]
    slope = math.log(errors[1] / errors[0]) / math.log(9)
    assert -0.75 < slope < -0.25


@pytest.mark.parametrize(("graph", "n"), [(_CHAIN, 5), (_STAR, 4)])
def test_pulled_messages_are_too_narrow(graph: list[tuple[int, int]], n: int) -> None:
    _, variances = _exact(graph, n)
    _, spread = _run(graph, n, 400, "pull")
    ratio, ends = spread.mean(0) / variances, [0, 4] if graph == _CHAIN else [1, 2, 3]
    assert ratio.max() <= 1.15
    assert ratio[ends].max() <= 0.4


class _Fixed(_Spring):
    """The same potential, whose draws are all at its middle."""

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        return torch.full((*shape, 1), float(self.offset))


def test_pulled_messages_look_at_the_sender_and_at_the_points_of_messages_into_it() -> None:
    def unary(node: int, x: Tensor) -> Tensor:
        return -(x[..., 0] - node).square()

    def pull(iterations: int) -> Beliefs:
        g = torch.Generator().manual_seed(4)
        points = 4 * torch.rand(3, 8, 1, generator=g) - 1
        start = Beliefs(points, torch.full((3, 8), -math.log(8)))
        spring, words = _Fixed(0.7, 0.3), {"iterations": iterations, "method": "pull", "generator": g}
        return nonparametric_belief_propagation(unary, spring, [(0, 1), (2, 1)], start, **words)  # type: ignore[arg-type]

    first, second = pull(1), pull(2)
    # Into node 1: the first four points from node 0, which would be at x + 0.3; the others from node 2, likewise.
    for part in (slice(0, 4), slice(4, 8)):
        x = first.points[1, part]
        sender = 0 if part.start == 0 else 2
        expected = (unary(1, x) + unary(sender, x + 0.3)).softmax(0) / 2
        torch.testing.assert_close(first.log_weights[1, part].exp(), expected)
    # Into node 0, from 1: what 2 told 1 in the first iteration, its belief without the unary factor of 1.
    inner, x = slice(4, 8), second.points[0]
    points, told = first.points[1, inner], (first.log_weights[1, inner] - unary(1, first.points[1, inner])).softmax(0)
    density = torch.stack(
        [(told * (-((x[i] - points - 0.3) / 0.7).square().sum(-1) / 2).exp()).sum() for i in range(8)]
    )
    expected = (unary(0, x) + unary(1, x - 0.3)).exp() * density
    torch.testing.assert_close(second.log_weights[0].exp(), expected / expected.sum())


def test_pulled_messages_come_from_all_neighbours_and_beliefs_sum_to_one() -> None:
    star, g = [(0, 1), (0, 2), (0, 3)], torch.Generator().manual_seed(0)
    asked: list[tuple[int, int]] = []

    def unary(node: int, x: Tensor) -> Tensor:
        asked.append((node, len(x)))
        return -x[..., 0].square()

    for count in (4, 5, 3):  # parts of equal size would leave the last neighbour of node 0 without points
        asked.clear()
        start = Beliefs(torch.rand(4, count, 1, generator=g), torch.full((4, count), -math.log(count)))
        words = {"method": "pull", "samples": 1, "generator": g}
        found = nonparametric_belief_propagation(unary, _Spring(0.7, 0.3), star, start, **words)  # type: ignore[arg-type]
        torch.testing.assert_close(found.log_weights.exp().sum(-1), torch.ones(4))
        told = dict(asked[1:4])  # of node 0 itself first, then of the senders
        assert sorted(told) == [1, 2, 3]
        assert sum(told.values()) == count
    few = Beliefs(torch.rand(4, 2, 1, generator=g), torch.full((4, 2), -math.log(2)))
    with pytest.raises(ValueError, match="points must have M >= 3, one for each neighbour of a node, got 2"):
        nonparametric_belief_propagation(unary, _Spring(0.7, 0.3), star, few, method="pull", generator=g)


def test_means_are_right_on_a_loop_and_variances_too_small() -> None:
    precision = torch.tensor([[2.0, -0.5, -0.5], [-0.5, 2.0, -0.5], [-0.5, -0.5, 2.0]])
    found = gaussian_belief_propagation(
        precision, torch.tensor([1.0, 0.0, -2.0]), [(0, 1), (1, 2), (2, 0)], iterations=40
    )
    torch.testing.assert_close(found.means, torch.linalg.solve(precision, torch.tensor([1.0, 0.0, -2.0])))
    assert found.residual < 1e-6
    assert (found.variances < torch.linalg.inv(precision).diagonal()).all()


def test_potentials_are_differentiated_and_points_are_constant() -> None:
    place = torch.tensor([0.5, -0.5], requires_grad=True)
    size = torch.tensor(1.0, requires_grad=True)
    g = torch.Generator().manual_seed(0)
    start = Beliefs(10 * torch.rand(2, 2000, 1, generator=g) - 5, torch.full((2, 2000), -math.log(2000)))
    found = nonparametric_belief_propagation(
        lambda s, x: -(x[..., 0] - place[s]).square() / 2,
        _Spring(size, 0.0),  # type: ignore[arg-type]
        [(0, 1)],
        start,
        iterations=2,
        explore=1.0,
        generator=g,
    )
    slopes = torch.autograd.grad(found.means[0, 0], (place, size))
    assert not found.points.requires_grad
    torch.testing.assert_close(slopes[0], torch.tensor([2 / 3, 1 / 3]), rtol=0.15, atol=0.0)
    # The mean is (a (1 + r) + b) / (2 + r) with r = size^2: its derivative in size is 2 (a - b) / 9.
    torch.testing.assert_close(slopes[1], torch.tensor(2 / 9), rtol=0.3, atol=0.0)


def test_a_node_without_any_weight_is_named() -> None:
    start = Beliefs(torch.rand(2, 10, 1), torch.full((2, 10), -math.log(10)))

    def unary(node: int, x: Tensor) -> Tensor:
        return torch.full_like(x[..., 0], -torch.inf if node == 1 else 0.0)

    with pytest.raises(DegenerateWeights, match="no point of node 1 has any weight in iteration 0"):
        nonparametric_belief_propagation(unary, _Spring(1.0), [(0, 1)], start)

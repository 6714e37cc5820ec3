"""Learners side by side: the augmented Lagrangian against scipy, subsets, interventions, kinds of data, knowledge."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from pullback import causal
from pullback.kernels.orthantwise import minimise_orthantwise


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _quadratics(count: int) -> tuple[Tensor, Tensor]:
    root = torch.randn(count, 4, 4, generator=_generator(0), dtype=torch.float64)
    centre = torch.randn(count, 4, generator=_generator(1), dtype=torch.float64)
    return root @ root.mT + torch.eye(4, dtype=torch.float64), centre


def _on_planes(**options: Any) -> causal.AugmentedLagrangian:
    """Quadratic losses on the crossing of two planes, their offsets other ones in each problem."""
    matrix, centre = _quadratics(3)
    offset = torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)

    def loss(p: dict[str, Tensor], matrix: Tensor, centre: Tensor, offset: Tensor) -> Tensor:
        gap = p["x"] - centre
        return 0.5 * (gap * (matrix @ gap.unsqueeze(-1)).squeeze(-1)).sum(-1)

    def constraint(p: dict[str, Tensor], matrix: Tensor, centre: Tensor, offset: Tensor) -> Tensor:
        return ((p["x"] @ _PLANES) - offset.unsqueeze(-1)).square()

    start = {"x": torch.ones(3, 4, dtype=torch.float64)}
    return causal.AugmentedLagrangian(start, loss, constraint, data=(matrix, centre, offset), batch_ndim=1, **options)


_PLANES = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, -1.0], [2.0, 0.0]], dtype=torch.float64)


@pytest.mark.slow
def test_constrained_minima_are_those_of_their_optimality_conditions() -> None:
    """The squared gap to each plane is at most the tolerance; on the planes reached the minimum is exact."""
    solver = _on_planes(tolerance=1e-6, relative=1e-15, iterations=5000)
    found = solver.run()
    assert found.converged.all()
    assert found.violation.shape == (3, 2)
    matrix, centre = _quadratics(3)
    for row, offset in enumerate((1.0, 0.5, 2.0)):
        x = found.parameters["x"][row]
        reached = x @ _PLANES
        torch.testing.assert_close(reached, torch.full_like(reached, offset), rtol=0, atol=1e-3)
        system = torch.cat([torch.cat([matrix[row], _PLANES], 1), torch.nn.functional.pad(_PLANES.T, (0, 2))])
        exact = torch.linalg.solve(system, torch.cat([matrix[row] @ centre[row], reached]))[:4]
        torch.testing.assert_close(x, exact, rtol=0, atol=1e-5)


def test_an_augmented_lagrangian_goes_on_from_its_state_bit_for_bit() -> None:
    whole = _on_planes(tolerance=1e-3)
    expected = whole.run()
    half = _on_planes(tolerance=1e-3)
    for _ in range(whole.taken // 2):
        half.step()
    state = copy.deepcopy(half.state_dict())
    resumed = _on_planes(tolerance=1e-3)
    resumed.load_state_dict(state)
    got = resumed.run()
    assert resumed.taken == whole.taken
    assert torch.equal(got.parameters["x"], expected.parameters["x"])
    assert torch.equal(got.history, expected.history)
    with pytest.raises(ValueError, match="state"):
        resumed.load_state_dict({"taken": 0})


def test_what_is_no_augmented_lagrangian_is_refused_by_name() -> None:
    start = {"x": torch.zeros(2)}
    for options, error, match in (
        ({"factor": 1.0}, ValueError, "factor must be > 1"),
        ({"shrink": 1.0}, ValueError, "shrink must be in"),
        ({"rho": 0.0}, ValueError, "rho must be > 0"),
        ({"l1": {"y": 1.0}}, ValueError, "l1 names no parameter"),
        ({"l1": {"x": -1.0}}, ValueError, "l1 of x must be >= 0"),
        ({"batch_ndim": 1, "data": (torch.zeros(3),)}, ValueError, r"data\[0\] must be a tensor with the leading"),
    ):
        with pytest.raises(error, match=match):
            causal.augmented_lagrangian_fit(start, lambda p, *_: p["x"].sum(), lambda p, *_: p["x"].sum(), **options)
    with pytest.raises(TypeError, match="loss"):
        causal.augmented_lagrangian_fit(start, 3, lambda p: p["x"].sum())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="constraint must return"):
        causal.augmented_lagrangian_fit(start, lambda p: p["x"].sum(), lambda p: p["x"][None, None])


def test_the_orthantwise_minimum_of_a_quadratic_is_that_of_its_optimality() -> None:
    matrix, centre = _quadratics(5)

    def evaluate(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gap = x - centre[rows]
        slope = (matrix[rows] @ gap.unsqueeze(-1)).squeeze(-1)
        return 0.5 * (gap * slope).sum(-1), slope, rows

    strength = torch.tensor([0.0, 0.3, 1.0, 3.0], dtype=torch.float64)
    x, value, rows = minimise_orthantwise(evaluate, torch.zeros(5, 4, dtype=torch.float64), strength, tolerance=1e-15)
    assert rows.tolist() == list(range(5))
    smooth, slope, _ = evaluate(x, rows)
    torch.testing.assert_close(value, smooth + (strength * x.abs()).sum(-1))
    at_zero = x == 0
    assert (slope.abs() <= strength + 1e-5)[at_zero].all()
    torch.testing.assert_close(slope[~at_zero], -(strength * x.sign())[~at_zero], rtol=1e-4, atol=1e-5)


def test_a_batch_of_networks_is_learned_set_by_set() -> None:
    data = [_curved(seed, 80) for seed in (0, 1)]
    options: dict[str, Any] = {"learners": 1, "mechanism": "sobolev", "hidden": 3, "relative": 1e-6}
    together = causal.d_struct(torch.stack(data), **options)
    for row, x in enumerate(data):
        torch.testing.assert_close(together.weights[row], causal.d_struct(x, **options).weights, rtol=1e-6, atol=1e-6)


def _curved(seed: int, n: int) -> Tensor:
    noise = torch.randn(n, 2, generator=_generator(seed), dtype=torch.float64)
    return torch.stack([2 * torch.sin(2 * noise[:, 0]) + 0.3 * noise[:, 1], 2 * noise[:, 0]], 1)


@pytest.mark.parametrize("mechanism", ["linear", "mlp", "sobolev"])
def test_learners_that_must_agree_agree(mechanism: str) -> None:
    x = _curved(3, 120)
    spread = []
    for consensus in (0.0, 100.0):
        found = causal.d_struct(
            x, consensus=consensus, mechanism=mechanism, hidden=3, relative=1e-4, generator=_generator(0)
        )
        assert found.restart_weights.shape == (3, 2, 2)
        torch.testing.assert_close(found.weights, found.restart_weights.mean(0))
        spread.append(causal.consensus_penalty(found.restart_weights).item())
    assert spread[1] < 0.2 * spread[0]


def test_a_small_subset_is_warned_of_with_its_size() -> None:
    with pytest.warns(UserWarning, match="a subset has 3 samples, fewer than twice the 2 nodes"):
        causal.d_struct(_curved(0, 10), steps=1, iterations=1)


def test_subsets_lie_in_their_parts_of_the_sorted_rows() -> None:
    values = torch.randn(400, generator=_generator(0))
    subsets = causal.beta_subsets(400, 4, size=60, sort_by=values, generator=_generator(1))
    means = values[subsets].mean(-1)
    assert (means.diff() > 0.1).all()
    assert all(len(set(rows.tolist())) == 60 for rows in subsets)
    for given, match in (((5, 6), "learners must be at most"), ((5, 0), "learners must be an integer >= 1")):
        with pytest.raises(ValueError, match=match):
            causal.beta_subsets(*given)
    with pytest.raises(ValueError, match="probability zero"):
        causal.beta_subsets(10, 2, size=10)


def _network(seed: int, nodes: int = 5) -> tuple[Tensor, Tensor]:
    graph = causal.random_dag(nodes, nodes + 1, generator=_generator(seed))
    return graph, causal.random_weights(graph, generator=_generator(seed), high=1.5).double()


def test_samples_in_which_a_node_was_set_tell_its_effects_and_not_its_causes() -> None:
    """Without targets, nodes that were set seem to have no causes; with them, nothing is lost."""
    graph, weights = _network(2)
    model = causal.LinearSCM(weights)
    sets, targets = [model.rsample(300, generator=_generator(0))], [torch.zeros(300, 5, dtype=torch.bool)]
    for node in range(5):
        value = 3 * torch.randn(300, generator=_generator(10 + node), dtype=torch.float64)
        sets.append(model.rsample(300, interventions={node: value}, generator=_generator(20 + node)))
        targets.append(torch.zeros(300, 5, dtype=torch.bool))
        targets[-1][:, node] = True
    x, known = torch.cat(sets), torch.cat(targets)
    for learn in (causal.notears, causal.dagma):
        options: dict[str, Any] = {"penalty": 0.02}
        informed = learn(x, targets=known, **options)
        assert causal.edge_metrics(graph, informed.weights).shd == 0
        error, pooled = ((found - weights).abs().max() for found in (informed.weights, learn(x, **options).weights))
        assert error < 0.2
        assert pooled > 2 * error


@pytest.mark.parametrize("learn", [causal.notears, causal.dagma])
@pytest.mark.parametrize("intercept", [None, False, True])
def test_a_known_arc_between_bits_is_a_logistic_regression(learn: Any, intercept: bool | None) -> None:
    """Without an intercept by default, as the models that LogisticSCM draws from."""
    causes = (torch.rand(400, 2, generator=_generator(0)) < 0.3).double()
    effect = (
        torch.rand(400, generator=_generator(1)) < torch.sigmoid(causes @ torch.tensor([2.0, -1.0]).double() - 1)
    ).double()
    bits = torch.cat([causes, effect[:, None]], 1)
    allowed = torch.zeros(3, 3, dtype=torch.bool)
    allowed[:2, 2] = True
    options: dict[str, Any] = {"penalty": 0.0, "ridge": 0.0, "relative": 1e-12, "allowed": allowed}
    found = learn(bits, model="logistic", intercept=intercept, **options)
    expected = LogisticRegression(C=math.inf, fit_intercept=bool(intercept), tol=1e-10).fit(
        causes.numpy(), effect.numpy()
    )
    torch.testing.assert_close(found.weights[:2, 2], torch.from_numpy(expected.coef_[0]), rtol=1e-3, atol=1e-3)
    with pytest.raises(TypeError, match="intercept"):
        learn(bits, model="logistic", intercept=1.0)


def test_bits_and_counts_are_learned_by_their_own_likelihoods() -> None:
    chain = torch.tensor([[0.0, 2.5, 0.0], [0.0, 0.0, -2.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    bits = causal.LogisticSCM(chain).sample(2000, generator=_generator(0))
    first = torch.poisson(torch.full((2000,), 2.0).double(), generator=_generator(1))
    second = torch.poisson((0.4 * first).exp(), generator=_generator(2))
    third = torch.poisson((-0.6 * second).exp() + 0.0, generator=_generator(3))
    counts = torch.stack([second, first, third], 1)
    for learn in (causal.notears, causal.dagma):
        found = learn(bits, model="logistic", penalty=0.01)
        assert torch.equal((found.weights.abs() + found.weights.mT.abs()) > 0.5, (chain + chain.mT) != 0)
        assert found.varsortability.isnan()
        rates = learn(counts, model="poisson", penalty=0.01)
        assert rates.graph(0.2)[1, 0]
        assert rates.graph(0.2)[0, 2]
        assert rates.weights[1, 0].item() == pytest.approx(0.4, abs=0.1)


def test_cosmo_learns_bits_and_intervened_samples_and_refuses_what_it_cannot_refit() -> None:
    chain = torch.tensor([[0.0, 2.5], [0.0, 0.0]], dtype=torch.float64)
    options: dict[str, Any] = {"iterations": 300, "lr": 3e-2, "restarts": 2, "generator": _generator(0)}
    bits = causal.LogisticSCM(chain).sample(800, generator=_generator(0))
    found = causal.cosmo(bits, model="logistic", **options)
    assert (found.weights.abs() > 0.5).sum() == 1
    x = causal.LinearSCM(chain).rsample(400, generator=_generator(1))
    targets = torch.zeros(400, 2, dtype=torch.bool)
    targets[200:, 1] = True
    x[200:, 1] = torch.randn(200, generator=_generator(2), dtype=torch.float64)  # of which the first is no cause
    weights = causal.cosmo(x, targets=targets, **options).weights
    assert weights[0, 1].item() == pytest.approx(2.5, abs=0.25)
    assert causal.cosmo(x, **options).weights[0, 1].item() < 2.0
    with pytest.raises(ValueError, match="refit solves least squares along an order"):
        causal.cosmo(x, targets=targets, refit=True)
    with pytest.raises(ValueError, match="need samples"):
        causal.cosmo(torch.eye(2), covariance=True, model="poisson")

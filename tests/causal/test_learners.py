"""Learners as loops: planted answers, states that can be saved, compiled loops against their references."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pullback import ConvergenceError, causal
from pullback.kernels.barrier import BarrierState, barrier_steps, barrier_steps_reference
from pullback.kernels.orthantwise import minimise_lagrangian, minimise_lagrangian_reference
from pullback.kernels.smooth_orientation import Annealed, Penalties, anneal, anneal_reference

Make = Callable[[Tensor, int], causal.StructureLearner]

LEARNERS: dict[str, Make] = {
    "COSMO": lambda x, seed: causal.COSMO(x, iterations=250, restarts=2, generator=_generator(seed)),
    "COSMO, minibatches": lambda x, seed: causal.COSMO(
        x, iterations=12, restarts=2, minibatch=8, generator=_generator(seed)
    ),
    "COSMO, nonlinear": lambda x, seed: causal.COSMO(x, iterations=12, hidden=2, generator=_generator(seed)),
    "DAGMA": lambda x, seed: causal.DAGMA(x, iterations=400, check_every=100),
    "NOTEARS": lambda x, seed: causal.NOTEARS(x),
    "D-Struct": lambda x, seed: causal.DStruct(
        x, learners=2, hidden=2, relative=1e-3, tolerance=1e-3, iterations=20, generator=_generator(seed)
    ),
    "DAGMA, networks": lambda x, seed: causal.SampledDAGMA(
        x, hidden=2, relative=1e-3, iterations=20, generator=_generator(seed)
    ),
}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _small_set(seed: int) -> tuple[Tensor, Tensor]:
    g = _generator(seed)
    graph = causal.random_dag(4, 4, generator=g)
    weights = causal.random_weights(graph, generator=g).double()
    return graph, causal.LinearSCM(weights).rsample(200, generator=g)


@pytest.mark.parametrize("method", ["notears", "dagma"])
def test_small_dense_sets_are_learned_with_finite_weights(method: str) -> None:
    """On seven of these a line search once overflowed the exponential, and NaN passed for progress."""
    graphs, data = zip(*(_small_set(seed) for seed in range(20)), strict=True)
    result = getattr(causal, method)(torch.stack(data), **({"iterations": 5000} if method == "dagma" else {}))
    assert result.weights.isfinite().all()
    assert result.converged.all()
    assert causal.edge_metrics(torch.stack(graphs), result.weights).shd.double().mean() <= 0.5


def test_notears_minimises_its_objective_as_an_independent_solver_does() -> None:
    """Without the constraint the inner problem is a lasso regression of every node on the others."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    _, x = _small_set(3)
    x = x - x.mean(0)
    moments = (x.T @ x / len(x)).unsqueeze(0)
    zero = torch.zeros(1, dtype=torch.float64)
    found = minimise_lagrangian(torch.zeros_like(moments), moments, zero, zero, 0.1, iterations=2000, tolerance=1e-14)
    for node in range(4):
        others = [i for i in range(4) if i != node]
        lasso = linear_model.Lasso(alpha=0.1, fit_intercept=False, tol=1e-12, max_iter=100_000)
        lasso.fit(x[:, others].numpy(), x[:, node].numpy())
        torch.testing.assert_close(found.weights[0, others, node], torch.tensor(lasso.coef_), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_goes_on_from_its_state_bit_for_bit(name: str) -> None:
    _, x = _small_set(1)
    whole = LEARNERS[name](x, 0)
    expected = whole.run()
    assert whole.finished
    half = LEARNERS[name](x, 0)
    for _ in range(whole.taken // 2):
        half.step()
    state = copy.deepcopy(half.state_dict())
    half.step()  # what is done afterwards does not reach a state that was taken
    resumed = LEARNERS[name](x, 7)
    resumed.load_state_dict(state)
    got = resumed.run()
    assert resumed.taken == whole.taken
    assert torch.equal(got.weights, expected.weights)
    assert torch.equal(got.order, expected.order)
    assert got.history.keys() == expected.history.keys()
    assert all(torch.equal(got.history[key], expected.history[key]) for key in got.history)


@pytest.mark.parametrize("name", LEARNERS)
def test_a_state_of_something_else_is_refused(name: str) -> None:
    _, x = _small_set(1)
    learner = LEARNERS[name](x, 0)
    other = next(make for key, make in LEARNERS.items() if key.split(",")[0] != name.split(",")[0])
    with pytest.raises(ValueError, match="state"):
        learner.load_state_dict(other(x, 0).state_dict())
    with pytest.raises(ValueError, match="state"):
        learner.load_state_dict(LEARNERS[name](x[:, :3], 0).state_dict())


@pytest.mark.parametrize("name", LEARNERS)
def test_steps_after_the_last_change_nothing(name: str) -> None:
    learner = LEARNERS[name](_small_set(1)[1], 0)
    result = learner.run()
    for _ in range(2):
        learner.step()
    assert learner.taken <= learner.steps
    assert torch.equal(learner.result().weights, result.weights)


_LINEAR: dict[str, Callable[..., causal.StructureResult]] = {
    "notears": causal.notears,
    "dagma": lambda x, **known: causal.dagma(x, iterations=4000, **known),
    "cosmo": lambda x, **known: causal.cosmo(x, iterations=600, lr=3e-2, restarts=2, generator=_generator(0), **known),
    "cosmo, samples": lambda x, **known: causal.cosmo(
        x, iterations=300, lr=3e-2, restarts=2, minibatch=200, generator=_generator(0), **known
    ),
    "notears, networks": lambda x, **known: causal.notears(
        x, mechanism="mlp", hidden=2, relative=1e-3, tolerance=1e-4, generator=_generator(0), **known
    ),
    "dagma, networks": lambda x, **known: causal.dagma(
        x, mechanism="mlp", hidden=2, relative=1e-3, generator=_generator(0), **known
    ),
}


@pytest.mark.parametrize("name", _LINEAR)
def test_what_is_known_of_a_graph_is_in_the_answer(name: str) -> None:
    """A required arc is there though the data speak against it, no path leads back; what is not allowed is zero."""
    graph, x = _small_set(5)
    cause, effect = graph.nonzero()[0].tolist()
    against = torch.zeros(4, 4, dtype=torch.bool)
    against[effect, cause] = True
    result = _LINEAR[name](x, required=against)
    found = result.graph(0.3)
    assert found[effect, cause]
    assert torch.equal(result.graph(10.0), against)  # no threshold drops it
    assert causal.is_acyclic(found)
    place = result.order.argsort()
    assert place[effect] < place[cause]
    without = _LINEAR[name](x, allowed=~graph)
    assert (without.weights[graph] == 0).all()
    assert (without.weights != 0).any()


@pytest.mark.parametrize("method", ["notears", "dagma"])
def test_a_result_says_whether_the_variances_tell_the_order(method: str) -> None:
    chain = torch.diag(torch.full((3,), 1.5, dtype=torch.float64), 1)
    x = causal.LinearSCM(chain).rsample(400, generator=_generator(0))
    learn = getattr(causal, method)
    options = {"iterations": 3000} if method == "dagma" else {}
    assert learn(x, **options).varsortability == 1
    assert learn(x / x.std(0), **options).varsortability < 0.95


@pytest.mark.parametrize("method", ["notears", "dagma"])
def test_a_batch_is_learned_graph_by_graph(method: str) -> None:
    data = [_small_set(seed)[1] for seed in (0, 1, 2)]
    learn: Callable[..., Any] = getattr(causal, method)
    options = {"iterations": 2000} if method == "dagma" else {}
    together = learn(torch.stack(data), **options)
    for row, x in enumerate(data):
        assert torch.equal(together.weights[row], learn(x, **options).weights)


@pytest.mark.parametrize("method", ["notears", "dagma", "cosmo"])
def test_half_precision_data_is_learned_in_single(method: str) -> None:
    graph = torch.tensor([[0, 1], [0, 0]])
    cause = torch.randn(500, 1, generator=_generator(0))
    x = torch.cat([cause, 1.5 * cause + torch.randn(500, 1, generator=_generator(1))], 1)
    options = {"generator": _generator(0), "iterations": 1000, "lr": 3e-2} if method == "cosmo" else {}
    for dtype in (torch.float16, torch.bfloat16):
        result = getattr(causal, method)(x.to(dtype), **options)
        assert result.weights.dtype == result.score.dtype == torch.float32
        assert causal.edge_metrics(graph, result.weights).shd == 0


def test_a_point_of_the_path_that_begins_outside_of_its_domain_ends() -> None:
    """The weights of the first point lie outside of the second domain: its scale grows until they do not."""
    _, x = _small_set(0)
    result = causal.dagma(x, path=((1.0, 1.0), (0.1, 1e-3)), iterations=1000, check_every=100)
    assert result.weights.isfinite().all()


def test_numbers_that_leave_the_dtype_are_said_and_not_returned() -> None:
    cause = torch.randn(50, 1, generator=_generator(0)) * 1e-30
    x = torch.cat([cause, cause * 1e35], 1) + 1e-31 * torch.randn(50, 2, generator=_generator(1))
    for learn in (causal.dagma, causal.notears, causal.cosmo):
        try:
            weights = learn(x.float(), iterations=100).weights
        except (ConvergenceError, ValueError) as error:
            assert "scale" in str(error) or "constant" in str(error)  # noqa: PT017 (either outcome is right)
        else:
            assert weights.isfinite().all()


def test_the_order_follows_the_graph_at_every_threshold_without_cycles() -> None:
    for seed in range(5):
        _, x = _small_set(seed)
        result = causal.dagma(x, iterations=300)  # too few: cycles are left
        place = result.order.argsort()
        smallest = causal.threshold_to_dag(result.weights).threshold.item()
        for threshold in (smallest, smallest + 0.1, 0.5):
            sources, targets = result.graph(threshold).nonzero(as_tuple=True)
            assert (place[sources] < place[targets]).all()


def _covariances(count: int, nodes: int) -> Tensor:
    root = torch.randn(count, nodes, nodes, generator=_generator(nodes), dtype=torch.float64)
    return root @ root.mT / nodes + torch.eye(nodes, dtype=torch.float64)


@pytest.mark.parametrize("nodes", [1, 3, 6, 13, 16, 21])  # from 16 on four pivots at a time
def test_compiled_barrier_steps_equal_their_reference(nodes: int) -> None:
    moments = _covariances(3, nodes)
    zero, row = torch.zeros_like(moments), torch.zeros(3, dtype=torch.float64)
    start = BarrierState(zero, zero, zero, zero, row + 0.6, row.long(), row.bool())
    # A large step size leaves the domain of scale 1 (and steps back), and that of scale .5 (and stops).
    scale = torch.tensor([1.0, 0.5, 30.0], dtype=torch.float64)
    for count in (1, 40):
        got, expected = (
            f(start, moments, row + 1, scale, 0.02, count) for f in (barrier_steps, barrier_steps_reference)
        )
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-9, atol=1e-9)
    assert nodes < 6 or got.left.tolist() == [False, True, False]
    assert nodes < 6 or got.rate[0] < 0.6
    assert (start.weights == 0).all()


@pytest.mark.parametrize("nodes", [1, 2, 5, 12])
@pytest.mark.parametrize("rho", [1.0, 1e6])
def test_compiled_orthantwise_steps_equal_their_reference(nodes: int, rho: float) -> None:
    moments = 4 * _covariances(2, nodes)
    start = torch.zeros_like(moments)
    alpha = torch.tensor([0.0, 2.0], dtype=torch.float64)
    for iterations in (1, 4):  # at the minimum rounding decides which step is short enough
        got, expected = (
            f(start, moments, alpha, torch.full_like(alpha, rho), 0.1, iterations=iterations)
            for f in (minimise_lagrangian, minimise_lagrangian_reference)
        )
        for g, e in zip(got, expected, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(got.acyclicity, causal.acyclicity(got.weights, method="exponential"))


def test_compiled_steps_with_masks_equal_their_references() -> None:
    moments = _covariances(2, 6)
    g = _generator(3)
    allowed = torch.rand(6, 6, generator=g) < 0.6
    required = (torch.rand(6, 6, generator=g) < 0.3).triu(1) & allowed
    zero, row = torch.zeros_like(moments), torch.zeros(2, dtype=torch.float64)
    known = {"allowed": allowed, "required": required}
    got, expected = (
        f(zero, 4 * moments, row, row + 1, 0.1, iterations=4, **known)
        for f in (minimise_lagrangian, minimise_lagrangian_reference)
    )
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    lifted = (got.weights.square() + required).sqrt()
    torch.testing.assert_close(got.acyclicity, causal.acyclicity(lifted, method="exponential"))
    start = BarrierState(zero, zero, zero, zero, row + 0.01, row.long(), row.bool())
    got, expected = (
        f(start, moments, row + 1, row + 1, 0.02, 30, **known) for f in (barrier_steps, barrier_steps_reference)
    )
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert (got.weights[:, ~allowed] == 0).all()


@pytest.mark.parametrize("nodes", [1, 2, 5, 12])
def test_compiled_annealing_equals_its_reference_and_autograd(nodes: int) -> None:
    moments = _covariances(2, nodes)
    g = _generator(0)
    strength = torch.randn(4, nodes, nodes, generator=g, dtype=torch.float64)
    priority = 0.1 * torch.randn(4, nodes, generator=g, dtype=torch.float64)
    zeros = [torch.zeros_like(t) for t in (strength, strength, priority, priority)]
    temperatures = torch.linspace(0.4, 0.1, 12, dtype=torch.float64)
    penalties = Penalties(1e-3, 2e-3, 3e-3, 0.05)
    start = Annealed(strength, priority, *zeros)
    allowed = torch.rand(nodes, nodes, generator=g) < 0.6
    each = moments * torch.rand(12, 1, 1, 1, generator=g, dtype=torch.float64)  # other moments at each step
    for given, arcs in ((moments[None], allowed), (moments[None], None), (each, None)):
        got, expected = (f(start, given, temperatures, 5, 0.01, penalties, arcs) for f in (anneal, anneal_reference))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7)
    once = anneal(start, moments[None], temperatures[:1], 0, 0.01, penalties)
    h, p = strength.clone().requires_grad_(), priority.clone().requires_grad_()
    weights = h * causal.orientation(p, temperature=0.4, shift=0.05)
    loss = causal.least_squares_score(weights, moments.repeat_interleave(2, 0)) + 1e-3 * h.abs().sum((-2, -1))
    loss = loss + 2e-3 * torch.linalg.vector_norm(h, dim=(-2, -1)) + 3e-3 * torch.linalg.vector_norm(p, dim=-1)
    for mean, gradient in zip((once[2], once[4]), torch.autograd.grad(loss.sum(), (h, p)), strict=True):
        torch.testing.assert_close(mean, 0.1 * gradient, rtol=1e-9, atol=1e-12)


def test_minibatches_by_their_moments_take_the_steps_of_their_samples() -> None:
    x = torch.randn(2, 300, 4, generator=_generator(1), dtype=torch.float64).cumsum(-1)
    nothing_set = torch.zeros_like(x, dtype=torch.bool)  # makes COSMO evaluate the samples themselves
    by_moments, by_samples = (
        causal.cosmo(x, iterations=250, restarts=3, minibatch=16, lr=0.02, targets=targets, generator=_generator(0))
        for targets in (None, nothing_set)
    )
    torch.testing.assert_close(by_moments.restart_weights, by_samples.restart_weights, rtol=1e-7, atol=1e-7)
    assert torch.equal(by_moments.order, by_samples.order)

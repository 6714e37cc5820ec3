"""Solves against closed forms, scipy and torchdiffeq; step control; errors; what the field may be."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import RK45, solve_ivp
from torch import Tensor, nn

from pullback.core.errors import ConvergenceError
from pullback.dynamics import METHODS, Event, NeuralODE, ODESolution, Tableau, odeint
from pullback.dynamics.tableaux import hermite

ADAPTIVE = [name for name, tableau in METHODS.items() if tableau.error is not None]


def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[..., 1], (1 - y[..., 0].square()) * y[..., 1] - y[..., 0]], -1)


def rate_numpy(mu: float):
    return lambda t, y: [y[1], mu * (1 - y[0] ** 2) * y[1] - y[0]]


RootedTree = tuple["RootedTree", ...]


@functools.cache
def rooted_trees(nodes: int) -> set[RootedTree]:
    """All rooted trees of so many nodes, each the sorted tuple of the trees on its root."""
    if nodes == 1:
        return {()}
    grown = set()
    for tree in rooted_trees(nodes - 1):  # every tree is a smaller one with one leaf more
        grown |= _with_leaf(tree)
    return grown


def _with_leaf(tree: RootedTree) -> set[RootedTree]:
    grown = {tuple(sorted((*tree, ())))}
    for i, branch in enumerate(tree):
        grown |= {tuple(sorted((*tree[:i], larger, *tree[i + 1 :]))) for larger in _with_leaf(branch)}
    return grown


def size(tree: RootedTree) -> int:
    return 1 + sum(map(size, tree))


def density(tree: RootedTree) -> int:
    return size(tree) * math.prod(map(density, tree))


def weight(tree: RootedTree, a: np.ndarray) -> np.ndarray:
    """The elementary weight of every stage."""
    return math.prod((a @ weight(branch, a) for branch in tree), start=np.ones(len(a)))


@pytest.mark.parametrize("name", [n for n, t in METHODS.items() if not t.partitioned and "adams" not in n])
def test_tableaux_fulfil_the_order_conditions(name: str) -> None:
    """One condition for each rooted tree (Butcher): 1, 1, 2, 4, 9, 20, 48, 115 of 1 to 8 nodes."""
    tableau: Tableau = METHODS[name]
    a, b = np.array(tableau.a), np.array(tableau.b)
    assert np.allclose(a.sum(1), tableau.c, atol=1e-14)
    assert [len(rooted_trees(nodes)) for nodes in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]
    for nodes in range(1, tableau.order + 1):
        for tree in rooted_trees(nodes):
            assert b @ weight(tree, a) == pytest.approx(1 / density(tree), abs=1e-13)
    beyond = [abs(b @ weight(tree, a) - 1 / density(tree)) for tree in rooted_trees(tableau.order + 1)]
    assert max(beyond) > 1e-6  # its order is not higher


@pytest.mark.parametrize(("name", "order"), [("dopri5", 4), ("tsit5", 4), ("dopri8", 5), ("radau5", 3), ("bosh3", 3)])
def test_dense_output_has_its_order_and_meets_the_ends(name: str, order: int) -> None:
    tableau = METHODS[name]
    a, b = np.array(tableau.a), np.array(tableau.b)
    dense = np.array(tableau.dense) if tableau.dense else hermite(tableau.b)
    powers = np.arange(1, dense.shape[1] + 1)
    assert np.allclose(dense.sum(1), b, atol=1e-13)
    assert np.allclose(dense[:, 0], np.eye(len(b))[0], atol=1e-13)
    assert np.allclose(dense @ powers, np.eye(len(b))[-1], atol=1e-12)
    for nodes in range(1, order + 1):
        for tree in rooted_trees(nodes):
            wanted = (powers == nodes) / density(tree)
            assert np.allclose(weight(tree, a) @ dense, wanted, atol=1e-12)


def test_leapfrog_fulfils_the_conditions_of_both_halves() -> None:
    tableau = METHODS["leapfrog"]
    a, b = np.array(tableau.a), np.array(tableau.b)
    assert tableau.a_second is not None
    second, weights = np.array(tableau.a_second), np.array(tableau.b_second)
    assert b.sum() == weights.sum() == 1
    assert b @ second.sum(1) == weights @ a.sum(1) == 1 / 2  # each half's slope at the other's midpoint


@pytest.mark.parametrize("name", ADAPTIVE)
def test_embedded_methods_have_one_order_less(name: str) -> None:
    tableau = METHODS[name]
    embedded = np.array(tableau.b) - np.array(tableau.error)
    for order in range(tableau.order - 1):
        assert embedded @ np.array(tableau.c) ** order == pytest.approx(1 / (order + 1), abs=1e-13)


def test_dopri5_has_scipys_coefficients() -> None:
    tableau = METHODS["dopri5"]
    assert np.allclose(np.array(tableau.a)[:6, :5], RK45.A)
    assert np.allclose(tableau.error, -RK45.E)
    assert np.allclose(tableau.dense, RK45.P)


@pytest.mark.parametrize("method", ["dopri5", "tsit5", "bosh3", "kvaerno3"])
def test_agrees_with_dop853(method: str) -> None:
    t = torch.linspace(0, 5, 7, dtype=torch.float64)
    truth = solve_ivp(rate_numpy(1.0), (0, 5), [2.0, 0.0], "DOP853", t.numpy(), rtol=1e-12, atol=1e-12).y.T
    y0 = torch.tensor([2.0, 0.0], dtype=torch.float64)
    solution = odeint(van_der_pol, y0, t, method=method, rtol=1e-6, atol=1e-8)
    assert np.abs(solution.y.numpy() - truth).max() < 2e-5
    assert solution.accepted.shape == ()
    assert bool(solution.converged)


def test_stiff_problem_takes_few_steps_with_kvaerno3() -> None:
    def field(t: Tensor, y: Tensor) -> Tensor:  # falls at once onto a slow, nonlinear curve
        return torch.stack([-1e4 * (y[..., 0] - y[..., 1].square()), -y[..., 1]], -1)

    y0 = torch.tensor([2.0, 1.0], dtype=torch.float64)
    solution = odeint(field, y0, [0.0, 2.0], method="kvaerno3", rtol=1e-4, atol=1e-6)
    rest = math.exp(-2.0)
    assert solution.y[-1, 1].item() == pytest.approx(rest, rel=1e-3)
    assert solution.y[-1, 0].item() == pytest.approx(rest**2 * 1e4 / (1e4 - 2), rel=1e-3)
    assert int(solution.accepted) < 100
    with pytest.raises(ConvergenceError, match="kvaerno3"):
        odeint(field, y0, [0.0, 2.0], method="dopri5", max_steps=100)


def test_a_sample_does_not_depend_on_its_company(generator: torch.Generator) -> None:
    rates = torch.logspace(0, 2.5, 16, dtype=torch.float64).unsqueeze(1)
    y0 = torch.rand(16, 2, generator=generator, dtype=torch.float64)
    together = odeint(lambda t, y: -rates * (y - torch.cos(t)), y0, [0.0, 1.0, 2.0])
    for i in range(16):
        alone = odeint(lambda t, y, i=i: -rates[i] * (y - torch.cos(t)), y0[i], [0.0, 1.0, 2.0])
        assert torch.allclose(together.y[:, i], alone.y, atol=1e-12, rtol=0)
        assert together.accepted[i] == alone.accepted
        assert together.rejected[i] == alone.rejected
    shared = odeint(lambda t, y: -rates * (y - torch.cos(t)), y0, [0.0, 1.0, 2.0], shared_step=True)
    assert (shared.y - together.y).abs().max() > 1e-7
    assert len(set(shared.accepted.tolist())) == 1
    assert len(set(together.accepted.tolist())) > 3


def test_error_follows_the_tolerance() -> None:
    y0 = torch.tensor([2.0, 0.0], dtype=torch.float64)
    truth = solve_ivp(rate_numpy(1.0), (0, 8), [2.0, 0.0], "DOP853", rtol=1e-13, atol=1e-13).y[:, -1]
    evaluations = []
    for rtol in (1e-3, 1e-5, 1e-7):
        solution = odeint(van_der_pol, y0, [0.0, 8.0], rtol=rtol, atol=1e-2 * rtol)
        assert np.abs(solution.y[-1].numpy() - truth).max() < 30 * rtol
        evaluations.append(solution.evaluations)
    assert evaluations == sorted(set(evaluations))


def test_backwards_and_per_sample_times(generator: torch.Generator) -> None:
    y0 = torch.rand(3, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor([[0.0, 0.3, 1.0], [2.0, 1.0, -1.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    for options in ({"rtol": 1e-10, "atol": 1e-12}, {"method": "rk4", "step": 0.01}):
        solution = odeint(lambda s, y: y * torch.cos(s), y0, t, **options)
        exact = y0 * torch.exp(torch.sin(t) - torch.sin(t[:, :1])).T.unsqueeze(-1)
        assert torch.allclose(solution.y, exact, atol=1e-8)


def test_trees_and_images(generator: torch.Generator) -> None:
    y0 = {"a": torch.rand(3, 2, generator=generator), "b": (torch.rand(3, 4, generator=generator),)}
    solution = odeint(lambda t, y: {"a": -y["a"], "b": (y["b"][0] * t,)}, y0, [0.0, 1.0])
    assert torch.allclose(solution.y["a"][-1], y0["a"] * math.exp(-1), atol=1e-5)
    assert torch.allclose(solution.y["b"][0][-1], y0["b"][0] * math.exp(0.5), atol=1e-4)
    image = torch.rand(2, 3, 4, 4, generator=generator)
    convolution = nn.Conv2d(3, 3, 3, padding=1)
    plain = odeint(lambda t, y: convolution(y) * t, image, [0.0, 1.0], batch_ndim=1, rtol=1e-6)
    assert plain.accepted.shape == (2,)
    alone = odeint(lambda t, y: convolution(y) * t, image[:1], [0.0, 1.0], batch_ndim=1, rtol=1e-6)
    assert torch.allclose(plain.y[:, :1], alone.y, atol=1e-6)


def test_dense_output_is_as_good_as_the_solution(without_shape_checks: None) -> None:
    y0 = torch.tensor([[2.0, 0.0], [1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    queries = {end: torch.linspace(0.1 * end, 0.98 * end, 11, dtype=torch.float64) for end in (3.0, 0.2)}
    exact = {
        end: odeint(van_der_pol, y0, [0.0, *query.tolist()], method="dopri8", rtol=1e-11, atol=1e-12).y[1:]
        for end, query in queries.items()
    }
    slopes = {end: torch.autograd.grad(y.sum(), y0, retain_graph=True)[0] for end, y in exact.items()}
    for method in ADAPTIVE:
        end = 3.0 if METHODS[method].order > 2 else 0.2  # low order takes many small steps, whose errors add up
        query, wanted = queries[end], exact[end]
        solution = odeint(van_der_pol, y0, [0.0, end], method=method, dense=True, rtol=1e-7, atol=1e-9)
        got = solution.interpolate(query)
        assert (got - wanted).abs().max() < 2e-5
        (a,) = torch.autograd.grad(got.sum(), y0, retain_graph=True)
        assert torch.allclose(a, slopes[end], rtol=1e-3)
        # one time alone and eleven together: the sums over stages may add up in another order
        assert torch.allclose(solution.interpolate(float(query[3])), got[3], rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match="inside the solve"):
        solution.interpolate(5.5)
    with pytest.raises(ValueError, match="dense=True"):
        odeint(van_der_pol, y0, [0.0, 1.0]).interpolate(0.5)


def test_partial_solution_instead_of_an_exception() -> None:
    rates = torch.tensor([[1.0], [3000.0]], dtype=torch.float64)
    y0 = torch.ones(2, 1, dtype=torch.float64)
    with pytest.raises(ConvergenceError, match=r"max_steps=50 .*sample 1 stopped at t=.*kvaerno3") as caught:
        odeint(lambda t, y: -rates * y, y0, [0.0, 1.0], max_steps=50)
    for solution in (
        caught.value.result,
        odeint(lambda t, y: -rates * y, y0, [0.0, 1.0], max_steps=50, check=False),
    ):
        assert solution.converged.tolist() == [True, False]
        assert solution.y[-1, 0].item() == pytest.approx(math.exp(-1), abs=1e-5)
        assert math.isnan(solution.y[-1, 1].item())
        assert 0 < solution.reached[1] < 1
        assert solution.final[1].item() == pytest.approx(math.exp(-3000 * float(solution.reached[1])), abs=1e-5)


def test_nan_names_sample_and_time() -> None:
    y0 = torch.tensor([[1.0], [0.5]], dtype=torch.float64)

    def root(t: Tensor, y: Tensor) -> Tensor:  # falls to zero at t = 2 sqrt(y0), then has no real root
        return -torch.sqrt(y)

    with pytest.raises(ConvergenceError, match=r"sample 1 stopped at t=1\.41.*NaN"):
        odeint(lambda t, y: -torch.sqrt(y) - 0 * t, y0, [0.0, 1.8])
    with pytest.raises(ConvergenceError, match=r"NaN or infinite in sample 1, component 0 at t=1\.4"):
        odeint(root, y0, [0.0, 1.8], method="euler", step=0.1)


def test_blow_up_is_named() -> None:
    with pytest.raises(ConvergenceError, match=r"resolution of time; sample 0 stopped at t=1"):
        odeint(lambda t, y: y.square(), torch.ones(1, 1, dtype=torch.float64), [0.0, 2.0])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"t": [0.0, 2.0, 1.0]}, "t must be monotone, got 2.0 before 1.0"),
        ({"t": torch.zeros(5, 2)}, r"t must have shape \[times\]"),
        ({"method": "dopri"}, "method must be one of 'dopri5', 'tsit5', .*did you mean 'dopri"),
        ({"adjoint": "adjoint"}, "adjoint must be one of 'checkpoint'"),
        ({"adjoint": "backsolve", "method": "kvaerno3"}, "adjoint must be one of 'checkpoint', 'unrolled', 'symp"),
        ({"adjoint": "backsolve", "dense": True}, "with dense=True"),
        ({"max_steps": 0}, "max_steps must be an integer >= 1"),
        ({"field": lambda t, y: y[:, :1]}, "field must return the shape of y"),
        ({"y0": (torch.tensor(1.0),)}, "at least one dimension"),
        ({"method": "leapfrog"}, "separable"),
        ({"method": "leapfrog", "y0": torch.ones(3, 3)}, "y0 must be a pair .* got sizes"),
        ({"rtol": torch.tensor(-1.0)}, "rtol must be > 0, got -1.0"),
        ({"rtol": torch.full((7,), 1e-3)}, "rtol"),
        ({"rtol": torch.tensor(1e-3, requires_grad=True)}, "rtol has no gradient"),
        ({"atol": -1.0}, "atol must be >= 0"),
        ({"step": torch.tensor(-0.1)}, "step must be > 0"),
        ({"step": torch.ones(3, 1)}, "step must be a number or a tensor without dimensions"),
        ({"step": math.inf}, "step must be > 0, got inf"),
        ({"t": []}, "t must hold one time or more, got 0"),
        ({"t": torch.tensor(1.0)}, "t must hold one time or more, got a scalar"),
        ({"t": [0.0, math.nan]}, "t must be finite"),
        ({"y0": torch.tensor([[1.0, math.inf]])}, "y0 must be finite"),
        ({"y0": []}, "y0 must hold at least one tensor"),
        ({"y0": torch.ones(3, 0)}, r"y0 must hold at least one number a sample, got shapes \(\(0,\),\) behind"),
        ({"shared_step": True, "t": torch.tensor([[0.0, 1.0]]).expand(3, 2)}, "t must be the same for all samples"),
        ({"shared_step": True, "events": Event(lambda t, y: y[..., 0])}, "shared_step must be False with events"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict, match: str) -> None:
    call = {"field": lambda t, y: -y, "y0": torch.ones(3, 2), "t": [0.0, 1.0], **arguments}
    with pytest.raises(ValueError, match=match):
        odeint(call.pop("field"), call.pop("y0"), call.pop("t"), **call)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"max_steps": 1.5}, "max_steps must be an integer"),
        ({"rtol": "small"}, "rtol must be a number"),
        ({"t": "01"}, "t must be a tensor or a sequence of numbers, got str"),
        ({"t": 1.0}, "t must be a tensor or a sequence of numbers, got float"),
        ({"t": [0.0, None]}, "t must hold numbers, got NoneType"),
        ({"t": torch.tensor([0j, 1j])}, "t must hold real numbers"),
        ({"y0": torch.ones(2, 2, dtype=torch.int64)}, "y0 must be a floating or complex tensor"),
        ({"y0": [1.0, 2.0]}, "y0 must be a floating or complex tensor"),
        ({"batch_ndim": 1.0}, "batch_ndim must be an integer"),
        ({"params": [1.0]}, "params must hold tensors, got float"),
        ({"events": lambda t, y: y[..., 0]}, "events must be an Event"),
    ],
)
def test_wrong_types_are_named(arguments: dict, match: str, without_shape_checks: None) -> None:
    call = {"field": lambda t, y: -y, "y0": torch.ones(3, 2), "t": [0.0, 1.0], **arguments}
    with pytest.raises(TypeError, match=match):
        odeint(call.pop("field"), call.pop("y0"), call.pop("t"), **call)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_a_component_that_stays_zero_needs_no_absolute_tolerance(method: str) -> None:
    y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    solution = odeint(lambda t, y: -y, y0, [0.0, 1.0], method=method, rtol=1e-5, atol=0.0)
    loose = 2e-3 if method == "fehlberg2" else 1e-4  # its two methods are nearly the same: the estimate is small
    assert solution.y[-1, 0].tolist() == pytest.approx([math.exp(-1), 0.0], rel=loose)


@pytest.mark.parametrize("size", [1e-30, 1e8, 1e30])
@pytest.mark.parametrize("shared", [False, True])
def test_large_and_small_states_are_solved_as_any(size: float, shared: bool) -> None:
    y0 = torch.tensor([[1.0, -0.5], [0.25, 2.0]])
    solution = odeint(lambda t, y: -y, size * y0, [0.0, 1.0], shared_step=shared, atol=1e-7 * size)
    assert torch.allclose(solution.y[-1] / size, y0 * math.exp(-1), rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{}, {"shared_step": True}, {"step": 0.5}, {"adjoint": "unrolled"}], ids=str)
def test_no_samples_are_solved_too(method: str, options: dict) -> None:
    rate = torch.tensor(0.5, requires_grad=True)
    none = torch.ones(0, 2, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([-rate * y[..., 1], rate * y[..., 0]], -1)

    shared = "shared_step" in options
    for t in (torch.tensor([0.0, 0.4, 1.0]), torch.zeros(0, 3))[: 1 if shared else 2]:
        solution = odeint(field, none, t, method=method, dense=True, **options)
        inside = solution.interpolate(0.0 if len(t) == 3 else torch.zeros(0, 2))
        y = odeint(field, none, t, method=method, **options).y
        assert y.shape == (3, 0, 2)
        assert inside.shape[-2:] == (0, 2)
        gradients = torch.autograd.grad(y.sum() + inside.sum(), [none, rate], allow_unused=True, materialize_grads=True)
        assert gradients[0].shape == (0, 2)
        assert float(gradients[1]) == 0
    if not shared:
        ended = odeint(field, none, [0.0, 1.0], method=method, events=Event(lambda t, y: y.sum(-1)), **options)
        assert ended.event_times is not None
        assert ended.event_times.shape[1:] == (0,)


@pytest.mark.parametrize("method", ["dopri5", "rk4", "kvaerno3"])
def test_no_time_is_solved_too(method: str) -> None:
    y0 = torch.ones(2, 3, requires_grad=True)
    still = odeint(lambda t, y: -y, y0, [0.5, 0.5, 0.5], method=method).y
    assert torch.equal(still, y0.expand(3, 2, 3))
    assert torch.allclose(torch.autograd.grad(still.sum(), y0)[0], torch.full((2, 3), 3.0))


def test_numbers_may_be_tensors() -> None:
    def end(**options: object) -> Tensor:
        return odeint(van_der_pol, torch.tensor([2.0, 0.0]), [0.0, 1.0], **options).y[-1]

    assert torch.equal(end(rtol=torch.tensor(0.5)), end(rtol=0.5))  # the same number, so the same steps
    assert torch.equal(end(step=torch.tensor(0.25)), end(step=0.25))


def test_symplectic_methods_keep_the_energy() -> None:
    y0 = (torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[0.0]], dtype=torch.float64))
    t = torch.linspace(0, 60, 13, dtype=torch.float64)

    def energy(y: tuple[Tensor, Tensor]) -> Tensor:
        return (0.5 * y[1] ** 2 - torch.cos(y[0])).flatten()

    for method in ("leapfrog", "implicit_midpoint"):
        y = odeint(lambda s, y: (y[1], -torch.sin(y[0])), y0, t, method=method, step=0.2).y
        assert (energy(y) - energy(y)[0]).abs().max() < 5e-3
    drifting = odeint(lambda s, y: (y[1], -torch.sin(y[0])), y0, t, method="heun", step=0.2).y
    assert (energy(drifting) - energy(drifting)[0]).abs().max() > 2e-2


def test_half_precision_states_are_solved_in_float32(generator: torch.Generator) -> None:
    y0 = torch.rand(4, 3, generator=generator).to(torch.bfloat16)
    seen = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        seen.append(y.dtype)
        return -y

    y = odeint(field, y0, [0.0, 1.0], rtol=1e-4).y
    assert y.dtype == torch.bfloat16
    assert set(seen) == {torch.bfloat16}
    assert torch.allclose(y[-1].float(), y0.float() * math.exp(-1), rtol=2e-2)


def test_compiled_field_gives_the_same(generator: torch.Generator) -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    compiled = torch.compile(net, backend="aot_eager")
    y0 = torch.rand(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    grads = []
    for f in (net, compiled):
        end = odeint(lambda t, y, f=f: f(y), y0, [0.0, 1.0]).y[-1]
        grads.append(torch.autograd.grad(end.sum(), [y0, *net.parameters()]))
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_a_final_euler_step_is_a_residual_block(generator: torch.Generator) -> None:
    layer = nn.Linear(3, 3)

    class Field(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            return self.layer(y).tanh()

    y = torch.randn(5, 3, generator=generator)
    network = nn.Sequential(NeuralODE(Field(), final=True, method="euler"), NeuralODE(Field(), final=True, step=0.5))
    residual = y + layer(y).tanh()
    assert torch.allclose(network[0](y), residual, atol=1e-6)
    assert torch.allclose(network(y), odeint(Field(), residual, [0.0, 1.0], step=0.5).y[-1], atol=1e-6)


def test_module_counts_its_evaluations_in_the_result() -> None:
    class Field(nn.Linear):
        calls = 0

        def forward(self, t: Tensor, y: Tensor) -> Tensor:
            Field.calls += 1
            return super().forward(y)

    block = NeuralODE(Field(3, 3), [0.0, 1.0])
    solution = block(torch.ones(2, 3))
    assert isinstance(solution, ODESolution)
    assert solution.evaluations == Field.calls
    solution.y[-1].sum().backward()
    assert solution.evaluations + solution.backward_evaluations == Field.calls

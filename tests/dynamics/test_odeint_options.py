"""What ``odeint`` takes besides a vector and a tolerance: numbers, complex states, jumps, grids, endless solves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pullback.core.errors import ConvergenceError
from pullback.dynamics import ADJOINTS, METHODS, AttemptedStep, Backsolve, Event, StepControl, convergence_order, odeint

IMPLICIT = [name for name, tableau in METHODS.items() if tableau.implicit]
TIGHT = {"rtol": 1e-10, "atol": 1e-12}


def decay(t: Tensor, y: Tensor) -> Tensor:
    return -y


def falling(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[..., 1], -10 + 0 * y[..., 1]], -1)


def switched(t: Tensor, y: Tensor) -> Tensor:
    return torch.where(t < 0.5, -0.5 * y, y**2)


def switched_exact(y0: Tensor, t: float) -> Tensor:
    first = y0 * math.exp(-0.5 * min(t, 0.5))
    return first if t <= 0.5 else 1 / (1 / first - (t - 0.5))


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_a_number_is_a_state(adjoint: str) -> None:
    y0 = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    solution = odeint(lambda t, y: -t * y, y0, [0.0, 1.0, 2.0], adjoint=adjoint, **TIGHT)
    assert solution.y.shape == (3,)
    assert solution.accepted.shape == ()
    assert solution.y.tolist() == pytest.approx([1.5, 1.5 * math.exp(-0.5), 1.5 * math.exp(-2)])
    (slope,) = torch.autograd.grad(solution.y[-1], y0)
    assert slope.item() == pytest.approx(math.exp(-2))


def test_one_number_each_sample_gets_one_time_each() -> None:
    y0 = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    solution = odeint(lambda t, y: -t * y, y0, [0.0, 1.0], batch_ndim=1)
    assert torch.allclose(solution.y[-1], y0 * math.exp(-0.5), rtol=1e-4)


def test_one_time_is_the_start() -> None:
    y0 = torch.tensor([1.0, 2.0], requires_grad=True)
    for options in ({}, {"method": "rk4"}, {"events": Event(lambda t, y: y[..., 0])}):
        solution = odeint(decay, y0, [0.3], **options)
        assert torch.equal(solution.y, y0[None])
        assert bool(solution.converged)
        assert torch.autograd.grad(solution.y.sum(), y0)[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_complex_states_have_wirtinger_gradients(adjoint: str) -> None:
    z = torch.tensor([1 + 0.5j, -0.3 + 2j], dtype=torch.complex128, requires_grad=True)

    def field(t: Tensor, y: Tensor) -> Tensor:
        return (1j - 0.2) * y + 0.1 * y.conj() ** 2  # not holomorphic

    def solve(z: Tensor) -> Tensor:
        return odeint(field, z, [0.0, 0.3, 1.0], adjoint=adjoint, **TIGHT).y

    truth = solve_ivp(
        lambda t, y: (1j - 0.2) * y + 0.1 * y.conj() ** 2, (0, 1), z.detach().numpy(), rtol=1e-11, atol=1e-12
    ).y
    assert np.abs(solve(z).detach().numpy()[-1] - truth[:, -1]).max() < 1e-7
    assert gradcheck(solve, (z,))


def test_complex_states_of_every_kind() -> None:
    turn = torch.tensor([1.0 + 0j, 2j], dtype=torch.complex128)
    for method in ("dopri8", "rk4", "radau5", "gauss6"):
        y = odeint(lambda t, y: 1j * y, turn, [0.0, 1.0], method=method, step=0.02).y[-1]
        assert torch.allclose(y, turn * np.exp(1j), rtol=1e-6)
    nested = odeint(lambda t, y: (1j * y[0], -y[1]), (turn, turn), [0.0, 1.0], **TIGHT).y
    assert torch.allclose(nested[0][-1], turn * np.exp(1j))
    assert torch.allclose(nested[1][-1], turn * math.exp(-1))
    single = odeint(lambda t, y: 1j * y, torch.tensor(1 + 0j), [0.0, math.pi])
    assert single.y.dtype == torch.complex64
    assert abs(complex(single.y[-1]) + 1) < 1e-4
    crossing = odeint(lambda t, y: 1j * y, turn, [0.0, 9.0], events=Event(lambda t, y: y[..., 0].real), **TIGHT)
    assert crossing.event_times[0].item() == pytest.approx(math.pi / 2)
    with pytest.raises(TypeError, match="floating or complex"):
        odeint(decay, torch.ones(2, dtype=torch.int64), [0.0, 1.0])


def test_a_complex_number_is_controlled_by_its_modulus() -> None:
    """Turned around by any angle, a problem takes the same steps."""
    y0 = torch.tensor([3.0 + 0j], dtype=torch.complex128)
    runs = [
        odeint(lambda t, y: (2j - 0.1) * y, y0 * np.exp(1j * angle), [0.0, 5.0], atol=1e-12) for angle in (0.0, 1.1)
    ]
    assert runs[0].accepted == runs[1].accepted
    assert torch.allclose(runs[0].y * np.exp(1.1j), runs[1].y, rtol=1e-10)


@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_jumps_are_stepped_to_and_from(adjoint: str) -> None:
    y0 = torch.tensor([[1.0, 1.7], [0.5, 0.3]], dtype=torch.float64, requires_grad=True)
    t = [0.0, 0.3, 0.5, 0.7, 1.0]
    control = StepControl(jumps=[0.5])
    solution = odeint(switched, y0, t, control=control, adjoint=adjoint, **TIGHT)
    wanted = torch.stack([switched_exact(y0, time) for time in t])
    assert torch.allclose(solution.y, wanted, rtol=1e-8)
    weights = torch.linspace(0.5, 2, wanted.numel(), dtype=torch.float64).view_as(wanted)
    (got,), (exact,) = (torch.autograd.grad((y * weights).sum(), y0) for y in (solution.y, wanted))
    assert torch.allclose(got, exact, rtol=1e-6)
    blind = odeint(switched, y0, t, adjoint=adjoint, **TIGHT)
    assert solution.evaluations < blind.evaluations / 2


def test_jumps_of_each_sample_backwards_and_in_dense_output() -> None:
    when = torch.tensor([[0.25], [0.75]], dtype=torch.float64)

    def field(t: Tensor, y: Tensor) -> Tensor:
        assert not bool((t == when).any())  # neither side of the jump is its middle
        return torch.where(t < when, 1.0, -1.0) + 0 * y

    y0 = torch.zeros(2, 1, dtype=torch.float64)
    solution = odeint(field, y0, [0.0, 1.0], control=StepControl(jumps=when), dense=True)
    assert solution.y[-1, :, 0].tolist() == pytest.approx([-0.5, 0.5])
    query = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
    wanted = torch.minimum(query, when) - torch.clamp(query - when, min=0)
    assert torch.allclose(solution.interpolate(query)[..., 0].T, wanted)
    assert float(solution.accepted.sum()) < 30
    back = odeint(field, solution.y[-1], [1.0, 0.0], control=StepControl(jumps=when))
    assert torch.allclose(back.y[-1], y0, atol=1e-12)
    for outside in ([-1.0, 2.0], [0.0], [1.0], [0.25, 0.25]):
        same = odeint(decay, y0 + 1, [0.0, 1.0], control=StepControl(jumps=outside), **TIGHT)
        assert torch.allclose(same.y[-1], torch.full_like(y0, math.exp(-1)))
    for method in ("rk4", "radau5"):
        grid = odeint(field, y0, [0.0, 1.0], method=method, step=0.2, control=StepControl(jumps=when))
        assert grid.y[-1, :, 0].tolist() == pytest.approx([-0.5, 0.5])


@pytest.mark.parametrize("method", ["dopri5", "rk4"])
def test_times_of_jumps_have_a_gradient(method: str) -> None:
    """dy/dt = -y up to j, then 2 y: y(1) = y0 exp(2 - 3 j)."""
    y0 = torch.tensor([[1.0], [0.5]], dtype=torch.float64, requires_grad=True)
    step = {"step": 0.05} if method == "rk4" else TIGHT
    for given in (torch.tensor([0.3]), torch.tensor([[0.3], [0.6]])):
        jump = given.double().requires_grad_()

        def field(t: Tensor, y: Tensor, at: list[float] = given.tolist()) -> Tensor:  # noqa: B008
            return torch.where(t < torch.tensor(at, dtype=t.dtype), -y, 2 * y)

        y = odeint(field, y0, [0.0, 0.9, 1.0], method=method, control=StepControl(jumps=jump), **step).y
        exact = y0 * torch.exp(2 - 3 * jump).reshape(-1, 1)
        assert torch.allclose(y[-1], exact, rtol=1e-5)
        got = torch.autograd.grad(y[-1].sum(), [jump, y0])
        wanted = torch.autograd.grad(exact.sum(), [jump, y0])
        assert all(torch.allclose(a, b, rtol=1e-4) for a, b in zip(got, wanted, strict=True))


def test_steps_are_no_longer_and_no_shorter_than_told() -> None:
    y0 = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    taken: list[AttemptedStep] = []
    odeint(decay, y0, [0.0, 1.0], control=StepControl(largest=0.05), on_step=taken.append)
    assert max(float(step.length) for step in taken) <= 0.05 + 1e-12
    assert sum(int(step.accepted) for step in taken) == len(taken)
    taken.clear()
    odeint(lambda t, y: -50 * y, y0, [0.0, 1.0], control=StepControl(smallest=0.1), on_step=taken.append)
    lengths = [float(step.length) for step in taken]
    assert min(lengths[:-1]) >= 0.1 - 1e-12
    assert len(lengths) < 15
    taken.clear()
    odeint(decay, y0, [0.0, 1.0], control=StepControl(first=0.01, grow=2.0), on_step=taken.append)
    assert float(taken[0].length) == pytest.approx(0.01)
    assert float(taken[1].length) == pytest.approx(0.02)
    assert torch.equal(taken[0].y, y0)


def test_rejected_steps_are_told_too() -> None:
    taken: list[AttemptedStep] = []
    y0 = torch.tensor([2.0, 0.0], dtype=torch.float64)

    def van_der_pol(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[..., 1], 10 * (1 - y[..., 0].square()) * y[..., 1] - y[..., 0]], -1)

    solution = odeint(van_der_pol, y0, [0.0, 20.0], on_step=taken.append)
    assert sum(bool(step.accepted) for step in taken) == int(solution.accepted)
    assert sum(not bool(step.accepted) for step in taken) == int(solution.rejected) > 0
    for before, after in itertools.pairwise(taken):
        moved = float(before.t + before.length) if bool(before.accepted) else float(before.t)
        assert float(after.t) == pytest.approx(moved)


def test_a_norm_of_ones_own_chooses_the_steps() -> None:
    y0 = {"slow": torch.tensor([[1.0]]), "fast": torch.tensor([[1.0, 1.0]])}

    def field(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"slow": -y["slow"], "fast": 30 * torch.cos(30 * t) + 0 * y["fast"]}

    def of_slow(x: dict[str, Tensor]) -> Tensor:
        assert set(x) == {"slow", "fast"}
        return x["slow"].abs().amax(-1)

    whole = odeint(field, y0, [0.0, 2.0])
    slow = odeint(field, y0, [0.0, 2.0], control=StepControl(norm=of_slow))
    assert slow.accepted.item() * 3 < whole.accepted.item()
    strict = odeint(field, y0, [0.0, 2.0], control=StepControl(norm=lambda x: 10 * of_slow(x)))
    assert strict.accepted.item() > slow.accepted.item()
    with pytest.raises(ValueError, match=r"norm must return a tensor of shape \(1,\), got \(\)"):
        odeint(field, y0, [0.0, 2.0], control=StepControl(norm=lambda x: x["slow"].sum()))


def test_every_component_may_have_its_tolerance() -> None:
    y0 = {"slow": torch.ones(1, 2), "fast": torch.ones(1, 1)}

    def field(t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"slow": -y["slow"], "fast": 30 * torch.cos(30 * t) + 0 * y["fast"]}

    whole = odeint(field, y0, [0.0, 2.0])
    loose = odeint(field, y0, [0.0, 2.0], atol={"slow": torch.tensor([1e-7, 1e-6]), "fast": 1e6})
    assert loose.accepted.item() * 3 < whole.accepted.item()
    assert torch.allclose(loose.y["slow"][-1], torch.full((1, 2), math.exp(-2)), rtol=1e-4)
    single = {"rtol": torch.tensor([1e-5, 1e-5]), "atol": torch.tensor(1e-7)}
    z = torch.tensor([[1.0, 2.0]], requires_grad=True)
    for adjoint in ("checkpoint", "backsolve"):
        same = [odeint(decay, z, [0.0, 1.0], adjoint=adjoint, **words) for words in ({}, single)]
        assert torch.equal(same[0].y, same[1].y)
        (slope,) = torch.autograd.grad(same[1].y[-1].sum(), z)
        assert torch.allclose(slope, torch.full_like(z, math.exp(-1)), rtol=1e-4)
    turn = odeint(lambda t, y: 1j * y, torch.ones(3, dtype=torch.complex64), [0.0, 1.0], rtol=torch.full((3,), 1e-5))
    assert torch.allclose(turn.y[-1], torch.full((3,), complex(np.exp(1j)), dtype=torch.complex64), rtol=1e-4)
    for wrong, message in (
        (torch.ones(3), "rtol"),
        ([1e-5, 1e-5], "structure of y0"),
        (torch.tensor([1e-5, -1.0]), "rtol must be > 0"),
        (torch.tensor([1e-5, 1e-5], requires_grad=True), "rtol has no gradient"),
    ):
        with pytest.raises(ValueError, match=message):
            odeint(decay, z, [0.0, 1.0], rtol=wrong)


def test_the_reverse_solve_has_choices_of_its_own() -> None:
    y0 = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    there: list[AttemptedStep] = []
    back: list[AttemptedStep] = []
    norms: list[tuple[int, ...]] = []

    def norm(pair: tuple[Tensor, Tensor]) -> Tensor:
        norms.append(tuple(part.shape[-1] for part in pair))
        return torch.stack([part.abs().amax(-1) for part in pair]).amax(0)

    own = Backsolve(rtol=1e-9, atol=1e-11, method="tsit5", control=StepControl(norm=norm), on_step=back.append)
    solution = odeint(lambda t, y: -rate * y, y0, [0.0, 1.0], rtol=1e-3, adjoint=own, on_step=there.append)
    got = torch.autograd.grad(solution.y[-1].sum(), [y0, rate])
    assert set(norms) == {(2, 2)}
    assert len(back) > 2 * len(there)
    assert float(back[0].t) == 1.0
    assert all(float(step.length) < 0 for step in back)
    assert len(back[0].y) == 2
    assert torch.allclose(got[0], torch.full_like(y0, math.exp(-0.7)), rtol=1e-5)
    assert got[1].item() == pytest.approx(-3 * math.exp(-0.7), rel=1e-3)
    with pytest.raises(ValueError, match="method must be one of"):
        Backsolve(method="kvaerno3")


@pytest.mark.parametrize("method", ["dopri5", "kvaerno3", "rk4", "bosh3"])
def test_an_event_ends_a_solve_without_an_end(method: str) -> None:
    height = torch.tensor([[20.0, 0.0], [5.0, 0.0]], dtype=torch.float64, requires_grad=True)
    step = {"step": 0.1} if method == "rk4" else {"rtol": 1e-8, "atol": 1e-10}
    ground = Event(lambda t, y: y[..., 0])
    fall = odeint(falling, height, [0.0, math.inf], events=ground, method=method, **step)
    assert fall.event_times[0].tolist() == pytest.approx([2.0, 1.0])
    assert fall.y[-1, :, 1].tolist() == pytest.approx([-20.0, -10.0])
    assert bool(fall.converged.all())
    (slope,) = torch.autograd.grad(fall.event_times.sum(), height)
    assert slope[:, 0].tolist() == pytest.approx([1 / 20, 1 / 10], rel=1e-5)  # 1 / sqrt(2 g h)
    rise = odeint(falling, height, torch.tensor([0.0, -math.inf]), events=ground, method=method, **step)
    assert rise.event_times[0].tolist() == pytest.approx([-2.0, -1.0])


def test_an_endless_solve_without_its_event_says_so() -> None:
    y0 = torch.tensor([1.0])
    never = Event(lambda t, y: y[..., 0] + 1)
    with pytest.raises(ConvergenceError, match="max_steps=50"):
        odeint(decay, y0, [0.0, math.inf], events=never, max_steps=50)
    with pytest.raises(ValueError, match="step must be given"):
        odeint(decay, y0, [0.0, math.inf], events=never, method="rk4")
    with pytest.raises(ValueError, match="t must be finite"):
        odeint(decay, y0, [0.0, math.inf])


def test_the_steps_of_a_grid_are_ones_own() -> None:
    y0 = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)
    for method in ("euler", "dopri5"):
        solution = odeint(decay, y0, [0.0, 0.5, 1.0], grid=[0.0, 0.1, 0.3, 2.0], method=method)
        assert int(solution.accepted) == 4  # 0.1, 0.3, 0.5, 1
        (slope,) = torch.autograd.grad(solution.y.sum(), y0)
        if method == "euler":
            middle = 0.9 * 0.8 * 0.8
            assert torch.allclose(slope, torch.full_like(y0, 1 + middle + middle / 2))
    back = odeint(decay, y0, [1.0, 0.0], grid=torch.tensor([1.0, 0.75, 0.0]), method="euler")
    assert torch.allclose(back.y[-1], y0 * 1.25 * 1.75)
    with pytest.raises(ValueError, match="step and grid"):
        odeint(decay, y0, [0.0, 1.0], grid=[0.5], step=0.1)
    with pytest.raises(ValueError, match=r"grid must have shape \[points\]"):
        odeint(decay, y0, [0.0, 1.0], grid=torch.zeros(2, 2))


def test_a_long_step_is_one_step() -> None:
    solution = odeint(decay, torch.ones(1), [0.0, 1e-7, 1.0], method="rk4", step=1.0)
    assert int(solution.accepted) == 2
    assert solution.y[1].item() < 1


@pytest.mark.parametrize("method", IMPLICIT)
def test_implicit_methods_take_a_stiff_problem_in_few_steps(method: str) -> None:
    """y' = -1000 (y - cos t) - sin t, y = cos t, at a step thirty times beyond what an explicit method bears."""
    y0 = torch.ones(1, dtype=torch.float64)
    solution = odeint(lambda t, y: -1e3 * (y - torch.cos(t)) - torch.sin(t), y0, [0.0, 1.0], method=method, step=0.1)
    assert solution.y[-1].item() == pytest.approx(math.cos(1), abs=2e-3)


@pytest.mark.parametrize("method", ["radau3", "radau5", "gauss4", "gauss6", "trbdf2"])
def test_coupled_stages_are_differentiated_twice_and_forward(method: str) -> None:
    y0 = torch.tensor([[0.3, -0.8]], dtype=torch.float64, requires_grad=True)
    matrix = torch.tensor([[0.2, -1.0], [0.7, 0.1]], dtype=torch.float64, requires_grad=True)

    def solve(y0: Tensor, matrix: Tensor) -> Tensor:
        return odeint(lambda t, y: torch.tanh(y @ matrix.mT) * torch.cos(t), y0, [0.0, 0.5], method=method, step=0.25).y

    assert gradcheck(solve, (y0, matrix), check_forward_ad=True)
    assert gradgradcheck(solve, (y0, matrix))
    other = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    together = torch.func.vmap(lambda y: solve(y, matrix))(torch.stack([y0, other]))
    assert torch.allclose(together[1], solve(other, matrix), rtol=1e-10)


@pytest.mark.parametrize("method", ["adams_bashforth", "adams_moulton"])
def test_methods_of_adams(method: str) -> None:
    y0 = torch.tensor([[1.0, 0.4], [0.2, -0.7]], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)

    def solve(y0: Tensor, rate: Tensor, step: float = 0.05, **words: object) -> Tensor:
        return odeint(lambda t, y: rate * y * torch.cos(t), y0, [0.0, 0.35, 1.0], method=method, step=step, **words).y

    exact = torch.stack([y0 * torch.exp(rate * math.sin(t)) for t in (0.0, 0.35, 1.0)])
    order = convergence_order(lambda h: solve(y0, rate, h).detach(), exact.detach(), [0.1, 0.05, 0.025, 0.0125])
    assert order.order == pytest.approx(4, abs=0.35)
    assert gradcheck(solve, (y0, rate), check_forward_ad=True)
    assert gradgradcheck(solve, (y0, rate))
    for adjoint in ("unrolled", "symplectic"):
        got = torch.autograd.grad(solve(y0, rate, adjoint=adjoint).sum(), [y0, rate])
        wanted = torch.autograd.grad(solve(y0, rate).sum(), [y0, rate])
        assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    evaluations = odeint(lambda t, y: -y, y0, [0.0, 1.0], method=method, step=0.01).evaluations
    assert evaluations < (115 if method == "adams_bashforth" else 215)
    own = torch.tensor([[0.0, 0.5, 1.0], [0.0, 0.0, 2.0]], dtype=torch.float64)  # steps of no length, too
    y = odeint(lambda t, y: y * torch.cos(t), y0, own, method=method, step=0.01).y
    wanted = y0 * torch.exp(torch.sin(own) - torch.sin(own[:, :1])).T.unsqueeze(-1)
    assert torch.allclose(y, wanted, rtol=1e-6)
    dense = odeint(decay, y0, [0.0, 1.0], method=method, step=0.02, dense=True)
    assert torch.allclose(dense.interpolate(0.333), y0 * math.exp(-0.333), rtol=1e-7)
    jump = odeint(switched, y0, [0.0, 1.0], method=method, step=0.02, control=StepControl(jumps=[0.5])).y[-1]
    assert torch.allclose(jump, switched_exact(y0, 1.0), rtol=1e-5)
    fall = odeint(
        falling,
        torch.tensor([[20.0, 0.0]]),
        [0.0, math.inf],
        events=Event(lambda t, y: y[..., 0]),
        method=method,
        step=0.1,
    )
    assert fall.event_times.item() == pytest.approx(2.0, rel=1e-5)
    with pytest.raises(ValueError, match="adjoint must be one of"):
        solve(y0, rate, adjoint="backsolve")


def test_gauss_keeps_quadratic_invariants() -> None:
    """Collocation at Gauss' points keeps |y|^2 of a rotation, and the energy of a spring, to rounding."""
    y0 = torch.tensor([[1.0, 0.3]], dtype=torch.float64)

    def spring(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[..., 1], -y[..., 0]], -1)

    for method in ("implicit_midpoint", "gauss4", "gauss6"):
        y = odeint(spring, y0, [0.0, 50.0], method=method, step=0.5).y[-1]
        assert y.square().sum().item() == pytest.approx(y0.square().sum().item(), rel=1e-12)
    damped = odeint(spring, y0, [0.0, 50.0], method="radau3", step=0.5).y[-1]
    assert damped.square().sum().item() < 0.9 * y0.square().sum().item()


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"first": 0.0}, ValueError, "first must be > 0"),
        ({"smallest": -1.0}, ValueError, "smallest must be >= 0"),
        ({"smallest": 2.0, "largest": 1.0}, ValueError, "largest must be more than smallest, 2.0, got 1.0"),
        ({"safety": 1.5}, ValueError, "safety must be in"),
        ({"shrink": -0.1}, ValueError, "shrink must be in"),
        ({"grow": 1.0}, ValueError, "grow must be > 1"),
        ({"norm": 2}, TypeError, "norm"),
    ],
)
def test_wrong_step_controls_are_named(words: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        StepControl(**words)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"control": {"first": 1}}, TypeError, "control must be a StepControl"),
        ({"adjoint": 3}, TypeError, "adjoint must be a name or a Backsolve"),
        ({"on_step": 3}, TypeError, "on_step"),
        ({"control": StepControl(jumps=0.5)}, TypeError, "jumps must be a tensor or a sequence"),
        ({"control": StepControl(jumps=[[0.5]])}, TypeError, "jumps must hold numbers"),
        ({"control": StepControl(jumps=torch.zeros(3, 1))}, ValueError, "jumps must have shape"),
        (
            {"control": StepControl(jumps=[0.5]), "events": Event(lambda t, y: y[..., 0])},
            ValueError,
            "jumps of the field are not available with events",
        ),
        ({"grid": [0.5], "events": Event(lambda t, y: y[..., 0])}, ValueError, "a grid is not available with events"),
    ],
)
def test_wrong_options_are_named(words: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        odeint(decay, torch.ones(2, 2), [0.0, 1.0], **words)

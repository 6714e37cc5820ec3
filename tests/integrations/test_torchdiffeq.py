"""torchdiffeq's functions by its signatures: steps written out by hand, closed forms, a tight solution."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pullback.dynamics import odeint as tight
from pullback.integrations import torchdiffeq as ours

ADAPTIVE = ("adaptive_heun", "fehlberg2", "bosh3", "tsit5", "dopri5", "dopri8")
IMPLICIT = (
    "implicit_euler",
    "implicit_midpoint",
    "trapezoid",
    "radauIIA3",
    "radauIIA5",
    "gl4",
    "gl6",
    "sdirk2",
    "trbdf2",
)
ADAMS = ("explicit_adams", "implicit_adams")
ORDERS = {
    "implicit_euler": 1,
    "explicit_adams": 4,
    "implicit_adams": 4,
    "radauIIA3": 3,
    "radauIIA5": 5,
    "gl4": 4,
    "gl6": 6,
}


class Field(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(3, 3, generator=generator, dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        assert t.ndim == 0
        return torch.tanh(y @ self.matrix.T) * torch.cos(t)


def euler(f: Any, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    return y + h * f(t, y)


def midpoint(f: Any, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    return y + h * f(t + h / 2, y + h / 2 * f(t, y))


def heun2(f: Any, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    k = f(t, y)
    return y + h / 2 * (k + f(t + h, y + h * k))


def heun3(f: Any, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    k = f(t, y)
    return y + h / 4 * (k + 3 * f(t + 2 * h / 3, y + 2 * h / 3 * f(t + h / 3, y + h / 3 * k)))


def rk4(f: Any, t: Tensor, h: Tensor, y: Tensor) -> Tensor:
    """The rule of three eighths, which is what torchdiffeq calls by this name."""
    a = f(t, y)
    b = f(t + h / 3, y + h * a / 3)
    c = f(t + 2 * h / 3, y + h * (b - a / 3))
    return y + h / 8 * (a + 3 * (b + c) + f(t + h, y + h * (a - b + c)))


BY_HAND = {step.__name__: step for step in (euler, midpoint, heun2, heun3, rk4)}


def along(step: Callable[..., Tensor], field: Any, y0: Tensor, grid: Tensor) -> Tensor:
    states = [y0]
    for a, b in itertools.pairwise(grid):
        states.append(step(field, a, b - a, states[-1]))
    return torch.stack(states)


def outcome(solve: Callable[[Field, Tensor, Tensor], Tensor], *, timed: bool = False) -> list[Tensor]:
    """Values, and gradients of a weighted sum of them in the start, the parameters and the times."""
    field = Field()
    y0 = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3).requires_grad_()
    t = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64, requires_grad=True)
    y = solve(field, y0, t if timed else t.detach())
    loss = (y * torch.linspace(1, 2, y.numel(), dtype=torch.float64).view(y.shape)).sum()
    return [y.detach(), *torch.autograd.grad(loss, [y0, field.matrix, *([t] if timed else [])])]


def close(got: list[Tensor], wanted: list[Tensor], rtol: float) -> None:
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, rtol=rtol, atol=rtol)


def truth(field: Field, y0: Tensor, t: Tensor) -> Tensor:
    return tight(lambda s, y: field(s.reshape(()), y), y0, t, method="dopri8", rtol=1e-12, atol=1e-13, batch_ndim=0).y


@pytest.mark.parametrize("method", BY_HAND)
def test_fixed_steps_agree_to_rounding(method: str) -> None:
    grid = torch.linspace(0, 1, 6, dtype=torch.float64)  # 0.4 is a point of it
    wanted = outcome(lambda field, y0, t: along(BY_HAND[method], field, y0, grid)[[0, 2, 5]])
    options = {"step_size": 0.2}
    close(outcome(lambda f, y0, t: ours.odeint(f, y0, t, method=method, options=options)), wanted, 1e-12)
    close(
        outcome(lambda f, y0, t: ours.odeint(f, y0, t, method=method, options={**options, "interp": "cubic"})),
        wanted,
        1e-12,
    )


@pytest.mark.parametrize("method", [*IMPLICIT, *ADAMS])
def test_implicit_steps_converge_with_their_order(method: str) -> None:
    exact = outcome(truth)
    errors = []
    for size in (0.1, 0.05) if method in ADAMS else (0.2, 0.1):
        found = outcome(lambda f, y0, t, h=size: ours.odeint_adjoint(f, y0, t, method=method, options={"step_size": h}))
        errors.append(max(float((a - b).abs().max()) for a, b in zip(found, exact, strict=True)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS.get(method, 2), abs=0.6)


@pytest.mark.parametrize("method", ADAPTIVE)
def test_adaptive_steps_agree_to_the_tolerance(method: str) -> None:
    low = method in ADAPTIVE[:2]
    rtol = 1e-5 if low else 1e-9
    found = outcome(lambda f, y0, t: ours.odeint(f, y0, t, method=method, rtol=rtol, atol=rtol / 100), timed=True)
    close(found, outcome(truth, timed=True), 1e-2 if low else 1e-6)


def test_times_between_fixed_steps_are_interpolated() -> None:
    grid = torch.tensor([0.0, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)

    def line(field: Field, y0: Tensor, t: Tensor) -> Tensor:
        y = along(rk4, field, y0, grid)
        return torch.stack([y0, y[1] + (y[2] - y[1]) / 3, y[-1]])

    def cubic(field: Field, y0: Tensor, t: Tensor) -> Tensor:
        y = along(rk4, field, y0, grid)
        x, h = 1 / 3, 0.3
        low, high = h * field(grid[1], y[1]), h * field(grid[2], y[2])
        middle = (1 + 2 * x) * (1 - x) ** 2 * y[1] + x * (1 - x) ** 2 * low
        return torch.stack([y0, middle + x**2 * (3 - 2 * x) * y[2] + x**2 * (x - 1) * high, y[-1]])

    for interp, by_hand in (("linear", line), ("cubic", cubic)):
        options = {"step_size": 0.3, "interp": interp}
        found = outcome(lambda f, y0, t, o=options: ours.odeint(f, y0, t, method="rk4", options=o))
        close(found, outcome(by_hand), 1e-10)


def test_a_grid_of_ones_own() -> None:
    points = torch.tensor([0.0, 0.1, 0.4, 0.7, 1.0], dtype=torch.float64)

    def grid(func: Any, y0: Tensor, t: Tensor) -> Tensor:
        assert t.tolist() == [0.0, 0.4, 1.0]
        return points

    wanted = outcome(lambda field, y0, t: along(midpoint, field, y0, points)[[0, 2, 4]])
    options = {"grid_constructor": grid}
    close(outcome(lambda f, y0, t: ours.odeint(f, y0, t, method="midpoint", options=options)), wanted, 1e-12)


def test_the_adjoint_agrees_and_unused_parameters_have_no_part() -> None:
    found = outcome(lambda f, y0, t: ours.odeint_adjoint(f, y0, t, rtol=1e-9, atol=1e-11), timed=True)
    close(found, outcome(truth, timed=True), 1e-6)
    field = Field()
    y0 = torch.ones(1, 3, dtype=torch.float64)
    for options in ({}, {"adjoint_options": {"norm": "seminorm"}}, {"adjoint_method": "bosh3", "adjoint_rtol": 1e-6}):
        field.zero_grad()
        ours.odeint_adjoint(field, y0, torch.tensor([0.0, 1.0]), **options).sum().backward()
        assert field.unused.grad is not None
        assert field.unused.grad.tolist() == [0.0, 0.0]
        assert bool(field.matrix.grad.abs().max() > 0.1)


def test_an_adjoint_norm_is_given_times_states_adjoints_and_parameters() -> None:
    seen: list[list[tuple[int, ...]]] = []

    def norm(parts: tuple[Tensor, ...]) -> Tensor:
        seen.append([tuple(part.shape) for part in parts])
        return torch.stack([part.abs().max() for part in parts]).max()

    field, y0 = Field(), torch.ones(1, 3, dtype=torch.float64)
    y = ours.odeint_adjoint(field, y0, torch.tensor([0.0, 1.0]), adjoint_options={"norm": norm})
    y.sum().backward()
    assert seen
    assert all(shapes == [(), (1, 3), (1, 3), (3, 3), (2,)] for shapes in seen)


def test_tuples_numbers_and_complex_states() -> None:
    t = torch.tensor([0.0, 1.0], dtype=torch.float64)
    y0 = (torch.tensor(2.0, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64))

    def field(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return -y[0], -t * y[1] * y[0]

    a, b = ours.odeint(field, y0, t, rtol=1e-9, atol=1e-11)
    assert a[-1].item() == pytest.approx(2 * math.exp(-1))
    assert b[-1, 0, 0].item() == pytest.approx(math.exp(-2 * (1 - 2 * math.exp(-1))))
    loose = ours.odeint(field, y0, t, rtol=(1e-3, 1e-9), atol=(1.0, 1e-11))
    assert loose[1].shape == (2, 2, 2)
    turn = ours.odeint(lambda t, y: 1j * y, torch.tensor(1 + 0j, dtype=torch.complex128), t)
    assert complex(turn[-1]) == pytest.approx(complex(math.cos(1), math.sin(1)))
    assert ours.odeint(field, y0, t[:1])[0].tolist() == [2.0]


def test_events_and_their_gradients() -> None:
    def falling(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[1], torch.tensor(-10.0, dtype=y.dtype)])

    def either(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[0], y[0] - 100])  # the ground or the roof

    for interface in (ours.odeint, ours.odeint_adjoint):
        y0 = torch.tensor([20.0, -2.0], dtype=torch.float64, requires_grad=True)
        t0 = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        time, states = ours.odeint_event(falling, y0, t0, event_fn=either, odeint_interface=interface)
        speed = torch.sqrt(y0[1] ** 2 + 20 * y0[0])
        exact = t0 + (y0[1] + speed) / 10
        assert time.item() == pytest.approx(exact.item())
        assert states[-1, 1].item() == pytest.approx(-speed.item())
        got = torch.autograd.grad(time + 0.1 * states[-1, 1], [y0, t0])
        wanted = torch.autograd.grad(exact - 0.1 * speed, [y0, t0])
        assert all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(got, wanted, strict=True))
    y0 = torch.tensor([20.0, 0.0], dtype=torch.float64)
    back, _ = ours.odeint_event(falling, y0, t0, event_fn=lambda t, y: y[0], reverse_time=True)
    assert back.item() == pytest.approx(0.5 - 2.0)
    fixed, _ = ours.odeint_event(falling, y0, t0, event_fn=lambda t, y: y[0], method="rk4", options={"step_size": 0.1})
    assert fixed.item() == pytest.approx(2.5)
    with pytest.raises(ValueError, match="step_size"):
        ours.odeint_event(falling, y0, t0, event_fn=lambda t, y: y[0], method="rk4")


def test_dense_output_is_a_function() -> None:
    y = ours.odeint_dense(
        lambda t, y: -y, torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor(0.0), torch.tensor(2.0)
    )
    assert y(torch.tensor(0.7)).tolist() == pytest.approx([math.exp(-0.7), 2 * math.exp(-0.7)], rel=1e-6)
    assert y(torch.tensor([0.1, 1.9])).shape == (2, 2)


@pytest.mark.parametrize("method", ["rk4", "dopri5"])
def test_callbacks_are_called_there_and_back(method: str) -> None:
    counts: dict[str, int] = {}

    class Watched(Field):
        def __getattr__(self, name: str) -> Any:
            wanted = name.startswith("callback_step") or (method == "dopri5" and name.startswith("callback_"))
            if not wanted:
                return super().__getattr__(name)

            def called(t: Tensor, y: Tensor, dt: Tensor) -> None:
                assert t.shape == dt.shape == ()
                assert y.shape == (1, 3)
                counts[name] = counts.get(name, 0) + 1

            return called

    options = {"step_size": 0.1} if method == "rk4" else None
    y0, t = torch.ones(1, 3, dtype=torch.float64), torch.tensor([0.0, 1.0])
    ours.odeint_adjoint(Watched(), y0, t, method=method, options=options).sum().backward()
    if method == "rk4":
        assert counts == {"callback_step": 10, "callback_step_adjoint": 10}
    else:
        for end in ("", "_adjoint"):
            parts = [counts.get(f"callback_{kind}_step{end}", 0) for kind in ("accept", "reject")]
            assert sum(parts) == counts[f"callback_step{end}"] > 0


def test_perturbed_steps_ask_beside_their_ends() -> None:
    asked: list[float] = []

    def field(t: Tensor, y: Tensor) -> Tensor:
        asked.append(t.item())
        return torch.where(t < 0.5, -1.0, 1.0) + 0 * y

    y = ours.odeint(
        field, torch.zeros(1), torch.tensor([0.0, 1.0]), method="rk4", options={"step_size": 0.5, "perturb": True}
    )
    assert y[-1].item() == pytest.approx(0.0, abs=1e-6)
    assert not {0.0, 0.5, 1.0} & set(asked)
    asked.clear()
    jumped = ours.odeint(
        field, torch.zeros(1).double(), torch.tensor([0.0, 1.0]), options={"jump_t": torch.tensor([0.5])}
    )
    assert jumped[-1].item() == pytest.approx(0.0, abs=1e-6)
    told = len(asked)
    asked.clear()
    ours.odeint(field, torch.zeros(1).double(), torch.tensor([0.0, 1.0]))
    assert told < len(asked)


@pytest.mark.parametrize("solver", ["RK45", "DOP853", "Radau", "BDF", "LSODA"])
def test_scipys_solvers_have_a_gradient(solver: str) -> None:
    options = {"solver": solver}
    found = outcome(
        lambda f, y0, t: ours.odeint(f, y0, t, method="scipy_solver", options=options, rtol=1e-9, atol=1e-11),
        timed=True,
    )
    close(found, outcome(truth, timed=True), 1e-5)
    with torch.no_grad():
        y = ours.odeint(
            lambda t, y: -y, torch.ones(2), torch.tensor([0.0, 1.0]), method="scipy_solver", options={"solver": solver}
        )
    assert y[-1].tolist() == pytest.approx([math.exp(-1)] * 2, rel=1e-4)


def test_what_there_is_not_is_named() -> None:
    y0, t = torch.ones(1), torch.tensor([0.0, 1.0])
    with pytest.raises(ValueError, match="method must be one of 'dopri8'"):
        ours.odeint(lambda t, y: -y, y0, t, method="rk5")
    with pytest.warns(UserWarning, match=r"dopri5 does not use the options \['step_size'\]"):
        ours.odeint(lambda t, y: -y, y0, t, options={"step_size": 0.1})
    with pytest.raises(ValueError, match="mutually exclusive"):
        ours.odeint(
            lambda t, y: -y, y0, t, method="rk4", options={"step_size": 0.1, "grid_constructor": lambda f, y, t: t}
        )
    with pytest.raises(ValueError, match=r"t must be a tensor \[times\]"):
        ours.odeint(lambda t, y: -y, y0, torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"options\['interp'\] must be one of 'linear', 'cubic', got 'quintic'"):
        ours.odeint(lambda t, y: -y, y0, t, method="rk4", options={"step_size": 0.3, "interp": "quintic"})


def test_scipys_solvers_take_a_tolerance_for_each_tensor_of_a_tuple() -> None:
    def field(t: Tensor, y: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return -y[0], -2 * y[1]

    start, t = (torch.ones(2).double(), torch.ones(3).double()), torch.tensor([0.0, 1.0]).double()
    errors = []
    for tolerances in ((1e-10, 1e-10), (1e-3, 1e-10)):
        words = {"rtol": tolerances, "atol": tolerances, "method": "scipy_solver", "options": {"solver": "RK45"}}
        first, second = ours.odeint(field, start, t, **words)
        assert second[-1].tolist() == pytest.approx([math.exp(-2)] * 3, rel=1e-6)
        errors.append(abs(first[-1, 0].item() - math.exp(-1)))
    assert errors[0] < 1e-8

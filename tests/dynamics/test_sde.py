"""Brownian paths, and stochastic equations against closed forms along the same path."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from pullback.core.errors import ConvergenceError
from pullback.dynamics import BrownianPath, SDESolution, convergence_order, sdeint

STRATONOVICH = ("heun", "midpoint", "reversible_heun")


def test_a_path_has_the_law_of_brownian_motion() -> None:
    """Increments of any lengths are independent normal draws, their variance the length."""
    path = BrownianPath((4000,), [0.0, 0.3, 1.0, 1.7], seed=3, dtype=torch.float64)
    times = [0.0, 0.1, 0.3, 0.31, 0.77, 1.0, 1.25, 1.7]
    rows = torch.stack([path.increment(a, b) / math.sqrt(b - a) for a, b in itertools.pairwise(times)])
    for row in rows:
        assert stats.kstest(row.numpy(), "norm").pvalue > 1e-3
    correlation = np.corrcoef(rows.numpy()) - np.eye(len(rows))
    assert np.abs(correlation).max() < 4 / math.sqrt(4000)
    assert path(0.0).abs().max() == 0
    assert torch.allclose(path(0.77), path.increment(0.0, 0.77))


def test_a_path_is_the_same_in_any_order_precision_and_object() -> None:
    times = np.random.default_rng(0).uniform(0, 2, 60).tolist()
    first = BrownianPath((2, 3), [0.0, 0.5, 2.0], seed=7, dtype=torch.float64)
    forward = [first(t) for t in times]
    second = BrownianPath((2, 3), [0.0, 0.5, 2.0], seed=7, dtype=torch.float64)
    backward = [second(t) for t in reversed(times)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    single = BrownianPath((2, 3), [0.0, 0.5, 2.0], seed=7, dtype=torch.float32)
    assert torch.allclose(single(times[0]).double(), forward[0], atol=1e-6)
    other = BrownianPath((2, 3), [0.0, 0.5, 2.0], seed=8, dtype=torch.float64)
    assert (other(times[0]) - forward[0]).abs().min() > 0
    drawn = [BrownianPath((1,), [0.0, 1.0], generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert drawn[0].seed == drawn[1].seed
    below = 1.0 + 2.0**-40  # of what is not drawn any more, a straight line
    assert torch.isfinite(first(below)).all()


def test_wrong_paths_are_named() -> None:
    for words, message in (
        ({"knots": [0.0]}, "knots must be two or more"),
        ({"knots": [0.0, 0.0]}, "ascending"),
        ({"knots": [0.0, math.inf]}, "finite"),
        ({"knots": [0.0, 1.0], "seed": -1}, "seed must be"),
        ({"knots": [0.0, 1.0], "seed": 1, "generator": torch.Generator()}, "give one"),
        ({"knots": [0.0, 1.0], "depth": 0}, "depth must be"),
    ):
        with pytest.raises(ValueError, match=message):
            BrownianPath((1,), **words)
    with pytest.raises(ValueError, match=r"t must lie between 0.0 and 1.0, got 1.5"):
        BrownianPath((1,), [0.0, 1.0])(1.5)


MU, SIGMA = 0.4, 0.7


def geometric(sense: str, path: BrownianPath, y0: Tensor, t: float) -> Tensor:
    """dy = mu y dt + sigma y dW solved: exp((mu - sigma^2 / 2) t + sigma W) in Ito's sense."""
    rate = MU - SIGMA**2 / 2 if sense == "ito" else MU
    return y0 * torch.exp(rate * t + SIGMA * path(t))


@pytest.mark.parametrize(
    ("method", "sense", "order"),
    [
        ("euler", "ito", 0.5),
        ("milstein", "ito", 1.0),
        ("milstein", "stratonovich", 1.0),
        ("srk", "ito", 1.5),
        *((method, "stratonovich", 1.0) for method in STRATONOVICH),
    ],
)
@pytest.mark.parametrize("noise", ["diagonal", "scalar"])
def test_strong_orders_on_geometric_brownian_motion(method: str, sense: str, order: float, noise: str) -> None:
    """Root mean square error at the end, along the same paths whatever the step."""
    y0 = torch.ones(2000, 1, dtype=torch.float64)
    path = BrownianPath((2000, 1), torch.linspace(0, 1, 257), seed=1, dtype=torch.float64)
    exact = geometric(sense, path, y0, 1.0)

    def solve(step: float) -> Tensor:
        y = sdeint(
            lambda t, y: MU * y,
            lambda t, y: SIGMA * y,
            y0,
            [0.0, 1.0],
            step=step,
            method=method,
            sense=sense,
            noise=noise,
            brownian=path,
        ).y[-1]
        return (y - exact).square().mean().sqrt()

    found = convergence_order(solve, torch.zeros((), dtype=torch.float64), [1 / 16, 1 / 32, 1 / 64, 1 / 128])
    assert found.order == pytest.approx(order, abs=0.12)


def test_the_strong_order_of_srk_with_additive_noise() -> None:
    """Of two motions and a drift that is not linear, against many steps along the same path and its areas."""
    y0 = torch.linspace(-1, 1, 400, dtype=torch.float64).reshape(200, 2)
    path = BrownianPath((200, 2), torch.linspace(0, 1, 129), seed=1, dtype=torch.float64)
    mixed = torch.tensor([[1.0, 0.4], [-0.3, 0.8]], dtype=torch.float64)

    def solve(step: float) -> Tensor:
        return sdeint(
            lambda t, y: torch.sin(2 * y.flip(-1)) - t,
            lambda t, y: ((1 + torch.sin(3 * t)).unsqueeze(-1) * mixed).expand(200, 2, 2),
            y0,
            [0.0, 1.0],
            step=step,
            method="srk",
            noise="additive",
            brownian=path,
        ).y[-1]

    exact, zero = solve(1 / 128), torch.zeros((), dtype=torch.float64)
    found = convergence_order(lambda h: (solve(h) - exact).square().mean().sqrt(), zero, [1 / 4, 1 / 8, 1 / 16])
    assert found.order == pytest.approx(1.5, abs=0.15)


def test_areas_of_a_path_have_their_law_and_fit_together() -> None:
    path = BrownianPath((4000,), [0.0, 0.5, 0.8, 2.0], seed=5, dtype=torch.float64)
    for a, b in ((0.0, 0.5), (0.1, 0.4), (0.0, 2.0), (0.3, 1.7)):
        h, increment = b - a, path.increment(a, b)
        rest = (path.area(a, b) - h * increment / 2) / math.sqrt(h**3 / 12)
        assert stats.kstest(rest.numpy(), "norm").pvalue > 1e-3
        assert abs(float((rest * increment).mean())) < 4 * math.sqrt(h / 4000)
    whole = path.area(0.0, 0.8) + path.area(0.8, 2.0) + 1.2 * path(0.8)
    torch.testing.assert_close(whole, path.area(0.0, 2.0))
    with pytest.raises(ValueError, match="start must be at most end"):
        path.area(1.0, 0.0)


def test_general_noise_meets_each_motion() -> None:
    """With constant g and no drift y is g W, for every method that takes it."""
    g = torch.tensor([[1.0, 0.5, -0.2], [0.0, 2.0, 1.0]], dtype=torch.float64)
    y0 = torch.zeros(4, 2, dtype=torch.float64)
    path = BrownianPath((4, 3), [0.0, 1.0], seed=2, dtype=torch.float64)
    for method in ("euler", "srk", *STRATONOVICH):
        solution = sdeint(
            lambda t, y: 0 * y,
            lambda t, y: g.expand(4, 2, 3),
            y0,
            [0.0, 0.5, 1.0],
            step=0.25,
            method=method,
            noise="additive" if method == "srk" else "general",
            brownian=path,
        )
        wanted = torch.stack([y0, path(0.5) @ g.T, path(1.0) @ g.T])
        assert torch.allclose(solution.y, wanted, atol=1e-12)


def test_an_ornstein_uhlenbeck_process_comes_to_its_law() -> None:
    y0 = torch.full((4000, 1), 3.0, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    solution = sdeint(lambda t, y: -y, lambda t, y: 0.5 + 0 * y, y0, [0.0, 4.0], step=0.02, generator=generator)
    end = solution.y[-1, :, 0]
    assert end.mean().item() == pytest.approx(3 * math.exp(-4), abs=0.03)
    assert end.var().item() == pytest.approx(0.125 * (1 - math.exp(-8)), rel=0.08)


def loss_and_gradients(adjoint: str, method: str, noise: str, step: float, end: float = 1.0) -> list[Tensor]:
    rate = torch.tensor([0.5, -0.3], dtype=torch.float64, requires_grad=True)
    spread = torch.tensor([[0.3, 0.1], [0.2, 0.4]], dtype=torch.float64, requires_grad=True)
    y0 = torch.tensor([[1.0, 0.5], [-0.2, 0.8], [0.3, 0.1]], dtype=torch.float64, requires_grad=True)

    def diffusion(t: Tensor, y: Tensor) -> Tensor:
        if noise == "general":
            return spread * torch.cos(y).unsqueeze(-1)
        return spread[0] * torch.sin(y + t)

    motions = (3, {"diagonal": 2, "scalar": 1, "general": 2}[noise])
    path = BrownianPath(motions, [0.0, end], seed=4, dtype=torch.float64)
    y = sdeint(
        lambda t, y: rate * torch.tanh(y) + 0.1 * t,
        diffusion,
        y0,
        [0.0, 0.4 * end, end],
        step=step,
        method=method,
        noise=noise,
        adjoint=adjoint,
        brownian=path,
    ).y
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), [y0, rate, spread])]


@pytest.mark.parametrize("noise", ["diagonal", "scalar", "general"])
@pytest.mark.parametrize("method", ["euler", "milstein", "srk", *STRATONOVICH])
def test_exact_adjoints_are_the_gradient_of_the_discrete_solution(method: str, noise: str) -> None:
    if method in ("milstein", "srk") and noise == "general":
        return
    wanted = loss_and_gradients("unrolled", method, noise, 0.05)
    ways = ["checkpoint"] + ["reversible"] * (method == "reversible_heun")
    for way in ways:
        got = loss_and_gradients(way, method, noise, 0.05)
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(got, wanted, strict=True))


def test_the_unrolled_gradient_passes_finite_differences() -> None:
    path = BrownianPath((2, 1), [0.0, 1.0], seed=4, dtype=torch.float64)
    y0 = torch.tensor([[1.0], [-0.2]], dtype=torch.float64, requires_grad=True)
    rate = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    for method in ("milstein", "reversible_heun"):

        def solve(y0: Tensor, rate: Tensor, method: str = method) -> Tensor:
            return sdeint(
                lambda t, y: -rate * y,
                lambda t, y: torch.sin(rate * y),
                y0,
                [0.0, 1.0],
                step=0.25,
                method=method,
                brownian=path,
            ).y

        assert torch.autograd.gradcheck(solve, (y0, rate))
        assert torch.autograd.gradgradcheck(solve, (y0, rate))


@pytest.mark.parametrize("noise", ["diagonal", "scalar"])
def test_backsolve_converges_to_the_gradient(noise: str) -> None:
    wanted = loss_and_gradients("unrolled", "heun", noise, 0.0005)
    errors = []
    for step in (0.04, 0.01):
        got = loss_and_gradients("backsolve", "heun", noise, step)
        errors.append(max(float((a - b).abs().max()) for a, b in zip(got[1:], wanted[1:], strict=True)))
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.02


def test_memory_of_the_adjoints() -> None:
    """What is kept for the backward pass: all, a few square roots, nothing of the steps."""
    y0 = torch.ones(50, 4, requires_grad=True)
    kept = {}
    for adjoint in ("unrolled", "checkpoint", "reversible", "backsolve"):
        held: list[Tensor] = []

        def pack(x: Tensor, held: list[Tensor] = held) -> Tensor:
            held.append(x)
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            sdeint(
                lambda t, y: -y,
                lambda t, y: 0.1 * torch.sin(y),
                y0,
                [0.0, 1.0],
                step=0.01,
                method="reversible_heun",
                adjoint=adjoint,
                generator=torch.Generator().manual_seed(0),
            )
        kept[adjoint] = sum(x.numel() for x in held)
    assert kept["checkpoint"] < kept["unrolled"] / 5
    assert kept["reversible"] <= 3 * y0.numel()
    assert kept["backsolve"] <= 3 * y0.numel()


def test_half_precision_single_steps_and_the_same_path_again() -> None:
    y0 = torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True)
    solution = sdeint(lambda t, y: -y, lambda t, y: 0.1 * y, y0, [0.0, 1.0], step=0.1)
    assert isinstance(solution, SDESolution)
    assert solution.y.dtype == torch.bfloat16
    solution.y.sum().backward()
    assert bool(torch.isfinite(y0.grad).all())
    z0 = torch.ones(3, 2, dtype=torch.float64)
    coarse = sdeint(lambda t, y: -y, lambda t, y: 0.1 * y, z0, [0.0, 1.0], step=0.1, generator=torch.Generator())
    fine = sdeint(lambda t, y: -y, lambda t, y: 0.1 * y, z0, [0.0, 1.0], step=0.01, brownian=coarse.brownian)
    other = sdeint(lambda t, y: -y, lambda t, y: 0.1 * y, z0, [0.0, 1.0], step=0.01, generator=torch.Generator())
    near = (fine.y[-1] - coarse.y[-1]).abs().max()
    assert near < 0.05
    assert (other.y[-1] - coarse.y[-1]).abs().max() < 0.06  # the knots of another step are another path of the same law
    long = sdeint(lambda t, y: -y, lambda t, y: 0 * y, z0, torch.tensor([0.0, 0.3]), step=5.0)
    assert torch.allclose(long.y[-1], 0.7 * z0)


BAD: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"y0": torch.ones(2, 2, dtype=torch.int64)}, TypeError, "y0"),
    ({"y0": torch.ones(2, 0)}, ValueError, "y0 must have shape"),
    ({"t": ["0", "1"]}, TypeError, "t"),
    ({"t": [0.0]}, ValueError, "t must hold two or more"),
    ({"t": [0.0, 2.0, 1.0]}, ValueError, "ascending"),
    ({"t": [0.0, math.inf]}, ValueError, "finite"),
    ({"t": torch.tensor([0.0, 1.0], requires_grad=True)}, ValueError, "t has no gradient"),
    ({"step": 0.0}, ValueError, "step must be > 0"),
    ({"method": "eule"}, ValueError, "did you mean 'euler'"),
    ({"noise": "white"}, ValueError, "noise must be one of"),
    ({"adjoint": "none"}, ValueError, "adjoint must be one of"),
    (
        {"sense": "ito", "method": "heun"},
        ValueError,
        "method must be one of 'euler', 'milstein', 'srk' for sense='ito'",
    ),
    ({"sense": "stratonovich"}, ValueError, "method must be one of 'milstein', 'heun'"),
    ({"adjoint": "reversible"}, ValueError, "method must be 'reversible_heun'"),
    ({"adjoint": "backsolve"}, ValueError, "Stratonovich"),
    ({"noise": "general", "method": "milstein"}, ValueError, "noise must be 'diagonal' or 'scalar'"),
    ({"noise": "general", "method": "srk"}, ValueError, "noise must be 'diagonal', 'scalar' or 'additive'"),
    (
        {"noise": "additive", "diffusion": lambda t, y: y.unsqueeze(-1)},
        ValueError,
        "diffusion must not depend on y for additive noise",
    ),
    ({"noise": "general"}, ValueError, "diffusion must return"),
    ({"drift": lambda t, y: y[..., :1]}, ValueError, "drift must return the shape of y"),
    ({"diffusion": lambda t, y: 1.0}, TypeError, "diffusion must return a tensor"),
    ({"brownian": BrownianPath((2, 2), [0.0, 0.5])}, ValueError, "brownian must reach"),
    ({"brownian": BrownianPath((3,), [0.0, 1.0])}, ValueError, "brownian must have the shape"),
    ({"brownian": 3}, TypeError, "brownian"),
]


@pytest.mark.parametrize(("words", "error", "message"), BAD)
def test_wrong_arguments_are_named(words: dict[str, object], error: type[Exception], message: str) -> None:
    given: dict[str, object] = {
        "drift": lambda t, y: -y,
        "diffusion": lambda t, y: 0.1 * y,
        "y0": torch.ones(2, 2),
        "t": [0.0, 1.0],
        "step": 0.1,
        **words,
    }
    first: list[object] = [given.pop(name) for name in ("drift", "diffusion", "y0", "t")]
    with pytest.raises(error, match=message):
        sdeint(*first, **given)


def test_an_explosion_is_named_with_its_time() -> None:
    cube: Callable[[Tensor, Tensor], Tensor] = lambda t, y: y**3  # noqa: E731
    with pytest.raises(ConvergenceError, match=r"NaN or infinite by t=(1|2)") as raised:
        sdeint(cube, lambda t, y: 0.1 + 0 * y, 5 * torch.ones(1, 1), [0.0, 1.0, 2.0], step=0.1)
    assert isinstance(raised.value.result, SDESolution)

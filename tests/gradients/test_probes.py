"""The probes against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pullback.gradients import evolution_gradient, kink_distance, lyapunov_spectrum, saved_bytes


def test_exponents_of_the_cat_map_are_the_logarithms_of_its_eigenvalues() -> None:
    matrix = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    spectrum = lyapunov_spectrum(lambda x: (matrix @ x) % 1.0, torch.tensor([0.3, 0.7], dtype=torch.float64), steps=400)
    golden = math.log((3 + math.sqrt(5)) / 2)
    assert spectrum.exponents.tolist() == pytest.approx([golden, -golden], rel=1e-2)
    assert spectrum.curve.shape == (400, 2)
    assert spectrum.converged


def test_exponent_of_the_logistic_map_is_log_two() -> None:
    x = torch.tensor([0.3], dtype=torch.float64)
    spectrum = lyapunov_spectrum(lambda x: 4 * x * (1 - x), x, steps=2000, every=5)
    assert float(spectrum.exponents[0]) == pytest.approx(math.log(2), rel=0.02)
    assert abs(float(spectrum.exponents[0]) - math.log(2)) < 4 * float(spectrum.errors[0])


def test_rates_are_per_unit_time_and_sum_to_the_divergence() -> None:
    decay = torch.diag(torch.tensor([-1.0, -2.0, 0.5], dtype=torch.float64))
    flow = torch.linalg.matrix_exp(0.1 * decay)
    spectrum = lyapunov_spectrum(lambda x: flow @ x, torch.ones(3, dtype=torch.float64), steps=60, dt=0.1, burn_in=5)
    assert spectrum.exponents.tolist() == pytest.approx([0.5, -1.0, -2.0], abs=0.05)
    assert float(spectrum.exponents.sum()) == pytest.approx(-2.5, abs=1e-9)


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ({"steps": 0}, ValueError, "steps must be an integer >= 1, got 0"),
        ({"steps": 5, "every": 2}, ValueError, "every=2"),
        ({"steps": 5, "count": 3}, ValueError, r"count must be in 1\.\.2"),
        ({"steps": 5, "dt": 0.0}, ValueError, "dt must be > 0"),
        ({"steps": 5, "burn_in": -1}, ValueError, "burn_in"),
    ],
)
def test_bad_arguments_of_the_spectrum(words: dict, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        lyapunov_spectrum(lambda x: x, torch.zeros(2), **words)


def test_a_step_that_changes_form_or_breaks_is_named() -> None:
    with pytest.raises(ValueError, match="step must return the shape of state"):
        lyapunov_spectrum(lambda x: x[:1], torch.zeros(2), steps=2)
    with pytest.raises(ValueError, match="not finite after step 2"):
        lyapunov_spectrum(lambda x: x * 1e20, torch.ones(1), steps=9)


def test_evolution_gradient_of_a_step_is_the_density_at_the_step(generator: torch.Generator) -> None:
    sigma = 0.5
    estimate = evolution_gradient(
        lambda p: (p["x"] > 1.0).double().sum(),
        {"x": torch.tensor([0.7], dtype=torch.float64)},
        smoothing=sigma,
        pairs=5_000,
        generator=generator,
    )
    density = math.exp(-0.5 * (0.3 / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    error = float(estimate.standard_error["x"])
    assert abs(float(estimate.gradient["x"]) - density) < 4 * error
    assert error < 0.1 * density
    assert estimate.value == pytest.approx(0.5 * math.erfc(0.3 / sigma / math.sqrt(2)), abs=0.02)
    assert estimate.evaluations == 10_000


def test_evolution_gradient_refuses_bad_arguments(generator: torch.Generator) -> None:
    p = {"x": torch.zeros(2)}
    with pytest.raises(ValueError, match="smoothing must be > 0"):
        evolution_gradient(lambda q: q["x"].sum(), p, smoothing=0.0, pairs=4, generator=generator)
    with pytest.raises(ValueError, match="pairs must be an integer >= 2"):
        evolution_gradient(lambda q: q["x"].sum(), p, smoothing=0.1, pairs=1, generator=generator)
    with pytest.raises(ValueError, match="loss must return a scalar"):
        evolution_gradient(lambda q: q["x"], p, smoothing=0.1, pairs=2, generator=generator)
    with pytest.raises(TypeError, match=r"parameters\['x'\] must be a floating tensor"):
        evolution_gradient(lambda q: q["x"].sum(), {"x": torch.arange(2)}, smoothing=0.1, pairs=2, generator=generator)


def test_saved_bytes_against_what_each_layer_must_keep() -> None:
    x = torch.rand(16, 32, requires_grad=True)
    assert saved_bytes(lambda x: x + 1, x).total == 0
    assert saved_bytes(torch.tanh, x).total == 16 * 32 * 4
    assert saved_bytes(lambda x: x * x, x).total == 16 * 32 * 4  # one storage, saved twice
    assert saved_bytes(lambda x: (x[:4]).exp() + x[:2].sum(), x).total == 4 * 32 * 4
    frozen = nn.Linear(32, 8).requires_grad_(False)
    assert saved_bytes(frozen, x).total == 0  # the weight is a parameter, the input is not needed
    assert saved_bytes(nn.Linear(32, 8), x).total == 16 * 32 * 4
    assert saved_bytes(nn.Linear(32, 8), x, exclude=(x,)).total == 0


def test_saved_bytes_names_operations_and_counts_a_network_layer_by_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    x = torch.rand(5, 8)
    kept = saved_bytes(model, x)
    assert kept.total == 4 * (5 * 8 + 5 * 16)  # the input and the hidden layer
    assert kept.by_operation["TanhBackward0"] == 4 * 5 * 16
    assert torch.equal(kept.output, model(x))


@pytest.mark.parametrize(
    ("operation", "call", "points"),
    [
        ("relu", F.relu, [0.0]),
        ("abs", torch.abs, [0.0]),
        ("relu6", F.relu6, [0.0, 6.0]),
        ("hardtanh", F.hardtanh, [-1.0, 1.0]),
    ],
)
def test_one_sided_slopes_differ_exactly_where_the_distance_is_zero(operation: str, call, points: list[float]) -> None:
    grid = torch.linspace(-8, 8, 65, dtype=torch.float64)
    step = 1e-4
    left, right = (call(grid) - call(grid - step)) / step, (call(grid + step) - call(grid)) / step
    at_kink = (left - right).abs() > 0.1
    assert torch.equal(at_kink, kink_distance(operation, grid) == 0)
    assert grid[at_kink].tolist() == points


def test_ties_are_kinks(generator: torch.Generator) -> None:
    x = torch.tensor([[3.0, 1.0, 3.0], [2.0, 5.0, 4.5]])
    assert kink_distance("max", x, dim=1).tolist() == [0.0, 0.5]
    assert kink_distance("min", x, dim=1).tolist() == [2.0, 2.5]
    assert kink_distance("sort", x, dim=1).tolist() == [0.0, 0.5]
    assert kink_distance("maximum", x[0], x[1]).tolist() == [1.0, 4.0, 1.5]
    assert kink_distance("norm", torch.tensor([[0.0, 0.0], [3.0, 4.0]])).tolist() == [0.0, 5.0]
    assert kink_distance("clamp", torch.tensor([0.25, 2.0]), min=0.0, max=1.0).tolist() == [0.25, 1.0]
    with pytest.raises(ValueError, match="operation must be one of"):
        kink_distance("rellu", x)


def test_evolution_gradient_compares_a_pair_on_its_own_data(generator: torch.Generator) -> None:
    data = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    p = {"x": torch.ones(3, dtype=torch.float64)}
    whole, single = (
        evolution_gradient(
            lambda q, seen: (q["x"] * seen).sum(),
            p,
            smoothing=0.3,
            pairs=6,
            chunk=chunk,
            data=data,
            generator=torch.Generator().manual_seed(3),
        )
        for chunk in (4, None)
    )
    draw = torch.Generator().manual_seed(3)
    e = torch.cat([torch.randn(1, 3, generator=draw, dtype=torch.float64) for _ in range(6)])
    torch.testing.assert_close(whole.gradient["x"], ((data * e).sum(1, keepdim=True) * e).mean(0))  # linear: exact
    torch.testing.assert_close(single.gradient["x"], whole.gradient["x"])
    with pytest.raises(ValueError, match=r"data must have shape \(5, ...\), one entry for each pair, got \(6, 3\)"):
        evolution_gradient(lambda q, s: q["x"].sum(), p, smoothing=1.0, pairs=5, data=data, generator=generator)

"""Probes of iterated steps against closed forms, and against themselves one sample at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pullback.gradients import (
    evolution_gradient,
    gradient_horizon,
    gradient_variance,
    jacobian_spectrum,
    lyapunov_spectrum,
    unrolled_losses,
)

LOGISTIC = {"r": torch.tensor(3.9, dtype=torch.float64)}


def _logistic(x: Tensor, p: dict[str, Tensor]) -> Tensor:
    return p["r"] * x * (1 - x)


def test_exponents_of_a_batch_are_those_of_each_trajectory(generator: torch.Generator) -> None:
    x = torch.rand(3, 2, generator=generator, dtype=torch.float64)

    def step(s: Tensor) -> Tensor:  # a Hénon map
        return torch.stack([1 - 1.4 * s[..., 0] ** 2 + s[..., 1], 0.3 * s[..., 0]], -1)

    words = {"steps": 40, "burn_in": 10}
    together = lyapunov_spectrum(step, 0.1 * x, batch_ndim=1, **words)
    for i in range(3):
        alone = lyapunov_spectrum(step, 0.1 * x[i], chunk=1, **words)
        torch.testing.assert_close(together.exponents[i], alone.exponents)
        torch.testing.assert_close(together.errors[i], alone.errors)
        torch.testing.assert_close(together.curve[:, i], alone.curve)
    # The determinant of the Jacobian is -0.3 everywhere.
    assert together.exponents.sum(-1).tolist() == pytest.approx([math.log(0.3)] * 3, abs=1e-9)


def test_a_state_may_be_a_nesting_and_a_step_may_be_driven() -> None:
    state = {"slow": torch.ones(2, dtype=torch.float64), "fast": [torch.ones((), dtype=torch.float64)]}
    drive = torch.tensor([0.5, 2.0, 0.5, 2.0, 4.0, 4.0], dtype=torch.float64)

    def step(s: dict, factor: Tensor) -> dict:
        return {"slow": factor * s["slow"], "fast": [0.1 * s["fast"][0]]}

    found = lyapunov_spectrum(step, state, steps=4, burn_in=2, inputs=drive)
    slow = (math.log(0.5) + math.log(2) + 2 * math.log(4)) / 4
    assert found.exponents.tolist() == pytest.approx([slow, slow, math.log(0.1)])
    assert found.state["slow"].tolist() == pytest.approx([16.0, 16.0])
    with pytest.raises(ValueError, match="inputs must have one entry a step, 5, got 6"):
        lyapunov_spectrum(step, state, steps=4, burn_in=1, inputs=drive)
    with pytest.raises(ValueError, match="step must return the structure of state"):
        lyapunov_spectrum(lambda s: s["slow"], state, steps=1)


def test_burn_in_turns_the_tangents() -> None:
    matrix = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    words = {"steps": 5, "count": 1}
    start = torch.zeros(2, dtype=torch.float64)
    truth = math.log((3 + math.sqrt(5)) / 2)
    early = float(lyapunov_spectrum(lambda x: matrix @ x, start, **words).exponents[0])
    late = float(lyapunov_spectrum(lambda x: matrix @ x, start, burn_in=20, **words).exponents[0])
    assert abs(early - truth) > 0.01
    assert late == pytest.approx(truth, abs=1e-12)


def test_few_parts_of_a_trajectory_are_not_called_converged() -> None:
    x = torch.tensor([0.3], dtype=torch.float64)
    assert not lyapunov_spectrum(lambda x: 4 * x * (1 - x), x, steps=20).converged
    assert lyapunov_spectrum(lambda x: (2 * x) % 1, x, steps=20).converged  # the rate is log 2 at every step


@pytest.mark.parametrize("iterations", [0, 2])
def test_singular_values_lie_within_their_errors(generator: torch.Generator, iterations: int) -> None:
    matrix = torch.randn(60, 40, generator=generator, dtype=torch.float64)
    found = jacobian_spectrum(
        lambda x: matrix @ x, torch.zeros(40).double(), count=4, iterations=iterations, generator=generator
    )
    truth = torch.linalg.svdvals(matrix)
    assert bool((found.values <= truth[:4] + 1e-9).all())
    off = (found.values[:, None] - truth).abs().amin(1)
    assert bool((off <= found.errors + 1e-12).all())
    stretched = torch.linalg.vector_norm(matrix @ found.directions.T, dim=0)
    torch.testing.assert_close(stretched, (found.values**2 + 2 * found.errors**2).sqrt())


@pytest.mark.parametrize("estimator", ["reparam", "evolution", "forward"])
def test_estimates_of_many_losses_do_not_depend_on_the_chunk(estimator: str) -> None:
    def losses(p: dict[str, Tensor]) -> Tensor:
        return torch.stack([(p["a"] * p["b"]).sum(), p["a"].exp().sum()])

    p = {"a": torch.tensor([0.3, -0.2]).double(), "b": torch.tensor(0.7).double()}
    words = {"estimator": estimator, "samples": 7, "smoothing": 0.2}
    one, many = (
        gradient_variance(losses, p, generator=torch.Generator().manual_seed(5), chunk=chunk, **words)
        for chunk in (None, 3)
    )
    for field in ("variance", "signal_to_noise", "log_norm", "value", "low", "high"):
        torch.testing.assert_close(getattr(one, field), getattr(many, field))
    torch.testing.assert_close(one.mean, many.mean)
    assert one.mean["a"].shape == (2, 2)
    assert one.samples == many.samples == 7


def test_all_estimators_agree_on_the_smoothed_gradient() -> None:
    p = {"x": torch.tensor([0.4, -1.0], dtype=torch.float64)}
    truth = math.exp(-0.5 * 0.5**2) * p["x"].cos()  # of E sin(x + s e)
    for estimator in ("reparam", "evolution", "forward"):
        found = gradient_variance(
            lambda q: q["x"].sin().sum(),
            p,
            estimator=estimator,
            samples=20_000,
            smoothing=0.5,
            generator=torch.Generator().manual_seed(0),
            chunk=20_000,
        )
        assert bool(((found.mean["x"] - truth).abs() < 4 * found.standard_error["x"]).all()), estimator


def test_variance_is_infinite_where_a_gradient_overflows() -> None:
    p = {"x": torch.tensor(0.0, dtype=torch.float64)}
    found = gradient_variance(
        lambda q: (1e300 * q["x"]).sin() * 1e10, p, samples=4, smoothing=1.0, generator=torch.Generator().manual_seed(0)
    )
    assert math.isinf(float(found.variance))
    assert float(found.signal_to_noise) == 0
    with pytest.raises(ValueError, match="loss must be finite at perturbed parameters, got nan"):
        gradient_variance(lambda q: q["x"].sqrt() * 0 - 1, p, samples=20, smoothing=1.0, generator=torch.Generator())


def test_pairs_side_by_side_are_pairs_one_by_one() -> None:
    p = {"x": torch.tensor([3.0, 1.0], dtype=torch.float64)}
    one, many = (
        evolution_gradient(
            lambda q: q["x"].square().sum(),
            p,
            smoothing=0.1,
            pairs=9,
            generator=torch.Generator().manual_seed(1),
            chunk=chunk,
        )
        for chunk in (None, 4)
    )
    torch.testing.assert_close(one.gradient, many.gradient)
    torch.testing.assert_close(one.standard_error, many.standard_error)
    assert one.value == pytest.approx(many.value)


def test_horizon_of_a_chaotic_map_is_found_and_predicted() -> None:
    words = {"max_steps": 40, "smoothing": 1e-3, "samples": 200, "generator": torch.Generator().manual_seed(2)}
    found = gradient_horizon(_logistic, lambda x: x, torch.tensor(0.3).double(), LOGISTIC, chunk=200, **words)
    assert found.regime == "chaotic"
    assert found.exponent == pytest.approx(0.5, abs=0.08)
    assert found.growth == pytest.approx(found.exponent, rel=0.25)
    # Perturbations of size s fill the attractor after log(1 / s) / exponent steps: no gradient survives that.
    assert found.crossing == pytest.approx(math.log(1e3) / 0.5, abs=3)
    assert found.predicted == pytest.approx(found.crossing, rel=0.4)
    assert found.by_exponent > 1.5 * found.crossing
    bound = ((found.evolution.high - found.evolution.low) / 2e-3).square()
    assert bool((found.evolution.variance <= bound).all())
    assert "function values" in found.advice


def test_a_stable_map_forgets_its_initial_state_but_not_its_parameter() -> None:
    words = {"max_steps": 30, "smoothing": 1e-3, "samples": 50, "chunk": 50}
    stable = {"r": torch.tensor(2.5).double()}
    in_r = gradient_horizon(
        _logistic, lambda x: x, torch.tensor(0.3).double(), stable, generator=torch.Generator(), **words
    )
    in_x = gradient_horizon(
        lambda x, p: 2.5 * x * (1 - x),
        lambda x: x,
        lambda p: p["x"],
        {"x": torch.tensor(0.3).double()},
        generator=torch.Generator(),
        **words,
    )
    assert in_r.regime == in_x.regime == "safe"
    assert math.isinf(in_r.crossing)
    assert math.isinf(in_x.crossing)
    assert float(in_r.backprop.mean["r"][-1]) == pytest.approx(1 / 2.5**2, rel=1e-3)  # of the fixed point 1 - 1 / r
    assert in_x.growth == pytest.approx(math.log(0.5), rel=1e-3)
    assert "backpropagate" in in_r.advice


def test_truncation_keeps_values_and_the_gradient_of_the_last_steps() -> None:
    q = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    x = torch.tensor(2.0, dtype=torch.float64)
    words = {"steps": 6, "every": 3}
    whole = unrolled_losses(lambda s: q * s, lambda s: s, x, **words)
    cut = unrolled_losses(lambda s: q * s, lambda s: s, x, truncate=2, **words)
    assert whole.tolist() == cut.tolist() == [2 * 0.5**3, 2 * 0.5**6]
    (full,) = torch.autograd.grad(whole[-1], q)
    (short,) = torch.autograd.grad(cut[-1], q)
    assert float(full) == pytest.approx(6 * 2 * 0.5**5)
    assert float(short) == pytest.approx(2 * 2 * 0.5**5)  # two of the six factors

"""Proximal steps, sharpness and rates against closed forms, scipy and repeated experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pullback.gradients import (
    ProximalSGD,
    convergence_rate,
    fit_smoothness,
    local_smoothness,
    oscillation_amplitude,
    sharpness,
)


def _problem() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    design = torch.randn(40, 12, generator=g, dtype=torch.float64)
    return design, design[:, :3].sum(1) + 0.1 * torch.randn(40, generator=g, dtype=torch.float64)


def _fit(penalty: str, weight: float, shape: tuple[int, ...] = (12,), momentum: float = 0.0) -> torch.Tensor:
    design, target = _problem()
    w = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    lr = (1 - momentum) / float(torch.linalg.matrix_norm(design, 2)) ** 2
    optimizer = ProximalSGD([w], lr, penalty=penalty, weight=weight, momentum=momentum)  # type: ignore[arg-type]
    for _ in range(2000):
        optimizer.zero_grad()
        ((design @ w.reshape(-1) - target).square().sum() / 2).backward()
        optimizer.step()
    return w.detach()


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_lasso_of_scikit_learn_is_found_with_its_zeros(momentum: float) -> None:
    from sklearn.linear_model import Lasso

    design, target = _problem()
    truth = Lasso(alpha=4 / 40, fit_intercept=False, tol=1e-12).fit(design.numpy(), target.numpy()).coef_
    found = _fit("l1", 4.0, momentum=momentum)
    np.testing.assert_allclose(found.numpy(), truth, atol=1e-8)
    assert torch.equal(found == 0, torch.from_numpy(truth) == 0)
    assert 3 <= int((found == 0).sum()) <= 9


def test_groups_are_the_first_dimension_and_vanish_whole() -> None:
    found = _fit("group", 15.0, (4, 3))
    zero = found == 0
    assert torch.equal(zero.any(1), zero.all(1))
    assert not zero[0].any()
    assert zero[1:].all()
    design, target = _problem()  # optimal: the gradient of the kept group is weight times its direction, others shorter
    gradient = (design.T @ (design @ found.reshape(-1) - target)).view(4, 3)
    torch.testing.assert_close(gradient[0], -15 * found[0] / found[0].norm())
    assert (gradient[1:].norm(dim=1) <= 15).all()


def test_each_parameter_group_has_its_own_penalty_and_closures_are_called() -> None:
    matrix, bias = nn.Parameter(torch.full((2, 2), 0.05)), nn.Parameter(torch.full((2,), 0.05))
    optimizer = ProximalSGD([{"params": [matrix]}, {"params": [bias], "weight": 0.0}], lr=0.1, weight=1.0)

    def closure() -> float:
        optimizer.zero_grad()
        loss = 0 * (matrix.sum() + bias.sum())
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 0.0
    assert (matrix == 0).all()
    assert (bias == 0.05).all()
    with pytest.raises(ValueError, match="penalty must be one of"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "penalty": "l3"})


def test_momentum_survives_saving() -> None:
    def steps(optimizer: ProximalSGD, w: nn.Parameter, count: int) -> None:
        for _ in range(count):
            w.grad = 2 * w.detach()
            optimizer.step()

    whole, part = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(1.0))
    steps(ProximalSGD([whole], 0.1, weight=0.01, momentum=0.9), whole, 4)
    first = ProximalSGD([part], 0.1, weight=0.01, momentum=0.9)
    steps(first, part, 2)
    second = ProximalSGD([part], 0.1, weight=0.01, momentum=0.9)
    second.load_state_dict(first.state_dict())
    steps(second, part, 2)
    assert torch.equal(whole, part)


def test_sharpness_of_a_network_is_that_of_its_whole_hessian() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x, y = torch.randn(20, 3).double(), torch.randn(20, 1).double()
    parameters = dict(model.named_parameters())

    def loss(p: dict[str, torch.Tensor]) -> torch.Tensor:
        return (torch.func.functional_call(model, p, x) - y).square().mean()

    found = sharpness(loss, parameters, iterations=26, tolerance=1e-10, generator=torch.Generator().manual_seed(1))
    blocks = torch.func.hessian(loss)({name: p.detach() for name, p in parameters.items()})
    rows = [torch.cat([blocks[a][b].reshape(parameters[a].numel(), -1) for b in blocks], 1) for a in blocks]
    values, vectors = torch.linalg.eigh(torch.cat(rows))
    assert found.value == pytest.approx(float(values[-1]), rel=1e-9)
    assert found.converged
    assert float(found.spectrum[0]) == pytest.approx(float(values[0]), rel=1e-2)
    flat = torch.cat([found.direction[name].reshape(-1) for name in blocks])
    assert abs(float(flat @ vectors[:, -1])) == pytest.approx(1, abs=1e-9)
    early = sharpness(loss, parameters, iterations=5, tolerance=1e-10, generator=torch.Generator().manual_seed(1))
    assert not early.converged
    assert early.value <= float(values[-1])
    assert float((values - early.value).abs().min()) <= early.residual


def test_sharpness_of_losses_without_curvature() -> None:
    for loss in (lambda p: p["x"].sum(), lambda p: torch.tensor(2.0), lambda p: p["x"].relu().sum()):
        found = sharpness(loss, {"x": torch.ones(4)})
        assert found.value == 0
        assert found.converged
        assert all(part.isfinite().all() for part in found.direction.values())
    with pytest.raises(ValueError, match="loss must return a scalar"):
        sharpness(lambda p: p["x"], {"x": torch.ones(2)})
    with pytest.raises(ValueError, match="loss must be finite, got inf"):
        sharpness(lambda p: p["x"].sum() / 0, {"x": torch.ones(2)})


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_the_interval_covers_the_exponent_as_often_as_it_says(correlation: float) -> None:
    noise = torch.randn(400, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in range(1, 300):
        noise[:, k] = correlation * noise[:, k - 1] + math.sqrt(1 - correlation**2) * noise[:, k]
    values = 2 * torch.arange(1.0, 301, dtype=torch.float64) ** -0.7 * (0.2 * noise).exp() + 3
    found = convergence_rate(values, 3.0, confidence=0.9)
    covered = ((found.low <= -0.7) & (found.high >= -0.7)).double().mean()
    assert 0.82 <= float(covered) <= 0.95  # 0.9 +- 5 standard errors; at 0.8 without the correction it is 0.4


def test_the_interval_of_independent_residuals_is_that_of_scipy() -> None:
    import scipy.stats

    g = np.random.default_rng(1)
    k = np.arange(1, 41)
    noise = 0.1 * np.where(k % 2, 1, -1) * g.random(40)  # neighbours differ: no correlation to correct for
    fit = scipy.stats.linregress(np.log(k), -1.3 * np.log(k) + noise)
    found = convergence_rate(torch.from_numpy(np.exp(-1.3 * np.log(k) + noise)), confidence=0.95)
    half = fit.stderr * scipy.stats.t.ppf(0.975, 38)
    assert found.high - found.low == pytest.approx(2 * half, rel=1e-4)
    assert float(found.factor) == pytest.approx(math.exp(fit.intercept))


def test_windows_show_the_rate_that_single_values_hide() -> None:
    """``|x|`` with steps ``1 / sqrt k`` crosses 0: windows fall like ``k^-1/2``."""
    x, values = 0.3, []
    for k in range(1, 20_001):
        x -= math.copysign(1, x) / math.sqrt(k)
        values.append(abs(x))
    found = convergence_rate(torch.tensor(values, dtype=torch.float64), window=100, skip=100)
    assert -0.6 < float(found.exponent) < -0.45


def test_amplitude_of_a_two_cycle_that_drifts() -> None:
    t = torch.arange(50, dtype=torch.float64)
    iterates = torch.stack([3 + 0.7 * (-1) ** t + 2 * t, 5 * t], 1)
    torch.testing.assert_close(oscillation_amplitude(iterates), torch.tensor([0.7, 0.0], dtype=torch.float64))
    half = torch.cat([iterates[:25, :1], torch.zeros(25, 1).double()])
    assert float(oscillation_amplitude(half, window=20)) == 0


def test_smoothness_of_a_quadratic_is_at_most_its_largest_curvature_wherever_it_is() -> None:
    curvatures = torch.tensor([1.0, 4.0, -9.0], dtype=torch.float64)
    for seed in range(3):
        here, step = torch.randn(2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        found = local_smoothness(lambda p: (curvatures * p["x"] ** 2).sum() / 2, {"x": here}, {"x": step})
        assert found.value.item() == pytest.approx(((curvatures * step).norm() / step.norm()).item())


def test_smoothness_of_an_exponential_grows_as_its_gradient() -> None:
    """``exp`` has second derivatives that equal the first: the slope is 1 for small steps, the constant 0."""
    found = [
        local_smoothness(lambda p: p["x"].exp().sum(), {"x": torch.tensor([x], dtype=torch.float64)}, {"x": _SMALL})
        for x in (-2.0, 0.0, 1.0, 2.5)
    ]
    line = fit_smoothness(*(torch.stack(column) for column in zip(*found, strict=True)))
    assert line.slope.item() == pytest.approx(1.0, abs=1e-3)
    assert line.constant.item() == pytest.approx(0.0, abs=1e-3)
    assert line.t > 1e3


_SMALL = torch.tensor([1e-4], dtype=torch.float64)

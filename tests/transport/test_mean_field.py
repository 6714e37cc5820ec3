"""Laws of neurons: samples against integrals, particles against ridge regression, the certificate at a fixed point."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from pullback import transport

Law = transport.EntropicFictitiousPlay | transport.MeanFieldLangevin


def _wells(x: Tensor) -> Tensor:
    return (x.square() - 1).square().sum(-1)


def test_steps_of_langevin_widen_a_normal_law_as_the_closed_form_says() -> None:
    g = torch.Generator().manual_seed(0)
    start = torch.randn(4000, 3, generator=g)
    found = transport.langevin(lambda x: x.square().sum(-1), start, step=0.3, temperature=2.0, steps=30, generator=g)
    assert found.theta.var() == pytest.approx(1 / (1 - 0.3), rel=0.04)  # T / 2 = 1, the curvature 2 times the step
    assert (found.accepted == 1).all()


def test_adjusted_steps_keep_the_law_of_two_wells() -> None:
    g = torch.Generator().manual_seed(0)
    start = torch.randn(3000, 1, generator=g).clamp(-2, 2)  # farther out a step of this size is never taken
    moments = []
    for adjusted in (True, False):
        found = transport.langevin(_wells, start, step=0.1, temperature=0.5, steps=60, adjusted=adjusted, generator=g)
        moments.append(float(found.theta.square().mean()))
    total, second = (quad(lambda x, k=k: x**k * math.exp(-2 * (x**2 - 1) ** 2), -3, 3)[0] for k in (0, 2))
    assert moments[0] == pytest.approx(second / total, rel=0.03)
    assert abs(moments[1] - second / total) > 2 * abs(moments[0] - second / total)
    accepted = transport.langevin(_wells, start, step=0.1, steps=20, adjusted=True, generator=g).accepted
    assert ((accepted >= 0) & (accepted <= 1)).all()
    assert 0.4 < accepted.mean() < 0.99


def test_a_chain_is_differentiable_in_its_start_and_in_its_potential() -> None:
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    start = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    found = transport.langevin(
        lambda x: scale * x.square().sum(-1) / 2, start, step=0.1, temperature=0.0, steps=5
    ).theta.sum()
    slopes = torch.autograd.grad(found, (start, scale))
    assert slopes[0].item() == pytest.approx(0.8**5)
    assert slopes[1].item() == pytest.approx(-0.1 * 5 * 0.8**4)


def _linear(theta: Tensor, x: Tensor) -> Tensor:
    return theta @ x.mT


def _square(h: Tensor, y: Any) -> Tensor:
    return (h - y).square() / 2


def _ridge() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and the outputs of the optimum: the mean of its normal law is that of ridge regression."""
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0]) + 0.1
    solved = np.linalg.solve((x.T @ x / 30 + 2 * 0.05 * torch.eye(4)).numpy(), (x.T @ y / 30).numpy())
    return x, y, x @ torch.from_numpy(solved)


def _laws(feature: Any = _linear, y: Tensor | None = None, seed: int = 0) -> list[Law]:
    x, target, _ = _ridge()
    options: dict[str, Any] = {"feature": feature, "loss": _square, "temperature": 0.02, "decay": 0.05, "step": 0.2}
    laws: list[Law] = []
    for kind, more in (
        (transport.EntropicFictitiousPlay, {"rate": 0.2, "steps": 8}),
        (transport.MeanFieldLangevin, {}),
    ):
        g = torch.Generator().manual_seed(seed)
        start = torch.randn(400, 4, generator=g)
        laws.append(kind(start, x, target if y is None else y, generator=g, **options, **more))
    return laws


@pytest.mark.parametrize("which", [0, 1])
def test_particles_find_the_law_of_ridge_regression(which: int) -> None:
    x, _, best = _ridge()
    law = _laws()[which]
    before = law.objective()
    for _ in range(80):
        law.step()
    assert law.objective() < 0.5 * before
    assert (law.outputs - best).square().mean().sqrt() < 0.05 * best.square().mean().sqrt()
    assert (law.predict(x) - best).square().mean().sqrt() < 0.1 * best.square().mean().sqrt()
    spread = law.particles.var(0).mean()
    assert spread == pytest.approx(0.02 / (2 * 0.05), rel=0.2)
    assert law.evaluations == 80 * 400 * (8 if which == 0 else 1)


def test_outputs_are_those_of_all_samples_and_a_part_of_the_particles_is_replaced() -> None:
    x, *_ = _ridge()
    law = _laws()[0]
    assert isinstance(law, transport.EntropicFictitiousPlay)
    drawn, weights = [law.particles], [1.0]
    kept = law.particles
    for _ in range(6):
        law.step()
        drawn.append(law.chains)
        weights = [0.8 * w for w in weights] + [0.2]
    whole = sum(w * _linear(d, x).mean(0) for w, d in zip(weights, drawn, strict=True))
    torch.testing.assert_close(law.outputs, whole)
    assert law.particles.shape == kept.shape
    assert (law.particles == kept).all(-1).float().mean() == pytest.approx(0.8**6, abs=0.08)


@pytest.mark.parametrize("which", [0, 1])
def test_a_law_goes_on_from_its_state_to_the_same_numbers(which: int) -> None:
    first, second = (_laws(seed=s)[which] for s in (0, 1))
    for _ in range(2):
        first.step()
    second.load_state_dict(first.state_dict())
    for law in (first, second):
        law.step()
    assert torch.equal(first.particles, second.particles)
    assert torch.equal(first.outputs, second.outputs)
    assert (first.taken, first.evaluations) == (second.taken, second.evaluations)


@pytest.mark.parametrize("which", [0, 1])
def test_several_outputs_a_sample(which: int) -> None:
    _, y, _ = _ridge()
    pair = torch.stack([y, -2 * y], -1)
    two = torch.tensor([1.0, -2.0])
    law = _laws(lambda theta, x: (theta @ x.mT).unsqueeze(-1) * two, pair)[which]
    for _ in range(60):
        law.step()
    assert law.outputs.shape == (30, 2)
    assert (law.outputs[:, 0] - y).square().mean() < 0.05 * y.square().mean()


def test_the_gap_closes_at_the_law_that_is_its_own_best_answer() -> None:
    x, y, _ = _ridge()
    axis = torch.linspace(-5, 5, 61, dtype=torch.float64)
    theta, volume = torch.cartesian_prod(axis, axis), float(axis[1] - axis[0]) ** 2
    features = _linear(theta, x[:, :2].double())
    options: dict[str, Any] = {"loss": _square, "temperature": 0.2, "decay": 0.2, "volume": volume}
    law = torch.full((len(theta),), -math.log(volume * len(theta)), dtype=torch.float64)
    primal = []
    for _ in range(150):
        found = transport.duality_gap(law, theta, features, y.double(), **options)
        primal.append(float(found.primal))
        law = torch.logaddexp(law + math.log(0.8), found.log_gibbs + math.log(0.2))
    assert abs(found.primal - found.dual) < 1e-8
    solved = np.linalg.solve((x[:, :2].T @ x[:, :2] / 30 + 0.4 * torch.eye(2)).numpy(), (x[:, :2].T @ y / 30).numpy())
    np.testing.assert_allclose((volume * law.exp()) @ theta, solved, atol=1e-4)
    assert all(p >= float(found.dual) - 1e-9 for p in primal)


def test_bad_options_are_refused_by_name() -> None:
    x, y, _ = _ridge()
    start = torch.zeros(3, 4)
    options: dict[str, Any] = {"feature": _linear, "loss": _square, "temperature": 0.1, "decay": 0.0, "step": 0.1}
    for wrong, message in (
        ({"rate": 0.0}, "rate must be > 0"),
        ({"rate": 1.5}, r"rate must be in \[0, 1\]"),
        ({"temperature": 0.0}, "temperature must be > 0"),
        ({"step": -1.0}, "step must be > 0"),
        ({"steps": 0}, "steps must be an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            transport.EntropicFictitiousPlay(start, x, y, **(options | {"rate": 0.5} | wrong))
    with pytest.raises(ValueError, match=r"theta must have shape \(m, d\)"):
        transport.MeanFieldLangevin(start[:0], x, y, **options)
    with pytest.raises(ValueError, match=r"loss must return a tensor of shape \(30,\), got \(\)"):
        transport.MeanFieldLangevin(start, x, y, **(options | {"loss": lambda h, y: (h - y).sum()}))
    with pytest.raises(ValueError, match=r"feature must return .* with a row for each of the 3 neurons"):
        transport.MeanFieldLangevin(start, x, y, **(options | {"feature": lambda t, x: x}))
    flat = torch.zeros(3)
    with pytest.raises(ValueError, match="log_density must be normalised"):
        transport.duality_gap(flat, start, torch.zeros(3, 5), torch.zeros(5), loss=_square, temperature=1.0)

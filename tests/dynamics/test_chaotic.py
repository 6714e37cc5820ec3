"""What the chaotic systems keep: energy, walls, distance, and derivatives through contacts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pullback.dynamics import colliding_discs, double_pendulum, lorenz, rk4_step


@pytest.fixture
def discs() -> Tensor:
    positions = torch.tensor([[0.3, 0.35], [0.7, 0.6]], dtype=torch.float64)
    return torch.stack([positions, torch.tensor([[0.7, 0.2], [-0.3, 0.9]], dtype=torch.float64)])


def test_discs_keep_their_energy_stay_apart_and_inside(discs: Tensor) -> None:
    weights = torch.tensor([[1.0], [2.0]])
    energy = (weights * discs[1].square()).sum()
    hits = 0
    for _ in range(300):
        before = discs
        discs = colliding_discs(discs, 2.0, duration=0.2)
        hits += int((discs[1] != before[1]).any())
        assert float((weights * discs[1].square()).sum()) == pytest.approx(float(energy), rel=1e-12)
        assert float(torch.linalg.vector_norm(discs[0, 0] - discs[0, 1])) >= 0.3 - 1e-9
        assert 0.15 - 1e-9 <= float(discs[0].min()) <= float(discs[0].max()) <= 0.85 + 1e-9
    assert hits > 100


def test_a_batch_flies_as_each_of_its_boxes_does(discs: Tensor) -> None:
    boxes = torch.stack([discs, discs.flip(-1), discs.flip(-2)])
    together = colliding_discs(boxes, 1.4, duration=0.7, contacts=9)
    for one, state in zip(together, boxes, strict=True):
        torch.testing.assert_close(one, colliding_discs(state, 1.4, duration=0.7, contacts=9))
    torch.testing.assert_close(
        torch.func.vmap(lambda s: colliding_discs(s, 1.4, duration=0.7, contacts=9))(boxes), together
    )
    with pytest.raises(ValueError, match="discs inside of the unit box and apart"):
        colliding_discs(discs * 1.5)
    with pytest.raises(ValueError, match="discs inside of the unit box and apart"):
        colliding_discs(discs[:, :1].expand(2, 2, 2))


def test_time_runs_backwards_through_contacts(discs: Tensor) -> None:
    there = colliding_discs(discs, 1.7, duration=1.0, contacts=20)
    assert not torch.equal(there[1], discs[1])
    back = colliding_discs(torch.stack([there[0], -there[1]]), 1.7, duration=1.0, contacts=20)
    torch.testing.assert_close(back, torch.stack([discs[0], -discs[1]]), atol=1e-9, rtol=0)


def test_derivatives_through_contacts_are_those_of_differences(discs: Tensor) -> None:
    def far(mass: Tensor) -> Tensor:
        return colliding_discs(discs, mass, duration=1.0, contacts=20)

    mass, h = torch.tensor(1.3, dtype=torch.float64), 1e-6
    slope = torch.func.jacfwd(far)(mass)
    torch.testing.assert_close(slope, (far(mass + h) - far(mass - h)) / (2 * h), atol=1e-5, rtol=1e-5)
    assert float(slope.abs().max()) > 0.1


def test_a_pendulum_without_friction_keeps_its_energy_and_loses_it_with() -> None:
    def energy(y: Tensor) -> Tensor:
        a, b, u, v = y.unbind(-1)
        return u**2 + v**2 / 2 + u * v * (a - b).cos() - 9.81 * (2 * a.cos() + b.cos())

    start = torch.tensor([2.0, 2.5, 0.0, 0.0], dtype=torch.float64)
    free = damped = start
    for _ in range(500):
        free = rk4_step(double_pendulum, torch.zeros(1), free, 0.005)
        damped = rk4_step(lambda t, y: double_pendulum(t, y, friction=0.5), torch.zeros(1), damped, 0.005)
    assert float(energy(free)) == pytest.approx(float(energy(start)), abs=1e-5)
    assert float(energy(damped)) < float(energy(start)) - 10


def test_volumes_of_lorenz_shrink_at_a_constant_rate(generator: torch.Generator) -> None:
    y = 10 * torch.randn(3, generator=generator, dtype=torch.float64)
    jacobian = torch.func.jacfwd(lambda y: lorenz(torch.zeros(1), y))(y)
    assert float(jacobian.trace()) == pytest.approx(-41 / 3)

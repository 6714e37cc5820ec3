"""Material points against conservation laws, fields that the grid carries exactly, and the energy of their stress."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pullback.dynamics.material_points import MaterialMotion, MaterialPoints


def block(side: int = 6, corner: float = 0.4, gap: float = 0.02) -> Tensor:
    node = torch.arange(side, dtype=torch.float64)
    return corner + gap * torch.stack(torch.meshgrid(node, node, indexing="ij"), -1).flatten(0, 1)


def body(count: int = 36, **words: object) -> MaterialPoints:
    volume = torch.full((count,), 4e-4, dtype=torch.float64)
    return MaterialPoints(volume, cells=20, **words)  # type: ignore[arg-type]


def none(steps: int) -> Tensor:
    return torch.zeros(steps, 0, dtype=torch.float64)


def drawn(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def spin(points: MaterialPoints, x: Tensor, v: Tensor, c: Tensor) -> float:
    """Angular momentum, with that of the affine parts."""
    turned = x[:, 0] * v[:, 1] - x[:, 1] * v[:, 0]
    return float((points.volume * (turned + points.spacing**2 / 4 * (c[:, 1, 0] - c[:, 0, 1]))).sum())


def test_momentum_and_spin_are_kept_far_from_walls() -> None:
    points, x = body(gravity=0.0, youngs=20.0), block()
    v, c = drawn(36, 2, scale=0.3), drawn(36, 2, 2, scale=2.0)
    bent = torch.eye(2, dtype=torch.float64) + drawn(36, 2, 2, scale=0.1)
    found = points.simulate(x, v, none(20), affine=c, deformation=bent, dt=2e-3)
    torch.testing.assert_close(found.velocities[-1].mean(0), v.mean(0), rtol=1e-10, atol=1e-12)
    before, after = spin(points, x, v, c), spin(points, found.positions[-1], found.velocities[-1], found.affine)
    assert abs(before) > 1e-4
    assert after == pytest.approx(before, rel=1e-9)
    assert float((found.velocities[-1] - v).abs().max()) > 0.05  # it did something


def test_the_grid_carries_an_affine_field_exactly() -> None:
    points, x = body(gravity=0.0, youngs=1e-12), block()
    slope = torch.tensor([[0.5, -2.0], [1.5, 0.3]], dtype=torch.float64)
    v = torch.tensor([0.1, -0.2], dtype=torch.float64) + x @ slope.T
    found = points.simulate(x, v, none(1), affine=slope.expand(36, 2, 2), dt=1e-3)
    torch.testing.assert_close(found.velocities[1], v)
    torch.testing.assert_close(found.affine, slope.expand(36, 2, 2), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.positions[1], x + 1e-3 * v)
    grown = torch.eye(2, dtype=torch.float64) + 1e-3 * slope
    torch.testing.assert_close(found.deformation, grown.expand(36, 2, 2))


def test_the_stress_is_the_slope_of_the_energy() -> None:
    points = body(5, youngs=7.0, poisson=0.3, gravity=0.0)
    f = (torch.eye(2, dtype=torch.float64) + drawn(5, 2, 2, scale=0.4)).requires_grad_()
    rest = torch.zeros(5, 2, dtype=torch.float64)
    slope = torch.autograd.grad(points.energy(rest, rest, torch.zeros_like(f), f), f)[0]
    torch.testing.assert_close(points.stress(f).detach() * points.volume[:, None, None], slope @ f.detach().mT)
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
    assert float(points.stress(turn.expand(5, 2, 2)).abs().max()) < 1e-9  # turning costs nothing
    small = torch.eye(2, dtype=torch.float64) + torch.tensor([[1e-6, 0.0], [0.0, 0.0]], dtype=torch.float64)
    lame = 7 * 0.3 / (1.3 * 0.4)
    assert points.stress(small.expand(5, 2, 2))[0, 0, 0].item() == pytest.approx(1e-6 * (lame + 7 / 1.3), rel=1e-4)


def test_it_falls_freely_and_comes_to_rest_on_the_floor() -> None:
    points, x = body(youngs=20.0, friction=None, poisson=0.1), block(corner=0.3)
    fall = points.simulate(x, torch.zeros_like(x), none(30), dt=2e-3)
    torch.testing.assert_close(
        (x - fall.positions[-1])[:, 1], torch.full((36,), 1.8 * 4e-6 * 30 * 31 / 2, dtype=torch.float64)
    )
    rest = points.simulate(x, torch.zeros_like(x), none(600), dt=4e-3)
    floor = 3 * points.spacing
    assert float(rest.positions[-1][:, 1].min()) > 0.8 * floor
    assert float(rest.positions[-1][:, 1].mean()) < floor + 0.1
    energy = [float(points.energy(m.positions[-1], m.velocities[-1], m.affine, m.deformation)) for m in (fall, rest)]
    assert energy[1] < energy[0]


def test_a_spinning_block_keeps_its_energy_but_for_a_little() -> None:
    points, x = body(gravity=0.0, youngs=20.0), block()
    turn = torch.tensor([[0.0, -3.0], [3.0, 0.0]], dtype=torch.float64)
    v, c = (x - x.mean(0)) @ turn.T, turn.expand(36, 2, 2)
    eye = torch.eye(2, dtype=torch.float64).expand(36, 2, 2)
    found = points.simulate(x, v, none(250), affine=c, dt=1e-3)
    before, after = (
        float(points.energy(*s))
        for s in ((x, v, c, eye), (found.positions[-1], found.velocities[-1], found.affine, found.deformation))
    )
    assert before > 0
    assert 0.85 * before < after < 1.01 * before
    angle = math.atan2(*reversed((found.positions[-1][-1] - found.positions[-1].mean(0)).tolist())) - math.pi / 4
    assert angle == pytest.approx(0.75, abs=0.08)


def test_a_muscle_shortens_along_its_fibre_alone() -> None:
    x = block()
    left = (x[:, 0] < x[:, 0].mean()).long() - 1  # 0 on the left, -1 on the right
    points = body(gravity=0.0, youngs=20.0, muscles=left, strength=4.0)
    found = points.simulate(x, torch.zeros_like(x), torch.ones(40, 1, dtype=torch.float64), dt=2e-3)
    stretch = found.deformation[..., 1, 1].detach()
    assert float(stretch[left == 0].mean()) < 0.95
    assert float(stretch[left == -1].mean()) > float(stretch[left == 0].mean()) + 0.02
    still = points.simulate(x, torch.zeros_like(x), torch.zeros(40, 1, dtype=torch.float64), dt=2e-3)
    torch.testing.assert_close(still.positions[-1], x)
    across = body(gravity=0.0, youngs=20.0, muscles=0 * left, fibres=torch.tensor([[1.0, 0.0]] * 36).double())
    wide = across.simulate(x, torch.zeros_like(x), torch.ones(40, 1, dtype=torch.float64), dt=2e-3)
    assert float(wide.deformation[..., 0, 0].mean()) < 0.99 < float(wide.deformation[..., 1, 1].mean()) + 0.02


def test_its_gradient_is_that_of_finite_differences_and_rows_of_a_batch_are_apart() -> None:
    x = block(3, corner=0.2)
    points = MaterialPoints(
        torch.full((9,), 4e-4, dtype=torch.float64), cells=12, youngs=5.0, muscles=torch.arange(9) % 2
    )
    commands = drawn(12, 2, scale=0.5).requires_grad_()

    def place(u: Tensor) -> Tensor:
        start = torch.tensor([0.3, -0.6], dtype=torch.float64).expand(9, 2)
        found: MaterialMotion = points.simulate(x, start, u, dt=2e-3)
        return found.positions[-1].square().sum()

    slope = torch.autograd.grad(place(commands), commands)[0]
    with torch.no_grad():
        way = drawn(12, 2)
        change = (place(commands + 1e-5 * way) - place(commands - 1e-5 * way)) / 2e-5
    assert float((slope * way).sum()) == pytest.approx(float(change), rel=1e-6)
    many = points.simulate(torch.stack([x, x + 0.1]), torch.zeros(9, 2).double(), drawn(5, 2, 2), dt=2e-3)
    alone = points.simulate(x + 0.1, torch.zeros(9, 2).double(), drawn(5, 2, 2)[:, 1], dt=2e-3)
    torch.testing.assert_close(many.positions[:, 1], alone.positions)


def test_what_cannot_be_is_refused() -> None:
    points, x = body(), block()
    with pytest.raises(ValueError, match=r"points must stay a cell .* got point 35 at .* in step 0"):
        points.simulate(x + torch.eye(36, dtype=torch.float64)[-1][:, None], 0 * x, none(1))
    with pytest.raises(ValueError, match=r"in step [1-9]"):
        points.simulate(x, 0 * x + 90.0, none(20), dt=1e-2)
    with pytest.raises(ValueError, match="poisson must be in"):
        body(poisson=0.5)
    with pytest.raises(ValueError, match=r"walls must be in 2\.\.5"):
        body(walls=6)
    with pytest.raises(ValueError, match="muscles must be 36 numbers from -1"):
        body(muscles=torch.full((36,), -2))
    with pytest.raises(ValueError, match="volume must be > 0"):
        MaterialPoints(torch.zeros(3))
    stiff, soft = body(youngs=100.0).stable_step(), body(youngs=1.0).stable_step()
    assert soft == pytest.approx(10 * stiff)
    with pytest.raises(TypeError, match="muscles"):
        body(muscles=[0] * 36)
    with pytest.raises(ValueError, match="controls must be finite"):
        body(muscles=torch.zeros(36, dtype=torch.int64)).simulate(x, 0 * x, torch.full((2, 1), math.inf).double())
    with pytest.raises(ValueError, match="v must be finite"):
        points.simulate(x, 0 * x + math.nan, none(1))
    with pytest.raises(ValueError, match="deformation must be finite"):
        points.simulate(x, 0 * x, none(1), deformation=torch.full((36, 2, 2), math.nan).double())


@pytest.mark.parametrize("walls", [2, 4])
def test_walls_mirror_each_other(walls: int) -> None:
    """A block flies at the left wall, a mirrored one at the right: all that follows is mirrored."""
    points, turn = body(16, gravity=0.0, youngs=20.0, walls=walls), torch.tensor([-1.0, 1.0], dtype=torch.float64)
    x = block(4, corner=0.05 * walls + 0.07)
    v = torch.tensor([-0.4, 0.1], dtype=torch.float64).expand(16, 2)
    left = points.simulate(x, v, none(120), dt=2e-3)
    right = points.simulate(torch.tensor([1.0, 0.0]).double() + turn * x, turn * v, none(120), dt=2e-3)
    torch.testing.assert_close(right.positions, torch.tensor([1.0, 0.0]).double() + turn * left.positions)
    torch.testing.assert_close(right.velocities, turn * left.velocities)
    assert float(left.velocities[-1][:, 0].mean()) > 0  # the wall has thrown it back
    along = torch.tensor([0.0, 0.3], dtype=torch.float64).expand(16, 2)
    edge = 1 - points.spacing - (x[:, 0] - x[:, 0].min())  # the last cell in which points may be
    free = points.simulate(torch.stack([edge, x[:, 1] + 0.3], -1), along, none(3), dt=2e-3)
    torch.testing.assert_close(free.velocities[-1], along)

"""Internal coordinates at their singular places and under motions, and charges under what must not change them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pullback.dynamics import (
    bond_angles,
    dihedrals,
    equilibrate_charges,
    mixture_to_harmonic,
    pair_distances,
    torsion_energy,
)

CHAIN = torch.tensor([[0, 1, 2, 3]])


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_motion_keeps_internal_coordinates_and_a_mirror_turns_dihedrals(generator: torch.Generator) -> None:
    x = torch.randn(5, 4, 3, generator=generator, dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64)).Q
    turn = turn * torch.linalg.det(turn)
    moved = x @ turn.T + 7.0
    torch.testing.assert_close(dihedrals(moved, CHAIN), dihedrals(x, CHAIN))
    torch.testing.assert_close(bond_angles(moved, CHAIN[:, :3]), bond_angles(x, CHAIN[:, :3]))
    torch.testing.assert_close(dihedrals(-x, CHAIN), -dihedrals(x, CHAIN))
    torch.testing.assert_close(dihedrals(x, CHAIN.flip(1)), dihedrals(x, CHAIN))


@pytest.mark.parametrize(
    ("measure", "indices", "expected"),
    [(pair_distances, [[0, 0]], 0.0), (bond_angles, [[0, 1, 2]], torch.pi), (dihedrals, [[0, 1, 2, 3]], 0.0)],
)
def test_gradients_are_zero_on_a_line_and_at_one_place(measure, indices: list[list[int]], expected: float) -> None:
    x = torch.tensor([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]], requires_grad=True)
    value = measure(x, torch.tensor(indices))
    assert value.tolist() == pytest.approx([expected])
    (slope,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.square().sum(), x, allow_unused=True, materialize_grads=True)
    assert slope.abs().max() == 0
    assert bend.abs().max() == 0


def test_small_angles_keep_their_digits() -> None:
    """An arc cosine in single precision says 0 here."""
    x = torch.tensor([[1.0, 0, 0], [0, 0, 0], [1, 1e-5, 0]])
    assert float(bond_angles(x, torch.tensor([[0, 1, 2]]))) == pytest.approx(1e-5, rel=1e-5)


def test_a_mixture_has_the_energy_differences_of_its_spring(generator: torch.Generator) -> None:
    log_weights = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    centres = torch.tensor([1.5, 6.0], dtype=torch.float64)
    x = torch.rand(9, 1, generator=generator, dtype=torch.float64) * 3
    mixture = (log_weights.exp() * (x[..., None] - centres).square()).sum(-1)
    spring = mixture_to_harmonic(log_weights, centres)
    single = spring.stiffness * (x - spring.rest).square()
    torch.testing.assert_close(mixture - mixture[:1], single - single[:1])
    assert bool(((spring.rest > 1.5) & (spring.rest < 6)).all())


def test_torsions_at_the_staggered_and_the_eclipsed_angle() -> None:
    amplitudes = torch.tensor([0.5, -0.25, 1.4])
    angles = torch.tensor([0.0, torch.pi])
    torch.testing.assert_close(torsion_energy(angles, amplitudes), torch.tensor([3.3, -0.5]))


def test_charges_sum_to_the_total_share_a_potential_and_ignore_a_constant(generator: torch.Generator) -> None:
    e: Tensor = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    s = torch.rand(3, 7, generator=generator, dtype=torch.float64) + 0.1
    total = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    q = equilibrate_charges(e, s, total)
    torch.testing.assert_close(q.sum(-1), total, atol=1e-12, rtol=0)
    potential = e + s * q
    torch.testing.assert_close(potential, potential[:, :1].expand_as(potential))
    torch.testing.assert_close(equilibrate_charges(e + 100, s, total), q)
    torch.testing.assert_close(equilibrate_charges(e[0], s[0], 1.5).sum(), torch.tensor(1.5, dtype=torch.float64))

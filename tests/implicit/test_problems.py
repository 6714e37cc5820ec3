"""Problems with known answers: the dual of an SVM, and packings of soft discs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pullback.implicit import MulticlassSVM, soft_disc_energy


@pytest.fixture
def svm() -> MulticlassSVM:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, (12,), generator=generator)
    return MulticlassSVM(features, torch.eye(3, dtype=torch.float64)[labels])


def test_dual_solution_minimises_the_hinge_loss(svm: MulticlassSVM) -> None:
    """Strong duality: the primal objective at the weights is minus the dual one, up to its constant."""
    r = torch.tensor(0.7, dtype=torch.float64)
    dual = svm.solve(svm.uniform(), r, tolerance=1e-10)
    weights = svm.weights(dual, r)
    scores = svm.features @ weights
    right = (scores * svm.targets).sum(-1)
    hinge = (scores + 1 - svm.targets).amax(-1) - right
    primal = r * (weights**2).sum() / 2 + hinge.sum()
    torch.testing.assert_close(primal, len(dual) - svm.objective(dual, r), rtol=1e-8, atol=0)


@pytest.mark.parametrize("condition", ["projected gradient", "mirror descent", "KKT"])
def test_every_condition_gives_the_derivative_of_solving_again(svm: MulticlassSVM, condition: str) -> None:
    r, h = torch.tensor(20.0, dtype=torch.float64, requires_grad=True), 1e-4

    def solve(value: float) -> Tensor:
        return svm.solve(svm.uniform(), torch.tensor(value, dtype=torch.float64), tolerance=1e-11)

    # The dual need not be unique: the weights are.
    probe = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = svm.weights(svm.differentiable(solve(20.0), r, condition), r)
    got = torch.autograd.grad((weights * probe).sum(), r)[0]
    above, below = (
        (svm.weights(solve(v), torch.tensor(v, dtype=torch.float64)) * probe).sum() for v in (20 + h, 20 - h)
    )
    torch.testing.assert_close(got, (above - below) / (2 * h), rtol=1e-5, atol=0)


def test_mirror_descent_converges_where_entries_differ_much(recwarn: pytest.WarningsRecorder) -> None:
    """With more unknowns than a dense matrix is built for, the linear system needs its preconditioner."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(120, 32, generator=generator, dtype=torch.float64)
    svm = MulticlassSVM(features, torch.eye(6, dtype=torch.float64)[torch.randint(6, (120,), generator=generator)])
    r = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    dual = svm.solve(svm.uniform(), r.detach())
    slopes = [
        torch.autograd.grad((svm.weights(svm.differentiable(dual, r, name), r) ** 2).sum(), r)[0]
        for name in ("projected gradient", "mirror descent")
    ]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-5, atol=0)
    assert not recwarn.list


def test_iterations_and_their_derivative_tend_to_the_solution(svm: MulticlassSVM) -> None:
    r = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    dual = svm.solve(svm.uniform(), r.detach(), tolerance=1e-11)
    found = svm.iterate(svm.uniform(), r, 3000)
    torch.testing.assert_close(svm.weights(found, r), svm.weights(dual, r), atol=1e-6, rtol=0)
    slopes = [torch.autograd.grad((svm.weights(d, r) ** 2).sum(), r)[0] for d in (found, svm.differentiable(dual, r))]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-4, atol=0)


@pytest.mark.usefixtures("without_shape_checks")
def test_svm_refuses_what_does_not_fit(svm: MulticlassSVM) -> None:
    with pytest.raises(ValueError, match="targets"):
        MulticlassSVM(svm.features, svm.targets[:5])
    with pytest.raises(TypeError, match="targets"):
        MulticlassSVM(svm.features, svm.targets.float())
    with pytest.raises(ValueError, match="condition"):
        svm.differentiable(svm.uniform(), torch.tensor(1.0), "newton")


def test_energy_is_the_sum_over_all_pairs_and_images() -> None:
    rng = np.random.default_rng(0)
    places, sizes, side = rng.uniform(-2, 5, (7, 2)), rng.uniform(0.6, 1.4, 7), 3.0
    total = 0.0
    for i in range(7):
        for j in range(i):
            reach = (sizes[i] + sizes[j]) / 2
            for shift in np.ndindex(7, 7):
                distance = np.linalg.norm(places[i] - places[j] + side * (np.array(shift) - 3))
                total += max(0.0, 1 - distance / reach) ** 2 / 2
    got = soft_disc_energy(torch.tensor(places), torch.tensor(sizes), side)
    torch.testing.assert_close(got.item(), total, rtol=1e-12, atol=0)


def test_discs_in_one_place_have_no_nan() -> None:
    places = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    energy = soft_disc_energy(places, torch.ones(2, dtype=torch.float64), 4.0)
    assert energy.item() == 0.5
    assert torch.autograd.grad(energy, places)[0].tolist() == [[0.0, 0.0], [0.0, 0.0]]

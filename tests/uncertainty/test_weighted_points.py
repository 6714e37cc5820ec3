"""Weighted points: degenerate weights, many pairs."""

from __future__ import annotations

import torch
from sklearn.neighbors import KernelDensity

from pullback.uncertainty import effective_sample_size, kernel_density


def test_effective_sample_size_without_weight_is_zero_with_a_finite_gradient() -> None:
    log_weights = torch.tensor([[-torch.inf, -torch.inf], [0.0, -torch.inf]], requires_grad=True)
    size = effective_sample_size(log_weights)
    assert size.tolist() == [0.0, 1.0]
    (slope,) = torch.autograd.grad(size.sum(), log_weights)
    assert slope.isfinite().all()


def test_many_pairs_equal_scikit_learn_and_blocks_have_the_same_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1500, 2, generator=generator).double()
    x = torch.randn(1700, 2, generator=generator).double().requires_grad_()
    found = kernel_density(points, None, x, bandwidth=0.3)
    truth = KernelDensity(bandwidth=0.3).fit(points.numpy()).score_samples(x.detach().numpy())
    torch.testing.assert_close(found.detach(), torch.from_numpy(truth))
    (slope,) = torch.autograd.grad(found.sum(), x)
    few = x.detach()[:50].requires_grad_()
    (part,) = torch.autograd.grad(kernel_density(points, None, few, bandwidth=0.3).sum(), few)
    torch.testing.assert_close(slope[:50], part)
    double = torch.randn(3, 1, generator=generator).double()
    two = torch.autograd.gradgradcheck(
        lambda h: kernel_density(double, None, double, bandwidth=h), torch.tensor(0.4).double().requires_grad_()
    )
    assert two


def test_bandwidths_of_each_dimension() -> None:
    points, x = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 3.0]])
    h = torch.tensor([0.5, 2.0])
    truth = torch.distributions.Normal(0.0, h).log_prob(x[0]).sum()
    torch.testing.assert_close(kernel_density(points, torch.zeros(1), x, bandwidth=h)[0], truth)

"""Gradients of convex functions beyond their contracts: paths, monotone maps, what a deep network loses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pullback import transport


def _points(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _net(**options: object) -> transport.InputConvexGradient:
    return transport.InputConvexGradient(3, 8, generator=torch.Generator().manual_seed(0), **options).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["softplus", "tanh", "sigmoid", "sin", "relu"])
def test_the_field_is_the_gradient_of_its_potential_which_is_convex(activation: str) -> None:
    net, x, y = _net(activation=activation), _points(1, 20, 3), _points(2, 20, 3)
    nn.init.ones_(net.offset)
    smooth = activation != "relu"  # whose integrand has kinks, which nodes do not resolve
    live = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net.potential(live, nodes=64).sum(), live)
    torch.testing.assert_close(slope, net(x), rtol=1e-6 if smooth else 0.1, atol=1e-6 if smooth else 0.1)
    middle, ends = net.potential((x + y) / 2), (net.potential(x) + net.potential(y)) / 2
    assert (middle <= ends + (1e-9 if smooth else 1e-2)).all()
    assert (((net(x) - net(y)) * (x - y)).sum(-1) >= -1e-12).all()


def test_a_deep_network_is_no_gradient_and_a_shallow_one_is() -> None:
    x = _points(3, 50, 3)
    found = transport.hessian_defect(_net(), x)
    assert found.asymmetry.max() < 1e-12
    assert found.smallest.min() > 0
    generator = torch.Generator().manual_seed(4)
    first, second = (torch.randn(8, n, generator=generator, dtype=torch.float64) for n in (3, 8))
    deep = transport.hessian_defect(
        lambda x: transport.line_integral_field(lambda t: torch.tanh(torch.tanh(t @ first.mT) @ second.mT), x), x
    )
    assert deep.asymmetry.median() > 0.05


def test_the_gradient_of_a_convex_network_is_monotone_and_trains() -> None:
    net = transport.InputConvexNetwork(3, (8, 8), activation="elu", generator=torch.Generator().manual_seed(5)).double()
    x, y = _points(6, 20, 3), _points(7, 20, 3)
    assert (((net.gradient(x) - net.gradient(y)) * (x - y)).sum(-1) >= -1e-12).all()
    live = x.clone().requires_grad_()
    torch.testing.assert_close(net.gradient(x), torch.autograd.grad(net(live).sum(), live)[0])
    net.gradient(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_an_activation_without_a_primitive_needs_nodes() -> None:
    with pytest.raises(ValueError, match=r"activation must be one of 'softplus', .* or quadrature must be given"):
        transport.InputConvexGradient(2, 3, activation=torch.erf)
    with pytest.raises(ValueError, match="activation must be one of 'softplus'"):
        transport.InputConvexGradient(2, 3, activation="gelu")
    net, x = _net(activation=torch.atan, quadrature=40), _points(8, 4, 3)
    assert transport.hessian_defect(net, x).asymmetry.max() < 1e-10

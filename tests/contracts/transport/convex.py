"""Contracts of gradients of convex functions: against adaptive quadrature (scipy) and Jacobians written out."""

from __future__ import annotations

from functools import partial

import torch
from scipy.integrate import quad_vec
from torch import Tensor, nn
from torch.nn.functional import softplus

from pullback import transport
from tests.contracts.contract import Bad, Call, HigherOrder, Module

_DERIVATIVES = {
    "softplus": torch.sigmoid,
    "tanh": lambda z: 1 - torch.tanh(z) ** 2,
    "sigmoid": lambda z: torch.sigmoid(z) * torch.sigmoid(-z),
    "sin": torch.cos,
}


def _points(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _net(generator: torch.Generator, **options: object) -> nn.Module:
    net = transport.InputConvexGradient(2, 3, generator=generator, **options)  # type: ignore[arg-type]
    nn.init.constant_(net.offset, 0.5)
    return net


def _integral(x: Tensor, activation: str) -> Tensor:
    """Of W^T diag(s'^2) W x along the line, adaptively."""
    net = _net(torch.Generator().manual_seed(0), activation=activation).double()
    weight, bias = net.weight.detach(), net.bias.detach()

    def integrand(s: float) -> object:
        slope = _DERIVATIVES[activation](s * x @ weight.mT + bias) ** 2
        return ((slope * (x @ weight.mT)) @ weight).numpy()

    return 0.5 + torch.from_numpy(quad_vec(integrand, 0, 1, epsabs=1e-12)[0])


def _scalar_network(x: Tensor) -> Tensor:
    net = _convex(torch.Generator().manual_seed(0)).double()
    first, last = (w.detach() for w in net.inputs)
    u = softplus(net.mixing[0].detach())
    return (softplus(x @ first.mT + net.biases[0].detach()) * u).sum(-1) + x @ last[0]


def _convex(generator: torch.Generator) -> transport.InputConvexNetwork:
    return transport.InputConvexNetwork(2, (3,), generator=generator)


def _two_layers(x: Tensor) -> Tensor:
    return torch.stack([torch.sin(x).sum(-1), x[..., 0] * x[..., 1], x[..., 0] ** 2], -1)


def _two_layers_integral(x: Tensor, nodes: int = 16) -> Tensor:
    """J written out, adaptively."""

    def integrand(s: float) -> object:
        at = s * x
        zero = torch.zeros_like(at[..., 0])
        rows = (torch.cos(at), at.flip(-1), torch.stack([2 * at[..., 0], zero], -1))
        jacobian = torch.stack(rows, -2)
        return (jacobian.mT @ jacobian @ x.unsqueeze(-1)).squeeze(-1).numpy()

    return torch.from_numpy(quad_vec(integrand, 0, 1, epsabs=1e-12)[0])


def _defect(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of the field (x y, sin x): J = [[y, x], [cos x, 0]]."""
    jacobian = torch.stack(
        [torch.stack([x[..., 1], x[..., 0]], -1), torch.stack([x[..., 0].cos(), 0 * x[..., 0]], -1)], -2
    )
    odd = (jacobian - jacobian.mT).square().sum((-2, -1)).sqrt() / jacobian.square().sum((-2, -1)).sqrt()
    even = (jacobian + jacobian.mT) / 2
    trace, determinant = even.diagonal(dim1=-2, dim2=-1).sum(-1), torch.linalg.det(even)
    return odd, trace / 2 - ((trace / 2) ** 2 - determinant).sqrt()


_WRONG = Bad((torch.zeros(2, 3),), {}, ValueError, r"x must have shape \(..., 2\), got \(2, 3\)")

CONTRACTS = [
    *[
        Module(
            f"transport.InputConvexGradient[{activation}{', quadrature' if nodes else ''}]",
            lambda net, x: net(x),
            lambda g: [Call((_points(g, 4, 2),))],
            build=partial(_net, activation=activation, quadrature=nodes),
            reference=partial(_integral, activation=activation),
            tolerance=1e-7,
            large_limit=10.0 if nodes else 1e4,
            bad=[_WRONG] if activation == "softplus" else (),
            compile=not nodes and activation == "softplus",
            gradgradcheck=not nodes,
            forward_mode=not nodes,
            why="nodes do not resolve what is steep; the closed form is compiled once; derivatives of jvp and vjp of "
            "higher order are torch's own",
        )
        for activation, nodes in (
            ("softplus", None),
            ("softplus", 16),
            ("tanh", None),
            ("sigmoid", None),
            ("sin", None),
        )
    ],
    Module(
        "transport.InputConvexNetwork",
        lambda net, x: net(x),
        lambda g: [Call((_points(g, 4, 2),))],
        build=_convex,
        reference=_scalar_network,
        large_limit=1e4,
        bad=[_WRONG],
        why="a weighted sum of the largest numbers overflows",
    ),
    HigherOrder(
        "transport.line_integral_field",
        transport.line_integral_field,
        lambda g: [Call((_points(g, 3, 2),)), Call((_points(g, 2, 1, 2),), {"nodes": 20})],
        given=_two_layers,
        argument="net",
        reference=_two_layers_integral,
        tolerance=1e-7,
        large_limit=1.0,
        compile=False,
        forward_mode=False,
        why="torch does not nest forward modes, nor compile transforms of a caller's function; products of derivatives "
        "grow with the fourth power",
        bad=[Bad((torch.tensor(1.0),), {}, ValueError, r"x must have shape \(..., d\), got \(\)")],
    ),
    HigherOrder(
        "transport.hessian_defect",
        transport.hessian_defect,
        lambda g: [Call((_points(g, 3, 2),))],
        given=lambda x: torch.stack([x[..., 0] * x[..., 1], x[..., 0].sin()], -1),
        argument="field",
        reference=_defect,
        large_limit=1e2,
        compile=False,
        why="the field is a function of the caller",
        bad=[Bad((torch.zeros(2, 0),), {}, ValueError, r"x must have shape \(..., d\)")],
    ),
]

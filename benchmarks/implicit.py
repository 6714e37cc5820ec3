"""Projections against entmax, solvers against scipy's on the same functions, inverse Hessians against curvlinops."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pullback.implicit import inverse_hessian_product, linear_solve, minimize, projection_simplex
from pullback.lab.bench import Case


def points(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)).requires_grad_()


def simplex(x: Tensor) -> None:
    torch.autograd.grad(projection_simplex(x), x, x.detach())


def entmax_simplex(x: Tensor) -> None:
    import entmax

    torch.autograd.grad(entmax.sparsemax(x, dim=-1), x, x.detach())


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def start() -> Tensor:
    return torch.zeros(50, dtype=torch.float64)


def ours_lbfgs(x: Tensor) -> None:
    minimize(rosenbrock, x, tolerance=1e-6, check=True)


def scipy_lbfgs(x: Tensor) -> None:
    import scipy.optimize

    def value_and_slope(point: Any) -> tuple[float, Any]:
        leaf = torch.from_numpy(point).requires_grad_()
        value = rosenbrock(leaf)
        return value.item(), torch.autograd.grad(value, leaf)[0].numpy()

    found = scipy.optimize.minimize(
        value_and_slope, x.numpy(), jac=True, method="L-BFGS-B", options={"gtol": 1e-7, "ftol": 0, "maxiter": 1000}
    )
    assert abs(found.x - 1).max() < 1e-5


def system() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    a = torch.randn(400, 400, generator=g, dtype=torch.float64)
    return a @ a.T / 400 + 0.1 * torch.eye(400, dtype=torch.float64), torch.randn(400, generator=g, dtype=torch.float64)


def large() -> Tensor:
    return points(256, 1000)


def small() -> Tensor:
    return points(10_000, 10)


def ours_cg(given: tuple[Tensor, Tensor]) -> None:
    linear_solve(*given, method="cg", tolerance=1e-8, check=True)


def scipy_cg(given: tuple[Tensor, Tensor]) -> None:
    from scipy.sparse.linalg import LinearOperator, cg

    matrix, b = given
    operator = LinearOperator(matrix.shape, matvec=lambda v: (matrix @ torch.from_numpy(v)).numpy(), dtype="float64")
    assert cg(operator, b.numpy(), rtol=1e-8)[1] == 0


def network() -> tuple[nn.Module, Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
    vector = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    return model, torch.randn(256, 64), torch.randint(10, (256,)), vector


def ours_neumann(given: tuple[nn.Module, Tensor, Tensor, dict[str, Tensor]]) -> None:
    model, x, y, vector = given
    loss = lambda net: nn.functional.cross_entropy(net(x), y)  # noqa: E731
    inverse_hessian_product(loss, model, vector, method="neumann", terms=20, scale=0.1)


def curvlinops_neumann(given: tuple[nn.Module, Tensor, Tensor, dict[str, Tensor]]) -> None:
    from curvlinops import HessianLinearOperator, NeumannInverseLinearOperator

    model, x, y, vector = given
    loss, parameters = nn.CrossEntropyLoss(), list(model.parameters())
    hessian = HessianLinearOperator(model, loss, parameters, [(x, y)], check_deterministic=False)
    inverse = NeumannInverseLinearOperator(hessian, num_terms=19, scale=0.1)  # beside the first
    inverse @ list(vector.values())


PEER = {"entmax": entmax_simplex}
CASES = [
    Case("projection on the simplex, forward+backward, 256 x 1000", large, simplex, PEER),
    Case("projection on the simplex, forward+backward, 10000 x 10", small, simplex, PEER),
    Case("L-BFGS, Rosenbrock, 50 unknowns", start, ours_lbfgs, {"scipy": scipy_lbfgs}),
    Case("conjugate gradients, 400 unknowns", system, ours_cg, {"scipy": scipy_cg}),
    Case("inverse Hessian of a network, Neumann, 20 terms", network, ours_neumann, {"curvlinops": curvlinops_neumann}),
]

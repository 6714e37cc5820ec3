"""Projections against entmax, solvers against scipy's, inverse Hessians against curvlinops, programs against qpth."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pullback.implicit import (
    economic_dispatch,
    inverse_hessian_product,
    linear_solve,
    minimize,
    projection_simplex,
    quadratic_program,
)
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


Program = tuple[Tensor, ...]


def programs(unknowns: int, bounds: int) -> Program:
    """128 programs with as many inequalities as given, a point inside, and a tenth as many equations as unknowns."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(128, *shape, generator=g, dtype=torch.float64)

    root, inside, a = draw(unknowns, unknowns), draw(unknowns, 1), draw(unknowns // 10, unknowns)
    rows = draw(bounds, unknowns)
    quadratic = root @ root.mT / unknowns + 0.1 * torch.eye(unknowns).double()
    room = torch.rand(128, bounds, generator=g, dtype=torch.float64)
    made = (quadratic, draw(unknowns), a, (a @ inside)[..., 0], rows, (rows @ inside)[..., 0] + room)
    return tuple(t.requires_grad_() for t in made)


def ours_programs(given: Program) -> None:
    q, c, a, b, g, h = given
    torch.autograd.grad(quadratic_program(q, c, (a, b), (g, h), check=True).value.sum(), given)


def qpth_programs(given: Program) -> None:
    from qpth.qp import QPFunction

    q, c, a, b, g, h = given
    value = QPFunction(verbose=-1, check_Q_spd=False, eps=1e-8)(q, c, g, h, a, b)
    torch.autograd.grad(value.sum(), given)


def cvxpylayers_programs(given: Program) -> None:
    import cvxpy
    from cvxpylayers.torch import CvxpyLayer

    q, c, a, b, g, h = given
    n, m, p = c.shape[-1], h.shape[-1], b.shape[-1]
    x, root, linear = cvxpy.Variable(n), cvxpy.Parameter((n, n)), cvxpy.Parameter(n)
    constants = [cvxpy.Parameter((p, n)), cvxpy.Parameter(p), cvxpy.Parameter((m, n)), cvxpy.Parameter(m)]
    objective = cvxpy.Minimize(0.5 * cvxpy.sum_squares(root @ x) + linear @ x)
    problem = cvxpy.Problem(objective, [constants[0] @ x == constants[1], constants[2] @ x <= constants[3]])
    layer = CvxpyLayer(problem, parameters=[root, linear, *constants], variables=[x])
    (value,) = layer(torch.linalg.cholesky(q).mT, c, a, b, g, h)
    torch.autograd.grad(value.sum(), given)


def demands() -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    cost, capacity = 10 + 20 * torch.rand(20, generator=g), 1 + torch.rand(20, generator=g)
    return (20 * torch.rand(64, generator=g)).requires_grad_(), cost, capacity


def ours_dispatch(given: tuple[Tensor, Tensor, Tensor]) -> None:
    power = economic_dispatch(*given).power
    torch.autograd.grad((power @ given[1]).sum(), given[0])


def scipy_dispatch(given: tuple[Tensor, Tensor, Tensor]) -> None:
    from scipy.optimize import linprog

    demand, cost, capacity = (x.detach().numpy() for x in given)
    bounds = [(0, room) for room in capacity]
    for wanted in demand:  # the derivative is the multiplier of the demand
        assert linprog(cost, A_eq=cost[None] * 0 + 1, b_eq=[wanted], bounds=bounds).eqlin.marginals[0] >= 0


PEER = {"entmax": entmax_simplex}
BATCH = {"qpth": qpth_programs, "cvxpylayers": cvxpylayers_programs}
CASES = [
    Case("projection on the simplex, forward+backward, 256 x 1000", large, simplex, PEER),
    Case("projection on the simplex, forward+backward, 10000 x 10", small, simplex, PEER),
    Case("L-BFGS, Rosenbrock, 50 unknowns", start, ours_lbfgs, {"scipy": scipy_lbfgs}),
    Case("dispatch of 20 generators, 64 demands, forward+backward", demands, ours_dispatch, {"scipy": scipy_dispatch}),
    Case("conjugate gradients, 400 unknowns", system, ours_cg, {"scipy": scipy_cg}),
    Case("inverse Hessian of a network, Neumann, 20 terms", network, ours_neumann, {"curvlinops": curvlinops_neumann}),
    *(
        Case(
            f"128 quadratic programs, {n} unknowns, {m} bounds, forward+backward",
            partial(programs, n, m),
            ours_programs,
            BATCH,
        )
        for n, m in ((20, 20), (50, 50), (100, 100))
    ),
]

"""Contracts of Markov chains, decision processes and the flow of TD learning on them."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import scipy.integrate
import scipy.linalg
import torch
from torch import Tensor

from pullback import dynamics
from pullback.core.errors import ConvergenceError
from pullback.dynamics import MarkovChain, MarkovDecisionProcess
from tests.contracts.contract import DEVICE, Bad, Call, Contract, Exempt, Module
from tests.contracts.law import seeded

SCALE = "numbers of any size as logits: those that are infinitely apart meet"


def normal(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def rows(logits: Tensor) -> Tensor:
    """Laws of the last dimension that add up in half precision as well."""
    law = torch.softmax(logits, -1)
    return law / law.sum(-1, keepdim=True)


def symmetric(logits: Tensor) -> Tensor:
    w = torch.softmax(logits.flatten(-2), -1).unflatten(-1, logits.shape[-2:])
    return w + w.mT


def series(p: Tensor, rewards: Tensor, discount: float) -> Tensor:
    """Discounted sums, term by term."""
    total, term = torch.zeros_like(rewards), rewards
    for _ in range(400):
        total, term = total + term, discount * p @ term
    return total


def long_run(logits: Tensor) -> Tensor:
    return torch.linalg.matrix_power(rows(logits), 1 << 12)[..., 0, :]


def best_of_all(rewards: Tensor, logits: Tensor) -> Tensor:
    """The best value of each state over all policies."""
    p = rows(logits)
    states, actions = rewards.shape
    at = torch.arange(states)
    policies = itertools.product(range(actions), repeat=states)
    found = [series(p[at, list(a)], rewards[at, list(a)][:, None], 0.5)[:, 0] for a in policies]
    return torch.stack(found).amax(0)


def process(rewards: Tensor, logits: Tensor, discount: float = 0.5) -> MarkovDecisionProcess:
    return MarkovDecisionProcess(rows(logits), rewards, discount)


def energy(rewards: Tensor, features: Tensor, weights: Tensor, logits: Tensor) -> Tensor:
    """Tasks one by one, with a law from powers of the matrix."""
    p, d = rows(logits), long_run(logits)
    matrix = d[:, None] * (torch.eye(len(p)) - 0.5 * p)
    gap = series(p, rewards, 0.5) - features @ weights
    return sum((g @ matrix @ g / 2 for g in gap.mT), torch.zeros(()).double())


def semi_gradient(rewards: Tensor, features: Tensor, weights: Tensor, logits: Tensor) -> tuple[Tensor, ...]:
    """Minus the gradient of the expected loss of TD, next values held."""
    p, d = rows(logits), long_run(logits)
    phi, w = features.detach().requires_grad_(), weights.detach().requires_grad_()
    held = 0.5 * p @ (features @ weights)
    loss = (d[:, None] * (phi @ w - rewards - held).square()).sum() / 2
    return tuple(-g for g in torch.autograd.grad(loss, (phi, w)))


def flow(rewards: Tensor, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    solver = {"method": "rk4", "step": 0.5}
    t = torch.tensor([0.0, 0.5], dtype=torch.float64 if rewards.dtype == torch.float64 else torch.float32)
    found = dynamics.td_flow(MarkovChain(rows(logits), 0.5), rewards, features, t=t, **solver)
    return found.features[-1], found.energy[-1]


def flow_by_scipy(rewards: Tensor, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    p, d = rows(logits).numpy(), np.diag(long_run(logits).numpy())
    r, phi = rewards.numpy(), features.numpy()
    a = np.eye(len(p)) - 0.5 * p

    def solved(phi: np.ndarray) -> np.ndarray:
        return np.linalg.solve(phi.T @ d @ a @ phi, phi.T @ d @ r)

    def field(_: float, y: np.ndarray) -> np.ndarray:
        phi = y.reshape(r.shape[0], -1)
        w = solved(phi)
        return (d @ (r - a @ phi @ w) @ w.T).ravel()

    end = scipy.integrate.solve_ivp(field, (0, 0.5), phi.ravel(), rtol=1e-10, atol=1e-12).y[:, -1]
    phi = end.reshape(r.shape[0], -1)
    w = solved(phi)
    gap = np.linalg.solve(a, r) - phi @ w
    return torch.from_numpy(phi), torch.tensor(np.trace(gap.T @ d @ a @ gap) / 2)


def span(features: Tensor) -> Tensor:
    """The projection onto the span of the columns: what of them is determined."""
    q = torch.linalg.qr(features).Q
    return q @ q.mT


def best_span(rewards: Tensor, logits: Tensor) -> Tensor:
    p = dynamics.metropolis_walk(symmetric(logits)).transition
    matrix = (torch.eye(len(p)) - 0.5 * p).numpy()
    # least energy: the leading solutions of (R R^T) v = lambda B v with B symmetric
    _, vectors = scipy.linalg.eigh(rewards.numpy() @ rewards.numpy().T, matrix)
    return span(torch.from_numpy(vectors[:, -2:].copy()))


def cosines(x: Tensor, y: Tensor) -> Tensor:
    return torch.from_numpy(np.cos(scipy.linalg.subspace_angles(x.numpy(), y.numpy()))[::-1].copy()) ** 2


def three(*sizes: tuple[int, ...]) -> Any:
    return lambda g: [Call(tuple(normal(g, *size) for size in sizes)) for _ in range(2)]


REWARDS = dynamics.RandomRewards(3, kind="network", inputs=4, event_ndim=1, generator=seeded()).to(DEVICE)


def network_by_hand(x: Tensor) -> Tensor:
    """Its draws in order: weights, biases, weights; a hidden unit has variance E tanh(a)^2 with a of variance 2."""
    g = seeded()
    first, bias, last = (torch.randn(*shape, generator=g).double() for shape in ((4, 64), (64,), (64, 3)))
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    variance = float((weights * np.tanh(2**0.5 * nodes) ** 2).sum() / weights.sum())
    return torch.tanh(x @ first / 2 + bias) @ last / (64 * variance) ** 0.5


CONTRACTS = [
    Contract(
        "dynamics.MarkovChain[values]",
        lambda r, logits, discount=0.5: MarkovChain(rows(logits), discount).values(r),
        three((3, 2), (3, 3)),
        reference=lambda r, logits: series(rows(logits), r, 0.5),
        scalars={"discount": 0.5},
        large_limit=1e3,
        why="values are larger than rewards",
        bad=(
            Bad((torch.ones(3, 1), torch.zeros(2, 2)), {}, ValueError, r"rewards must have shape \(..., 2, h\)"),
            Bad((torch.ones(2, 1), torch.zeros(2, 3)), {}, ValueError, "transition must have shape"),
            Bad((torch.ones(2, 1), torch.zeros(2, 2)), {"discount": 1.5}, ValueError, r"discount must be in \[0, 1\]"),
            Bad((torch.ones(2, 1), torch.zeros(2, 2)), {"discount": 1.0}, ValueError, "rewards must be 0 in states"),
        ),
    ),
    Contract(
        "dynamics.MarkovChain[stationary]",
        lambda logits: MarkovChain(rows(logits)).stationary(),
        three((3, 3)),
        reference=long_run,
        large_limit=100.0,
        why=SCALE,
        bad=(Bad((torch.eye(2).double() * 1e4,), {}, ValueError, "several stationary laws: state 0 never leads to"),),
    ),
    Contract(
        "dynamics.metropolis_walk",
        lambda logits: dynamics.metropolis_walk(symmetric(logits)).transition,
        three((3, 3)),
        reference=lambda logits: torch.stack(
            [
                torch.stack([w[i, j] / max(w[i].sum() - w[i, i], w[j].sum() - w[j, j]) * (i != j) for j in range(3)])
                + torch.eye(3)[i]
                * (1 - sum(w[i, k] / max(w[i].sum() - w[i, i], w[k].sum() - w[k, k]) for k in range(3) if k != i))
                for w in [symmetric(logits)]
                for i in range(3)
            ]
        ),
        large_limit=3.0,
        why=SCALE,
    ),
    Contract(
        "dynamics.MarkovDecisionProcess[evaluate]",
        lambda r, logits, wishes: process(r, logits).evaluate(rows(wishes)),
        three((3, 2), (3, 2, 3), (3, 2)),
        reference=lambda r, logits, wishes: series(
            torch.einsum("sa,sat->st", rows(wishes), rows(logits)), (rows(wishes) * r).sum(-1, keepdim=True), 0.5
        )[:, 0],
        large_limit=1e3,
        why="values are larger than rewards",
        bad=(
            Bad((torch.ones(3, 2), torch.zeros(3, 2, 2), torch.zeros(3, 2)), {}, ValueError, "transition must have sh"),
            Bad((torch.ones(3, 1), torch.zeros(3, 2, 3), torch.zeros(3, 2)), {}, ValueError, "reward must have shape"),
            Bad((torch.ones(3, 2), torch.zeros(3, 2, 3), torch.zeros(3, 3)), {}, ValueError, "policy must have shape"),
        ),
    ),
    Contract(
        "dynamics.MarkovDecisionProcess[optimal]",
        lambda r, logits: process(r, logits).optimal().values,
        three((3, 2), (3, 2, 3)),
        reference=best_of_all,
        vmap=False,
        compile=False,
        why="value iteration looks at its values",
    ),
    Contract(
        "dynamics.linear_td",
        lambda r, phi, logits, discount=0.5: dynamics.linear_td(MarkovChain(rows(logits), discount), r, phi),
        three((4, 2), (4, 2), (4, 4)),
        reference=lambda r, phi, logits: torch.linalg.solve(
            phi.T @ torch.diag(long_run(logits)) @ (torch.eye(4) - 0.5 * rows(logits)) @ phi,
            phi.T @ torch.diag(long_run(logits)) @ r,
        ),
        scalars={"discount": 0.5},
        large_limit=1e3,
        why="values are larger than rewards",
        bad=(
            Bad((torch.ones(2, 1), torch.ones(2, 2), torch.zeros(2, 2)), {}, ConvergenceError, "condition number"),
            Bad((torch.ones(3, 1), torch.ones(2, 2), torch.zeros(2, 2)), {}, ValueError, "rewards must have shape"),
            Bad((torch.ones(2, 1), torch.ones(3, 2), torch.zeros(2, 2)), {}, ValueError, "features must have shape"),
        ),
    ),
    Contract(
        "dynamics.td_field",
        lambda r, phi, w, logits: tuple(dynamics.td_field(MarkovChain(rows(logits), 0.5), r, phi, w)),
        three((4, 2), (4, 3), (3, 2), (4, 4)),
        reference=semi_gradient,
        bad=(
            Bad(
                (torch.ones(2, 1), torch.ones(2, 3), torch.ones(2, 1), torch.zeros(2, 2)),
                {},
                ValueError,
                r"weights must have shape \(..., 3, 1\)",
            ),
        ),
    ),
    Contract(
        "dynamics.lyapunov_value_error",
        lambda r, phi, w, logits: dynamics.lyapunov_value_error(MarkovChain(rows(logits), 0.5), r, phi, w),
        three((4, 2), (4, 3), (3, 2), (4, 4)),
        reference=energy,
        large_limit=100.0,
        why="squares of the values leave the range of half",
    ),
    Contract(
        "dynamics.value_error",
        lambda r, phi, w, logits, norm="stationary": dynamics.value_error(
            MarkovChain(rows(logits), 0.5), r, phi, w, norm=norm
        ),
        three((4, 2), (4, 3), (3, 2), (4, 4)),
        reference=lambda r, phi, w, logits: (
            long_run(logits)[:, None] * (series(rows(logits), r, 0.5) - phi @ w).square()
        ).sum(),
        large_limit=100.0,
        why="squares of the values leave the range of half",
        bad=(
            Bad(
                (torch.ones(2, 1), torch.ones(2, 1), torch.ones(1, 1), torch.zeros(2, 2)),
                {"norm": "uniformly"},
                ValueError,
                "norm must be .* did you mean 'uniform'",
            ),
        ),
    ),
    Contract(
        "dynamics.td_flow",
        flow,
        lambda g: three((3, 1), (3, 1), (3, 3))(g)[:1],
        reference=flow_by_scipy,
        tolerance=1e-3,
        large_limit=2.0,
        vmap=False,
        compile=False,
        why="a solve of many steps, whose dynamics grow with the square of the rewards; its laws are those of odeint",
    ),
    Contract(
        "dynamics.optimal_features",
        lambda r, logits: span(
            dynamics.optimal_features(dynamics.metropolis_walk(symmetric(logits), 0.5), r, 2).to(torch.float64)
        ).to(r.dtype),
        three((4, 3), (4, 4)),
        reference=best_span,
        tolerance=1e-6,
        large_limit=100.0,
        half_tolerance=0.1,
        gradgradcheck=False,
        vmap=False,
        compile=False,
        half=False,
        why="half precision rounds which directions lead; second derivatives of eigenvectors grow with inverse gaps",
        bad=(
            Bad((torch.ones(3, 3), torch.zeros(4, 4)), {}, ValueError, "rewards must have shape"),
            Bad((torch.ones(4, 1), torch.zeros(4, 4)), {}, ValueError, "count must be in 1..1"),
        ),
    ),
    Contract(
        "dynamics.td_loss",
        lambda v, r, discount=0.5, after=None: dynamics.td_loss(
            v, r.detach().expand_as(v), torch.linspace(-1, 1, v.shape[-1]).to(v).expand_as(v), discount=discount
        ),
        lambda g: [Call((normal(g, 5), torch.arange(5).double()))],
        reference=lambda v, r: (v - r - 0.5 * torch.linspace(-1, 1, 5)).square().mean() / 2,
        batched=False,
        large_limit=100.0,
        tolerance=1e-7,
        gradcheck=False,
        gradgradcheck=False,
        why="rewards and next values count as numbers, so that its gradient is none of theirs (held against finite "
        "differences in tests/dynamics/test_td.py); a mean over the batch of squares",
        bad=(
            Bad((torch.ones(2), torch.ones(2)), {"discount": 2.0}, ValueError, r"discount must be in \[0, 1\]"),
            Bad((torch.ones(2, dtype=torch.int64), torch.ones(2)), {}, TypeError, "values must be a floating tensor"),
        ),
    ),
    Contract(
        "dynamics.subspace_alignment",
        dynamics.subspace_alignment,
        three((5, 2), (5, 3)),
        reference=cosines,
        large=(0,),
        gradgradcheck=False,
        why="second derivatives of singular values grow with the inverse of their gaps",
        bad=(
            Bad((torch.ones(3, 1), torch.ones(4, 1)), {}, ValueError, "x and y must have equally many rows"),
            Bad((torch.ones(3, 4), torch.ones(3, 1)), {}, ValueError, "x must have shape"),
            Bad((torch.ones(3, 2), torch.ones(3, 1)), {}, ValueError, "x must have linearly independent columns"),
        ),
    ),
    Contract(
        "dynamics.RandomRewards[network]",
        lambda x: REWARDS(x),
        three((2, 4)),
        reference=network_by_hand,
        tolerance=1e-5,
        large_limit=100.0,
        why="tanh of a sum that half precision rounds",
        bad=(
            Bad((torch.ones(2, 3),), {}, ValueError, "states must be observations of 4"),
            Bad((torch.tensor(1.0),), {}, ValueError, "states must have at least 1 dimensions"),
        ),
    ),
    Module(
        "dynamics.AuxiliaryValueHeads",
        lambda heads, x: heads.values(x),
        three((5, 4)),
        build=lambda g: dynamics.AuxiliaryValueHeads(4, dynamics.RandomRewards(3, generator=g), generator=g),
        reference=None,
        large_limit=1e4,
        why="sums of four products leave the range of half",
    ),
    Exempt("dynamics.four_rooms", "makes a process from numbers", "dynamics/test_markov.py"),
]

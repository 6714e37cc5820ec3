"""Contracts of ``pullback.dynamics``: the linear field has a closed form, the matrix exponential."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pullback.core.errors import ConvergenceError
from pullback.dynamics import BrownianPath, Event, odeint, sdeint
from tests.contracts.contract import Bad, Call, Contract, Exempt


def linear(method: str, **options: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """y(1/4) of dy/dt = A y: a short way, for finite differences go it many times."""

    def block(y0: Tensor, matrix: Tensor, **more: Any) -> Tensor:
        fine = y0.dtype == torch.float64  # half precision is solved in float32
        settings = {**({"rtol": 1e-10, "atol": 1e-12} if fine else {"rtol": 1e-4}), **options, **more}
        return odeint(lambda t, y: y @ matrix.mT, y0, [0.0, 0.25], method=method, **settings).y[-1]

    return block


def exact(y0: Tensor, matrix: Tensor, **_: Any) -> Tensor:
    return y0 @ torch.matrix_exp(matrix / 4).mT


def samples(g: torch.Generator) -> list[Call]:
    y0 = torch.randn(1, 2, generator=g, dtype=torch.float64)  # the law of batches stacks several
    return [Call((y0, 0.5 * torch.randn(2, 2, generator=g, dtype=torch.float64)))]


def times(y0: Tensor, t: Tensor) -> Tensor:
    """A field that depends on time, at three times that are differentiated themselves."""
    return odeint(lambda s, y: -y * torch.cos(s), y0, t, rtol=1e-9, atol=1e-11).y


def times_exact(y0: Tensor, t: Tensor) -> Tensor:
    return y0 * torch.exp(torch.sin(t[0]) - torch.sin(t))[:, None, None]


def fall(height: Tensor, gravity: Tensor) -> tuple[Tensor, Tensor]:
    """Time and speed at which a ball dropped from ``height`` meets the ground."""
    start = torch.stack([height, torch.zeros_like(height)], -1)
    rtol = 1e-9 if height.dtype == torch.float64 else 1e-4  # half precision is solved in float32

    def field(t: Tensor, y: Tensor) -> Tensor:
        return torch.stack([y[..., 1], -gravity.expand_as(y[..., 1])], -1)

    solution = odeint(field, start, [0.0, 9.0], events=Event(lambda t, y: y[..., 0]), rtol=rtol, atol=rtol)
    if not len(solution.event_times):
        return 0 * height, 0 * height
    landed = solution.event_index[0] >= 0  # within nine seconds
    return torch.where(landed, solution.event_times[0], 0.0), torch.where(landed, solution.event_states[0, ..., 1], 0.0)


def fall_exact(height: Tensor, gravity: Tensor) -> tuple[Tensor, Tensor]:
    return (2 * height / gravity).sqrt(), -(2 * height * gravity).sqrt()


def stochastic(method: str, **options: Any) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """y(1/2) of a linear equation with additive noise, along one path for the samples of a batch."""

    def block(y0: Tensor, rate: Tensor, spread: Tensor) -> Tensor:
        wide = torch.float64 if y0.dtype == torch.float64 else torch.float32
        path = BrownianPath((*y0.shape[:-1], 1), [0.0, 0.25, 0.5], seed=11, dtype=wide, device=y0.device)
        return sdeint(
            lambda t, y: -rate * y,
            lambda t, y: spread + 0 * y,
            y0,
            [0.0, 0.5],
            step=0.25,
            method=method,
            noise="scalar",
            brownian=path,
            **options,
        ).y[-1]

    return block


def stochastic_samples(g: torch.Generator) -> list[Call]:
    y0, rate, spread = (torch.rand(*shape, generator=g, dtype=torch.float64) for shape in ((1, 2), (2,), (2,)))
    return [Call((y0, rate, spread))]


def euler_steps(y0: Tensor, rate: Tensor, spread: Tensor) -> Tensor:
    path = BrownianPath((1, 1), [0.0, 0.25, 0.5], seed=11, dtype=torch.float64)
    middle = y0 - rate * y0 / 4 + spread * path(0.25)
    return middle - rate * middle / 4 + spread * path.increment(0.25, 0.5)


def heun_steps(y0: Tensor, rate: Tensor, spread: Tensor) -> Tensor:
    path = BrownianPath((1, 1), [0.0, 0.25, 0.5], seed=11, dtype=torch.float64)
    factor, y = 1 - rate / 4 + rate.square() / 32, y0
    for a, b in ((0.0, 0.25), (0.25, 0.5)):
        y = factor * y + (1 - rate / 8) * spread * path.increment(a, b)
    return y


def srk_steps(y0: Tensor, rate: Tensor, spread: Tensor) -> Tensor:
    path, y = BrownianPath((1, 1), [0.0, 0.25, 0.5], seed=11, dtype=torch.float64), y0
    for a, b in ((0.0, 0.25), (0.25, 0.5)):
        ahead = y - 3 / 16 * rate * y + 6 * path.area(a, b) * spread
        y = y - rate * (y + 2 * ahead) / 12 + spread * path.increment(a, b)
    return y


COMPILE = "a solve decides on its steps from data; what is worth compiling is the field (tested in tests/dynamics)"


CONTRACTS = [
    *(
        Contract(
            f"dynamics.odeint[{method}, {adjoint}]",
            linear(
                method, adjoint=adjoint, **({"step": 0.1} if method in ("bosh3", "rk4", "implicit_midpoint") else {})
            ),
            samples,
            reference=exact,
            tolerance=tolerance,
            forward_mode=True,
            compile=False,
            why=COMPILE,
            bad=bad,
        )
        for method, adjoint, tolerance, bad in (
            (
                "dopri5",
                "checkpoint",
                1e-8,
                (
                    Bad(
                        (torch.ones(2, 2), torch.eye(2)),
                        {"rtol": -1.0},
                        ValueError,
                        "rtol must be > 0, got -1.0",
                    ),
                    Bad((torch.ones(2, 2), torch.eye(2)), {"step": 0.0}, ValueError, "step must be > 0"),
                    Bad(
                        (torch.ones(2, 2), torch.eye(2)), {"max_steps": 1}, ConvergenceError, "max_steps=1 .* sample 0"
                    ),
                    Bad((torch.ones(2, 2), torch.eye(2)), {"batch_ndim": 5}, ValueError, "batch_ndim must be between"),
                    Bad((torch.full((2, 2), torch.nan), torch.eye(2)), {}, ValueError, "y0 must be finite"),
                ),
            ),
            ("tsit5", "symplectic", 1e-8, ()),
            ("bosh3", "unrolled", 1e-4, ()),
            ("rk4", "checkpoint", 1e-5, ()),
            ("implicit_midpoint", "checkpoint", 2e-2, ()),
        )
    ),
    Contract(
        "dynamics.odeint[kvaerno3]",
        linear("kvaerno3", rtol=1e-4, atol=1e-6),
        samples,
        reference=exact,
        tolerance=1e-3,
        gradcheck=False,
        gradgradcheck=False,
        compile=False,
        why=f"adaptive steps move by the tolerance when an input moves, which finite differences see; {COMPILE}",
    ),
    *(
        Contract(
            f"dynamics.odeint[{adjoint}]",
            linear("dopri5", adjoint=adjoint),
            samples,
            reference=exact,
            gradgradcheck=False,
            compile=False,
            large_limit=1e4,
            why=f"the continuous adjoints are not differentiable twice and say so; solved back, a state drifts past "
            f"the largest number of half; {COMPILE}",
        )
        for adjoint in ("backsolve", "interpolated")
    ),
    *(
        Contract(
            f"dynamics.sdeint[{method}, {adjoint}]",
            stochastic(method, adjoint=adjoint),
            stochastic_samples,
            reference=reference,
            batched=False,
            gradgradcheck=adjoint == "unrolled",
            forward_mode=adjoint == "unrolled",
            vmap=False,
            compile=False,
            large=(),
            bad=bad,
            why="the path is as large as the batch; checkpoints are taken in reverse mode only; rates of 1e4 at steps "
            f"of 1/4 overflow by nature; {COMPILE}",
        )
        for method, adjoint, reference, bad in (
            ("euler", "unrolled", euler_steps, (Bad((torch.ones(2, 0),) * 3, {}, ValueError, "y0 must have shape"),)),
            ("heun", "checkpoint", heun_steps, ()),
            ("srk", "unrolled", srk_steps, ()),
        )
    ),
    Exempt("dynamics.BrownianPath", "an object that is asked, not differentiated", tested="dynamics/test_sde.py"),
    Exempt("dynamics.Backsolve", "an option of odeint", tested="dynamics/test_odeint_options.py"),
    Exempt("dynamics.StepControl", "an option of odeint", tested="dynamics/test_odeint_options.py"),
    Contract(
        "dynamics.odeint[times]",
        times,
        lambda g: [
            Call(
                (
                    torch.randn(2, 1, generator=g, dtype=torch.float64),
                    torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64),
                )
            )
        ],
        reference=times_exact,
        batched=False,
        compile=False,
        why=f"times come first in the result, so the stack is not in front; {COMPILE}",
        half=False,
    ),
    Contract(
        "dynamics.Event",
        fall,
        lambda g: [
            Call(
                (
                    torch.rand(3, generator=g, dtype=torch.float64) + 0.5,
                    torch.tensor([9.81], dtype=torch.float64),
                )
            )
        ],
        reference=fall_exact,
        gradgradcheck=False,
        forward_mode=False,
        vmap=False,
        compile=False,
        large_limit=100.0,
        why=f"the implicit function theorem to first order only; the search for roots reads values; from higher up a "
        f"ball falls for more than nine seconds; {COMPILE}",
    ),
]

"""Contracts of processes: formulas of the kernels pair by pair, joint normal laws, attention written out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pullback import uncertainty
from pullback.uncertainty import (
    RBF,
    BarDistribution,
    Kernel,
    Matern,
    NeuralAcquisition,
    Periodic,
    TransformerNeuralProcess,
)
from pullback.uncertainty.gaussian_process import GaussianProcess
from tests.contracts.contract import Bad, Call, Contract, Exempt, Module

_BORDERS = [-1.0, 0.0, 0.5, 2.5]


def _bars(logits: Tensor, tails: str) -> BarDistribution:
    return BarDistribution(logits, torch.tensor(_BORDERS).to(logits), tails=tails)


def _logits(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, 3, generator=g, dtype=torch.float64)


def _grid(logits: Tensor, tails: str) -> tuple[Tensor, Tensor, Tensor]:
    """Midpoints, the space between them and their mass, written without the class."""
    edges = torch.linspace(-31, 33, 64001, dtype=torch.float64)
    y, space = (edges[1:] + edges[:-1]) / 2, edges.diff()
    shares = logits.softmax(-1)
    low, high = torch.tensor(_BORDERS[:-1]).double(), torch.tensor(_BORDERS[1:]).double()
    inside = ((y[:, None] >= low) & (y[:, None] < high)) / (high - low)
    if tails == "half-normal":
        width = torch.distributions.HalfNormal(torch.tensor(1.0).double()).icdf(torch.tensor(0.5).double())
        for k, away in ((0, low[1] - y), (2, y - low[2])):
            law = torch.distributions.HalfNormal((high - low)[k] / width, validate_args=False)
            inside[:, k] = torch.where(away > 0, law.log_prob(away.abs()).exp(), 0)
    return y, space, shares @ inside.mT


def _integral(of: Callable[[Tensor, Tensor], Tensor], tails: str) -> Callable[..., Tensor]:
    """Of a function of y and the argument against the density."""

    def integral(logits: Tensor, *given: Tensor) -> Tensor:
        y, space, density = _grid(logits, tails)
        return (of(y, *(v[..., None] for v in given)) * density * space).sum(-1)

    return integral


def _variance(logits: Tensor, tails: str) -> Tensor:
    first, second = (_integral(lambda y, k=k: y**k, tails)(logits) for k in (1, 2))
    return second - first.square()


def _density(logits: Tensor, y: Tensor, tails: str) -> Tensor:
    places, _, density = _grid(logits, tails)
    nearest = (y[..., None] - places).abs().argmin(-1)
    return density.gather(-1, nearest[..., None])[..., 0].log()


def _quantile(logits: Tensor, mass: Tensor, tails: str) -> Tensor:
    y, space, density = _grid(logits, tails)
    return y[((density * space).cumsum(-1) - mass[..., None]).abs().argmin(-1)]


def _of_y(g: torch.Generator) -> list[Call]:
    y = torch.tensor([-0.4005, 0.1005, 2.2005], dtype=torch.float64)
    return [Call((_logits(g, 3), y)), Call((_logits(g), y[1]))]


_OVERFLOW = "squares and products of the largest numbers overflow by nature"


def _bar_contracts(tails: str) -> list[Contract]:
    two = [Call((torch.tensor([0.3, -0.5, 0.8]).double(),)), Call((torch.zeros(2, 3).double(),))]

    def entry(method: str, block: Any, samples: Any, reference: Any, **options: Any) -> Contract:
        return Contract(
            f"uncertainty.BarDistribution[{method}, {tails}]",
            block,
            samples,
            reference=reference,
            tolerance=1e-3,
            compile=tails == "half-normal" and method in ("expected improvement", "icdf"),
            **{
                "large": (),
                "why": "borders have the unit of y: nothing else has its size; the methods share their code, which is "
                "compiled twice",
                **options,
            },
        )

    return [
        entry("mean", lambda logits: _bars(logits, tails).mean, lambda g: two, _integral(lambda y: y, tails)),
        entry(
            "variance",
            lambda logits: _bars(logits, tails).variance,
            lambda g: two,
            lambda logits: _variance(logits, tails),
        ),
        entry(
            "log_prob",
            lambda logits, y: _bars(logits, tails).log_prob(y),
            _of_y,
            lambda logits, y: _density(logits, y, tails),
        ),
        entry(
            "cdf",
            lambda logits, y: _bars(logits, tails).cdf(y),
            _of_y,
            _integral(lambda places, y: (places < y).double(), tails),
        ),
        entry(
            "expected improvement",
            lambda logits, y: _bars(logits, tails).expected_improvement(y),
            _of_y,
            _integral(lambda places, y: (places - y).clamp_min(0), tails),
        ),
        entry(
            "icdf",
            lambda logits, mass: _bars(logits, tails).icdf(mass),
            lambda g: [Call((_logits(g, 3), torch.tensor([0.02, 0.5, 0.97], dtype=torch.float64)))],
            lambda logits, mass: _quantile(logits, mass, tails),
        ),
    ]


def _points(g: torch.Generator) -> list[Call]:
    return [
        Call(
            (torch.randn(3, 2, generator=g, dtype=torch.float64), torch.randn(2, 2, generator=g, dtype=torch.float64))
        ),
        Call((torch.randn(2, 2, 2, generator=g, dtype=torch.float64), torch.randn(2, 1, 2, generator=g).double())),
    ]


def _tilted(kernel: Kernel, generator: torch.Generator) -> Kernel:
    """With hyper-parameters that differ."""
    for parameter in kernel.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return kernel


def _pairs(
    formula: Callable[[Tensor, Tensor], Tensor], make: Callable[[], Kernel]
) -> Callable[[Tensor, Tensor], Tensor]:
    def covariance(x: Tensor, y: Tensor) -> Tensor:
        kernel = _tilted(make(), torch.Generator().manual_seed(0)).double()
        apart = x[..., :, None, :] - y[..., None, :, :]
        return kernel.log_outputscale.exp() * formula(apart, kernel)

    return covariance


def _matern(nu: float) -> Callable[[Tensor, Any], Tensor]:
    def formula(apart: Tensor, kernel: Any) -> Tensor:
        r = (apart / kernel.log_lengthscale.exp()).norm(dim=-1)
        return {
            0.5: lambda: torch.exp(-r),
            1.5: lambda: (1 + math.sqrt(3) * r) * torch.exp(-math.sqrt(3) * r),
            2.5: lambda: (1 + math.sqrt(5) * r + 5 * r**2 / 3) * torch.exp(-math.sqrt(5) * r),
        }[nu]()

    return formula


def _rbf(apart: Tensor, kernel: Any) -> Tensor:
    return torch.exp(-0.5 * (apart / kernel.log_lengthscale.exp()).square().sum(-1))


def _periodic(apart: Tensor, kernel: Any) -> Tensor:
    turns = torch.sin(math.pi * apart / kernel.log_period.exp()) / kernel.log_lengthscale.exp()
    return torch.exp(-2 * turns.square().sum(-1))


_KERNELS: list[tuple[str, Callable[[], Kernel], Any]] = [
    ("RBF", lambda: RBF(2), _rbf),
    *((f"Matern[{nu}]", lambda nu=nu: Matern(2, nu), _matern(nu)) for nu in (0.5, 1.5, 2.5)),
    ("Periodic", lambda: Periodic(2), _periodic),
]


def _process(generator: torch.Generator) -> GaussianProcess:
    kernel = _tilted(Matern(2), generator)
    return GaussianProcess(kernel, noise=0.3, mean=0.2)


def _data(g: torch.Generator, n: int = 3) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 2, generator=g, dtype=torch.float64), torch.randn(n, generator=g, dtype=torch.float64)


def _joint(x: Tensor, y: Tensor) -> Tensor:
    process = _process(torch.Generator().manual_seed(0)).double()
    covariance = process.kernel(x, x) + process.noise * torch.eye(len(x)).double()
    return torch.distributions.MultivariateNormal(process.mean.expand(len(x)), covariance).log_prob(y)


def _conditional(x: Tensor, y: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    process = _process(torch.Generator().manual_seed(0)).double()
    inverse = torch.linalg.inv(process.kernel(x, x) + process.noise * torch.eye(len(x)).double())
    across = process.kernel(new, x)
    return process.mean + across @ inverse @ (y - process.mean), process.kernel(new, new) - across @ inverse @ across.mT


def _symmetric(matrix: Tensor) -> Tensor:
    square = matrix.is_floating_point() and matrix.ndim > 1 and matrix.shape[-1] == matrix.shape[-2]
    return (matrix + matrix.mT) / 2 if square else matrix


def _spd(g: torch.Generator) -> list[Call]:
    a = torch.randn(2, 3, 3, generator=g, dtype=torch.float64)
    return [Call((a @ a.mT + torch.eye(3),)), Call((a[0] @ a[0].mT,))]


def _left_out(kernel: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
    """Every point predicted from the others."""
    found = torch.empty(len(kernel), len(ridge), len(y), dtype=torch.float64)
    for b, r, i in itertools.product(*(range(n) for n in found.shape)):
        others = [j for j in range(len(y)) if j != i]
        k = kernel[b][others][:, others] + ridge[r].exp() * torch.eye(len(others), dtype=torch.float64)
        found[b, r, i] = y[i] - kernel[b, i, others] @ torch.linalg.solve(k, y[others])
    return found


def _neural(generator: torch.Generator) -> TransformerNeuralProcess:
    return TransformerNeuralProcess(2, width=4, layers=1, heads=2, buckets=3, generator=generator)


def _policy(generator: torch.Generator) -> NeuralAcquisition:
    return NeuralAcquisition(_neural(generator), hidden=4, temperature=1.0, generator=generator)


def _context(g: torch.Generator, *batch: int) -> tuple[Tensor, Tensor, Tensor]:
    x, targets = torch.randn(2, *batch, 3, 2, generator=g, dtype=torch.float64)
    return x, 0.1 + 0.8 * torch.rand(*batch, 3, generator=g, dtype=torch.float64), targets


def _by_torch(x: Tensor, y: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same weights in torch's own encoder, with the mask of all pairs of tokens."""
    process = _neural(torch.Generator().manual_seed(0)).double()
    ours = process.layers[0]
    theirs = nn.TransformerEncoderLayer(4, 2, 4, 0.0, "gelu", norm_first=True, batch_first=True, dtype=torch.float64)
    names = {
        "self_attn.in_proj_": ours.project,
        "self_attn.out_proj.": ours.merge,
        "linear1.": ours.mix[0],
        "linear2.": ours.mix[2],
        "norm1.": ours.first,
        "norm2.": ours.second,
    }
    theirs.load_state_dict({f"{to}{k}": getattr(part, k) for to, part in names.items() for k in ("weight", "bias")})
    context = torch.cat([process.prior[None], process.of_x(x) + process.of_y(y[:, None])])
    tokens, m = torch.cat([context, process.of_x(targets)]), len(context)
    hidden = torch.ones(len(tokens), len(tokens), dtype=torch.bool)
    hidden[:, :m] = False if mask is None else ~nn.functional.pad(mask, (1, 0), value=True)
    hidden[range(m, len(tokens)), range(m, len(tokens))] = False
    theirs.train()  # the fused path of evaluation knows no such mask
    return process.readout(theirs(tokens[None], hidden)[0, m:]).softmax(-1)


_X, _Y = torch.zeros(3, 2), torch.zeros(3)
_HERE = "uncertainty/test_processes.py"

CONTRACTS = [
    *_bar_contracts("bounded"),
    *_bar_contracts("half-normal"),
    Exempt(
        "uncertainty.BarDistribution",
        "its methods have entries of their own",
        tested=_HERE,
    ),
    Contract(
        "uncertainty.expected_improvement",
        uncertainty.expected_improvement,
        lambda g: [
            Call(
                (
                    torch.randn(3, generator=g, dtype=torch.float64),
                    0.1 + torch.rand(3, generator=g, dtype=torch.float64),
                    torch.randn(3, generator=g, dtype=torch.float64),
                )
            )
        ],
        reference=lambda mean, variance, best: torch.stack(
            [
                torch.trapezoid((y - b) * torch.distributions.Normal(m, v.sqrt()).log_prob(y).exp(), y)
                for m, v, b in zip(mean, variance, best, strict=True)
                for y in [torch.linspace(0, 20, 20001, dtype=torch.float64) + b]
            ]
        ),
        tolerance=1e-6,
        bad=[
            Bad((_Y, _Y - 1, _Y), {}, ValueError, "variance must be >= 0, got minimum -1"),
            Bad((_Y, _Y[:2], _Y), {}, ValueError, "broadcast"),
            Bad((_Y, _Y.double(), _Y), {}, TypeError, "same dtype"),
            Bad((_Y.long(), _Y, _Y), {}, TypeError, "mean must be a floating tensor"),
        ],
    ),
    Contract(
        "uncertainty.leave_one_out_residuals",
        lambda kernel, y, ridge: uncertainty.leave_one_out_residuals(_symmetric(kernel), y, ridge.exp()),
        lambda g: [Call((_spd(g)[0].args[0], *torch.randn(2, 3, generator=g, dtype=torch.float64)))],
        reference=_left_out,
        batched=False,
        large=(1,),
        large_limit=1e8,
        why="kernel and y have one batch; products with the largest numbers overflow",
        bad=[
            Bad((torch.eye(3), torch.zeros(2), torch.zeros(1)), {}, ValueError, "kernel, y and ridge must be"),
            Bad((torch.eye(2), torch.zeros(2), torch.full((1,), -torch.inf)), {}, ValueError, "ridge must be > 0"),
            Bad((torch.eye(2), torch.zeros(2).long(), torch.zeros(1)), {}, TypeError, "y must be a floating tensor"),
        ],
    ),
    Contract(
        "uncertainty.cholesky",
        lambda matrix: uncertainty.cholesky(_symmetric(matrix)).factor,
        _spd,
        reference=torch.linalg.cholesky,
        large=(),
        why="entries of the largest size have no products that are finite",
        bad=[
            Bad((torch.zeros(2, 3),), {}, ValueError, r"matrix must have shape \[\*batch, n, n\]"),
            Bad((-torch.eye(2),), {}, ValueError, r"matrix is not positive definite at index \(\)"),
            Bad((torch.eye(2) / 0,), {}, ValueError, r"matrix is not finite at index \(\)"),
            Bad((torch.eye(2).long(),), {}, TypeError, "matrix must be a floating tensor"),
        ],
    ),
    *(
        Module(
            f"uncertainty.{name}",
            lambda module, x, y: module(x, y),
            _points,
            build=lambda generator, make=make: _tilted(make(), generator),
            reference=_pairs(formula, make),
            batched=False,
            compile=name in ("Matern[2.5]", "Periodic"),
            large=() if name == "Periodic" else (0,),
            why="the law of batches enlarges one of the two; large numbers have no phase; compiled twice",
            bad=[
                Bad((torch.zeros(3, 1), torch.zeros(3, 2)), {}, ValueError, r"x must have shape \(..., any, 2\)"),
                Bad((torch.zeros(3, 2), torch.zeros(3, 2).long()), {}, TypeError, "y must be a floating tensor"),
            ],
        )
        for name, make, formula in _KERNELS
    ),
    Exempt("uncertainty.Kernel", "what the kernels share; it has no formula of its own", tested=_HERE),
    Module(
        "uncertainty.GaussianProcess",
        lambda module, x, y: module.log_marginal(x, y),
        lambda g: [Call(_data(g))],
        build=_process,
        reference=_joint,
        batched=False,
        large=(),
        why="data and points have one batch; a square of the largest numbers overflows",
        bad=[
            Bad((_X, _Y[:2]), {}, ValueError, "y must have one value for each of at least one point"),
            Bad((_X[:0], _Y[:0]), {}, ValueError, "at least one point"),
            Bad((_X, _Y.double()), {}, TypeError, "x and y must have the same dtype"),
        ],
    ),
    Module(
        "uncertainty.GaussianProcess[predict]",
        lambda module, x, y, new: module.predict(x, y, new, full=True)[:2],
        lambda g: [Call((*_data(g), _data(g)[0]))],
        build=_process,
        reference=_conditional,
        outputs=tuple,
        batched=False,
        large=(),
        why="data and points have one batch; a square of the largest numbers overflows",
    ),
    Module(
        "uncertainty.TransformerNeuralProcess",
        lambda module, x, y, targets, **options: module(x, y, targets, **options).probs,
        lambda g: [Call(_context(g)), Call(_context(g), {"mask": torch.tensor([True, False, True])})],
        build=_neural,
        reference=_by_torch,
        batched=False,
        forward_mode=False,
        large=(),
        why="all have one batch; values lie in a range; torch's LayerNorm is wrong in nested forward mode",
        bad=[
            Bad((_X, _Y[:2], _X), {}, ValueError, "context_y must have one value a point"),
            Bad((_X, _Y + 2, _X), {}, ValueError, r"context_y must be in \[0.0, 1.0\], got 2.0"),
            Bad((_X[:, :1], _Y, _X), {}, ValueError, r"context_x must have shape \(..., any, 2\)"),
            Bad((_X, _Y, _X), {"mask": torch.ones(2, dtype=torch.bool)}, ValueError, "mask must have the shape"),
        ],
    ),
    Module(
        "uncertainty.NeuralAcquisition",
        lambda module, x, y, candidates, state, **options: module(x, y, candidates, state, **options)[:2],
        lambda g: [Call((*_context(g, 2), torch.randn(2, 2, generator=g, dtype=torch.float64)))],
        build=_policy,
        outputs=tuple,
        batched=False,
        forward_mode=False,
        large=(),
        why="all arguments have one batch; values lie in a range; torch's LayerNorm is wrong in nested forward mode",
        bad=[
            Bad((_X, _Y, _X[:1], _Y[:2]), {}, ValueError, "candidates must be at least two"),
            Bad((_X, _Y, _X, _Y), {}, ValueError, r"state must have shape \(2,\)"),
            Bad((_X, _Y, _X, _Y[:2]), {"available": _Y > 0}, ValueError, "at least one candidate"),
        ],
    ),
    Exempt(
        "uncertainty.BlackBoxTasks",
        "a table and its searches, which step through it",
        tested=_HERE,
    ),
    Exempt("uncertainty.Search", "the state of a search, made by BlackBoxTasks.reset", tested=_HERE),
    *(
        Exempt(f"uncertainty.{name}", "takes a policy and a search, which holds what was seen", tested=_HERE)
        for name in ("decide", "play", "replay")
    ),
]

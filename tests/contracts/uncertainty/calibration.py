"""Contracts of predicted laws: mixtures, scores, calibration and recalibration."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pullback import uncertainty
from tests.contracts.contract import Bad, Call, Contract, Exempt, Measurement, Module

_Z = torch.tensor([0.1, 0.7, 0.4])
_LOGITS, _MEAN, _SCALE = torch.zeros(2), torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 0.5])
_LEVELS = torch.tensor([0.2, 0.5, 0.7])
_Q = torch.tensor([[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]])
_Y = torch.tensor([1.0, 2.0])


def _pits(generator: torch.Generator) -> list[Call]:
    """So far from the ends that the laws may scale them by a quarter."""
    return [Call((0.05 + 0.7 * torch.rand(*shape, generator=generator).double(),)) for shape in ((7,), (2, 5))]


def _to_levels(generator: torch.Generator) -> list[Call]:
    return [Call((*call.args, *other.args)) for call, other in zip(_pits(generator), _pits(generator), strict=True)]


def _few_levels(generator: torch.Generator) -> list[Call]:
    return [Call((pit[:3], levels[:2])) for pit, levels in (call.args for call in _to_levels(generator)[:1])]


def _counted(pit: Tensor, steepness: float | None = None, p: float = 1.0) -> Tensor:
    """Level by level, PIT by PIT."""
    total = torch.zeros(pit.shape[:-1], dtype=pit.dtype)
    for j in range(1, 10):
        below = (pit <= j / 10).to(pit.dtype) if steepness is None else 1 / (1 + torch.exp(-steepness * (j / 10 - pit)))
        total = total + (j / 10 - below.mean(-1)).abs() ** p / 9
    return total


def _laws(generator: torch.Generator) -> list[Call]:
    calls = []
    for batch, k in (((), 3), ((2,), 2)):
        logits, mean = (torch.randn((*batch, k), generator=generator).double() for _ in range(2))
        scale = 0.5 + torch.rand(*batch, k, generator=generator).double()
        calls.append(Call((logits, mean, scale, torch.randn(batch, generator=generator).double())))
    return calls


def _law(logits: Tensor, mean: Tensor, scale: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    law = uncertainty.MixtureOfGaussians(logits, mean, scale)
    return law.log_prob(y), law.cdf(y), law.mean, law.variance


def _torch_law(logits: Tensor, mean: Tensor, scale: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    mixture = torch.distributions.Categorical(logits=logits)
    law = torch.distributions.MixtureSameFamily(mixture, torch.distributions.Normal(mean, scale))
    return law.log_prob(y), law.cdf(y), law.mean, law.variance


def _quantile(logits: Tensor, mean: Tensor, scale: Tensor, level: Tensor) -> Tensor:
    return uncertainty.MixtureOfGaussians(logits, mean, scale).icdf(torch.sigmoid(level))


def _bisected(logits: Tensor, mean: Tensor, scale: Tensor, level: Tensor) -> Tensor:
    low, high = torch.full_like(level, -50), torch.full_like(level, 50)
    for _ in range(80):
        middle = (low + high) / 2
        above = _torch_law(logits, mean, scale, middle)[1] > torch.sigmoid(level)
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return low


def _score(logits: Tensor, mean: Tensor, scale: Tensor, y: Tensor) -> Tensor:
    return uncertainty.crps(uncertainty.MixtureOfGaussians(logits, mean, scale), y)


def _integrated(logits: Tensor, mean: Tensor, scale: Tensor, y: Tensor) -> Tensor:
    """The integral of the squared difference of the two cdfs, on both sides of y by Gauss-Legendre."""
    node, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(200))
    total = torch.zeros_like(y)
    for low, high, beyond in ((y - 20, y, 0.0), (y, y + 20, 1.0)):
        at = low[..., None] + (high - low)[..., None] * (node + 1) / 2
        cdf = _torch_law(logits[..., None, :], mean[..., None, :], scale[..., None, :], at)[1]
        total = total + 10 * ((cdf - beyond) ** 2 * weight).sum(-1)
    return total


def _predictions(generator: torch.Generator) -> list[Call]:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).double()

    return [Call((draw(4, 3), draw(4))), Call((draw(2, 4, 3), draw(2, 4)))]


def _draws(generator: torch.Generator) -> list[Call]:
    return [
        Call((torch.randn((*b, 6), generator=generator).double(), torch.randn(b, generator=generator).double()))
        for b in ((), (2,))
    ]


def _apart(samples: Tensor, y: Tensor) -> Tensor:
    n = samples.shape[-1]
    pairs = (samples[..., :, None] - samples[..., None, :]).abs().sum((-1, -2))
    return (samples - y[..., None]).abs().mean(-1) - pairs / (2 * n * (n - 1))


def _each_level(quantiles: Tensor, y: Tensor) -> Tensor:
    weights = (0.35, 0.25, 0.4)
    total = torch.zeros_like(y)
    for j, (weight, level) in enumerate(zip(weights, (0.2, 0.5, 0.7), strict=True)):
        gap = y - quantiles[..., j]
        total = total + 2 * weight * torch.where(gap > 0, level * gap, (level - 1) * gap)
    return total


def _shares(quantiles: Tensor, y: Tensor, smooth: float | None = None) -> Tensor:
    total = torch.zeros(y.shape[:-1], dtype=y.dtype)
    for j, level in enumerate((0.2, 0.5, 0.7)):
        gap = quantiles[..., j] - y
        below = (gap >= 0).to(y.dtype) if smooth is None else 1 / (1 + torch.exp(-smooth * gap))
        total = total + (level - below.mean(-1)).abs() / 3
    return total


def _with(levels: Any, like: Tensor) -> Any:
    if not isinstance(levels, Tensor):
        return levels
    return levels.to(like.device, like.dtype if like.is_floating_point() else levels.dtype)


def _map(method: str, use: str, pit: Any, u: Any, **options: Any) -> Tensor:
    recalibrator = uncertainty.Recalibrator(**{"method": method, "smooth": 20.0, **options}).fit(pit)
    return getattr(recalibrator, use)(u)  # type: ignore[no-any-return]


def _line(pit: Tensor, u: Tensor, back: bool = False) -> Tensor:
    """numpy's interpolation, row by row."""

    n = pit.shape[-1]
    rows = []
    for knots, at in zip(pit.reshape(-1, n).sort(-1).values, u.reshape(-1, u.shape[-1]), strict=True):
        x, y = np.array([0.0, *knots.tolist(), 1.0]), np.arange(n + 2) / (n + 1)
        rows.append(torch.from_numpy(np.interp(at.numpy(), *((y, x) if back else (x, y)))))
    return torch.stack(rows).reshape(u.shape)


def _steps(pit: Tensor, u: Tensor) -> Tensor:
    return (pit[..., None, :] <= u[..., None]).sum(-1).to(u.dtype) / (pit.shape[-1] + 1)


def _bump(pit: Tensor, u: Tensor) -> Tensor:
    """Density of the folded mixture, each law cut off by hand."""
    density, mass = torch.zeros_like(u), torch.zeros_like(pit.sum(-1, keepdim=True))
    for z in pit.movedim(-1, 0):
        z = z[..., None]
        for at in (u, -u, 2 - u):
            density = density + 20 / (2 * torch.cosh(20 * (at - z) / 2)) ** 2
        mass = mass + torch.sigmoid(20 * (2 - z)) - torch.sigmoid(20 * (-1 - z))
    return density / mass


def _bump_cdf(pit: Tensor, u: Tensor) -> Tensor:
    """Its integral, by Gauss-Legendre."""
    node, weight = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(120))
    at = u[..., None] * (node + 1) / 2
    return (_bump(pit[..., None, :].expand(*u.shape, pit.shape[-1]), at) * weight).sum(-1) * u / 2


def _root(pit: Tensor, level: Tensor) -> Tensor:
    low, high = torch.zeros_like(level), torch.ones_like(level)
    for _ in range(60):
        middle = (low + high) / 2
        above = _bump_cdf(pit, middle) > level
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return low


def _perceptrons(x: Tensor) -> tuple[Tensor, Tensor]:
    """torch's own layers, member by member."""
    ensemble = uncertainty.MLPEnsemble(2, (4, 5, 3), generator=torch.Generator().manual_seed(0)).double()
    outputs = []
    for m in range(2):
        hidden = torch.nn.functional.linear(x[m], ensemble.weight[0][m].T, ensemble.bias[0][m, 0])
        outputs.append(torch.nn.functional.linear(hidden.clamp(min=0), ensemble.weight[1][m].T, ensemble.bias[1][m, 0]))
    return torch.stack(outputs).detach(), outputs[1].detach()


_UNIT = "large: probabilities are at most 1"
_REFUSED = [
    Bad((_Z.long(),), {}, TypeError, "pit must be a floating tensor"),
    Bad((_Z * 2,), {}, ValueError, r"pit must be in \[0, 1\] everywhere"),
    Bad((-_Z,), {}, ValueError, r"pit must be in \[0, 1\] everywhere"),
    Bad((_Z[:0],), {}, ValueError, "pit must have a last dimension of at least one"),
    Bad((_Z[0],), {}, ValueError, "pit must have a last dimension of at least one"),
]
_ERROR = [
    Bad((_Z,), {"p": 0.5}, ValueError, "p must be >= 1"),
    Bad((_Z,), {"levels": 0}, ValueError, "levels must be an integer >= 1"),
    Bad((_Z,), {"levels": _LEVELS.flip(0)}, ValueError, "levels must increase"),
    Bad((_Z,), {"levels": _LEVELS[:0]}, ValueError, "levels must have at least one level"),
]
_LAW = [
    Bad((_LOGITS.long(), _MEAN, _SCALE, _Y[0]), {}, TypeError, "logits must be a floating tensor"),
    Bad((_LOGITS, _MEAN, _SCALE * 0, _Y[0]), {}, ValueError, "scale must be > 0"),
    Bad((_LOGITS, _MEAN[:0], _SCALE, _Y[0]), {}, ValueError, "mean must have shape .* of at least one component"),
    Bad((_LOGITS.expand(3, 2), _MEAN.expand(2, 2), _SCALE, _Y[0]), {}, ValueError, "shapes that broadcast"),
    Bad((_LOGITS, _MEAN.double(), _SCALE, _Y[0]), {}, TypeError, "dtype"),
    Bad((_LOGITS, _MEAN, _SCALE, _Y[0].double()), {}, TypeError, "dtype"),
]
_SETS = [
    Bad((_Q.long(), _Y), {}, TypeError, "quantiles must be a floating tensor"),
    Bad((_Q, _Y.double()), {}, TypeError, "dtype"),
    Bad((_Q, _Y[:1]), {}, ValueError, "quantiles must have shape"),
    Bad((_Q, _Y), {"levels": _LEVELS[:2]}, ValueError, "quantiles must have shape"),
    Bad((_Q, _Y), {"levels": 2 * _LEVELS}, ValueError, r"levels must be in \(0, 1\)"),
]


def _maps(method: str, use: str) -> list[Bad]:
    name = "level" if use == "inverse_transform" else "u"
    return [
        *(Bad((*bad.args, _Z), {}, bad.error, bad.match) for bad in _REFUSED[1:]),
        Bad((_Z, 2 * _Z), {}, ValueError, rf"{name} must be in \[0, 1\] everywhere"),
        Bad((_Z.expand(2, 3), _Z), {}, ValueError, f"{name} must have shape"),
        Bad((_Z, _Z), {"method": "spline"}, ValueError, "method must be one of"),
        Bad((_Z, _Z), {"smooth": 0.0}, ValueError, "smooth must be > 0"),
        Bad((_Z, ["a"]), {}, TypeError, f"{name} must be a tensor or an array of numbers"),
    ]


CONTRACTS = [
    Contract(
        "uncertainty.MixtureOfGaussians",
        lambda *args: tuple(_law(*args)),
        _laws,
        reference=_torch_law,
        large=(0,),
        why="far from all components the logarithm of the density is the square of the distance, which overflows",
        bad=_LAW,
    ),
    Contract(
        "uncertainty.MixtureOfGaussians[icdf]",
        _quantile,
        lambda generator: _laws(generator)[1:],
        reference=_bisected,
        infinite=True,
        large=(0, 1),
        large_limit=1e8,
        large_tolerance=1e-3,
        why="large: far from all components the square of a distance overflows",
        bad=[*_LAW[:5], Bad((_LOGITS, _MEAN, _SCALE, _LEVELS), {}, ValueError, "shapes that broadcast")][:5],
    ),
    Contract(
        "uncertainty.crps",
        _score,
        _laws,
        reference=_integrated,
        tolerance=1e-6,
        large=(0, 1, 3),
        large_limit=1e8,
        why="large: a difference of two numbers may exceed the largest",
        bad=[*_LAW, Bad((_LOGITS, _MEAN, _SCALE, 1.0), {}, TypeError, "y must be a torch.Tensor")],
    ),
    Contract(
        "uncertainty.crps_from_quantiles",
        lambda quantiles, y, levels=_LEVELS: uncertainty.crps_from_quantiles(quantiles, y, _with(levels, quantiles)),
        _predictions,
        reference=_each_level,
        large=(0, 1),
        batched=False,
        why="batched: shapes are not broadcast",
        bad=_SETS,
    ),
    Contract(
        "uncertainty.crps_from_samples",
        lambda samples, y, **options: uncertainty.crps_from_samples(samples, y, **options),
        _draws,
        reference=_apart,
        batched=False,
        large=(0, 1),
        large_limit=1e4,
        why="batched: shapes are not broadcast; large: a difference of two numbers may exceed the largest",
        bad=[
            Bad((_Q.long(), _Y), {}, TypeError, "samples must be a floating tensor"),
            Bad((_Q, _Y.double()), {}, TypeError, "dtype"),
            Bad((_Q, _Y[:1]), {}, ValueError, "samples must have shape"),
            Bad((_Q[:, :1], _Y), {}, ValueError, "with n >= 2"),
        ],
    ),
    Contract(
        "uncertainty.calibration_error",
        lambda pit, levels=9, **options: uncertainty.calibration_error(
            pit, levels=levels, **{"smooth": 20.0, "p": 2.0, **options}
        ),
        _pits,
        reference=lambda pit: _counted(pit, 20.0, 2.0),
        scalars={"smooth": 10.0},
        large=(),
        why=_UNIT,
        bad=[*_REFUSED, *_ERROR, Bad((_Z,), {"smooth": 0.0}, ValueError, "smooth must be > 0")],
    ),
    Measurement(
        "uncertainty.calibration_error[counted]",
        lambda pit, levels=9, **options: uncertainty.calibration_error(pit, levels=levels, **options),
        _pits,
        reference=_counted,
        bad=_ERROR,
    ),
    Contract(
        "uncertainty.quantile_calibration_error",
        lambda quantiles, y, levels=_LEVELS, **options: uncertainty.quantile_calibration_error(
            quantiles, y, _with(levels, quantiles), **{"smooth": 3.0, **options}
        ),
        _predictions,
        reference=lambda quantiles, y: _shares(quantiles, y, 3.0),
        scalars={"smooth": 2.0},
        large_limit=1e4,
        why="large: a steep sigmoid of a large difference has no gradient",
        bad=[
            *_SETS,
            Bad((_Q, _Y), {"p": 0.0}, ValueError, "p must be > 0"),
            Bad((_Q, _Y), {"smooth": -1.0}, ValueError, "smooth must be > 0"),
        ],
    ),
    Contract(
        "uncertainty.pce_sort_loss",
        lambda pit, **options: uncertainty.pce_sort_loss(pit, **{"p": 2.0, **options}),
        _pits,
        reference=lambda pit: (
            (pit.sort(-1).values - torch.arange(1, pit.shape[-1] + 1) / (pit.shape[-1] + 1)) ** 2
        ).mean(-1),
        tolerance=1e-7,
        large=(),
        why=_UNIT,
        bad=[
            *_REFUSED,
            Bad((_Z,), {"p": 0.5}, ValueError, "p must be >= 1"),
            Bad((_Z,), {"temperature": -1.0}, ValueError, "temperature must be >= 0"),
        ],
    ),
    Contract(
        "uncertainty.pce_sort_loss[soft]",
        lambda pit, **options: uncertainty.pce_sort_loss(pit, **{"temperature": 0.1, **options}),
        lambda generator: [Call((_pits(generator)[0].args[0][:4],))],
        hard=uncertainty.pce_sort_loss,
        scalars={"temperature": 0.2},
        large=(),
        compile=False,
        why=f"compile: the entry of discrete.sort does it; {_UNIT}",
    ),
    Contract(
        "uncertainty.spacing_entropy",
        lambda pit, m=2, **options: uncertainty.spacing_entropy(pit, m=m, **options),
        _pits,
        reference=lambda pit: (
            torch.stack(
                [torch.log((b - a + 1e-5) * (pit.shape[-1] + 1) / 2) for a, b in zip(s[:-2], s[2:], strict=True)]
            ).mean(0)
            if (s := pit.sort(-1).values.movedim(-1, 0)) is not None
            else pit
        ),
        large=(),
        why=_UNIT,
        bad=[
            *_REFUSED[:3],
            Bad((_Z,), {"m": 3}, ValueError, r"m must be in 1\.\.2, got 3"),
            Bad((_Z,), {"floor": 0.0}, ValueError, "floor must be > 0"),
        ],
    ),
    *(
        Contract(
            f"uncertainty.Recalibrator[{method} {use}]",
            lambda *args, method=method, use=use, **options: _map(method, use, *args, **options),
            _few_levels if use == "inverse_transform" else _to_levels,
            reference=reference,
            tolerance=1e-6,
            half_tolerance=6e-2,
            large=(),
            batched=False,
            why=f"batched: a batch of maps takes a batch of levels; {_UNIT}",
            bad=_maps(method, use),
        )
        for method, use, reference in (
            ("linear", "transform", _line),
            ("linear", "inverse_transform", lambda pit, u: _line(pit, u, back=True)),
            ("kde", "transform", _bump_cdf),
            ("kde", "inverse_transform", _root),
            ("kde", "log_derivative", lambda pit, u: _bump(pit, u).log()),
        )
    ),
    Measurement(
        "uncertainty.Recalibrator[empirical]",
        lambda *args, **options: _map(options.pop("method", "empirical"), "transform", *args, **options),
        _to_levels,
        reference=_steps,
        bad=_maps("empirical", "transform"),
    ),
    Module(
        "uncertainty.MLPEnsemble",
        lambda module, x: (module(x), module.member(1, x[1])),
        lambda generator: [Call((torch.randn(2, 3, 4, generator=generator).double(),))],
        build=lambda generator: uncertainty.MLPEnsemble(2, (4, 5, 3), generator=generator),
        reference=_perceptrons,
        batched=False,
        large_limit=1e4,
        why="batched: a member has its own rows; large: products of large numbers overflow",
        bad=[
            Bad((torch.zeros(3, 3, 4),), {}, ValueError, r"x must have shape \[2, rows, 4\] or \[rows, 4\]"),
            Bad((torch.zeros(2, 3, 5),), {}, ValueError, r"x must have shape"),
        ],
    ),
    Module(
        "uncertainty.MLPEnsemble[silu]",
        lambda module, x: (module(x), module.member(1, x[1])),
        lambda generator: [Call((torch.randn(2, 3, 4, generator=generator).double(),))],
        build=lambda generator: uncertainty.MLPEnsemble(
            2, (4, 5, 3), activation=torch.nn.functional.silu, generator=generator
        ),
        batched=False,
        large_limit=1e4,
        why="batched: a member has its own rows; large: products of large numbers overflow",
        bad=[Bad((torch.zeros(2, 3, 5),), {}, ValueError, r"x must have shape")],
    ),
    Exempt("uncertainty.BestMembers", "a state beside a training loop", "uncertainty/test_network_ensembles.py"),
    Exempt("uncertainty.RecalibratedDistribution", "a law made of a law and a map", "uncertainty/test_calibration.py"),
]

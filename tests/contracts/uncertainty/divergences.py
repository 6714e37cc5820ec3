"""Contracts of divergences of samples, bottlenecks and attacks: against sums over pairs in numpy, scipy, torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist, pdist
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from pullback import uncertainty as un
from tests.contracts.contract import Bad, Call, Contract, HigherOrder, Measurement, Module


def _numbers(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def _kernel(x: Tensor, y: Tensor, width: float) -> Any:
    return np.exp(-cdist(x.numpy(), y.numpy(), "sqeuclidean") / (2 * width**2))


def _rows(reference: Any) -> Any:
    """The reference of one sample, on each of a batch."""

    def on_batches(*samples: Tensor, **words: Any) -> Tensor:
        if samples[0].ndim > 2:
            rest = [s if s.ndim > 2 else [s] * len(samples[0]) for s in samples]
            return torch.stack([on_batches(*row, **words) for row in zip(*rest, strict=True)])
        return torch.as_tensor(float(reference(*samples, **words)), dtype=torch.float64)

    return on_batches


@_rows
def _divergence(x: Tensor, y: Tensor, bandwidth: float) -> float:
    xx, yy, xy = (_kernel(a, b, bandwidth).mean() for a, b in ((x, x), (y, y), (x, y)))
    return float(-np.log(xy**2 / (xx * yy)))


@_rows
def _conditional(x: Tensor, y1: Tensor, y2: Tensor, bandwidths: Any = (1.0, 1.0), compat: bool = False) -> float:
    k = _kernel(x, x, bandwidths[0])
    below = (k**2).sum(1) if compat else k.sum(1) ** 2
    terms = [(k * _kernel(a, b, bandwidths[1])).sum(1) / below for a, b in ((y2, y1), (y1, y1), (y2, y2))]
    cross, first, second = (np.log(term.sum()) for term in terms)
    return float((first + second - 2 * cross) / (np.log(2) if compat else 1))


def _pieces(x: Tensor, t: Tensor, bandwidths: Any) -> tuple[float, float, float]:
    k, q, n = _kernel(x, x, bandwidths[0]), _kernel(t, t, bandwidths[1]), len(x)
    return (k * q).sum() / n**2, k.sum() * q.sum() / n**4, (k.sum(1) * q.sum(1)).sum() / n**3


@_rows
def _information(x: Tensor, t: Tensor, bandwidths: Any = (1.0, 1.0), normalize: bool = False) -> float:
    def alone(a: Tensor, b: Tensor, widths: Any) -> float:
        joint, product, cross = np.log(_pieces(a, b, widths))
        return float(joint + product - 2 * cross)

    found = alone(x, t, bandwidths)
    if not normalize:
        return found
    first, second = bandwidths
    return found / float(np.sqrt(alone(x, x, (first, first)) * alone(t, t, (second, second))))


@_rows
def _hsic(x: Tensor, y: Tensor, bandwidths: Any = (1.0, 1.0)) -> float:
    n = len(x)
    centre = np.eye(n) - 1 / n
    k, q = _kernel(x, x, bandwidths[0]), _kernel(y, y, bandwidths[1])
    return float(np.trace(k @ centre @ q @ centre) / n**2)


@_rows
def _unbiased_hsic(x: Tensor, y: Tensor, bandwidths: Any = (1.0, 1.0)) -> float:
    """Means over tuples of different samples."""
    n = len(x)
    k, q = _kernel(x, x, bandwidths[0]), _kernel(y, y, bandwidths[1])
    pairs = [k[i, j] * q[i, j] for i in range(n) for j in range(n) if i != j]
    triples = [k[i, j] * q[i, m] for i in range(n) for j in range(n) for m in range(n) if len({i, j, m}) == 3]
    four = [
        k[i, j] * q[m, o]
        for i in range(n)
        for j in range(n)
        for m in range(n)
        for o in range(n)
        if len({i, j, m, o}) == 4
    ]
    return float(np.mean(pairs) + np.mean(four) - 2 * np.mean(triples))


@_rows
def _mmd(x: Tensor, y: Tensor, bandwidth: float, unbiased: bool = False) -> float:
    xx, yy, xy = (_kernel(a, b, bandwidth) for a, b in ((x, x), (y, y), (x, y)))
    if unbiased:
        xx, yy = (k[~np.eye(len(k), dtype=bool)] for k in (xx, yy))
    return float(xx.mean() + yy.mean() - 2 * xy.mean())


@_rows
def _median(x: Tensor, scale: float = 1.0) -> float:
    return float(scale * np.sort(pdist(x.numpy()))[(len(x) * (len(x) - 1) // 2 - 1) // 2])


def _normal_laws(m: Tensor, root_p: Tensor, n: Tensor, root_q: Tensor) -> Tensor:
    p, q = (root @ root.mT + torch.eye(2).to(root) for root in (root_p, root_q))
    return un.gaussian_cauchy_schwarz(m, p, n, q)


def _by_densities(m: Tensor, root_p: Tensor, n: Tensor, root_q: Tensor) -> Tensor:
    """Integrals of products of normal densities are normal densities."""
    if m.ndim > 1:
        return torch.stack([_by_densities(*row) for row in zip(m, root_p, n, root_q, strict=True)])
    p, q = (r.numpy() @ r.numpy().T + np.eye(2) for r in (root_p, root_q))
    both = multivariate_normal(n.numpy(), p + q).logpdf(m.numpy())
    alone = [multivariate_normal(np.zeros(2), 2 * c).logpdf(np.zeros(2)) for c in (p, q)]
    return torch.tensor(sum(alone) - 2 * both)


def _network(generator: torch.Generator, outputs: int, inputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -1, 1, generator=generator)
    return layer


def _bottleneck(prediction: str, compression: str | None) -> Any:
    stochastic = compression in ("vib", "nib")

    def build(generator: torch.Generator) -> un.InformationBottleneck:
        encoder = _network(generator, 4 if stochastic else 2, 3)
        decoder = _network(generator, 2 if prediction == "nll" else 1, 2)
        return un.InformationBottleneck(
            encoder,
            decoder,
            prediction=prediction,
            compression=compression,
            beta=0.7,
            bandwidths=(2.0, 1.0, 1.5),
            stochastic=stochastic,
        )

    return build


def _loss(model: un.InformationBottleneck, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    return tuple(model.loss(x, y, noise=torch.linspace(-1, 1, 2 * len(x)).view(-1, 2).to(x)))


def _terms(prediction: str, compression: str | None) -> Any:
    """Terms one by one, with densities of torch."""

    def reference(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        model = _bottleneck(prediction, compression)(torch.Generator().manual_seed(0)).double()
        encoded = model.encoder(x).detach()
        t, laws = encoded, None
        if model.stochastic:
            laws = torch.distributions.Normal(encoded[:, :2], (encoded[:, 2:] / 2).exp())
            t = laws.mean + laws.stddev * torch.linspace(-1, 1, 2 * len(x)).view(-1, 2).double()
        decoded = model.decoder(t).detach()
        if prediction == "cs":
            first = _conditional(x, y, decoded, bandwidths=(2.0, 1.5))
        elif prediction == "mse":
            first = torch.nn.functional.mse_loss(decoded, y)
        else:
            law = torch.distributions.Normal(decoded[:, :1], (decoded[:, 1:] / 2).exp())
            first = -law.log_prob(y).mean() - 0.5 * torch.tensor(2 * torch.pi).double().log()
        second = torch.zeros((), dtype=torch.float64)
        if compression == "cs":
            second = _information(x, t, bandwidths=(2.0, 1.0), normalize=True)
        elif compression == "hsic":
            second = _hsic(x, t, bandwidths=(2.0, 1.0))
        elif laws is not None and compression == "vib":
            second = torch.distributions.kl_divergence(laws, torch.distributions.Normal(0.0, 1.0)).sum(-1).mean()
        elif laws is not None:
            one, other = (
                torch.distributions.Normal(*(v.unsqueeze(d) for v in (laws.mean, laws.stddev))) for d in (1, 0)
            )
            apart = torch.distributions.kl_divergence(one, other).sum(-1)
            second = -(-apart).exp().mean(1).log().mean()
        return first + 0.7 * second, first, second

    return reference


def _model(x: Tensor) -> Tensor:
    return (x * x.new_tensor([1.0, -2.0, 0.5])).sum(-1, keepdim=True)


_X = torch.zeros(5, 2)
_FEW = [
    Bad((_X, torch.zeros(4, 2)), {}, ValueError, "must hold the same samples, got 5 and 4"),
    Bad((_X, torch.zeros(5)), {}, ValueError, r"must have shape \(..., n, d\) with n >= 1, got \(5,\)"),
    Bad((_X, _X.double()), {}, TypeError, "must have the same dtype"),
    Bad((_X[:3], _X[:3]), {}, ValueError, "must hold at least 4 samples, got 3"),
    Bad((_X, _X), {"bandwidths": (1.0, 0.0)}, ValueError, "bandwidths must be > 0, got 0.0"),
    Bad((_X, _X), {"bandwidths": 1.0}, TypeError, "bandwidths must be a tuple of two numbers"),
]
_TWO = [
    Bad((_X, torch.zeros(4, 3)), {"bandwidth": 1.0}, ValueError, "points of one dimension, got 2 and 3"),
    Bad((_X, _X.double()), {"bandwidth": 1.0}, TypeError, "must have the same dtype"),
    Bad((_X, _X), {"bandwidth": -1.0}, ValueError, "bandwidth must be > 0"),
    Bad((_X / 0, _X), {"bandwidth": 1.0}, ValueError, "x must be finite"),
]
_FAR = "the square of the largest numbers overflows"

_ATTACK: dict[str, Any] = {
    "samples": lambda g: [Call((_numbers(g, 4, 3), _numbers(g, 4, 1)), {"epsilon": 0.3})],
    "given": _model,
    "argument": "model",
    "reference": lambda x, y, epsilon: (
        x + epsilon * torch.sign(_model(x) - y) * torch.tensor([1.0, -1.0, 1.0]).double()
    ),
    "large": (),
    **dict.fromkeys(
        ("batched", "gradcheck", "gradgradcheck", "forward_mode", "vmap", "compile", "half"),
        False,
    ),
    "why": "inputs without gradient, found by gradients",
}

CONTRACTS = [
    Contract(
        "uncertainty.cauchy_schwarz_divergence",
        un.cauchy_schwarz_divergence,
        lambda g: [
            Call((_numbers(g, 2, 5, 2), _numbers(g, 2, 4, 2)), {"bandwidth": 0.8}),
            Call((_numbers(g, 3, 1), _numbers(g, 6, 1) + 3), {"bandwidth": 2.0}),
        ],
        reference=_divergence,
        scalars={"bandwidth": 0.9},
        large_limit=1e2,
        why=_FAR,
        bad=_TWO,
    ),
    Contract(
        "uncertainty.conditional_cauchy_schwarz",
        un.conditional_cauchy_schwarz,
        lambda g: [
            Call((_numbers(g, 2, 5, 2), _numbers(g, 2, 5, 1), _numbers(g, 2, 5, 1)), {"bandwidths": (0.8, 1.5)}),
            Call((_numbers(g, 4, 2), _numbers(g, 4, 2), _numbers(g, 4, 2)), {"compat": True}),
        ],
        reference=_conditional,
        large_limit=1e2,
        why=_FAR,
        bad=[
            Bad((_X, _X, torch.zeros(5, 1)), {}, ValueError, r"y2 must have shape \(..., any, 2\)"),
            Bad((_X, _X, torch.zeros(4, 2)), {}, ValueError, "x and y1 and y2 must hold the same samples"),
            Bad((_X, _X, _X), {"bandwidths": (0.0, 1.0)}, ValueError, "bandwidths must be > 0"),
        ],
    ),
    Contract(
        "uncertainty.quadratic_mutual_information",
        un.quadratic_mutual_information,
        lambda g: [
            Call((_numbers(g, 2, 5, 2), _numbers(g, 2, 5, 1)), {"bandwidths": (0.8, 1.5)}),
            Call((_numbers(g, 4, 2), _numbers(g, 4, 3)), {"normalize": True}),
        ],
        reference=_information,
        large_limit=1e2,
        why=_FAR,
        bad=[
            *_FEW,
            Bad((_X, _X), {"divergence": "euclid"}, ValueError, "divergence must be one of"),
            Bad((torch.eye(5), _X), {"normalize": True}, ValueError, "t must vary"),
        ],
    ),
    Contract(
        "uncertainty.hsic",
        un.hsic,
        lambda g: [Call((_numbers(g, 2, 5, 2), _numbers(g, 2, 5, 1)), {"bandwidths": (0.8, 1.5)})],
        reference=_hsic,
        large_limit=1e2,
        why=_FAR,
        bad=_FEW,
    ),
    Contract(
        "uncertainty.hsic[unbiased]",
        lambda x, y: un.hsic(x, y, unbiased=True),
        lambda g: [Call((_numbers(g, 2, 5, 2), _numbers(g, 2, 5, 1)))],
        reference=_unbiased_hsic,
        large_limit=1e2,
        compile=False,
        why=f"{_FAR}; compiled in the biased form",
        bad=_FEW[:4],
    ),
    Contract(
        "uncertainty.mmd",
        un.mmd,
        lambda g: [
            Call((_numbers(g, 2, 5, 2), _numbers(g, 2, 4, 2)), {"bandwidth": 0.8}),
            Call((_numbers(g, 3, 1), _numbers(g, 6, 1)), {"bandwidth": 2.0, "unbiased": True}),
        ],
        reference=_mmd,
        scalars={"bandwidth": 0.9},
        large_limit=1e2,
        why=_FAR,
        bad=[
            *_TWO,
            Bad((_X[:1], _X), {"bandwidth": 1.0, "unbiased": True}, ValueError, "x must hold at least 2 samples"),
        ],
    ),
    Contract(
        "uncertainty.median_bandwidth",
        lambda x, **words: un.median_bandwidth(x, detach=False, **words),
        lambda g: [Call((_numbers(g, 2, 5, 2),)), Call((_numbers(g, 4, 3),), {"scale": 0.5})],
        reference=_median,
        large_limit=1e2,
        half=False,
        why=f"{_FAR}; which pair is in the middle is decided otherwise in half precision",
        bad=[
            Bad((torch.zeros(1, 2),), {}, ValueError, r"x must have shape \(..., n, d\) with n >= 2"),
            Bad((_X,), {"scale": 0.0}, ValueError, "scale must be > 0"),
            Bad((_X / 0,), {}, ValueError, "x must be finite"),
        ],
    ),
    Contract(
        "uncertainty.gaussian_cauchy_schwarz",
        _normal_laws,
        lambda g: [Call((_numbers(g, 3, 2), _numbers(g, 3, 2, 2), _numbers(g, 3, 2), _numbers(g, 3, 2, 2)))],
        reference=_by_densities,
        large_limit=1e2,
        batched=False,
        half=False,
        why=f"each argument has the batch; {_FAR}; there is no factorisation in half precision",
    ),
    Measurement(
        "uncertainty.gaussian_cauchy_schwarz[refused]",
        un.gaussian_cauchy_schwarz,
        lambda g: [Call((_numbers(g, 2), torch.eye(2).double(), _numbers(g, 2), torch.eye(2).double()))],
        bad=[
            Bad((_X, torch.eye(3), _X, torch.eye(2)), {}, ValueError, r"covariance_p must have shape \(..., 2, 2\)"),
            Bad((_X, torch.eye(2), _X.double(), torch.eye(2)), {}, TypeError, "must have the same dtype"),
        ],
    ),
    *(
        Module(
            f"uncertainty.InformationBottleneck[{prediction}, {compression}]",
            _loss,
            lambda g: [Call((_numbers(g, 5, 3), _numbers(g, 5, 1)))],
            build=_bottleneck(prediction, compression),
            reference=_terms(prediction, compression),
            batched=False,
            large=(),
            compile=False,
            half=False,
            why="one batch; terms of blocks that are compiled and tried at other sizes and precisions themselves",
        )
        for prediction, compression in (("cs", "cs"), ("mse", "vib"), ("nll", "nib"), ("mse", "hsic"), ("mse", None))
    ),
    HigherOrder(
        "uncertainty.pgd",
        un.pgd,
        **_ATTACK,
        bad=[
            Bad((_X, _X), {"epsilon": -1.0}, ValueError, "epsilon must be >= 0"),
            Bad((_X, _X), {"epsilon": 0.1, "steps": 0}, ValueError, "steps must be an integer >= 1"),
            Bad((_X, _X), {"epsilon": 0.1, "norm": "1"}, ValueError, "norm must be one of"),
            Bad((_X, _X), {"epsilon": 0.1, "step_size": 0.0}, ValueError, "step_size must be > 0"),
            Bad((_X, _X), {"epsilon": 0.1, "loss": 3}, TypeError, "loss must be callable"),
            Bad((_X / 0, _X), {"epsilon": 0.1}, ValueError, "x must be finite"),
        ],
    ),
    HigherOrder(
        "uncertainty.fgsm",
        un.fgsm,
        **_ATTACK,
        bad=[
            Bad((_X, _X), {"epsilon": -1.0}, ValueError, "epsilon must be >= 0"),
            Bad((_X / 0, _X), {"epsilon": 0.1}, ValueError, "x must be finite"),
        ],
    ),
]

"""Contracts of scores of unknown samples: against loops over bins and samples in numpy, scikit-learn, scipy."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp, softmax
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from pullback import uncertainty as un
from tests.contracts.contract import Bad, Call, Contract, Exempt, Measurement, Module


def _numbers(g: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g, dtype=torch.float64)


_EDGES = torch.tensor([-1.5, -0.5, 0.1, 1.7])
_CLASSES = torch.tensor([[2, 0, 1], [1, 1, 0]])
_TRAIN = torch.randn(40, 4, generator=torch.Generator().manual_seed(1)).double().relu() + 0.1
_WEIGHT = torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).double()
_BIAS = torch.tensor([0.3, -0.2, 0.1]).double()
_LABELS = torch.arange(40) % 3
_FITTED = ("react", "vra", "ash", "dice", "shaping", "shaping_energy", "mahalanobis", "knn")
_OPTIONS: dict[str, dict[str, Any]] = {
    "react": {"level": 0.7},
    "vra": {"level": (0.3, 0.8)},
    "ash": {"level": 0.5},
    "dice": {"level": 0.25},
    "shaping": {"bins": 5, "level": (0.0, 0.9)},
    "shaping_energy": {"bins": 5, "level": (0.0, 0.9)},
    "mahalanobis": {"labels": _LABELS},
    "knn": {"neighbours": 3},
}


def _classes(z: Tensor) -> Tensor:
    return (_CLASSES if z.ndim > 2 else _CLASSES[0]).to(z.device)


def _contributions(z: Tensor, w: Tensor) -> Tensor:
    """Bin by bin, feature by feature."""
    edges, found = _EDGES.double(), torch.zeros(*z.shape[:-1], 3, dtype=torch.float64)
    for place in np.ndindex(*z.shape):
        value, label = float(z[place]), int(_classes(z)[place[:-1]])
        for m in range(3):
            if edges[m] <= value < edges[m + 1]:
                found[(*place[:-1], m)] += float(w[label, place[-1]]) * value
    return found


def _of_classes(z: Tensor, w: Tensor) -> Tensor:
    return un.feature_contributions(z, w, _classes(z), _EDGES.to(z))


def _shaping(generator: torch.Generator) -> un.Shaping:
    return un.Shaping(_EDGES, torch.tensor([0.7, -0.4, 1.3]))


def _interpolated(z: Tensor) -> Tensor:
    middles = (_EDGES[1:] + _EDGES[:-1]).double() / 2
    knots = [float(_EDGES[0]), *middles.tolist(), float(_EDGES[-1])]
    theta = torch.tensor([0.7, -0.4, 1.3]).double().tolist()
    return torch.from_numpy(np.interp(z.numpy(), knots, [0, *theta, 0], left=0, right=0)) * z


def _stepped(z: Tensor) -> Tensor:
    theta = torch.tensor([0.7, -0.4, 1.3]).double()
    bins = [(z >= low) & (z < high) for low, high in pairwise(_EDGES.double())]
    return sum(t * z * b for t, b in zip(theta, bins, strict=True))


def _optimal(z: Tensor, w: Tensor, classes: Tensor, outside: Tensor | None = None, **words: Any) -> Any:
    outlier = None if outside is None else (outside, torch.zeros(len(outside), dtype=torch.long, device=z.device))
    found = un.optimal_shaping(z, w, classes, bins=4, outlier=outlier, **words)
    return found.edges, found.theta.detach()


def _best_on_the_sphere(z: Tensor, w: Tensor, classes: Tensor, outside: Tensor | None = None, **words: Any) -> Any:
    low, high = np.quantile(z.numpy(), words.get("quantiles", (1e-3, 1 - 1e-3)))
    edges = np.linspace(low, high, 5)

    def mean(z: Tensor, classes: Tensor) -> np.ndarray:
        share = (w[classes] * z).numpy()
        bins = [(z.numpy() >= a) & (z.numpy() < b) for a, b in pairwise(edges)]
        return np.array([(share * b).sum(1).mean() for b in bins])

    total = mean(z, classes)
    if outside is not None:
        total = total - mean(outside, torch.zeros(len(outside), dtype=torch.long))
    return torch.from_numpy(edges), torch.from_numpy(2 * total / np.linalg.norm(total))


def _states(like: Tensor) -> dict[str, un.OutlierState]:
    fitted = {name: un.fit_ood_score(_TRAIN, _WEIGHT, _BIAS, method=name, **_OPTIONS[name]) for name in _FITTED}
    return {name: s._replace(values=tuple(v.to(like) for v in s.values)) for name, s in fitted.items()}


def _fitted_scores(z: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return tuple(un.ood_score(z, w, b, method=state) for state in _states(z).values())


def _energy(logits: np.ndarray) -> np.ndarray:
    return logsumexp(logits, axis=-1)


def _by_numpy(z: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    rows, weight, bias, train = z.reshape(-1, 4).numpy(), w.numpy(), b.numpy(), _TRAIN.numpy()
    ordered, trained = np.sort(train.ravel()), _WEIGHT.numpy()
    at = lambda q: ordered[round(q * (len(ordered) - 1))]  # noqa: E731
    found = {name: np.zeros(len(rows)) for name in _FITTED}
    share = train.mean(0) * trained
    kept = np.where(share > np.sort(share.ravel())[2], trained, 0)  # three of twelve are removed
    predicted = torch.nn.functional.linear(_TRAIN, _WEIGHT, _BIAS).argmax(-1)
    edges, theta = _optimal_of_training(predicted)
    means = np.stack([train[c == _LABELS].mean(0) for c in range(3)])
    within = train - means[_LABELS]
    covariance = within.T @ within / len(train)
    covariance += 1e-6 * np.diag(covariance).mean() * np.eye(4)
    bank = train / np.linalg.norm(train, axis=1, keepdims=True)
    for i, x in enumerate(rows):
        found["react"][i] = _energy(weight @ np.minimum(x, at(0.7)) + bias)
        found["vra"][i] = _energy(weight @ np.where(x > at(0.3), np.minimum(x, at(0.8)), 0) + bias)
        largest = np.zeros(4)
        largest[np.argsort(x)[-2:]] = np.sort(x)[-2:]
        scale = np.exp(x.sum() / largest.sum()) if largest.sum() > 0 else np.e
        found["ash"][i] = _energy(weight @ (largest * scale) + bias)
        found["dice"][i] = _energy(kept @ x + bias)
        place = np.digitize(x, edges) - 1
        shaped = x * np.where((place >= 0) & (place < 5), theta[np.clip(place, 0, 4)], 0)
        found["shaping"][i] = weight[np.argmax(weight @ x + bias)] @ shaped
        found["shaping_energy"][i] = _energy(weight @ shaped)
        off = x - means
        found["mahalanobis"][i] = -np.einsum("ci,ij,cj->c", off, np.linalg.inv(covariance), off).min()
        found["knn"][i] = -np.sort(np.linalg.norm(x / np.linalg.norm(x) - bank, axis=1))[2]
    return tuple(torch.from_numpy(found[name]).reshape(z.shape[:-1]) for name in _FITTED)


def _optimal_of_training(predicted: Tensor) -> tuple[np.ndarray, np.ndarray]:
    edges = np.linspace(float(_TRAIN.min()), float(np.quantile(_TRAIN.numpy(), 0.9)), 6)
    share = (_WEIGHT[predicted] * _TRAIN).numpy()
    bins = [(_TRAIN.numpy() >= a) & (_TRAIN.numpy() < b) for a, b in pairwise(edges)]
    mean = np.array([(share * b).sum(1).mean() for b in bins])
    return edges, 5**0.5 * mean / np.linalg.norm(mean)


def _plain(z: Tensor, w: Tensor, b: Tensor, temperature: float = 1.0) -> tuple[Tensor, ...]:
    logits = (z.reshape(-1, 4) @ w.T + b).numpy()
    found = (softmax(logits / temperature, -1).max(-1), logits.max(-1), temperature * _energy(logits / temperature))
    return tuple(torch.from_numpy(f).reshape(z.shape[:-1]) for f in found)


def _detected(inside: Tensor, outside: Tensor, recall: float = 0.95) -> tuple[Tensor, ...]:
    if inside.ndim > 1:
        rows = [_detected(*row, recall=recall) for row in zip(inside, outside, strict=True)]
        return tuple(torch.stack(column) for column in zip(*rows, strict=True))
    truth, scores = np.r_[np.ones(len(inside)), np.zeros(len(outside))], torch.cat([inside, outside]).numpy()
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    values = (roc_auc_score(truth, scores), false[np.argmax(true >= recall)], average_precision_score(truth, scores))
    return tuple(torch.tensor(v, dtype=torch.float64) for v in values)


_Z, _W = torch.ones(2, 3), torch.ones(3, 3)
_HEADS = [
    Bad((torch.ones(2, 4), _W), {}, ValueError, r"features must have shape \(..., 3\), as wide as weight"),
    Bad((_Z, torch.ones(3)), {}, ValueError, r"must have shape \(classes, d\), got \(3,\)"),
    Bad((_Z, _W.double()), {}, TypeError, "must have the same dtype"),
]
_LINES = "a product of the largest numbers overflows by nature"

CONTRACTS = [
    Contract(
        "uncertainty.feature_contributions",
        _of_classes,
        lambda g: [Call((_numbers(g, 2, 3, 4), _numbers(g, 3, 4))), Call((_numbers(g, 3, 2), _numbers(g, 3, 2)))],
        reference=_contributions,
        large=(1,),
        large_limit=1e8,
        batched=False,
        why=f"the predictions are those of each batch; {_LINES}",
    ),
    Measurement(
        "uncertainty.feature_contributions[refused]",
        un.feature_contributions,
        lambda g: [Call((_numbers(g, 2, 3), _numbers(g, 3, 3), torch.tensor([0, 2]), _EDGES.double()))],
        bad=[
            *(Bad((*b.args, torch.tensor([0, 1]), _EDGES), {}, b.error, b.match) for b in _HEADS),
            Bad((_Z, _W, torch.tensor([0, 3]), _EDGES), {}, ValueError, r"predictions must be in 0..2, got 0 to 3"),
            Bad((_Z, _W, torch.tensor([0]).expand(3), _EDGES), {}, ValueError, r"predictions must have shape \(2,\)"),
            Bad((_Z, _W, torch.zeros(2), _EDGES), {}, TypeError, "predictions must be integers"),
            Bad((_Z, _W, torch.tensor([0, 1]), _EDGES.flip(0)), {}, ValueError, "edges must be finite, each above"),
            Bad((_Z, _W, torch.tensor([0, 1]), _EDGES[:1]), {}, ValueError, r"edges must have shape \(m \+ 1,\)"),
        ],
    ),
    Module(
        "uncertainty.Shaping",
        lambda shaping, z: shaping(z),
        lambda g: [Call((_numbers(g, 3, 4),)), Call((_numbers(g, 5),))],
        build=_shaping,
        reference=_stepped,
    ),
    Module(
        "uncertainty.Shaping[soft]",
        lambda shaping, z: shaping(z, soft=True),
        lambda g: [Call((_numbers(g, 3, 4),))],
        build=_shaping,
        reference=_interpolated,
    ),
    Measurement(
        "uncertainty.optimal_shaping",
        _optimal,
        lambda g: [
            Call((_numbers(g, 30, 4), _numbers(g, 3, 4), torch.arange(30) % 3)),
            Call((_numbers(g, 9, 2), _numbers(g, 3, 2), torch.arange(9) % 3, _numbers(g, 8, 2)), {"quantiles": (0, 1)}),
        ],
        reference=_best_on_the_sphere,
        bad=[
            *(Bad((*b.args, torch.tensor([0, 1])), {}, b.error, b.match) for b in _HEADS),
            Bad((_Z, _W, torch.tensor([0, 1])), {}, ValueError, "features must differ to be binned, got all between 1"),
            Bad((_Z[:0], _W, torch.tensor([], dtype=torch.long)), {}, ValueError, r"features must have shape \(n, 3\)"),
            Bad((_Z / 0, _W, torch.tensor([0, 1])), {}, ValueError, "features must be finite"),
            Bad((_Z, _W, torch.tensor([0, 1])), {"quantiles": (0.9, 0.1)}, ValueError, "quantiles must be two numbers"),
            Bad((torch.eye(3), 0 * _W, torch.arange(3)), {}, ValueError, "features must contribute"),
            Bad((torch.eye(3), _W, torch.arange(3), torch.ones(2, 2)), {}, ValueError, "outlier must have shape"),
        ],
    ),
    Contract(
        "uncertainty.ood_score",
        lambda z, w, b, **words: tuple(
            un.ood_score(z, w, b, method=m, **words) for m in ("msp", "max_logit", "energy")
        ),
        lambda g: [Call((_numbers(g, 3, 4), _numbers(g, 3, 4), _numbers(g, 3)), {"temperature": 1.5})],
        reference=_plain,
        scalars={"temperature": 0.7},
        large_limit=1e8,
        why=_LINES,
        bad=[
            *(Bad((*b.args, None), {}, b.error, b.match) for b in _HEADS),
            Bad((_Z, _W, torch.ones(2)), {}, ValueError, r"bias must have shape \(3,\)"),
            Bad((_Z, _W, None), {"temperature": 0.0}, ValueError, "temperature must be > 0"),
        ],
    ),
    Contract(
        "uncertainty.ood_score[fitted]",
        _fitted_scores,
        lambda g: [Call((_numbers(g, 3, 4).abs() + 0.1, _numbers(g, 3, 4), _numbers(g, 3)))],
        reference=_by_numpy,
        large=(),
        half=False,
        compile=False,
        why="products with an exponential overflow; which is the nearest, or which bin, is decided otherwise in half "
        "precision; fitting looks at values, which a compiled graph cannot",
    ),
    Measurement(
        "uncertainty.ood_score[refused]",
        un.ood_score,
        lambda g: [Call((_numbers(g, 2, 3), _numbers(g, 3, 3)))],
        bad=[
            Bad((_Z, _W), {"method": "enrgy"}, ValueError, "method must be one of .*did you mean 'energy'"),
            Bad((_Z, _W), {"method": "react"}, ValueError, "method 'react' must be fitted"),
        ],
    ),
    Measurement(
        "uncertainty.fit_ood_score",
        lambda z, w: un.fit_ood_score(z, w, method="react", level=0.5).values,
        lambda g: [Call((_numbers(g, 5, 3), _numbers(g, 2, 3)))],
        reference=lambda z, w: (z.flatten().median(),),
    ),
    Measurement(
        "uncertainty.fit_ood_score[refused]",
        lambda z, w, **words: un.fit_ood_score(z, w, **words).values,
        lambda g: [Call((_numbers(g, 5, 3), _numbers(g, 2, 3)), {"method": "dice"})],
        bad=[
            *(Bad(b.args, {"method": "react"}, b.error, b.match) for b in _HEADS),
            Bad((_Z, _W), {"method": "energy"}, ValueError, "method must be one of"),
            Bad((_Z, _W), {"method": "vra", "level": 0.5}, ValueError, "level must hold 2 numbers"),
            Bad((_Z, _W), {"method": "react", "level": 1.5}, ValueError, "level must be in"),
            Bad((_Z, _W), {"method": "knn", "neighbours": 3}, ValueError, r"neighbours must be in 1..2, got 3"),
            Bad((_Z, _W), {"method": "mahalanobis"}, ValueError, "features must differ within a class"),
            Bad((_Z, _W), {"method": "mahalanobis", "labels": _LABELS}, ValueError, r"labels must have shape \(2,\)"),
            Bad((_Z[0], _W), {"method": "react"}, ValueError, r"features must have shape \(n, 3\) with n >= 1"),
        ],
    ),
    Measurement(
        "uncertainty.detection_metrics",
        lambda inside, outside, **words: tuple(un.detection_metrics(inside, outside, **words)),
        lambda g: [
            Call((_numbers(g, 2, 30) + 1, _numbers(g, 2, 20))),
            Call(((3 * _numbers(g, 21)).round() + 1, (3 * _numbers(g, 50)).round()), {"recall": 0.8}),
            Call(((2 * _numbers(g, 3)).round(), (2 * _numbers(g, 4)).round()), {"recall": 1.0}),
        ],
        reference=_detected,
        bad=[
            Bad((_Z, torch.zeros(2, 0)), {}, ValueError, r"outside must have shape \(..., n\) with n >= 1"),
            Bad((_Z * torch.nan, _Z), {}, ValueError, "inside must not be NaN"),
            Bad((_Z, torch.ones(3, 3)), {}, ValueError, "inside and outside must have shapes that broadcast"),
            Bad((_Z, _Z.double()), {}, TypeError, "inside and outside must have the same dtype"),
            Bad((_Z, _Z), {"recall": 0.0}, ValueError, "recall must be > 0"),
            Bad((_Z, _Z), {"recall": 1.5}, ValueError, r"recall must be in \[0, 1\]"),
        ],
    ),
    Exempt("uncertainty.linear_head", "looks up a module", "uncertainty/test_outliers.py"),
]

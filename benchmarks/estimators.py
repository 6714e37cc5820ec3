"""Estimators of a categorical gradient: bias and variance where the gradient is known exactly, and time.

``pullback bench estimators``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pullback.discrete import RelaxedOneHot, categorical, estimator_statistics, expectation, gumbel_softmax
from pullback.lab.bench import Case, Table

SAMPLES = 20_000
"""Estimates of each estimator that draws noise besides its outcome; the others are enumerated."""


def _torch_gumbel(
    f: Callable[[Tensor], Tensor], logits: Tensor, *, samples: int, generator: Any = None, outcome: Any = None
) -> Tensor:
    many = logits.expand(samples, *logits.shape)
    return f(torch.nn.functional.gumbel_softmax(many, hard=True)).mean(0)


def _rao_blackwell(
    f: Callable[[Tensor], Tensor], logits: Tensor, *, samples: int, generator: Any = None, outcome: Any = None
) -> Tensor:
    """Ten draws of the noise for one outcome (Paulus, Maddison, Krause, 2021)."""
    with torch.no_grad():
        index = categorical(logits, generator=generator).argmax(-1)
    many = logits.expand(10, *logits.shape)
    hard = gumbel_softmax(many, temperature=0.5, hard=True, outcome=index.expand(10, *index.shape), generator=generator)
    return f(hard.mean(0)[None]).mean(0)


def _named(method: str, temperature: float = 1.0, noisy: bool = False, draws: int = 1) -> dict[str, Any]:
    return {
        "estimator": partial(expectation, method=method, temperature=temperature),
        "samples": SAMPLES if noisy else None,
        "draws": draws,
    }


ESTIMATORS: dict[str, dict[str, Any]] = {
    "straight-through": _named("straight_through"),
    "decoupled straight-through, gradient at 2": _named("straight_through", 2.0),
    "ReinMax": _named("reinmax"),
    "ReinMax, temperature 1.5": _named("reinmax", 1.5),
    "ST-Gumbel, temperature 1": _named("gumbel", 1.0, True),
    "ST-Gumbel, temperature 0.5": _named("gumbel", 0.5, True),
    "the same, 10 noises an outcome": {"estimator": _rao_blackwell, "samples": SAMPLES},
    "torch gumbel_softmax(hard=True)": {"estimator": _torch_gumbel, "samples": SAMPLES},
    "Gumbel-Softmax, temperature 1": _named("gumbel_softmax", 1.0, True),
    "Gumbel-Softmax, temperature 0.2": _named("gumbel_softmax", 0.2, True),
    "perturbed maximum": _named("perturbed", 1.0, True),
    "I-MLE, strength 1": _named("imle", 1.0, True),
    "score function": _named("score_function"),
    "leave-one-out, 2 draws": _named("leave_one_out", draws=2),
    "MuProp": _named("muprop"),
}


def _problems() -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    def normal(seed: int, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    a, b, w, v = normal(1, 6, 6), normal(2, 6), normal(3, 6, 10), normal(4, 10)
    u, c = normal(5, 3, 4, 10), normal(6, 10)
    logits = normal(0, 6)
    return {
        "linear, 6 classes": (lambda d: d @ b, logits),
        "quadratic, 6 classes": (lambda d: ((d @ a) * d).sum(-1) + d @ b, logits),
        "tanh network, 6 classes": (lambda d: torch.tanh(d @ w + c) @ v, logits),
        "tanh network, 3 x 4 classes": (
            lambda d: torch.tanh(torch.einsum("...sc,sch->...h", d, u) + c) @ v,
            normal(7, 3, 4),
        ),
    }


def _rows() -> list[tuple[str | float, ...]]:
    rows: list[tuple[str | float, ...]] = []
    for problem, (f, logits) in _problems().items():
        for name, options in ESTIMATORS.items():
            torch.manual_seed(0)
            error = estimator_statistics(f=f, logits=logits, generator=torch.Generator().manual_seed(0), **options)
            bias = max(error.relative_bias, 0.0) ** 0.5
            unsure = (error.relative_variance / error.draws) ** 0.5 if options.get("samples") else 0.0
            shown = f"{bias:.3f}" + (f" ± {unsure:.3f}" if unsure else "")
            rows.append((problem, name, shown, f"{error.relative_variance:.3f}", f"{error.mean_cosine:.3f}"))
    return rows


TABLES = [
    Table(
        "Estimates of the gradient of E f(D) over the logits: bias over the norm of the exact gradient, variance over "
        "its square, cosine of the mean",
        ("function of the choice", "estimator", ">bias", ">variance", ">cosine"),
        _rows,
    )
]


def _descend(block: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    def work(x: Tensor) -> None:
        torch.autograd.grad(block(x), x, x.detach())

    return work


def _logits() -> Tensor:
    return torch.randn(256, 1000, generator=torch.Generator().manual_seed(0)).requires_grad_()


CASES = [
    Case(
        f"{method}, forward+backward, 256 x 1000",
        _logits,
        _descend(partial(categorical, method=method)),
        {"torch gumbel_softmax hard": _descend(partial(torch.nn.functional.gumbel_softmax, hard=True))},
    )
    for method in ("straight_through", "perturbed", "imle")
]


def _log_prob(law: Callable[[Tensor], Any]) -> Callable[[Tensor], None]:
    """Sample, density of the sample, and backward of both."""

    def work(x: Tensor) -> None:
        distribution = law(x)
        torch.autograd.grad(distribution.log_prob(distribution.rsample()).sum(), x)

    return work


CASES.append(
    Case(
        "RelaxedOneHot: sample, its density, backward, 256 x 1000",
        _logits,
        _log_prob(lambda x: RelaxedOneHot(x, 0.5)),
        {
            "torch RelaxedOneHotCategorical": _log_prob(
                lambda x: torch.distributions.RelaxedOneHotCategorical(torch.tensor(0.5), logits=x)
            )
        },
    )
)

"""Contracts of the estimators of an expectation over categorical variables."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pullback import discrete
from pullback.gradients import EstimatorError
from tests.contracts.contract import Bad, Call, Contract, Edges, Exempt, HigherOrder, Module
from tests.contracts.discrete.choice import (
    _BAD_ROW,
    _RANDOM,
    _bad_logits,
    _exact,
    _inverted,
    _largest,
    _logits,
    _noise,
    _sampled,
    _seeded,
)
from tests.contracts.law import floating

_VALUE_AND_GRADIENT = "value and gradient belong to different functions, by design: tests/discrete/test_estimators.py"


def _curved(d: Tensor) -> Tensor:
    """One value a draw of two variables with three classes, which no mean of the draws gives."""
    w = torch.tensor([[1.0, -2.0, 0.5], [0.3, 2.0, -1.0]], dtype=d.dtype, device=d.device)
    return (d * w).sum((-2, -1)).cos() + d[..., 0, 0] * d[..., 1, 2]


def _bent(d: Tensor) -> Tensor:
    """One value a draw of one variable."""
    s = (d * torch.linspace(1, 2, d.shape[-1], dtype=d.dtype, device=d.device)).sum(-1)
    return s.square() + (3 * s).cos()


def _two_variables(generator: torch.Generator) -> Tensor:
    return torch.randn(2, 3, generator=generator, dtype=torch.float64)


def _sum_over_outcomes(logits: Tensor) -> Tensor:
    """The expectation of ``_curved``, one outcome after the other."""
    p = logits.exp() / logits.exp().sum(-1, keepdim=True)
    eye = torch.eye(3, dtype=logits.dtype)
    pairs = itertools.product(range(3), repeat=2)
    return torch.stack([p[0, i] * p[1, j] * _curved(torch.stack([eye[i], eye[j]])) for i, j in pairs]).sum()


def _gradient_of_sum(logits: Tensor) -> Tensor:
    return torch.func.grad(_sum_over_outcomes)(logits)


def _numbers(error: EstimatorError) -> tuple[Tensor, ...]:
    assert isinstance(error.bias, Tensor)
    return error.bias, torch.tensor([error.variance, error.relative_bias, error.mean_cosine], dtype=torch.float64)


def _moments(logits: Tensor) -> tuple[Tensor, ...]:
    """Of the score function: its values ``f(D) (D - p)`` with their probabilities."""
    p, eye = logits.softmax(-1), torch.eye(3, dtype=logits.dtype)
    exact = _gradient_of_sum(logits)
    draws = [torch.stack([eye[i], eye[j]]) for i, j in itertools.product(range(3), repeat=2)]
    weights = torch.stack([(p * d).sum(-1).prod() for d in draws])
    rows = torch.stack([_curved(d) * (d - p) for d in draws])
    variance = (weights * (rows - exact).square().sum((-2, -1))).sum()
    return torch.zeros_like(exact), torch.stack([variance, 0 * variance, 1 + 0 * variance])


def _calls(*kwargs: dict[str, Any]) -> Callable[[torch.Generator], list[Call]]:
    return lambda g: [Call((_two_variables(g),), options) for options in kwargs or ({},)]


def _relaxed(x: Tensor, temperature: float = 1.0) -> Tensor:
    return discrete.RelaxedOneHot(x, temperature).rsample(generator=torch.Generator().manual_seed(0))


def _built(model: Callable[[], nn.Module]) -> Callable[[torch.Generator], nn.Module]:
    def build(generator: torch.Generator) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            return model()

    return build


def _draws(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 3, generator=generator, dtype=torch.float64)


_ZEROS = torch.zeros(2, 3)
_BAD = [
    Bad((torch.arange(3),), {}, TypeError, "logits must be a floating tensor, got torch.int64"),
    Bad((torch.tensor(0.0),), {}, ValueError, "logits must have a dimension of classes"),
    Bad((torch.full((2, 3), torch.nan),), {}, ValueError, "logits must have a finite largest entry"),
]

_BAD_LABELS = [
    Bad((torch.zeros(3, 6), torch.zeros(2).long()), {}, ValueError, r"y must have shape \(3,\), got \(2,\)"),
    Bad((torch.zeros(3, 6), torch.zeros(3)), {}, TypeError, "y must hold integers, got torch.float32"),
    Bad((torch.zeros(3, 6), torch.tensor([0, 3, 1])), {}, ValueError, r"y must be in 0\.\.2, got 0 to 3"),
    Bad((torch.zeros(3, 6), torch.tensor([0, -1, 1])), {}, ValueError, r"y must be in 0\.\.2, got -1 to 1"),
]
_BAD_PIXELS = [
    Bad((torch.zeros(3, 5),), {}, ValueError, r"[xy] must have shape \(\.\.\., 6\), got \(3, 5\)"),
]


def _outside(name: str) -> list[Bad]:
    of = "y" if name == "CategoricalBottleneck" else "x"
    return [Bad((torch.full((3, 6), 1.5),), {}, ValueError, rf"{of} must be in \[0, 1\], got minimum 1\.5")]


CONTRACTS = [
    Contract(
        "discrete.straight_through_softmax",
        _seeded(discrete.straight_through_softmax),
        lambda g: [Call((_logits(g),), {"temperature": 1.3})],
        reference=lambda x, temperature: _inverted(x),
        edges=_sampled(),
        bad=[
            *_bad_logits(),
            *_BAD_ROW,
            Bad((torch.zeros(2),), {"temperature": 0.0}, ValueError, "temperature must be > 0"),
            Bad((torch.zeros(2),), {"draw_temperature": 0.0}, ValueError, "draw_temperature must be > 0"),
        ],
        gradcheck=False,
        gradgradcheck=False,
        batched=False,
        vmap=False,
        half=False,
        why=f"{_RANDOM}; {_VALUE_AND_GRADIENT}",
    ),
    Contract(
        "discrete.score_function",
        discrete.score_function,
        lambda g: [
            Call((_draws(g), _draws(g)), {"baseline": "leave_one_out"}),
            Call((_draws(g), _draws(g)), {"baseline": "mean", "dim": 1}),
            Call((_draws(g), _draws(g)), {"baseline": "control", "control": _draws(g), "expected": _draws(g)}),
        ],
        reference=lambda log_prob, reward, **_: reward,
        edges=Edges(lambda x: x, lambda x: (torch.zeros_like(x, dtype=floating(x)), x), place=1),
        bad=[
            Bad((_ZEROS, torch.arange(3)), {}, TypeError, "reward must be a floating tensor"),
            Bad(
                (_ZEROS, torch.zeros(3)),
                {},
                ValueError,
                r"reward must have the shape of log_prob, \(2, 3\), got \(3,\)",
            ),
            Bad((_ZEROS, _ZEROS.double()), {}, TypeError, "log_prob and reward must have the same dtype"),
            Bad((_ZEROS, _ZEROS), {"baseline": "control"}, ValueError, "control must be given where baseline is"),
            Bad((_ZEROS, _ZEROS), {"control": _ZEROS}, ValueError, "control must be given .* only there, got 'none'"),
            Bad((_ZEROS, _ZEROS), {"expected": _ZEROS}, ValueError, "expected must be given with a control only"),
            Bad((_ZEROS, _ZEROS), {"baseline": "median"}, ValueError, "baseline must be one of 'none', 'mean'"),
            Bad((_ZEROS, _ZEROS), {"dim": 2}, IndexError, "dim must be in"),
            Bad(
                (_ZEROS[:1], _ZEROS[:1]),
                {"baseline": "leave_one_out"},
                ValueError,
                "needs at least 2 draws along dim 0",
            ),
        ],
        gradcheck=False,
        gradgradcheck=False,
        batched=False,
        vmap=False,
        large=(),
        why=f"{_VALUE_AND_GRADIENT}; draws lie along the first dimension; a gain may be larger than all rewards",
    ),
    HigherOrder(
        "discrete.expectation",
        _seeded(discrete.expectation),
        lambda g: [Call((_logits(g),), {"method": "exact"})],
        given=_bent,
        argument="f",
        reference=lambda x, method: x.softmax(-1) @ _bent(torch.eye(4, dtype=x.dtype)),
        edges=Edges(
            lambda x, dim: _bent(_largest(x, dim)),
            words=lambda x: {"samples": 2},
            along=True,
            empty="logits must have at least one class",
            refuses=(lambda x: bool((x == torch.inf).any()), "logits must have a finite largest"),
        ),
        bad=[Bad((_ZEROS,), {"temperature": 0.0}, ValueError, "temperature must be > 0")],
        vmap=False,
        why="vmap: torch.func calls f at one law, where nothing is left of its batch",
    ),
    HigherOrder(
        "discrete.expectation[exact]",
        lambda f, x: discrete.expectation(f, x, method="exact"),
        _calls(),
        given=_curved,
        argument="f",
        reference=_sum_over_outcomes,
        vmap=False,
        bad=_BAD,
        why="vmap: the batch of a law stands before its variables, f tells which is which",
        batched=False,
    ),
    *[
        HigherOrder(
            f"discrete.expectation[{method}]",
            _seeded(discrete.expectation),
            _calls({"method": method, "samples": 3}),
            given=_curved,
            argument="f",
            bad=[
                *_BAD,
                Bad((_ZEROS,), {"method": "reinforce"}, ValueError, "method must be one of 'gumbel'"),
                Bad((_ZEROS,), {"samples": 0}, ValueError, "samples must be an integer >= 1, got 0"),
                Bad((_ZEROS,), {"method": "leave_one_out"}, ValueError, "samples must be at least 2"),
            ]
            if method == "reinmax"
            else (),
            gradcheck=False,
            gradgradcheck=False,
            forward_mode=method not in ("imle", "muprop"),
            batched=False,
            vmap=False,
            half=False,
            compile=method != "muprop",
            large=(),
            why=f"{_RANDOM}; {_VALUE_AND_GRADIENT}; imle is not linear in the cotangent; muprop differentiates f",
        )
        for method in discrete.ESTIMATORS
        if method != "exact"
    ],
    HigherOrder(
        "discrete.exact_categorical_gradient",
        discrete.exact_categorical_gradient,
        _calls(),
        given=_curved,
        argument="f",
        reference=_gradient_of_sum,
        bad=_BAD,
        vmap=False,
        batched=False,
        why="vmap: the batch of a law stands before its variables, f tells which is which",
    ),
    HigherOrder(
        "discrete.estimator_statistics",
        lambda f, x, estimator="score_function", **words: discrete.estimator_statistics(estimator, f, x, **words),
        _calls(),
        given=_curved,
        argument="f",
        reference=_moments,
        outputs=_numbers,
        bad=[
            Bad((_ZEROS,), {"estimator": "reinforce"}, ValueError, "estimator must be one of 'gumbel'"),
            Bad((_ZEROS,), {"estimator": 3}, TypeError, "estimator must be callable, got int"),
            Bad((_ZEROS,), {"estimator": "reinmax", "samples": 1}, ValueError, "samples must be an integer >= 2"),
            Bad((_ZEROS,), {"estimator": "reinmax", "draws": 0}, ValueError, "draws must be an integer >= 1, got 0"),
            Bad((_ZEROS,), {"estimator": "reinmax", "draws": 9}, ValueError, "at most 100000 outcomes"),
            Bad((_ZEROS,), {"estimator": "gumbel"}, ValueError, "samples must be given for 'gumbel': it draws"),
        ],
        batched=False,
        gradcheck=False,
        gradgradcheck=False,
        forward_mode=False,
        vmap=False,
        compile=False,
        half=False,
        large=(),
        why="a measurement: it is not differentiated",
    ),
    *[
        Module(
            f"discrete.{name}",
            block,
            lambda g: [Call((torch.rand(3, 6, generator=g, dtype=torch.float64),))],
            build=_built(model),
            bad=[*_BAD_PIXELS, *(_BAD_LABELS if name == "SemiSupervisedVAE" else []), *_outside(name)],
            batched=False,
            vmap=False,
            half=False,
            large=(),
            why=f"{_RANDOM}; float32 noise is another draw than float64 noise; inputs lie in [0, 1]",
        )
        for name, block, model in (
            (
                "CategoricalBottleneck",
                lambda model, x: model.loss(x, x, generator=torch.Generator().manual_seed(0)),
                lambda: discrete.CategoricalBottleneck(6, 2, 3, 6, (5,), estimator="gumbel_softmax"),
            ),
            (
                "DiscreteVAE",
                lambda model, x: model.negative_elbo(x, generator=torch.Generator().manual_seed(0)),
                lambda: discrete.DiscreteVAE(6, 2, 3, (5,), estimator="gumbel_softmax"),
            ),
            (
                "SemiSupervisedVAE",
                lambda model, x, y=None: model.elbo(x, y, generator=torch.Generator().manual_seed(0)),
                lambda: discrete.SemiSupervisedVAE(6, 3, 2, (5,)),
            ),
        )
    ],
    Contract(
        "discrete.RelaxedOneHot[rsample]",
        _relaxed,
        lambda g: [Call((_logits(g),), {"temperature": 0.7})],
        reference=lambda x, temperature: torch.softmax((x + _noise(tuple(x.shape))) / temperature, -1),
        hard=_exact,
        scalars={"temperature": 0.7},
        edges=Edges(
            _largest,
            along=True,
            empty="logits must have at least one class",
            refuses=(lambda x: bool(x.isinf().any()), r"logits must (have a finite largest|be finite)"),
            words=lambda x: {"temperature": 0.5},
        ),
        bad=[
            *[bad for bad in _bad_logits() if "temperature" not in bad.kwargs],
            Bad((torch.tensor([0.0, -torch.inf]),), {"temperature": 1.0}, ValueError, "logits must be finite"),
            Bad((torch.tensor(0.0),), {"temperature": 1.0}, ValueError, "logits must have a dimension of classes"),
            Bad((torch.zeros(3),), {"temperature": 0.0}, ValueError, "temperature must be > 0, got 0.0"),
        ],
        batched=False,
        vmap=False,
        half=False,
        why=_RANDOM + "; float32 noise is another draw than float64 noise",
    ),
    Contract(
        "discrete.RelaxedOneHot[log_prob]",
        lambda x, log_y, temperature: discrete.RelaxedOneHot(x, temperature).log_prob(log_y.log_softmax(-1), log=True),
        lambda g: [Call((_logits(g), 2 * _logits(g)), {"temperature": 0.7})],
        reference=lambda x, log_y, temperature: torch.distributions.RelaxedOneHotCategorical(
            torch.tensor(temperature, dtype=torch.float64), logits=x
        ).log_prob(log_y.softmax(-1)),
        scalars={"temperature": 0.7},
        bad=[
            Bad((_ZEROS, torch.zeros(2, 2), 1.0), {}, ValueError, r"value must have shape \(..., 3\), got \(2, 2\)"),
            Bad((_ZEROS, torch.zeros(4, 3), 1.0), {}, ValueError, "value.* broadcast"),
        ],
        large=(0,),
        large_limit=1e4,
        why="the density of what hardly happens is the logarithm of its distance: a sum of classes overflows half",
    ),
    Exempt(
        "discrete.RunningBaseline",
        "keeps a mean from call to call; expectation's score function otherwise",
        "discrete/test_estimators.py",
    ),
    Exempt(
        "discrete.temperature_schedule",
        "numbers in, a function of the step out: against its formula",
        "discrete/test_autoencoders.py",
    ),
]

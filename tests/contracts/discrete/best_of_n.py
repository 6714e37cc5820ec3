"""Contracts of best-of-n: its law, its divergence, what it gains, and the policies that it is compared with."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from pullback import discrete
from tests.contracts.contract import Bad, Call, Contract, Edges, HigherOrder, Measurement
from tests.contracts.law import floating

_REWARD = torch.tensor([0.5, -1.0, 2.0, 0.5, 1.0], dtype=torch.float64)  # two are tied
_SPREAD = torch.tensor([0.5, -1.0, 2.0, 0.7, 1.0], dtype=torch.float64)
_COIN = torch.tensor([0.5, 0.5]).log()
_UP = torch.tensor([0.0, 1.0])
_WHY = (
    "logits as large as that make all but one outcome impossible, whose log-probability is no number that n multiplies"
)


def _logits(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 5, generator=generator, dtype=torch.float64)


def _laws(**kwargs: Any) -> Any:
    return lambda g: [Call((_logits(g),), kwargs), Call((_logits(g)[0],), kwargs)]


def _by_tuples(logits: Tensor, reward: Tensor, n: int, ties: str = "split") -> Tensor:
    """Enumerate all draws; of the best ones of a tuple the first wins, or the one of highest index."""
    rows = []
    for law in torch.softmax(logits, -1).reshape(-1, logits.shape[-1]):
        wins = torch.zeros_like(law)
        for draws in itertools.product(range(len(law)), repeat=n):
            key = (lambda y: (float(reward[y]), y)) if ties == "order" else (lambda y: float(reward[y]))
            wins[max(draws, key=key)] += law[list(draws)].prod()
        rows.append(wins)
    return torch.stack(rows).reshape(logits.shape)


def _log(x: Tensor) -> Tensor:
    return torch.log_softmax(x, -1)


def _kl_by_tuples(logits: Tensor, n: int, reward: Tensor, ties: str = "split") -> Tensor:
    law, p = _by_tuples(logits, reward, n, ties), torch.softmax(logits, -1)
    return (law * (law / p).log()).sum(-1)


def _per_winner(x: Tensor, n: int) -> Tensor:
    e = torch.sigmoid(x)
    miss = (1 - e) ** n
    return (miss * (math.log(n) + (n - 1) * (1 - e).log() - (n - 1) / n) + (1 - miss) * ((1 - miss) / e).log()).mean(-1)


def _winning(policy: Tensor, reference: Tensor, reward: Tensor) -> Tensor:
    """Over all pairs."""
    beats = (reward[:, None] > reward).double() + (reward[:, None] == reward).double() / 2
    return torch.einsum("...i,...j,ij->...", policy, reference, beats)


def _subsets(policy: Tensor, reference: Tensor, n: int) -> Tensor:
    rows = []
    for ours, theirs in zip(policy, reference, strict=True):
        best = torch.stack([ours[list(chosen)].max() for chosen in itertools.combinations(range(len(ours)), n)])
        gap = best[:, None] - theirs
        rows.append(((gap > 0).double() + (gap == 0).double() / 2).mean())
    return torch.stack(rows)


def _tilted(logits: Tensor, reward: Tensor, beta: float) -> Tensor:
    law = logits.exp() * (reward / beta).exp()
    return law / law.sum(-1, keepdim=True)


def _repeated(logits: Tensor, reward: Tensor, threshold: float, tries: int) -> Tensor:
    """The chain of draws, one after the other."""
    p = torch.softmax(logits, -1)
    enough = reward >= threshold
    law, going_on = torch.zeros_like(p), torch.ones_like(p[..., :1])
    for attempt in range(tries):
        last = attempt == tries - 1
        law = law + going_on * torch.where(enough | torch.tensor(last), p, 0.0)
        going_on = going_on * torch.where(enough, 0.0, p).sum(-1, keepdim=True)
    return law


def _curve(logits: Tensor) -> tuple[Tensor, ...]:
    p = torch.softmax(logits, -1)
    laws = [_by_tuples(logits, _REWARD, 3), _tilted(logits, _REWARD, 0.7), _repeated(logits, _REWARD, 0.6, 4)]
    return tuple(
        torch.stack([measure(law) for law in laws], -1)
        for measure in (
            lambda law: (law * (law / p).log()).sum(-1),
            lambda law: _winning(law, p, _REWARD),
            lambda law: (law * _REWARD).sum(-1),
        )
    )


def _bad_law(**kwargs: Any) -> list[Bad]:
    return [
        Bad((_COIN.long(), _UP), kwargs, TypeError, "log_prob must be a floating tensor, got torch.int64"),
        Bad((_COIN, _UP.long()), kwargs, TypeError, "reward must be a floating tensor, got torch.int64"),
        Bad((_COIN + 1, _UP), kwargs, ValueError, "log_prob must be normalised, got .* sum to 2.718"),
        Bad((_COIN, torch.zeros(3)), kwargs, ValueError, "log_prob and reward must have shapes that broadcast"),
        Bad((_COIN, _UP * torch.nan), kwargs, ValueError, "reward must not be NaN"),
        Bad((_COIN * torch.nan, _UP), kwargs, ValueError, "log_prob must not be NaN"),
        Bad((torch.zeros(0), torch.zeros(0)), kwargs, ValueError, "log_prob must have at least one outcome"),
    ]


def _bad_number(name: str, **kwargs: Any) -> list[Bad]:
    return [
        Bad((_COIN, _UP), {**kwargs, name: 0}, ValueError, f"{name} must be an integer >= 1, got 0"),
        Bad((_COIN, _UP), {**kwargs, name: 2.0}, TypeError, f"{name} must be an integer, got float"),
    ]


def _of_logits(block: Any, **fixed: Any) -> Any:
    """The laws differentiate logits: log-probabilities that are moved one by one do not sum to 1.

    Bad calls give log-probabilities and rewards as they are, the samples logits alone, the edges a reward by name.
    """

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or not isinstance(x, Tensor) or not x.is_floating_point() or "reward" in kwargs:
            return block(x, *args, **kwargs)
        options = {name: value.to(x) if isinstance(value, Tensor) else value for name, value in fixed.items()}
        return block(_log(x), **options, **kwargs)

    return call


def _rising(x: Tensor) -> Tensor:
    return torch.linspace(0, 1, x.shape[-1], dtype=floating(x), device=x.device)


def _edges(hard: Any = lambda x: x, name: str = "log_prob", outputs: Any = None, **words: Any) -> Edges:
    """A law of any shape; one with an infinite logit is none."""
    return Edges(
        hard,
        domain=lambda x: torch.log_softmax(x, -1),
        words=lambda x: {"reward": _rising(x), **words},
        empty=f"{name} must have at least one outcome",
        refuses=(lambda x: bool(x.isnan().any()), f"{name} must not be NaN"),
        outputs=outputs,
    )


def _kl(x: Tensor, n: int, **options: Any) -> discrete.KLEstimate:
    """The samples give logits of winners (n = 3), the edges go through all methods."""
    if n == 3:
        return discrete.best_of_n_kl(torch.nn.functional.logsigmoid(x), n, **options)
    if options.get("method") == "exact" and isinstance(x, Tensor):
        options["reward"] = _rising(x)
    return discrete.best_of_n_kl(x, n, **options)


def _rate(x: Tensor, **options: Any) -> Tensor:
    if isinstance(x, Tensor) and x.is_floating_point() and "reference" not in options:
        return discrete.win_rate(_log(x), _log(-x), _REWARD.to(x), **options)
    return discrete.win_rate(x, **options)


CONTRACTS = [
    *[
        Contract(
            f"discrete.best_of_n_log_prob[{ties}]",
            _of_logits(discrete.best_of_n_log_prob, reward=_REWARD),
            _laws(n=4, ties=ties),
            reference=lambda x, n, ties: _by_tuples(x, _REWARD, n, ties).log(),
            large_limit=1e4,
            why=_WHY,
            edges=_edges(n=3) if ties == "split" else None,
            bad=[
                *_bad_law(n=2),
                *_bad_number("n"),
                Bad((_COIN, _UP), {"n": 2, "ties": "first"}, ValueError, "ties must be one of 'order', 'split'"),
            ],
        )
        for ties in ("split", "order")
    ],
    Contract(
        "discrete.best_of_n_kl[exact]",
        _of_logits(lambda *a, **k: discrete.best_of_n_kl(*a, **k), reward=_REWARD, method="exact"),
        _laws(n=3),
        reference=lambda x, n: _kl_by_tuples(x, n, _REWARD),
        outputs=lambda result: result.value,
        large_limit=1e4,
        why=_WHY,
        bad=[
            Bad((_COIN, 0), {"method": "bound"}, ValueError, "n must be an integer >= 1, got 0"),
            Bad((_COIN, 2), {"method": "exact"}, TypeError, "method 'exact' wants reward"),
            Bad((_COIN, 2), {"method": "bound", "reward": _UP}, TypeError, "method 'bound' takes no reward"),
            Bad((_COIN, 2), {"method": "close"}, ValueError, "method must be one of 'bound', 'estimate', 'exact'"),
            Bad((_COIN - 1, 2), {"method": "exact", "reward": _UP}, ValueError, "log_prob must be normalised"),
            Bad(
                (_COIN, 2),
                {"method": "exact", "reward": _UP, "ties": "no"},
                ValueError,
                "ties must be one of 'order', 'split'",
            ),
        ],
    ),
    Contract(
        "discrete.best_of_n_kl[estimate]",
        _kl,
        lambda g: [Call((_logits(g), 3)), Call((_logits(g)[0], 3))],
        reference=_per_winner,
        outputs=lambda result: result.value,
        edges=Edges(
            lambda x: x[..., 0],
            lambda x: (x, 2),
            domain=lambda x: torch.log_softmax(x, -1),
            empty="log_prob must have at least one entry",
            refuses=(lambda x: bool(x.isnan().any()), "log_prob must not be NaN"),
            outputs=lambda result: result.value,
        ),
        bad=[
            Bad((-_COIN, 2), {}, ValueError, "log_prob must be <= 0, got maximum 0.69"),
            Bad((_COIN * torch.nan, 2), {}, ValueError, "log_prob must not be NaN"),
            Bad((torch.zeros(2, 0), 2), {}, ValueError, r"log_prob must have at least one entry .* \(2, 0\)"),
            Bad((_COIN.long(), 2), {}, TypeError, "log_prob must be a floating tensor, got torch.int64"),
        ],
    ),
    Contract(
        "discrete.win_rate",
        _rate,
        _laws(n=3),
        edges=Edges(
            lambda x: x.sum(-1),
            words=lambda x: {
                "reference": torch.log_softmax(0 * _rising(x), -1).expand(x.shape),
                "reward": _rising(x),
                "n": 2,
            },
            domain=lambda x: torch.log_softmax(x, -1),
            empty="policy must have at least one outcome",
            refuses=(lambda x: bool(x.isnan().any()), "policy must not be NaN"),
        ),
        reference=lambda x, n: _winning(_by_tuples(x, _REWARD, n), torch.softmax(-x, -1), _REWARD),
        large_limit=1e4,
        why=_WHY,
    ),
    Measurement(
        "discrete.win_rate[draws]",
        discrete.win_rate,
        lambda g: [Call((_logits(g).round(decimals=1), _logits(g)[:, :4].round(decimals=1)), {"n": 3})],
        reference=_subsets,
        why="a share of pairs: constant between jumps",
        bad=[
            Bad((_UP, _UP), {"n": 3}, ValueError, "n must be at most the 2 draws of the policy, got 3"),
            Bad((_UP, _UP), {"n": 0}, ValueError, "n must be an integer >= 1, got 0"),
            Bad((_UP.long(), _UP), {}, TypeError, "policy must be a floating tensor"),
            Bad((_UP, torch.zeros(0)), {}, ValueError, "reference must have at least one draw"),
            Bad((_UP, _UP * torch.nan), {}, ValueError, "reference must not be NaN"),
            Bad((torch.zeros(2, 3), torch.zeros(3, 3)), {}, ValueError, "policy and reference must have shapes that"),
            Bad((_COIN, _COIN + 1, _UP), {}, ValueError, "reference must be normalised"),
            Bad((_COIN, torch.zeros(1), _UP), {}, ValueError, "reference must have 2 outcomes as reward has, got 1"),
        ],
    ),
    Contract(
        "discrete.win_probability",
        _of_logits(discrete.win_probability, reward=_REWARD),
        _laws(),
        edges=_edges(name="reference"),
        reference=lambda x: _winning(torch.eye(5).double(), torch.softmax(x, -1).unsqueeze(-2), _REWARD),
        bad=[
            Bad((_COIN + 1, _UP), {}, ValueError, "reference must be normalised, got .* sum to 2.718"),
            Bad((_COIN, _UP * torch.nan), {}, ValueError, "reward must not be NaN"),
        ],
    ),
    Contract(
        "discrete.tilted",
        lambda x, reward, beta: discrete.tilted(
            _log(x) if isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 1 else x, reward, beta
        ),
        lambda g: [Call((_logits(g), _SPREAD.clone()), {"beta": 0.7})],
        reference=lambda x, reward, beta: _tilted(x, reward, beta).log(),
        scalars={"beta": 0.7},
        edges=_edges(beta=0.5),
        large=(0, 1),
        large_limit=1e4,
        why=_WHY,
        bad=[
            *_bad_law(beta=1.0),
            Bad((_COIN, _UP), {"beta": 0.0}, ValueError, "beta must be > 0, got 0.0"),
            Bad((_COIN, _UP / 0), {"beta": 1.0}, ValueError, "reward must not be NaN"),
            Bad((_COIN, 1 / _UP), {"beta": 1.0}, ValueError, "reward must be finite"),
        ],
    ),
    Contract(
        "discrete.rewind_and_repeat_log_prob",
        _of_logits(discrete.rewind_and_repeat_log_prob, reward=_REWARD),
        _laws(threshold=0.6, tries=4),
        edges=_edges(threshold=0.6, tries=4),
        reference=lambda x, threshold, tries: _repeated(x, _REWARD, threshold, tries).log(),
        large_limit=1e4,
        why=_WHY,
        bad=[
            *_bad_law(threshold=0.0, tries=2),
            *_bad_number("tries", threshold=0.0),
            Bad((_COIN, _UP), {"threshold": math.nan, "tries": 1}, ValueError, "threshold must be a number, got nan"),
            Bad((_COIN, _UP), {"threshold": "high", "tries": 1}, TypeError, "threshold must be a number, got str"),
        ],
    ),
    Contract(
        "discrete.alignment_curve",
        _of_logits(discrete.alignment_curve, reward=_REWARD),
        lambda g: [Call((_logits(g),), {"ns": [3], "betas": [0.7], "thresholds": [0.6], "tries": 4})],
        reference=lambda x, **_: _curve(x),
        outputs=lambda curve: (curve.kl, curve.win_rate, curve.reward),
        edges=_edges(lambda x: x[..., :1], ns=[2], outputs=lambda curve: (curve.kl, curve.win_rate, curve.reward)),
        large_limit=1e4,
        why=_WHY,
        bad=[
            *_bad_law(ns=[2]),
            Bad((_COIN, _UP), {}, ValueError, "one of ns, betas, thresholds must have an entry"),
            Bad((_COIN, 1 / _UP), {"ns": [2]}, ValueError, "reward must be finite"),
            Bad((_COIN, _UP), {"ns": [0]}, ValueError, "n must be an integer >= 1, got 0"),
        ],
    ),
    HigherOrder(
        "discrete.best_of_n",
        lambda given, x, **k: discrete.best_of_n(lambda n, generator: x, given, x.shape[0], **k),
        lambda g: [Call((_logits(g),))],
        given=lambda draws: draws.sin(),
        argument="reward",
        reference=lambda x: (x.gather(0, x.sin().argmax(0, keepdim=True))[0], x.sin().amax(0)),
        outputs=lambda chosen: (chosen.sample, chosen.reward),
        large_limit=1e4,
        batched=False,
        vmap=False,
        why="the sampler returns the draws in front of the batch; a sine of a large number is any number",
        half=False,
    ),
]

"""Contracts of ``pullback.causal``: acyclicity, orientations, scores and weights, and models to draw from."""

from __future__ import annotations

import torch
from sklearn.linear_model import LogisticRegression, PoissonRegressor
from torch import Tensor

from pullback import causal
from tests.contracts.contract import Bad, Call, Contract, Exempt, Measurement, Module


def _matrix(generator: torch.Generator, *, scale: float = 0.4) -> list[Call]:
    weights = scale * torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return [Call((weights,)), Call((0.5 * weights,))]


def _covariance(generator: torch.Generator) -> Tensor:
    root = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    return root @ root.mT + torch.eye(4, dtype=torch.float64)


def _by_eigenvalues(function: object) -> object:
    def reference(weights: Tensor) -> Tensor:
        return function(torch.linalg.eigvals(weights * weights)).real  # type: ignore[operator]

    return reference


def _regressions(covariance: Tensor) -> Tensor:
    """Each node regressed on all others, one ridge system a node."""
    weights = torch.zeros_like(covariance)
    for node in range(4):
        others = [i for i in range(4) if i != node]
        system = covariance[others][:, others] + 0.1 * torch.eye(3).to(covariance)
        weights[others, node] = torch.linalg.solve(system, covariance[others, node])
    return weights


_NOT_SQUARE = Bad((torch.zeros(2, 3),), {}, ValueError, "weights must have shape")
_BAD_WEIGHTS = [
    _NOT_SQUARE,
    Bad((torch.zeros(2, 2),), {"method": "logdt"}, ValueError, "did you mean 'logdet'"),
    Bad((torch.zeros(2, 2),), {"scale": 0.0}, ValueError, "scale must be > 0"),
    Bad((torch.zeros(2, 2, dtype=torch.int64),), {}, TypeError, "weights must be a floating tensor"),
]
_OVERFLOWS = "infinite by nature where the exponential or power overflows, or outside of the domain, as documented"
_ORDER = torch.tensor([2, 0, 3, 1])
_CHAIN = torch.tensor([[0.0, 0.7, 0.0], [0.0, 0.0, -1.1], [0.0, 0.0, 0.0]], dtype=torch.float64)


def _method(name: str) -> object:
    return lambda weights, **kwargs: causal.acyclicity(weights, **{"method": name, **kwargs})


def _each_move(covariance: Tensor) -> Tensor:
    """The order's score and those of all moves of one node, each from a factorisation of its own."""
    rows = []
    for source in range(len(_ORDER)):
        for target in range(len(_ORDER)):
            order = _ORDER.tolist()
            order.insert(target, order.pop(source))
            rows.append(causal.score_order(covariance, torch.tensor(order)))
    return torch.stack(rows, -1).unflatten(-1, (len(_ORDER), len(_ORDER)))


def _along_order(x: Tensor) -> Tensor:
    """Each node regressed on the ones before it, one least-squares problem a node."""
    centred, weights = x - x.mean(0), x.new_zeros(4, 4)
    for place in range(1, 4):
        before, node = _ORDER[:place], _ORDER[place]
        weights[before, node] = torch.linalg.lstsq(centred[:, before], centred[:, node]).solution
    return weights


def _linear_model(w: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The density of independent residuals; samples along the chain, one node after the other."""
    density = torch.distributions.Normal(0.0, 1.0).log_prob(x - x @ w).sum(-1)
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=w.dtype).to(w)
    first = z[:, 0]
    second = z[:, 1] + w[0, 1] * first
    return density, torch.stack([first, second, z[:, 2] + w[1, 2] * second], -1)


_SET = torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]]).bool()
_BITS = (torch.rand(60, 4, generator=torch.Generator().manual_seed(5)) < 0.5).double()


_COUNTS = torch.poisson(torch.full((60, 4), 1.5).double(), generator=torch.Generator().manual_seed(6))


def _regularised_poisson(penalty: Tensor) -> Tensor:
    """Each node on the ones before it, by another package."""
    weights = torch.zeros(4, 4, dtype=penalty.dtype)
    for place in range(1, 4):
        before, node = _ORDER[:place], _ORDER[place]
        fitted = PoissonRegressor(alpha=penalty.item(), fit_intercept=False, tol=1e-10, max_iter=1000)
        fitted.fit(_COUNTS[:, before].numpy(), _COUNTS[:, node].numpy())
        weights[before, node] = torch.from_numpy(fitted.coef_).to(penalty.dtype)
    return weights


def _regularised_logistic(penalty: Tensor) -> Tensor:
    """Each node on the ones before it, by a quasi-Newton method of another package."""
    weights = torch.zeros(4, 4, dtype=penalty.dtype)
    for place in range(1, 4):
        before, node = _ORDER[:place], _ORDER[place]
        x, y = _BITS[:, before].numpy(), _BITS[:, node].numpy()
        fitted = LogisticRegression(C=1 / (len(x) * penalty.item()), fit_intercept=False, tol=1e-10, max_iter=1000)
        weights[before, node] = torch.from_numpy(fitted.fit(x, y).coef_[0]).to(penalty.dtype)
    return weights


def _reaches(weights: Tensor, start: int, end: int) -> bool:
    return start == end or any(_reaches(weights, int(k), end) for k in weights[start].nonzero()[:, 0])


def _largest_free_slope(weights: Tensor, slope: Tensor) -> Tensor:
    """The slope along every arc whose end does not lead back to its start."""
    nodes = range(len(weights))
    return max(slope[i, j].abs() for i in nodes for j in nodes if not _reaches(weights, j, i))


def _upper(generator: torch.Generator) -> Tensor:
    return torch.randn(4, 4, generator=generator).double().triu(1)


def _candidates_by_walks(weights: Tensor, slope: Tensor) -> Tensor:
    """Sum the walks by powers of the matrix and sort the pairs backwards along the order."""
    walks = sum(torch.linalg.matrix_power(weights.abs(), k) for k in range(4))
    return torch.tensor(sorted(((i, j) for i in range(4) for j in range(i)), key=lambda pair: walks[pair[::-1]].item()))


CONTRACTS = [
    Contract(
        "causal.acyclicity[logdet]",
        _method("logdet"),
        lambda g: _matrix(g, scale=0.25),
        reference=_by_eigenvalues(lambda e: -torch.log(1 - e).sum()),
        bad=_BAD_WEIGHTS,
        scalars={"scale": 1.5},
        large=(),
        infinite=True,
        why=_OVERFLOWS,
    ),
    Contract(
        "causal.acyclicity[exponential]",
        _method("exponential"),
        _matrix,
        reference=_by_eigenvalues(lambda e: e.exp().sum() - 4),
        large=(),
        infinite=True,
        why=_OVERFLOWS,
    ),
    Contract(
        "causal.acyclicity[polynomial]",
        _method("polynomial"),
        _matrix,
        reference=_by_eigenvalues(lambda e: ((1 + e / 4) ** 4).sum() - 4),
        large=(),
        infinite=True,
        why=_OVERFLOWS,
    ),
    Contract(
        "causal.acyclicity[spectral]",
        _method("spectral"),
        _matrix,
        reference=_by_eigenvalues(lambda e: e.abs().max() + 0j),
        gradgradcheck=False,
        large_limit=1e4,
        why="the Perron vectors are constants of the gradient: first order only; a square overflows half",
    ),
    Contract(
        "causal.orientation",
        lambda p, **kwargs: causal.orientation(p, **{"temperature": 0.5, "shift": 0.1, **kwargs}),
        lambda g: [Call((torch.randn(4, generator=g, dtype=torch.float64),))],
        reference=lambda p: torch.sigmoid((p[None, :] - p[:, None] - 0.1) / 0.5).fill_diagonal_(0),
        hard=lambda p: ((p[None, :] - p[:, None]) > 0.1).double(),
        scalars={"temperature": 0.5, "shift": 0.1},
        large_limit=1e8,
        bad=[
            Bad((torch.zeros(3),), {"temperature": 0.0}, ValueError, "temperature must be > 0"),
            Bad((torch.zeros(3),), {"temperature": torch.ones(2)}, ValueError, "temperature must be a number or a"),
            Bad((torch.zeros(3),), {"shift": -1.0}, ValueError, "shift must be > 0"),
            Bad((torch.zeros(()),), {}, ValueError, "priority must have shape"),
            Bad((torch.zeros(3, dtype=torch.int64),), {}, TypeError, "priority must be a floating tensor"),
        ],
        why="differences of the largest numbers overflow",
    ),
    Contract(
        "causal.least_squares_score",
        causal.least_squares_score,
        lambda g: [Call((torch.randn(4, 4, generator=g, dtype=torch.float64), _covariance(g)))],
        reference=lambda w, c: torch.trace((torch.eye(4).to(w) - w).T @ c @ (torch.eye(4).to(w) - w)) / 4,
        bad=[
            Bad((torch.zeros(3), torch.eye(3)), {}, ValueError, "weights must have shape"),
            Bad((torch.zeros(3, 3), torch.eye(2)), {}, ValueError, "covariance must have shape"),
            Bad((torch.zeros(2, 3, 3), torch.zeros(4, 3, 3)), {}, ValueError, "shapes that broadcast"),
            Bad((torch.zeros(3, 3), torch.eye(3).double()), {}, TypeError, "one dtype"),
        ],
        half_tolerance=6e-2,
        large=(),
        why="a sum of squares leaves the range of half precision",
    ),
    Contract(
        "causal.ridge_weights",
        lambda c, **kwargs: causal.ridge_weights(c, **{"penalty": 0.1, **kwargs}),
        lambda g: [Call((_covariance(g),))],
        reference=_regressions,
        scalars={"penalty": 0.1},
        bad=[
            Bad((torch.eye(2),), {"penalty": 0.0}, ValueError, "penalty must be > 0"),
            Bad((torch.full((2, 2), 1e20),), {"penalty": 1e-9}, ValueError, "positive definite; raise the penalty"),
            Bad((torch.tensor([[1.0, 3.0], [3.0, 1.0]]),), {}, ValueError, "must be positive definite"),
            Bad((torch.zeros(2, 3),), {}, ValueError, "covariance must have shape"),
        ],
        large=(),
        why="a matrix scaled up is nearer to singular, and its inverse below what half precision resolves",
    ),
    Contract(
        "causal.score_order",
        lambda c: causal.score_order(0.5 * (c + c.mT), _ORDER),
        lambda g: [Call((_covariance(g),))],
        reference=lambda c: causal.least_squares_score(causal.fit_order(c, _ORDER, covariance=True), c),
        bad=[Bad((torch.zeros(4, 4),), {}, ValueError, "covariance is singular")],
        vmap=False,
        compile=False,
        half=False,
        large=(),
        why="it looks at its factorisation and says where that fails; rounding to half makes a matrix singular",
    ),
    Contract(
        "causal.insertion_scores",
        lambda c: causal.insertion_scores(0.5 * (c + c.mT), _ORDER),
        lambda g: [Call((_covariance(g),))],
        reference=lambda c: _each_move(c),
        bad=[
            Bad((torch.zeros(4, 4),), {}, ValueError, "covariance is singular"),
        ],
        vmap=False,
        compile=False,
        half=False,
        large=(),
        why="it looks at its factorisation and says where that fails; rounding to half makes a matrix singular",
    ),
    Contract(
        "causal.fit_order",
        lambda x: causal.fit_order(x, _ORDER),
        lambda g: [Call((torch.randn(9, 4, generator=g, dtype=torch.float64),))],
        reference=lambda x: _along_order(x),
        bad=[
            Bad((torch.zeros(5, 4),), {}, ValueError, "column 0 is constant"),
            Bad((torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),), {}, ValueError, "singular"),
            Bad((torch.randn(1, 4),), {}, ValueError, "at least two samples"),
        ],
        vmap=False,
        compile=False,
        half=False,
        large=(),
        why="it looks at the data and says what is wrong with it; moments of half are in single precision",
    ),
    Contract(
        "causal.fit_order[logistic]",
        lambda penalty: causal.fit_order(_BITS.to(penalty), _ORDER, model="logistic", penalty=penalty),
        lambda g: [Call((torch.tensor(0.1, dtype=torch.float64),))],
        reference=_regularised_logistic,
        tolerance=1e-6,
        batched=False,
        vmap=False,
        compile=False,
        half=False,
        large=(),
        bad=[
            Bad((torch.tensor(-1.0),), {}, ValueError, "penalty must be >= 0"),
            Bad((torch.ones(2),), {}, ValueError, "penalty must be a number or a tensor without dimensions"),
        ],
        why="a batch of penalties has no meaning; it looks at the data and at its steps; there is no solve in half",
    ),
    Contract(
        "causal.fit_order[poisson]",
        lambda penalty: causal.fit_order(_COUNTS.to(penalty), _ORDER, model="poisson", penalty=penalty),
        lambda g: [Call((torch.tensor(0.1, dtype=torch.float64),))],
        reference=_regularised_poisson,
        tolerance=1e-6,
        batched=False,
        vmap=False,
        compile=False,
        half=False,
        large=(),
        bad=[Bad((torch.tensor(-1.0),), {}, ValueError, "penalty must be >= 0")],
        why="a batch of penalties has no meaning; it looks at the data and at its steps; there is no solve in half",
    ),
    Measurement(
        "causal.kkt_violation",
        causal.kkt_violation,
        lambda g: [
            Call((torch.randn(5, 5, generator=g).double().triu(1).round(), torch.randn(5, 5, generator=g).double())),
            Call((torch.zeros(3, 3).double(), torch.randn(3, 3, generator=g).double())),
        ],
        reference=_largest_free_slope,
        bad=[
            Bad((torch.zeros(2, 3), torch.zeros(2, 3)), {}, ValueError, "weights must have shape"),
            Bad((torch.zeros(2, 2), torch.zeros(3, 3)), {}, ValueError, "loss_gradient must have the shape of weights"),
            Bad((torch.zeros(2, 2), torch.zeros(2, 2)), {"tolerance": -1.0}, ValueError, "tolerance must be >= 0"),
        ],
    ),
    Measurement(
        "causal.swap_candidates",
        lambda weights, slope, **kwargs: causal.swap_candidates(
            weights, **{"order": torch.arange(4, device=weights.device), "loss_gradient": slope, **kwargs}
        ),
        lambda g: [Call((_upper(g), torch.randn(4, 4, generator=g).double()))],
        reference=_candidates_by_walks,
        bad=[
            Bad((torch.ones(4, 4), torch.ones(4, 4)), {}, ValueError, "must be zero where the order forbids an arc"),
            Bad((torch.zeros(4, 4), torch.ones(3, 3)), {}, ValueError, "loss_gradient must have shape"),
            Bad((torch.zeros(4, 4), torch.ones(4, 4)), {"order": torch.tensor([0, 1, 1, 2])}, ValueError, "missing"),
            Bad((torch.zeros(4, 4), torch.ones(4, 4)), {"xi": -1.0}, ValueError, "xi must be >= 0"),
            Bad((torch.zeros(4, 4), torch.ones(4, 4)), {"tau": -1.0}, ValueError, "tau must be >= 0"),
            Bad((torch.zeros(4, 4), torch.ones(4, 4)), {"count": 0}, ValueError, "count must be an integer >= 1"),
        ],
    ),
    Contract(
        "causal.second_moments",
        causal.second_moments,
        lambda g: [Call((torch.randn(6, 3, generator=g, dtype=torch.float64),))],
        reference=lambda x: torch.cov(x.T, correction=0),
        bad=[
            Bad((torch.zeros(4),), {}, ValueError, "data must have shape"),
            Bad((torch.zeros(1, 3),), {}, ValueError, "at least two samples"),
            Bad((torch.zeros(3, 0),), {}, ValueError, "at least one column"),
            Bad((torch.tensor([[1.0, 7.0], [2.0, 7.0]]),), {}, ValueError, "column 1 is constant"),
            Bad((torch.tensor([[1.0, 1e30], [2.0, -1e30]]),), {}, ValueError, "too large"),
            Bad((torch.tensor([[1.0, 0.0], [torch.inf, 1.0]]),), {}, ValueError, r"finite, got inf at index \(1, 0\)"),
            Bad((torch.ones(3, 3, dtype=torch.int64),), {}, TypeError, "data must be a floating tensor"),
            Bad((torch.ones(2, 3),), {"covariance": True}, ValueError, "covariance must be square"),
            Bad((torch.tensor([[1.0, 2.0], [0.0, 9.0]]),), {"covariance": True}, ValueError, "must be symmetric"),
            Bad((torch.tensor([[1.0, 2.0], [2.0, 1.0]]),), {"covariance": True}, ValueError, "semi-definite"),
            Bad((torch.diag(torch.tensor([1.0, -1.0])),), {"covariance": True}, ValueError, "variance of column 1"),
        ],
        vmap=False,
        compile=False,
        half=False,
        large_limit=1e8,
        why="it looks at the data and says what is wrong with it; moments of half are in single precision",
    ),
    Contract(
        "causal.interventional_moments",
        lambda x: causal.interventional_moments(x, _SET[: x.shape[0]].to(x.device)),
        lambda g: [Call((torch.randn(6, 3, generator=g, dtype=torch.float64),))],
        reference=lambda x: torch.stack([x[~_SET[:, j]].T @ x[~_SET[:, j]] / (~_SET[:, j]).sum() for j in range(3)]),
        bad=[
            Bad((torch.zeros(6),), {}, ValueError, "data must have shape"),
            Bad((torch.zeros(6, 2),), {}, ValueError, "targets must have the shape of data"),
            Bad((torch.full((6, 3), torch.nan),), {}, ValueError, "data must be finite"),
        ],
        batched=False,
        vmap=False,
        compile=False,
        half=False,
        large_limit=1e8,
        why="every batch has its own targets; it looks at the data; moments of half are in single precision",
    ),
    Module(
        "causal.SmoothAcyclicSCM",
        lambda model, x: (model(x), model.weights()),
        lambda g: [Call((torch.randn(5, 3, generator=g, dtype=torch.float64),))],
        build=lambda g: causal.SmoothAcyclicSCM(3, restarts=2, shift=0.1, generator=g),
        reference=None,
        batched=False,
        half_tolerance=6e-2,
        large_limit=1e4,
        why="a batch of data needs a model with that batch; a linear model's predictions leave the range of half",
    ),
    Module(
        "causal.SmoothAcyclicSCM[nonlinear]",
        lambda model, x: (model(x), model.weights()),
        lambda g: [Call((torch.randn(5, 3, generator=g, dtype=torch.float64),))],
        build=lambda g: causal.SmoothAcyclicSCM(3, hidden=4, restarts=2, shift=0.1, generator=g),
        batched=False,
        half_tolerance=6e-2,
        large_limit=1e4,
        why="a batch of data needs a model with that batch; sums before the sigmoid leave the range of half",
    ),
    Contract(
        "causal.LinearSCM",
        lambda w, x: (
            causal.LinearSCM(w).log_prob(x),
            causal.LinearSCM(w).rsample(4, generator=torch.Generator().manual_seed(0)),
        ),
        lambda g: [Call((_CHAIN.clone(), torch.randn(2, 3, generator=g, dtype=torch.float64)))],
        reference=_linear_model,
        bad=[
            Bad((torch.zeros(2, 3), torch.zeros(2)), {}, ValueError, "weights must have shape"),
            Bad((torch.zeros(3, 3), torch.zeros(2)), {}, ValueError, "x must have shape"),
            Bad((torch.zeros(3, 3), torch.zeros(3).double()), {}, TypeError, "x must have the dtype"),
            Bad((torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.zeros(2)), {}, ValueError, "must be those of a DAG"),
            Bad((torch.full((2, 2), torch.inf), torch.zeros(2)), {}, ValueError, "weights must be finite"),
        ],
        batched=False,
        vmap=False,
        compile=False,
        half=False,
        large=(),
        why="draws come from a generator, in the dtype of the weights; a log-density is a square",
    ),
    Contract(
        "causal.LogisticSCM",
        lambda x: causal.LogisticSCM(_CHAIN.to(x)).log_prob(x),
        lambda g: [Call((torch.randn(2, 3, generator=g, dtype=torch.float64),))],
        reference=lambda x: (x * torch.sigmoid(x @ _CHAIN).log() + (1 - x) * torch.sigmoid(-x @ _CHAIN).log()).sum(-1),
        batched=False,
        half_tolerance=6e-2,
        large_limit=1e4,
        bad=[Bad((torch.zeros(2),), {}, ValueError, "x must have shape")],
        why="a row is a sample; sums of large logits leave the range of half",
    ),
    Contract(
        "causal.NonlinearSCM",
        lambda x: causal.NonlinearSCM(_CHAIN, "mim", generator=torch.Generator().manual_seed(0)).log_prob(x),
        lambda g: [Call((torch.randn(2, 3, generator=g, dtype=torch.float64),))],
        batched=False,
        vmap=False,
        compile=False,
        large=(),
        half_tolerance=1e-1,
        why="built anew each call, from a generator; a log-density is a square",
    ),
    Exempt("causal.random_dag", "a draw: no data in", "causal/test_structure.py"),
    Exempt("causal.random_weights", "a draw: no data but a graph in", "causal/test_structure.py"),
    Exempt("causal.cosine_temperature", "a function of a Python number", "causal/test_structure.py"),
]

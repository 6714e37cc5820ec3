"""Transport blocks against their peers: scipy (assignment), POT, GeomLoss (Sinkhorn and its divergence).

All at one epsilon, a twentieth of the mean cost, to a residual of 1e-3 (GeomLoss has no residual: it takes the sweeps
of its annealing). POT differentiates the sweeps it ran; of 4000 points it would keep a hundred matrices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pullback import transport
from pullback.lab.bench import Case


def _costs(batch: int, n: int) -> Tensor:
    return torch.rand(batch, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _assign(cost: Tensor) -> None:
    transport.assignment(cost)


def _scipy(cost: Tensor) -> None:
    from scipy.optimize import linear_sum_assignment

    for one in cost.numpy():
        linear_sum_assignment(one)


def _clouds(n: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(n, 3, generator=g), 0.5 * torch.rand(n, 3, generator=g)
    return x.requires_grad_(), y


_EPSILON = 0.025


def _divergence(clouds: tuple[Tensor, Tensor]) -> None:
    transport.sinkhorn_divergence(*clouds, epsilon=_EPSILON, tolerance=1e-3).value.backward()


def _divergence_of_pot(clouds: tuple[Tensor, Tensor]) -> None:
    from ot.bregman import empirical_sinkhorn_divergence

    empirical_sinkhorn_divergence(*clouds, reg=_EPSILON, stopThr=1e-3).backward()


def _divergence_of_geomloss(clouds: tuple[Tensor, Tensor]) -> None:
    from geomloss import SamplesLoss

    # Its cost is half of the squared distance.
    SamplesLoss("sinkhorn", p=2, blur=(_EPSILON / 2) ** 0.5, backend="tensorized")(*clouds).backward()


def _sinkhorn_of_pot(cost: Tensor) -> None:
    import ot

    uniform = cost.new_full(cost.shape[-1:], 1 / cost.shape[-1])
    ot.sinkhorn2(uniform, uniform, cost[0], reg=0.025, stopThr=1e-6, numItermax=2000).backward()


def _sliced(clouds: tuple[Tensor, Tensor]) -> None:
    transport.sliced_wasserstein(*clouds, projections=128).backward()


def _sliced_of_pot(clouds: tuple[Tensor, Tensor]) -> None:
    import ot

    ot.sliced_wasserstein_distance(*clouds, n_projections=128).square().backward()


def _weighted(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(n, 3, generator=g), 0.5 * torch.rand(n + n // 2, 3, generator=g)
    a, b = torch.rand(n, generator=g), torch.rand(n + n // 2, generator=g)
    return x.requires_grad_(), y, a / a.sum(), b / b.sum()


def _sliced_masses(clouds: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    transport.sliced_wasserstein(*clouds, projections=128).backward()


def _sliced_masses_of_pot(clouds: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    import ot

    ot.sliced_wasserstein_distance(*clouds, n_projections=128).square().backward()


def _bells(m: int) -> tuple[Tensor, Tensor]:
    place = torch.linspace(0, 1, m, dtype=torch.float64)
    means = torch.linspace(0.2, 0.8, 4, dtype=torch.float64)
    bells = torch.exp(-((place - means[:, None]) ** 2) / 0.005)
    return bells / bells.sum(-1, keepdim=True), (place[:, None] - place).square()


def _grid_barycenter(problem: tuple[Tensor, Tensor]) -> None:
    transport.barycenter(*problem, epsilon=0.01, tolerance=1e-6)


def _grid_barycenter_of_pot(problem: tuple[Tensor, Tensor]) -> None:
    from ot.bregman import barycenter_debiased

    bells, cost = problem
    barycenter_debiased(bells.T.numpy(), cost.numpy(), 0.01, stopThr=1e-6)


def _several(n: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(3, n, 2, generator=g, dtype=torch.float64), torch.randn(n, 2, generator=g, dtype=torch.float64)


def _free(clouds: tuple[Tensor, Tensor]) -> None:
    transport.free_support_barycenter(clouds[0], start=clouds[1], max_iterations=10)


def _free_of_pot(clouds: tuple[Tensor, Tensor]) -> None:
    import ot

    y, start = (t.numpy() for t in clouds)
    uniform = [ot.unif(len(one)) for one in y]
    ot.lp.free_support_barycenter(list(y), uniform, start, numItermax=10, stopThr=0)


def _partial(cost: Tensor) -> None:
    transport.partial_transport(cost[0], mass=0.7)


def _partial_of_pot(cost: Tensor) -> None:
    import ot

    uniform = ot.unif(cost.shape[-1])
    ot.partial.partial_wasserstein(uniform, uniform, cost[0].numpy(), m=0.7)


def _shipped(clouds: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, y, a, b = (t.detach().double() for t in clouds)
    transport.exact_transport(transport.pairwise_cost(x, y), a, b)


def _shipped_of_pot(clouds: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    import ot

    x, y, a, b = (t.detach().double() for t in clouds)
    ot.emd(a, b * (a.sum() / b.sum()), ot.dist(x, y))


CASES = [
    *(
        Case(
            f"exact plan of masses, {n} and {n + n // 2} points in 3-D",
            lambda n=n: _weighted(n),
            _shipped,
            {"POT": _shipped_of_pot},
        )
        for n in (100, 600)
    ),
    Case(
        "sliced distance with its gradient, n = 2000 in 3-D, 128 lines",
        lambda: _clouds(2000),
        _sliced,
        {"POT": _sliced_of_pot},
    ),
    Case(
        "sliced distance of masses with its gradient, n = 1000 and 1500 in 3-D, 128 lines",
        lambda: _weighted(1000),
        _sliced_masses,
        {"POT": _sliced_masses_of_pot},
    ),
    Case(
        "debiased barycentre of 4 on a grid of 200",
        lambda: _bells(200),
        _grid_barycenter,
        {"POT": _grid_barycenter_of_pot},
    ),
    Case("barycentre of free points, 3 clouds of 50, 10 updates", lambda: _several(50), _free, {"POT": _free_of_pot}),
    Case("partial plan, n = 100, 0.7 of the mass", lambda: _costs(1, 100), _partial, {"POT": _partial_of_pot}),
    *(
        Case(
            f"sinkhorn divergence of points in 3-D with its gradient, n = {n}",
            lambda n=n: _clouds(n),
            _divergence,
            {"geomloss": _divergence_of_geomloss} | ({"POT": _divergence_of_pot} if n <= 2000 else {}),
        )
        for n in (256, 2000, 4000)
    ),
    *(
        Case(
            f"assignment, n = {n}, batch {batch}", lambda n=n, batch=batch: _costs(batch, n), _assign, {"scipy": _scipy}
        )
        for n, batch in ((10, 256), (100, 16), (1000, 1))
    ),
    Case(
        "sinkhorn with its gradient, n = 200, epsilon = mean cost / 20",
        lambda: _costs(1, 200).requires_grad_(),
        lambda cost: transport.sinkhorn(cost, epsilon=0.025, gradient="envelope").value.sum().backward(),
        {"POT": _sinkhorn_of_pot},
    ),
]

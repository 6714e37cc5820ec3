"""Transport blocks against their peers: exact assignment (scipy), Sinkhorn and its divergence (POT, GeomLoss).

All at one epsilon, a twentieth of the mean cost, to a residual of 1e-3 (GeomLoss has no residual: it takes the sweeps
of its annealing). POT differentiates the sweeps it ran; of 10 000 points it would keep a hundred matrices.
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


CASES = [
    *(
        Case(
            f"sinkhorn divergence of points in 3-D with its gradient, n = {n}",
            lambda n=n: _clouds(n),
            _divergence,
            {"geomloss": _divergence_of_geomloss} | ({"POT": _divergence_of_pot} if n <= 2000 else {}),
        )
        for n in (256, 2000, 10_000)
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

"""The blocks of topology against their peers. ``pullback bench topology``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from pullback.lab.bench import Case
from pullback.topology import bottleneck_distance, pairwise_distances, persistence, rips_pairs


def _cloud(n: int, batch: tuple[int, ...] = ()) -> Callable[[], Tensor]:
    return lambda: torch.rand(*batch, n, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()


def _distances(n: int, batch: int) -> Callable[[], Tensor]:
    return lambda: pairwise_distances(_cloud(n, (batch,))().detach())


def _trees(distances: Tensor) -> None:
    rips_pairs(distances)


def _trees_scipy(distances: Tensor) -> None:
    from scipy.sparse.csgraph import minimum_spanning_tree

    for matrix in distances.numpy():
        minimum_spanning_tree(matrix)


def _total(bars: list[tuple[Tensor, Tensor]], x: Tensor) -> None:
    torch.autograd.grad(sum((death - birth).sum() for birth, death in bars), x)


def _diagrams(x: Tensor) -> None:
    found = persistence(pairwise_distances(x), degrees=(0, 1))
    _total([(bars.birth, bars.death) for bars in found], x)


@cache
def _layer() -> Any:
    from torch_topological.nn import VietorisRipsComplex

    return VietorisRipsComplex(dim=1)


def _torch_topological(x: Tensor) -> None:
    _total([(found.diagram[:, 0], found.diagram[:, 1]) for found in _layer()(x)], x)


def _gudhi(x: Tensor) -> None:
    """What its users write: pairs of vertices from gudhi, distances gathered in torch."""
    import gudhi

    distances = torch.cdist(x, x)
    tree = gudhi.SimplexTree.create_from_array(distances.detach().double().numpy())
    tree.expansion(2)
    tree.compute_persistence()
    components, cycles, *_ = tree.flag_persistence_generators()
    edges = torch.as_tensor(components)[:, 1:].long()
    bars = [(torch.zeros(len(edges)), distances[edges[:, 0], edges[:, 1]])]
    for table in cycles[:1]:
        a, b, c, d = torch.as_tensor(table).long().unbind(1)
        bars.append((distances[a, b], distances[c, d]))
    _total(bars, x)


def _two_diagrams(n: int) -> Callable[[], Tensor]:
    def bars() -> Tensor:
        births = torch.rand(2, n, generator=torch.Generator().manual_seed(0))
        return torch.stack([births, births + 0.3 * births.flip(-1)], -1)

    return bars


def _bottleneck(bars: Tensor) -> None:
    bottleneck_distance(bars[0], bars[1])


def _bottleneck_gudhi(bars: Tensor) -> None:
    import gudhi

    gudhi.bottleneck_distance(bars[0].double().numpy(), bars[1].double().numpy())


CASES = [
    *[
        Case(f"degree-0 pairs, n={n}, batch {batch}", _distances(n, batch), _trees, {"scipy": _trees_scipy})
        for n, batch in ((64, 64), (1000, 1))
    ],
    Case(
        "Rips diagrams of degree 0 and 1, forward+backward, n=100",
        _cloud(100),
        _diagrams,
        {"torch-topological": _torch_topological, "gudhi": _gudhi},
    ),
    *[
        Case(
            f"Rips diagrams of degree 0 and 1, forward+backward, n={n} (gudhi would build 20 million triangles)",
            _cloud(n),
            _diagrams,
            {"torch-topological": _torch_topological},
        )
        for n in (500, 1000)
    ],
    Case("bottleneck distance of diagrams of 100 bars", _two_diagrams(100), _bottleneck, {"gudhi": _bottleneck_gudhi}),
]

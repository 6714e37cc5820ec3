"""The blocks of topology against their peers. ``pullback bench topology``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from pullback import data
from pullback.lab.bench import Case
from pullback.topology import (
    Complex,
    bottleneck_distance,
    diagram_wasserstein,
    euler_transform,
    pairwise_distances,
    persistence,
    rips_pairs,
    sphere_directions,
)


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


def _wasserstein(bars: Tensor) -> None:
    diagram_wasserstein(bars[0], bars[1], p=1.0, q=torch.inf)


def _wasserstein_pot(bars: Tensor) -> None:
    from gudhi.wasserstein import wasserstein_distance

    wasserstein_distance(*bars.double().numpy(), order=1.0, internal_p=float("inf"))


def _wasserstein_hera(bars: Tensor) -> None:
    from gudhi.hera import wasserstein_distance

    wasserstein_distance(*bars.double().numpy(), order=1.0, internal_p=float("inf"))


def _digits() -> tuple[Complex, Tensor, Tensor]:
    squares = Complex.from_image(data.digits().images[:64] > 0.4).to_unit_ball()
    corners = squares.faces  # the peer knows triangles
    triangles = torch.cat([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]])
    edges = torch.cat([squares.edges, corners[:, [0, 2]]])
    shapes = Complex(squares.vertices, (edges, triangles), squares.batch, squares.count)
    return shapes, sphere_directions(16, 2, method="circle"), torch.linspace(-1.1, 1.1, 16)


def _bunny() -> tuple[Complex, Tensor, Tensor]:
    return (
        Complex.from_mesh(*data.mesh("bunny00")).to_unit_ball(),
        sphere_directions(8, 3, method="fibonacci"),
        torch.linspace(-1.1, 1.1, 32),
    )


def _euler(transform: Callable[..., Tensor], given: tuple[Complex, Tensor, Tensor]) -> None:
    shapes, directions, thresholds = given
    x, xi = shapes.vertices.clone().requires_grad_(), directions.clone().requires_grad_()
    torch.autograd.grad(transform(shapes.with_vertices(x), xi, thresholds).square().sum(), (x, xi))


def _dect(shapes: Complex, directions: Tensor, thresholds: Tensor) -> Tensor:
    """The tensor expression of aidos-lab/DECT, ``index_add`` in the place of its ``torch_scatter``."""
    heights, total = shapes.vertices @ directions.mT, torch.zeros(())
    for k, corners in enumerate((torch.arange(len(heights))[:, None], *shapes.cells)):
        entered = heights[corners].amax(1)
        steps = torch.sigmoid(100 * (thresholds[:, None] - entered[:, None]))
        whole = steps.new_zeros(shapes.count, *steps.shape[1:])
        total = total + (-1) ** k * whole.index_add(0, shapes.batch[corners[:, 0]], steps)
    return total


CASES = [
    *[
        Case(
            f"Euler transform, forward+backward, {name}",
            given,
            partial(_euler, euler_transform),
            {"DECT formula": partial(_euler, _dect)},
        )
        for name, given in (
            ("64 digits, 16 directions, 16 thresholds", _digits),
            ("37 706 vertices, 8 directions, 32 thresholds", _bunny),
        )
    ],
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
    *[
        Case(
            f"bottleneck distance of diagrams of {n} bars", _two_diagrams(n), _bottleneck, {"gudhi": _bottleneck_gudhi}
        )
        for n in (100, 1000)
    ],
    *[
        Case(
            f"1-Wasserstein distance of diagrams of {n} bars",
            _two_diagrams(n),
            _wasserstein,
            {"gudhi (POT)": _wasserstein_pot, "gudhi (hera)": _wasserstein_hera},
        )
        for n in (100, 300)
    ],
]

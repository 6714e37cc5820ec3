"""Contracts of ``pullback.topology``: persistence, distances between diagrams, losses and quality of embeddings."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import minimum_spanning_tree
from torch import Tensor

from pullback import topology
from tests.contracts.contract import Bad, Call, Contract, Measurement

_TRIANGLES = [torch.tensor([[0, 1, 2], [1, 2, 3], [0, 2, 4]]), torch.tensor([[3, 4], [0, 3]])]
_FILLED = [
    torch.tensor([[0], [1], [2], [3], [4]]),
    torch.tensor([[0, 1], [0, 2], [1, 2], [1, 3], [2, 3], [0, 4], [2, 4], [3, 4], [0, 3]]),
    torch.tensor([[0, 1, 2], [1, 2, 3], [0, 2, 4]]),
]
_SHAPES = "which bars there are depends on values: no shapes to map over or to compile"
_OPEN = {"batched": False, "vmap": False, "compile": False, "why": _SHAPES}


def _clouds(*shape: int) -> object:
    return lambda g: [Call((torch.rand(*shape, generator=g, dtype=torch.float64),)) for _ in range(2)]


def _rips(x: Tensor, degree: int, backend: str) -> tuple[Tensor, ...]:
    (bars,) = topology.persistence(topology.pairwise_distances(x), degrees=(degree,), backend=backend)
    return bars.birth, bars.death


def _bars(values: Tensor, **options: object) -> tuple[Tensor, ...]:
    found = topology.persistence(values, degrees=(0, 1), **options)  # type: ignore[arg-type]
    return tuple(end for bars in found for end in (bars.birth, bars.death))


def _ranks_reduce(cells: list[tuple[int, ...]], values: list[float], degrees: tuple[int, ...]) -> tuple[Tensor, ...]:
    """The textbook: columns as sets, left to right, nothing cleared."""
    order = sorted(range(len(cells)), key=lambda c: (values[c], len(cells[c]), c))
    place = {cells[c]: i for i, c in enumerate(order)}
    columns: dict[int, set[int]] = {}
    bars: dict[int, list[tuple[float, float]]] = {k: [] for k in degrees}
    for c in order:
        column = {place[f] for f in combinations(cells[c], len(cells[c]) - 1) if f}
        while column and max(column) in columns:
            column ^= columns[max(column)]
        if column:
            low = max(column)
            columns[low] = column
            born = order[low]
            if len(cells[born]) - 1 in bars and values[c] > values[born]:
                bars[len(cells[born]) - 1].append((values[born], values[c]))
    tables = [torch.tensor(sorted(bars[k]), dtype=torch.float64).reshape(-1, 2) for k in degrees]
    return tuple(column for table in tables for column in table.unbind(-1))


def _rips_reference(x: Tensor, degrees: tuple[int, ...]) -> tuple[Tensor, ...]:
    d = torch.cdist(x, x).numpy()
    cells = [s for k in range(1, max(degrees) + 3) for s in combinations(range(len(d)), k)]
    values = [max((d[i, j] for i, j in combinations(s, 2)), default=0.0) for s in cells]
    return _ranks_reduce(cells, values, degrees)


def _star_reference(values: Tensor) -> tuple[Tensor, ...]:
    cells = [tuple(sorted(row)) for table in _FILLED for row in table.tolist()]
    return _ranks_reduce(cells, [max(values[list(s)].tolist()) for s in cells], (0, 1))


def _cubical_reference(image: Tensor) -> tuple[Tensor, ...]:
    """The dual: squares of the grid with pixels as vertices have other values, so each cell lists its own pixels."""
    h, w = image.shape
    grid = [(i, j) for i in range(2 * h + 1) for j in range(2 * w + 1)]
    grid.sort(key=lambda c: c[0] % 2 + c[1] % 2)
    values = {}
    for i, j in grid:
        rows = [r for r in {(i - 1) // 2, i // 2} if 0 <= r < h]
        columns = [c for c in {(j - 1) // 2, j // 2} if 0 <= c < w]
        values[i, j] = min(image[r, c].item() for r in rows for c in columns)
    order = sorted(grid, key=lambda c: (values[c], c[0] % 2 + c[1] % 2))
    place = {c: n for n, c in enumerate(order)}
    columns_: dict[int, set[int]] = {}
    bars: list[list[tuple[float, float]]] = [[], []]
    for i, j in order:
        faces = [(i + s, j) for s in (-1, 1) if i % 2] + [(i, j + s) for s in (-1, 1) if j % 2]
        column = {place[f] for f in faces}
        while column and max(column) in columns_:
            column ^= columns_[max(column)]
        if column:
            columns_[max(column)] = column
            born = order[max(column)]
            if values[i, j] > values[born]:
                bars[born[0] % 2 + born[1] % 2].append((values[born], values[i, j]))
    tables = [torch.tensor(sorted(b), dtype=torch.float64).reshape(-1, 2) for b in bars]
    return tuple(column for table in tables for column in table.unbind(-1))


def _disc(values: Tensor) -> Tensor:
    """Bars from any numbers."""
    return torch.stack([values[..., 0], values[..., 0] + values[..., 1].abs() + 0.1], -1)


def _matched(norm: float, p: float) -> object:
    def reference(a: Tensor, b: Tensor) -> Tensor:
        first, second = _disc(a).numpy(), _disc(b).numpy()
        m, k = len(first), len(second)
        costs = np.zeros((m + k, m + k))
        for i in range(m):
            costs[i, :k] = np.linalg.norm(first[i] - second, norm, axis=1)
            costs[i, k:] = np.linalg.norm(first[i] - first[i].mean(), norm)
        for j in range(k):
            costs[m:, j] = np.linalg.norm(second[j] - second[j].mean(), norm)
        if np.isinf(p):  # the least threshold at which nothing above it has to be taken
            for t in np.unique(costs):
                rows, columns = linear_sum_assignment(costs > t)
                if not (costs > t)[rows, columns].any():
                    return torch.tensor(t)
        rows, columns = linear_sum_assignment(costs**p)
        return torch.tensor((costs[rows, columns] ** p).sum() ** (1 / p))

    return reference


def _two_diagrams(g: torch.Generator) -> list[Call]:
    return [
        Call(tuple(torch.rand(m, 2, generator=g, dtype=torch.float64) for m in sizes)) for sizes in ((4, 3), (2, 5))
    ]


def _two_spaces(g: torch.Generator) -> list[Call]:
    x, z = (torch.rand(7, d, generator=g, dtype=torch.float64) for d in (3, 2))
    return [Call((x, z))]


def _loss(match: str, degrees: tuple[int, ...]) -> object:
    def block(x: Tensor, z: Tensor) -> Tensor:
        a, b = (topology.pairwise_distances(points) for points in (x, z))
        stream = torch.Generator().manual_seed(0)
        return topology.topological_signature_loss(a, b, match=match, degrees=degrees, generator=stream)

    return block


def _loss_reference(x: Tensor, z: Tensor) -> Tensor:
    a, b = torch.cdist(x, x), torch.cdist(z, z)
    total = torch.zeros((), dtype=a.dtype)
    for own in (a, b):
        rows, columns = map(torch.from_numpy, minimum_spanning_tree(own.numpy()).nonzero())
        total = total + 0.5 * (a[rows, columns] - b[rows, columns]).square().sum()
    return total


def _diagram_reference(x: Tensor, z: Tensor) -> Tensor:
    lengths = [np.sort(minimum_spanning_tree(torch.cdist(p, p).numpy()).data) for p in (x, z)]
    m = len(lengths[0])
    costs = np.zeros((2 * m, 2 * m))
    costs[:m, :m] = np.abs(lengths[0][:, None] - lengths[1])
    costs[:m, m:], costs[m:, :m] = lengths[0][:, None] / 2**0.5, lengths[1] / 2**0.5
    rows, columns = linear_sum_assignment(costs**2)
    return torch.tensor(0.5 * (costs[rows, columns] ** 2).sum())


def _neighbour_ranks(x: Tensor) -> np.ndarray:
    d = torch.cdist(x, x).numpy()
    n = len(d)
    nearer = [[sum(d[i, other] < d[i, j] for other in range(n) if other != i) for j in range(n)] for i in range(n)]
    return np.array(nearer) + 1


def _trust_reference(x: Tensor, z: Tensor, k: int) -> Tensor:
    of_x, of_z, n = _neighbour_ranks(x), _neighbour_ranks(z), len(x)
    others = [(i, j) for i in range(n) for j in range(n) if i != j and of_z[i, j] <= k]
    total = sum(max(0, of_x[i, j] - k) for i, j in others)
    return torch.tensor(1 - 2 / (n * k * (2 * n - 3 * k - 1)) * total)


def _residuals_reference(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    k, n = 3, len(x)
    of_x, of_z = _neighbour_ranks(x), _neighbour_ranks(z)
    norm = n * sum(abs(n - 2 * i + 1) / i for i in range(1, k + 1))
    parts = []
    for own in (of_x, of_z):
        others = [(i, j) for i in range(n) for j in range(n) if i != j and own[i, j] <= k]
        parts.append(torch.tensor(sum(abs(of_x[i, j] - of_z[i, j]) / own[i, j] for i, j in others) / norm))
    return parts[0], parts[1]


def _density_reference(x: Tensor, z: Tensor) -> Tensor:
    densities = []
    for points in (x, z):
        d = torch.cdist(points, points)
        density = torch.exp(-((d / d.max()) ** 2) / 0.1).sum(1)
        densities.append(density / density.sum())
    return (densities[0] * (densities[0] / densities[1]).log()).sum()


_MATRIX = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
_BAD_DISTANCES = [
    (torch.ones(2, 3), ValueError, "must have shape"),
    (torch.ones(1, 1), ValueError, "at least 2 points"),
    (torch.tensor([[0.0, 1.0], [2.0, 0.0]]), ValueError, "must be symmetric"),
    (torch.tensor([[0.0, -1.0], [-1.0, 0.0]]), ValueError, "must be >= 0"),
    (torch.tensor([[0.0, torch.nan], [torch.nan, 0.0]]), ValueError, "must be finite"),
    (torch.ones(2, 2, dtype=torch.int64), TypeError, "must be a floating tensor"),
]

CONTRACTS = [
    *[
        Contract(
            f"topology.persistence[rips {degree} {backend}]",
            lambda x, degree=degree, backend=backend: _rips(x, degree, backend),
            _clouds(9, 2) if degree < 2 else _clouds(8, 3),
            reference=lambda x, degree=degree: _rips_reference(x, (degree,)),
            half=degree == 0,
            large_limit=1e36,
            batched=False,
            vmap=False,
            compile=False,
            why=_SHAPES + "; rounding to half precision makes ties, which close loops; distances overflow",
        )
        for degree, backend in ((0, "auto"), (1, "auto"), (0, "gudhi"), (1, "gudhi"), (1, "reference"), (2, "auto"))
    ],
    Contract(
        "topology.persistence[lower star]",
        lambda v: _bars(v, kind="lower_star", simplices=_TRIANGLES),
        _clouds(5),
        reference=_star_reference,
        half=True,
        bad=[
            Bad((torch.rand(4),), {}, ValueError, r"simplices must hold vertices below 4"),
            Bad((torch.tensor([0.0, 1, 2, 3, -torch.inf]),), {}, ValueError, "x must be finite"),
        ],
        **_OPEN,
    ),
    Contract(
        "topology.persistence[lower star gudhi]",
        lambda v: _bars(v, kind="lower_star", simplices=_TRIANGLES, backend="gudhi"),
        _clouds(5),
        reference=_star_reference,
        **_OPEN,
    ),
    *[
        Contract(
            f"topology.persistence[cubical {backend}]",
            lambda v, backend=backend: _bars(v, kind="cubical", backend=backend),
            _clouds(3, 4),
            reference=_cubical_reference,
            bad=[
                Bad((torch.rand(3),), {}, ValueError, "x must have 2 dimensions"),
                Bad((torch.rand(0, 3),), {}, ValueError, "x must not be empty"),
            ],
            **_OPEN,
        )
        for backend in ("auto", "reference")
    ],
    Contract(
        "topology.persistence[alpha]",
        lambda x: _bars(x, kind="alpha"),
        _clouds(7, 2),
        half=False,
        large_limit=1e15,
        batched=False,
        vmap=False,
        compile=False,
        why=_SHAPES + "; squared radii overflow; near-equal radii change places in half precision",
    ),
    Measurement(
        "topology.rips_pairs",
        lambda x: topology.rips_pairs(topology.pairwise_distances(x)),
        _clouds(9, 2),
        reference=lambda x: _tree(x),
        bad=[],
    ),
    Measurement(
        "topology.pair_simplices",
        lambda v: topology.pair_simplices(_FILLED, torch.cat([v[..., t].amax(-1) for t in _FILLED], -1)),
        _clouds(5),
        reference=lambda v: _partners(v),
        bad=[Bad((torch.tensor([0.0, 1, 2, 3, torch.nan]),), {}, ValueError, "values must not be NaN")],
    ),
    Contract(
        "topology.bottleneck_distance",
        lambda a, b: topology.bottleneck_distance(_disc(a), _disc(b)),
        _two_diagrams,
        reference=_matched(np.inf, np.inf),
        batched=False,
        vmap=False,
        compile=False,
        large=(),
        why="thresholds are looked at: not mapped, not compiled; lengths of bars beside the largest numbers overflow",
    ),
    *[
        Contract(
            f"topology.diagram_wasserstein[{p}, {q}]",
            lambda a, b, p=p, q=q: topology.diagram_wasserstein(_disc(a), _disc(b), p=p, q=q),
            _two_diagrams,
            reference=_matched(q, p),
            batched=False,
            vmap=False,
            compile=False,
            large=(),
            why="matchings are looked at; lengths of bars beside the largest numbers overflow",
        )
        for p, q in ((2.0, 2.0), (1.0, np.inf), (3.0, 1.0))
    ],
    Contract(
        "topology.diagram_wasserstein[sliced]",
        lambda a, b: topology.diagram_wasserstein(_disc(a), _disc(b), method="sliced", lines=7),
        _two_diagrams,
        batched=False,
        vmap=False,
        compile=False,
        large=(),
        why="the largest distance is looked at; lengths of bars beside the largest numbers overflow",
    ),
    Contract(
        "topology.topological_signature_loss",
        _loss("symmetric", (0,)),
        _two_spaces,
        reference=_loss_reference,
        compile=False,
        half=False,
        large_limit=1e15,
        batched=False,
        why="the tree is found outside of the graph; squares overflow; rounding changes the tree; both have the batch",
    ),
    Contract(
        "topology.topological_signature_loss[diagram]",
        _loss("diagram", (0,)),
        _two_spaces,
        reference=_diagram_reference,
        half=False,
        large_limit=1e15,
        batched=False,
        vmap=False,
        compile=False,
        why="matchings are looked at; squares overflow; both arguments have the batch",
    ),
    Contract(
        "topology.topological_signature_loss[cycles]",
        _loss("symmetric", (0, 1)),
        _two_spaces,
        half=False,
        large_limit=1e15,
        batched=False,
        vmap=False,
        compile=False,
        why=_SHAPES + "; squares overflow; rounding closes loops; both arguments have the batch",
    ),
    Contract(
        "topology.topological_signature_loss[random]",
        _loss("random", (0,)),
        _two_spaces,
        half=False,
        large_limit=1e15,
        batched=False,
        vmap=False,
        compile=False,
        why="it draws; squares overflow; both arguments have the batch",
    ),
    Contract(
        "topology.density_divergence",
        topology.density_divergence,
        _two_spaces,
        reference=_density_reference,
        batched=False,
        compile=False,
        why="both arguments have the batch; a custom derivative of distances",
        bad=[
            Bad((torch.rand(3, 2), torch.rand(4, 2)), {}, ValueError, "x and z must have the same points"),
            Bad((torch.rand(3, 2), torch.rand(3, 2)), {"sigma": 0.0}, ValueError, "sigma must be > 0"),
        ],
    ),
    Measurement(
        "topology.trustworthiness",
        lambda x, z: topology.trustworthiness(x, z, k=3),
        _two_spaces,
        reference=lambda x, z: _trust_reference(x, z, 3),
        bad=[
            Bad((torch.rand(6, 2), torch.rand(6, 2)), {}, ValueError, r"k must be in 1..2, got 3"),
            Bad((torch.rand(7, 2), torch.rand(8, 2)), {}, ValueError, "x and z must have the same points"),
        ],
    ),
    Measurement(
        "topology.continuity",
        lambda x, z: topology.continuity(x, z, k=3),
        _two_spaces,
        reference=lambda x, z: _trust_reference(z, x, 3),
    ),
    Measurement(
        "topology.rank_residuals",
        lambda x, z: topology.rank_residuals(x, z, k=3),
        _two_spaces,
        reference=_residuals_reference,
    ),
]


def _tree(x: Tensor) -> Tensor:
    tree = minimum_spanning_tree(torch.cdist(x, x).numpy())
    pairs = np.stack(tree.nonzero(), 1)
    return torch.from_numpy(np.sort(pairs[np.argsort(tree.data)], 1).astype(np.int64))


def _partners(v: Tensor) -> Tensor:
    """By ranks: a simplex kills what its boundary adds to the span of the boundaries before it."""
    cells = [tuple(sorted(row)) for table in _FILLED for row in table.tolist()]
    values = [max(v[list(s)].tolist()) for s in cells]
    order = sorted(range(len(cells)), key=lambda c: (values[c], c))
    place = {cells[c]: i for i, c in enumerate(order)}
    columns: dict[int, set[int]] = {}
    partner = torch.full((len(cells),), -1)
    for c in order:
        column = {place[f] for f in combinations(cells[c], len(cells[c]) - 1) if f}
        while column and max(column) in columns:
            column ^= columns[max(column)]
        if column:
            columns[max(column)] = column
            partner[c], partner[order[max(column)]] = order[max(column)], c
    return partner


CONTRACTS += [
    Measurement(
        "topology.persistence[refusals]",
        lambda d, **options: topology.persistence(d, **options)[0].death,
        lambda g: [Call((_MATRIX,))],
        reference=lambda d: torch.ones(1),
        layouts=False,
        why="a measurement of one matrix, for what is refused",
        bad=[
            *[Bad((d,), {}, error, match) for d, error, match in _BAD_DISTANCES],
            Bad((_MATRIX,), {"degrees": (0, 0)}, ValueError, "degrees must be different"),
            Bad((_MATRIX,), {"degrees": (-1,)}, ValueError, "degrees must be in"),
            Bad((_MATRIX,), {"degrees": 1}, TypeError, "degrees must be a sequence"),
            Bad((_MATRIX,), {"kind": "cech"}, ValueError, "kind"),
            Bad((_MATRIX,), {"backend": "ripser"}, ValueError, "backend"),
            Bad((_MATRIX,), {"simplices": [torch.tensor([[0, 1]])]}, ValueError, "simplices must be given for kind"),
            Bad(([],), {}, ValueError, "x must have at least one element"),
        ],
    ),
]

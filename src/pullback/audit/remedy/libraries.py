"""Calls of other libraries that torch has no like of: assignments, transport, diagrams, neighbours, segments."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator

from pullback.audit.remedy.departures import stay
from pullback.audit.remedy.draft import Draft
from pullback.audit.remedy.syntax import called
from pullback.audit.remedy.template import SMALL, Place, Template

__all__ = ["TEMPLATES"]

_Arguments = dict[str, ast.expr]
_POOLS = {"global_add_pool": "sum", "global_mean_pool": "mean", "global_max_pool": "max"}
_LEFT = ("cut.numpy", "cut.detach", "cut.item", "cut.rebuild")


def _call(
    names: tuple[str, ...],
    parameters: tuple[str, ...],
    needed: int,
    write: Callable[[Draft, _Arguments], str],
    fits: Callable[[_Arguments], bool] = lambda found: True,
) -> Callable[[Place], Iterator[Draft]]:
    """Rewrite the calls of a statement whose arguments are known, the first ``needed`` of them given."""

    def rewrite(place: Place) -> Iterator[Draft]:
        for node in ast.walk(place.source.statement(place.node)):
            if not isinstance(node, ast.Call) or called(node) not in names:
                continue
            found = _arguments(node, parameters)
            if found is None or not set(parameters[:needed]) <= set(found) or not fits(found):
                continue
            draft = Draft(place.source)
            for argument in found.values():
                stay(draft, argument)
            draft.put(node, lambda d=draft, f=found: write(d, f))  # type: ignore[misc]
            yield draft

    return rewrite


def _arguments(call: ast.Call, parameters: tuple[str, ...]) -> _Arguments | None:
    """The arguments of a call by name, ``None`` if one is not in ``parameters`` or there twice."""
    if len(call.args) > len(parameters) or any(isinstance(a, ast.Starred) for a in call.args):
        return None
    found = dict(zip(parameters, call.args, strict=False))
    for keyword in call.keywords:
        if keyword.arg not in parameters or keyword.arg in found:
            return None
        found[keyword.arg] = keyword.value
    return found


def _listed(draft: Draft, found: _Arguments, names: dict[str, str]) -> str:
    """The arguments in the order of ``names``: as they are, or by the keyword that stands there."""
    given = [(keyword, draft.text(found[name])) for name, keyword in names.items() if name in found]
    return ", ".join(f"{keyword}={text}" if keyword else text for keyword, text in given)


def _assignment(draft: Draft, found: _Arguments) -> str:
    names = {"cost_matrix": "", "maximize": "maximize"}
    return f"{draft.block('transport.assignment')}({_listed(draft, found, names)})[:2]"


def _exact(field: str) -> Callable[[Draft, _Arguments], str]:
    def write(draft: Draft, found: _Arguments) -> str:
        arguments = _listed(draft, found, {"M": "", "a": "", "b": ""})
        return f"{draft.block('transport.exact_transport')}({arguments}).{field}"

    return write


def _entropic(draft: Draft, found: _Arguments) -> str:
    names = {"M": "", "a": "", "b": "", "reg": "epsilon"}
    return f"{draft.block('transport.sinkhorn')}({_listed(draft, found, names)}).plan"


def _line(draft: Draft, found: _Arguments) -> str:
    names = {"u_values": "", "v_values": "", "u_weights": "a", "v_weights": "b"}
    return f"{draft.block('transport.wasserstein_1d')}({_listed(draft, found, names)}, p=1.0)"


def _segments(draft: Draft, values: str, index: str, count: str | None, reduce: str) -> str:
    count = count or f"int({index}.max()) + 1"
    return f"{draft.block('topology.segment_reduce')}({values}, {index}, {count}, reduce={reduce})"


def _along_first(found: _Arguments) -> bool:
    """Whether the dimension is 0, as that of ``segment_reduce`` is; tensors' own ``scatter`` has other parameters."""
    return isinstance(found["dim"], ast.Constant) and found["dim"].value == 0


def _scatter(draft: Draft, found: _Arguments) -> str:
    count = draft.text(found["dim_size"]) if "dim_size" in found else None
    reduce = draft.text(found["reduce"]) if "reduce" in found else '"sum"'
    reduce = '"sum"' if reduce.strip("\"'") == "add" else reduce
    return _segments(draft, draft.operand(found["src"]), draft.operand(found["index"]), count, reduce)


def _pooled(place: Place) -> Iterator[Draft]:
    for name, reduce in _POOLS.items():

        def write(draft: Draft, found: _Arguments, reduce: str = reduce) -> str:
            count = draft.text(found["size"]) if "size" in found else None
            return _segments(draft, draft.operand(found["x"]), draft.operand(found["batch"]), count, f'"{reduce}"')

        yield from _call((name,), ("x", "batch", "size"), 2, write)(place)


def _bars(place: Place) -> Iterator[Draft]:
    """``ripser(x)["dgms"]``: a list of diagrams, degree by degree, each ``[bars, 2]``."""
    for node in ast.walk(place.source.statement(place.node)):
        if not isinstance(node, ast.Subscript) or called(node.value) != "ripser":
            continue
        key = node.slice.value if isinstance(node.slice, ast.Constant) else None
        found = _arguments(node.value, ("X", "maxdim"))  # type: ignore[arg-type]
        if key != "dgms" or found is None or "X" not in found:
            continue
        draft = Draft(place.source)
        stay(draft, found["X"])

        def text(draft: Draft = draft, found: _Arguments = found) -> str:
            torch, bars = draft.module("torch"), draft.block("topology.persistence")
            distances = f"{draft.block('topology.pairwise_distances')}({draft.text(found['X'])})"
            highest = draft.text(found["maxdim"]) if "maxdim" in found else "1"
            degrees = f"range({int(highest) + 1 if highest.isdecimal() else f'{highest} + 1'})"
            diagrams = f"{bars}({distances}, degrees={degrees}, essential=True)"
            return f"[{torch}.stack([bars.birth, bars.death], -1) for bars in {diagrams}]"

        draft.put(node, text)
        yield draft


def _neighbors(place: Place) -> Iterator[Draft]:
    """``NearestNeighbors(n_neighbors=k).fit(x).kneighbors()``: distances and indices, without the point itself."""
    for node in ast.walk(place.source.statement(place.node)):
        if not isinstance(node, ast.Call) or called(node) != "kneighbors" or node.args or node.keywords:
            continue
        fit = node.func.value  # type: ignore[attr-defined]
        if called(fit) != "fit" or len(fit.args) != 1 or called(fit.func.value) != "NearestNeighbors":
            continue
        count = _arguments(fit.func.value, ("n_neighbors",))
        if not count:
            continue
        draft = Draft(place.source)
        stay(draft, fit.args[0])

        def text(draft: Draft = draft, x: ast.expr = fit.args[0], count: ast.expr = count["n_neighbors"]) -> str:
            return f"{draft.block('topology.neighbor_candidates')}({draft.text(x)}, {draft.text(count)})[::-1]"

        draft.put(node, text)
        yield draft


TEMPLATES = {
    "assignment": Template(
        "transport.assignment",
        "The same rows and columns for a whole batch; `.value` is the total cost with its gradient, and "
        "`transport.sinkhorn` a soft matching.",
        _LEFT,
        ("linear_sum_assignment", "hungarian", "assignment", "matching", "lap", "lapjv"),
        "rows, columns = linear_sum_assignment(cost.detach().numpy())",
        _call(("linear_sum_assignment",), ("cost_matrix", "maximize"), 1, _assignment),
    ),
    "exact_transport": Template(
        "transport.exact_transport",
        "The optimal plan, its cost and the potentials, with gradients to cost and masses.",
        _LEFT,
        ("emd", "emd2", "earth_mover", "optimal_transport"),
        "total = ot.emd2(a.detach().numpy(), b.detach().numpy(), cost.detach().numpy())",
        lambda place: (
            draft
            for name, field in (("emd2", "value"), ("emd", "plan"))
            for draft in _call((name,), ("a", "b", "M"), 3, _exact(field))(place)
        ),
    ),
    "sinkhorn": Template(
        "transport.sinkhorn",
        "A plan with entropy, in the log domain, differentiated at its fixed point instead of through all sweeps.",
        _LEFT,
        ("sinkhorn", "sinkhorn2", "sinkhorn_knopp", "doubly_stochastic"),
        "plan = ot.sinkhorn(a, b, cost, 0.05)",
        _call(("sinkhorn",), ("a", "b", "M", "reg"), 4, _entropic),
        SMALL,
    ),
    "wasserstein_1d": Template(
        "transport.wasserstein_1d",
        "The distance between two samples on a line, with gradients to points and masses.",
        _LEFT,
        ("wasserstein_distance", "wasserstein"),
        "distance = wasserstein_distance(x.detach().numpy(), y.detach().numpy())",
        _call(("wasserstein_distance",), ("u_values", "v_values", "u_weights", "v_weights"), 2, _line),
    ),
    "persistence": Template(
        "topology.persistence",
        "The same diagrams as tensors: births and deaths are gathered from the distances and pass gradients to them.",
        _LEFT,
        ("persistence", "persistent_homology", "ripser", "persistence_diagram", "vietoris_rips", "gudhi", "betti"),
        'diagrams = ripser(x.detach().numpy(), maxdim=1)["dgms"]',
        _bars,
    ),
    "neighbors": Template(
        "topology.neighbor_candidates",
        "The nearest points, distances with a gradient; `topology.adaptive_neighborhood` learns how many to keep.",
        _LEFT,
        ("knn", "knn_graph", "kneighbors", "nearest_neighbors", "kneighbors_graph", "nearestneighbors", "knn_points"),
        "distances, index = NearestNeighbors(n_neighbors=5).fit(x.detach().numpy()).kneighbors()",
        _neighbors,
    ),
    "segments": Template(
        "topology.segment_reduce",
        "Sums, means and extrema of segments; ties of an extremum share its gradient, empty segments are 0.",
        (),
        ("scatter", "scatter_reduce", "scatter_add", "index_add", "index_reduce", "segment_csr", "segment"),
        'pooled = scatter(x, index, dim=0, dim_size=n, reduce="max")',
        _call(("scatter",), ("src", "index", "dim", "dim_size", "reduce"), 3, _scatter, _along_first),
    ),
    "pooling": Template(
        "topology.segment_reduce",
        "The same pooling; `topology.GeneralizedNormPool` learns whether to be a sum, a mean, a maximum or a minimum.",
        (),
        (*_POOLS, "global_sort_pool", "readout", "pooling"),
        "pooled = global_max_pool(x, batch)",
        _pooled,
    ),
}

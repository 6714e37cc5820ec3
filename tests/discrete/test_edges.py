"""The edges of every public block in one table: empty and single entries, ties, infinities, half precision, arguments
of the wrong kind.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from pullback import discrete

INF = math.inf


@dataclass(frozen=True)
class Edge:
    """How a block is called with one tensor, and what torch's operation would return.

    Attributes:
        call: ``(x, **options)``; a block along a dimension gets ``dim`` among the options.
        hard: ``(x)``, or ``(x, dim)``, the operation of torch: its shape is the block's; along a dimension of size 1
            its values are the block's, and where it is NaN on an infinite input the block may be.
        argument: the name under which the block refuses an integer tensor.
        along: works along ``dim`` (or, with ``"last"``, along the last dimension).
        probability: takes probabilities.
    """

    call: Callable[..., Any]
    hard: Callable[..., Tensor]
    argument: str = "x"
    along: bool | str = False
    probability: bool = False


def _g() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _elementwise(name: str, hard: Callable[..., Tensor], *operands: Any, **kinds: Any) -> Edge:
    block = getattr(discrete, name)
    return Edge(lambda x, **o: block(x, *operands, **o), hard, **kinds)


def _one_hot(x: Tensor, dim: int = -1) -> Tensor:
    if not x.numel():
        return x
    return torch.zeros_like(x).scatter(dim, x.argmax(dim, keepdim=True), 1.0)


def _matrix(x: Tensor, dim: int = -1) -> Tensor:
    return torch.eye(x.shape[dim], dtype=x.dtype)[x.movedim(dim, -1).argsort(-1)]


def _mask(x: Tensor, dim: int, largest: bool = True) -> Tensor:
    return torch.zeros_like(x).scatter(dim, x.topk(1, dim, largest).indices, 1.0) if x.numel() else x


def _places(x: Tensor, dim: int = -1) -> Tensor:
    return x.argsort(dim).argsort(dim).to(x.dtype)


def _dimension(name: str, hard: Callable[..., Tensor], *operands: Any, **kinds: Any) -> Edge:
    block = getattr(discrete, name)
    return Edge(lambda x, dim=-1, **o: block(x, *operands, dim=dim, **o), hard, along=kinds.pop("along", True), **kinds)


def _random(name: str, **kinds: Any) -> Edge:
    block = getattr(discrete, name)
    return Edge(lambda x, dim=-1, **o: block(x, dim=dim, generator=_g(), **o), _one_hot, "logits", True, **kinds)


TABLE: dict[str, Edge] = {
    "abs": _elementwise("abs", torch.abs),
    "all": _dimension("all", lambda p, dim: (p > 0.5).all(dim), argument="p", probability=True),
    "any": _dimension("any", lambda p, dim: (p > 0.5).any(dim), argument="p", probability=True),
    "argmax": _dimension("argmax", _one_hot),
    "argmin": _dimension("argmin", lambda x, dim: _one_hot(-x, dim)),
    "argsort": _dimension("argsort", _matrix),
    "bernoulli": Edge(
        lambda p, **o: discrete.bernoulli(p, generator=_g(), **o), lambda p: (p > 0.5).to(p.dtype), "p", False, True
    ),
    "categorical": _random("categorical"),
    "ceil": _elementwise("ceil", torch.ceil),
    "choose": Edge(
        lambda s, **o: discrete.choose(s, torch.linspace(1, 2, s.shape[-1], dtype=s.dtype), **o),
        lambda s: torch.linspace(1, 2, s.shape[-1], dtype=s.dtype)[s.argmax(-1)],
        "scores",
        "last",
    ),
    "clamp": _elementwise("clamp", lambda x: x.clamp(-1, 1), -1, 1),
    "count": _dimension("count", lambda p, dim: (p > 0.5).sum(dim), argument="p", probability=True),
    "embedding": Edge(
        lambda i, **o: discrete.embedding(i, torch.eye(3, dtype=_floating(i)), **o),
        lambda i: torch.eye(3, dtype=i.dtype)[i.round().clamp(0, 2).long()],
        "index",
    ),
    "entmax": _dimension("entmax", _one_hot),
    "entmax15": _dimension("entmax15", _one_hot),
    "equal": _elementwise("equal", lambda x: (x == 0.5).to(x.dtype), 0.5),
    "floor": _elementwise("floor", torch.floor),
    "fmod": _elementwise("fmod", lambda x: torch.fmod(x, 1.5), 1.5),
    "frac": _elementwise("frac", torch.frac),
    "gather": Edge(
        lambda x, dim=-1, **o: discrete.gather(x, dim, torch.zeros_like(x), **o),
        lambda x, dim: x.gather(dim, torch.zeros_like(x, dtype=torch.int64)),
        along=True,
    ),
    "greater": _elementwise("greater", lambda x: (x > 0.5).to(x.dtype), 0.5),
    "greater_equal": _elementwise("greater_equal", lambda x: (x >= 0.5).to(x.dtype), 0.5),
    "gumbel_softmax": _random("gumbel_softmax"),
    "heaviside": _elementwise("heaviside", lambda x: torch.heaviside(x, torch.full_like(x, 0.5))),
    "index_select": Edge(
        lambda x, dim=-1, **o: discrete.index_select(x, dim, torch.zeros(2, dtype=x.dtype), **o),
        lambda x, dim: x.index_select(dim, torch.zeros(2, dtype=torch.int64)),
        along=True,
    ),
    "isclose": _elementwise("isclose", lambda x: torch.isclose(x, torch.full_like(x, 0.5)).to(x.dtype), 0.5),
    "kthvalue": Edge(
        lambda x, dim=-1, **o: discrete.kthvalue(x, 1, dim, **o), lambda x, dim: x.kthvalue(1, dim).values, along=True
    ),
    "less": _elementwise("less", lambda x: (x < 0.5).to(x.dtype), 0.5),
    "less_equal": _elementwise("less_equal", lambda x: (x <= 0.5).to(x.dtype), 0.5),
    "logical_and": Edge(lambda p, **o: discrete.logical_and(p, p, **o), lambda p: p, "p", False, True),
    "logical_not": _elementwise("logical_not", lambda p: 1 - p, argument="p", probability=True),
    "logical_or": Edge(lambda p, **o: discrete.logical_or(p, p, **o), lambda p: p, "p", False, True),
    "logical_xor": Edge(lambda p, **o: discrete.logical_xor(p, p, **o), lambda p: 0 * p, "p", False, True),
    "lookup": Edge(
        lambda w, **o: discrete.lookup(w, torch.eye(w.shape[-1], dtype=w.dtype), **o),
        lambda w: w,
        "weights",
        "last",
        True,
    ),
    "masked_fill": Edge(
        lambda p, **o: discrete.masked_fill(torch.zeros_like(p, dtype=_floating(p)), p, 1.0, **o),
        lambda p: (p > 0.5).to(p.dtype),
        "mask",
        False,
        True,
    ),
    "masked_mean": Edge(
        lambda x, dim=-1, **o: discrete.masked_mean(x, torch.ones_like(x), dim, **o),
        lambda x, dim: x.mean(dim),
        along=True,
    ),
    "max": _dimension("max", lambda x, dim: x.max(dim).values),
    "maximum": _elementwise("maximum", lambda x: x.clamp(min=0.5), 0.5),
    "median": _dimension("median", lambda x, dim: x.median(dim).values),
    "min": _dimension("min", lambda x, dim: x.min(dim).values),
    "minimum": _elementwise("minimum", lambda x: x.clamp(max=0.5), 0.5),
    "multinomial": Edge(
        lambda p, **o: discrete.multinomial(p, 1, generator=_g(), **o),
        lambda p: _one_hot(p).unsqueeze(-2),
        "p",
        "last",
        True,
    ),
    "not_equal": _elementwise("not_equal", lambda x: (x != 0.5).to(x.dtype), 0.5),
    "one_hot": Edge(
        lambda i, **o: discrete.one_hot(i, 3, **o),
        lambda i: torch.eye(3, dtype=i.dtype)[i.round().clamp(0, 2).long()],
        "index",
    ),
    "partition": Edge(
        lambda x, dim=-1, **o: discrete.partition(x, 1, dim, **o).lower,
        lambda x, dim: _mask(x, dim, False),
        along=True,
    ),
    "permutation_loss": Edge(
        lambda s, **o: discrete.permutation_loss(
            torch.softmax(s.unsqueeze(-1) * torch.arange(1.0, s.shape[-1] + 1).to(s), -1)
            if s.is_floating_point()
            else torch.stack([s, s], -1)[..., : s.shape[-1]],
            torch.arange(s.shape[-1]).expand(s.shape),
            **o,
        ),
        lambda s: s.new_zeros(()),
        "permutation",
        "last",
        True,
    ),
    "permutation_matrix": Edge(lambda x, **o: discrete.permutation_matrix(x, **o), _matrix, along="last"),
    "project_permutahedron": Edge(
        lambda z, **o: discrete.project_permutahedron(z, torch.zeros_like(z, dtype=torch.float16), **o).to(z.dtype),
        lambda z: 0 * z,
        "z",
        "last",
        True,
    ),
    "quantile": Edge(
        lambda x, dim=-1, **o: discrete.quantile(x, 0.5, dim, **o),
        lambda x, dim: x.double().quantile(0.5, dim) if x.numel() else x.sum(dim),
        along=True,
    ),
    "rank": _dimension("rank", _places),
    "reinmax": Edge(
        lambda x, dim=-1, **o: tuple(discrete.reinmax(x, dim=dim, generator=_g(), **o)), _one_hot, "logits", True
    ),
    "relu": _elementwise("relu", torch.relu),
    "remainder": _elementwise("remainder", lambda x: torch.remainder(x, 1.5), 1.5),
    "round": _elementwise("round", torch.round),
    "sign": _elementwise("sign", torch.sign),
    "soft_step": _elementwise("soft_step", lambda x: torch.heaviside(x, torch.full_like(x, 0.5))),
    "soft_swap": Edge(lambda x, **o: tuple(discrete.soft_swap(x, x * 0.5, **o)), lambda x: x, "a"),
    "soft_topk": Edge(
        lambda x, dim=-1, **o: discrete.soft_topk(x, 1, dim, **o), lambda x, dim: _mask(x, dim), along=True
    ),
    "sort": Edge(
        lambda x, dim=-1, **o: discrete.sort(x, dim, **o).values, lambda x, dim: x.sort(dim).values, along=True
    ),
    "sort_by": Edge(
        lambda x, dim=-1, **o: discrete.sort_by(x, torch.ones_like(x, dtype=_floating(x)), dim, **o),
        lambda x, dim: torch.ones_like(x),
        "key",
        True,
    ),
    "sorting_network": Edge(
        lambda x, dim=-1, **o: discrete.sorting_network(x, dim, **o).values,
        lambda x, dim: x.sort(dim).values,
        along=True,
    ),
    "sparsemax": _dimension("sparsemax", _one_hot),
    "straight_through": Edge(lambda x, **_: discrete.straight_through(x > 0, x), lambda x: (x > 0).to(x.dtype), "soft"),
    "take": Edge(
        lambda i, **o: discrete.take(torch.arange(3.0, dtype=_floating(i)), i, **o),
        lambda i: i.round().clamp(0, 2),
        "index",
    ),
    "take_along_dim": Edge(
        lambda x, dim=-1, **o: discrete.take_along_dim(x, torch.zeros_like(x), dim, **o),
        lambda x, dim: x.gather(dim, torch.zeros_like(x, dtype=torch.int64)),
        along=True,
    ),
    "topk": Edge(
        lambda x, dim=-1, **o: discrete.topk(x, 1, dim, **o).values, lambda x, dim: x.topk(1, dim).values, along=True
    ),
    "trunc": _elementwise("trunc", torch.trunc),
    "where": Edge(
        lambda p, **o: discrete.where(p, 1.0, 0.0, **o), lambda p: (p > 0.5).to(p.dtype), "condition", False, True
    ),
}
WITHOUT_INPUT = {"comparators": "takes a size", "gumbel_noise": "takes a shape", "ordering_metrics": "gives numbers"}


def _floating(x: Tensor) -> torch.dtype:
    return x.dtype if x.is_floating_point() else torch.float32


@pytest.fixture(autouse=True)
def without_shape_checks() -> Iterator[None]:
    """The block's own checks speak."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def _each(condition: Callable[[str], bool] = lambda name: True) -> Any:
    return pytest.mark.parametrize("name", [name for name in TABLE if condition(name)])


def _takes(option: str) -> Callable[[str], bool]:
    return lambda name: option in inspect.signature(getattr(discrete, name)).parameters


def _along(name: str) -> bool:
    return bool(TABLE[name].along)


def _dims(edge: Edge, x: Tensor) -> list[dict[str, int]]:
    return [{"dim": d} for d in range(-1, x.ndim - 1)] if edge.along is True else [{}]


def _parts(result: Any) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else tuple(result)


def _input(edge: Edge, *values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.tensor(values, dtype=torch.float64)
    return (torch.sigmoid(x) if edge.probability else x).to(dtype).requires_grad_()


def _options(name: str, methods: bool = True) -> list[dict[str, Any]]:
    """The default, every method, the hard form and the hard limit, as far as the block has them."""
    block = getattr(discrete, name)
    options: list[dict[str, Any]] = [{}]
    if methods and _takes("method")(name):
        try:
            block(torch.tensor([0.5]), **_needed(name), method="no such method")
        except ValueError as error:
            listed = str(error).split("got ")[0]
            options += [{"method": word} for word in listed.split("'")[1::2]]
    if _takes("hard")(name) and name != "straight_through":
        options.append({"hard": True})
    if _takes("temperature")(name) and name not in ("reinmax", "categorical"):
        options.append({"temperature": 0.0})
    return options


def _needed(name: str) -> dict[str, Any]:
    given = {
        "k": 1,
        "q": 0.5,
        "dim": 0,
        "other": 0.5,
        "divisor": 1.5,
        "num_samples": 1,
        "num_classes": 3,
        "values": torch.tensor([0.5]),
        "index": torch.tensor([0.0]),
        "weight": torch.eye(3),
        "table": torch.eye(2),
        "mask": torch.tensor([0.5, 0.5]),
        "value": 0.0,
        "target": torch.tensor([0, 1]),
        "w": torch.zeros(2),
        "b": torch.zeros(2),
        "x": 1.0,
    }
    parameters = list(inspect.signature(getattr(discrete, name)).parameters.values())[1:]
    needed = {p.name for p in parameters if p.default is inspect.Parameter.empty}
    if needed & {"q"} and name.startswith("logical"):
        given["q"] = torch.tensor([0.5])
    return {key: value for key, value in given.items() if key in needed}


def test_every_public_block_is_in_the_table() -> None:
    public = [name for name in discrete.__all__ if callable(getattr(discrete, name))]
    blocks = {name for name in public if not isinstance(getattr(discrete, name), type)}
    assert blocks == set(TABLE) | set(WITHOUT_INPUT)


@_each()
@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)], ids=str)
def test_empty_inputs_keep_their_shape_or_are_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    edge = TABLE[name]
    x = torch.zeros(shape, requires_grad=True)
    for dim in _dims(edge, x):
        nothing_along = bool(edge.along) and shape[dim.get("dim", -1)] == 0
        for options in _options(name):
            try:
                parts = _parts(edge.call(x, **dim, **options))
            except ValueError as error:
                if nothing_along and str(error).startswith(_REFUSED):
                    continue
                raise
            assert {p.shape for p in parts} == {edge.hard(x.detach(), **dim).shape}, (dim, options)
            connected = [p.sum() for p in parts if p.requires_grad]
            if connected:
                (gradient,) = torch.autograd.grad(sum(connected), x, allow_unused=True)
                assert gradient is None or gradient.shape == shape


_REFUSED = (
    "x must not be empty",
    "x must have at least one",
    "scores must have at least one",
    "logits must have at least one class",
    "weight must have at least one row",
    "k must be in",
    "num_samples must be at most the number of classes 0",
)


@_each(_along)
def test_a_single_entry_is_exact(name: str) -> None:
    edge = TABLE[name]
    x = _input(edge, 0.75, -1.5).unsqueeze(0 if edge.along is True else -1)
    dim = {"dim": 0} if edge.along is True else {}
    hard = edge.hard(x.detach(), **dim)
    for options in _options(name):
        if name in ("all", "any", "count", "lookup") and not options.get("hard"):
            hard_now = x.detach().squeeze(0) if name != "lookup" else hard
        else:
            hard_now = hard
        for part in _parts(edge.call(x, **dim, **options)):
            torch.testing.assert_close(part.detach(), hard_now.to(part.dtype), rtol=1e-12, atol=1e-12)


@_each()
@pytest.mark.parametrize("values", [(0.5, 0.5, 0.5, 0.5), (1.0, 0.0, 1.0, 0.0), (0.0, -0.0, 0.5, 0.5)], ids=str)
def test_ties_have_finite_values_and_gradients(name: str, values: tuple[float, ...]) -> None:
    edge = TABLE[name]
    for options in _options(name):
        x = _input(edge, *values)
        parts = _parts(edge.call(x, **options))
        assert all(torch.isfinite(p).all() for p in parts), options
        _finite_gradient(parts, x, options)


def _finite_gradient(parts: tuple[Tensor, ...], x: Tensor, options: dict[str, Any]) -> None:
    connected = [p for p in parts if p.requires_grad]
    if not connected:
        return
    weights = [torch.linspace(1, 2, p.numel(), dtype=p.dtype).view(p.shape) for p in connected]
    # An infinite value has no finite cotangent that means anything: it is left out of the loss.
    total = sum((w * torch.where(torch.isfinite(p), p, 0.0)).sum() for p, w in zip(connected, weights, strict=True))
    (gradient,) = torch.autograd.grad(total, x, allow_unused=True)
    assert gradient is None or torch.isfinite(gradient).all(), (options, gradient)


_FINITE_ONLY = {
    "project_permutahedron": "z must be finite",
    "categorical": "logits must have a finite largest",
    "gumbel_softmax": "logits must have a finite largest",
    "reinmax": "logits must have a finite largest",
}
_LOOKUPS = ("gather", "index_select", "take_along_dim")
_NAN_ROWS = ("entmax", "entmax15", "sparsemax", "permutation_loss", "lookup")


@_each()
@pytest.mark.parametrize("values", [(INF, -INF, 0.25, 0.5), (-INF, 0.25, 1.5, -INF), (INF, INF, 0.25, 0.0)], ids=str)
def test_infinities_bring_no_nan(name: str, values: tuple[float, ...]) -> None:
    edge = TABLE[name]
    for options in _options(name):
        x = _input(edge, *values)
        if name in _FINITE_ONLY and not torch.isfinite(x).all() and (name == "project_permutahedron" or INF in values):
            with pytest.raises(ValueError, match=_FINITE_ONLY[name]):
                edge.call(x, **options)
            continue
        if name in _NAN_ROWS and INF in values and not edge.probability:
            continue  # a row without a finite largest entry is no distribution: documented as NaN
        if name in _LOOKUPS and {INF, -INF} <= set(values) and options in ({}, {"method": "softmax"}):
            continue  # all entries have a weight > 0, and the mean of opposite infinities is no number
        parts = _parts(edge.call(x, **options))
        dim = {"dim": -1} if edge.along is True else {}
        allowed = edge.hard(x.detach(), **dim).isnan()
        for part in parts:
            assert not (part.isnan() & ~allowed).any(), (options, part)
        if not allowed.any():
            _finite_gradient(parts, x, options)


@_each()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_stays(name: str, dtype: torch.dtype) -> None:
    edge = TABLE[name]
    for options in _options(name):
        x = _input(edge, 0.75, -1.5, 2.0, 0.25, dtype=dtype)
        parts = _parts(edge.call(x, **options))
        assert {p.dtype for p in parts} == {dtype}, options
        assert all(torch.isfinite(p).all() for p in parts), options
        _finite_gradient(parts, x, options)


@_each()
def test_integers_are_refused_by_name(name: str) -> None:
    edge = TABLE[name]
    with pytest.raises(TypeError, match=rf"^{edge.argument} must be"):
        edge.call(torch.tensor([1, 0]))


@_each()
def test_a_list_is_refused_by_name(name: str) -> None:
    given = {"straight_through": {"soft": torch.zeros(2)}, "clamp": {"min": 0.0}}.get(name) or _needed(name)
    with pytest.raises(TypeError, match=r"^\w+ must be a (torch\.Tensor|floating tensor), got list"):
        getattr(discrete, name)([0.5, 0.25], **given)


@_each(_takes("temperature"))
@pytest.mark.parametrize("temperature", [-1.0, math.nan, INF])
def test_a_bad_temperature_is_refused(name: str, temperature: float) -> None:
    edge = TABLE[name]
    with pytest.raises(ValueError, match=f"^temperature must be >=? ?.*got {temperature}"):
        edge.call(_input(edge, 0.5, 0.25), temperature=temperature)


@_each(_takes("method"))
def test_an_unknown_method_is_refused_with_the_list(name: str) -> None:
    edge = TABLE[name]
    with pytest.raises(ValueError, match=r"^method must be one of '.*', got 'no such method'"):
        edge.call(_input(edge, 0.5, 0.25), method="no such method")


@_each(lambda name: TABLE[name].along is True)
def test_a_dimension_out_of_range_is_refused(name: str) -> None:
    edge = TABLE[name]
    with pytest.raises(IndexError, match=r"dim must be in \[-1, 0\] for shape \(2,\), got 5"):
        edge.call(_input(edge, 0.5, 0.25), dim=5)
    with pytest.raises(TypeError, match="dim must be an integer"):
        edge.call(_input(edge, 0.5, 0.25), dim=0.5)

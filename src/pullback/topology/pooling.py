"""Modules that pool the rows of each set, fixed or learned, and their exchange inside of a model."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pullback.core.checks import check_choice, check_floating, check_integer, check_shape
from pullback.core.shapes import Bool, Float, Int
from pullback.topology.norm_pool import norm_pool
from pullback.topology.segments import segment_reduce

__all__ = ["Exponents", "GeneralizedNormPool", "SegmentPool", "replace_pooling"]

_P_MIN = 0.1


class Exponents(NamedTuple):
    """The exponents of a :class:`GeneralizedNormPool`, one of each a half.

    Attributes:
        p: ``[1]`` or ``[2]`` of the norm.
        q: ``[1]`` or ``[2]`` of the size of a set.
    """

    p: Float[Tensor, "halves"]
    q: Float[Tensor, "halves"]


class SegmentPool(nn.Module):
    """Pool the rows of each set by a fixed reduction: :func:`segment_reduce` as a module.

    Args:
        reduce: ``"sum"``, ``"mean"``, ``"max"`` or ``"min"``.

    Raises:
        ValueError: ``reduce`` is unknown.

    Example:
        >>> SegmentPool("max")(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([0, 0, 1]), 2).flatten()
        tensor([2., 3.])
    """

    def __init__(self, reduce: str = "sum") -> None:
        super().__init__()
        check_choice("reduce", reduce, ("sum", "mean", "max", "min"))
        self.reduce = reduce

    def forward(self, x: Float[Tensor, "m *features"], index: Int[Tensor, "m"], count: int) -> Tensor:
        """Return ``[count, *features]``."""
        return segment_reduce(x, index, count, reduce=self.reduce)  # type: ignore[arg-type]

    def extra_repr(self) -> str:
        """Show the reduction."""
        return self.reduce


class GeneralizedNormPool(nn.Module):
    r"""Pool each set by :func:`norm_pool` with learned exponents, shared by all features.

    With ``split`` the features go in two halves: the first is pooled with :math:`p > 0` (sums, means, maxima), the
    second with :math:`p < 0` (minima, harmonic means), each with its own exponents, and a linear layer mixes both,
    which also gives back signs. Without, there is one norm whose sign is that of ``p_init``, and nothing else. As
    ``p`` cannot pass through 0, a sign is kept: :math:`|p|` moves in (0.1, ``p_max``) and :math:`q` freely,

    .. math:: |p| = 0.1 + (p_{max} - 0.1)\, \sigma(r), \qquad q = s.

    Both are few and act on everything, so they want a larger step than other parameters (ten times): see
    :meth:`parameter_groups`.

    Args:
        features: of an item; even with ``split``.
        split: two halves and the linear layer, or one norm.
        p_init: where ``|p|`` starts, 0.1 to ``p_max`` in magnitude; the sign is that of the norm where ``split`` is
            false.
        q_init: where ``q`` starts, finite.
        p_max: the largest ``|p|``, above 0.1.
        generator: of the linear layer's weights; torch's own by default.

    Raises:
        TypeError: ``features`` is no integer.
        ValueError: ``p_init`` is 0 or beyond ``p_max``, ``q_init`` is not finite, ``features`` is odd with ``split``.

    Example:
        >>> pool = GeneralizedNormPool(2, split=False, p_init=2.0)
        >>> pool(torch.tensor([[3.0, 1.0], [4.0, 1.0]])).detach()
        tensor([5.0000, 1.4142])
        >>> pool.exponents.q
        tensor([0.], grad_fn=<CloneBackward0>)

    References:
        Ko, Kwon, Shin, Lee (2021), Learning to pool in graph neural networks for extrapolation, section 4.
    """

    def __init__(
        self,
        features: int,
        *,
        split: bool = True,
        p_init: float = 1.0,
        q_init: float = 0.0,
        p_max: float = 50.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("features", features, 1)
        if split and features % 2:
            raise ValueError(f"features must be even with split=True, got {features}")
        if not (math.isfinite(p_max) and p_max > _P_MIN):
            raise ValueError(f"p_max must be a finite number > {_P_MIN}, got {p_max}")
        if not _P_MIN < abs(p_init) < p_max:
            raise ValueError(f"|p_init| must be between {_P_MIN} and p_max = {p_max}, got {p_init}")
        if not math.isfinite(q_init):
            raise ValueError(f"q_init must be finite, got {q_init}")
        share = (abs(p_init) - _P_MIN) / (p_max - _P_MIN)
        halves = 2 if split else 1
        self.features, self.p_max, self.split = features, p_max, split
        self.raw_p = nn.Parameter(torch.full((halves,), math.log(share / (1 - share))))
        self.raw_q = nn.Parameter(torch.full((halves,), float(q_init)))
        self.register_buffer("sign", torch.tensor([1.0, -1.0] if split else [math.copysign(1, p_init)]))
        self.mix = nn.Linear(features, features) if split else None
        if self.mix is not None and generator is not None:
            bound = features**-0.5
            for parameter in self.mix.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    @property
    def exponents(self) -> Exponents:
        """The exponents as they are now, with gradient: of the positive and the negative half, or of the one norm."""
        assert isinstance(self.sign, Tensor)
        return Exponents(self.sign * (_P_MIN + (self.p_max - _P_MIN) * self.raw_p.sigmoid()), self.raw_q.clone())

    def forward(
        self,
        x: Float[Tensor, "*shape"],
        index: Int[Tensor, "m"] | None = None,
        count: int | None = None,
        *,
        mask: Bool[Tensor, "*#sets"] | None = None,
    ) -> Float[Tensor, "*pooled"]:
        """Pool ``[m, features]`` by ``index`` to ``[count, features]``, or ``[*batch, n, features]`` along ``n``."""
        check_shape("x", check_floating("x", x), (None, self.features))
        p, q = self.exponents
        if self.mix is None:
            return norm_pool(x, index, count, p=p, q=q, mask=mask)
        p, q = (exponents.repeat_interleave(self.features // 2) for exponents in (p, q))
        mixed: Tensor = self.mix(norm_pool(x, index, count, p=p, q=q, mask=mask))
        return mixed

    @staticmethod
    def parameter_groups(model: nn.Module, lr: float, *, factor: float = 10.0) -> list[dict[str, Any]]:
        """Return what an optimizer takes: the exponents in ``model`` with ``factor`` times the step of the others.

        Example:
            >>> optimizer = torch.optim.Adam(GeneralizedNormPool.parameter_groups(GeneralizedNormPool(4), 1e-3))
            >>> [(len(group["params"]), group["lr"]) for group in optimizer.param_groups]
            [(2, 0.001), (2, 0.01)]
        """
        own = [p for m in model.modules() if isinstance(m, GeneralizedNormPool) for p in (m.raw_p, m.raw_q)]
        known = {id(p) for p in own}
        others = [p for p in model.parameters() if id(p) not in known]
        return [{"params": others, "lr": lr}, {"params": own, "lr": factor * lr}]

    def extra_repr(self) -> str:
        """Show the exponents."""
        p, q = self.exponents
        return f"p={[round(v, 3) for v in p.tolist()]}, q={[round(v, 3) for v in q.tolist()]}"


def replace_pooling(model: nn.Module, pool: nn.Module) -> list[str]:
    """Exchange every pooling module inside of ``model``, in place, for its own copy of ``pool``.

    Pooling modules are :class:`SegmentPool`, :class:`GeneralizedNormPool` and what is called like an aggregation of
    PyTorch Geometric, ``aggregation(x, index, ptr=None, dim_size=None, dim=-2)``: that of every layer of message
    passing is found, so a network of that library learns its pooling after one line.

    Args:
        model: any module; it is changed.
        pool: takes ``(x, index, count)``, such as a :class:`GeneralizedNormPool` of the width that is pooled.

    Returns:
        The names of the modules that were exchanged.

    Raises:
        TypeError: an argument is no module.
        ValueError: ``model`` has no pooling inside.

    Example:
        >>> model = nn.ModuleDict({"aggregate": SegmentPool("mean"), "head": nn.Linear(2, 1)})
        >>> replace_pooling(model, GeneralizedNormPool(2, split=False))
        ['aggregate']
        >>> model["aggregate"]
        GeneralizedNormPool(p=[1.0], q=[0.0])

    References:
        Fey, Lenssen (2019), Fast graph representation learning with PyTorch Geometric: the interface of aggregations.
    """
    for name, value in (("model", model), ("pool", pool)):
        if not isinstance(value, nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module, got {type(value).__name__}")
    found: list[tuple[str, nn.Module]] = []
    for name, module in model.named_modules():  # parents come before their children
        if name and _is_pooling(module) and not any(name.startswith(f"{outer}.") for outer, _ in found):
            found.append((name, module))
    if not found:
        raise ValueError(f"model has no pooling inside: {type(model).__name__}")
    for name, module in found:
        own = copy.deepcopy(pool)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, _Aggregation(own) if _is_aggregation(module) else own)
    return [name for name, _ in found]


class _Aggregation(nn.Module):
    """A pool behind the call of an aggregation of PyTorch Geometric."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(
        self,
        x: Tensor,
        index: Tensor | None = None,
        ptr: Tensor | None = None,
        dim_size: int | None = None,
        dim: int = -2,
        max_num_elements: int | None = None,
    ) -> Tensor:
        if index is None:
            if ptr is None:
                raise ValueError("index or ptr must say which rows are in a set")
            index = torch.arange(len(ptr) - 1, device=ptr.device).repeat_interleave(ptr.diff())
            dim_size = len(ptr) - 1 if dim_size is None else dim_size
        if dim_size is None:
            dim_size = int(index.max()) + 1 if len(index) else 0
        pooled: Tensor = self.pool(x.movedim(dim, 0), index, dim_size)
        return pooled.movedim(0, dim)


def _is_aggregation(module: nn.Module) -> bool:
    return {"index", "ptr", "dim_size"} <= set(inspect.signature(module.forward).parameters)


def _is_pooling(module: nn.Module) -> bool:
    return isinstance(module, SegmentPool | GeneralizedNormPool) or _is_aggregation(module)

"""Integer and boolean tensors that carry a soft counterpart: the distribution or probability behind their hard values.

A :class:`SoftIndex` or :class:`SoftBool` has the dtype, shape and values of the plain tensor that torch returned; only
operations under :class:`~pullback.relaxed` look at what it carries. Everywhere else it is the plain tensor.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from pullback.core.transforms import below_transforms as below_all_transforms
from pullback.core.transforms import physical, transform_running
from pullback.relax.internals import make_subclass, unseen, unseen_by_subclasses, version

__all__ = [
    "Distribution",
    "Lazy",
    "SoftBool",
    "SoftIndex",
    "SoftTensor",
    "Stale",
    "as_kind",
    "attach",
    "attached",
    "coin",
    "count_entries",
    "is_entered",
    "is_untouched",
    "plain",
    "tossed",
    "truth_values",
    "untouched",
]

T = TypeVar("T")

_thread = threading.local()


class _Touch:
    """Sets whether calls of this thread pass as they are, and restores it."""

    __slots__ = ("_before", "_plain", "_value")

    def __init__(self, value: bool, plain: bool) -> None:
        self._value = value
        self._plain = unseen_by_subclasses() if plain else None

    def __enter__(self) -> None:
        self._before = is_untouched()
        _thread.untouched = self._value
        if self._plain is not None:
            self._plain.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._plain is not None:
            self._plain.__exit__(*error)
        _thread.untouched = self._before


class _Settling(_Touch):
    """Untouched, and known to be: lazy values that are asked for within it need not see to that again."""

    __slots__ = ("_nested",)

    def __init__(self) -> None:
        super().__init__(True, True)

    def __enter__(self) -> None:
        super().__enter__()
        self._nested = getattr(_thread, "settling", False)
        _thread.settling = True

    def __exit__(self, *error: Any) -> None:
        _thread.settling = self._nested
        super().__exit__(*error)


def untouched(*, subclasses: bool = False) -> _Touch:
    """Within it every ``relaxed`` of this thread lets every call pass: soft counterparts are computed by plain code.

    With ``subclasses`` the tensor subclasses of others still see their calls.
    """
    return _Touch(True, not subclasses)


def is_untouched() -> bool:
    """Return whether calls pass as they are."""
    return getattr(_thread, "untouched", False)


def count_entries(change: int) -> None:
    """Count the contexts that are active in this thread."""
    _thread.entries = getattr(_thread, "entries", 0) + change


def is_entered() -> bool:
    """Return whether a context is active in this thread."""
    return getattr(_thread, "entries", 0) > 0


class Stale(Exception):
    """What a soft counterpart was to be computed from has been overwritten."""


class Lazy(Generic[T]):
    """A value computed on first use, under grad mode; what it is computed from comes first, in order, not by recursion.

    Args:
        compute: called once, without arguments; it may return another lazy value instead of its result.
        parents: the lazy values that ``compute`` asks for, or a function that returns them when they are wanted.

    Example:
        >>> one = Lazy(lambda: 1)
        >>> Lazy(lambda: one() + 2, [one])()
        3
    """

    __slots__ = ("__weakref__", "_compute", "_error", "_parents", "_value", "alone", "coin", "exclusive")

    def __init__(
        self, compute: Callable[[], T], parents: Sequence[Lazy[Any]] | Callable[[], Sequence[Lazy[Any]]] = ()
    ) -> None:
        self._compute: Callable[[], T] | None = compute
        self._parents = parents
        self._value: T | None = None
        self._error: Exception | None = None
        self.exclusive: int | None = None
        """Dimension along which at most one of the elements can have a given value, or be true."""
        self.alone = False
        """Whether it is known at once that every element of a mask is decided by itself."""
        self.coin: Lazy[Distribution] | None = None
        """The same probability as a distribution on false and true, made once: it is one choice."""
        if transform_running():  # levels of torch.func end before the value may be asked for
            self()

    def __call__(self) -> T:
        """Return the value.

        Raises:
            Exception: what ``compute`` raised, each time; :class:`Stale` where a source was overwritten before.
        """
        if self._compute is not None:
            if not torch.is_grad_enabled():
                with _Settling(), torch.enable_grad():
                    self._settle_in_order()
            elif getattr(_thread, "settling", False):
                self._settle_in_order()
            else:
                with _Settling():
                    self._settle_in_order()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def _settle_in_order(self) -> None:
        waiting: list[Lazy[Any]] = [self]
        while waiting:
            last = waiting[-1]
            if callable(last._parents):
                last._parents = last._parents()
            unknown = [parent for parent in last._parents if parent._compute is not None]
            if unknown:
                waiting.extend(unknown)
            else:
                last._settle()
                if last._compute is None:
                    waiting.pop()

    def _settle(self) -> None:
        if self._compute is None:
            return
        try:
            value = self._compute()
            if isinstance(value, Lazy):
                self._compute, self._parents = value, [value]
                return
            self._value = value
        except Exception as error:  # raised by whoever asks
            self._error = error.with_traceback(None)
        self._compute, self._parents = None, ()


class Distribution(NamedTuple):
    """The values a hard value could have taken, with their probabilities: its atoms.

    Attributes:
        probability: ``[*shape, n]`` floating. Elements along a dimension where it has size 1, or that it lacks in
            front, share one choice, as the entries of a looked-up row do; all others are independent.
        support: ``[n]`` or ``[*shape, n]``, of the dtype of the hard values; ``None`` means the positions ``0 .. n-1``.
        choice: whose choices these are, where they were moved: the probabilities ``[..., n]`` that were made first, and
            which of them, counted through, belongs to each element here.
        refines: the coarser choice that each of these contains, and how many follow each of its atoms: whether a value
            that jumps is above a threshold contains what the value is.
        tied: not independent after all: the places of one ordering, where whoever leaves one arrives at another.
    """

    probability: Tensor
    support: Tensor | None = None
    choice: tuple[Tensor, Tensor] | None = None
    refines: tuple[Distribution, int] | None = None
    tied: bool = False

    @property
    def size(self) -> int:
        """The number of atoms of an element."""
        return self.probability.shape[-1]

    @property
    def values(self) -> Tensor:
        """``[n]`` or ``[*shape, n]``."""
        if self.support is not None:
            return self.support
        return torch.arange(self.probability.shape[-1], device=self.probability.device)

    def mean(self) -> Tensor:
        """``[*shape]`` expected value."""
        values = self.values
        if values is truth_values(self.probability.device):
            return self.probability[..., 1]
        dtype = torch.promote_types(self.probability.dtype, values.dtype)
        if values.is_floating_point() and not bool(physical(values.isfinite()).all()):
            return self._mean_of_finite(dtype)
        if values.ndim == 1:
            return self.probability.to(dtype) @ values.to(dtype)
        return (self.probability * values.to(dtype)).sum(-1)

    def _mean_of_finite(self, dtype: torch.dtype) -> Tensor:
        """The mean of the finite values, NaN without a gradient where they are improbable.

        A jump to a value that is not finite (``0 / 0`` of counts) has no difference quotient.
        """
        finite = self.values.isfinite()
        p = torch.where(finite, self.probability, 0.0).to(dtype)
        total = p.sum(-1)
        likely = total.detach() > 1e-3
        mean = (p * torch.where(finite, self.values, 0.0).to(dtype)).sum(-1) / torch.where(likely, total, 1.0)
        return torch.where(likely, mean, torch.nan)

    def dense(self, size: int) -> Tensor:
        """``[*shape, size]`` the probability of each position of a dimension; negative ones count from the end.

        Values outside of the dimension count as the nearest end: they are what noise makes of an index at the border.
        """
        probability, values = self.probability, self.values
        if self.support is None and values.shape[0] == size:
            return probability
        values = torch.where(values < 0, values + size, values) if self.support is not None else values
        shape = torch.broadcast_shapes(probability.shape, values.shape)
        support = values.clamp(0, size - 1).expand(shape)
        zeros = probability.new_zeros((*shape[:-1], size))
        return zeros.scatter_add(-1, support, probability.expand(shape))


def coin(probability: Lazy[Tensor]) -> Lazy[Distribution]:
    """Return the distribution of a truth value: false or true."""
    if probability.coin is None:
        probability.coin = Lazy(lambda: tossed(probability()), [probability])
    return probability.coin


def tossed(p: Tensor) -> Distribution:
    """Return the distribution of truth values with the probability ``p`` of ``True``.

    Example:
        >>> tossed(torch.tensor(0.25)).probability.tolist()
        [0.75, 0.25]
    """
    return Distribution(torch.stack([1 - p, p], -1), truth_values(p.device))


@functools.cache
def truth_values(device: torch.device) -> Tensor:
    """``[2]``: false and true, always the same tensor."""
    with below_all_transforms():
        return torch.tensor([False, True], device=device)


class SoftTensor(Tensor):
    """What both have in common: plain values, what they carry, and the context that made them.

    They go on carrying it after that context has ended: a decorated function may return one.
    """

    _carried: Any
    _context: Any
    _data_version: int

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Go on as in the context that made the tensor, where none is active here."""
        context = None if is_untouched() else _context_of((args, kwargs))
        if context is not None:
            return context.relax(func, types, args, kwargs or {})
        with unseen_by_subclasses():
            return func(*args, **(kwargs or {}))

    def _carry(self, carried: Any, context: Any) -> None:
        self._carried = carried
        self._context = context
        self._data_version = version(self)

    def _current(self) -> Any:
        """What it carries.

        Raises:
            Stale: its values were changed in place by an operation that does not know about it.
        """
        if self._data_version != version(self):
            raise Stale("its values were changed in place where the context could not see it")
        return self._carried

    def depends_on(self) -> Tensor | None:
        """Return a float that depends on what this does; ``None`` where nothing is known of it any more."""
        try:
            late = self._current()
            value: Tensor = (late if isinstance(late, Lazy) else late[1])()
        except Exception:  # whatever a soft counterpart raises: the plain value is all that there is
            return None
        return value

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as the plain tensor: a graph cannot be pickled."""
        return plain(self).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> SoftTensor:
        """Copy the values; what they carry is shared, as with ``clone``."""
        copy = self.duplicate()
        memo[id(self)] = copy
        return copy

    def __copy__(self) -> SoftTensor:
        """Share the values, as a copy of a tensor does, and what they carry."""
        return _make(type(self), plain(self), self._carried, self._context)

    def __str__(self) -> str:
        return str(plain(self))

    def __format__(self, specification: str) -> str:
        return format(plain(self), specification)

    def duplicate(self) -> SoftTensor:
        """Return a copy of the values that carries the same."""
        with unseen():
            return _make(type(self), plain(self).clone(), self._carried, self._context)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"{type(self).__name__}({plain(self)!r})"


class SoftBool(SoftTensor):
    """A bool tensor that carries the probability of ``True``.

    Example:
        >>> import pullback
        >>> x = torch.tensor([-0.1, 2.0], requires_grad=True)
        >>> with pullback.relaxed():
        ...     mask = x > 0
        >>> mask.dtype, mask.tolist(), mask.probability.shape
        (torch.bool, [False, True], torch.Size([2]))
    """

    @property
    def probability(self) -> Tensor:
        """``[*shape]`` floating, with gradient."""
        value: Tensor = self._current()()
        return value

    @staticmethod
    def make(data: Tensor, probability: Lazy[Tensor], context: Any = None) -> SoftBool:
        """Return ``data`` carrying ``probability``."""
        return _make(SoftBool, data, probability, context)


class SoftIndex(SoftTensor):
    """An integer tensor that carries a distribution over its possible values, or at least their mean.

    Example:
        >>> import pullback
        >>> scores = torch.tensor([0.1, 0.9, 0.2], requires_grad=True)
        >>> with pullback.relaxed():
        ...     index = scores.argmax()
        >>> index.item(), index.distribution.probability.argmax().item()
        (1, 1)
    """

    @property
    def distribution(self) -> Distribution | None:
        """Probabilities and the values they belong to; ``None`` where only the mean is known, or they are too many."""
        lazy = self._current()[0]
        return None if lazy is None else lazy()

    @property
    def expected(self) -> Tensor:
        """``[*shape]`` floating, the expected value, with gradient."""
        value: Tensor = self._current()[1]()
        return value

    @property
    def has_distribution(self) -> bool:
        """Whether more than the expected value is known."""
        return self._carried[0] is not None

    @staticmethod
    def make(
        data: Tensor,
        distribution: Lazy[Any] | None = None,
        expected: Lazy[Tensor] | None = None,
        context: Any = None,
    ) -> SoftIndex:
        """Return ``data`` carrying a distribution, an expected value, or both."""
        if expected is None:
            assert distribution is not None
            shape = data.shape
            expected = Lazy(lambda: distribution().mean().expand(shape), [distribution])
        return _make(SoftIndex, data, (distribution, expected), context)


S = TypeVar("S", bound=SoftTensor)


def _make(kind: type[S], data: Tensor, carried: Any, context: Any) -> S:
    result: S = make_subclass(kind, data)
    result._carry(carried, context)
    return result


def as_kind(soft: SoftTensor, kind: type) -> SoftTensor:
    """Return a soft tensor that is of a subclass of ``Tensor`` as well, as torch's own result would be."""
    both = _kinds.get((type(soft), kind))
    if both is None:
        both = _kinds.setdefault((type(soft), kind), type(type(soft).__name__, (type(soft), kind), {}))
    carried, context = soft._current(), soft._context
    return _make(both, plain(soft), carried, context)


_kinds: dict[tuple[type, type], type] = {}


def _context_of(arguments: Any) -> Any:
    if isinstance(arguments, SoftTensor):
        return arguments._context
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    if isinstance(arguments, tuple | list):
        return next((c for c in map(_context_of, arguments) if c is not None), None)
    return None


def plain(value: Any) -> Any:
    """Return a soft tensor as the plain tensor that shares its memory; anything else as it is.

    Example:
        >>> type(plain(SoftBool.make(torch.tensor([True]), Lazy(lambda: torch.ones(1))))).__name__
        'Tensor'
    """
    if not isinstance(value, SoftTensor):
        return value
    with unseen():
        return value.as_subclass(Tensor)


class _Note:
    """Something known of a tensor, until it is changed in place; a saved tensor goes without it."""

    __slots__ = ("value", "version")

    def __init__(self, value: Any, count: int) -> None:
        self.value = value
        self.version = count

    def __reduce__(self) -> Any:
        return OrderedDict, ()


def attach(tensor: Tensor, name: str, value: Any) -> None:
    """Note ``value`` as the attribute ``name`` of a tensor."""
    tensor.__dict__[name] = _Note(value, version(tensor))


def attached(tensor: Any, name: str) -> Any:
    """Return what was noted of a tensor, ``None`` where nothing was or it was changed in place since."""
    if not isinstance(tensor, Tensor):
        return None
    note = tensor.__dict__.get(name)
    if note is None:
        return None
    return note.value if note.version == version(tensor) else None

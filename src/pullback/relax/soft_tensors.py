"""Integer and boolean tensors that carry a soft counterpart: the distribution or probability behind their hard values.

A :class:`SoftIndex` or :class:`SoftBool` has the dtype, shape and values of the plain tensor that torch returned; only
operations under :class:`~pullback.relaxed` look at what it carries. Everywhere else it is the plain tensor.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from pullback.core.transforms import transform_running

__all__ = [
    "Distribution",
    "Lazy",
    "SoftBool",
    "SoftIndex",
    "SoftTensor",
    "Stale",
    "force_pending",
    "is_untouched",
    "known_values",
    "plain",
    "remember_values",
    "remembered_values",
    "touched",
    "untouched",
]

T = TypeVar("T")

_thread = threading.local()


class _Touch:
    """Sets whether calls of this thread pass as they are, and restores it."""

    __slots__ = ("_before", "_plain", "_value")

    def __init__(self, value: bool, plain: bool) -> None:
        self._value = value
        self._plain = torch._C.DisableTorchFunctionSubclass() if plain else None

    def __enter__(self) -> None:
        self._before = is_untouched()
        _thread.untouched = self._value
        if self._plain is not None:
            self._plain.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._plain is not None:
            self._plain.__exit__(*error)
        _thread.untouched = self._before


def untouched(*, subclasses: bool = False) -> _Touch:
    """Within it every ``relaxed`` of this thread lets every call pass: soft counterparts are computed by plain code.

    With ``subclasses`` the tensor subclasses of others still see their calls.
    """
    return _Touch(True, not subclasses)


def touched() -> _Touch:
    """Within it calls are seen again."""
    return _Touch(False, False)


def is_untouched() -> bool:
    """Return whether calls pass as they are."""
    return getattr(_thread, "untouched", False)


class Stale(Exception):
    """What a soft counterpart was to be computed from has been overwritten."""


class Lazy(Generic[T]):
    """A value computed on first use, under grad mode, from tensors that must not have changed until then.

    Args:
        compute: called once, without arguments.
        sources: the tensors that ``compute`` reads.

    Example:
        >>> Lazy(lambda: 3)()
        3
    """

    __slots__ = ("__weakref__", "_compute", "_value", "_versions", "exclusive")

    def __init__(self, compute: Callable[[], T], sources: Sequence[Tensor] = ()) -> None:
        self._compute: Callable[[], T] | None = compute
        self._value: T | None = None
        self.exclusive: int | None = None
        """Dimension along which at most one of the elements can have a given value, or be true."""
        if transform_running():  # levels of torch.func end before the value may be asked for
            self._versions: list[tuple[Tensor, int]] = []
            self()
            return
        self._versions = [(source, source._version) for source in sources]
        for source in sources:
            _watch(source, self)

    def __call__(self) -> T:
        """Return the value.

        Raises:
            Stale: a source was changed in place before the first call.
        """
        if self._compute is not None:
            if any(source._version != version for source, version in self._versions):
                raise Stale("the tensor it was computed from was changed in place where the context could not see it")
            with untouched(), torch.enable_grad():
                self._value = self._compute()
            self._compute, self._versions = None, []
        return self._value  # type: ignore[return-value]


class Distribution(NamedTuple):
    """The values an integer could have taken, with their probabilities.

    Attributes:
        probability: ``[*shape, n]`` floating.
        support: ``[n]`` or ``[*shape, n]`` int64; ``None`` means the positions ``0 .. n-1``.
    """

    probability: Tensor
    support: Tensor | None = None

    @property
    def values(self) -> Tensor:
        """``[n]`` or ``[*shape, n]`` int64."""
        if self.support is not None:
            return self.support
        return torch.arange(self.probability.shape[-1], device=self.probability.device)

    def mean(self) -> Tensor:
        """``[*shape]`` expected value."""
        return (self.probability * self.values).sum(-1)

    def dense(self, size: int) -> Tensor:
        """``[*shape, size]`` the probability of each position of a dimension; negative ones count from the end.

        Values outside of the dimension count as the nearest end: they are what noise makes of an index at the border.
        """
        probability, values = self.probability, self.values
        if self.support is None and values.shape[0] == size:
            return probability
        values = torch.where(values < 0, values + size, values) if self.support is not None else values
        support = values.clamp(0, size - 1).expand(probability.shape)
        zeros = probability.new_zeros((*probability.shape[:-1], size))
        return zeros.scatter_add(-1, support, probability)


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
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    def _carry(self, carried: Any, context: Any) -> None:
        self._carried = carried
        self._context = context
        with torch._C.DisableTorchFunction():
            self._data_version = self._version

    def _current(self) -> Any:
        """What it carries.

        Raises:
            Stale: its values were changed in place by an operation that does not know about it.
        """
        with torch._C.DisableTorchFunction():
            version = self._version
        if self._data_version != version:
            raise Stale("its values were changed in place where the context could not see it")
        return self._carried

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
        with torch._C.DisableTorchFunction():
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
        """Probabilities and the values they belong to; ``None`` where only the mean is known."""
        lazy = self._current()[0]
        return None if lazy is None else lazy()

    @property
    def expected(self) -> Tensor:
        """``[*shape]`` floating, the expected value, with gradient."""
        distribution, expected = self._current()
        return expected() if expected is not None else distribution().mean()

    @property
    def has_distribution(self) -> bool:
        """Whether more than the expected value is known."""
        return self._carried[0] is not None

    @staticmethod
    def make(
        data: Tensor,
        distribution: Lazy[Distribution] | None = None,
        expected: Lazy[Tensor] | None = None,
        context: Any = None,
    ) -> SoftIndex:
        """Return ``data`` carrying a distribution, an expected value, or both."""
        return _make(SoftIndex, data, (distribution, expected), context)


S = TypeVar("S", bound=SoftTensor)


def _make(kind: type[S], data: Tensor, carried: Any, context: Any) -> S:
    with torch._C.DisableTorchFunction():
        result = Tensor._make_subclass(kind, data)
    result._carry(carried, context)
    return result


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
    with torch._C.DisableTorchFunction():
        return value.as_subclass(Tensor)


known_values: WeakIdKeyDictionary = WeakIdKeyDictionary()


def remember_values(result: Tensor, distribution: Lazy[Distribution]) -> None:
    """Note that the float tensor ``result`` (a rounding, a mask as numbers) can only take the values of a distribution.

    Its gradient says where its mean moves; a later comparison or cast to integers needs the single values.
    """
    known_values[result] = (distribution, result._version)


def remembered_values(value: Any) -> Lazy[Distribution] | None:
    """Return the distribution behind a float tensor that takes discrete values, where it is known."""
    if not known_values.data or not isinstance(value, Tensor):
        return None
    distribution, version = known_values.get(value, (None, 0))
    return distribution if distribution is not None and version == value._version else None


_pending: dict[int, list[weakref.ref[Lazy[Any]]]] = {}
_MAX_PENDING = 4096


def _watch(source: Tensor, lazy: Lazy[Any]) -> None:
    if len(_pending) > _MAX_PENDING:
        for key in [k for k, refs in list(_pending.items()) if all(ref() is None for ref in refs)]:
            _pending.pop(key, None)
    refs = _pending.setdefault(source.untyped_storage()._cdata, [])
    if len(refs) > 16:
        refs[:] = [ref for ref in refs if ref() is not None]
    refs.append(weakref.ref(lazy))


def force_pending(target: Tensor) -> None:
    """Compute every soft counterpart that still reads ``target``, which is about to be changed in place."""
    if not _pending or transform_running():
        return
    for ref in _pending.pop(target.untyped_storage()._cdata, ()):
        lazy = ref()
        if lazy is not None:
            lazy()

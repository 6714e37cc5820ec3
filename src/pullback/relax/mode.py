"""``relaxed``: a function mode that gives unchanged torch code soft gradients behind its hard values."""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pullback.core.checks import check_choice, check_positive, nearest
from pullback.relax import internals
from pullback.relax.apply import relax_call, tell_left
from pullback.relax.catalogue import METHODS, groups, operations
from pullback.relax.report import Calls
from pullback.relax.settings import Settings
from pullback.relax.soft_tensors import SoftTensor, count_entries, is_entered, is_untouched
from pullback.relax.threads import in_workers

__all__ = ["relaxed"]

_UNSET: Any = object()


class relaxed:
    """Give unchanged torch code gradients through its comparisons, sorts, roundings, indices and draws.

    Within the context (or the decorated function) every covered operation on a tensor that requires grad returns the
    very values torch returns, with the gradient of a smooth counterpart:

    .. math::
        y = f(x), \\qquad \\frac{\\partial y}{\\partial x} := \\frac{\\partial f_t(x)}{\\partial x}, \\qquad
        f_t(x) \\approx \\mathbb E_{\\varepsilon \\sim N(0, 1)} f(x + t \\, s \\, \\varepsilon)

    with the temperature ``t`` and the spread ``s`` of the argument. Integer and boolean results are tensors of the
    usual dtype and shape that carry a distribution or a probability (:class:`~pullback.relax.SoftIndex`,
    :class:`~pullback.relax.SoftBool`): ``table[scores.argmax()]`` and ``(x > c).float().mean()`` have a gradient.
    Where that cannot be carried on (``if``, ``.item()``, ``x[mask]``, ...) the plain value is used and a line is added
    to :meth:`report`. Tensors that do not require grad are left alone, as is code under ``torch.no_grad()``.

    Behind each hard value stands its law, a finite distribution of what else it could have been: two truth values, the
    entries of a table, neighbouring levels. Elementwise functions and comparisons (``2 ** gain[order]``, ``mask == 1``)
    map all of these, so their derivative is that of an expectation. A sum of many independent values has too many; its
    nonlinear functions (``((x > 0).float() @ w - 1) ** 2``) are differentiated half way between the value and where it
    would jump, as a difference quotient would. A comparison of ``x`` with its own order statistics
    (``x >= x.topk(k).values[-1]``) asks for the place of each entry.

    Limits. The gradient is right where one jump is near, or several that do not depend on each other.

    * Steps that share their noise (two choices by the same distance, a median of values computed from the same few
      numbers, a strongly curved function of a sum of several near jumps) are taken as independent.
    * The width of a step is relative to the spread of what it meets, or of the tensor that it is a slice of. Where the
      noise that matters is several times wider, the direction loses accuracy: raise the temperature.
    * Chained choices (a suppression loop, farthest points, a membrane that resets) are followed alternative by
      alternative: what a choice is made of is compared for each of its atoms, so a chain has the length of the change
      that the alternatives make, not the product of its slopes. Of a long chain the sixteen likeliest histories are
      kept, the others as their mean.
    * Checkpoints (``torch.utils.checkpoint``) inside of the context keep their tensors: nothing is computed twice.
    * ``relaxed`` cannot look ahead: a value far from every jump has almost no gradient.
    * Where control flow, a Python number, NumPy or a shape depends on a value, its gradient ends: see :meth:`report`.
    * A context relaxes the thread that entered it. What that thread hands to others meanwhile stays plain, and
      :meth:`report` names its lines.
    * A generator or coroutine that suspends inside of ``with relaxed()`` leaves the context active in its thread until
      it goes on.

    Should a soft counterpart itself fail, the plain value is used, with a warning and a line in the report.

    Args:
        function: the function to decorate (``@relaxed``); a number is taken as ``temperature``.
        temperature: > 0, the width of the smoothing relative to the spread of each argument. As it tends to 0 the
            gradients tend to those of the hard program. A callable is a schedule: it is asked at every entry and gets
            the number of entries so far if it takes an argument.
        hard: ``True``: forward values are the plain program's, bit for bit. ``False``: float results are the soft ones.
        methods: operation -> method of its block, as ``{"sort": "softsort", "round": "logistic"}``.
        only: names of operations (``"sort"``) or groups (``"comparison"``) to relax; ``None`` for all. What they made
            soft is carried on through everything.
        ignore: names of operations or groups to leave plain.
        scale: ``"std"``: temperature in standard deviations of the argument; ``None``: in the argument's own units.
        through_no_grad: carry gradients through regions of ``torch.no_grad()`` inside the context as if they were not
            there, for metrics of others that switch gradients off in their middle. Leave steps of an optimizer outside.

    Returns:
        The object itself as context, with :meth:`report` and :attr:`calls`; or the decorated function, which has the
        same as attributes.

    Raises:
        TypeError, ValueError: an argument is not what it must be; the message names it.

    Example:
        >>> import torch
        >>> x = torch.tensor([0.2, 0.9, 0.4], requires_grad=True)
        >>> with relaxed(temperature=0.5) as r:
        ...     loss = torch.tensor([1.0, 5.0, 2.0])[x.argmax()]
        >>> loss.backward()
        >>> loss.item(), bool(x.grad[1] > 0)
        (5.0, True)

    References:
        Bengio, Leonard, Courville (2013), Estimating or propagating gradients through stochastic neurons (straight-
        through); Berthet et al. (2020), Learning with differentiable perturbed optimizers.
    """

    def __new__(cls, function: Any = _UNSET, /, **options: Any) -> Any:
        """Decorate ``function`` where one is given, else build the context."""
        if callable(function):
            return cls(**options)(function)
        return super().__new__(cls)

    def __init__(
        self,
        function: Any = _UNSET,
        /,
        *,
        temperature: float | Callable[..., float] = 0.1,
        hard: bool = True,
        methods: Mapping[str, str] | None = None,
        only: Iterable[str] | None = None,
        ignore: Iterable[str] | None = None,
        scale: str | None = "std",
        through_no_grad: bool = False,
    ) -> None:
        if function is not _UNSET:
            temperature = function
        if not callable(temperature):
            check_positive("temperature", temperature)
        if not isinstance(hard, bool):
            raise TypeError(f"hard must be a bool, got {type(hard).__name__}")
        if scale is not None and scale != "std":
            raise ValueError(f"scale must be 'std' or None, got {scale!r}")
        self.temperature = temperature
        self.hard = hard
        if not isinstance(through_no_grad, bool):
            raise TypeError(f"through_no_grad must be a bool, got {type(through_no_grad).__name__}")
        self.scale = scale
        self.through_no_grad = through_no_grad
        self.methods = _checked_methods(methods)
        self._ignored = frozenset(_expand("ignore", ignore) if ignore is not None else ())
        self._chosen = _chosen(only) - self._ignored
        self._calls = Calls()
        self._entries = 0
        self._local = threading.local()

    @property
    def calls(self) -> list[Any]:
        """The :class:`~pullback.relax.RelaxedCall` of every line and operation, in the order they were first met."""
        return list(self._calls)

    def report(self) -> str:
        """Text of what was relaxed, and of what was dropped and why, with file and line."""
        return self._calls.text()

    def __enter__(self) -> relaxed:
        internals.stay_out_of_compilation()
        mode = _RelaxMode(self._settings(), self._chosen, self._ignored, self._calls, self.through_no_grad)
        workers = in_workers(functools.partial(_Elsewhere, mode))
        stack = self._stack()
        stack.append((mode, workers, internals.run_compiled_code_eagerly()))
        internals.keep_checkpoints_in_memory(is_entered)
        count_entries(1)
        workers.__enter__()
        mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        mode, workers, restore = self._stack().pop()
        mode.__exit__(kind, error, traceback)
        workers.__exit__()
        count_entries(-1)
        restore()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Decorate ``function``: each call runs in this context."""
        if not callable(function):
            raise TypeError(f"relaxed decorates a function, got {type(function).__name__}")
        if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
            raise TypeError(f"relaxed cannot decorate the generator or coroutine {function.__name__}; use it inside")

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        run.relaxed = self  # type: ignore[attr-defined]
        run.report = self.report  # type: ignore[attr-defined]
        return run

    def __reduce__(self) -> Any:
        """Pickle the options, not the calls."""
        return _rebuild, (self._options(),)

    def _options(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "hard": self.hard,
            "methods": self.methods,
            "only": sorted(self._chosen),
            "ignore": sorted(self._ignored),
            "scale": self.scale,
            "through_no_grad": self.through_no_grad,
        }

    def _stack(self) -> list[Any]:
        stack: list[Any] = self._local.__dict__.setdefault("stack", [])
        return stack

    def _settings(self) -> Settings:
        temperature = self.temperature
        if callable(temperature):
            takes = len(inspect.signature(temperature).parameters)
            temperature = temperature(self._entries) if takes else temperature()
            check_positive("temperature", temperature)
        self._entries += 1
        return Settings(float(temperature), self.scale, self.hard, self.methods)


for _name in ("__enter__", "__exit__", "__call__"):
    getattr(relaxed, _name)._torchdynamo_disable = True


class _RelaxMode(TorchFunctionMode):
    """One entry of a context: passes every call of this thread to the rules."""

    def __init__(
        self,
        settings: Settings,
        chosen: frozenset[str],
        ignored: frozenset[str],
        calls: Calls,
        through_no_grad: bool = False,
    ) -> None:
        super().__init__()
        self.settings = settings
        self.chosen = chosen
        self.ignored = ignored
        self.calls = calls
        self.through_no_grad = through_no_grad

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Relax the call, or let it pass."""
        if is_untouched():
            return func(*args, **(kwargs or {}))
        return self.relax(func, types, args, kwargs or {})

    def relax(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        """Relax the call; also what a soft tensor does after the context has ended."""
        # The end of the region is a call as well, and must not be undone.
        if self.through_no_grad and not torch.is_grad_enabled() and func is not internals.set_grad_enabled:
            with torch.enable_grad():
                return relax_call(self, func, types, args, kwargs)
        return relax_call(self, func, types, args, kwargs)


class _Elsewhere(TorchFunctionMode):
    """In the thread of a worker: says of the calls that a context would relax in its own that it does not here."""

    def __init__(self, mode: _RelaxMode) -> None:
        super().__init__()
        self._mode = mode

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the call as it is; a soft tensor from the context's own thread goes on by itself."""
        if not is_untouched() and not any(issubclass(kind, SoftTensor) for kind in types):
            tell_left(self._mode, func, (args, kwargs), "another thread than the one that entered the context")
        return func(*args, **(kwargs or {}))


def _rebuild(options: dict[str, Any]) -> relaxed:
    return relaxed(**options)


def _checked_methods(methods: Mapping[str, str] | None) -> dict[str, str]:
    methods = dict(methods or {})
    for operation, method in methods.items():
        if operation not in METHODS:
            allowed = ", ".join(sorted(METHODS))
            raise ValueError(
                f"methods must name operations with a method ({allowed}), got {operation!r}"
                + nearest(operation, METHODS)
            )
        check_choice(f"methods[{operation!r}]", method, METHODS[operation])
    return methods


def _chosen(only: Iterable[str] | None) -> frozenset[str]:
    return _everything() if only is None else frozenset(_expand("only", only))


@functools.cache
def _everything() -> frozenset[str]:
    return frozenset(operations())


def _expand(name: str, words: Iterable[str]) -> set[str]:
    if isinstance(words, str):
        raise TypeError(f"{name} must be a collection of names, got the string {words!r}; write [{words!r}]")
    everything, by_group = operations(), groups()
    result: set[str] = set()
    for word in words:
        if word in by_group:
            result |= by_group[word]
        elif word in everything:
            result.add(word)
        else:
            hint = nearest(str(word), {*everything, *by_group})
            raise ValueError(
                f"{name} must name operations (such as 'sort') or groups ({', '.join(sorted(by_group))}), "
                f"got {word!r}{hint}"
            )
    return result

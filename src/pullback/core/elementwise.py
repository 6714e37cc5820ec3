"""What elementwise optimizers have in common: each is one pure rule for an entry, and fast loops equal to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from pullback.core.checks import check_floating, check_range, check_scalar

__all__ = ["Elementwise", "FunctionalOptimizer", "functional"]

State = dict[str, Tensor]
"""The buffers of one parameter."""


class FunctionalOptimizer(NamedTuple):
    """An optimizer as two pure functions, through which gradients pass.

    Attributes:
        init: from parameters by name to the state, by name of parameter and of buffer.
        update: from ``(gradients, state, params)`` to ``(params, state)``, new ones of both; what it is given stays.
    """

    init: Callable[[Mapping[str, Tensor]], dict[str, State]]
    update: Callable[
        [Mapping[str, Tensor], Mapping[str, State], Mapping[str, Tensor]], tuple[dict[str, Tensor], dict[str, State]]
    ]


class Elementwise(torch.optim.Optimizer):
    """Base of the optimizers: groups, closures, state, real views of complex parameters, refusals.

    A subclass gives ``start``, the buffers of a parameter, ``rule``, from an entry, its gradient and its buffers to new
    ones, ``loop``, the same in place for lists of tensors, and ``check``, which refuses options.
    """

    hyper: ClassVar[tuple[str, ...]] = ()
    """The options that ``rule`` reads."""

    def __init__(self, params: Iterable[Any], defaults: dict[str, Any]) -> None:
        super().__init__(params, defaults)

    @classmethod
    def check(cls, options: Mapping[str, Any]) -> None:
        """Refuse options out of range."""
        raise NotImplementedError

    @staticmethod
    def start(p: Tensor, options: Mapping[str, Any]) -> State:
        """Return the buffers before the first step."""
        raise NotImplementedError

    @staticmethod
    def rule(p: Tensor, g: Tensor, state: State, options: Mapping[str, Any]) -> tuple[Tensor, State]:
        """Return the parameter and its buffers after a step; differentiable, changes nothing."""
        raise NotImplementedError

    @staticmethod
    def loop(params: list[Tensor], grads: list[Tensor], states: list[State], options: Mapping[str, Any]) -> None:
        """Take the step in place."""
        raise NotImplementedError

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group; its options are checked like those of the optimizer."""
        options = {**self.defaults, **param_group}
        self.check(options)
        foreach = options["foreach"]
        if foreach is not None and not isinstance(foreach, bool):
            raise TypeError(f"foreach must be True, False or None, got {type(foreach).__name__}")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a saved state ended.

        Args:
            state_dict: of ``state_dict()``. It is copied: torch alone would share buffers with the optimizer that it is
                from.
        """
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state.update({name: buffer.clone() for name, buffer in state.items()})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step with the gradients that are there.

        Args:
            closure: evaluates the loss again, with its gradients.

        Returns:
            What ``closure`` returns.

        Raises:
            RuntimeError: a gradient is sparse; parameter and group are named.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for number, group in enumerate(self.param_groups):
            self._move(number, group)
        return loss

    def _move(self, number: int, group: dict[str, Any]) -> None:
        params, grads, states = [], [], []
        for index, p in enumerate(group["params"]):
            g = p.grad
            if g is None:
                continue
            if g.is_sparse:
                names = group.get("param_names")
                name = f"{names[index]!r}" if names else f"{index} of group {number}"
                raise RuntimeError(f"{type(self).__name__} takes no sparse gradients, got one for parameter {name}")
            state = self.state[p]
            if not state:
                state.update(self.start(p, group))
            if p.is_complex():
                p, g, state = _real(p), _real(g), {name: _real(buffer) for name, buffer in state.items()}
            params.append(p)
            grads.append(g)
            states.append(state)
        if not params:
            return
        if group["foreach"] is not False:
            self.loop(params, grads, states, group)
            return
        for p, g, state in zip(params, grads, states, strict=True):
            moved, after = self.rule(p, g, state, group)
            for name, buffer in after.items():  # before the parameter, which may itself be one of them
                state[name].copy_(buffer)
            p.copy_(moved)


def functional(kind: type[Elementwise], **options: Any) -> FunctionalOptimizer:
    """Return the differentiable twin of an optimizer: a pure update whose derivatives reach its options too.

    ``w_k`` is then a function of ``w_0``, of the losses and of tensors among the options such as ``lr``: for
    meta-learning and hypergradients. Nothing is kept between calls: ``detach`` what you hand on to cut the graph.

    Args:
        kind: an optimizer of this family, such as :class:`~pullback.optim.ComplexMomentumSGD`.
        **options: as the optimizer takes them; numbers may be tensors without dimensions.

    Returns:
        ``init`` and ``update``.

    Raises:
        TypeError: ``kind`` is no optimizer of this family, or an option is missing or unknown.
        ValueError: an option is out of range.

    Example:
        >>> from pullback.optim import ComplexMomentumSGD
        >>> lr = torch.tensor(0.1, requires_grad=True)
        >>> init, update = functional(ComplexMomentumSGD, lr=lr)
        >>> w = {"w": torch.tensor([1.0, -2.0])}
        >>> w, state = update(w, init(w), w)  # of the loss w^2 / 2
        >>> torch.autograd.grad(w["w"].square().sum(), lr)[0]
        tensor(-9.)

    References:
        Grefenstette et al. (2019), Generalized inner loop meta-learning, arXiv 1910.01727, section 3.
    """
    if not (isinstance(kind, type) and issubclass(kind, Elementwise)):
        raise TypeError(f"kind must be an optimizer of pullback.optim, got {kind!r}")
    # The constructor is where defaults stand and options are checked: a parameter that nobody sees.
    settled = kind([torch.zeros(1)], **options).param_groups[0]

    def init(params: Mapping[str, Tensor]) -> dict[str, State]:
        return {name: kind.start(check_floating(f"params[{name!r}]", p), settled) for name, p in params.items()}

    def update(
        gradients: Mapping[str, Tensor], state: Mapping[str, State], params: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, State]]:
        for given, what in ((gradients, "gradients"), (state, "state")):
            if set(given) != set(params):
                raise ValueError(f"{what} must have the names of params, {sorted(params)}, got {sorted(given)}")
        moved = {name: kind.rule(p, gradients[name], dict(state[name]), settled) for name, p in params.items()}
        return {name: pair[0] for name, pair in moved.items()}, {name: pair[1] for name, pair in moved.items()}

    return FunctionalOptimizer(init, update)


def check_lr(options: Mapping[str, Any]) -> None:
    """Refuse a step size that is no positive number or scalar tensor."""
    check_scalar("lr", options["lr"])


def number(value: Any) -> float:
    """Return an option as a number, for in-place loops of many tensors."""
    return float(value)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


def check_modulus(name: str, value: Any) -> None:
    """Refuse what is not in [0, 1)."""
    check_range(name, float(value) if isinstance(value, Tensor) else value, 0, 1)
    if value == 1:
        raise ValueError(f"{name} must be in [0, 1), got 1")

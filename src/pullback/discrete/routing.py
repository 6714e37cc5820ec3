"""Routing: a gate chooses which of several experts sees an input, and each expert is run on its own inputs only."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pullback.core.checks import (
    check_callable,
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_scalar,
    check_shape,
    check_tensor,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Int, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.estimators import reinmax
from pullback.discrete.sampling import gumbel_noise, straight_through
from pullback.discrete.softness import is_hard, softmax, widen

__all__ = ["Macs", "Router", "Routing", "dispatch", "expected_macs"]


class Routing(NamedTuple):
    """Which experts an input goes to.

    Attributes:
        weights: ``[*batch, k]`` of the chosen experts, with the gradient of the router's method.
        probabilities: ``[*batch, experts]``, rows sum to 1, with their own gradient (for information gain, entropies).
        index: ``[*batch, k]`` the chosen experts, the most wanted first; no expert twice.
    """

    weights: Float[Tensor, "*batch k"]
    probabilities: Float[Tensor, "*batch experts"]
    index: Int[Tensor, "*batch k"]  # type: ignore[assignment]


class Macs(NamedTuple):
    """Multiply-adds of a single sample.

    Attributes:
        mean: over the samples.
        maximum: of the dearest sample.
    """

    mean: float
    maximum: float


class Router(nn.Module):
    r"""Choose ``k`` of several experts for each input, from scores ``s = W features(x) + b``.

    ======================  ===============================================  =======================================
    ``method``              chosen                                           weights, and their gradient
    ======================  ===============================================  =======================================
    ``"information_gain"``  the ``k`` largest of :math:`p`                   ``1 / k``, none: :math:`p` learns from
                                                                             :func:`information_gain`
    ``"softmax"``           the ``k`` largest of :math:`p`                   :math:`p` of the chosen; for ``k > 1``
                                                                             scaled to sum 1
    ``"gumbel"``            the ``k`` largest of :math:`s + g`, with Gumbel  ``1 / k``, with the gradient of
                            noise; without noise in evaluation               :math:`\mathrm{softmax}((s + g)/T) / k`
    ``"reinmax"``           a sample of :math:`\mathrm{softmax}(s)`;         1, with :func:`reinmax`'s gradient
                            the likeliest in evaluation; ``k = 1``
    ``"subjective"``        the ``k`` smallest of a table of losses, which   :math:`p` of the chosen scaled to sum
                            is the input: it has no parameters               1, detached
    ======================  ===============================================  =======================================

    :math:`p = \mathrm{softmax}(s / T)`, for the two that sample :math:`\mathrm{softmax}(s)`, for ``"subjective"``
    :math:`\mathrm{softmax}(-L / T)`. With the first two and the last no number is drawn. A weight reaches the scores
    by its own expert's output alone, as no other was computed; an estimator that needs all outputs is had by ``k``
    equal to the number of experts, or by :class:`BranchingLayer`.

    Args:
        inputs: features an input; ``None`` for ``"subjective"``.
        experts: to choose from, >= 1; a single one warns, as there is nothing to route.
        k: experts an input, 1 to ``experts``.
        method: see above.
        temperature: :math:`T`, > 0, for ``"subjective"`` >= 0; by default 1, for ``"subjective"`` 0 (the smallest
            loss takes all). A number or a tensor without dimensions.
        features: applied to ``x`` first, such as a pooling and a hidden layer; its result is ``[*batch, inputs]``.
        generator: of the initial weights; torch's own by default.

    Raises:
        TypeError: a size is no integer, ``features`` no module.
        ValueError: a size or ``temperature`` is out of range, ``method`` is unknown, or ``inputs`` does not fit it.

    Example:
        >>> router = Router(2, 3, generator=torch.Generator().manual_seed(0))
        >>> routing = router(torch.tensor([[4.0, 0.0], [0.0, -4.0]]))
        >>> routing.index.shape, routing.weights.tolist(), routing.probabilities.shape
        (torch.Size([2, 1]), [[1.0], [1.0]], torch.Size([2, 3]))
        >>> Router(None, 3, method="subjective")(torch.tensor([0.5, 0.1, 0.2])).index
        tensor([1])

    References:
        Shazeer et al. (2017), Outrageously large neural networks: the sparsely-gated mixture-of-experts layer. Fedus,
        Zoph, Shazeer (2022), Switch transformers, equation 2. Bicici, Meral, Akarun (2024), Conditional information
        gain trellis, section 3. Zhang et al. (2021), Subjective learning for open-ended data, equation 4.
    """

    def __init__(
        self,
        inputs: int | None,
        experts: int,
        *,
        k: int = 1,
        method: str = "information_gain",
        temperature: Scalar | None = None,
        features: nn.Module | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("experts", experts, 1)
        check_integer("k", k, 1, experts)
        check_choice("method", method, _METHODS)
        if (inputs is None) != (method == "subjective"):
            raise ValueError(f'inputs must be None for "subjective", and only for it, got {inputs} for "{method}"')
        if method == "reinmax" and k > 1:
            raise ValueError(f'k must be 1 for "reinmax", which draws one expert, got {k}')
        if features is not None and not isinstance(features, nn.Module):
            raise TypeError(f"features must be an nn.Module, got {type(features).__name__}")
        if experts == 1:
            warnings.warn("a router with a single expert has nothing to route", UserWarning, stacklevel=2)
        self.inputs, self.experts, self.k, self.method, self.features = inputs, experts, k, method, features
        self.temperature = _temperature(method, float(method != "subjective") if temperature is None else temperature)
        if inputs is not None:
            self.score = nn.Linear(check_integer("inputs", inputs, 1), experts)
            if generator is not None:
                for parameter in self.score.parameters():
                    nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=generator)

    def forward(
        self,
        x: Float[Tensor, "..."],
        *,
        temperature: Scalar | None = None,
        random: float = 0.0,
        allowed: Bool[Tensor, "..."] | None = None,
        generator: torch.Generator | None = None,
    ) -> Routing:
        """Return the :class:`Routing` of each input.

        Args:
            x: ``[*batch, inputs]``, or what ``features`` takes; for ``"subjective"`` losses ``[*batch, experts]``, a
                NaN among them is never chosen.
            temperature: in place of that of the router, for an annealed one.
            random: probability with which an input goes to experts drawn evenly, whatever its scores (warm-up: 1).
            allowed: ``[*batch, experts]``, broadcasting, which experts may be chosen; at least ``k`` for each input.
            generator: of what is drawn; torch's own by default.

        Raises:
            TypeError: ``x`` is not floating, ``allowed`` is not boolean.
            ValueError: ``x`` is not finite or of the wrong shape, all losses of a row are NaN or infinite, too few
                experts are allowed (looked for except under ``torch.func`` and ``torch.compile``), or a number is out
                of range.
        """
        check_floating("x", x)
        if not 0 <= random <= 1:
            raise ValueError(f"random must be in [0, 1], got {random}")
        temperature = self.temperature if temperature is None else _temperature(self.method, temperature)
        if self.method == "subjective":
            check_shape("x", x, (self.experts,))
            scores = -widen(x.detach()).nan_to_num(torch.inf, torch.inf, -torch.inf)
        else:
            if can_look(x):
                check_finite("x", x)
            x = x if self.features is None else self.features(x)
            check_shape("x" if self.features is None else "features(x)", x, (self.inputs,))
            scores = widen(self.score(x))
        if allowed is not None:
            scores = scores.masked_fill(~_allowed(allowed, scores, self.k), -torch.inf)
        choose = _METHODS[self.method]
        routing = choose(scores, self.k, temperature, generator if self.training else _Certain)
        if random > 0:
            routing = _randomised(routing, scores, random, generator)
        return Routing(routing.weights.to(x.dtype), routing.probabilities.to(x.dtype), routing.index)

    @property
    def is_constant(self) -> bool:
        """Whether the only weight is always 1 and without gradient."""
        return self.k == 1 and self.method in ("information_gain", "subjective")

    def extra_repr(self) -> str:
        """Return what :func:`repr` shows."""
        return f"{self.inputs}, {self.experts}, k={self.k}, method={self.method!r}"


def dispatch(
    x: Float[Tensor, "n *features"],
    index: Int[Tensor, "n *k"],
    experts: Sequence[Callable[[Tensor], Tensor]] | nn.ModuleList,
    *,
    weights: Float[Tensor, "n k"] | None = None,
) -> Float[Tensor, "n ..."]:
    r"""Run each sample through the experts that ``index`` names for it: :math:`y_i = \sum_j w_{ij} f_{I_{ij}}(x_i)`.

    Samples are sorted by expert, each expert is called once with its own samples (in their order, without padding), and
    the results are sorted back. Experts without a sample are not called. Values and gradients are those of running all
    experts on all samples and masking, at ``k / len(experts)`` of the work.

    Args:
        x: ``[n, *features]``.
        index: ``[n]`` or ``[n, k]`` integers in ``0..len(experts) - 1``.
        experts: functions or modules from ``[m, *features]`` to ``[m, *out]``, row by row, all with the same ``out``.
        weights: ``[n, k]``, such as those of :class:`Routing`, differentiable; without them the outputs of ``k``
            experts are not added up.

    Returns:
        ``[n, *out]``; without ``weights`` and with ``index`` of shape ``[n, k]`` it is ``[n, k, *out]``.

    Raises:
        TypeError: ``x`` or ``weights`` is not floating, ``index`` not of integers, an expert not callable.
        ValueError: there is no expert, an index is out of range, shapes do not fit, or experts return other shapes.

    Example:
        >>> x = torch.tensor([[1.0], [2.0], [3.0]])
        >>> dispatch(x, torch.tensor([1, 0, 1]), [lambda t: t, lambda t: -t]).flatten().tolist()
        [-1.0, 2.0, -3.0]

    References:
        Shazeer et al. (2017), Outrageously large neural networks, section 2.
    """
    if check_floating("x", x).ndim < 1:
        raise ValueError("x must have a dimension of samples, got shape ()")
    functions: list[Callable[[Tensor], Tensor]] = list(experts)
    count, n = len(functions), len(x)
    if count < 1:
        raise ValueError("experts must be at least one, got none")
    for number, expert in enumerate(functions):
        check_callable(f"experts[{number}]", expert)
    if check_tensor("index", index).is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise TypeError(f"index must hold integers, got {index.dtype}")
    if index.ndim not in (1, 2) or len(index) != n or (index.ndim == 2 and not index.shape[1]):
        raise ValueError(f"index must have shape ({n},) or ({n}, k) with k >= 1, got {tuple(index.shape)}")
    if weights is not None:
        check_shape("weights", check_floating("weights", weights), (n, index.shape[1] if index.ndim == 2 else 1))
    flat = index.reshape(-1)
    if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < count:
        raise ValueError(f"index must be in 0..{count - 1}, got {int(flat.min())} to {int(flat.max())}")
    order = flat.argsort(stable=True)
    sizes = flat.bincount(minlength=count).tolist()
    k = index.shape[1] if index.ndim == 2 else 1
    if n:
        parts = x.index_select(0, order // k).split(sizes)
        outputs = [expert(part) for expert, part in zip(functions, parts, strict=True) if len(part)]
    else:  # somebody has to say which shape a result has
        outputs = [functions[0](x)]
    for output in outputs:
        if output.shape[1:] != outputs[0].shape[1:]:
            raise ValueError(
                f"experts must return one shape, got {tuple(outputs[0].shape[1:])} and {tuple(output.shape[1:])}"
            )
    joined = torch.cat(outputs).index_select(0, order.argsort()).unflatten(0, index.shape)
    if weights is None:
        return joined
    joined = joined if index.ndim == 2 else joined.unsqueeze(1)
    return (weights.reshape(weights.shape + (1,) * (joined.ndim - 2)) * joined).sum(1)


@torch.no_grad()
def expected_macs(module: Callable[[Tensor], Any], x: Float[Tensor, "n *features"]) -> Macs:
    """Count the multiply-adds of matrix products and convolutions that each sample costs on the path that it takes.

    Every sample is run alone, so what was not executed for it does not count. Sums, activations and other work on
    single entries are not counted.

    Args:
        module: what is measured, such as a :class:`Trellis`; a module is run in evaluation mode and put back.
        x: ``[n, *features]``, n >= 1.

    Returns:
        :class:`Macs`.

    Raises:
        TypeError: ``module`` cannot be called, ``x`` is not floating.
        ValueError: ``x`` has no sample.

    Example:
        >>> expected_macs(nn.Linear(3, 5), torch.ones(2, 3))
        Macs(mean=15.0, maximum=15.0)
    """
    check_callable("module", module)
    if check_floating("x", x).ndim < 1 or not len(x):
        raise ValueError(f"x must have at least one sample, got shape {tuple(x.shape)}")
    was = [(part, part.training) for part in module.modules()] if isinstance(module, nn.Module) else []
    costs = []
    try:
        for part, _ in was:
            part.training = False
        for sample in x.split(1):
            with FlopCounterMode(display=False) as counted:
                module(sample)
            costs.append(counted.get_total_flops() / 2)
    finally:
        for part, training in was:
            part.training = training
    return Macs(sum(costs) / len(costs), max(costs))


def least_loss(
    losses: Float[Tensor, "*batch n"], temperature: Scalar, name: str = "losses"
) -> Float[Tensor, "*batch n"]:
    """Return one-hot rows at the smallest loss, at a temperature > 0 ``softmax(-losses / temperature)``, detached.

    NaN counts as infinite.

    Raises:
        ValueError: a row of ``name`` has no finite smallest entry, or ``temperature`` is negative or not finite.

    Example:
        >>> least_loss(torch.tensor([0.5, 0.1, torch.nan]), 0.0).tolist()
        [0.0, 1.0, 0.0]
    """
    losses = widen(losses.detach())
    losses = losses.masked_fill(losses.isnan(), torch.inf)
    if can_look(losses) and losses.numel():
        wrong = ~losses.amin(-1).isfinite()
        if bool(wrong.any()):
            row = tuple(int(i) for i in wrong.nonzero()[0])
            raise ValueError(f"{name} must have a finite smallest entry in each row, got none in row {row}")
    if is_hard(temperature, losses.dtype):
        return torch.zeros_like(losses).scatter(-1, losses.argmin(-1, keepdim=True), 1.0)
    return softmax(-losses, -1, temperature).detach()


class _Certain:
    """In place of a generator: nothing is drawn."""


def _equal(index: Tensor, like: Tensor) -> Tensor:
    return torch.full(index.shape, 1 / index.shape[-1], dtype=like.dtype, device=like.device)


def _information_gain(scores: Tensor, k: int, temperature: Scalar, generator: Any) -> Routing:
    probabilities = softmax(scores, -1, temperature)
    index = scores.detach().topk(k, -1).indices
    return Routing(_equal(index, scores), probabilities, index)


def _softmax(scores: Tensor, k: int, temperature: Scalar, generator: Any) -> Routing:
    probabilities = softmax(scores, -1, temperature)
    index = scores.detach().topk(k, -1).indices
    # A single weight is not scaled to 1: the scores would learn nothing from the task.
    weights = probabilities.gather(-1, index) if k == 1 else softmax(scores.gather(-1, index), -1, temperature)
    return Routing(weights, probabilities, index)


def _gumbel(scores: Tensor, k: int, temperature: Scalar, generator: Any) -> Routing:
    if generator is _Certain:
        return _information_gain(scores, k, 1.0, generator)
    device = drawing_device(generator, scores)
    noise = gumbel_noise(scores.shape, dtype=scores.dtype, device=device, generator=generator).to(scores.device)
    noisy = scores + noise
    index = noisy.detach().topk(k, -1).indices
    soft = softmax(noisy, -1, temperature).gather(-1, index) / k
    return Routing(straight_through(_equal(index, scores), soft), torch.softmax(scores, -1), index)


def _reinmax(scores: Tensor, k: int, temperature: Scalar, generator: Any) -> Routing:
    if generator is _Certain:
        return _information_gain(scores, k, 1.0, generator)
    onehot, probabilities = reinmax(scores, temperature=temperature, generator=generator)
    index = onehot.detach().argmax(-1, keepdim=True)
    return Routing(onehot.gather(-1, index), probabilities, index)


def _subjective(scores: Tensor, k: int, temperature: Scalar, generator: Any) -> Routing:
    probabilities = least_loss(-scores, temperature, "x")
    # Equal probabilities, such as those of all that were not chosen, follow the losses.
    index = scores.topk(k, -1).indices
    weights = probabilities.gather(-1, index)
    return Routing(weights / weights.sum(-1, keepdim=True), probabilities, index)


_METHODS: dict[str, Callable[[Tensor, int, Scalar, Any], Routing]] = {
    "information_gain": _information_gain,
    "softmax": _softmax,
    "gumbel": _gumbel,
    "reinmax": _reinmax,
    "subjective": _subjective,
}


def _temperature(method: str, temperature: Scalar) -> Scalar:
    number = check_scalar("temperature", temperature, zero=True)
    if method != "subjective" and is_hard(temperature):
        raise ValueError(f'temperature must be > 0 for "{method}", got {number}')
    return temperature


def _allowed(allowed: Tensor, scores: Tensor, k: int) -> Tensor:
    if check_tensor("allowed", allowed).dtype != torch.bool:
        raise TypeError(f"allowed must be boolean, got {allowed.dtype}")
    try:
        wide = allowed.expand(scores.shape)
    except RuntimeError:
        raise ValueError(f"allowed must broadcast to {tuple(scores.shape)}, got shape {tuple(allowed.shape)}") from None
    if can_look(wide) and wide.numel() and int(wide.sum(-1).min()) < k:
        raise ValueError(f"allowed must leave at least {k} experts to each input, got {int(wide.sum(-1).min())}")
    return wide


def _randomised(routing: Routing, scores: Tensor, share: float, generator: torch.Generator | None) -> Routing:
    device = drawing_device(generator, scores)
    draws = torch.rand(scores.shape, device=device, generator=generator).to(scores.device)
    drawn = torch.rand(routing.index.shape[:-1], device=device, generator=generator).to(scores.device) < share
    anyone = draws.masked_fill(scores.detach() == -torch.inf, -1.0).topk(routing.index.shape[-1], -1).indices
    index = torch.where(drawn.unsqueeze(-1), anyone, routing.index)
    weights = torch.where(drawn.unsqueeze(-1), _equal(index, routing.weights), routing.weights)
    return Routing(weights, routing.probabilities, index)

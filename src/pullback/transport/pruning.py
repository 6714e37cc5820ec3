"""Masks with an exact budget, for pruning: a transport problem that gets sharper with every batch by itself."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from pullback.core.checks import check_choice, check_finite, check_integer, check_positive, check_shape
from pullback.core.random import drawing_device
from pullback.core.shapes import Bool, Float, Tensor
from pullback.transport.proximal import ProximalState, proximal_sinkhorn

__all__ = ["MaskedModel", "TransportMask", "attach_masks"]


class TransportMask(nn.Module):
    r"""A mask of n entries that sums to k in every step of its training, soft at first and 0 or 1 in the end.

    Units of mass 1/n, with scores :math:`s`, are shipped to "kept" (mass k/n, cost :math:`-s_i`) and "dropped" (mass
    1 - k/n, cost 0); the mask is n times what goes to "kept". Every call in training is one step of
    :func:`~pullback.transport.proximal_sinkhorn` from the plan of the last call, which is held constant. So t calls add
    up to scores at the temperature epsilon / t: no schedule, and the choice stays open until the scores agree. An entry
    exceeds 1 by what one sweep leaves, which vanishes.

    The gradient for the scores is that of one step; it fades where the mask is 0 or 1. Scores are standardised, so
    their own scale does not matter.

    In evaluation the mask is that of the last call. It may be used in place of a gate, in
    :func:`~pullback.discrete.attach_gates`.

    Args:
        n: entries, >= 1.
        keep: k in 1..n, or the share k/n in (0, 1), of which n times must be an integer.
        epsilon: > 0, in units of the scores' standard deviation; the larger, the more calls until the mask is hard. The
            attribute may be changed between calls.
        memory: ``False``: every call solves the entropic problem of the scores as they are, at the temperature epsilon:
            what the steps improve on, which gets hard only where the temperature falls.
        scores: ``[n]`` to begin with; normal by default.
        generator: of these; torch's own by default.

    Attributes:
        scores: the parameter, ``[n]``.
        log_plan, g: the :class:`~pullback.transport.ProximalState`, buffers.
        keep: k.

    Raises:
        TypeError: ``n`` is no integer.
        ValueError: ``keep`` is out of range or no whole number of entries, ``epsilon`` is not positive, scores are not
            finite or not n.

    Example:
        >>> mask = TransportMask(4, 0.5, epsilon=2.0, scores=torch.tensor([1.0, 4.0, 2.0, 3.0]))
        >>> [round(x, 2) for x in mask().tolist()]
        [0.34, 0.66, 0.44, 0.56]
        >>> for _ in range(100):
        ...     last = mask()
        >>> [round(x, 2) for x in last.tolist()], round(last.sum().item(), 4)
        ([0.0, 1.0, 0.0, 1.0], 2.0)

    References:
        Li, van Gemert, Hoefler, Moons, Eleftheriou, Verhoef (2023), Differentiable transportation pruning.
    """

    log_plan: Tensor
    g: Tensor
    hardened: Tensor

    def __init__(
        self,
        n: int,
        keep: float,
        *,
        epsilon: float = 1.0,
        memory: bool = True,
        scores: Float[Tensor, "n"] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_integer("n", n, 1)
        check_positive("epsilon", epsilon)
        self.keep, self.epsilon, self.memory = _count(n, keep), float(epsilon), memory
        if scores is None:
            scores = torch.randn(n, generator=generator, device=drawing_device(generator, torch.empty(0)))
        check_shape("scores", scores, (n,))
        check_finite("scores", scores)
        self.scores = nn.Parameter(scores.detach().clone())
        self.register_buffer("log_plan", self.scores.new_zeros(n, 2))
        self.register_buffer("g", self.scores.new_zeros(2))
        self.register_buffer("hardened", torch.tensor(False))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Begin again with the even mask, k/n everywhere, and keep the scores."""
        self.log_plan.copy_((self._target().clamp(min=1e-30) / len(self.scores)).log().expand_as(self.log_plan))
        self.g.zero_()
        self.hardened.fill_(False)

    def forward(self, *, generator: torch.Generator | None = None) -> Float[Tensor, "n"]:
        """Return the mask, ``[n]``, in training after one step; ``generator`` is for gates that draw, not for this."""
        if not self.training or self.hardened or self.keep == len(self.scores):
            return self.expected()
        n, target = len(self.scores), self._target()
        spread = self.scores.var(correction=0).clamp(min=torch.finfo(self.scores.dtype).tiny).sqrt()
        standard = (self.scores - self.scores.mean()) / spread
        if self.memory:
            cost = torch.stack([-standard, torch.zeros_like(standard)], -1)
            state = ProximalState(self.log_plan.clone(), self.g.clone())
            state = proximal_sinkhorn(cost, state, b=target, epsilon=self.epsilon)
        else:
            state = ProximalState(_two_columns(standard / self.epsilon, self.keep), self.g)
        with torch.no_grad():
            self.log_plan.copy_(state.log_plan)
            self.g.copy_(state.g)
        return n * state.log_plan[:, 0].exp()

    def expected(self) -> Float[Tensor, "n"]:
        """Return the mask of the last call, without gradient."""
        return self.open.to(self.scores.dtype) if self.hardened else len(self.scores) * self.log_plan[:, 0].exp()

    @property
    def open(self) -> Bool[Tensor, "n"]:
        """Which entries are kept: the k largest of the mask."""
        best = (self.log_plan[:, 0] - self.log_plan[:, 1]).topk(self.keep).indices
        return torch.zeros_like(self.scores, dtype=torch.bool).scatter(0, best, True)

    @property
    def softness(self) -> float:
        """Mean of m (1 - m), at most 1/4; 0 where the mask is 0 or 1 everywhere."""
        m = self.expected().clamp(0, 1)
        return float((m * (1 - m)).mean())

    @torch.no_grad()
    def harden(self, scores: Float[Tensor, "n"] | None = None) -> None:
        """Keep exactly k entries from now on, without gradient: the largest of the mask, or of ``scores``.

        Raises:
            ValueError: there is not one score for each entry.
        """
        if scores is not None:
            check_shape("scores", scores, (len(self.scores),))
            best = scores.topk(self.keep).indices
            self.log_plan.fill_(-80.0)[best, 0] = 0.0
            self.log_plan[:, 1] = -80.0 - self.log_plan[:, 0]
        self.hardened.fill_(True)

    def extra_repr(self) -> str:
        """Return what :func:`repr` shows."""
        return f"{self.keep} of {len(self.scores)}, epsilon={self.epsilon:g}"

    def _target(self) -> Tensor:
        share = self.keep / len(self.scores)
        return self.scores.new_tensor([share, 1 - share])


class MaskedModel(nn.Module):
    """A network whose weights are multiplied by masks; made by :func:`attach_masks`.

    Attributes:
        model: the network itself, unchanged; its weights train on.
        layers: names of the layers whose weights are masked.
        masks: one :class:`TransportMask` a layer, or one for all.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], masks: Sequence[TransportMask]) -> None:
        super().__init__()
        self.model, self.layers, self.masks = model, tuple(layers), nn.ModuleList(masks)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Return what the network does with its weights times their masks."""
        return functional_call(self.model, self.masked(), inputs, options)

    def masked(self) -> dict[str, Tensor]:
        """Return the weights times their masks, by name; in training that is a step of the masks."""
        weights = [self.model.get_submodule(name).get_parameter("weight") for name in self.layers]
        flat = torch.cat([mask() for mask in self.masks]).split([w.numel() for w in weights])
        rows = zip(self.layers, weights, flat, strict=True)
        return {f"{name}.weight": w * mask.view_as(w).to(w.dtype) for name, w, mask in rows}

    def harden(self, scores: Float[Tensor, "n"] | None = None) -> None:
        """Keep exactly as many weights as the budget says from now on: the largest of the masks, or of ``scores``.

        Args:
            scores: one a weight, layer after layer, such as their sizes (pruning by magnitude); may be given at once.

        Raises:
            ValueError: there is not one score a weight.
        """
        sizes = [len(mask.scores) for mask in self.masks]  # type: ignore[arg-type]
        if scores is not None:
            check_shape("scores", scores, (sum(sizes),))
        for mask, part in zip(self.masks, [None] * len(sizes) if scores is None else scores.split(sizes), strict=True):
            assert isinstance(mask, TransportMask)
            mask.harden(part)

    @torch.no_grad()
    def cut(self) -> nn.Module:
        """Write the weights times their masks into the network, and return it."""
        training = self.training
        for name, weight in self.eval().masked().items():
            self.model.get_parameter(name).copy_(weight)
        self.train(training)
        return self.model


def attach_masks(
    model: nn.Module,
    layers: Sequence[str],
    keep: float,
    *,
    budget: str = "network",
    epsilon: float = 1.0,
    generator: torch.Generator | None = None,
) -> MaskedModel:
    """Multiply single weights of a network by :class:`TransportMask` s, to learn which of them it needs.

    For whole channels, :func:`~pullback.discrete.attach_gates` takes such masks as its gates.

    Args:
        model: the network; it is not copied and not changed.
        layers: names as in ``model.named_modules()`` of layers with a ``weight``.
        keep: how many weights stay, or which share in (0, 1], rounded to whole weights.
        budget: ``"network"``: one mask for all layers, which share the budget; ``"layer"``: the same share of each.
        epsilon, generator: of the masks.

    Returns:
        A :class:`MaskedModel`, called as ``model`` is.

    Raises:
        ValueError: no or an unknown layer (near names are listed), one without a weight, ``keep`` out of range, an
            unknown budget.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> masked = attach_masks(model, ["0", "2"], 5)
        >>> masked(torch.ones(1, 2)).shape
        torch.Size([1, 3])
        >>> masked.harden()
        >>> _ = masked.cut()
        >>> int(torch.count_nonzero(model[0].weight) + torch.count_nonzero(model[2].weight))
        5

    References:
        Li, van Gemert, Hoefler, Moons, Eleftheriou, Verhoef (2023), Differentiable transportation pruning.
    """
    check_choice("budget", budget, ("network", "layer"))
    modules, sizes = dict(model.named_modules()), []
    for name in layers:
        if name not in modules:
            near = difflib.get_close_matches(name, modules, 3, 0.3)
            hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"layers must name layers of the model, got {name!r}{hint}")
        weight = getattr(modules[name], "weight", None)
        if not isinstance(weight, nn.Parameter):
            raise ValueError(f"layer {name!r} must have a weight, it is a {type(modules[name]).__name__}")
        sizes.append(weight.numel())
    if not sizes:
        raise ValueError("layers must name at least one layer")
    total = sum(sizes)
    count = _count(total, keep if isinstance(keep, int) or not 0 < keep <= 1 else max(1, round(keep * total)))
    if budget == "network":
        masks = [TransportMask(total, count, epsilon=epsilon, generator=generator)]
    else:
        share = count / total
        masks = [TransportMask(n, max(1, round(share * n)), epsilon=epsilon, generator=generator) for n in sizes]
    like = next(model.parameters())
    masked = MaskedModel(model, layers, masks).train(model.training)
    masked.masks.to(like.device, torch.promote_types(like.dtype, torch.float32))  # of halves they would stand still
    return masked


def _two_columns(z: Tensor, k: int) -> Tensor:
    """Logarithms of the entropic plan onto two masses: odds ``z + shift``, with the shift at which k are kept."""
    wide = z.double()
    with torch.no_grad():
        low, high = -wide.max() - 50, -wide.min() + 50
        for _ in range(64):
            shift = (low + high) / 2
            above = torch.sigmoid(wide + shift).sum() > k
            low, high = torch.where(above, low, shift), torch.where(above, shift, high)
    mask = torch.sigmoid(wide + shift)
    # A Newton step, which carries the derivative of the root.
    slope = (mask * (1 - mask)).sum().detach().clamp(min=1e-12)
    odds = wide + shift - (mask.sum() - k) / slope
    columns = torch.stack([nn.functional.logsigmoid(odds), nn.functional.logsigmoid(-odds)], -1)
    return (columns - math.log(len(z))).to(z.dtype)


def _count(n: int, keep: float) -> int:
    count = keep if isinstance(keep, int) else keep * n
    if not (0 < count <= n and (isinstance(keep, int) or keep <= 1)):
        raise ValueError(f"keep must be in 1..{n}, or a share in (0, 1], got {keep}")
    if abs(count - round(count)) > 1e-6 * n or round(count) == 0:
        raise ValueError(f"keep must be a whole number of {n} entries, got the share {keep}: {count:g} of them")
    return round(count)

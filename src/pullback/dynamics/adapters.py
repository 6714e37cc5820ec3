"""Adapters between the layers of a frozen teacher: its features move back to where it knows them, and it stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pullback.core.checks import (
    check_broadcast,
    check_floating,
    check_integer,
    check_positive,
    check_same_dtype,
    check_shape,
)
from pullback.core.shapes import Bool, Float
from pullback.core.transforms import can_look

__all__ = ["Adapter", "FrozenBackbone", "action_kl", "feature_alignment_loss"]


class FrozenBackbone(nn.Module):
    r"""Stages of a trained network, one after the other, with frozen parameters, and adapters in between where given.

    .. math:: x_i = \mathrm{stage}_i(\hat x_{i-1}), \qquad \hat x_i = \mathrm{adapter}_i(x_i, s)

    Gradients pass through the stages to their input and to the adapters; the stages themselves stay in evaluation mode
    and never change.

    Args:
        stages: by name, in order. They are used as they are, not copied.

    Raises:
        ValueError: no stages, or a batch normalisation in training mode: its statistics would change (call ``eval()``).

    Example:
        >>> backbone = FrozenBackbone({"lift": nn.Linear(2, 3), "bend": nn.Tanh()})
        >>> features = backbone(torch.ones(1, 2, requires_grad=True))
        >>> list(features), features["bend"].requires_grad, [p.requires_grad for p in backbone.parameters()]
        (['lift', 'bend'], True, [False, False])

    References:
        Jia et al. (2023), DriveAdapter, arXiv 2308.00398, section 3.2.
    """

    def __init__(self, stages: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if not stages:
            raise ValueError("stages must hold at least one module")
        for name, stage in stages.items():
            for part in stage.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
                    raise ValueError(f"stage {name} has a batch normalisation in training mode: call eval() first")
        self.stages = nn.ModuleDict(stages).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenBackbone:
        """Set the mode of this module alone: the stages stay in evaluation mode."""
        self.training = mode
        return self

    def forward(
        self, x: Tensor, adapters: Mapping[str, nn.Module] | None = None, side: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the features after every stage, adapted where there is an adapter, by name and in order.

        Args:
            x: input of the first stage.
            adapters: by name of their stage: ``adapter(x, side)`` gives what goes on in the place of x.
            side: second input of every adapter.

        Raises:
            ValueError: an adapter of no stage, adapters without ``side``, or one that changes the shape (named).
        """
        given = {} if adapters is None else dict(adapters.items())
        unknown = [name for name in given if name not in self.stages]
        if unknown:
            raise ValueError(f"adapters must be named after stages ({', '.join(self.stages)}), got {unknown[0]}")
        if given and side is None:
            raise ValueError("side must be given with adapters")
        features = {}
        for name, stage in self.stages.items():
            x = stage(x)
            if name in given:
                moved = given[name](x, side)
                if moved.shape != x.shape:
                    raise ValueError(f"the adapter of {name} gave shape {tuple(moved.shape)} for {tuple(x.shape)}")
                x = moved
            features[name] = x
        return features


class Adapter(nn.Module):
    r"""A small residual network beside a layer, which starts as the identity.

    Of features x and side features s, the convolutional one is

    .. math::
        h &= N(W_2 * \mathrm{relu}(N(W_1 * [x, W_0 * \mathrm{pool}(s)]))), \\
        \hat x &= x + W_4 * (h \odot \sigma(M(\tfrac12 \mathrm{mean}\,h + \tfrac12 \max h)))

    with W1, W2 of 3 x 3, W4 of 1 x 1 that is 0 at first, M a perceptron (squeeze and excitation), and N a normalisation
    over each sample. The other one is :math:`\hat x = x + W_4\,\mathrm{relu}(N(W_1 [x, s]))` on vectors; side features
    with places are averaged over them.

    Args:
        channels: of x.
        side: channels of s.
        reduction: the hidden layers have 1 / reduction of the channels, at least 4.
        kind: ``"conv"`` for x ``[batch, channels, height, width]``, ``"mlp"`` for ``[*batch, channels]``.

    Raises:
        ValueError: a size below 1, another ``kind``.

    Example:
        >>> adapter = Adapter(8, 3)
        >>> x = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> torch.equal(adapter(x, torch.ones(2, 3, 16, 16)), x)
        True

    References:
        Jia et al. (2023), DriveAdapter, arXiv 2308.00398, section 3.3, with batch normalisation for N; Hu, Shen, Sun
        (2018), Squeeze-and-excitation networks, arXiv 1709.01507.
    """

    def __init__(self, channels: int, side: int, *, reduction: int = 4, kind: Literal["conv", "mlp"] = "conv") -> None:
        super().__init__()
        self.channels, self.side = check_integer("channels", channels, 1), check_integer("side", side, 1)
        hidden = max(4, channels // check_integer("reduction", reduction, 1))
        if kind not in ("conv", "mlp"):
            raise ValueError(f'kind must be "conv" or "mlp", got {kind!r}')
        self.kind = kind
        self.last: nn.Module
        if kind == "mlp":
            self.inner = nn.Sequential(nn.Linear(channels + side, hidden), _Normalised(hidden), nn.ReLU())
            self.last = nn.Linear(hidden, channels)
        else:
            self.look = nn.Conv2d(side, side, 3, padding=1)
            self.inner = nn.Sequential(
                nn.Conv2d(channels + side, hidden, 3, padding=1),
                _Normalised(hidden, 3),
                nn.ReLU(),
                nn.Conv2d(hidden, channels, 3, padding=1),
                _Normalised(channels, 3),
            )
            self.excite = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
            self.last = nn.Conv2d(channels, channels, 1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        """Return the adapted features, of the shape of x.

        Args:
            x: ``[batch, channels, height, width]``, or ``[*batch, channels]``.
            side: ``[batch, side, rows, columns]`` of any size; ``[*batch, side]`` beside vectors, or with two more
                dimensions, of places, over which it is averaged.

        Raises:
            TypeError: a tensor is not floating, or dtypes differ.
            ValueError: shapes do not fit.
        """
        check_same_dtype(x=check_floating("x", x), side=check_floating("side", side))
        if self.kind == "mlp":
            check_shape("x", x, (self.channels,))
            if side.ndim == x.ndim + 2:
                side = side.mean((-2, -1))
            check_shape("side", side, (self.side,))
            batch = check_broadcast(x=tuple(x.shape[:-1]), side=tuple(side.shape[:-1]))
            both = torch.cat([x.expand(*batch, self.channels), side.expand(*batch, self.side)], -1)
            moved: Tensor = self.last(self.inner(both))
            return x + moved
        check_shape("x", x, (None, self.channels, None, None))
        check_shape("side", side, (None, self.side, None, None))
        seen = self.look(F.adaptive_avg_pool2d(side, (x.shape[-2], x.shape[-1])))
        inner = self.inner(torch.cat([x, seen], 1))
        squeezed = 0.5 * inner.mean((2, 3)) + 0.5 * inner.amax((2, 3))
        moved = self.last(inner * self.excite(squeezed).sigmoid()[..., None, None])
        return x + moved


class _Normalised(nn.Module):
    """Each sample less its mean, over its deviation, times and plus a number a channel."""

    def __init__(self, channels: int, dimensions: int = 1) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.over = tuple(range(-dimensions, 0))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide / wide.detach().abs().amax(self.over, keepdim=True).clamp(min=1)  # squares stay in range
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        if len(self.over) > 1:
            return F.group_norm(wide, 1, weight, bias).to(x.dtype)
        away = wide - wide.mean(-1, keepdim=True)  # layer_norm has no forward mode of forward mode
        scaled = away * (away.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
        return (weight * scaled + bias).to(x.dtype)


def feature_alignment_loss(
    student: Mapping[str, Tensor],
    teacher: Mapping[str, Tensor],
    *,
    weights: Mapping[str, float],
    mask: Bool[Tensor, "batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Return :math:`\sum_i w_i\,\mathrm{mean}\,\mathrm{huber}(\hat x_i - y_i)`, over the samples that the mask keeps.

    The Huber function is half of the square up to 1 and linear beyond (smooth L1). Where a rule overrode the teacher
    its features are wrong; such samples are masked, and learn from the action alone.

    Args:
        student: features by name, ``[batch, ...]``.
        teacher: those to be met, under the same names, of the same shapes.
        weights: w_i >= 0 of every layer that counts.
        mask: ``[batch]``, True where the sample counts; all by default. Where none does the loss is 0.

    Raises:
        TypeError: features are not floating, or their dtypes differ.
        ValueError: a layer is missing, or shapes differ (the layer is named); no weights, or a negative one.

    Example:
        >>> one = {"a": torch.tensor([[0.0], [9.0]])}
        >>> feature_alignment_loss(one, {"a": torch.ones(2, 1)}, weights={"a": 2.0}, mask=torch.tensor([True, False]))
        tensor(1.)

    References:
        Jia et al. (2023), DriveAdapter, arXiv 2308.00398, section 3.4.
    """
    if not weights:
        raise ValueError("weights must name at least one layer")
    terms = []
    for name, weight in weights.items():
        check_positive(f"weight of {name}", weight, zero=True)
        if name not in student or name not in teacher:
            raise ValueError(f"student and teacher must have the layer {name} of the weights")
        x, y = check_floating(f"student's {name}", student[name]), check_floating(f"teacher's {name}", teacher[name])
        check_same_dtype(student=x, teacher=y)
        if x.shape != y.shape or x.ndim == 0:
            shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
            raise ValueError(f"{name} must have one shape [batch, ...] in student and teacher, got {shapes}")
        each = F.smooth_l1_loss(x, y, reduction="none").reshape(len(x), -1).mean(1)
        if mask is None:
            terms.append(weight * each.mean())
        else:
            check_shape("mask", mask, (len(x),))
            kept = mask.to(each.dtype)
            terms.append(weight * torch.where(mask, each, 0).sum() / kept.sum().clamp(min=1))
    return torch.stack(terms).sum()


def action_kl(
    alpha_p: Float[Tensor, "*#batch n"],
    beta_p: Float[Tensor, "*#batch n"],
    alpha_q: Float[Tensor, "*#batch n"],
    beta_q: Float[Tensor, "*#batch n"],
    *,
    weight: Float[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch"]:
    r"""Return the mean over actions of the divergence KL(P || Q) of Beta laws, in closed form.

    .. math::
        \ln\frac{B(a', b')}{B(a, b)} + (a - a')\psi(a) + (b - b')\psi(b) + (a' - a + b' - b)\psi(a + b)

    Args:
        alpha_p: a > 0 of the teacher's law P, one an action.
        beta_p: b > 0.
        alpha_q: a' > 0 of the student's law Q.
        beta_q: b' > 0.
        weight: of each sample, such as ``(1 + |steer|)^3 / 2``.

    Raises:
        TypeError: a tensor is not floating, or dtypes differ.
        ValueError: shapes do not fit, there are no actions, or a parameter is not positive.

    Example:
        >>> a, b = torch.tensor([2.0]), torch.tensor([1.0])
        >>> round(action_kl(a, b, b, b).item(), 4)  # ln 2 - 1/2
        0.1931

    References:
        Jia et al. (2023), DriveAdapter, arXiv 2308.00398, section 3.4; Zhang et al. (2021), End-to-end urban driving by
        imitating a reinforcement learning coach, arXiv 2108.08265, for the Beta laws of actions.
    """
    given = {"alpha_p": alpha_p, "beta_p": beta_p, "alpha_q": alpha_q, "beta_q": beta_q}
    for name, value in given.items():
        if check_floating(name, value).ndim == 0 or not value.shape[-1]:
            raise ValueError(f"{name} must have shape [*batch, n] with n >= 1, got {tuple(value.shape)}")
        if can_look(value):
            check_positive(name, value)
    check_same_dtype(**given, **({} if weight is None else {"weight": weight}))
    check_broadcast(**{name: tuple(value.shape) for name, value in given.items()})
    dtype = alpha_p.dtype
    a, b, c, d = (value.double() for value in given.values())  # a small difference of large numbers
    change = _log_beta(c, d) - _log_beta(a, b)
    found = change + (a - c) * a.digamma() + (b - d) * b.digamma() + (c - a + d - b) * (a + b).digamma()
    mean = found.mean(-1)
    return (mean if weight is None else weight * mean).to(dtype)


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return a.lgamma() + b.lgamma() - (a + b).lgamma()

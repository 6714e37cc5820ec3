"""Transport between the features of two networks, by which one learns from the other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

from pullback.core.checks import (
    check_broadcast,
    check_callable,
    check_choice,
    check_finite,
    check_floating,
    check_integer,
    check_range,
    check_same_dtype,
    check_scalar,
    check_shape,
)
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.transport.proximal import ProximalState, proximal_sinkhorn
from pullback.transport.sinkhorn import sinkhorn

__all__ = [
    "FeatureBank",
    "LayerFeatures",
    "LayerOutputs",
    "LocalTransport",
    "WassersteinCritic",
    "distillation_loss",
    "local_transport_loss",
    "wasserstein_mutual_information",
]


class WassersteinCritic(nn.Module):
    r"""A function :math:`g(t,s)` of two feature vectors that changes by at most the distance its input moves.

    ==============  ====================================================================================================
    ``form``        g
    ==============  ====================================================================================================
    ``"network"``   :math:`h(t,s)`, a network of both
    ``"distance"``  :math:`-\|h_1(t)-h_2(s)\|/\sqrt2`, of two networks that are equal at first
    ==============  ====================================================================================================

    The networks are :math:`h(x)=\hat W_L\,\rho(\cdots\rho(\hat W_1x+b_1)\cdots)+b_L` with :math:`\hat W=W/\|W\|_2` and
    the leaky rectifier :math:`\rho(x)=\max(x,0)+\mathrm{slope}\min(x,0)`. Each layer has Lipschitz constant 1 for the
    Euclidean norm, and so g for that of (t, s): exactly, as spectral norms are computed and not followed by power
    iterations. Weights begin orthogonal; so ``"distance"`` with one layer at least as wide as t begins as the distance.

    A rectifier that flattens half of its input makes g change by far less than it may, and each layer adds to that. The
    absolute value, slope = -1, changes as much as its input, and g finds more than twice as much of the distance.

    Args:
        dim: of t and of s, >= 1.
        hidden: width of the hidden layers, and of what ``"distance"`` compares; >= 1.
        layers: linear layers of a network, >= 1; ``"distance"`` may have 0, and then compares t and s as they are.
        form: see the table.
        slope: of the rectifier for negative numbers, in [-1, 1].
        generator: of the first weights; torch's own by default.

    Raises:
        TypeError, ValueError: a number is no integer or out of range, ``form`` is unknown.

    Example:
        >>> critic = WassersteinCritic(3, 8, generator=torch.Generator().manual_seed(0))
        >>> critic(torch.randn(5, 3), torch.randn(5, 3)).shape
        torch.Size([5])

    References:
        Chen, Wang, Gan, Liu, Henao, Carin (2021), Wasserstein contrastive representation distillation, section 3.
        Miyato, Kataoka, Koyama, Yoshida (2018), Spectral normalization for generative adversarial networks. Anil,
        Lucas, Grosse (2019), Sorting out Lipschitz function approximation.
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 64,
        *,
        layers: int = 2,
        form: str = "network",
        slope: float = 0.2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_choice("form", form, ("network", "distance"))
        for name, value, least in (("dim", dim, 1), ("hidden", hidden, 1), ("layers", layers, int(form == "network"))):
            check_integer(name, value, least)
        check_range("slope", slope, -1, 1)
        self.dim, self.form, self.slope = dim, form, slope
        alone = form == "network"
        sizes = [2 * dim, *(layers - 1) * [hidden], 1] if alone else [dim, *layers * [hidden]]
        first = _Contraction(sizes, slope, generator)
        self.networks = nn.ModuleList([first] if alone else [first, copy.deepcopy(first)])

    def forward(self, t: Float[Tensor, "*#batch dim"], s: Float[Tensor, "*#batch dim"]) -> Float[Tensor, "*batch"]:
        """Return the values of all pairs.

        Raises:
            TypeError: ``t`` or ``s`` is no floating tensor, or the dtypes differ.
            ValueError: a last dimension is not ``dim``, or the batches do not broadcast.
        """
        batch, dtype = _features(self.dim, t=t, s=s), t.dtype
        wide = torch.promote_types(dtype, torch.float32)
        t, s = t.to(wide), s.to(wide)
        if self.form == "network":
            x = torch.cat([t.expand(*batch, self.dim), s.expand(*batch, self.dim)], -1)
            result: Tensor = self.networks[0](x).squeeze(-1).to(dtype)
            return result
        first, second = self.networks
        return -(2**-0.5 * _length(first(t) - second(s))).to(dtype)


class _Contraction(nn.Module):
    """A network that brings no two inputs farther apart."""

    def __init__(self, sizes: list[int], slope: float, generator: torch.Generator | None) -> None:
        super().__init__()
        self.weights, self.biases, self.slope = nn.ParameterList(), nn.ParameterList(), slope
        device = drawing_device(generator, torch.empty(0))
        for before, after in pairwise(sizes):
            weight = nn.init.orthogonal_(torch.empty(after, before, device=device), generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(after, device=device)))

    def forward(self, x: Tensor) -> Tensor:
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
            unit = wide / torch.linalg.matrix_norm(wide, 2)
            x = nn.functional.linear(nn.functional.leaky_relu(x, self.slope) if i else x, unit, bias.to(wide))
        return x


def wasserstein_mutual_information(
    critic: Callable[[Tensor, Tensor], Tensor],
    t: Float[Tensor, "n d"],
    s: Float[Tensor, "n e"],
    negatives: Float[Tensor, "*n m e"] | None = None,
) -> Float[Tensor, ""]:
    r"""Estimate from below how far the joint law of two features is from the product of its marginals, by transport.

    .. math:: \frac1n\sum_i g(t_i,s_i)-\frac1{nm}\sum_i\sum_{j}g(t_i,s'_{ij}) \;\le\; W_1(p_{ts},\,p_tp_s)

    holds for the laws of the samples (pairs, and pairs with negatives) whenever the critic has Lipschitz constant 1.
    Maximised over the critic it tends to the distance, for which Wasserstein dependency measures are named; unlike a
    bound with logarithms, it does not end at log m.

    Args:
        critic: g, from ``[..., d]`` and ``[..., e]`` to ``[...]``, such as :class:`WassersteinCritic`.
        t: ``[n, d]`` features of n samples.
        s: ``[n, e]`` other features of the same samples.
        negatives: ``[m, e]`` or ``[n, m, e]`` features s of other samples, for all or each of the n, such as those of a
            :class:`FeatureBank`; all other rows of ``s`` by default.

    Returns:
        The estimate, differentiable in features and critic.

    Raises:
        TypeError: features are no floating tensors, or ``critic`` is no function.
        ValueError: numbers of samples differ, there are fewer than 2, shapes do not fit.

    Example:
        >>> t = torch.tensor([[0.0], [1.0], [2.0]])
        >>> wasserstein_mutual_information(lambda t, s: -(t - s).abs()[..., 0] / 2**0.5, t, t).item()
        0.9428...

    References:
        Chen, Wang, Gan, Liu, Henao, Carin (2021), Wasserstein contrastive representation distillation, equation 7.
        Ozair et al. (2019), Wasserstein dependency measure for representation learning.
    """
    check_callable("critic", critic)
    n = _paired(t, s)
    joint = critic(t, s).mean()
    if negatives is None:
        pairs = critic(t.unsqueeze(1), s.unsqueeze(0))
        other = (pairs.sum() - pairs.diagonal().sum()) / (n * (n - 1))
    else:
        check_same_dtype(s=s, negatives=check_floating("negatives", negatives))
        if negatives.ndim not in (2, 3) or 0 in negatives.shape or negatives.shape[-1] != s.shape[-1]:
            raise ValueError(f"negatives must have shape ([n, ]m, {s.shape[-1]}), got {tuple(negatives.shape)}")
        if negatives.ndim == 3 and len(negatives) != n:
            raise ValueError(f"negatives must be given for each of the {n} samples, got {len(negatives)}")
        other = critic(t.unsqueeze(1), negatives).mean()
    return joint - other


class LocalTransport(NamedTuple):
    """What it costs to ship the features of one network to those of another, inside of a batch.

    Attributes:
        value: the cost of the plan, with the plan held constant.
        plan: ``[n, n]`` rows samples of t, columns samples of s; all of it is 1.
    """

    value: Float[Tensor, ""]
    plan: Float[Tensor, "n n"]


def local_transport_loss(
    t: Float[Tensor, "n d"],
    s: Float[Tensor, "n d"],
    *,
    method: str = "ipot",
    epsilon: Scalar = 0.1,
    steps: int = 30,
) -> LocalTransport:
    r"""Return :math:`\langle P,C\rangle` with :math:`C_{ij}=1-\cos(t_i,s_j)` and a plan P that is nearly the cheapest.

    ``"ipot"``: P after some steps of :func:`~pullback.transport.proximal_sinkhorn`, which tends to a cheapest plan at
    any epsilon. ``"sinkhorn"``: the plan of least cost plus epsilon times its entropy. P is held constant in
    derivatives; for the cheapest plan that is the gradient.

    A batch is shipped as a whole: the loss is small as soon as some matching of the samples is good. Which sample
    belongs to which it does not say.

    Args:
        t: ``[n, d]`` features of n samples; no row is 0.
        s: ``[n, d]`` other features of n samples.
        method: ``"ipot"`` or ``"sinkhorn"``.
        epsilon: > 0, in the unit of C, which is in [0, 2].
        steps: proximal steps, >= 1; for ``"sinkhorn"`` the sweeps are as many as it needs.

    Returns:
        :class:`LocalTransport`: ``value``, ``plan``.

    Raises:
        TypeError: features are no floating tensors, or their dtypes differ.
        ValueError: numbers of samples differ, there are fewer than 2, dimensions differ, features are not finite, a
            number is out of range, ``method`` is unknown.

    Example:
        >>> t = torch.eye(3)
        >>> found = local_transport_loss(t, t[[2, 0, 1]])
        >>> round(found.value.item(), 4), found.plan.argmax(-1).tolist()
        (0.0, [1, 2, 0])

    References:
        Chen, Wang, Gan, Liu, Henao, Carin (2021), Wasserstein contrastive representation distillation, equation 9. Xie,
        Wang, Wang, Zha (2019), A fast proximal point method for computing exact Wasserstein distance.
    """
    check_choice("method", method, ("ipot", "sinkhorn"))
    check_scalar("epsilon", epsilon)
    check_integer("steps", steps, 1)
    _paired(t, s)
    check_same_dtype(t=t, s=s)
    if t.shape[1] != s.shape[1]:
        raise ValueError(f"t and s must have features of one dimension, got {t.shape[1]} and {s.shape[1]}")
    for name, x in (("t", t), ("s", s)):
        if can_look(x):
            check_finite(name, x)
    wide = torch.promote_types(t.dtype, torch.float32)
    cost = 1 - _unit(t.to(wide)) @ _unit(s.to(wide)).mT
    fixed = cost.detach()
    if method == "sinkhorn":
        plan = sinkhorn(fixed, epsilon=epsilon, gradient="envelope").plan
    else:
        state: ProximalState | None = None
        for _ in range(steps):
            state = proximal_sinkhorn(fixed, state, epsilon=epsilon)
        assert state is not None
        plan = state.log_plan.exp()
    plan = plan.detach()
    return LocalTransport((plan * cost).sum().to(t.dtype), plan.to(t.dtype))


class FeatureBank(nn.Module):
    r"""The last features of every sample of a data set, as negatives that cost no forward pass.

    .. math:: f_i \leftarrow \frac{m f_i+(1-m)x_i}{\|m f_i+(1-m)x_i\|}

    Args:
        size: samples of the data set, >= 2.
        dim: of a feature, >= 1.
        momentum: m in [0, 1].
        generator: of the first features, which are random directions; torch's own by default.

    Attributes:
        features: ``[size, dim]`` of length 1, a buffer.

    Raises:
        TypeError, ValueError: a number is no integer or out of range.

    Example:
        >>> bank = FeatureBank(4, 2, momentum=0.0)
        >>> bank.update(torch.tensor([1, 3]), torch.tensor([[2.0, 0.0], [0.0, 5.0]]))
        >>> bank.features[[1, 3]].tolist()
        [[1.0, 0.0], [0.0, 1.0]]
        >>> bank.draw(torch.tensor([1, 3]), 6).shape
        torch.Size([2, 6, 2])

    References:
        Wu, Xiong, Yu, Lin (2018), Unsupervised feature learning via non-parametric instance discrimination, section
        3.2. Tian, Krishnan, Isola (2020), Contrastive representation distillation.
    """

    features: Tensor

    def __init__(self, size: int, dim: int, *, momentum: float = 0.5, generator: torch.Generator | None = None) -> None:
        super().__init__()
        check_integer("size", size, 2)
        check_integer("dim", dim, 1)
        check_range("momentum", momentum, 0, 1)
        self.momentum = momentum
        device = drawing_device(generator, torch.empty(0))
        self.register_buffer("features", _unit(torch.randn(size, dim, generator=generator, device=device)))

    @torch.no_grad()
    def update(self, index: Int[Tensor, "n"], x: Float[Tensor, "n dim"]) -> None:
        """Move the features of some samples, each named once, towards new ones.

        Raises:
            ValueError: there is not one row for each index, a row has another size, an index is out of range.
        """
        self._check(index)
        check_shape("x", x, (len(index), self.features.shape[1]))
        mixed = self.momentum * self.features[index] + (1 - self.momentum) * _unit(x.to(self.features))
        self.features[index] = _unit(mixed)

    def draw(
        self, index: Int[Tensor, "n"], count: int, *, generator: torch.Generator | None = None
    ) -> Float[Tensor, "n count dim"]:
        """Return features of other samples than each of the given ones, drawn evenly with replacement.

        Args:
            index: ``[n]`` of the samples that want negatives.
            count: negatives for each, >= 1.
            generator: torch's own by default.

        Raises:
            ValueError: an index or ``count`` is out of range.
        """
        self._check(index)
        check_integer("count", count, 1)
        size = len(self.features)
        ahead = torch.randint(
            1, size, (len(index), count), generator=generator, device=drawing_device(generator, self.features)
        ).to(self.features.device)
        return self.features[(index.to(ahead).unsqueeze(1) + ahead) % size]

    def _check(self, index: Tensor) -> None:
        size = len(self.features)
        if index.ndim != 1 or index.is_floating_point():
            raise ValueError(f"index must be integers [n], got {index.dtype} of shape {tuple(index.shape)}")
        if len(index) and not 0 <= int(index.min()) <= int(index.max()) < size:
            raise ValueError(f"index must be in 0..{size - 1}, got {int(index.min())}..{int(index.max())}")


class LayerOutputs(NamedTuple):
    """What a network returns, and what some of its layers do.

    Attributes:
        output: of the network.
        features: name of each layer to what it returned, in its last call.
    """

    output: Any
    features: dict[str, Tensor]


class LayerFeatures(nn.Module):
    """A network that also hands out what some of its layers compute, with their graph.

    Args:
        module: any network; its parameters are not copied.
        layers: names of layers, as ``module.named_modules()`` spells them; such as the last before the classes.

    Raises:
        TypeError: ``module`` is no module, or ``layers`` no sequence of names.
        ValueError: there is no such layer (those that exist are listed), none is named, or one is named twice.

    Example:
        >>> teacher = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> found = LayerFeatures(teacher, ["1"])(torch.randn(5, 4))
        >>> found.output.shape, found.features["1"].shape
        (torch.Size([5, 3]), torch.Size([5, 8]))

    References:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio (2015), FitNets: hints for thin deep nets, section 2.2.
    """

    def __init__(self, module: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        if not isinstance(module, nn.Module):
            raise TypeError(f"module must be a module of torch, got {type(module).__name__}")
        if isinstance(layers, str) or not all(isinstance(name, str) for name in layers):
            raise TypeError(f"layers must be a sequence of names, got {layers!r}")
        if not layers or len(set(layers)) < len(layers):
            raise ValueError(f"layers must hold at least one name, and each once, got {list(layers)}")
        there = [name for name, _ in module.named_modules() if name]
        for name in layers:
            if name not in there:
                raise ValueError(f"layers must be of {', '.join(map(repr, there)) or 'none'}, got {name!r}")
        self.module, self.layers = module, tuple(layers)

    def forward(self, *args: Any, **words: Any) -> LayerOutputs:
        """Call the network.

        Raises:
            TypeError: one of the layers returned no tensor.
            ValueError: one of the layers was not called.
        """
        found: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for name in self.layers:
                layer = self.module.get_submodule(name)
                stack.callback(layer.register_forward_hook(partial(_note, found, name)).remove)
            output = self.module(*args, **words)
        for name in self.layers:
            if name not in found:
                raise ValueError(f"layers must be called by the network, but {name!r} was not")
            if not isinstance(found[name], Tensor):
                raise TypeError(f"layers must return a tensor, but {name!r} returned {type(found[name]).__name__}")
        return LayerOutputs(output, {name: found[name] for name in self.layers})


def _note(found: dict[str, Tensor], name: str, _layer: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
    found[name] = output


def distillation_loss(
    student_logits: Float[Tensor, "*#batch classes"],
    teacher_logits: Float[Tensor, "*#batch classes"],
    *,
    temperature: Scalar = 4.0,
) -> Float[Tensor, "*batch"]:
    r"""Return how far the softened classes of a student are from those of its teacher.

    .. math:: T^2\,KL\big(\mathrm{softmax}(z_t/T)\,\|\,\mathrm{softmax}(z_s/T)\big)

    The factor keeps the size of the gradient as T changes. At a large T it is half of the squared distance of the
    centred logits, as a mean over the classes.

    Args:
        student_logits: ``[*batch, classes]`` finite.
        teacher_logits: ``[*batch, classes]`` finite; detach those of a teacher that is held.
        temperature: T > 0, a number or a differentiable tensor without dimensions.

    Returns:
        ``[*batch]``, >= 0.

    Raises:
        TypeError: logits are no floating tensors, or their dtypes differ.
        ValueError: shapes differ, a logit is not finite, ``temperature`` is not > 0.

    Example:
        >>> z = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
        >>> [round(x, 4) for x in distillation_loss(z, z.flip(-1), temperature=1.0).tolist()]
        [1.5232, 0.0]

    References:
        Hinton, Vinyals, Dean (2015), Distilling the knowledge in a neural network, section 2.
    """
    for name, x in (("student_logits", student_logits), ("teacher_logits", teacher_logits)):
        if check_floating(name, x).ndim == 0 or x.shape[-1] == 0:
            raise ValueError(f"{name} must have shape (..., classes), got {tuple(x.shape)}")
        if can_look(x):
            check_finite(name, x)
    check_same_dtype(student_logits=student_logits, teacher_logits=teacher_logits)
    if student_logits.shape[-1] != teacher_logits.shape[-1]:
        raise ValueError(
            "student_logits and teacher_logits must have as many classes, got "
            f"{student_logits.shape[-1]} and {teacher_logits.shape[-1]}"
        )
    check_broadcast(student_logits=tuple(student_logits.shape[:-1]), teacher_logits=tuple(teacher_logits.shape[:-1]))
    check_scalar("temperature", temperature)
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    t = temperature.to(student_logits.device, wide) if isinstance(temperature, Tensor) else float(temperature)
    student, teacher = (torch.log_softmax(x.to(wide) / t, -1) for x in (student_logits, teacher_logits))
    return (t * t * (teacher.exp() * (teacher - student)).sum(-1)).to(student_logits.dtype)


def _length(x: Tensor) -> Tensor:
    """The norm of each row, in units of its largest entry, so that no square overflows; 0 has the slope 0."""
    unit = x.detach().abs().amax(-1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1.0)
    squares = (x / unit).square().sum(-1)
    return torch.where(squares > 0, torch.where(squares > 0, squares, 1.0).sqrt(), 0.0) * unit.squeeze(-1)


def _unit(x: Tensor) -> Tensor:
    return nn.functional.normalize(x, dim=-1)


def _features(dim: int, **features: Tensor) -> torch.Size:
    for name, x in features.items():
        if check_floating(name, x).ndim == 0 or x.shape[-1] != dim:
            raise ValueError(f"{name} must have shape (..., {dim}), got {tuple(x.shape)}")
    check_same_dtype(**features)
    return check_broadcast(**{name: tuple(x.shape[:-1]) for name, x in features.items()})


def _paired(t: Tensor, s: Tensor) -> int:
    for name, x in (("t", t), ("s", s)):
        if check_floating(name, x).ndim != 2 or x.shape[1] == 0:
            raise ValueError(f"{name} must have shape (n, d), got {tuple(x.shape)}")
    if len(t) != len(s):
        raise ValueError(f"t and s must hold the same samples, got {len(t)} and {len(s)}")
    if len(t) < 2:
        raise ValueError(f"t and s must hold at least 2 samples, got {len(t)}")
    return len(t)

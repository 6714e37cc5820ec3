"""Networks with a categorical code in the middle, trained by any estimator of its gradient."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from pullback.core.checks import check_callable, check_choice, check_floating, check_integer, check_shape
from pullback.core.random import drawing_device
from pullback.core.shapes import Float, Int, Scalar, Tensor
from pullback.core.transforms import can_look
from pullback.discrete.estimators import categorical
from pullback.discrete.expectation import ESTIMATORS, expectation

__all__ = ["CategoricalBottleneck", "DiscreteVAE", "SemiSupervisedVAE"]


class CategoricalBottleneck(nn.Module):
    r"""A stochastic network ``x -> D -> y``: independent categorical variables ``D`` between two perceptrons.

    .. math:: q(D \mid x) = \prod_s \mathrm{Cat}\big(D_s;\ \mathrm{softmax}\,\mathrm{encoder}(x)_s\big), \qquad
        p(y \mid D) = \prod_i \mathrm{Bernoulli}\big(y_i;\ \sigma(\mathrm{decoder}(D)_i)\big).

    Args:
        inputs: entries of ``x``.
        variables: S, the number of variables of the code.
        classes: C, the classes of each.
        outputs: entries of ``y``.
        hidden: widths of the hidden layers of the encoder; the decoder has them in reverse.
        estimator: one of ``ESTIMATORS``, or a function with the signature of :func:`expectation`. In evaluation mode
            the draws are exact whatever it is. An attribute that may be changed, as ``temperature``.
        temperature: of an estimator given by name.

    Raises:
        TypeError: a size is no integer, ``estimator`` cannot be called.
        ValueError: a size is < 1, ``estimator`` is unknown.

    Example:
        >>> network = CategoricalBottleneck(8, 3, 4, 6, hidden=(16,))
        >>> network.loss(torch.zeros(5, 8), torch.ones(5, 6)).shape, network(torch.zeros(5, 8)).shape
        (torch.Size([5]), torch.Size([5, 6]))

    References:
        Jang, Gu, Poole (2017), Categorical reparameterization with Gumbel-softmax, section 4.1.
    """

    def __init__(
        self,
        inputs: int,
        variables: int,
        classes: int,
        outputs: int,
        hidden: Sequence[int] = (),
        *,
        estimator: str | Callable[..., Tensor] = "reinmax",
        temperature: Scalar = 1.0,
    ) -> None:
        super().__init__()
        sizes = {"inputs": inputs, "variables": variables, "classes": classes, "outputs": outputs}
        for name, size in sizes.items():
            check_integer(name, size, 1)
        if isinstance(estimator, str):
            check_choice("estimator", estimator, ESTIMATORS)
        else:
            check_callable("estimator", estimator)
        self.inputs, self.outputs = inputs, outputs
        self.variables, self.classes = variables, classes
        self.estimator, self.temperature = estimator, temperature
        self.encoder = _perceptron(inputs, *hidden, variables * classes)
        self.decoder = _perceptron(variables * classes, *reversed(hidden), outputs)

    def logits(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch S C"]:
        """Return the logits of the code, ``[*batch, S, C]``."""
        check_shape("x", check_floating("x", x), (self.inputs,))
        return self.encoder(x).unflatten(-1, (self.variables, self.classes))

    def decode(self, code: Float[Tensor, "*any S C"]) -> Float[Tensor, "*any outputs"]:
        """Return the logits of the outputs ``[*any, outputs]`` for codes, one-hot or relaxed."""
        return self.decoder(code.flatten(-2))

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        """Return the probabilities of the outputs for the most likely code."""
        logits = self.logits(x)
        code = F.one_hot(logits.argmax(-1), self.classes).to(logits.dtype)
        return torch.sigmoid(self.decode(code))

    def loss(
        self,
        x: Float[Tensor, "*batch inputs"],
        y: Float[Tensor, "*batch outputs"],
        *,
        samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*batch"]:
        """Return an estimate of ``E -log p(y | D)``, an upper bound of ``-log p(y | x)``, in nats.

        Args:
            x: ``[*batch, inputs]``.
            y: ``[*batch, outputs]`` in ``[0, 1]``.
            samples: draws of each code.
            generator: torch's default one if ``None``.

        Returns:
            ``[*batch]``, with the estimator's gradient.

        Raises:
            TypeError: ``x`` or ``y`` is not floating.
            ValueError: ``x`` or ``y`` has the wrong shape, or ``y`` leaves ``[0, 1]``.
        """
        _check_pixels("y", y, self.outputs, x)
        return self._expected_loss(self.logits(x), y, samples, generator)

    @torch.no_grad()
    def bound(
        self,
        x: Float[Tensor, "*batch inputs"],
        y: Float[Tensor, "*batch outputs"],
        *,
        samples: int,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*batch"]:
        r"""Return :math:`-\log \frac1m \sum_k p(y \mid D_k)` over ``m = samples`` exact draws, ``[*batch]`` in nats.

        In the mean an upper bound of ``-log p(y | x)`` that falls towards it as samples are added.
        """
        _check_pixels("y", y, self.outputs, x)
        logits = self.logits(x)
        many = logits.expand(check_integer("samples", samples, 1), *logits.shape)
        code = categorical(many, method="straight_through", generator=generator)
        return math.log(samples) - torch.logsumexp(-_reconstruction(self.decode(code), y), 0)

    def _expected_loss(
        self, logits: Tensor, y: Tensor, samples: int, generator: torch.Generator | None
    ) -> Float[Tensor, "*batch"]:
        def f(code: Tensor) -> Tensor:
            return _reconstruction(self.decode(code), y)

        estimator, options = self.estimator, dict[str, Any](samples=samples, generator=generator)
        if not self.training:
            estimator = "straight_through"
        if not isinstance(estimator, str):
            return estimator(f, logits, **options)
        temperature = self.temperature if self.training else 1.0
        return expectation(f, logits, method=estimator, temperature=temperature, **options)


class DiscreteVAE(CategoricalBottleneck):
    r"""A variational autoencoder with a categorical code and a uniform prior.

    The negative evidence lower bound of an image, with the divergence in closed form:

    .. math:: E_{q(D \mid x)}\big[-\log p(x \mid D)\big] + \sum_s \Big(\log C + \sum_c q_{sc} \log q_{sc}\Big).

    Args:
        inputs: entries of ``x``, each in ``[0, 1]``.
        variables, classes, hidden, estimator, temperature: as in :class:`CategoricalBottleneck`.

    Raises:
        TypeError, ValueError: as in :class:`CategoricalBottleneck`.

    Example:
        >>> model = DiscreteVAE(8, 3, 4, (16,), estimator="gumbel_softmax", temperature=0.5)
        >>> model.negative_elbo(torch.ones(5, 8)).shape
        torch.Size([5])

    References:
        Jang, Gu, Poole (2017), section 4.2. Liu et al. (2023), Bridging discrete and backpropagation, section 6.
    """

    def __init__(
        self,
        inputs: int,
        variables: int,
        classes: int,
        hidden: Sequence[int] = (),
        *,
        estimator: str | Callable[..., Tensor] = "reinmax",
        temperature: Scalar = 1.0,
    ) -> None:
        super().__init__(inputs, variables, classes, inputs, hidden, estimator=estimator, temperature=temperature)

    def negative_elbo(
        self,
        x: Float[Tensor, "*batch inputs"],
        *,
        samples: int = 1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*batch"]:
        """Return the negative evidence lower bound ``[*batch]`` in nats, with the estimator's gradient.

        Args:
            x: ``[*batch, inputs]`` in ``[0, 1]``.
            samples: draws of each code.
            generator: torch's default one if ``None``.

        Raises:
            TypeError: ``x`` is not floating.
            ValueError: ``x`` has the wrong shape or leaves ``[0, 1]``.
        """
        _check_pixels("x", x, self.inputs)
        logits = self.logits(x)
        return self._expected_loss(logits, x, samples, generator) + self.divergence(logits)

    def divergence(self, logits: Float[Tensor, "*batch S C"]) -> Float[Tensor, "*batch"]:
        """Return the divergence of the code from the uniform law, ``[*batch]`` in nats."""
        return self.variables * math.log(self.classes) - _entropy(logits).sum(-1)


class SemiSupervisedVAE(nn.Module):
    r"""A variational autoencoder whose code is a label, often unknown, and a style: the model M2.

    ``y ~ uniform``, ``z ~ N(0, I)``, ``p(x | y, z)`` Bernoulli; ``q(y | x)`` is a classifier, ``q(z | x, y)`` normal.
    With a label the bound is

    .. math:: L(x, y) = E_{q(z \mid x, y)} \log p(x \mid y, z) - KL(q(z \mid x, y)\,\|\,N(0, I)) - \log k,

    without one :math:`E_{q(y \mid x)} L(x, y) + H(q(y \mid x))`. The estimator ``"exact"`` marginalises: k passes
    through encoder and decoder; every other needs one pass, with a label that is drawn.

    Args:
        inputs: entries of ``x``, each in ``[0, 1]``.
        classes: k, the number of labels.
        style: entries of ``z``.
        hidden: widths of the hidden layers of the three perceptrons.
        estimator: of ``E L(x, y)``: one of ``ESTIMATORS``, ``"exact"`` for the marginal.
        temperature: of the estimator; an attribute that may be changed.

    Raises:
        TypeError: a size is no integer.
        ValueError: a size is < 1, ``estimator`` is unknown.

    Example:
        >>> model = SemiSupervisedVAE(8, 3, 2, (16,))
        >>> x = torch.zeros(5, 8)
        >>> model.elbo(x).shape, model.elbo(x, torch.zeros(5, dtype=torch.int64)).shape, model.classify(x).shape
        (torch.Size([5]), torch.Size([5]), torch.Size([5, 3]))

    References:
        Kingma, Rezende, Mohamed, Welling (2014), Semi-supervised learning with deep generative models, equations 6-7.
        Jang, Gu, Poole (2017), section 4.3.
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        style: int,
        hidden: Sequence[int] = (),
        *,
        estimator: str = "gumbel_softmax",
        temperature: Scalar = 1.0,
    ) -> None:
        super().__init__()
        for name, size in {"inputs": inputs, "classes": classes, "style": style}.items():
            check_integer(name, size, 1)
        check_choice("estimator", estimator, ESTIMATORS)
        self.inputs, self.classes, self.style = inputs, classes, style
        self.estimator, self.temperature = estimator, temperature
        self.classifier = _perceptron(inputs, *hidden, classes)
        self.encoder = _perceptron(inputs + classes, *hidden, 2 * style)
        self.decoder = _perceptron(classes + style, *reversed(hidden), inputs)

    def classify(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch classes"]:
        """Return the logits of the label, ``[*batch, classes]``."""
        check_shape("x", check_floating("x", x), (self.inputs,))
        return self.classifier(x)

    def decode(self, y: Float[Tensor, "*any classes"], z: Float[Tensor, "*any style"]) -> Float[Tensor, "*any inputs"]:
        """Return the logits of ``x`` for labels, one-hot or relaxed, and styles."""
        return self.decoder(torch.cat([y, z], -1))

    def elbo(
        self,
        x: Float[Tensor, "*batch inputs"],
        y: Int[Tensor, "*batch"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "*batch"]:
        """Return the evidence lower bound ``[*batch]`` in nats, with one draw of the style.

        Args:
            x: ``[*batch, inputs]`` in ``[0, 1]``.
            y: ``[*batch]`` labels in ``0..classes - 1``; ``None`` where they are unknown.
            generator: torch's default one if ``None``.

        Raises:
            TypeError: ``y`` holds no integers.
            ValueError: ``x`` or ``y`` has the wrong shape, ``x`` leaves ``[0, 1]``, a label is none of the classes.
        """
        _check_pixels("x", x, self.inputs)
        device = drawing_device(generator, x)
        noise = torch.randn(*x.shape[:-1], self.style, generator=generator, dtype=x.dtype, device=device).to(x.device)
        if y is not None:
            if y.dtype not in (torch.int64, torch.int32):
                raise TypeError(f"y must hold integers, got {y.dtype}")
            if y.shape != x.shape[:-1]:
                raise ValueError(f"y must have shape {tuple(x.shape[:-1])}, got {tuple(y.shape)}")
            if can_look(y) and bool(((y < 0) | (y >= self.classes)).any()):
                raise ValueError(f"y must be in 0..{self.classes - 1}, got {int(y.min())} to {int(y.max())}")
            return self._labelled(x, noise, F.one_hot(y.long(), self.classes).to(x.dtype))
        logits = self.classify(x)
        f = partial(self._labelled, x, noise)
        options: dict[str, Any] = {"method": self.estimator, "temperature": self.temperature, "variables": 0}
        expected = expectation(f, logits, generator=generator, **options)
        return expected + _entropy(logits)

    def _labelled(self, x: Tensor, noise: Tensor, y: Tensor) -> Tensor:
        x, noise = x.expand(*y.shape[:-1], x.shape[-1]), noise.expand(*y.shape[:-1], self.style)
        mean, log_deviation = self.encoder(torch.cat([x, y], -1)).chunk(2, -1)
        z = mean + log_deviation.exp() * noise
        divergence = 0.5 * (mean.square() + (2 * log_deviation).exp() - 1) - log_deviation
        return -_reconstruction(self.decode(y, z), x) - divergence.sum(-1) - math.log(self.classes)


def _perceptron(*sizes: int) -> nn.Sequential:
    for size in sizes:
        check_integer("hidden", size, 1)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _check_pixels(name: str, x: Tensor, size: int, like: Tensor | None = None) -> None:
    check_shape(name, check_floating(name, x), (size,))
    if like is not None and x.shape[:-1] != like.shape[:-1]:
        raise ValueError(f"{name} must have the batch of x, {tuple(like.shape[:-1])}, got {tuple(x.shape[:-1])}")
    if can_look(x) and bool((~((x >= 0) & (x <= 1))).any()):
        raise ValueError(f"{name} must be in [0, 1], got minimum {x.min().item()} and maximum {x.max().item()}")


def _reconstruction(logits: Tensor, y: Tensor) -> Tensor:
    """Return ``-log p(y)`` of independent Bernoulli entries, summed over the last dimension."""
    return F.binary_cross_entropy_with_logits(logits, y.expand(logits.shape), reduction="none").sum(-1)


def _entropy(logits: Tensor) -> Tensor:
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)

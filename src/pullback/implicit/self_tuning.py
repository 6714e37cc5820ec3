"""Training that tunes its own hyperparameters through a network that answers them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from torch.optim import Optimizer

from pullback.core.checks import check_integer, check_positive
from pullback.core.shapes import Float, Tensor
from pullback.implicit.arguments import check_function
from pullback.implicit.bilevel import BilevelDescent, BilevelProblem
from pullback.implicit.hypergradients import hypergradient
from pullback.implicit.hyperparameters import Hyperparameters

__all__ = ["self_tuning_training"]

Loss = Callable[[Hyperparameters, nn.Module], Tensor]


def self_tuning_training(
    hyperparameters: Hyperparameters,
    network: nn.Module,
    train: Loss,
    validation: Loss,
    *,
    network_optimizer: Optimizer,
    hyper_optimizer: Optimizer,
    train_steps: int = 2,
    entropy_weight: float = 1e-5,
) -> BilevelDescent:
    r"""Return descent that tunes hyperparameters while the network learns to answer them, in one training.

    A step takes ``train_steps`` steps on the network's parameters :math:`\phi` and one on the hyperparameters'
    center and scale:

    .. math:: \min_\phi\ E_h\, L_T(h, \hat w_\phi(h)), \qquad
       \min_{u, \sigma}\ E_h\, L_V(\hat w_\phi(h)) - \tau\, \mathrm{entropy}(\sigma), \qquad h \sim N(u, \sigma^2)

    The network's response stands for :math:`w^*(h)`, so the outer gradient is the direct one, and the training loss
    is never differentiated in the hyperparameters: they may be dropout rates or integers.

    Args:
        hyperparameters: whose ``perturb`` both losses call, so that each example has its own.
        network: of layers that answer ``h``, such as :class:`BestResponseLinear`.
        train: ``train(hyperparameters, network)``, a loss with the regularisation that the hyperparameters say; it may
            draw a minibatch.
        validation: ``validation(hyperparameters, network)``, a loss without regularisation, which depends on ``h``
            through the network alone.
        network_optimizer: over the network's parameters.
        hyper_optimizer: over those of ``hyperparameters``.
        train_steps: >= 0, steps on the network before each on the hyperparameters.
        entropy_weight: :math:`\tau`, >= 0, in units of the loss a nat: keeps the perturbations as wide as the network
            can answer.

    Returns:
        :class:`BilevelDescent`: its ``step()`` is one step, its ``state_dict`` all that a step changes but what the
        losses draw from.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is out of range, or an optimizer lacks a parameter.

    Example:
        >>> import torch
        >>> from pullback.implicit import BestResponseLinear, Hyperparameter
        >>> stream = torch.Generator().manual_seed(0)
        >>> decay = Hyperparameters({"decay": Hyperparameter(1.0, 0, torch.inf, log=True, scale=0.2)})
        >>> net = BestResponseLinear(1, 1, 1, bias=False, generator=stream)
        >>> def train(decay, net):  # w*(decay) = 1 / (1 + decay)
        ...     h = decay.perturb(64, generator=stream)
        ...     w = net(torch.ones(64, 1), h)[:, 0]
        ...     return ((w - 1) ** 2 + decay.values(h)["decay"] * w**2).mean()
        >>> def validation(decay, net):  # wants w = 0.8, so a decay of 0.25
        ...     return ((net(torch.ones(64, 1), decay.perturb(64, generator=stream)) - 0.8) ** 2).mean()
        >>> training = self_tuning_training(
        ...     decay, net, train, validation,
        ...     network_optimizer=torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.5),
        ...     hyper_optimizer=torch.optim.Adam(decay.parameters(), lr=0.02),
        ... )
        >>> for _ in range(300):
        ...     state = training.step()
        >>> abs(decay.values()["decay"].item() - 0.25) < 0.1
        True

    References:
        MacKay, Vicol, Lorraine, Duvenaud, Grosse (2019), Self-tuning networks, algorithm 1.
    """
    if not isinstance(hyperparameters, Hyperparameters):
        raise TypeError(f"hyperparameters must be Hyperparameters, got {type(hyperparameters).__name__}")
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    check_function("train", train)
    check_function("validation", validation)
    check_integer("train_steps", train_steps, 0)
    check_positive("entropy_weight", entropy_weight, zero=True)

    def upper(x: Hyperparameters, y: nn.Module) -> Float[Tensor, ""]:
        return validation(x, y) - entropy_weight * x.entropy()

    return BilevelDescent(
        BilevelProblem(upper, train, hyperparameters, network),
        hypergradient=partial(hypergradient, method="direct"),
        outer_optimizer=hyper_optimizer,
        inner_optimizer=network_optimizer,
        inner_steps=train_steps,
    )

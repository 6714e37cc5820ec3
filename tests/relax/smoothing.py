"""The yardstick of ``relaxed``: the derivative of a program's expectation under Gaussian noise, by differences."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import vmap

import pullback

TEMPERATURE = 0.1
SAMPLES = 8000


def smoothed_gradient(f: Callable[[Tensor], Tensor], x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """The gradient of ``E f(x + sigma eps)`` and its standard errors: ``E [(f(x + s e) - f(x - s e)) e / (2 s)]``."""
    noise = torch.randn(SAMPLES, *x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            difference = vmap(f)(x + sigma * noise) - vmap(f)(x - sigma * noise)
    except RuntimeError:  # data-dependent steps are not for vmap
        noise = noise[: SAMPLES // 4]
        difference = torch.stack([torch.as_tensor(f(x + sigma * e) - f(x - sigma * e)) for e in noise])
    terms = difference.double().unsqueeze(-1) * noise.flatten(1) / (2 * sigma)
    return terms.mean(0), terms.std(0) / len(terms) ** 0.5


def relaxed_gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pullback.relaxed(temperature=TEMPERATURE):
            y = f(x)
    return y.detach(), torch.autograd.grad(y, x)[0]

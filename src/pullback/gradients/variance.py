"""How noisy an estimate of a smoothed gradient is: by backpropagation, by function values, by forward mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pullback.core.checks import check_choice, check_integer
from pullback.gradients.perturbed import check_perturbed, directions, each

__all__ = ["GradientVariance", "gradient_variance"]

ESTIMATORS = ("reparam", "evolution", "forward")


@dataclass(frozen=True)
class GradientVariance:
    """Moments of one sample of an estimator of a gradient, for each loss.

    Attributes:
        mean: name to the mean, ``[*losses, *parameter]``.
        standard_error: of the mean, the same shapes.
        variance: ``[*losses]`` ``E ||g - E g||^2`` of one sample, summed over all parameters; infinite where the
            gradient of a sample is not finite.
        signal_to_noise: ``[*losses]`` ``||E g||^2`` over the variance; infinite where only the variance is 0.
        log_norm: ``[*losses]`` mean of ``log ||g||``: the size of a typical sample, which the variance is not.
        value: ``[*losses]`` mean of the sampled losses.
        low: ``[*losses]`` the smallest of the sampled losses.
        high: ``[*losses]`` the largest of the sampled losses.
        samples: number of samples.
    """

    mean: dict[str, Tensor]
    standard_error: dict[str, Tensor]
    variance: Tensor
    signal_to_noise: Tensor
    log_norm: Tensor
    value: Tensor
    low: Tensor
    high: Tensor
    samples: int


def gradient_variance(
    loss: Callable[[dict[str, Tensor]], Tensor],
    parameters: Mapping[str, Tensor],
    *,
    estimator: str = "reparam",
    samples: int,
    smoothing: float,
    generator: torch.Generator,
    chunk: int | None = None,
) -> GradientVariance:
    r"""Return mean and variance of a sample of an estimator of ``grad E_e L(p + s e)``, ``e ~ N(0, I)``.

    With ``q = p + s e`` a sample is

    * ``"reparam"``: ``grad L(q)``, by backpropagation;
    * ``"evolution"``: ``(L(p + s e) - L(p - s e)) e / (2 s)``, by two values;
    * ``"forward"``: ``(grad L(q) . v) v``, ``v ~ N(0, I)``, by one Jacobian-vector product.

    All three are unbiased where ``L`` is continuous. The variance of the second is at most
    ``n (range of L)^2 / (4 s^2)`` for ``n`` parameters; that of the others has no bound.

    Args:
        loss: maps parameters by name to a scalar, or to any tensor ``[*losses]``, each entry of which is a loss of its
            own (such as those at all horizons of a simulation, which then runs once a sample).
        parameters: floating tensors by name; left unchanged.
        estimator: ``"reparam"``, ``"evolution"`` or ``"forward"``.
        samples: >= 2.
        smoothing: ``s > 0``, in units of the parameters.
        generator: of the directions, which are the same for every chunk.
        chunk: how many samples are computed at once, by ``torch.func.vmap``; ``None``: one at a time.

    Returns:
        A :class:`GradientVariance`.

    Raises:
        TypeError: ``loss`` is not callable, or a parameter is not floating.
        ValueError: ``estimator`` is none of the three, a number is out of range, there are no parameters, or a loss is
            not finite.

    Example:
        >>> p = {"x": torch.zeros(3, dtype=torch.float64)}
        >>> def variance(estimator):
        ...     found = gradient_variance(lambda q: q["x"].square().sum(), p, estimator=estimator, samples=4000,
        ...                               smoothing=0.5, generator=torch.Generator().manual_seed(0), chunk=4000)
        ...     return round(float(found.variance), 1)
        >>> variance("reparam"), variance("evolution")  # 4 s^2 n, and 0: the two values of a pair are equal
        (3.0, 0.0)

    References:
        Metz, Freeman, Schoenholz, Kachman (2021), Gradients are not all you need, arXiv 2111.05803, section 4.
        Mohamed, Rosca, Figurnov, Mnih (2020), Monte Carlo gradient estimation in machine learning, JMLR 21.
    """
    check_perturbed(loss, parameters, smoothing, chunk)
    check_choice("estimator", estimator, ESTIMATORS)
    check_integer("samples", samples, 2)
    centre = {name: p.detach() for name, p in parameters.items()}
    shape = torch.no_grad()(loss)(centre).shape
    wide = sum(p.numel() for p in centre.values()) > shape.numel()
    jacobian = (torch.func.jacrev if wide else torch.func.jacfwd)(lambda p: (loss(p),) * 2, has_aux=True)

    def reparam(e: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        gradients, value = jacobian({name: p + smoothing * e[name] for name, p in centre.items()})
        return gradients, value

    def evolution(e: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        ends = [loss({name: p + side * e[name] for name, p in centre.items()}) for side in (smoothing, -smoothing)]
        return _outer((ends[0] - ends[1]) / (2 * smoothing), e), ends[0], ends[1]

    def forward(e: dict[str, Tensor], v: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        point = {name: p + smoothing * e[name] for name, p in centre.items()}
        value, slope = torch.func.jvp(loss, (point,), (v,))[:2]
        return _outer(slope, v), value

    estimators: dict[str, Callable[..., Any]] = {"reparam": reparam, "evolution": evolution, "forward": forward}
    sample = estimators[estimator]
    moments = _Moments(shape)
    for noise in directions([centre] * (1 + (estimator == "forward")), samples, chunk, generator):
        gradients, *values = each(sample, chunk, *noise)
        moments.add({name: g.detach() for name, g in gradients.items()}, torch.cat(values).detach())
    return moments.result()


def _outer(slopes: Tensor, direction: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: slopes.reshape(slopes.shape + (1,) * v.ndim) * v for name, v in direction.items()}


class _Moments:
    """Means and centred sums of squares that grow by blocks (Chan, Golub, LeVeque 1983), so that none is cancelled."""

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape
        self.count = 0
        self.mean: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.logs: list[Tensor] = []
        self.values: list[Tensor] = []

    def add(self, gradients: dict[str, Tensor], values: Tensor) -> None:
        """Add a block of samples ``[k, *losses, *parameter]`` by name, and of losses ``[m, *losses]``."""
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"loss must be finite at perturbed parameters, got {_first_bad(values)}")
        size = len(next(iter(gradients.values())))
        both = self.count + size
        norms = []
        for name, g in gradients.items():
            mean = g.mean(0)
            squares = (g - mean).square().sum(0)
            if self.count:
                step = mean - self.mean[name]
                self.squares[name] += squares + step.square() * (self.count * size / both)
                self.mean[name] += step * (size / both)
            else:
                self.mean[name], self.squares[name] = mean, squares
            norms.append(torch.linalg.vector_norm(g.reshape(size, *self.shape, -1), dim=-1))
        self.count = both
        self.logs.append(torch.linalg.vector_norm(torch.stack(norms), dim=0).log().sum(0))
        self.values += [values.sum(0) / len(values) * size, values.amin(0), values.amax(0)]

    def result(self) -> GradientVariance:
        degrees = self.count - 1
        parts = [s.reshape(*self.shape, -1).sum(-1) for s in self.squares.values()]
        variance = (torch.stack(parts).sum(0) / degrees).nan_to_num(nan=torch.inf, posinf=torch.inf)
        signal = torch.stack([m.reshape(*self.shape, -1).square().sum(-1) for m in self.mean.values()]).sum(0)
        ratio = torch.where((signal == 0) & (variance == 0), 0.0, signal / variance)
        return GradientVariance(
            mean=self.mean,
            standard_error={name: (s / (degrees * self.count)).sqrt() for name, s in self.squares.items()},
            variance=variance,
            signal_to_noise=ratio.nan_to_num(nan=0.0, posinf=torch.inf),
            log_norm=torch.stack(self.logs).sum(0) / self.count,
            value=torch.stack(self.values[::3]).sum(0) / self.count,
            low=torch.stack(self.values[1::3]).amin(0),
            high=torch.stack(self.values[2::3]).amax(0),
            samples=self.count,
        )


def _first_bad(values: Tensor) -> float:
    return float(values[~torch.isfinite(values)][0])

"""Learning the parameters of a particle filter while it runs, from the observations alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from pullback.core.checks import check_callable, check_integer, check_positive
from pullback.core.shapes import Float, Tensor
from pullback.uncertainty.particle_filters import ParticleFiltered, StateSpaceModel, particle_filter

__all__ = ["OnlineFilter", "OnlineStep", "online_adapt"]

Loss = Callable[[ParticleFiltered, Tensor], Tensor]


class OnlineStep(NamedTuple):
    """What an online filter said of a block of observations, before it learned from them.

    Attributes:
        means: ``[*batch, L, d]`` of the states.
        increments: ``[*batch, L]`` log density of each observation given those before it.
        ess: ``[*batch, L]`` effective sample sizes.
        loss: the loss of which the last step was taken, a number; NaN without an optimizer.
    """

    means: Float[Tensor, "*batch L d"]
    increments: Float[Tensor, "*batch L"]
    ess: Float[Tensor, "*batch L"]
    loss: float


class OnlineFilter:
    r"""A particle filter that takes a gradient step after each block of observations.

    Block s starts from the particles at the end of block s - 1, held constant, and from the parameters
    :math:`\theta_{s-1}`; the step is one on

    .. math:: \ell_s(\theta)=-\sum_{t\in\mathrm{block}}\log\hat p_\theta(y_t|y_{<t}),

    the estimated log evidence of the block given the past, so that the parameters follow maximum likelihood as the
    stream changes; no state is ever seen. What is returned of a block was computed before its step: it is a forecast.

    Args:
        model: :class:`StateSpaceModel`, whose parameters ``optimizer`` has.
        optimizer: of torch; ``None`` filters without learning.
        particles: of each series.
        steps: >= 1 gradient steps a block, each from the same particles.
        loss: ``"evidence"``, or a function of :class:`ParticleFiltered` and the observations of the block, as of known
            states; summed over series that have parameters of their own.
        clip: > 0, the largest norm of the gradient of all parameters; ``None`` does not clip.
        generator: of all draws.
        options: of :func:`particle_filter`.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: an option is out of range.

    Example:
        >>> from pullback.uncertainty import LinearGaussian
        >>> one = torch.eye(1)
        >>> walk = LinearGaussian(one, one, one, one, torch.zeros(1), one)
        >>> online = OnlineFilter(walk, None, particles=50, generator=torch.Generator().manual_seed(0))
        >>> online.update(torch.zeros(3, 1)).means.shape, online.update(torch.zeros(2, 1)).means.shape
        (torch.Size([3, 1]), torch.Size([2, 1]))

    References:
        Li, Chen, Li (2023), Learning differentiable particle filter on the fly, algorithm 2.
    """

    def __init__(
        self,
        model: StateSpaceModel,
        optimizer: torch.optim.Optimizer | None,
        *,
        particles: int = 100,
        steps: int = 1,
        loss: str | Loss = "evidence",
        clip: float | None = None,
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
            raise TypeError(f"optimizer must be one of torch or None, got {type(optimizer).__name__}")
        check_integer("particles", particles, 2)
        check_integer("steps", steps, 1)
        if clip is not None:
            check_positive("clip", clip)
        self._loss = _evidence if isinstance(loss, str) and loss == "evidence" else loss
        if isinstance(self._loss, str):
            raise ValueError(f"loss must be 'evidence' or a function, got {loss!r}")
        check_callable("loss", self._loss)
        self.model, self.optimizer, self.steps, self.clip = model, optimizer, steps, clip
        self._options = {"particles": particles, "generator": generator, **options}
        self._particles: tuple[Tensor, Tensor] | None = None
        self._shape: tuple[int, ...] | None = None

    def update(self, y: Float[Tensor, "*batch L k"], loss: Loss | None = None) -> OnlineStep:
        """Filter a block of observations, then learn from it.

        Args:
            y: ``[*batch, L, k]``; L may differ from block to block, the rest may not.
            loss: of this block, in the place of that of the filter.

        Returns:
            :class:`OnlineStep`.

        Raises:
            ValueError: the shape of observations has changed; as :func:`particle_filter` does.
        """
        if not isinstance(y, Tensor) or y.ndim < 2:
            raise ValueError(f"y must have shape [*batch, L, k], got {getattr(y, 'shape', type(y).__name__)}")
        shape = (*y.shape[:-2], y.shape[-1])
        if self._shape is not None and shape != self._shape:
            raise ValueError(f"observations of a stream must keep their shape {self._shape}, got {shape}")
        self._shape = shape
        objective = self._loss if loss is None else loss
        value = float("nan")
        first: ParticleFiltered | None = None
        with torch.set_grad_enabled(self.optimizer is not None):
            for _ in range(self.steps if self.optimizer is not None else 1):
                found = particle_filter(self.model, y, start=self._particles, **self._options)
                if self.optimizer is not None:
                    value = self._learn(self.optimizer, objective(found, y))  # type: ignore[operator]
                first = found if first is None else first
        assert first is not None
        self._particles = (first.points.detach(), first.log_weights.detach())
        return OnlineStep(first.means.detach(), first.increments.detach(), first.ess, value)

    def state_dict(self) -> dict[str, Any]:
        """Return the particles, None before the first block; model, optimizer and generator are kept by their owner."""
        points, log_weights = self._particles if self._particles is not None else (None, None)
        return {"points": points, "log_weights": log_weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the particles of :meth:`state_dict`."""
        self._particles = None if state["points"] is None else (state["points"], state["log_weights"])

    def _learn(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
        optimizer.zero_grad()
        loss.backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], self.clip)
        optimizer.step()
        return float(loss.detach())


def online_adapt(
    model: StateSpaceModel,
    stream: Float[Tensor, "*batch T k"] | Iterable[Tensor],
    optimizer: torch.optim.Optimizer | None,
    *,
    block: int = 10,
    **options: Any,
) -> Iterator[OnlineStep]:
    """Filter a stream and learn from it block by block: :class:`OnlineFilter` as a loop.

    Args:
        model: :class:`StateSpaceModel`.
        stream: ``[*batch, T, k]``, or an iterable of single observations ``[*batch, k]``, which may never end.
        optimizer: of the model's parameters; ``None`` does not learn.
        block: L >= 1 observations between steps; the last block may be shorter.
        options: of :class:`OnlineFilter`.

    Yields:
        :class:`OnlineStep` of each block.

    Raises:
        TypeError, ValueError: as :class:`OnlineFilter`, when the first block is asked for.

    Example:
        >>> from pullback.uncertainty import LinearGaussian
        >>> one = torch.eye(1)
        >>> walk = LinearGaussian(one, one, one, one, torch.zeros(1), one)
        >>> [step.means.shape[0] for step in online_adapt(walk, torch.zeros(7, 1), None, block=3)]
        [3, 3, 1]

    References:
        Li, Chen, Li (2023), Learning differentiable particle filter on the fly.
    """
    check_integer("block", block, 1)
    online = OnlineFilter(model, optimizer, **options)
    waiting: list[Tensor] = []
    for observation in stream.unbind(-2) if isinstance(stream, Tensor) else stream:
        if waiting and observation.shape != waiting[0].shape:
            known, came = tuple(waiting[0].shape), tuple(observation.shape)
            raise ValueError(f"observations of a stream must keep their shape {known}, got {came}")
        waiting.append(observation)
        if len(waiting) == block:
            yield online.update(torch.stack(waiting, -2))
            waiting = []
    if waiting:
        yield online.update(torch.stack(waiting, -2))


def _evidence(found: ParticleFiltered, y: Tensor) -> Tensor:
    return -found.log_evidence.sum()
